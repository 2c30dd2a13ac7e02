"""The benchmark: its table against made-up records, and a trial of each way."""

import json
import shutil
import threading
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from cli import RunError
from mnist import DATA_DIR
from tools import benchmark
from tools.benchmark import OURS, USUAL, figures, main, summary, this_repository


def made_up(usual: list[float], ours: list[float], **more: Any) -> dict[str, Any]:
    measured = {USUAL: [{"seconds": s, "MB": 800} for s in usual]}
    measured[OURS] = [{"seconds": s, "MB": 700 + s} for s in ours]
    run = {"machine": "A", "model": "model3", "recipe": "strong", "measured": measured}
    return run | {"best": {"workers": 4, "threads": 1}} | more


def test_the_table_quotes_median_and_range_over_rounds() -> None:
    run = made_up([20, 24, 30], [10, 10, 10])
    assert figures(run) == {
        "workers, threads of the usual way": "4, 1",
        "usual way (s)": "24.00 (20.00 to 30.00)",
        "this repository (s)": "10.00 (10.00 to 10.00)",
        "usual way / this repository": "2.40 (2.00 to 3.00)",
        "peak memory, usual way (MB)": "800",
        "peak memory, this repository (MB)": "710",
    }
    run["measured"][OURS][0]["MB on the GPU"] = 51.4
    assert figures(run)["peak memory, this repository (MB on the GPU)"] == "51"


def test_the_record_is_brought_up_to_date_and_comes_into_the_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record, document = tmp_path / "benchmark.json", tmp_path / "README.md"
    monkeypatch.setattr(benchmark, "RECORD", record)
    monkeypatch.setattr(benchmark, "DOCUMENT", document)
    document.write_text("<!-- benchmark -->\nold\n<!-- /benchmark -->\n")
    assert main(["--rounds", "0", "--device", "cpu"]) == 0
    assert "No records yet." in document.read_text()
    for seconds, options in ((7.0, []), (8.0, ["--recipe", "classic"])):
        run = made_up([seconds], [2.0])
        measured = lambda what, *_, run=run: run | {"recipe": what[1].name}  # noqa: E731
        monkeypatch.setattr(benchmark, "measure", measured)
        assert main(["--rounds", "1", "--device", "cpu", *options]) == 0
    kept = json.loads(record.read_text())
    found = {title: run["measured"][USUAL][0]["seconds"] for title, run in kept.items()}
    assert found == {"A: model3, strong": 7, "A: model3, classic": 8}
    assert document.read_text() == f"<!-- benchmark -->\n{summary(kept)}\n<!-- /benchmark -->\n"


def test_the_document_says_what_is_on_record() -> None:
    made = summary(benchmark.read_record())
    assert made in benchmark.DOCUMENT.read_text(), "run python -m tools.benchmark --rounds 0"


def test_a_process_of_its_own_reports_time_memory_and_failure() -> None:
    strong, cpu = benchmark.RECIPES["strong"], torch.device("cpu")
    found = benchmark.alone(
        OURS, partial(this_repository, "model3", strong, cpu), 1, 1000, copies=2
    )
    assert found["seconds"] > 0.1 and found.get("MB", 100) > 50
    with pytest.raises(RunError, match=r"^this repository: .*model9\.py cannot be imported[^\n]*$"):
        benchmark.alone(OURS, partial(this_repository, "model9", strong, cpu), 1, 1000)


def test_a_trial_times_each_way_and_keeps_no_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All in this process; `alone` has a test of its own."""
    raw = tmp_path / "data" / "MNIST" / "raw"  # which the usual way unpacks
    shutil.copytree(DATA_DIR / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    changed = {"DATA_DIR": tmp_path / "data", "RECORD": tmp_path / "benchmark.json"}
    for name, value in (changed | {"WARM_UP_IMAGES": 128, "TRIAL_IMAGES": 256}).items():
        monkeypatch.setattr(benchmark, name, value)

    def here(name: str, way: Any, threads: int, images: int, copies: int = 1) -> dict[str, float]:
        results = SimpleQueue()
        benchmark.time_one(0, way, threads, images, threading.Barrier(1), results)
        return results.get()

    monkeypatch.setattr(benchmark, "alone", here)
    options = ["--images", "1000", "--rounds", "1", "--recipe", "strong", "--device", "cpu"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert all(f"| {way} (s) " in out for way in (USUAL, OURS, benchmark.AT_ONCE))
    assert not (tmp_path / "benchmark.json").exists()
