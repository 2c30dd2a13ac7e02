"""Smaller sizes of model4: which there are, what is said of them, what is drawn."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import train
from run_folder import MODELS
from tools import frontier


@pytest.fixture
def sizes() -> Iterator[list[str]]:
    before = dict(MODELS)
    yield frontier.add_sizes()
    MODELS.clear()
    MODELS.update(before)


def test_sizes_have_the_parameters_of_their_names(sizes: list[str]) -> None:
    assert len(sizes) == 6
    for name in sizes:
        model = MODELS[name]()
        assert name == f"model4-{frontier.count_parameters(model)}"
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    counts = [int(name.partition("-")[2]) for name in sizes]
    assert counts == [1046, 1596, 2241, 3079, 3938, 5244]  # counted by hand for the records


def test_a_size_is_decided_by_the_file_of_model4(sizes: list[str]) -> None:
    assert train.training_code(sizes[0]) == train.training_code("model4")


def made_up(last: float, low: float, seeds: int) -> dict[int, list[dict[str, float]]]:
    """Runs of 15 epochs that end at `last`, the first of them with one late epoch at `low`."""
    rows = {seed: [{"test_acc": last} for _ in range(15)] for seed in range(seeds)}
    rows[0][-3] = {"test_acc": low}
    return rows


def test_sentence_names_the_smallest_that_every_seed_meets(sizes: list[str]) -> None:
    records = {
        (sizes[2], "strong"): made_up(99.5, 99.39, 5),  # one epoch of one seed below
        (sizes[4], "strong"): made_up(99.5, 99.4, 5),
        (sizes[5], "strong"): made_up(99.6, 99.6, 5),
        ("model1", "classic"): made_up(99.6, 99.6, 3),  # of another recipe
    }
    text = frontier.sentence(records)
    count = int(sizes[4].partition("-")[2])
    assert f"**{count:,}** (5 seeds, 99.50 % on average" in text
    del records[sizes[4], "strong"], records[sizes[5], "strong"]
    assert frontier.sentence(records).startswith("No size")


def test_table_has_a_row_for_each_size_of_model4(sizes: list[str]) -> None:
    records = {
        ("model4", "strong"): made_up(99.6, 99.5, 2),
        (sizes[0], "strong"): made_up(99.0, 99.0, 5),
        ("model3", "strong"): made_up(99.6, 99.6, 3),
    }
    lines = frontier.table(records).splitlines()
    count = int(sizes[0].partition("-")[2])
    assert lines[2] == f"| {count:,} | 5 | 99.00 % | 99.00 % | 99.00 % | 0 of 5 (0-43 %) |"
    assert lines[3] == "| 7,556 | 2 | 99.60 % | 99.60 % | 99.60 % | 2 of 2 (34-100 %) |"
    assert len(lines) == 4


def test_picture_has_every_network_once(sizes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    records = {(name, "strong"): made_up(99.0, 98.9, 5) for name in (*sizes, "model3", "model4")}
    with Image.open(io.BytesIO(frontier.plot(records))) as picture:
        assert picture.format == "PNG" and picture.width == 1080
    figures: list[Figure] = []
    monkeypatch.setattr(frontier, "png", figures.append)
    frontier.plot(records)
    (axes,) = figures[0].axes
    drawn = sorted(bars.lines[0].get_xdata()[0] for bars in axes.containers)
    counts = [int(name.partition("-")[2]) for name in sizes]
    assert drawn == [*counts, 7_556, 7_784]
    published = {text.get_text() for text in axes.texts}
    assert published == {*frontier.OTHERS, "model3", "model4"}


def test_published_answers_are_those_of_the_readme() -> None:
    lines = re.findall(
        r"^\| \[[^/\]]+/([\w-]+)\].* \| ([\d,]+) \| ([\d.]+) % \|$",
        (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    read = {name: (int(count.replace(",", "")), float(share)) for name, count, share in lines}
    ours = {name.partition("_")[0]: found for name, found in read.items()}
    assert ours == frontier.OTHERS
