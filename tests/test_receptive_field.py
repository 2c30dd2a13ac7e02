"""RF.md is what the modules say, and what they say is right, whatever way they are written."""

import functools
import inspect
import re

import pytest
from torch import nn

from networks import get_model, list_models
from tools import receptive_field

BY_HAND = {  # receptive field and jump of each row below the input, worked out on paper
    "model1": ("3 5 5 6 10 14 18 22 32 32", "1 1 1 2 2 2 2 2 12 12"),
    "model2": ("3 5 6 6 10 14 16 16 40 40", "1 1 2 2 2 2 4 4 28 28"),
    "model3": ("3 5 7 8 12 16 18 26 34 42 42", "1 1 1 2 2 2 4 4 4 12 12"),
    "model4": (
        "3 5 6 7 11 11 15 15 15 17 19 27 27 27 35 35 35 55 55",
        "1 1 1 2 2 2 2 2 2 2 4 4 4 4 4 4 4 24 24",
    ),
}


def rows_of(section: str) -> list[list[str]]:
    """The cells of a network's table, below the input."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]


def test_rf_md_is_up_to_date_and_a_stale_one_is_noticed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(receptive_field, "table", functools.cache(receptive_field.table))
    assert receptive_field.main(["--check"]) == 0
    stale = tmp_path / "RF.md"
    stale.write_text(receptive_field.RF_MD.read_text("utf-8").replace(" 42 |", " 41 |"), "utf-8")
    monkeypatch.setattr(receptive_field, "RF_MD", stale)
    assert receptive_field.main(["--check"]) == 1
    assert "RF.md is stale" in capsys.readouterr().err


def test_fields_are_those_by_hand_and_those_measured() -> None:
    """In RF.md, which is up to date, as shown above."""
    sections = receptive_field.RF_MD.read_text("utf-8").split("\n## ")[1:]
    for name, section in zip(list_models(), sections, strict=True):
        rows = rows_of(section)
        if name in BY_HAND:
            columns = tuple(" ".join(row[column] for row in rows) for column in (3, 4))
            assert columns == BY_HAND[name]
            source = inspect.getsource(type(get_model(name)))
            comments = re.findall(r"# ([0-9x ]+), RF ([0-9]+)", source)
            found = iter((row[2], row[3]) for row in rows)
            assert len(comments) > 5 and all(comment in found for comment in comments)  # in order
        for row in rows:
            assert row[5] == (f"{row[3]} x {row[3]}" if row[3] != "-" else "whole image")


def test_what_cannot_be_computed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """GroupNorm mixes all positions; of what follows it, layers with weights have a row."""
    first = nn.Conv2d(1, 4, 3, padding="same"), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2)
    network = nn.Sequential(*first, nn.Flatten(), nn.Linear(4 * 56 * 56, 10))
    monkeypatch.setattr(receptive_field, "get_model", lambda name: network)
    rows = rows_of(receptive_field.table("model_own"))
    assert [[row[column] for column in (0, 1, 3, 5)] for row in rows] == [
        ["convolution 1 to 4", "3/1/same", "3", "3 x 3"],
        ["group_norm", "-", "-", "whole image"],
        ["linear 12544 to 10", "1/1/0", "-", "whole image"],
    ]
