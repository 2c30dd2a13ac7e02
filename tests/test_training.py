"""The schedule, a step of training and the evaluation, against figures from outside."""

import copy
import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import mnist
import train
from mnist import Loader
from networks import get_model
from recipes import CLASSIC, STRONG
from train import Trainer

SMOOTHING = 0.02


def read(name: str) -> list[dict[str, str]]:
    """The rows of a table beside this file."""
    with Path(__file__).with_name(name).open(newline="") as file:
        return list(csv.DictReader(file))


def linear_model(*last: nn.Module) -> nn.Sequential:
    """A model that numpy can follow by hand."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), *last)


class Magnitude(nn.Module):
    """Complex numbers to their absolute values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def matrix_of(model: nn.Sequential) -> np.ndarray:
    """Weights of a linear model with the bias as the last column, (10, 785)."""
    return torch.cat([model[1].weight, model[1].bias[:, None]], dim=1).double().detach().numpy()


def with_ones(images: torch.Tensor) -> np.ndarray:
    """Images (N, 1, 28, 28) as rows (N, 785) that a matrix with a bias column multiplies."""
    rows = images.flatten(1).double().numpy()
    return np.hstack([rows, np.ones((len(rows), 1))])


def smoothed_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of each row and its gradient: 2 % of the target is spread over ten classes."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (1 - SMOOTHING) * np.eye(10)[labels] + SMOOTHING / 10
    return -(targets * np.log(probabilities)).sum(axis=1), probabilities - targets


def learning_rates(recipe: train.Recipe, batches_per_epoch: int) -> list[float]:
    """The learning rate before the first step, and after each."""
    optimizer, scheduler = train.build_optimizer(get_model("model3"), recipe, batches_per_epoch)
    rates = scheduler.get_last_lr()[:1]
    for _ in range(recipe.epochs * batches_per_epoch):
        optimizer.step()
        scheduler.step()
        rates += scheduler.get_last_lr()[:1]
    return rates


def test_learning_rate_after_each_epoch_is_the_published_one() -> None:
    published = [row["lr"] for row in read("published_epochs.csv") if row["model"] == "model3"]
    assert [f"{rate:.4f}" for rate in learning_rates(CLASSIC, 469)[469::469]] == published
    assert len(published) == 15


def test_shortest_schedules_end_low() -> None:
    """A dry run has one batch per epoch: the learning rate must rise and fall in a few steps."""
    for steps in (1, 2, 3, 5):
        rates = learning_rates(dataclasses.replace(CLASSIC, epochs=steps), 1)[:steps]
        assert rates[-1] == pytest.approx(0.3 / 10 / 100) and max(rates) <= 0.3


@pytest.mark.parametrize("epochs", [2, 5, 15])
def test_ema_begins_once_the_learning_rate_only_falls(epochs: int) -> None:
    recipe = dataclasses.replace(STRONG, epochs=epochs)
    rates = np.reshape(learning_rates(recipe, 100)[:-1], (epochs, 100))
    falls = [*(np.diff(rates, axis=1) < 0).all(axis=1)]
    has_ema = [recipe.has_ema(epoch) for epoch in range(1, epochs + 1)]
    assert has_ema == falls and any(has_ema)
    assert not any(CLASSIC.has_ema(epoch) for epoch in range(1, 16))


