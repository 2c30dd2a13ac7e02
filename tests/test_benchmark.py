"""The benchmark: its table against made-up records, and a trial of both ways."""

import gzip
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from recipes import CLASSIC, STRONG
from tools import benchmark
from tools.benchmark import WAYS, main, table


def test_the_table_has_median_and_range_over_rounds() -> None:
    run = {"seconds": dict(zip(WAYS, ([20, 24, 30], [10, 10, 15])))}
    *_, usual, ours, ratio = table({"A": run}).splitlines()
    assert usual.split("|")[1:3] == [" usual way (s)       ", " 24.00 (20.00 to 30.00) "]
    assert "this repository (s) | 10.00 (10.00 to 15.00)" in ours
    assert ratio.split("|")[2].strip() == "2.00 (2.00 to 2.40)"  # round by round


def test_the_record_is_updated_and_comes_into_the_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both ways take turns; another network leaves the record of the first as it is."""
    record, document, calls = tmp_path / "benchmark.json", tmp_path / "README.md", []
    monkeypatch.setattr(benchmark, "RECORD", record)
    monkeypatch.setattr(benchmark, "DOCUMENT", document)
    monkeypatch.setattr(benchmark, "time_alone", lambda way, *_: calls.append(way) or len(calls))
    document.write_text("<!-- benchmark -->\nold\n<!-- /benchmark -->\n")
    for rounds, model in (("0", "model3"), ("2", "model3"), ("1", "model6")):
        assert main(["--rounds", rounds, "--device", "cpu", "--model", model]) == 0
        kept = json.loads(record.read_text()) if record.exists() else {}
        assert document.read_text() == f"<!-- benchmark -->\n{table(kept)}\n<!-- /benchmark -->\n"
    assert calls == [*WAYS] * 6
    seconds = [[*run["seconds"].values()] for run in kept.values()]
    assert seconds == [[[1, 3], [2, 4]], [[5, 7], [6, 8]], [[9], [10]], [[11], [12]]]
    titles = [f"model{number}, {recipe}" for number in (3, 6) for recipe in ("strong", "classic")]
    assert [title.partition("threads: ")[2] for title in kept] == titles


def test_the_document_says_what_is_on_record() -> None:
    made = table(json.loads(benchmark.RECORD.read_text()))
    assert made in benchmark.DOCUMENT.read_text(), "run python -m tools.benchmark --rounds 0"


def test_an_epoch_is_timed_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "time_epoch", os.getpid)
    assert benchmark.time_alone() != os.getpid()


def test_both_ways_train(small_data: Path, tmp_path: Path, monkeypatch) -> None:
    data_dir = shutil.copytree(small_data, tmp_path / "data")
    for path in data_dir.rglob("*.gz"):  # torchvision reads files that are unpacked
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    monkeypatch.setattr(benchmark, "DATA_DIR", data_dir)
    monkeypatch.setattr(benchmark, "WARM_UP_IMAGES", 64)
    for way, recipe in itertools.product(WAYS, (CLASSIC, STRONG)):
        assert benchmark.time_epoch(way, "model6", recipe, torch.device("cpu"), 200) > 0
