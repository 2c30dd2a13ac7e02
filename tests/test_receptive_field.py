"""RF.md is what the modules say, and what they say is right, whatever way they are written."""

import inspect
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attempts import attempts, build_network
from tools import receptive_field

pytestmark = pytest.mark.usefixtures("one_thread")

BY_HAND = {  # receptive field and jump of each row below the input, worked out on paper
    "model1": ("3 5 5 6 10 14 18 22 32 32", "1 1 1 2 2 2 2 2 12 12"),
    "model2": ("3 5 6 6 10 14 16 16 40 40", "1 1 2 2 2 2 4 4 28 28"),
    "model3": ("3 5 7 8 12 16 18 26 34 42 42", "1 1 1 2 2 2 4 4 4 12 12"),
    "model4": (
        "3 5 6 7 11 11 15 15 17 19 27 27 35 35 55 55",
        "1 1 1 2 2 2 2 2 2 4 4 4 4 4 24 24",
    ),
}


class Style(nn.Module):
    """A network by its layers and a function of them and of images."""

    def __init__(self, forward, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleList(layers), forward

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images, *self.layers)


def shared(x, first, depthwise, pointwise, last):
    """One residual block with the same weights twice."""
    x = F.max_pool2d(torch.relu(first(x)), 2)
    for _ in range(2):
        x = torch.relu(x + pointwise(depthwise(x)))
    return last(x.mean(dim=(2, 3)))


def concatenated(x, first, second, last):
    x = F.avg_pool2d(torch.cat([x, F.silu(first(x))], dim=1), 2)
    return last(F.adaptive_avg_pool2d(torch.cat([second(x), x], 1), 1).flatten(1))


STYLES = {  # a network, and the geometry and the receptive field of its rows by hand
    "functional": (
        lambda: Style(
            lambda x, one, two, out: out(F.max_pool2d(two(F.relu(one(x))), 2).view(len(x), -1)),
            *(nn.Conv2d(1, 4, 5, padding="same"), nn.Conv2d(4, 6, 3), nn.Linear(6 * 13 * 13, 10)),
        ),
        "5/1/same 5, 3/1/0 7, 2/2/0 8, 13/13/0 32, 1/1/0 32",
    ),
    "shared weights in residual blocks": (
        lambda: Style(
            shared,
            *(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)),
            nn.Linear(8, 10),
        ),
        "3/1/0 3, 2/2/0 4, 3/1/1 8, 1/1/0 8, 3/1/1 12, 1/1/0 12, 13/13/0 36, 1/1/0 36",
    ),
    "concatenation": (
        lambda: Style(
            concatenated,
            *(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(3, 4, 3, padding=2, dilation=2)),
            nn.Linear(7, 10),
        ),
        "3/1/1 3, 2/2/0 4, 5/1/2 12, 14/14/0 38, 1/1/0 38",
    ),
}


def rows_of(name: str) -> list[list[str]]:
    """The cells of a network's table, below the input."""
    lines = [line for line in receptive_field.table(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]


def test_rf_md_is_up_to_date_and_a_stale_one_is_noticed(tmp_path, monkeypatch, capsys) -> None:
    assert receptive_field.main(["--check"]) == 0
    stale = tmp_path / "RF.md"
    stale.write_text(receptive_field.RF_MD.read_text("utf-8").replace(" 42 |", " 41 |"), "utf-8")
    monkeypatch.setattr(receptive_field, "RF_MD", stale)
    assert receptive_field.main(["--check"]) == 1
    assert "RF.md is stale" in capsys.readouterr().err


@pytest.mark.parametrize("name", attempts())
def test_fields_are_those_by_hand_and_those_measured(name: str) -> None:
    rows = rows_of(name)
    if name in BY_HAND:
        assert tuple(" ".join(row[column] for row in rows) for column in (3, 4)) == BY_HAND[name]
        source = inspect.getsource(type(build_network(name)))
        comments = re.findall(r"# ([0-9x ]+), RF ([0-9]+)", source)
        told = iter((row[2], row[3]) for row in rows)
        assert len(comments) > 5 and all(comment in told for comment in comments)  # in order
    assert all(row[5] == f"{row[3]} x {row[3]}" for row in rows if row[3] != "-")


@pytest.mark.parametrize(("build", "expected"), STYLES.values(), ids=STYLES)
def test_networks_in_any_style(build, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receptive_field, "build_network", lambda name: build())
    rows = rows_of("model_own")
    assert ", ".join(f"{row[1]} {row[3]}" for row in rows) == expected
    assert [row[5] for row in rows] == [f"{row[3]} x {row[3]}" for row in rows]


def test_what_cannot_be_computed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """GroupNorm mixes all positions; a dash stands in its row and in those after it."""
    layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(4 * 52 * 52, 10))
    monkeypatch.setattr(receptive_field, "build_network", lambda name: network)
    rows = rows_of("model_own")
    assert [row[3] for row in rows] == ["3", "-", "-", "-", "-"]
    assert [row[5] for row in rows] == ["3 x 3", *["84 x 84"] * 4]
