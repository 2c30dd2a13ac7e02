"""A step by CUDA graph against a step without one; needs an NVIDIA GPU."""

import random

import pytest
import torch
from torch import nn

from networks import get_model
from recipes import STRONG
from train import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")


def train_on(model: nn.Module, sizes: list[int], graph: bool) -> tuple[list[float], Trainer]:
    """The losses of a batch of each size, and the trainer, in double precision."""
    torch.manual_seed(0)
    trainer = Trainer(model.double().cuda().train(), STRONG, 100)
    if not graph:
        trainer._graph = None
    losses = []
    for size in sizes:
        images = torch.rand(size, 1, 28, 28, dtype=torch.float64).cuda()
        loss, logits = trainer.step(images, torch.arange(size).cuda() % 10)
        assert logits.shape == (size, 10)
        losses.append(loss.item())
    return losses, trainer


def test_a_graph_trains_as_no_graph_does(capsys: pytest.CaptureFixture[str]) -> None:
    """BatchNorm's statistics and the number of batches included; short batches between."""
    found = []
    for graph in (True, False):
        torch.manual_seed(1)
        found.append(train_on(get_model("model5"), [32, 32, 7, 32, 9, 32], graph))
    (losses, trainer), (expected, plain) = found
    assert trainer._graph.graph is not None and capsys.readouterr().err == ""
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
        outputs.append(trainer._graph(*batch)[1].clone())
    assert outputs[0].equal(outputs[2]) and not outputs[0].equal(outputs[1])


class Branches(nn.Linear):
    """A network with dynamic control flow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = nn.functional.dropout(images, 0.1)
        return super().forward(images.flatten(1)) * (2 if self.condition(images) else 1)


CONDITIONS = {
    "reads a value back": lambda images: images.mean().item() > 0.5,
    "draws by Python": lambda images: random.random() > 0.5,
    "draws by torch": lambda images: torch.rand(()) > 0.5,
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_dynamic_control_flow_is_not_captured(name: str, capsys) -> None:
    found = []
    for graph in (True, False):
        torch.manual_seed(1)
        random.seed(1)
        model = Branches(784, 10)
        model.condition = CONDITIONS[name]
        found.append(train_on(model, [32, 32, 7, 32], graph))
    assert "warning: no CUDA graph" in capsys.readouterr().err
    assert found[0][1]._graph.graph is None
    if "Python" not in name:  # whose state a capture does not restore
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
