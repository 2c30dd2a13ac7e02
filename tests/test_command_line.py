"""The command line as a user calls it: help, dry runs, bad arguments, damaged files, signals."""

import errno
import io
import itertools
import json
import math
import os
import pickle
import random
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Digits, take_few
from torch import Tensor, nn

import mnist as dataset
import run_folder
import script
import train
from attempts import attempts, build_network
from mnist import load_mnist
from run_folder import ROOT

LONG = "x" * 300  # more than file systems take
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    small_mnist: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """Call `train.py` in an empty folder: exit code, standard output, standard error.

    Python's warnings are on standard error as well, as they would be without pytest.
    """
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


def stop_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come in the evaluation of the epoch with that number."""
    evaluate, calls = train.evaluate, itertools.count(1)

    def interrupted(*args: Any) -> tuple[float, float]:
        if next(calls) == number:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", interrupted)


@pytest.fixture(scope="module")
def stopped_once(mnist: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three epochs that was stopped in the second one."""
    out_dir = tmp_path_factory.mktemp("runs")
    options = ["--epochs", "3", "--holdout", "100", "--device", "cpu", "--out-dir", str(out_dir)]
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()):
        take_few(mnist, patch)
        stop_in_epoch(2, patch)
        assert train.main([*options, "--quiet"]) == 130
    return out_dir / "model3-strong-seed42-holdout100"


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


@pytest.mark.parametrize("text", ["nan", "-1", "1.5", "1e3", "five", "", "9" * 5000, "low", "high"])
@pytest.mark.parametrize("option", BOUNDS)
def test_numbers_are_bounded(option: str, text: str, call: Call, tmp_path: Path) -> None:
    low, high = BOUNDS[option]
    text = {"low": str(low - 1), "high": str(high + 1)}.get(text, text)
    assert_refused(call(option, text), f"from {low} to {high}")
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    for number in (low, high):
        args = vars(train.options().parse_args([option, str(number)]))
        assert args[option.lstrip("-").replace("-", "_")] == number


@pytest.mark.parametrize(
    ("line", "named"),
    [
        *[("--model model9", "--model"), ("--model Model_3", "--model"), ("--model", "--model")],
        *[("--recipe adam", "--recipe"), ("--device tpu", "--device"), ("--device mps", "mps")],
        *[("--device cuda", "--device cuda"), ("--lr 0.1", "--lr"), ("--epoch 3", "--epoch")],
        *[("--dry-run=1", "--dry-run"), ("model3", "model3"), ("-x", "-x"), ("--tta", "--tta")],
        # what excludes each other
        *[("--dry-run --resume run", "--dry-run"), ("--resume run --evaluate x", "--evaluate")],
        *[("--model all --evaluate file", "--model all"), ("--tta --dry-run", "--tta")],
        *[(f"--evaluate file {word} 3", word) for word in ("--epochs", "--seed", "--holdout")],
        *[(f"--resume run {word} 3", word) for word in ("--epochs", "--seed", "--batch-size")],
        *[(f"--resume run {word} model3", word) for word in ("--model", "--out-dir")],
        # places
        *[
            (f"--out-dir {name}", "--out-dir")
            for name in ("file", "file/below", "/proc/below", LONG)
        ],
        *[(f"--resume {name}", "--resume") for name in ("nothing", "file", "/dev/null", ".", LONG)],
        *[(f"--evaluate {name}", name) for name in ("nothing", ".", "file", "file/below", LONG)],
    ],
)
def test_bad_command_line(line: str, named: str, call: Call) -> None:
    Path("file").write_text("this is no run and holds no weights")
    before = content(Path())
    assert_refused(call(*shlex.split(line)), named)
    assert content(Path()) == before


@pytest.mark.parametrize("data_dir", ["nothing", "file", "file/below", LONG])
def test_bad_data_folder(data_dir: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "load_mnist", load_mnist)
    Path("file").touch()
    assert_refused(call("--data-dir", data_dir), "--data-dir")
    assert not Path("runs").exists()


# ------------------------------------------------------------------------- damaged files


def saved(value: object, **options: object) -> bytes:
    """What torch.save makes of `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def weights(change: Callable[[Tensor], Tensor] = lambda bias: bias) -> dict[str, Tensor]:
    """The state of a new model3, with the first weights changed."""
    state = build_network("model3").state_dict()
    first = next(iter(state))
    return state | {first: change(state[first])}


def flipped(content: bytes, place: int) -> bytes:
    """`content` with one bit changed."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


