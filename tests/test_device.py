"""The device: its choice, and the step that a device must compute as the CPU does."""

import pytest
import torch
from torch import Tensor, nn

import train
from cli import UsageError
from device import select_device, verify_mps
from recipes import STRONG
from train import Trainer

MPS = torch.device("mps")
BATCH = torch.rand(32, 1, 28, 28), torch.arange(32) % 10


class Network(nn.Module):
    """A network with dropout of three kinds, and the faults of a device in it."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0, fails: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.linear, self.factor, self.offset = nn.Linear(8, 10), factor, offset
        self.fails = fails

    def forward(self, images: Tensor) -> Tensor:
        if self.fails:
            raise NotImplementedError("not implemented on this device\nmore lines")
        x = nn.functional.dropout2d(torch.relu(self.norm(self.conv(images))), 0.5)
        x = nn.Dropout(0.5)(x.mean(dim=(2, 3)))
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * self.factor)
        return self.linear(nn.AlphaDropout(0.5)(x)) * (1 + self.offset)


def choose(name: str, *networks: Network) -> str:
    """The device that is used, where networks stand for the CPU and for MPS."""
    trainers = iter([Trainer(network.train(), STRONG, 10) for network in networks])
    return verify_mps(MPS, name, lambda where: next(trainers), BATCH).type


def test_device_that_computes_as_the_cpu_does_is_used(capsys) -> None:
    """Dropout draws differently on each device, and does not count; nor does rounding."""
    for name in ("auto", "mps"):
        assert choose(name, Network(), Network(factor=1 + 1e-5)) == "mps"
    assert capsys.readouterr().err == ""


FAULTS = {
    "conv.weight is wrong after one step": Network(factor=1.3),
    "not implemented on this device": Network(fails=True),
    "the loss is wrong": Network(offset=0.1),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_device_that_computes_something_else(reason: str, capsys) -> None:
    assert choose("auto", Network(), FAULTS[reason]) == "cpu"
    expected = f"warning: training on the CPU, since on mps {reason}\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(UsageError, match=f"^--device mps: {reason}; train with --device cpu$"):
        choose("mps", Network(), FAULTS[reason])


def test_run_falls_back_to_the_cpu_or_ends(small_mnist, tmp_path, monkeypatch, capsys) -> None:
    """There is no MPS here: a step on it fails."""
    if torch.backends.mps.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(train, "select_device", lambda name: MPS)
    options = ["--epochs", "1", "--recipe", "classic", "--quiet", "--out-dir", str(tmp_path)]
    assert train.main([*options, "--device", "mps"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: error: --device mps: ") and err.count("\n") == 1
    assert not [*tmp_path.iterdir()]
    assert train.main(options) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: training on the CPU, since on mps ") and err.count("\n") == 1
    assert '"device": "cpu"' in next(tmp_path.glob("*/config.json")).read_text()


def test_choice_of_the_device(monkeypatch) -> None:
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert select_device("auto").type == best and select_device("cpu").type == "cpu"
        for name, is_there in (("cuda", cuda), ("mps", mps)):
            if is_there:
                assert select_device(name).type == name
            else:
                with pytest.raises(UsageError, match=f"^--device {name}: not available; choose"):
                    select_device(name)
