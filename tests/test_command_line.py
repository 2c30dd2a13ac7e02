"""The command line as a user calls it: help, dry runs, bad arguments, full disks, signals."""

import errno
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from conftest import Digits, fail_at
from torch import Tensor

import mnist as dataset
import train
from files import read_state
from mnist import load_mnist
from networks import ROOT

LONG = "x" * 300  # more than file systems take
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(small_mnist: Digits, tmp_path: Path, monkeypatch, capsys) -> Call:
    """Calls `train.py` in an empty folder: exit code, output, errors with Python's warnings."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(train, "plot_curves", lambda *args: b"")  # which takes longer than the rest
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def call(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            try:
                code = train.main([str(argument) for argument in argv])
            except SystemExit as exit:
                code = exit.code
        out, err = capsys.readouterr()
        return code, out, err + "".join(f"{warning.message}\n" for warning in caught)

    return call


@pytest.fixture(scope="module")
def stopped_once(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three epochs that was stopped in the second one."""
    out_dir = tmp_path_factory.mktemp("runs")
    options = ["--epochs", "3", "--holdout", "100", "--device", "cpu", "--out-dir", str(out_dir)]
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()):
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        assert train.main([*options, "--quiet", "--data-dir", str(small_data)]) == 130
    return out_dir / "model3-strong+epochs=3-seed42-holdout100"


@pytest.fixture
def stopped(call: Call, stopped_once: Path) -> Path:
    """A copy of it, where train.py puts runs."""
    return shutil.copytree(stopped_once, Path("runs", stopped_once.name).resolve())


