"""The challenges: their requirements, and whether a run meets them.

A challenge of your own is one more line in CHALLENGES; every script finds it.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple


class Limit(NamedTuple):
    """An upper limit, inclusive ("at most") or exclusive ("fewer than")."""

    value: int
    inclusive: bool = True

    def allows(self, number: int) -> bool:
        return number < self.value or (self.inclusive and number == self.value)

    def __str__(self) -> str:
        return f"{'at most' if self.inclusive else 'fewer than'} {self.value:,}"


class Counted(Enum):
    """Which epochs must reach the accuracy."""

    LAST_FIVE = "all of the last five epochs"
    LAST = "the last epoch"
    ANY = "any epoch"
    FIRST = "the first epoch"


class Part(Enum):
    """A part that a network must have; tools.check finds it in what the network computes."""

    BATCH_NORM = "BatchNorm"
    DROPOUT = "dropout"
    GAP_OR_LINEAR = "global average pooling or a fully connected layer"


@dataclass(frozen=True)
class Challenge:
    """The requirements; `accuracy` is the minimum test accuracy in %."""

    name: str
    parameters: Limit
    epochs: Limit | None
    accuracy: float
    counted: Counted = Counted.LAST_FIVE
    parts: tuple[Part, ...] = ()

    def counted_accuracies(self, accuracies: list[float]) -> list[float]:
        """Selects the accuracies of the epochs that count."""
        if self.counted is Counted.LAST_FIVE:
            return accuracies[-5:]
        if self.counted is Counted.LAST:
            return accuracies[-1:]
        if self.counted is Counted.FIRST:
            return accuracies[:1]
        return accuracies

    def reached(self, accuracies: list[float]) -> bool:
        """Whether the accuracies (%) of all epochs of a run are enough."""
        passed = [accuracy >= self.accuracy for accuracy in self.counted_accuracies(accuracies)]
        if self.counted is Counted.LAST_FIVE:
            return len(passed) == 5 and all(passed)
        return any(passed)

    def checks(self, parameters: int, accuracies: list[float]) -> dict[str, bool]:
        """Each requirement, with what a run has of it, and whether that is enough."""
        count = len(accuracies)
        result = {
            f"{parameters:,} parameters ({self.parameters})": self.parameters.allows(parameters)
        }
        if self.epochs:
            text = f"{count} epoch{'s' * (count != 1)} ({self.epochs})"
            result[text] = self.epochs.allows(count)
        text = f"{self.accuracy} % or more in {self.counted.value}"
        if self.counted is Counted.LAST_FIVE:
            number = sum(accuracy >= self.accuracy for accuracy in accuracies[-5:])
            text = f"{number} of the last five epochs at {self.accuracy} % or more"
        return result | {text: self.reached(accuracies)}


REQUIRED = (Part.BATCH_NORM, Part.DROPOUT, Part.GAP_OR_LINEAR)
CHALLENGES = {
    challenge.name: challenge
    for challenge in (
        Challenge("8k", Limit(8_000), Limit(15), 99.4),
        Challenge("10k", Limit(10_000, False), Limit(15), 99.4),
        Challenge("20k", Limit(20_000, False), Limit(20, False), 99.4, Counted.ANY, REQUIRED),
        Challenge("first-epoch", Limit(25_000, False), None, 95.0, Counted.FIRST),
    )
}


def verdict(
    challenge: Challenge, parameters: int, records: list[dict[str, Any]], holdout: int
) -> str:
    """Says whether a run meets the challenge, with a line per requirement.

    `records` are those of its epochs. On a validation split there is no verdict.
    """
    accuracies = [record["acc"] for record in records]
    best, mean = max(accuracies), sum(accuracies[-3:]) / 3
    checks = challenge.checks(parameters, accuracies)
    lines = [
        f"{'validation' if holdout else 'test'} accuracy {accuracies[-1]:.2f} % at the last epoch, "
        + (f"{mean:.2f} % mean of the last three, " if len(records) >= 3 else "")
        + f"{best:.2f} % best (epoch {accuracies.index(best) + 1})",
        *(f"  {'yes' if met else 'NO':3}  {text}" for text, met in checks.items()),
    ]
    if holdout:
        return "\n".join(lines)
    if challenge.parts:
        parts = ", ".join(part.value for part in challenge.parts)
        lines.append(f"  ?    {parts}: python -m tools.check MODEL --challenge {challenge.name}")
    if challenge.counted is Counted.ANY:
        lines.append("The best epoch is chosen on the test set, so its accuracy is optimistic.")
    result = "met" if all(checks.values()) else "not met"
    if result == "met" and challenge.parts:
        result += ", if the network has these parts"
    elif challenge.counted is Counted.LAST_FIVE and len(records) < 5:
        result += ": it takes five epochs or more"
    lines.append(f"The challenge {challenge.name} is {result}.")
    return "\n".join(lines)
