"""A run that is killed again and again equals, in the end, an undisturbed run.

python -m pytest tests/test_kills.py --kills 20
"""

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from networks import ROOT

EPOCHS = 5  # of the strong recipe, whose EMA begins in the second


def start(data_dir: Path, *options: str) -> subprocess.Popen[str]:
    """Starts train.py on one thread, with its output to be read."""
    command = [sys.executable, "train.py", "--device=cpu", "--threads=1", f"--data-dir={data_dir}"]
    return subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def epochs_done(process: subprocess.Popen[str]) -> Iterator[int]:
    """The epochs whose rows are in the table, as they come; 0 at its head."""
    for line in process.stdout:
        cell = line.strip("| \n").partition(" ")[0]
        if line.startswith("|") and (cell == "Epoch" or cell.isdecimal()):
            yield int(cell) if cell != "Epoch" else 0


def kill_at(process: subprocess.Popen[str], moment: float, epoch_seconds: float) -> bool:
    """Kills it at a moment in epochs: 2.5 is half an epoch after the second. Whether it was hit."""
    for epoch in epochs_done(process):
        if epoch == int(moment):
            time.sleep(moment % 1 * epoch_seconds)
            process.kill()
    return process.wait() == -signal.SIGKILL


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without their times."""
    with (folder / "metrics.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on Windows")
def test_a_killed_run_equals_an_undisturbed_one(
    small_data: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """To the last bit, with an EMA, and with all rows in the table."""
    kills, draws = pytestconfig.getoption("kills"), random.Random(1)
    # Each kill has its part of the run, from the table's head to the writing of the weights.
    moments = [(number + draws.random()) * (EPOCHS + 1) / kills for number in range(kills)]
    settings = [f"--epochs={EPOCHS}", "--out-dir", str(tmp_path / "undisturbed")]
    process = start(small_data, *settings)
    clock = [time.perf_counter() for _ in epochs_done(process)]
    assert process.wait() == 0
    epoch_seconds = (clock[-1] - clock[0]) / EPOCHS
    settings[-1], hits = str(tmp_path / "killed"), 0
    for moment in moments:
        process = start(small_data, *settings)
        hits += kill_at(process, moment, epoch_seconds)
        settings = ["--resume", str(next((tmp_path / "killed").iterdir()))]
    assert hits == kills
    process = start(small_data, *settings)
    assert [*epochs_done(process)] == [*range(EPOCHS + 1)] and process.wait() == 0
    (undisturbed,), (killed,) = ([*(tmp_path / n).iterdir()] for n in ("undisturbed", "killed"))
    assert {path.name for path in killed.iterdir()} == {path.name for path in undisturbed.iterdir()}
    assert (killed / "weights.pt").read_bytes() == (undisturbed / "weights.pt").read_bytes()
    assert len(rows(killed)) == EPOCHS
    assert rows(killed) == rows(undisturbed)
