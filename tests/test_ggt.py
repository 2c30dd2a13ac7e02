"""The optimizer GGT, against numpy, and its state in a checkpoint."""

import io

import numpy as np
import pytest
import torch
from torch import nn

import train
from ggt import DAMPING, DECAY, GGT, INTERVAL, WINDOW
from mnist import Loader
from networks import get_model
from recipes import RECIPES
from train import Trainer


def test_agrees_with_numpy() -> None:
    """The whole matrix G G^T and its inverse square root, from more parameters than gradients."""
    draws = np.random.default_rng(0)
    weight, bias = nn.Parameter(torch.ones(20, 10)), nn.Parameter(torch.ones(40))
    unused = nn.Parameter(torch.ones(0))  # a parameter without a gradient
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias, unused]}]
    optimizer = GGT(groups, lr=0.01, momentum=0.8)
    mixing = draws.normal(size=(240, 240))
    expected, mean, gradients, root = np.ones(240), np.zeros(240), [], None
    for step in range(1, WINDOW + 2 * INTERVAL):
        gradients.insert(0, mixing @ draws.normal(size=240))
        weight.grad = torch.tensor(gradients[0][:200]).float().reshape(20, 10)
        bias.grad = torch.tensor(gradients[0][200:]).float()
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradients[0]
        if step % INTERVAL == 0:
            last = np.array(gradients[:WINDOW])
            matrix = (1 - DECAY) * (last.T * DECAY ** np.arange(len(last))) @ last
            matrix += DAMPING * np.trace(matrix) / 240 * np.eye(240)
            values, vectors = np.linalg.eigh(matrix)
            root = vectors / np.sqrt(values) @ vectors.T
        if step >= WINDOW:
            decay = np.repeat([0.1, 0], [200, 40])
            expected = expected * (1 - 0.01 * decay)
            expected = expected - 0.01 * root @ (0.8 * mean + 0.2 * gradients[0])
    found = torch.cat([weight.flatten(), bias]).detach()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert abs(expected - 1).max() > 0.3


def test_a_checkpoint_holds_its_state(mnist: dict) -> None:
    """Saved after its first update and loaded: the next steps are the same."""
    recipe = RECIPES["tiny"].changed(["batch_size=8", "bn_images=0"])
    loader = Loader(*(part[: 8 * (WINDOW + 5)] for part in mnist["train"]), 8)
    trainers = [Trainer(get_model("model5", width=11), recipe, len(loader)) for _ in range(2)]
    for step, batch in enumerate(loader):
        if step == WINDOW:
            file = io.BytesIO()
            torch.save(trainers[0].state_dict(), file)
            file.seek(0)
            trainers[1].load_state_dict(torch.load(file, weights_only=True))
        losses = [trainer.step(*batch)[0] for trainer in trainers[: 1 + (step >= WINDOW)]]
    before, after = (trainer.model.state_dict() for trainer in trainers)
    assert losses[0] == losses[1]
    assert all(before[name].equal(after[name]) for name in before)


def test_statistics_are_those_of_plain_images(mnist: dict) -> None:
    """`bn_images` first training images give the EMA's BatchNorm their mean and variance."""
    recipe = RECIPES["tiny"].changed(["batch_size=32", "bn_images=100"])
    images, labels = (part[:320] for part in mnist["train"])
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 2), nn.Linear(2, 10))
    trainer = Trainer(model, recipe, 10)
    train.train_one_epoch(trainer, Loader(images, labels, 32, seed=3))
    pixels = (images[:100].double() / 255 - 0.1307) / 0.3081
    norm = trainer.ema[0]
    assert norm.running_mean.item() == pytest.approx(pixels.mean().item(), abs=1e-5)
    assert norm.running_var.item() == pytest.approx(pixels.var().item(), rel=1e-3)
    assert not model[0].running_mean.equal(norm.running_mean)