class Payload:
    """Runs a command in whoever reads its pickle."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch was_run",)


HOSTILE = {"model": Payload(), "more": Payload()}
DAMAGED = {
    "empty": lambda: b"",
    "random": lambda: random.Random(0).randbytes(20_000),
    "half": lambda: saved(weights())[:20_000],
    "one flipped bit": lambda: flipped(saved(weights()), 20_000),
    "a number": lambda: saved(1),
    "a list": lambda: saved([*weights().values()]),
    "a whole module": lambda: saved(build_network("model3")),
    "no tensors": lambda: saved(dict.fromkeys(weights(), 1.0)),
    "nothing in it": lambda: saved({}),
    "another network": lambda: saved(nn.Linear(784, 10).state_dict()),
    "one entry less": lambda: saved(dict([*weights().items()][1:])),
    "other shape": lambda: saved(weights(lambda first: first[:, :, :2])),
    "nan": lambda: saved(weights(lambda first: first * math.nan)),
    "code": lambda: saved(HOSTILE),
    "code, pickled": lambda: pickle.dumps(HOSTILE, protocol=2),
    "code, old torch": lambda: saved(HOSTILE, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_weights_that_are_no_weights(damage: str, call: Call) -> None:
    Path("weights.pt").write_bytes(DAMAGED[damage]())
    assert_refused(call("--evaluate", "weights.pt"), "weights.pt")
    assert not Path("was_run").exists()


@pytest.mark.parametrize("name", attempts())
def test_weights_tell_of_which_network_they_are(name: str, call: Call) -> None:
    Path("some.pt").write_bytes(saved(build_network(name).state_dict()))
    code, out, _ = call("--evaluate", "some.pt")
    assert code == 0 and out.startswith(f"{name}: test loss")
    for other in set(attempts()) - {name}:
        assert_refused(call("--evaluate", "some.pt", "--model", other), other)


@pytest.mark.parametrize("damage", DAMAGED)
def test_checkpoint_that_is_none(damage: str, stopped: Path, call: Call) -> None:
    (stopped / "checkpoint.pt").write_bytes(DAMAGED[damage]())
    before = content(stopped)
    assert_refused(call("--resume", stopped, "--quiet"), str(stopped / "checkpoint.pt"))
    assert content(stopped) == before and not Path("was_run").exists()


@pytest.mark.parametrize(("key", "value"), [("epochs", 4), ("epochs", 1), ("batch_size", 64)])
def test_a_run_cannot_be_made_longer_in_its_config(
    key: str, value: int, stopped: Path, call: Call
) -> None:
    """Its learning rate follows a schedule of as many steps as it was begun with."""
    config = json.loads((stopped / "config.json").read_text())
    config["recipe"][key] = value
    (stopped / "config.json").write_text(json.dumps(config))
    assert_refused(call("--resume", stopped, "--quiet"), "is not of this run")


# -------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "damage",
    [
        *[lambda text: "", lambda text: text[:-2], lambda text: "[]", lambda text: "\udcff"],
        # of another version: its settings have other names, or there are others
        *(lambda text, key=key: text.replace(f'"{key}"', '"x"') for key in ("model", "max_lr")),
        lambda text: text.replace('"sizes"', '"code"'),
    ],
    ids=["empty", "truncated", "list", "bytes", "no model", "other recipe", "former version"],
)
def test_resume_with_a_damaged_config(
    damage: Callable[[str], str], stopped: Path, call: Call
) -> None:
    config = stopped / "config.json"
    config.write_text(damage(config.read_text()), errors="surrogateescape")
    before = content(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: its config.json is damaged")
    assert content(stopped) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("code", 7), ("torch", "1.0"), ("threads", 99_999), ("device_name", "another")],
)
def test_resume_on_another_machine_warns(
    key: str, value: object, stopped: Path, call: Call
) -> None:
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {key: value}))
    code, _, err = call("--resume", stopped, "--quiet")
    assert code == 0 and err.count("\n") == 1 and "the result may differ" in err
    assert err.startswith(f"warning: {key} was {value} and is {config[key]} now;")


def test_resume_takes_threads_and_data_that_the_run_had(
    stopped: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def load(data_dir: Path, train: bool) -> tuple[Tensor, Tensor]:
        used.append(Path(data_dir))
        raise script.UsageError("seen enough")

    monkeypatch.setattr(train, "load_mnist", load)
    config = json.loads((stopped / "config.json").read_text())
    Path("elsewhere").mkdir()
    for had in ("elsewhere", "gone"):  # the clone was moved, and its data with it
        changed = config | {"data_dir": had, "threads": 1}
        (stopped / "config.json").write_text(json.dumps(changed))
        torch.set_num_threads(2)
        call("--resume", stopped)
        assert torch.get_num_threads() == 1
    call("--resume", stopped, "--data-dir", "moved")
    assert used == [Path("elsewhere"), train.DATA_DIR, Path("moved")]


def test_finished_run_is_not_resumed(stopped: Path, call: Call) -> None:
    code, out, err = call("--resume", stopped)
    assert (code, err) == (0, "") and "at the last epoch" in out
    before = content(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: this run is finished")
    assert content(stopped) == before


# ------------------------------------------------------------------------- help, dry runs


def test_help_is_worth_reading(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for action in train.options()._actions:
        assert action.help and re.search(rf"^ .*{action.option_strings[-1]}\b", out, re.MULTILINE)
    for default in ("model3", "strong", "the recipe's", "42", "auto", "data", "runs"):
        assert re.search(rf"default: {default}\b", out), default
    examples = re.findall(r"^ +python train\.py(.*?)(?:   .*)?$", out, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        train.options().parse_args(example.split())


@pytest.mark.parametrize("options", ["", "--model all --holdout 100", "--quiet --out-dir there"])
def test_dry_run_leaves_nothing_behind(
    options: str, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = call("--dry-run", "--epochs", "2", *options.split())
    assert (code, err) == (0, "") and "NO   0 of the last 5 epochs" in out
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(2, patch)
        code, _, err = call("--dry-run", "--epochs", "2")
    assert code == 130 and "--resume" not in err  # there is nothing to go on with
    assert content(tmp_path) == {tmp_path / "here": None}


# ------------------------------------------------- full disks, bad numbers, signals, pipes

EPOCH = ["metrics.csv", "checkpoint.pt"]
WRITES = ["config.json", *EPOCH, *EPOCH, "curves.png", "weights.pt"]  # of two epochs, in order


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_full_disk_costs_no_more_than_what_was_being_written(
    owner: object, name: str, call: Call, tmp_path: Path
) -> None:
    options = ["--epochs", "2", "--quiet", "--batch-size", "9999", "--holdout", "400"]
    assert call(*options, "--out-dir", tmp_path / "whole")[0] == 0
    whole, function = tmp_path / "whole" / "model3-strong-seed42-holdout400", getattr(owner, name)
    for number, file in enumerate(WRITES, start=1):
        out_dir, calls = tmp_path / str(number), itertools.count(1)
        folder = out_dir / "model3-strong-seed42-holdout400"

        def failing(*args: object, number: int = number, calls: Any = calls) -> object:
            return (no_space if next(calls) == number else function)(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, failing)
            assert_refused(call(*options, "--out-dir", out_dir), f"{folder / file}: No space", 1)
        before = set(WRITES[: number - 1])
        assert {path.name for path in content(folder)} == before
        if before:
            assert call("--resume", folder, "--quiet")[0] == 0
            assert (folder / "weights.pt").read_bytes() == (whole / "weights.pt").read_bytes()


def test_loss_that_is_not_finite(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    augment, calls = dataset.augment, itertools.count(1)
    batches = math.ceil(500 / train.STRONG.batch_size)

    def spoilt(*args: object) -> Tensor:
        return augment(*args) * (math.nan if next(calls) == batches + 3 else 1)

    monkeypatch.setattr(dataset, "augment", spoilt)
    outcome = call("--epochs", "2", "--quiet")
    assert_refused(outcome, f"not finite from epoch 2, batch 3 of {batches} on; try ", 1)
    state = run_folder.read_state(Path("runs/model3-strong-seed42/checkpoint.pt"))
    assert len(state["records"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_learning_rate_that_is_absurd(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train.RECIPES, "strong", replace(train.STRONG, max_lr=1e38))
    assert_refused(call("--quiet"), "not finite from epoch 1", 1)


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
    assert refused.returncode == 2
    assert f"--resume {folders[0]}: another process is at work" in refused.stderr
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