def test_ema_averages_parameters_and_running_statistics_and_copies_other_buffers() -> None:
    """Shared weights are moved once; the vectors of spectral_norm keep their unit length."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3, dtype=torch.complex64)
    rest = spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3)
    model = nn.Sequential(layer, layer, Magnitude(), *rest)
    trainer = Trainer(model, STRONG, 10)
    before = copy.deepcopy(trainer.ema.state_dict())
    with torch.no_grad():
        model(torch.randn(8, 3, dtype=torch.complex64))
        for parameter in model.parameters():
            parameter += 1
    trainer.update_ema()
    trainer.copy_buffers()
    after, copied = model.state_dict(), []
    for name, found in trainer.ema.state_dict().items():
        if name in dict(model.named_parameters(remove_duplicate=False)) or "running" in name:
            expected = STRONG.ema_decay * before[name] + (1 - STRONG.ema_decay) * after[name]
        else:
            expected = after[name]
            copied.append(name.rpartition(".")[2])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert not found.equal(before[name])
    assert copied == ["_u", "_v", "num_batches_tracked"]


def test_strong_decays_filters_and_matrices_only() -> None:
    model = get_model("model3")
    optimizer, _ = train.build_optimizer(model, STRONG, 1)
    groups = optimizer.param_groups
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[parameter] == (2e-4 if parameter.ndim in (2, 4) else 0), name


def test_training_agrees_with_a_hand_computation(mnist: dict) -> None:
    """Two epochs of three batches, the last short: loss, Nesterov step, one cycle, EMA.

    The EMA is a copy in the first, in which the learning rate rises.
    """
    recipe = dataclasses.replace(CLASSIC, epochs=2, batch_size=8, max_lr=0.003, ema_decay=0.7)
    images, labels = (part[:20] for part in mnist["train"])
    loader, model = Loader(images, labels, 8, recipe), linear_model()
    trainer = Trainer(model, recipe, len(loader))
    # A small one would not be seen below.
    assert all(group["weight_decay"] == 0 for group in trainer.optimizer.param_groups)
    matrix = matrix_of(model)
    ema, velocity, step, last = matrix, np.zeros_like(matrix), 0, 5
    peak = 0.2 * 6 - 1  # the step of the highest learning rate, counted from 0
    for epoch in (1, 2):
        loader.epoch, losses, correct = epoch, [], 0
        for batch_images, batch_labels in loader:
            rows, targets = with_ones(batch_images), batch_labels.numpy()
            loss, gradient = smoothed_loss(rows @ matrix.T, targets)
            losses.extend(loss)
            correct += ((rows @ matrix.T).argmax(axis=1) == targets).sum()
            gradient = gradient.T @ rows / len(rows)
            if step <= peak:
                low, turn = 0.003 / 10, 1 - step / peak
            else:
                low, turn = 0.003 / 10 / 100, (step - peak) / (last - peak)
            rate = low + (0.003 - low) * (1 + math.cos(math.pi * turn)) / 2
            velocity = 0.9 * velocity + gradient
            matrix = matrix - rate * (gradient + 0.9 * velocity)
            ema = matrix if epoch == 1 else 0.7 * ema + 0.3 * matrix
            step += 1
        result = train.train_one_epoch(trainer, loader)
        assert result == pytest.approx((np.mean(losses), 100 * correct / 20), rel=1e-4)
        np.testing.assert_allclose(matrix_of(trainer.model), matrix, rtol=0, atol=1e-6)
        np.testing.assert_allclose(matrix_of(trainer.ema), ema, rtol=0, atol=1e-6)


def test_evaluation_agrees_with_a_hand_computation(mnist: dict) -> None:
    """Batches of 64, 64 and 22: each image counts once; dropout, in front of the loss, is off."""
    images, labels = (part[:150] for part in mnist["test"])
    loader, model = Loader(images, labels, 64), linear_model(nn.Dropout(0.5)).train()
    logits = with_ones((images / 255 - 0.1307) / 0.3081) @ matrix_of(model).T
    losses, _ = smoothed_loss(logits, labels.numpy())
    accuracy = 100 * (logits.argmax(axis=1) == labels.numpy()).mean()
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    result = train.evaluate(model, loader, criterion)
    assert result == pytest.approx((losses.mean(), accuracy), rel=1e-5)


@pytest.mark.parametrize("row", read("training_losses.csv"), ids=lambda row: row["model"])
def test_training_comes_to_the_losses_on_file(
    row: dict[str, str], small_mnist: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of 4 batches: what fails here makes the records those of another training.

    In double precision and with small steps, since what processors round differently would grow
    beyond any limit. `weights` is the sum of the absolute values of the EMA's weights.
    """
    augment = mnist.augment
    monkeypatch.setattr(
        mnist, "augment", lambda images, moves, mode: augment(images.double(), moves.double(), mode)
    )
    recipe = train.RECIPES[row["recipe"]]
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=32, max_lr=recipe.max_lr / 30)
    experiment = train.Experiment(row["model"], recipe, holdout=500 - 128)
    loader, _ = train.build_loaders(experiment, torch.device("cpu"))
    torch.manual_seed(42)
    trainer = Trainer(get_model(row["model"]).double(), recipe, len(loader))
    for loader.epoch, name in ((1, "first_loss"), (2, "second_loss")):
        loss, _ = train.train_one_epoch(trainer, loader)
        assert loss == pytest.approx(float(row[name]), abs=1e-3)
    weights = sum(weights.abs().sum().item() for weights in trainer.ema.parameters())
    assert weights == pytest.approx(float(row["weights"]), abs=1e-3)
