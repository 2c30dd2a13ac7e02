"""What a run prints and leaves behind, and how it is resumed.

    config.json      its settings, and what it ran on
    metrics.csv      a row per epoch
    checkpoint.pt    all that a resume needs
    curves.png       and, once it is finished,
    weights.pt       the weights after the last epoch, or their average

Files are written whole or not at all, and read without trusting them. The models by name and the
limits of the challenge stand here as well: what reads a run needs both, and not the trainer.
"""

import ast
import contextlib
import csv
import ctypes
import functools
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from command_line import RunError, UsageError, as_typed
from model1 import Model_1
from model2 import Model_2
from model3 import Model_3
from model4 import Model_4

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

MODELS = {"model1": Model_1, "model2": Model_2, "model3": Model_3, "model4": Model_4}
MAX_PARAMETERS, MAX_EPOCHS, MIN_ACCURACY, LAST_EPOCHS = 8_000, 15, 99.4, 5  # the challenge
EpochRecord = dict[str, Any]  # what is known of one epoch: a row of metrics.csv


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


def weights_file(path: Path) -> Path:
    """`path`, or weights.pt in it where it is the folder of a run."""
    with contextlib.suppress(OSError):  # whoever reads it reports this
        return path / "weights.pt" if path.is_dir() else path
    return path


def load_weights(path: Path, name: str | None = None) -> tuple[str, nn.Module]:
    """The network that the weights in `path` fit, on the CPU, after its name.

    `path` may be the folder of a run. Raises UsageError when they fit none, or not the one called
    `name`, or are not all finite.
    """
    path = weights_file(path)
    state = read_state(path)
    found = {key: getattr(value, "shape", None) for key, value in state.items()}
    for candidate, model_class in MODELS.items():
        model = model_class()
        if found != {key: value.shape for key, value in model.state_dict().items()}:
            continue
        if name not in (None, candidate):
            raise UsageError(f"{path} holds weights of {candidate}, not of {name}")
        if not all(value.isfinite().all() for value in state.values()):
            raise UsageError(f"{path} holds values that are not finite; train again")
        model.load_state_dict(state)
        return candidate, model
    raise UsageError(f"{path} fits none of {', '.join(MODELS)}: it is of another network")


# --------------------------------------------------------------------------------- folder


def run_name(model: str, recipe: str, seed: int) -> str:
    """What a run, its folder and its record are called."""
    return f"{model}-{recipe}-seed{seed}"


def new_run_folder(out_dir: Path, name: str, config: dict[str, Any]) -> Path:
    """Make and return out_dir/name, or name-2, name-3, ..., the first that was not there before.

    It has its config.json from the beginning: what cannot be taken up again leaves nothing.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = out_dir / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise UsageError(f"--out-dir {out_dir}: {error.strerror}; name another folder") from None
    try:
        write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def read_config(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of the unfinished run in `folder`.

    Raises UsageError when there is no such run, or when options were `given` that differ from it.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        had = {**config, **config["recipe"], "recipe": config["recipe"]["name"]}
        counts = {"epochs": (1, 1000), "batch_size": (1, 9999), "threads": (1, 1e6)}
        counts |= {"seed": (0, 2**32 - 1), "holdout": (0, 50_000)}
        text = ["model", "recipe", "interpolation", "data_dir", "device"]
        numbers = config["recipe"].keys() - {"name", "interpolation"}
        parts = dict.fromkeys(("momentum", "pct_start", "label_smoothing", "ema_decay"), 1)
        if (
            not all(
                isinstance(had[key], int) and a <= had[key] <= b for key, (a, b) in counts.items()
            )
            or not all(isinstance(had[key], str) for key in text)
            or not all(isinstance(had[key], int | float) for key in numbers)
            or not all(0 <= had[key] <= parts.get(key, 1e6) for key in numbers)
            or not had["momentum"] * had["div_factor"] * had["final_div_factor"] > 0
            or had["interpolation"] not in ("nearest", "bilinear")
        ):
            raise ValueError
    except OSError as error:
        raise UsageError(f"--resume {folder}: no run to go on with ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UsageError(f"--resume {folder}: its config.json is damaged") from None
    if had["model"] not in MODELS:
        raise UsageError(
            f"--resume {folder}: a run of another version, with {had['model']}; begin a new run"
        )
    for key in ("model", "recipe", "epochs", "batch_size", "seed", "holdout"):
        if key in given and given[key] != had[key]:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(f"{option} {given[key]}: the run in {folder} has {had[key]}")
    if (folder / "weights.pt").exists():
        raise UsageError(f"--resume {folder}: this run is finished; there is nothing to go on with")
    return config


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process alone, and say how to go on when a signal stops it."""
    with lock(folder, wait=False):
        try:
            yield
        except KeyboardInterrupt:
            command = as_typed(Path(__file__).resolve().with_name("train.py"), "--resume", folder)
            print(f"\nstopped; to go on: {command}", file=sys.stderr)
            raise


