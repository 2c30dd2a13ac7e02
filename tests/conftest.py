"""What several test files share: no network, the real digits, and a small part of them."""

from collections.abc import Iterator

import pytest
from torch import Tensor
from torchvision.datasets import MNIST

import train
from mnist import DATA_DIR, load_mnist

Digits = dict[str, tuple[Tensor, Tensor]]  # "train" and "test" to images and labels


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """No test downloads anything: nobody listens where the mirrors are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])
        yield


@pytest.fixture(scope="session")
def mnist() -> Digits:
    """The 60,000 training and the 10,000 test images with their labels."""
    return {part: load_mnist(DATA_DIR, part == "train") for part in ("train", "test")}


@pytest.fixture
def small_mnist(mnist: Digits, monkeypatch: pytest.MonkeyPatch) -> Digits:
    """Let `train` find only 500 training images (four batches, the last short) and 300 for test."""
    counts = {"train": 500, "test": 300}
    small = {part: tuple(x[: counts[part]] for x in mnist[part]) for part in counts}
    monkeypatch.setattr(
        train, "load_mnist", lambda data_dir, train: small["train" if train else "test"]
    )
    return small
