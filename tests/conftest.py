"""What several test files share: no network, the real digits, and a small part of them."""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchvision.datasets import MNIST

import train
from mnist import DATA_DIR, load_mnist

Digits = dict[str, tuple[Tensor, Tensor]]  # "train" and "test" to images and labels


def pytest_configure(config: pytest.Config) -> None:
    """One of several processes has one thread, and so has what it starts: cores are shared."""
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """No test downloads anything: nobody listens where the mirrors are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])
        yield


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give back the number of threads, which is that of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """For small work: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist() -> Digits:
    """The 60,000 training and the 10,000 test images with their labels."""
    return {part: load_mnist(DATA_DIR, part == "train") for part in ("train", "test")}


def take_few(mnist: Digits, patch: pytest.MonkeyPatch) -> Digits:
    """Let `train` find only 500 training images (four batches, the last short) and 300 for test."""
    counts = {"train": 500, "test": 300}
    small = {part: tuple(x[: counts[part]] for x in mnist[part]) for part in counts}
    patch.setattr(train, "load_mnist", lambda data_dir, train: small["train" if train else "test"])
    return small


@pytest.fixture
def small_mnist(mnist: Digits, monkeypatch: pytest.MonkeyPatch) -> Digits:
    """What `take_few` lets `train` find."""
    return take_few(mnist, monkeypatch)