@contextlib.contextmanager
def lock(folder: Path, wait: bool) -> Iterator[None]:
    """Keep a folder for this process alone; UsageError if it is another's and we do not `wait`.

    The kernel takes the lock back when a process ends, however it ends. Where there are no such
    locks, as on Windows, nothing is kept away.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UsageError(f"--resume {folder}: another process is at work on it") from None
            except OSError:  # a file system without locks
                pass
        yield


# --------------------------------------------------------------------------------- epochs

COLUMNS = (  # title, key in a record, format; "Test" is "Val" where a hold-out is reported
    ("Epoch", "epoch", "d"),
    ("Train Acc (%)", "train_acc", ".2f"),
    ("    LR", "lr", ".4f"),
    ("Test Loss", "test_loss", ".4f"),
    ("Test Acc (%)", "test_acc", ".2f"),
    ("Time (s)", "seconds", ".1f"),
)


def table_header(split: str) -> str:
    """The two lines above the rows of the Markdown table; `split` is "test" or "val"."""
    titles = [title.replace("Test", split.title()) for title, _, _ in COLUMNS]
    return f"| {' | '.join(titles)} |\n| {' | '.join('-' * (len(t) - 1) + ':' for t in titles)} |"


def table_row(record: EpochRecord, split: str) -> str:
    """One epoch as a row under `table_header`."""
    cells = [
        f"{record[key.replace('test', split)]:{len(title.replace('Test', split.title()))}{spec}}"
        for title, key, spec in COLUMNS
    ]
    return f"| {' | '.join(cells)} |"


def count_parameters(model: nn.Module) -> int:
    """The number of a network's parameters; statistics of BatchNorm are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def verdict(model: nn.Module, records: list[EpochRecord], split: str) -> str:
    """Whether the run meets the challenge, line by line. The last epoch is the result."""
    parameters = count_parameters(model)
    accuracies = [record[f"{split}_acc"] for record in records]
    reached = sum(accuracy >= MIN_ACCURACY for accuracy in accuracies[-LAST_EPOCHS:])
    checks = {
        f"{parameters:,} parameters (at most {MAX_PARAMETERS:,})": parameters <= MAX_PARAMETERS,
        f"{len(records)} epochs (at most {MAX_EPOCHS})": len(records) <= MAX_EPOCHS,
        f"{reached} of the last {LAST_EPOCHS} epochs at {MIN_ACCURACY} % or more": (
            reached == LAST_EPOCHS
        ),
    }
    mean = f"{np.mean(accuracies[-3:]):.2f} % mean of the last three, "
    lines = [
        f"{'test' if split == 'test' else 'held-out'} accuracy {accuracies[-1]:.2f} % at the last "
        f"epoch, {mean if len(accuracies) >= 3 else ''}"
        f"{max(accuracies):.2f} % best (epoch {np.argmax(accuracies) + 1})",
        *(f"  {'yes' if met else 'NO':3}  {text}" for text, met in checks.items()),
    ]
    if split == "test":  # held-out images cannot tell
        short = len(records) < LAST_EPOCHS
        why = f", which takes {LAST_EPOCHS} epochs or more," if short else ""
        lines.append(f"The challenge{why} is {'met' if all(checks.values()) else 'not met'}.")
    return "\n".join(lines)


def save_epoch(folder: Path, records: list[EpochRecord], learner: Any) -> None:
    """Write metrics.csv and then the checkpoint, so that each epoch that it has done has a row."""
    write_atomically(folder / "metrics.csv", csv_bytes(records))
    write_state(folder / "checkpoint.pt", {**learner.state_dict(), "records": records})


