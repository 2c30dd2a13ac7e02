"""ONNX files: what they compute, their metadata, and when they are not written."""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Digits
from torch import Tensor, nn
from torch.nn import functional as F

from networks import get_model, list_models, load_model
from tools import export, tables

WEIGHTS = Path(__file__).parent.parent / "weights"
TRAINED = sorted(path.stem for path in WEIGHTS.glob("*.pt"))


class Own(nn.Module):
    """A network as anyone may write one: shared weights, sums, a concatenation, odd pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2))
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.pointwise = nn.Conv2d(6, 6, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=turn > 0) for turn in range(3))
        self.before, self.drop = nn.BatchNorm2d(12), nn.Dropout(0.1)  # not behind a convolution
        self.last = nn.Linear(12, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = F.relu(self.stem(images), inplace=True)
        for norm in self.norms:
            maps = torch.relu(maps + norm(self.pointwise(self.depthwise(maps))))
        small = F.max_pool2d(maps, 2, ceil_mode=True)
        # Of 7 x 7: the last windows hold a half and a quarter.
        maps = F.avg_pool2d(torch.cat([small, small + small], dim=1), 2, ceil_mode=True)
        return self.last(self.drop(self.before(maps).mean(dim=(2, 3))))


def own_network() -> nn.Module:
    """One whose statistics of BatchNorm are not trivial."""
    torch.manual_seed(0)
    network = Own()
    with torch.no_grad():  # in training mode: this moves them
        for _ in range(3):
            network(1 + 2 * torch.randn(16, 1, 28, 28))
    return network.eval()


class Does(nn.Module):
    """A network that does what a function does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def logits_of(path: Path, images: Tensor) -> np.ndarray:
    """Logits of images (N, 1, 28, 28) as the README computes them: by onnxruntime alone."""
    pixels = images.numpy().astype(np.float32) / 255
    return onnxruntime.InferenceSession(path).run(["logits"], {"pixels": pixels})[0]


def normalised(images: Tensor) -> Tensor:
    """What networks are given."""
    return (images / 255 - 0.1307) / 0.3081


@pytest.mark.parametrize("name", TRAINED)
def test_files_in_weights_are_up_to_date(name: str, mnist) -> None:
    path, images = WEIGHTS / f"{name}.onnx", mnist["test"][0][::50]
    facts = {fact.key: fact.value for fact in onnx.load(path).metadata_props}
    network = load_model(path.with_suffix(".pt"))[1]
    with torch.inference_mode():
        expected = network(normalised(images)).numpy()
    assert np.abs(logits_of(path, images) - expected).max() < 1e-4
    runs = tables.read_records().query("seed == 42 and holdout == 0")
    on_record = tables.under_one_recipe(runs).set_index("model")["acc"][name]
    # Another processor rounds differently: an image on the border between two digits may change.
    assert float(facts["accuracy"].split()[0]) == pytest.approx(on_record, abs=0.011)
    assert facts["network"] == name and "MNIST" in facts["data"]
    assert int(facts["parameters"]) == sum(each.numel() for each in network.parameters())
    assert f"{WEIGHTS.parent}".encode() not in path.read_bytes()


def pooled(images: Tensor) -> Tensor:
    """Adaptive pooling to more than one pixel, and a view of a batch's length."""
    return F.adaptive_avg_pool2d(images, 7).view(len(images), -1)[:, 9:19]


def double(images: Tensor) -> Tensor:
    """Double precision inside and out."""
    filters = torch.linspace(-1, 1, 250, dtype=torch.float64).reshape(10, 1, 5, 5)
    return F.conv2d(images.double(), filters).amax(dim=(2, 3)) / 3


Export = Callable[[nn.Module], tuple[int, str, str]]


@pytest.fixture
def run_export(few: Digits, tmp_path: Path, monkeypatch, capfd) -> Export:
    """Exports a network, checked on few images, to own.onnx: exit code, output and errors."""
    monkeypatch.setattr(export, "load_mnist", lambda data_dir, train: few["test"])

    def run(network: nn.Module) -> tuple[int, str, str]:
        monkeypatch.setattr(export, "load_model", lambda path: ("model_own", network.eval()))
        code = export.main([str(tmp_path / "own.pt")])
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("network", [own_network(), Does(pooled), Does(double)])
def test_any_network_is_exported(network, run_export: Export, few: Digits, tmp_path: Path) -> None:
    images, labels = few["test"]
    code, out, err = run_export(network)
    with torch.inference_mode():
        expected = network(normalised(images)).numpy()
    logits = logits_of(tmp_path / "own.onnx", images)
    assert logits.dtype == np.float32 and np.abs(logits - expected).max() < 1e-4
    accuracy = 100 * (expected.argmax(axis=1) == labels.numpy()).mean()
    assert (code, err, out.count("\n")) == (0, "", 1) and f"{accuracy:.2f} % of 300" in out


UNKNOWN = {  # to ONNX or onnxruntime, and what is said
    "vdot": nn.utils.parametrizations.spectral_norm(nn.Linear(28, 10)),
    "fft_rfft2": Does(lambda x: torch.fft.rfft2(x).abs().flatten(1)[:, :10]),
    "special_i1e": Does(lambda x: torch.special.i1e(x.flatten(1)[:, :10])),
    "onnxruntime cannot run it": Does(lambda x: x.flatten(1)[:, :10].bfloat16().cos()),
}


@pytest.mark.parametrize("named", UNKNOWN)
def test_what_cannot_be_exported_is_one_line(named: str, run_export: Export, tmp_path) -> None:
    code, out, err = run_export(UNKNOWN[named])
    assert (code, out, err.count("\n")) == (1, "", 1) and named in err
    assert not [*tmp_path.iterdir()]


def test_a_file_that_computes_something_else_is_not_written(
    run_export: Export, tmp_path: Path, monkeypatch
) -> None:
    other = export.to_onnx(export.from_pixels(own_network()))
    monkeypatch.setattr(export, "to_onnx", lambda model: other)
    code, _, err = run_export(get_model("model3"))
    assert code == 1 and "nothing was written" in err and not [*tmp_path.iterdir()]


def test_bad_settings(tmp_path: Path, monkeypatch, capsys) -> None:
    bad = {
        "missing.pt": "missing.pt: No such file",
        "model3.pt --out missing/digits.onnx": "--out",
        "model3.pt --out a.pt": "--out",
        "model3.pt model3.pt --out a.onnx": "one file",
        "model3.onnx": "name a new file",  # these are the weights
    }
    monkeypatch.chdir(tmp_path)
    for name in ("model3.pt", "model3.onnx"):
        shutil.copy(WEIGHTS / "model3.pt", name)
    for line, named in bad.items():
        assert export.main(line.split()) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and named in error


def test_torch_hub_loads_the_trained_networks(mnist, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "model4", None)  # as if another project had one
    trained, new = (
        torch.hub.load(str(WEIGHTS.parent), "model4", pretrained, source="local")
        for pretrained in (True, False)
    )
    images, labels = mnist["test"][0][:500], mnist["test"][1][:500]
    assert (trained(normalised(images)).argmax(dim=1) == labels).float().mean() > 0.99
    assert new.training and not trained.training
    assert set(list_models()) <= vars(importlib.import_module("hubconf")).keys()
