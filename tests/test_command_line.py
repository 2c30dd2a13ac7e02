"""The command line as a user calls it: help, dry runs, bad arguments, damaged files, signals."""

import errno
import io
import itertools
import json
import math
import os
import pickle
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
from conftest import Digits, fail_at, take_few
from torch import Tensor

import mnist as dataset
import run_folder
import train
from mnist import load_mnist
from networks import ROOT, get_model

LONG = "x" * 300  # more than file systems take
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(small_mnist, tmp_path, monkeypatch, capsys) -> Call:
    """Call `train.py` in an empty folder: exit code, output, errors with Python's warnings."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(run_folder, "plot_curves", lambda *args: b"")  # longer than the rest
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
def stopped_once(mnist: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three epochs that was stopped in the second one."""
    out_dir = tmp_path_factory.mktemp("runs")
    options = ["--epochs", "3", "--holdout", "100", "--device", "cpu", "--out-dir", str(out_dir)]
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()):
        take_few(mnist, patch)
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        assert train.main([*options, "--quiet"]) == 130
    return out_dir / "model3-strong+epochs=3-seed42-holdout100"


@pytest.fixture
def stopped(call: Call, stopped_once: Path) -> Path:
    """A copy of it, where train.py puts runs."""
    return shutil.copytree(stopped_once, Path("runs", stopped_once.name).resolve())