def load_checkpoint(folder: Path, learner: Any) -> list[EpochRecord]:
    """Bring `learner` to where the run in `folder` stopped; the records of its epochs until then.

    Raises UsageError when the checkpoint is damaged or does not fit.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():  # stopped in its first epoch
        return []
    state = read_state(path)
    schedule, total_steps = learner.scheduler, learner.scheduler.total_steps
    try:
        learner.load_state_dict(state)
        records = [dict(record) for record in state["records"]]
        # load_state_dict takes the schedule of another run, and a momentum of any shape.
        if (
            schedule.total_steps != total_steps
            or schedule.last_epoch * learner.recipe.epochs != len(records) * total_steps
            or [record["epoch"] for record in records] != list(range(1, len(records) + 1))
            or not all(math.isfinite(value) for record in records for value in record.values())
            or any(
                values["momentum_buffer"].shape != parameter.shape
                for parameter, values in learner.optimizer.state.items()
            )
        ):
            raise ValueError
        return records
    except Exception:  # a state that does not fit makes load_state_dict raise half a dozen types
        raise UsageError(f"{path} is not of this run, or damaged; begin a new run") from None


def csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Rows under their common keys, in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def plot_curves(records: list[EpochRecord], split: str, title: str) -> bytes:
    """Accuracy and loss by epoch, with the learning rate below, as a PNG."""
    from matplotlib.figure import Figure  # here, since its import takes half a second

    def column(key: str) -> list[float]:
        return [record[key] for record in records]

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplot_mosaic([["acc", "loss"], ["lr", "lr"]], height_ratios=[3, 1])
    for part, label, color in (("train", "training, augmented", "gray"), (split, split, "C0")):
        for name in ("acc", "loss"):
            values = column(f"{part}_{name}")
            axes[name].plot(column("epoch"), values, color=color, marker=".", label=label)
    axes["acc"].axhline(MIN_ACCURACY, color="C1", linewidth=1, label=f"{MIN_ACCURACY} %")
    # The first epochs lie far below what is to be told apart above.
    accuracy = column(f"{split}_acc")
    lowest = min(*(accuracy[2:] or accuracy), MIN_ACCURACY)
    axes["acc"].set(ylabel="accuracy (%)", ylim=(lowest - (100 - lowest), 100))
    axes["loss"].set(ylabel="loss")
    axes["lr"].plot(column("epoch"), column("lr"), color="C2", marker=".")
    axes["lr"].set(ylabel="learning rate", ylim=(0, None))
    for axis in axes.values():
        axis.set(xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes["acc"].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False
    )
    figure.suptitle(title, x=0.02, ha="left")
    return png(figure)


def png(figure: Any) -> bytes:
    """A figure of matplotlib as a PNG, with 120 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


# --------------------------------------------------------------------------- where it ran


def fingerprint(*parts: object) -> str:
    """Twelve hex digits of the source of modules, classes and functions, or of text that is code.

    Comments and docstrings do not count.
    """
    digest = hashlib.sha256()
    for part in parts:
        source = part if isinstance(part, str) else inspect.getsource(part)
        tree = ast.parse(textwrap.dedent(source))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                text = body[0].value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    body[0] = ast.Pass()  # a docstring
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:12]


def describe(device: torch.device) -> dict[str, Any]:
    """What a run ran on: hardware, versions, and the commit of this checkout if it is one.

    The commit ends in -dirty where code has changed since; documents and records may.
    """
    root, commit = Path(__file__).resolve().parent, None
    # A checkout around this folder is another project's: git must not look further up.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    run = functools.partial(
        subprocess.run, cwd=root, env=environment, capture_output=True, text=True
    )
    with contextlib.suppress(OSError):
        commit = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() or None
        if commit and run(["git", "diff", "--quiet", "HEAD", "--", "*.py"]).returncode:
            commit += "-dirty"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it would double the start-up
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit,
    }


def warn_of_changes(config: dict[str, Any], now: dict[str, Any]) -> None:
    """Say on standard error what differs from where a run began, and may change its result."""
    for key in ("code", "device", "device_name", "threads", "torch"):
        if now[key] != config.get(key):
            change = f"{key} was {config.get(key)} and is {now[key]} now"
            print(f"warning: {change}; the result may differ", file=sys.stderr)


@contextlib.contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Let glibc keep what tensors free until the end; does nothing where there is no glibc.

    By default every large activation is mapped anew, page by page, and given back, at each
    step: up to half of the training time on a CPU (results/measurements.md). See mallopt(3) for
    the parameters.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold, default = -1, -3, 128 << 10
    libc.mallopt(m_mmap_threshold, 32 << 20)  # bytes: the most that glibc takes
    libc.mallopt(m_trim_threshold, 1 << 30)
    try:
        yield
    finally:
        libc.mallopt(m_mmap_threshold, default)
        libc.mallopt(m_trim_threshold, default)
        libc.malloc_trim(0)
