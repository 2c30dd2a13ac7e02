"""The command line as a user calls it: bad arguments, resuming, dry runs, full disks."""

import errno
import io
import itertools
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
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


@pytest.fixture
def stopped(call: Call) -> Path:
    """Folder of a run of three epochs that was stopped in the second one."""
    options = ["--epochs", "3", "--holdout", "400", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        assert call(*options)[0] == 130
    return Path("runs/model3-strong+epochs=3-seed42-holdout400").resolve()


def files_in(folder: Path) -> dict[Path, bytes | None]:
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


def test_numbers_are_bounded(call: Call) -> None:
    for option, (low, high) in BOUNDS.items():
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
    before = files_in(Path())
    assert_refused(call(*line.split()), line.split()[-1].partition("=")[0])
    assert files_in(Path()) == before


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
    # A learning rate follows a schedule of as many steps as the run was begun with.
    config.write_text(config.read_text().replace('"epochs": 3', '"epochs": 4'))
    for content in (checkpoint.read_bytes(), (ROOT / "weights" / "model3.pt").read_bytes()):
        checkpoint.write_bytes(content)
        before = files_in(stopped)
        assert_refused(call("--resume", stopped, "--quiet"), f"{checkpoint} is damaged")
        assert files_in(stopped) == before


def test_resume_elsewhere_warns_and_a_finished_run_is_refused(stopped, call) -> None:
    config = json.loads((stopped / "config.json").read_text())
    had = {"device_name": "x", "threads": 99_999, "torch": "1.0"}
    (stopped / "config.json").write_text(json.dumps(config | had))
    code, _, err = call("--resume", stopped, "--quiet")
    changes = [f"warning: {key} was {had[key]} and is {config[key]} now" for key in had]
    assert code == 0 and err.splitlines() == [f"{one}; the result may differ" for one in changes]
    before = files_in(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: this run is finished")
    assert files_in(stopped) == before


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


def test_dry_run_leaves_nothing_behind(call, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(train, "list_models", lambda: ["model3", "model1"])
    options = ["--model", "all", "--holdout", "100", "--out-dir", "there"]
    code, out, err = call("--dry-run", "--epochs", "2", *options)
    assert (code, err) == (0, "") and out.count("seed42-holdout100: dry run, not judged") == 2
    with pytest.MonkeyPatch.context() as patch:
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        code, _, err = call("--dry-run", "--epochs", "2")
    assert code == 130 and "--resume" not in err  # there is nothing to resume
    assert files_in(tmp_path) == {tmp_path / "here": None}


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
        assert {path.name for path in files_in(folder)} == {*WRITES[: number - 1]}
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
