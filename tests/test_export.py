"""ONNX files: what they compute, what they say, and when they are not written."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import get_model, load_model
from predict import classify
from tools import export

pytestmark = pytest.mark.usefixtures("one_thread")
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


@pytest.mark.parametrize("name", [*TRAINED, "own"])
def test_the_files_give_the_digits_of_pytorch(name, mnist, tmp_path, monkeypatch, capfd) -> None:
    """As the README reads them: with nothing but the file and onnxruntime."""
    network = own_network() if name == "own" else load_model(WEIGHTS / f"{name}.pt")[1]
    monkeypatch.setattr(export, "load_model", lambda path: (name, network))
    few = tuple(part[:1000] for part in mnist["test"])
    monkeypatch.setattr(export, "load_mnist", lambda data_dir, train: few)
    options = ["--int8"] if name == "model3" else []
    assert export.main([str(tmp_path / f"{name}.pt"), *options]) == 0
    out, err = capfd.readouterr()
    guesses = classify(network, few[0][:, 0]).argmax(dim=1)
    accuracy = (guesses == few[1]).sum().item() / 10
    assert f"{accuracy:.2f} % of 1,000" in out.splitlines()[0] and not err
    pixels = few[0].float() / 255
    with torch.inference_mode():
        expected = network((pixels - 0.1307) / 0.3081)
    assert len([*tmp_path.iterdir()]) == 1 + len(options)
    for file in tmp_path.iterdir():
        (found,) = onnxruntime.InferenceSession(file).run(None, {"pixels": pixels.numpy()})
        if "int8" in file.stem:
            assert (found.argmax(axis=1) == expected.argmax(dim=1).numpy()).mean() > 0.98
        else:
            assert np.abs(found - expected.numpy()).max() < 1e-4
        facts = {fact.key: fact.value for fact in onnx.load(file).metadata_props}
        assert facts["network"] == name and "MNIST" in facts["data"]
        assert int(facts["parameters"]) == sum(weights.numel() for weights in network.parameters())
        assert f"{WEIGHTS.parent}".encode() not in file.read_bytes()  # names no place here


def test_a_layer_that_torch_cannot_export_is_named(tmp_path, monkeypatch, capsys) -> None:
    network = nn.Flatten()
    network.forward = lambda images: torch.special.i1e(images.flatten(1)[:, :10])
    monkeypatch.setattr(export, "load_model", lambda path: ("model_own", network))
    assert export.main([str(tmp_path / "own.pt")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "special_i1e" in error


def test_no_average_depends_on_what_a_runtime_makes_of_ceil_mode() -> None:
    """With ceil_mode in the file, onnxruntime 1.20 gave other digits on 18 test images."""
    content = onnx.load_from_string(export.to_onnx(export.from_pixels(get_model("model4"))))
    pools = [node for node in content.graph.node if node.op_type == "AveragePool"]
    fields = {field.name: [*field.ints] or field.i for field in pools[0].attribute}
    assert fields | {"ceil_mode": 0, "count_include_pad": 0, "pads": [0, 0, 1, 1]} == fields


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch, capsys) -> None:
    content = export.to_onnx(export.from_pixels(get_model("model3")))  # without its weights
    monkeypatch.setattr(export, "to_onnx", lambda model: content)
    path = tmp_path / "digits.onnx"
    assert export.main([str(WEIGHTS / "model3.pt"), "--out", str(path)]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing.pt"], "missing.pt: No such file"),
        (["model3.pt", "--out", "missing/digits.onnx"], "--out"),
        (["model3.pt", "--out", "a.pt"], "--out"),
        (["model3.pt", "--out", "taken.onnx", "--int8"], "taken-int8.onnx"),
        (["model3.onnx"], "name a new file"),  # these are the weights
    ],
)
def test_bad_settings(arguments, named, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken-int8.onnx").mkdir()
    for name in ("model3.pt", "model3.onnx"):
        shutil.copy(WEIGHTS / "model3.pt", name)
    assert export.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error
