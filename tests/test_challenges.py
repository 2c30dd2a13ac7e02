"""Challenges: each limit at its border, the epochs that count, and the words of the verdict."""

import pytest

from challenges import CHALLENGES, Challenge, Counted, Limit, verdict

MET = [98.0] * 9 + [99.6, 99.4, 99.45, 99.48, 99.40, 99.44]
LAST = Challenge("last", Limit(8_000), None, 99.4, Counted.LAST)


def judge(name: str, parameters: int, accuracies: list[float], holdout: int = 0) -> str:
    records = [{"acc": accuracy} for accuracy in accuracies]
    return verdict(CHALLENGES[name], parameters, records, holdout)


@pytest.mark.parametrize(
    ("name", "parameters", "accuracies", "expected"),
    [
        ("8k", 8_000, MET, "8k is met."),
        ("8k", 8_001, MET, "NO   8,001 parameters (at most 8,000)"),
        ("8k", 8_000, [98.0, *MET], "NO   16 epochs (at most 15)"),
        ("8k", 8_000, [*MET[:-2], 99.39, 99.5], "NO   4 of the last five epochs at 99.4 % or more"),
        ("8k", 8_000, [99.5] * 4, "8k is not met: it takes five epochs or more."),
        ("8k", 8_000, [98.0], "NO   0 of the last"),
        ("8k", 8_000, [98.0], "yes  1 epoch (at most 15)"),
        ("10k", 9_999, MET, "10k is met."),
        ("10k", 10_000, MET, "NO   10,000 parameters (fewer than 10,000)"),
        ("20k", 19_999, [*MET, *[98.0] * 4], "20k is met, if the network has these parts."),
        ("20k", 19_999, [*MET, *[98.0] * 5], "NO   20 epochs (fewer than 20)"),
        ("20k", 19_999, [99.39] * 9, "NO   99.4 % or more in any epoch"),
        ("20k", 20_000, MET, "NO   20,000 parameters (fewer than 20,000)"),
        ("20k", 19_999, MET, "The best epoch is chosen on the test set"),
        ("20k", 19_999, MET, "BatchNorm, dropout, global average pooling or a fully connected"),
        ("first-epoch", 24_999, [95.0, 90.0], "first-epoch is met."),
        ("first-epoch", 24_999, [94.9] + [99.0] * 30, "NO   95.0 % or more in the first epoch"),
        ("first-epoch", 25_000, [95.0], "NO   25,000 parameters (fewer than 25,000)"),
    ],
)
def test_verdict(name: str, parameters: int, accuracies: list[float], expected: str) -> None:
    text = judge(name, parameters, accuracies)
    assert expected in text
    assert ("is not met" in text) == ("NO" in text)


def test_the_last_epoch_is_the_result() -> None:
    first = judge("8k", 7_784, MET).splitlines()[0]
    figures = "99.44 % at the last epoch, 99.44 % mean of the last three, 99.60 % best (epoch 10)"
    assert first == f"test accuracy {figures}"
    assert LAST.reached([90.0, 99.4]) and not LAST.reached([99.4, 90.0])


def test_a_validation_split_has_no_verdict() -> None:
    text = judge("20k", 7_784, MET, holdout=100)
    assert "validation accuracy 99.44 %" in text and "test" not in text
    assert "The challenge" not in text
