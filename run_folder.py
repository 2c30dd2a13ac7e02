"""The folder of a run: its files, and how it is resumed.

    config.json      its settings, and what it runs on
    metrics.csv      a row per epoch
    checkpoint.pt    all that a resume needs
    curves.png       written at the end
    weights.pt       written at the end: the weights of the last epoch, or their EMA
    .lock            locked by the running process

Files are written atomically (files.py).
"""

import contextlib
import csv
import io
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cli import UsageError
from files import read_state, regular_file, write_atomically, write_state

# The columns of metrics.csv: accuracies in %, of the test set or of the validation images.
KEYS = ("epoch", "train_loss", "train_acc", "lr", "loss", "acc", "seconds")
ONE_VIEW = "one_view_acc"  # a further column of networks with test-time views
EpochRecord = dict[str, Any]  # a value for each key


def new_run_folder(out_dir: Path, name: str, config: dict[str, Any]) -> Path:
    """Makes and returns out_dir/name, or name-2, name-3, ..., the first that does not exist."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        folder = out_dir / name
        for number in itertools.count(2):
            try:
                folder.mkdir()
                break
            except FileExistsError:
                folder = out_dir / f"{name}-{number}"
    except OSError as error:
        raise UsageError(f"--out-dir {out_dir}: {error.strerror}; name another folder") from None
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json: the settings of a run; UsageError where there is none."""
    try:
        config = json.loads(regular_file(folder / "config.json").read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{folder}: no run folder ({error.strerror})") from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UsageError(f"{folder}: config.json is damaged; start a new run")
    return config


def read_metrics(folder: Path) -> list[EpochRecord]:
    """Reads metrics.csv: a record per epoch; UsageError where there is none."""
    try:
        text = regular_file(folder / "metrics.csv").read_text("utf-8")
        rows = csv.DictReader(io.StringIO(text))
        keys = [*KEYS, ONE_VIEW] if ONE_VIEW in (rows.fieldnames or ()) else KEYS
        return [{key: (int if key == "epoch" else float)(row[key]) for key in keys} for row in rows]
    except OSError as error:
        raise UsageError(f"{folder}: no epoch is on record ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{folder}: metrics.csv is damaged") from None


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` has trained all of its epochs."""
    return (folder / "weights.pt").exists()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks a run folder for this process, and prints how to resume when a signal stops it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"{folder}: another process is at work on it") from None
    except KeyboardInterrupt:
        command = shlex.join([sys.executable, sys.argv[0], "--resume", str(folder)])
        print(f"\nstopped; to resume: {command}", file=sys.stderr)
        raise


def save_epoch(folder: Path, records: list[EpochRecord], state: dict[str, Any]) -> None:
    """Writes metrics.csv before the checkpoint, so every checkpointed epoch has a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(folder / "metrics.csv", text.getvalue().encode())
    write_state(folder / "checkpoint.pt", {**state, "records": records})


def load_checkpoint(folder: Path, trainer: Any) -> list[EpochRecord]:
    """Loads the last checkpoint into `trainer`; returns the records of the epochs until then.

    UsageError when the checkpoint is damaged or does not fit.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():  # stopped in the first epoch
        return []
    state = read_state(path)
    try:
        records, steps = state.pop("records"), trainer.scheduler.total_steps
        trainer.load_state_dict(state)
        if trainer.scheduler.total_steps != steps:  # overwritten by load_state_dict without a check
            raise ValueError
        return records
    except Exception:  # load_state_dict raises several types of error
        raise UsageError(f"{path} is damaged, or of another run; start a new run") from None
