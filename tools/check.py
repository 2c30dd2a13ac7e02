"""Check a network for what an assignment asks of it.

    python -m tools.check model7
    python -m tools.check model3 model4 --challenge 20k

Prints a Markdown list; its boxes are what the challenge requires. Parts are found in what the
network computes, not by the names of its layers. Exit code 1 where a required part is missing.
"""

import argparse
import contextlib
import copy
import itertools
import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from challenges import CHALLENGES, Challenge, Part
from cli import Parser, RunError, UsageError, exit_code
from networks import count_parameters, get_model
from tools.receptive_field import POOLS, layers, rows_of
from tools.trace import Step, trace


class Item(NamedTuple):
    """A line of the list; `is_met` is None where the challenge requires nothing of the kind."""

    text: str
    is_met: bool | None = None

    def __str__(self) -> str:
        box = "" if self.is_met is None else "[x] " if self.is_met else "[ ] "
        return f"- {box}{self.text}"


def is_global_average(step: Step, source: Tensor) -> bool:
    """Whether it averages all positions of a map, of any layout, up to a factor."""
    if len(step.reads) != 1 or source.ndim < 3 or not source.is_floating_point():
        return False
    values = torch.randn_like(source)
    axes = range(1, source.ndim)
    averages = [values.mean(dim=[other for other in axes if other != axis]) for axis in axes]
    with contextlib.suppress(RuntimeError):
        output = step.run({step.reads[0]: values.clone()})
        return any(
            each.numel() == output.numel() < values.numel()
            and torch.allclose(F.normalize(each.view(1, -1)), F.normalize(output.reshape(1, -1)))
            for each in averages
        )
    return False


def is_fully_connected(step: Step, source: Tensor) -> bool:
    """Whether it has a weight for each pair of a value that it reads and one that it gives."""
    pairs = source[0].numel() * step.output[0].numel()
    return len(step.reads) == 1 and bool(step.weights) and step.weights[0].numel() >= pairs


def listed(words: list[str]) -> str:
    """The different ones, in order, with commas."""
    return ", ".join(dict.fromkeys(words))


def parts_of(model: nn.Module) -> dict[Part, str]:
    """Describes the parts of a network that challenges ask for; those that it has not are left out.

    UsageError where its training mode fails, with the network's own error as the cause.
    """
    images = torch.randn(2, 1, 28, 28)
    steps = trace(model, images)
    try:
        in_training = trace(copy.deepcopy(model), images, training=True)
    except Exception as error:
        raise UsageError(f"in training mode it raised the {type(error).__name__} above") from error
    norms = [step for step in in_training if step.name == "batch_norm"]
    settings = [step.settings for step in in_training if "dropout" in step.name]
    rates = [f"{each['p']:g}" for each in settings if each["p"] and each.get("train")]
    known = layers(steps)
    first = next((at for at, step in enumerate(steps) if step.weights), len(steps))
    averages, connected = [], []
    for at, step in enumerate(steps[first:], first):
        source = steps[step.reads[0]].output
        if is_global_average(step, source):
            averages.append(f"of {' x '.join(map(str, source.shape[1:]))}")
        elif is_fully_connected(step, source):
            connected.append(known[at].title)
    heads = {"global average pooling": averages, "fully connected layer": connected}
    found = {
        Part.BATCH_NORM: norms and f"BatchNorm: {len(norms)}",
        Part.DROPOUT: rates and f"dropout: {len(rates)}, at rate {listed(rates)}",
        Part.GAP_OR_LINEAR: " and ".join(f"{k} ({listed(v)})" for k, v in heads.items() if v),
    }
    return {part: text for part, text in found.items() if text}


def warnings_of(model: nn.Module) -> list[str]:
    """What is likely a mistake: softmax before cross-entropy, dropout in evaluation."""
    images = torch.randn(2, 1, 28, 28)
    steps, logits = trace(model, images), model(images).detach()
    warnings = []
    if torch.allclose(logits.logsumexp(dim=1), torch.zeros(2), atol=1e-4):
        warnings.append("log-softmax at the end: cross-entropy has its own, so leave it out")
    elif torch.allclose(logits.sum(dim=1), torch.ones(2)) and logits.min() >= 0:
        warnings.append("softmax at the end: cross-entropy has its own, and learns badly from this")
    if any("dropout" in step.name and step.settings.get("train") for step in steps):
        warnings.append("dropout in evaluation too: write F.dropout(x, rate, self.training)")
    return warnings


def checklist(model: nn.Module, challenge: Challenge) -> list[Item]:
    """What graders ask of a network, and whether it has what the challenge requires."""
    count, limit, parts = count_parameters(model), challenge.parameters, parts_of(model)
    text = f"{count:,} parameters, each counted once ({limit})"
    trainable = sum(each.numel() for each in model.parameters() if each.requires_grad)
    if trainable != count:
        text += f"; {trainable:,} are trainable, but all count"
    items = [Item(text, limit.allows(count)), Item("output: 10 logits for each image", True)]
    for part in Part:
        is_met = part in parts if part in challenge.parts else None
        items.append(Item(parts.get(part, f"{part.value}: none"), is_met))
    rows = rows_of(model)
    pools = [
        before.reach for before, row in itertools.pairwise(rows) if row.title in POOLS.values()
    ]
    reach = f"; before the pools {listed(pools)}" if pools else ""
    items.append(Item(f"receptive field: {rows[-1].reach} at the end{reach}"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 1, 28, 28))
    items.append(Item(f"{counter.get_total_flops() // 2:,} multiply-adds for an image"))
    documented = sys.modules[type(model).__module__].__doc__ or ""
    missing = [word for word in ("Target", "Result", "Analysis") if word not in documented]
    items.append(Item(f"docstring: {'no ' * bool(missing)}{', '.join(missing) or 'complete'}"))
    return items + [Item(f"warning: {text}") for text in warnings_of(model)]


def check(args: argparse.Namespace) -> None:
    """Prints the lists; RunError where a network misses what the challenge requires."""
    challenge, misses = CHALLENGES[args.challenge], []
    for name in args.models:
        items = checklist(get_model(name), challenge)
        print(
            f"## {name}, challenge {challenge.name}\n\n", *(f"{item}\n" for item in items), sep=""
        )
        misses += [f"{name} ({item.text})" for item in items if item.is_met is False]
    if misses:
        raise RunError(f"challenge {challenge.name} is not met by {'; '.join(misses)}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.check", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="such as model7")
    which = "default: %(default)s"
    parser.add_argument("--challenge", choices=[*CHALLENGES], default="8k", help=which)
    return exit_code(parser.prog, check, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
