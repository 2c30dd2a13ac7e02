"""A recorded batch against one that is launched piece by piece. It takes a GPU of NVIDIA."""

import random

import pytest
import torch
from torch import nn

from networks import get_model
from recipes import STRONG
from train import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")


def train_on(model: nn.Module, sizes: list[int], graph: bool) -> tuple[list[float], Trainer]:
    """Losses of a batch of each size, and what learned, in double precision."""
    torch.manual_seed(0)
    trainer = Trainer(model.double().cuda().train(), STRONG, 100)
    if not graph:
        trainer.forward_backward = trainer.forward_backward.forward_backward
    losses = []
    for size in sizes:
        images = torch.rand(size, 1, 28, 28, dtype=torch.float64).cuda()
        loss, logits = trainer.step(images, torch.arange(size).cuda() % 10)
        assert logits.shape == (size, 10)
        losses.append(loss.item())
    return losses, trainer


def test_it_learns_what_is_learned_piece_by_piece(capsys: pytest.CaptureFixture[str]) -> None:
    """BatchNorm's statistics and the number of batches included; short batches between."""
    found = []
    for graph in (True, False):
        torch.manual_seed(1)
        found.append(train_on(get_model("model5"), [32, 32, 7, 32, 9, 32], graph))
    (losses, trainer), (expected, plain) = found
    assert trainer.forward_backward.graph is not None and capsys.readouterr().err == ""
    assert losses == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(trainer.model.state_dict(), plain.model.state_dict())


def test_dropout_draws_anew_for_every_batch() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    trainer = train_on(model, [32], graph=True)[1]
    batch = torch.ones(32, 1, 28, 28, dtype=torch.float64).cuda(), torch.zeros(32).long().cuda()
    outputs = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        outputs.append(trainer.forward_backward(*batch)[1].clone())
    assert outputs[0].equal(outputs[2]) and not outputs[0].equal(outputs[1])


class Reads(nn.Linear):
    """Goes another way by a value that is read back."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = nn.functional.dropout(images, 0.1)
        return super().forward(images.flatten(1)) * (2 if images.mean().item() > 0.5 else 1)


class Draws(nn.Linear):
    """Leaves out a part now and then."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1)) * (2 if random.random() > 0.5 else 1)


class DrawsByTorch(nn.Linear):
    """The same, by a generator of torch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1)) * (2 if torch.rand(()) > 0.5 else 1)


@pytest.mark.parametrize("kind", [Reads, Draws, DrawsByTorch])
def test_what_may_go_another_way_is_not_recorded(
    kind: type[nn.Linear], capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for graph in (True, False):
        torch.manual_seed(1)
        model = kind(784, 10)
        found.append(train_on(model, [32, 32, 7, 32], graph))
    assert "warning: no CUDA graph" in capsys.readouterr().err
    assert found[0][1].forward_backward.graph is None
    if kind is not Draws:  # whose generator is Python's, which a run does not seed
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
