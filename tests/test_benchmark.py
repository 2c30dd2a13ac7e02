"""The benchmark: its table against made-up records, and a trial of both ways."""

import json
import shutil
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from mnist import DATA_DIR
from tools import benchmark
from tools.benchmark import WAYS, main, table


def made_up(usual: list[float], ours: list[float]) -> dict[str, Any]:
    return {"commit": "12e45", "seconds": dict(zip(WAYS, (usual, ours)))}


def test_the_table_has_median_and_range_over_rounds() -> None:
    *_, usual, ours, ratio = table({"A": made_up([20, 24, 30], [10, 10, 15])}).splitlines()
    assert usual.split("|")[1:3] == [" usual way (s)       ", " 24.00 (20.00 to 30.00) "]
    assert "this repository (s) | 10.00 (10.00 to 15.00)" in ours
    assert ratio.split("|")[2].strip() == "2.00 (2.00 to 2.40)"  # round by round


def test_the_record_is_updated_and_comes_into_the_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both ways take turns; another recipe leaves the record of the first as it is."""
    record, document, calls = tmp_path / "benchmark.json", tmp_path / "README.md", []
    monkeypatch.setattr(benchmark, "RECORD", record)
    monkeypatch.setattr(benchmark, "DOCUMENT", document)
    monkeypatch.setattr(benchmark, "alone", lambda way, *_: calls.append(way) or len(calls))
    document.write_text("<!-- benchmark -->\nold\n<!-- /benchmark -->\n")
    assert main(["--rounds", "0", "--device", "cpu"]) == 0
    assert "No records yet." in document.read_text()
    assert main(["--rounds", "2", "--device", "cpu", "--recipe", "strong"]) == 0
    assert calls == [*WAYS, *WAYS]
    assert main(["--rounds", "1", "--device", "cpu", "--recipe", "classic"]) == 0
    kept = json.loads(record.read_text())
    seconds = [[*run["seconds"].values()] for run in kept.values()]
    assert seconds == [[[1, 3], [2, 4]], [[5], [6]]]
    assert all("threads: model3, " in title for title in kept)
    assert document.read_text() == f"<!-- benchmark -->\n{table(kept)}\n<!-- /benchmark -->\n"


def test_the_document_says_what_is_on_record() -> None:
    made = table(json.loads(benchmark.RECORD.read_text()))
    assert made in benchmark.DOCUMENT.read_text(), "run python -m tools.benchmark --rounds 0"


def test_a_trial_is_timed_in_a_process_of_its_own(one_thread: None) -> None:
    what = "model6", benchmark.RECIPES["classic"], torch.device("cpu")
    assert benchmark.alone("this repository", what, 1000) > 0.1  # seconds of 60,000 images


@pytest.mark.parametrize("recipe", ["classic", "strong"])
def test_both_ways_train(recipe: str, tmp_path: Path, monkeypatch, one_thread: None) -> None:
    raw = tmp_path / "MNIST" / "raw"  # which the usual way unpacks
    shutil.copytree(DATA_DIR / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    monkeypatch.setattr(benchmark, "DATA_DIR", tmp_path)
    monkeypatch.setattr(benchmark, "WARM_UP_IMAGES", 64)
    what, results = ("model6", benchmark.RECIPES[recipe], torch.device("cpu")), SimpleQueue()
    for way in WAYS:
        benchmark.time_one(0, way, what, 200, 1, results)
        assert results.get() > 0.1
