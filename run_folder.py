"""What a run leaves behind, and how it is taken up again.

    config.json      its settings, and what it ran on
    metrics.csv      a row per epoch
    checkpoint.pt    all that a resume needs
    curves.png       once it is finished
    weights.pt       once it is finished: the last weights, or their moving average
    .lock            keeps other processes away while one is at work

Files are written whole or not at all, and read without running what they hold.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from script import RunError, UsageError, regular_file

MAX_PARAMETERS, MAX_EPOCHS, MIN_ACCURACY, LAST_EPOCHS = 8_000, 15, 99.4, 5  # the challenge
ROOT = Path(__file__).resolve().parent
# Of each epoch, a row of metrics.csv: accuracies in %, on the test set or the images held out.
KEYS = ("epoch", "train_loss", "train_acc", "lr", "loss", "acc", "seconds")
EpochRecord = dict[str, Any]


# ---------------------------------------------------------------------------------- files


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, and give it the name `path` once it is on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; what was there is intact") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors, numbers and plain containers, as torch.save does."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote. Runs no code that a file may hold; UsageError if damaged."""
    regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile  # torch.load looks at no checksum
        with warnings.catch_warnings(action="ignore"):  # torch warns of what it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except Exception:  # torch.load raises a dozen types for what is not its own
        raise UsageError(f"{path} is damaged, or no file of weights; nothing was loaded") from None
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    return state


def png(figure: Any) -> bytes:
    """A figure of matplotlib as a PNG, with 120 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


# --------------------------------------------------------------------------------- folder


def new_run_folder(out_dir: Path, name: str, config: dict[str, Any]) -> Path:
    """Make and return out_dir/name, or name-2, name-3, ..., the first that was not there before."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = out_dir / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise UsageError(f"--out-dir {out_dir}: {error.strerror}; name another folder") from None
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """What the run in `folder` was begun as, and on; UsageError where there is none."""
    try:
        config = json.loads(regular_file(folder / "config.json").read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--resume {folder}: no run to go on with ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise UsageError(f"--resume {folder}: its config.json is damaged") from None
    return config


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process alone, and say how to go on when a signal stops it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"--resume {folder}: another process is at work on it") from None
    except KeyboardInterrupt:
        command = shlex.join([sys.executable, sys.argv[0], "--resume", str(folder)])
        print(f"\nstopped; to go on: {command}", file=sys.stderr)
        raise


def save_epoch(folder: Path, records: list[EpochRecord], state: dict[str, Any]) -> None:
    """Write metrics.csv and then the checkpoint, so that each epoch that it has done has a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, KEYS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(folder / "metrics.csv", text.getvalue().encode())
    write_state(folder / "checkpoint.pt", {**state, "records": records})


def load_checkpoint(folder: Path, learner: Any) -> list[EpochRecord]:
    """Bring `learner` to where the run in `folder` stopped; the records of its epochs until then.

    Raises UsageError when the checkpoint is damaged or does not fit.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():  # stopped in its first epoch
        return []
    state = read_state(path)
    try:
        records, steps = state.pop("records"), learner.scheduler.total_steps
        learner.load_state_dict(state)
        if learner.scheduler.total_steps != steps:  # which load_state_dict takes as it comes
            raise ValueError
        return records
    except Exception:  # a state that does not fit makes load_state_dict raise half a dozen types
        raise UsageError(f"{path} is not of this run, or damaged; begin a new run") from None


# --------------------------------------------------------------------- table and verdict

COLUMNS = (  # title, key in a record, format; "Test" is "Val" where images are held out
    ("Epoch", "epoch", "d"),
    ("Train Acc (%)", "train_acc", ".2f"),
    ("    LR", "lr", ".4f"),
    ("Test Loss", "loss", ".4f"),
    ("Test Acc (%)", "acc", ".2f"),
    ("Time (s)", "seconds", ".1f"),
)


def table_header(holdout: int) -> str:
    """The two lines above the rows of the Markdown table."""
    titles = [title.replace("Test", " Val" if holdout else "Test") for title, _, _ in COLUMNS]
    return f"| {' | '.join(titles)} |\n| {' | '.join('-' * (len(t) - 1) + ':' for t in titles)} |"


