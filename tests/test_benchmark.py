"""The benchmark: its table against made-up records, its floor by hand, and a trial of each way."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import RunError
from mnist import DATA_DIR
from tools import benchmark, records, ways
from tools.benchmark import OURS, USUAL, document, main, summary


def made_up(machine: str, usual: list[float], ours: list[float], **more: Any) -> dict[str, Any]:
    measured = {USUAL: [{"seconds": s, "MB": 800} for s in usual]}
    measured[OURS] = [{"seconds": s, "MB": 700 + s} for s in ours]
    best = {"workers": 4, "threads": 1}
    run = {"machine": machine, "model": "model3", "recipe": "strong", "best": best}
    return run | {"measured": measured} | more


def cells(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_table_quotes_the_range_over_rounds_and_machines() -> None:
    runs = [made_up("A", [20, 24, 30], [10, 10, 10]), made_up("B", [9, 16], [6, 4])]
    claim, text = summary(runs), document(runs)
    assert "1.50 to 4.00 times as long (model3, strong; n = 5)" in claim
    assert "2 kinds of machine" in claim
    for table in (claim, text):
        ratios = cells(table, f"{USUAL} / {OURS}")
        assert ratios == ["2.40 (2.00 to 3.00)", "2.75 (1.50 to 4.00)"]
        assert cells(table, f"{USUAL} (s)")[0] == "24.00 (20.00 to 30.00)"
    assert cells(text, f"peak memory, {OURS} (MB)") == ["710", "706"]
    assert cells(text, "workers, threads of the usual way") == ["4, 1", "4, 1"]
    assert "MB on the GPU" not in text and "\n    floor " in text
    runs[0]["measured"][OURS][0]["MB on the GPU"] = 51.4
    assert cells(document(runs), f"peak memory, {OURS} (MB on the GPU)") == ["51", "-"]


def test_recipes_have_a_range_each() -> None:
    text = summary([made_up("A", [20], [10]), made_up("A", [30], [10], recipe="classic")])
    assert "2.00 to 2.00 times as long (model3, strong; n = 1)" in text
    assert "3.00 to 3.00 times as long (model3, classic; n = 1)" in text
    assert "1 kind of machine" in text


def test_without_a_record_the_table_says_so(tmp_path: Path) -> None:
    assert summary(benchmark.read(tmp_path)) == "Not measured yet."


def test_a_machine_has_one_record_which_is_brought_up_to_date(tmp_path: Path) -> None:
    for usual in (20, 25):
        benchmark.keep(made_up("A CPU (R), 2 threads", [usual], [10]), tmp_path)
    benchmark.keep(made_up("A CPU (R), 2 threads", [30], [10], recipe="classic"), tmp_path)
    benchmark.keep(made_up("B", [40], [10]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a-cpu-r-2-threads.json", "b.json"}
    found = [run["measured"][USUAL][0]["seconds"] for run in benchmark.read(tmp_path)]
    assert found == [25, 30, 40]
    assert list(json.loads((tmp_path / "b.json").read_text())) == ["model3, strong"]


def test_what_is_of_all_images_is_kept_and_comes_into_the_readme(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmark -->\nold\n<!-- /benchmark -->\n")
    monkeypatch.setattr(records, "README", readme)
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path / "benchmark")
    assert main(["--rounds", "0", "--device", "cpu"]) == 0
    assert readme.read_text() == "<!-- benchmark -->\nNot measured yet.\n<!-- /benchmark -->\n"
    monkeypatch.setattr(
        benchmark, "measure", lambda job, n: made_up("A", [7.0], [2.0], recipe=job.recipe.name)
    )
    assert main(["--rounds", "1", "--device", "cpu"]) == 0
    kept = benchmark.read(tmp_path / "benchmark")
    assert {run["recipe"] for run in kept} == {"strong", "classic"}
    assert readme.read_text() == f"<!-- benchmark -->\n{summary(kept)}\n<!-- /benchmark -->\n"
    assert (tmp_path / "benchmark" / "README.md").read_text() == document(kept)


def test_the_operations_of_an_epoch_by_hand() -> None:
    layers = [  # channels in and out, kernel, side of the output
        *[(1, 7, 9, 26), (7, 7, 9, 24), (7, 10, 9, 22), (10, 10, 9, 9), (10, 12, 9, 7)],
        *[(12, 16, 9, 3), (16, 18, 9, 3), (18, 10, 1, 1)],
    ]
    multiply_adds = sum(into * out * kernel * side**2 for into, out, kernel, side in layers)
    assert ways.epoch_flop("model3") == 3 * 2 * multiply_adds * 60_000


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5, 0.25, *[1.0] * 8])
    monkeypatch.setattr(ways, "timed", lambda action, device: next(seconds))
    assert ways.peak_rate(torch.device("cpu"), 16) == 2 * 16**3 / 0.25
    assert next(seconds, None) is None


@pytest.mark.parametrize(
    "options", [["--images", "999"], ["--model", "model9"], ["--recipe", "x"], ["--rounds", "-1"]]
)
def test_a_bad_option_is_one_line(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(options)
    out, error = capsys.readouterr()
    assert exit_.value.code == 2 and out == ""
    assert error.startswith("python -m tools.benchmark: error: ") and error.count("\n") == 1


def test_a_process_of_its_own_reports_its_time_memory_and_failure() -> None:
    found = benchmark.alone(benchmark.time_python, "-c", "import time; time.sleep(0.4)", copies=2)
    assert found["seconds"] >= 0.2  # of two at once, over two
    assert found.get("MB", 100) > 50
    with pytest.raises(RunError, match="-c exit\\(3\\) failed"):
        benchmark.alone(benchmark.time_python, "-c", "exit(3)")


def test_a_trial_times_each_way_and_leaves_no_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """All in this process, and with small products; `alone` has a test of its own."""
    raw = tmp_path / "data" / "MNIST" / "raw"  # which the usual way unpacks
    shutil.copytree(DATA_DIR / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    monkeypatch.setattr(ways, "DATA_DIR", tmp_path / "data")
    peak_rate = ways.peak_rate
    monkeypatch.setattr(ways, "peak_rate", lambda device, size: peak_rate(device, 256))
    readme = records.README.read_bytes()
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(benchmark, "WARM_UP_IMAGES", 128)
    monkeypatch.setattr(benchmark, "TRIAL_IMAGES", 256)
    monkeypatch.setattr(benchmark, "together", threading.Barrier(1), raising=False)

    def here(action: Any, *arguments: Any, copies: int = 1) -> dict[str, float]:
        if action is benchmark.time_python:
            return {"seconds": 1.0}
        return benchmark.with_memory(action, *arguments)

    monkeypatch.setattr(benchmark, "alone", here)
    options = ["--images", "1000", "--rounds", "1", "--recipe", "classic", "--device", "cpu"]
    assert main(options) == 0
    out = capsys.readouterr().out

    def seconds(name: str) -> float:
        return float(cells(out, f"{name} (s)")[0].split()[0])

    for way in (USUAL, OURS, benchmark.AT_ONCE, ways.ARITHMETIC, benchmark.FLOOR, ways.EVALUATION):
        assert seconds(way) > 0
    assert records.README.read_bytes() == readme and not (tmp_path / "records").exists()