def content(folder: Path) -> dict[Path, bytes | None]:
    """All that is in `folder`: the bytes of files, and None for folders; locks do not count."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def assert_refused(outcome: tuple[int, str, str], named: str, code: int = 2) -> None:
    assert outcome[:2] == (code, "")
    err = outcome[2]
    assert err.endswith("\n") and err.count("\n") == 1 and named in err and "Traceback" not in err


# ---------------------------------------------------------------------------- arguments

BOUNDS = {
    "--epochs": (1, 1000),
    "--batch-size": (2, 9999),
    "--seed": (0, 2**32 - 1),
    "--threads": (1, 1024),
    "--holdout": (0, 50_000),
}


@pytest.mark.parametrize("option", BOUNDS)
def test_numbers_are_bounded(option: str, call: Call) -> None:
    low, high = BOUNDS[option]
    for text in ["nan", "-1", "1.5", "1e3", "", "9" * 5000, str(low - 1), str(high + 1)]:
        assert_refused(call(option, text), f"{low} to {high}")


WRONG = [  # is the last word of each line
    *["--model model9", "--model", "--recipe adam", "--device tpu", "--device mps"],
    *["--device cuda", "--lr", "--epoch", "-x", "model3"],
    # what does not go together
    *["--resume run --dry-run", "--resume run --evaluate=x", "--dry-run --tta", "--tta"],
    *[f"--evaluate file {word}" for word in ("--model=all", "--epochs=3", "--holdout=3")],
    *[f"--resume run {word}" for word in ("--model=model3", "--seed=3", "--out-dir=x")],
    # places
    *[f"--out-dir {name}" for name in ("file", "file/below", "/proc/below", LONG)],
    *[f"--data-dir {name}" for name in ("file", "file/below", LONG)],
    *[f"--resume {name}" for name in ("nothing", "file", "/dev/null", ".", LONG)],
    *[f"--evaluate {name}" for name in ("nothing", ".", "file", "file/below", LONG)],
]


@pytest.mark.parametrize("line", WRONG)
def test_bad_command_line(line: str, call: Call, monkeypatch) -> None:
    monkeypatch.setattr(train, "load_mnist", load_mnist)
    Path("file").write_text("this is no run and holds no weights")
    before = content(Path())
    assert_refused(call(*line.split()), line.split()[-1].partition("=")[0])
    assert content(Path()) == before


@pytest.mark.parametrize("line", ["--evaluate {}", "--resume {}", "{}"])
def test_a_line_break_in_a_name_is_shown_escaped(line: str, call: Call) -> None:
    assert_refused(call(*line.format("two\nlines").split(" ")), r"two\nlines")


def test_what_may_never_end_is_not_read(stopped: Path, call: Call) -> None:
    """Devices and pipes, by any name: nobody writes into this one."""
    assert_refused(call("--evaluate", "/dev/zero"), "/dev/zero is a pipe or a device")
    for name in ("checkpoint.pt", "config.json"):
        (stopped / name).unlink()
        os.mkfifo(stopped / name)
        assert_refused(call("--resume", stopped, "--quiet"), f"{name} is a pipe or a device")
    os.mkfifo("weights.pt")
    os.mkfifo("config.json")
    assert_refused(call("--evaluate", "weights.pt"), "weights.pt is a pipe or a device")
    Path("weights.pt").unlink()
    Path("weights.pt").write_bytes(WHOLE)
    assert_refused(call("--evaluate", "weights.pt"), "config.json is a pipe or a device")


# ------------------------------------------------------------------------- damaged files


def saved(value: object) -> bytes:
    """What torch.save makes of `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Payload:
    """Runs a command in whoever reads its pickle."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch was_run",)


STATE = get_model("model3").state_dict()
FIRST, FILTERS = next(iter(STATE.items()))
WHOLE = saved(STATE)
HOSTILE = {"model": Payload(), "more": Payload()}
DAMAGED = {
    "half": WHOLE[:20_000],
    "one flipped bit": WHOLE[:20_000] + bytes([WHOLE[20_000] ^ 1]) + WHOLE[20_001:],
    "a number": saved(1),
    "no tensors": saved(dict.fromkeys(STATE, 1.0)),
    "one entry less": saved({name: STATE[name] for name in STATE if name != FIRST}),
    "other shape": saved(STATE | {FIRST: FILTERS[:, :, :2]}),
    "nan": saved(STATE | {FIRST: FILTERS * math.nan}),
    "too large": saved({n: v * 1e30 if v.ndim > 1 else v for n, v in STATE.items()}),
    "negative": saved({n: v - 9 if "running_var" in n else v for n, v in STATE.items()}),
    "sparse": saved(STATE | {FIRST: FILTERS.to_sparse()}),
    "meta": saved(STATE | {FIRST: FILTERS.to("meta")}),
    "float16": saved(STATE | {FIRST: FILTERS.half()}),
    "code": saved(HOSTILE),
    "code, pickled": pickle.dumps(HOSTILE, protocol=2),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_without_weights_or_checkpoint(damage: str, stopped: Path, call: Call) -> None:
    Path("weights.pt").write_bytes(DAMAGED[damage])
    assert_refused(call("--evaluate", "weights.pt"), "weights.pt")
    (stopped / "checkpoint.pt").write_bytes(DAMAGED[damage])
    before = content(stopped)
    assert_refused(call("--resume", stopped, "--quiet"), str(stopped / "checkpoint.pt"))
    assert content(stopped) == before and not Path("was_run").exists()


def test_weights_tell_of_which_network_they_are(call: Call) -> None:
    Path("some.pt").write_bytes(saved(get_model("model4").state_dict()))
    code, out, _ = call("--evaluate", "some.pt")
    assert code == 0 and out.startswith("model4: test loss")
    assert_refused(call("--evaluate", "some.pt", "--model", "model5"), "model5")


# ---------------------------------------------------------------- resume, help, dry runs

HARM = {  # to config.json
    "truncated": lambda text: text[:-2],
    # of another version: its settings have other names, or there are others
    "other recipe": lambda text: text.replace('"max_lr"', '"x"'),
    "former version": lambda text: text.replace('"sizes"', '"code"'),
    "no number": lambda text: re.sub('"seed": [0-9]+', '"seed": "4"', text),
    "no place": lambda text: re.sub('"data_dir": "[^"]*"', '"data_dir": 4', text),
    "recipe that cannot be": lambda text: re.sub('"pct_start": [0-9.]+', '"pct_start": 1.0', text),
    "name of a recipe": lambda text: text.replace('"name": "', '"name": "../../'),
    # A learning rate follows a schedule of as many steps as the run was begun with.
    "longer": lambda text: text.replace('"epochs": 3', '"epochs": 4'),
}


@pytest.mark.parametrize("harm", HARM)
def test_resume_with_a_damaged_or_another_config(harm: str, stopped: Path, call: Call) -> None:
    config = stopped / "config.json"
    config.write_text(HARM[harm](config.read_text()))
    before = content(stopped)
    named = f"--resume {stopped}: its config.json is damaged"
    if harm == "longer":
        named = "not of this run"
    elif "recipe that" in harm or "of a recipe" in harm:
        named = "recipe: "
    assert_refused(call("--resume", stopped, "--quiet"), named)
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
    examples = re.findall(r"^ +python train\.py(.*?)(?:   .*)?$", call("--help")[1], re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        train.options().parse_args(example.split())


def test_dry_run_leaves_nothing_behind(call, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = ["--model", "all", "--holdout", "100", "--out-dir", "there"]
    code, out, err = call("--dry-run", "--epochs", "2", *options)
    assert (code, err) == (0, "") and "seed42-holdout100: dry run, not judged" in out
    with pytest.MonkeyPatch.context() as patch:
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        code, _, err = call("--dry-run", "--epochs", "2")
    assert code == 130 and "--resume" not in err  # there is nothing to go on with
    assert content(tmp_path) == {tmp_path / "here": None}


# ------------------------------------------------- full disks, bad numbers, signals, pipes

EPOCH = ["metrics.csv", "checkpoint.pt"]
WRITES = ["config.json", *EPOCH, *EPOCH, "curves.png", "weights.pt"]  # of two epochs, in order


def test_full_disk_costs_no_more_than_what_was_being_written(call, tmp_path) -> None:
    options = ["--epochs", "2", "--quiet", "--batch-size", "9999", "--holdout", "400"]
    assert call(*options, "--out-dir", tmp_path / "whole")[0] == 0
    whole = tmp_path / "whole" / "model3-strong+batch_size=9999+epochs=2-seed42-holdout400"
    for number, file in enumerate(WRITES, start=1):
        folder = tmp_path / str(number) / whole.name
        with pytest.MonkeyPatch.context() as patch:
            fail_at(number, os, "fsync", OSError(errno.ENOSPC, "No space left"), patch)
            outcome = call(*options, "--out-dir", folder.parent)
        assert_refused(outcome, f"{folder / file}: No space", 1)
        before = set(WRITES[: number - 1])
        assert {path.name for path in content(folder)} == before
        if before:
            assert call("--resume", folder, "--quiet")[0] == 0
            assert (folder / "weights.pt").read_bytes() == (whole / "weights.pt").read_bytes()
            assert (folder / "metrics.csv").read_text().count("\n") == 3


def test_loss_that_is_not_finite(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    augment, calls = dataset.augment, itertools.count(1)

    def spoilt(*args: object) -> Tensor:
        return augment(*args) * (math.nan if next(calls) == 5 + 3 else 1)

    monkeypatch.setattr(dataset, "augment", spoilt)
    outcome = call("--epochs", "2", "--batch-size", "100", "--quiet")
    assert_refused(outcome, "not finite from epoch 2, batch 3 of 5 on; try ", 1)
    state = run_folder.read_state(
        Path("runs/model3-strong+batch_size=100+epochs=2-seed42/checkpoint.pt")
    )
    assert len(state["records"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_signals_locks_and_pipes(small_data: Path, tmp_path: Path) -> None:
    """Two runs of one name at once; one is stopped by SIGTERM, the other by SIGINT."""

    def start(*argv: str | Path) -> subprocess.Popen:
        command = [sys.executable, "train.py", "--device", "cpu", "--threads", "1", *argv]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, **streams)
        for line in process.stdout:
            if line.startswith("|     2 |"):
                return process
        raise AssertionError(process.stderr.read())

    options = ["--epochs", "1000", "--out-dir", tmp_path / "a b", "--data-dir", small_data]
    runs = [start(*options), start(*options)]
    folders = sorted((tmp_path / "a b").iterdir())
    assert len(folders) == 2
    again = [sys.executable, "train.py", "--resume", folders[0], "--quiet"]
    refused = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and f"{folders[0]}: another process is at work" in refused.stderr
    for process, number, code in zip(runs, (signal.SIGTERM, signal.SIGINT), (143, 130)):
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == code and err.strip().count("\n") == 0
        assert not re.search(r"[^\n -~]", out + err)  # no bar where there is no terminal
    command = shlex.split(err.partition("to go on: ")[2])
    assert command[:3] == [sys.executable, "train.py", "--resume"] and Path(command[3]) in folders
    process = start("--resume", command[3])  # the lock of a process that has ended is gone
    process.stdout.close()
    assert process.wait() == -signal.SIGPIPE and process.stderr.read() == ""