def table_row(record: EpochRecord) -> str:
    """One epoch as a row under `table_header`."""
    cells = [f"{record[key]:{len(title)}{form}}" for title, key, form in COLUMNS]
    return f"| {' | '.join(cells)} |"


def verdict(parameters: int, records: list[EpochRecord], holdout: int) -> str:
    """Whether the run meets the challenge, line by line. The last epoch is the result."""
    accuracies = [record["acc"] for record in records]
    best, mean = max(accuracies), sum(accuracies[-3:]) / 3
    reached = sum(accuracy >= MIN_ACCURACY for accuracy in accuracies[-LAST_EPOCHS:])
    checks = {
        f"{parameters:,} parameters (at most {MAX_PARAMETERS:,})": parameters <= MAX_PARAMETERS,
        f"{len(records)} epochs (at most {MAX_EPOCHS})": len(records) <= MAX_EPOCHS,
        f"{reached} of the last {LAST_EPOCHS} epochs at {MIN_ACCURACY} % or more": (
            reached == LAST_EPOCHS
        ),
    }
    lines = [
        f"{'held-out' if holdout else 'test'} accuracy {accuracies[-1]:.2f} % at the last epoch, "
        + (f"{mean:.2f} % mean of the last three, " if len(records) >= 3 else "")
        + f"{best:.2f} % best (epoch {accuracies.index(best) + 1})",
        *(f"  {'yes' if met else 'NO':3}  {text}" for text, met in checks.items()),
    ]
    if not holdout:  # held-out images cannot tell
        short = len(records) < LAST_EPOCHS
        why = f", which takes {LAST_EPOCHS} epochs or more," if short else ""
        lines.append(f"The challenge{why} is {'met' if all(checks.values()) else 'not met'}.")
    return "\n".join(lines)


def plot_curves(records: list[EpochRecord], split: str, title: str) -> bytes:
    """Accuracy and loss by epoch, with the learning rate below, as a PNG."""
    from matplotlib.figure import Figure  # here, since its import takes half a second

    run = {key: [record[key] for record in records] for key in records[0]}
    epochs = run["epoch"]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplot_mosaic([["acc", "loss"], ["lr", "lr"]], height_ratios=[3, 1])
    for name, unit in (("acc", "accuracy (%)"), ("loss", "loss")):
        training = {"color": "gray", "marker": ".", "label": "training, augmented"}
        axes[name].plot(epochs, run[f"train_{name}"], **training)
        axes[name].plot(epochs, run[name], color="C0", marker=".", label=split)
        axes[name].set_ylabel(unit)
    axes["acc"].axhline(MIN_ACCURACY, color="C1", linewidth=1, label=f"{MIN_ACCURACY} %")
    # The first epochs lie far below what is to be told apart above.
    lowest = min(*(run["acc"][2:] or run["acc"]), MIN_ACCURACY)
    axes["acc"].set_ylim(lowest - (100 - lowest), 100)
    axes["lr"].plot(epochs, run["lr"], color="C2", marker=".")
    axes["lr"].set(ylabel="learning rate", ylim=(0, None))
    for axis in axes.values():
        axis.set(xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    handles = axes["acc"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(title, x=0.02, ha="left")
    return png(figure)


# --------------------------------------------------------------------------- where it ran


def describe(device: torch.device) -> dict[str, Any]:
    """What a run runs on: hardware, versions, and the commit of this checkout if it is one.

    The commit ends in -dirty where Python files differ from it; documents and records may.
    """
    # A checkout around this folder is another project's: git must not look further up.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}

    def git(*words: str) -> str:
        with contextlib.suppress(OSError):
            settings = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
            return subprocess.run(["git", *words], **settings).stdout.strip()
        return ""

    dirty = "-dirty" if git("status", "--porcelain", "--", "*.py") else ""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it would double the start-up
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": (git("rev-parse", "--short", "HEAD") + dirty) or None,
        "code": zlib.crc32(b"".join(path.read_bytes() for path in sorted(ROOT.glob("*.py")))),
    }


def warn_of_changes(config: dict[str, Any], now: dict[str, Any]) -> None:
    """Say on standard error what differs from where a run began, and may change its result."""
    for key in ("code", "device", "device_name", "threads", "torch"):
        if now[key] != config.get(key):
            change = f"{key} was {config.get(key)} and is {now[key]} now"
            print(f"warning: {change}; the result may differ", file=sys.stderr)
