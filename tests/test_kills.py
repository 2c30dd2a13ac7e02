"""Runs that signals end: what they say, and that a killed run equals an undisturbed one.

python -m pytest tests/test_kills.py --kills 20
"""

import csv
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from networks import ROOT

EPOCHS = 5  # of the strong recipe, whose EMA begins in the second
SIGNALS = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signals")


def start(*command: str | Path) -> subprocess.Popen[str]:
    """Starts a command in the repository, with its output and errors to be read."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, **pipes)


def epochs_done(process: subprocess.Popen[str]) -> Iterator[int]:
    """The epochs whose rows are in the table, as they come; 0 at its head."""
    for line in process.stdout:
        cell = line.strip("| \n").partition(" ")[0]
        if line.startswith("|") and (cell == "Epoch" or cell.isdecimal()):
            yield int(cell) if cell != "Epoch" else 0


def kill_at(process: subprocess.Popen[str], moment: float, epoch_seconds: float) -> None:
    """Kills it at a moment in epochs: 2.5 is half an epoch after the second."""
    for epoch in epochs_done(process):
        if epoch == int(moment):
            time.sleep(moment % 1 * epoch_seconds)
            process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without their times."""
    with (folder / "metrics.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@SIGNALS
def test_a_killed_run_equals_an_undisturbed_one(
    small_data: Path, tmp_path: Path, pytestconfig: pytest.Config, capsys
) -> None:
    """To the last bit, with an EMA, and with all rows in the table."""
    kills, draws = pytestconfig.getoption("kills"), random.Random(1)
    # Each kill has its part of the run, from the table's head to the writing of the weights.
    moments = [(number + draws.random()) * (EPOCHS + 1) / kills for number in range(kills)]
    options = ["--device=cpu", "--threads=1", f"--data-dir={small_data}"]
    settings = [f"--epochs={EPOCHS}", f"--out-dir={tmp_path / 'killed'}"]
    clock = time.perf_counter()
    assert train.main([*options, settings[0], f"--out-dir={tmp_path / 'undisturbed'}"]) == 0
    epoch_seconds = (time.perf_counter() - clock) / (EPOCHS + 1)
    for moment in moments:
        process = start(sys.executable, "train.py", *options, *settings)
        kill_at(process, moment, epoch_seconds)
        (killed,) = (tmp_path / "killed").iterdir()
        settings = [f"--resume={killed}"]
    capsys.readouterr()
    assert train.main([*options, *settings]) == 0
    assert re.findall(r"^\| +(\d+) \|", capsys.readouterr().out, re.MULTILINE) == [*"12345"]
    (undisturbed,) = (tmp_path / "undisturbed").iterdir()
    assert {path.name for path in killed.iterdir()} == {path.name for path in undisturbed.iterdir()}
    assert (killed / "weights.pt").read_bytes() == (undisturbed / "weights.pt").read_bytes()
    assert len(rows(killed)) == EPOCHS
    assert rows(killed) == rows(undisturbed)


@SIGNALS
def test_sigterm_locks_and_pipes(small_data: Path, tmp_path: Path, capsys) -> None:
    """SIGTERM stops a run that is locked; the command that it prints resumes it, into a pipe."""
    options = ["--epochs=1000", f"--data-dir={small_data}", f"--out-dir={tmp_path / 'a b'}"]
    process = start(sys.executable, "train.py", "--device=cpu", "--threads=1", *options)
    assert 2 in epochs_done(process)
    (folder,) = (tmp_path / "a b").iterdir()
    assert train.main(["--resume", str(folder), "--threads", "1", "--quiet"]) == 2
    assert f"{folder}: another process is at work on it" in capsys.readouterr().err
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 143 and err.strip().count("\n") == 0
    assert not re.search(r"[^\n -~]", out + err)  # no bar where there is no terminal
    command = shlex.split(err.partition("to resume: ")[2])
    assert command == [sys.executable, "train.py", "--resume", str(folder)]
    process = start(*command)
    assert 2 in epochs_done(process)
    process.stdout.close()
    assert process.wait() == -signal.SIGPIPE and process.stderr.read() == ""