def content(folder: Path) -> dict[Path, bytes | None]:
    """All that is in `folder`: the bytes of files, and None for folders; without locks."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def assert_refused(outcome: tuple[int, str, str], named: str, code: int = 2) -> None:
    assert outcome[:2] == (code, "")
    err = outcome[2]
    assert err.endswith("\n") and err.count("\n") == 1 and named in err and "Traceback" not in err


# ---------------------------------------------------------------------------- arguments

BOUNDS = {"--epochs": (1, 1000), "--batch-size": (2, 9999), "--seed": (0, 2**32 - 1)}
BOUNDS |= {"--threads": (1, 1024), "--holdout": (0, 1_000_000)}


@pytest.mark.parametrize("option", BOUNDS)
def test_numbers_are_bounded(option: str, call: Call) -> None:
    low, high = BOUNDS[option]
    for text in ["nan", "-1", "1.5", "", "9" * 5000, str(low - 1), str(high + 1)]:
        assert_refused(call(option, text), f"{low} to {high}")


WRONG = [  # is the last word of each line
    *["--model model9", "--model", "--recipe adam", "--device tpu", "--device mps"],
    *["--device cuda", "--lr", "--epoch", "-x", "model3", "--size width", "--set lr=1"],
    # what does not go together
    *["--resume run --dry-run", "--resume run --evaluate=x", "--dry-run --tta", "--tta"],
    *[f"--evaluate file {word}" for word in ("--model=all", "--epochs=3", "--holdout=3")],
    *[f"--resume run {word}" for word in ("--model=model3", "--seed=3", "--out-dir=x")],
    # places
    *[f"--out-dir {name}" for name in ("file", "file/below", "/proc/below", LONG)],
    *[f"--data-dir {name}" for name in ("file", "file/below", LONG)],
    *[f"--resume {name}" for name in ("nothing", "file", "/dev/null", ".", "pipe", LONG)],
    *[f"--evaluate {name}" for name in ("nothing", ".", "/dev/zero", "file/below", LONG)],
]


@pytest.mark.parametrize("line", WRONG)
def test_bad_command_line(line: str, call: Call, monkeypatch) -> None:
    """Devices and pipes included, which may never end: nobody writes into this one."""
    monkeypatch.setattr(train, "load_mnist", load_mnist)
    Path("file").write_text("this is no run and holds no weights")
    Path("pipe").mkdir()
    os.mkfifo("pipe/config.json")
    before = content(Path())
    assert_refused(call(*line.split()), line.split()[-1].partition("=")[0])
    assert content(Path()) == before


def test_output_of_another_encoding(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PYTHONIOENCODING=ascii has it."""
    Path("größe.pt").write_bytes((ROOT / "weights" / "model3.pt").read_bytes())
    streams = {name: io.TextIOWrapper(io.BytesIO(), "ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert (call("--evaluate", "größe.pt")[0], call("--evaluate", "ß.pt")[0]) == (0, 2)
    out, err = (stream.buffer.getvalue() for stream in streams.values() if not stream.flush())
    assert b"tools.report gr??e.pt" in out and err.startswith(
        b"train.py: error: ?.pt: No such file"
    )


# ---------------------------------------------------------------- resume, help, dry runs


def test_resume_with_another_checkpoint_or_config_loses_nothing(stopped: Path, call: Call) -> None:
    config, checkpoint = stopped / "config.json", stopped / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    # A learning rate follows a schedule of as many steps as the run was begun with.
    config.write_text(config.read_text().replace('"epochs": 3', '"epochs": 4'))
    for damage in (whole, whole[:20_000], (ROOT / "weights" / "model3.pt").read_bytes()):
        checkpoint.write_bytes(damage)
        before = content(stopped)
        assert_refused(call("--resume", stopped, "--quiet"), f"{checkpoint} is damaged")
        assert content(stopped) == before


def test_resume_elsewhere_warns_and_a_finished_run_is_refused(stopped, call) -> None:
    config = json.loads((stopped / "config.json").read_text())
    had = {"device_name": "x", "threads": 99_999, "torch": "1.0"}
    (stopped / "config.json").write_text(json.dumps(config | had))
    code, _, err = call("--resume", stopped, "--quiet")
    changes = [f"warning: {key} was {had[key]} and is {config[key]} now" for key in had]
    assert code == 0 and err.splitlines() == [f"{one}; the result may differ" for one in changes]
    before = content(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: this run is finished")
    assert content(stopped) == before


def test_resume_takes_threads_and_data_that_the_run_had(stopped, call, monkeypatch) -> None:
    used, config = [], json.loads((stopped / "config.json").read_text())
    monkeypatch.setattr(
        train, "run", lambda *_, data_dir, **how: used.append((data_dir, torch.get_num_threads()))
    )
    Path("elsewhere").mkdir()
    for had, options in (("elsewhere", []), ("gone", []), ("gone", ["--data-dir", "moved"])):
        (stopped / "config.json").write_text(json.dumps(config | {"data_dir": had, "threads": 1}))
        torch.set_num_threads(2)
        call("--resume", stopped, *options)
    assert used == [(Path("elsewhere"), 1), (train.DATA_DIR, 1), (Path("moved"), 1)]


def test_examples_in_the_help_work(call: Call) -> None:
    examples = re.findall(r"^ +python train\.py(.*?)(?: +#.*)?$", call("--help")[1], re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        train.build_parser().parse_args(example.split())


def test_dry_run_leaves_nothing_behind(call, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = ["--model", "all", "--holdout", "100", "--out-dir", "there"]
    code, out, err = call("--dry-run", "--epochs", "2", *options)
    assert (code, err) == (0, "") and "seed42-holdout100: dry run, not judged" in out
    with pytest.MonkeyPatch.context() as patch:
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        code, _, err = call("--dry-run", "--epochs", "2")
    assert code == 130 and "--resume" not in err  # there is nothing to resume
    assert content(tmp_path) == {tmp_path / "here": None}


# ------------------------------------------------- full disks, bad numbers, signals, pipes

EPOCH = ["metrics.csv", "checkpoint.pt"]
WRITES = ["config.json", *EPOCH, *EPOCH, "curves.png", "weights.pt"]  # of two epochs, in order


def test_full_disk_costs_no_more_than_what_was_being_written(call, tmp_path) -> None:
    for number, file in enumerate(WRITES, start=1):
        out_dir = tmp_path / str(number)
        folder = out_dir / "model3-strong+batch_size=9999+epochs=2-seed42-holdout400"
        options = ["--epochs", "2", "--quiet", "--batch-size", "9999", "--holdout", "400"]
        with pytest.MonkeyPatch.context() as patch:
            fail_at(number, os, "fsync", OSError(errno.ENOSPC, "No space left"), patch)
            outcome = call(*options, "--out-dir", out_dir)
        assert_refused(outcome, f"{folder / file}: No space", 1)
        assert {path.name for path in content(folder)} == {*WRITES[: number - 1]}
        if number > 1:
            assert call("--resume", folder, "--quiet")[0] == 0
            assert (folder / "metrics.csv").read_text().count("\n") == 3


def test_loss_that_is_not_finite(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    augment, calls = dataset.augment, itertools.count(1)

    def spoilt(*args: object) -> Tensor:
        return augment(*args) * (math.nan if next(calls) == 5 + 3 else 1)

    monkeypatch.setattr(dataset, "augment", spoilt)
    outcome = call("--epochs", "2", "--batch-size", "100", "--quiet")
    assert_refused(outcome, "not finite in epoch 2, batch 3 of 5; try ", 1)
    (checkpoint,) = Path("runs").glob("*/checkpoint.pt")
    state = read_state(checkpoint)
    assert len(state["records"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_signals_locks_and_pipes(small_data: Path, tmp_path: Path, capsys) -> None:
    """SIGTERM stops a run that is locked; the command that it prints resumes it, into a pipe."""

    def start(*command: str | Path) -> subprocess.Popen:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, **streams)
        for line in process.stdout:
            if line.startswith("|     2 |"):
                return process
        raise AssertionError(process.stderr.read())

    options = ["--epochs", "1000", "--out-dir", tmp_path / "a b", "--data-dir", small_data]
    process = start(sys.executable, "train.py", "--device", "cpu", "--threads", "1", *options)
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
    process.stdout.close()
    assert process.wait() == -signal.SIGPIPE and process.stderr.read() == ""
