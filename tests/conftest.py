"""What several test files share: no network, the real digits, and a small part of them."""

import gzip
import itertools
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.datasets import MNIST

import train
from mnist import DATA_DIR, load_mnist

Digits = dict[str, tuple[Tensor, Tensor]]  # "train" and "test" to images and labels
COUNTS = {"train": 500, "test": 300}  # of a small part: four batches of 128, the last short


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="how often test_kills.py kills a run")


def pytest_configure() -> None:
    """Tests, and what they start, use one thread: in work so small, more wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """No test downloads anything: nobody listens where the mirrors are looked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])
        yield


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """Restores what scripts change of the process: threads, signals, and a test's own models."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for name in [name for name in sys.modules if name.startswith("model_")]:
        del sys.modules[name]


@pytest.fixture
def one_thread() -> None:
    """What every test has; asked for by test_predict.py."""


@pytest.fixture(scope="session")
def mnist() -> Digits:
    """The 60,000 training and the 10,000 test images with their labels."""
    return {part: load_mnist(DATA_DIR, part == "train") for part in COUNTS}


def write_archives(data_dir: Path, digits: Digits) -> Path:
    """Writes the four archives of a dataset into a data folder, and returns the folder."""
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = digits[part]
        for name, numbers in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{numbers.ndim}I", 0, 0, 8, numbers.ndim, *numbers.shape)
            content = gzip.compress(head + numbers.to(torch.uint8).numpy().tobytes(), 1)
            (raw / f"{prefix}-{name}-ubyte.gz").write_bytes(content)
    return data_dir


@pytest.fixture(scope="session")
def few(mnist: Digits) -> Digits:
    """The first COUNTS images and labels of both sets."""
    return {part: tuple(x[:count] for x in mnist[part]) for part, count in COUNTS.items()}


@pytest.fixture(scope="session")
def small_data(few: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with archives of COUNTS images, for what reads them in another process."""
    return write_archives(tmp_path_factory.mktemp("data"), few)


@pytest.fixture
def small_mnist(few: Digits, monkeypatch: pytest.MonkeyPatch) -> Digits:
    """COUNTS images, which are all that `train` finds."""
    monkeypatch.setattr(
        train, "load_mnist", lambda _, train, **how: few["train" if train else "test"]
    )
    return few


def fail_at(number: int, owner: object, name: str, error: BaseException, patch) -> None:
    """Makes the call of owner.name with that number, counted from 1, raise `error`."""
    function, calls = getattr(owner, name), itertools.count(1)

    def failing(*args: Any) -> Any:
        if next(calls) == number:
            raise error
        return function(*args)

    patch.setattr(owner, name, failing)
