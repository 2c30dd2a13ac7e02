"""The learning-rate range test: what it finds in known curves, and that it reads no test image."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train
from tools import lr_range


@pytest.fixture(autouse=True)
def training_images(mnist: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no test set."""
    monkeypatch.setattr(train, "load_mnist", lambda data_dir, train, **_: mnist[train and "train"])


def curve(rate: float) -> float:
    """Falls from 2.3, fastest at 0.01, to some 0.3, then rises; it diverges beyond 3."""
    return 0.3 + 2 / (1 + (rate / 0.01) ** 1.5) + (rate / 2) ** 4


def trainer_of(loss: Callable[[float], float]) -> SimpleNamespace:
    """A trainer that has this loss at each learning rate."""
    trainer = SimpleNamespace(model=nn.Identity(), optimizer=torch.optim.SGD([torch.zeros(1)]))
    rate = trainer.optimizer.param_groups[0]
    trainer.step = lambda images, labels: (torch.tensor(loss(rate["lr"])), None)
    return trainer


def test_it_ends_where_the_loss_diverges() -> None:
    batches = [(None, None)] * 7
    for diverged in (np.nan, np.inf, 5.0):
        trainer = trainer_of(lambda rate, last=diverged: last if rate > 0.5 else 2.3)
        assert len(lr_range.range_test(trainer, batches)) == (lr_range.RATES <= 0.5).sum()
    assert len(lr_range.range_test(trainer_of(lambda rate: 2.3), batches)) == 300


def test_rates_of_a_known_curve(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(train, "Trainer", lambda *_: trainer_of(curve))
    assert lr_range.main(["--out", str(tmp_path)]) == 0
    *lines, path = capsys.readouterr().out.splitlines()
    fastest, lowest, max_lr = (float(line.split("  ")[-1]) for line in lines)
    assert 0.008 < fastest < 0.012 and 0.2 < lowest < 0.6 and max_lr == 0.1
    assert path == str(tmp_path / "model3-strong-lr-range.png")


def test_a_loss_that_never_falls_is_one_line(monkeypatch, tmp_path, capsys) -> None:
    for loss in (lambda rate: np.nan, lambda rate: 2.3 + rate):
        monkeypatch.setattr(train, "Trainer", lambda *_, loss=loss: trainer_of(loss))
        assert lr_range.main(["--out", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "model3: the loss falls at no rate" in error


def test_a_network_of_another_size_and_a_changed_recipe(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(lr_range, "RATES", np.geomspace(1e-3, 3, 50))
    monkeypatch.setattr(lr_range, "SMOOTHING", 4)
    options = ["--model", "model4", "--size", "width=9", "--recipe", "fast", "--batch-size", "16"]
    assert lr_range.main([*options, "--out", str(tmp_path / "new")]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == tmp_path / "new" / "model4-width9-fast+batch_size=16-lr-range.png"
    with Image.open(path) as picture:
        assert picture.width == 900
