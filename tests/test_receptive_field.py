"""RF.md is what the modules say, and what they say is right."""

import inspect
import re

import pytest
import torch
from torch import nn

from run_folder import MODELS
from tools import receptive_field

BY_HAND = {  # receptive field and jump of each row below the input, worked out on paper
    "model1": (
        [3, 5, 5, 6, 10, 14, 18, 22, 32, 32],
        [1, 1, 1, 2, 2, 2, 2, 2, 12, 12],
    ),
    "model2": (
        [3, 5, 6, 6, 10, 14, 16, 16, 40, 40],
        [1, 1, 2, 2, 2, 2, 4, 4, 28, 28],
    ),
    "model3": (
        [3, 5, 7, 8, 12, 16, 18, 26, 34, 42, 42],
        [1, 1, 1, 2, 2, 2, 4, 4, 4, 12, 12],
    ),
    "model4": (
        [3, 5, 6, 7, 11, 11, 15, 17, 19, 27, 35, 55, 55],
        [1, 1, 1, 2, 2, 2, 2, 2, 4, 4, 4, 24, 24],
    ),
}


def rows_of(name: str) -> list[list[str]]:
    """The cells of a model's table in RF.md, below the input."""
    section = receptive_field.RF_MD.read_text(encoding="utf-8").split("\n## ")[int(name[-1])]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[3:]]


def test_rf_md_is_up_to_date() -> None:
    assert receptive_field.main(["--check"]) == 0


def test_stale_rf_md_is_noticed(tmp_path, monkeypatch, capsys) -> None:
    text = receptive_field.RF_MD.read_text(encoding="utf-8")
    monkeypatch.setattr(receptive_field, "document", lambda: text)
    stale = tmp_path / "RF.md"
    stale.write_text(text.replace("42", "41", 1), encoding="utf-8")
    monkeypatch.setattr(receptive_field, "RF_MD", stale)
    assert receptive_field.main(["--check"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "RF.md is stale" in captured.err


@pytest.mark.parametrize("name", MODELS)
def test_fields_are_those_worked_out_by_hand(name: str) -> None:
    fields, jumps = BY_HAND[name]
    assert [int(row[3]) for row in rows_of(name)] == fields
    assert [int(row[4]) for row in rows_of(name)] == jumps


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_measured_as_computed(name: str) -> None:
    """Those without a row included: they must be pointwise, or the table leaves something out."""
    torch.manual_seed(0)
    layers = receptive_field.chain(MODELS[name]())
    measured = receptive_field.measured_fields(layers)
    assert measured == [(field, field) for field, _ in receptive_field.computed_fields(layers)]
    field = {"model1": 32, "model2": 40, "model3": 42, "model4": 55}[name]
    assert measured[-1] == (field, field)


@pytest.mark.parametrize(
    ("layer", "extent"),
    [
        (nn.Conv2d(1, 2, (3, 5)), (3, 5)),
        (nn.Conv2d(1, 2, 3, dilation=2), (5, 5)),
        (nn.Conv2d(1, 2, 3, stride=3, padding=1), (3, 3)),
        (nn.MaxPool2d(4, stride=2), (4, 4)),
        (nn.ReLU(), (1, 1)),
    ],
)
def test_measurement_knows_nothing_of_kernels(layer: nn.Module, extent: tuple[int, int]) -> None:
    assert receptive_field.measured_fields([layer]) == [extent]


@pytest.mark.parametrize("name", MODELS)
def test_chain_of_layers_is_the_model(name: str) -> None:
    model = MODELS[name]()
    layers = receptive_field.chain(model)
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(nn.Sequential(*layers)(images), model(images))


@pytest.mark.parametrize("name", MODELS)
def test_comments_beside_the_layers_are_true(name: str) -> None:
    source = inspect.getsource(MODELS[name])
    assert "Beside each layer" in source
    comments = re.findall(r"# ([0-9x ]+), RF ([0-9]+)", source)
    assert comments == [(row[2], row[3]) for row in rows_of(name) if "x" in row[2]]
    assert f"receptive field {rows_of(name)[-1][3]} px" in source


def test_model_3_does_not_see_the_last_two_rows_and_columns() -> None:
    """7 x 7 is halved to 3 x 3: its last row is read by nothing, and so are pixels 26 and 27."""
    model, images = MODELS["model3"]().eval(), torch.randn(8, 1, 28, 28)
    blind = images.clone()
    blind[:, :, 26:], blind[:, :, :, 26:] = 9, 9
    assert torch.equal(model(blind), model(images))
    blind[:, :, 25] = 9
    assert not torch.equal(model(blind), model(images))
    assert "the logits see 26 x 26" in receptive_field.RF_MD.read_text(encoding="utf-8")
