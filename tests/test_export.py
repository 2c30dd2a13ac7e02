"""ONNX files: what they compute, what they say, and when they are not written."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Digits
from torch import nn

from model4 import Residual
from run_folder import MODELS, load_weights
from tools import export
from tools.folding import folded
from tools.records import read_records

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = Path(__file__).parent.parent / "weights"
TRAINED = [name for name in MODELS if (WEIGHTS / f"{name}.pt").exists()]


def small_network() -> nn.Sequential:
    """Depthwise and residual, with every kind of BatchNorm, whose statistics are not trivial."""
    torch.manual_seed(0)
    block = Residual(6)
    block.body[2], block.body[3] = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.ReLU(True)),
        block,
        nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(0.1)),
        nn.AvgPool2d(2, ceil_mode=True),  # of 7 x 7: the last windows hold a half and a quarter
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)),
    )
    with torch.no_grad():  # in training mode: this moves the statistics of BatchNorm
        for _ in range(3):
            network(1 + 2 * torch.randn(16, 1, 28, 28))
    return network.eval()


def test_a_folded_network_is_the_same_function() -> None:
    network, images = small_network(), torch.randn(8, 1, 28, 28)
    copy = folded(network)
    kinds = {type(module) for module in copy.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Dropout}
    with torch.inference_mode():
        assert torch.allclose(copy(images), network(images), atol=1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())  # untouched


def test_batchnorm_that_cannot_be_folded_is_named() -> None:
    with pytest.raises(export.UsageError, match="BatchNorm"):
        folded(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


def test_depthwise_and_residual_networks_are_exported() -> None:
    network, pixels = small_network(), torch.rand(5, 1, 28, 28)
    found = export.run_onnx(export.to_onnx(network), pixels)
    assert torch.allclose(found, export.run_torch(network, pixels), atol=1e-5)


def test_no_average_depends_on_what_a_runtime_makes_of_ceil_mode() -> None:
    """With ceil_mode in the file, onnxruntime 1.20 gave other digits on 18 test images."""
    nodes = onnx.load_from_string(export.to_onnx(MODELS["model4"]())).graph.node
    pools = [
        {field.name: onnx.helper.get_attribute_value(field) for field in node.attribute}
        for node in nodes
        if node.op_type == "AveragePool"
    ]
    assert [pool["ceil_mode"] for pool in pools] == [0, 0, 0]
    assert [pool["pads"] for pool in pools] == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert [pool["count_include_pad"] for pool in pools[:2]] == [0, 0]


@pytest.mark.parametrize("name", TRAINED)
def test_the_file_gives_the_digits_of_pytorch(
    name: str, mnist: Digits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.onnx"
    assert export.main([str(WEIGHTS / f"{name}.pt"), "--out", str(path)]) == 0
    out, err = capfd.readouterr()
    assert not err
    assert len(out.splitlines()) == 2
    # From here on as the README does it: with nothing but the file and onnxruntime.
    session = onnxruntime.InferenceSession(path)
    pixels = mnist["test"][0].numpy().astype(np.float32) / 255
    assert session.run(None, {"pixels": pixels[:1]})[0].shape == (1, 10)
    (logits,) = session.run(None, {"pixels": pixels[:1000]})
    right = (logits.argmax(1) == mnist["test"][1][:1000].numpy()).sum()
    assert right >= 980
    content = onnx.load(path)
    assert {node.op_type for node in content.graph.node}.isdisjoint({"BatchNormalization"})
    facts = {fact.key: fact.value for fact in content.metadata_props}
    _, model = load_weights(WEIGHTS / f"{name}.pt")
    assert facts["network"] == name
    assert int(facts["parameters"]) == sum(weights.numel() for weights in model.parameters())
    accuracy = read_records()[name, "strong"][42][-1]["test_acc"]
    assert f"{accuracy:.2f} %" in out and facts["accuracy"].startswith(f"{accuracy:.2f} %")
    assert "MNIST" in facts["data"]
    for words in (f"{Path.home()}", f"{WEIGHTS.parent}"):  # a file to pass on names no place here
        assert words.encode() not in path.read_bytes()


def test_int8(mnist: Digits, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.onnx"
    assert export.main([str(WEIGHTS / "model3.pt"), "--out", str(path), "--int8"]) == 0
    out, err = capfd.readouterr()
    assert not err
    sizes = [path.stat().st_size, (tmp_path / "digits-int8.onnx").stat().st_size]
    assert sizes[1] < 0.9 * sizes[0]
    for line, size, file in zip(out.splitlines(), sizes, ("digits.onnx", "digits-int8.onnx")):
        assert file in line and f"{size / 1000:.1f} kB" in line
    plain, small = (float(line.split("kB")[1].split("%")[0]) for line in out.splitlines()[:2])
    assert plain - 0.5 < small <= 100
    assert sorted(file.name for file in tmp_path.iterdir()) == ["digits-int8.onnx", "digits.onnx"]


def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "STD", 0.31)  # what torch.onnx wrote is normalised otherwise
    content = export.to_onnx(load_weights(WEIGHTS / "model3.pt")[1])
    monkeypatch.undo()
    monkeypatch.setattr(export, "to_onnx", lambda model: content)
    path = tmp_path / "digits.onnx"
    assert export.main([str(WEIGHTS / "model3.pt"), "--out", str(path)]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not path.exists()


def test_the_weights_of_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written beside them, into the folder."""
    shutil.copy(WEIGHTS / "model3.pt", tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    assert export.main(["."]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"weights.pt", "weights.onnx"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "WEIGHTS"),
        (["."], "weights.pt"),
        (["missing.pt"], "missing.pt: No such file"),
        (["missing/weights.pt"], "missing/weights.pt: No such file"),
        (["weights/model3.pt", "--out", "missing/digits.onnx"], "--out"),
        *[
            (["weights/model3.pt", "--out", out], "--out")
            for out in (".", "/", "a.pt", "folder.onnx")
        ],
        (["weights/model3.pt", "--out", "taken.onnx", "--int8"], "taken-int8.onnx"),
        (["weights/model3.onnx"], "these are the weights"),
        (["weights/model3.pt", "--int4"], "--int4"),
    ],
)
def test_bad_settings(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("weights", "folder.onnx", "taken-int8.onnx"):
        Path(folder).mkdir()
    for name in ("model3.pt", "model3.onnx"):
        shutil.copy(WEIGHTS / "model3.pt", Path("weights", name))
    try:
        code = export.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert len(captured.err.splitlines()) == 1
    assert named in captured.err
    assert not captured.out
    assert not list(Path().glob("*.onnx.tmp")) and not Path("taken.onnx").exists()
    assert Path("weights/model3.onnx").read_bytes() == (WEIGHTS / "model3.pt").read_bytes()
