"""What surrounds a run: its table and verdict, the files of its folder, the command line's manners.

Nothing here trains. Files are written whole or not at all, and read without trusting them. What
goes wrong ends in one line on standard error and an exit code, never in a traceback.
"""

import argparse
import contextlib
import csv
import ctypes
import io
import itertools
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

MAX_PARAMETERS, MAX_EPOCHS, MIN_ACCURACY, LAST_EPOCHS = 8_000, 15, 99.4, 5  # the challenge


class UsageError(Exception):
    """What the user gave is wrong; the message is one line and says what to do. Exit code 2."""


class RunError(Exception):
    """The run cannot go on; the message is one line and says what to do. Exit code 1."""


# ------------------------------------------------------------------------------ printed

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


def table_row(record: dict[str, Any], split: str) -> str:
    """One epoch as a row under `table_header`."""
    cells = [
        f"{record[key.replace('test', split)]:{len(title.replace('Test', split.title()))}{spec}}"
        for title, key, spec in COLUMNS
    ]
    return f"| {' | '.join(cells)} |"


def verdict(model: nn.Module, records: list[dict[str, Any]], split: str) -> str:
    """Whether the run meets the challenge, line by line. The last epoch is the result."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accuracies = [record[f"{split}_acc"] for record in records]
    last = accuracies[-LAST_EPOCHS:]
    reached = sum(accuracy >= MIN_ACCURACY for accuracy in last)
    checks = {
        f"{parameters:,} parameters (at most {MAX_PARAMETERS:,})": parameters <= MAX_PARAMETERS,
        f"{len(records)} epochs (at most {MAX_EPOCHS})": len(records) <= MAX_EPOCHS,
        f"{reached} of the last {LAST_EPOCHS} epochs at {MIN_ACCURACY} % or more": (
            reached == LAST_EPOCHS
        ),
    }
    lines = [
        f"{'test' if split == 'test' else 'held-out'} accuracy {accuracies[-1]:.2f} % at the last "
        f"epoch, {np.mean(accuracies[-3:]):.2f} % mean of the last three, "
        f"{max(accuracies):.2f} % best (epoch {np.argmax(accuracies) + 1})",
        *(f"  {'yes' if met else 'NO':3}  {text}" for text, met in checks.items()),
    ]
    if split == "test":  # held-out images cannot tell
        lines.append(f"The challenge is {'met' if all(checks.values()) else 'not met'}.")
    return "\n".join(lines)


def plot_curves(records: list[dict[str, Any]], split: str, title: str) -> bytes:
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
    axes["acc"].set(ylabel="accuracy (%)", ylim=(97.5, 100))
    axes["loss"].set(ylabel="loss")
    axes["lr"].plot(column("epoch"), column("lr"), color="C2", marker=".")
    axes["lr"].set(ylabel="learning rate", ylim=(0, None))
    for name, axis in axes.items():
        axis.set(xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        if name != "lr":
            axis.legend(frameon=False)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


# -------------------------------------------------------------------------------- kept


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


def state_bytes(state: dict[str, Any]) -> bytes:
    """A dictionary of tensors, numbers and plain containers, as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(path: Path) -> dict[str, Any]:
    """What `state_bytes` made of it. Runs no code that a file may hold; UsageError if damaged."""
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


def read_config(
    folder: Path, given: dict[str, Any], models: Iterable[str], recipe_type: type
) -> dict[str, Any]:
    """The settings of the unfinished run in `folder`, its recipe as a `recipe_type`.

    Raises UsageError when there is no such run, or when options were `given` that differ from it.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        had = {**config, **config["recipe"], "recipe": config["recipe"]["name"]}
        config["recipe"] = recipe_type(**config["recipe"])
        whole = [had[key] for key in ("epochs", "batch_size", "seed", "holdout", "threads")]
        text = [had[key] for key in ("data_dir", "device")]
        if (
            had["model"] not in models
            or not all(isinstance(value, int) for value in whole)
            or not all(isinstance(value, str) for value in text)
            or had["threads"] < 1
        ):
            raise ValueError
    except OSError as error:
        raise UsageError(f"--resume {folder}: no run to go on with ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"--resume {folder}: its config.json is damaged") from None
    for key in ("model", "recipe", "epochs", "batch_size", "seed", "holdout"):
        if given[key] not in (None, had[key]):
            option = f"--{key.replace('_', '-')}"
            raise UsageError(f"{option} {given[key]}: the run in {folder} has {had[key]}")
    if (folder / "weights.pt").exists():
        raise UsageError(f"--resume {folder}: this run is finished; there is nothing to go on with")
    return config


def warn_of_changes(config: dict[str, Any], now: dict[str, Any]) -> None:
    """Say on standard error what differs from where a run began, and may change its last digits."""
    for key in ("device", "device_name", "threads", "torch"):
        if now[key] != config.get(key):
            change = f"{key} was {config.get(key)} and is {now[key]} now"
            print(f"warning: {change}; the last digits may differ", file=sys.stderr)


def load_checkpoint(path: Path, stateful: dict[str, Any]) -> list[dict[str, Any]]:
    """Bring the parts of a run to the state that `path` holds; the records of its epochs.

    Raises UsageError when the file is damaged or does not fit.
    """
    state = read_state(path)
    try:
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        return [dict(record) for record in state["records"]]
    except Exception:  # a state that does not fit makes load_state_dict raise half a dozen types
        raise UsageError(f"{path} is not of this run, or damaged; begin a new run") from None


def load_weights(
    path: Path, models: dict[str, type[nn.Module]], name: str | None = None
) -> tuple[str, nn.Module]:
    """The one of the `models` that the weights in `path` fit, on the CPU, and its name.

    Raises UsageError when they fit none, or not the one called `name`, or are not all finite.
    """
    state = read_state(path)
    found = {key: getattr(value, "shape", None) for key, value in state.items()}
    for candidate, model_class in models.items():
        model = model_class()
        if found != {key: value.shape for key, value in model.state_dict().items()}:
            continue
        if name not in (None, candidate):
            raise UsageError(f"{path} holds weights of {candidate}, not of {name}")
        if not all(value.isfinite().all() for value in state.values()):
            raise UsageError(f"{path} holds values that are not finite; train again")
        model.load_state_dict(state)
        return candidate, model
    raise UsageError(f"{path} fits none of {', '.join(models)}: it is of another network")


def new_run_folder(out_dir: Path, name: str) -> Path:
    """Make and return a folder that was not there before: out_dir/name, name-2, name-3, ..."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = out_dir / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UsageError(f"--out-dir {out_dir}: {error.strerror}; name another folder") from None


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process alone, and say how to go on when a signal stops it.

    UsageError if another process is at work there. The kernel takes the lock back when a process
    ends, however it ends. Where there are no such locks, as on Windows, nothing is kept away.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            lock = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"--resume {folder}: another process is at work on it") from None
            except OSError:  # a file system without locks
                pass
        try:
            yield
        except KeyboardInterrupt:
            command = f"python train.py --resume {shlex.quote(str(folder))}"
            print(f"\nstopped; to go on: {command}", file=sys.stderr)
            raise


@contextlib.contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Let glibc keep what tensors free until the end; does nothing where there is no glibc.

    By default every large activation is mapped anew, page by page, and given back, at each
    step: a fifth of the training time on a CPU. See mallopt(3) for the two parameters.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 32 << 20)  # bytes: the most that glibc takes
    libc.mallopt(m_trim_threshold, 1 << 30)
    try:
        yield
    finally:
        libc.malloc_trim(0)


def describe(device: torch.device) -> dict[str, Any]:
    """What a run ran on: hardware, versions, and the commit of this checkout if it is one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = None
    with contextlib.suppress(OSError):
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
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


def metrics_csv(records: list[dict[str, Any]], split: str) -> bytes:
    """Content of metrics.csv: a row an epoch, in full precision."""
    fields = [key.replace("test", split) for _, key, _ in COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


# ------------------------------------------------------------------------ command line


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`, for argparse."""

    def parse(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,12}", text) and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def some_path(text: str) -> Path:
    """A path, for argparse; an empty one, which an unset variable leaves, would mean "here"."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


TRAIN_EPILOG = """examples:
  python train.py                                  model3 with seed 42
  python train.py --model all --seed 7             the three attempts, one after the other
  python train.py --resume runs/model3-strong-seed42
  python train.py --evaluate weights/model3.pt

Each run has a folder of its own: config.json, metrics.csv (a row an epoch), checkpoint.pt (what
a resume needs), weights.pt (the last epoch's) and curves.png.
Exit codes: 0 done, 1 the run failed, 2 bad arguments or files, 130 Ctrl-C, 143 SIGTERM."""


def train_parser(models: Iterable[str], recipes: Iterable[str], default_recipe: str) -> Parser:
    """The command line of train.py. What was not given is None, so that a resume can tell."""
    parser = Parser(
        prog="train.py",
        description="Train a network of at most 8,000 parameters on MNIST, in at most 15 epochs.",
        epilog=TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    n, folder = {"metavar": "N"}, {"type": some_path, "metavar": "DIR"}
    add = parser.add_argument
    add("--model", choices=[*models, "all"], help="the network (default: model3)")
    add("--recipe", choices=[*recipes], help=f"how it is trained (default: {default_recipe})")
    add("--epochs", type=whole_number(1, 1000), help="passes over the images (default: 15)", **n)
    add(
        "--batch-size",
        type=whole_number(2, 9999),
        help="images a step (default: the recipe's)",
        **n,
    )
    add("--seed", type=whole_number(0, 2**32 - 1), help="of every random draw (default: 42)", **n)
    add(
        "--device", choices=["auto", "cuda", "mps", "cpu"], help="default: auto, the first there is"
    )
    add("--threads", type=whole_number(1, 1024), help="CPU threads (default: one a core)", **n)
    add("--data-dir", help="holds MNIST/raw/*.gz (default: data)", **folder)
    add("--out-dir", help="holds the run folders (default: runs)", **folder)
    add(
        "--holdout",
        type=whole_number(0, 50_000),
        help="do not train on the last N training images, and report on them, not on the test set",
        **n,
    )
    add("--resume", type=some_path, metavar="RUN_FOLDER", help="go on with a run that was stopped")
    add(
        "--evaluate", type=some_path, metavar="WEIGHTS", help="test a weights.pt, and train nothing"
    )
    add("--dry-run", action="store_true", help="one batch an epoch; leaves nothing behind")
    add("--quiet", action="store_true", help="print the verdict only")
    return parser


def train_arguments(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """What `train_parser` makes of `argv`. Exits with code 2 where options exclude each other."""
    args = parser.parse_args(argv)
    modes = {"--resume": args.resume, "--evaluate": args.evaluate, "--dry-run": args.dry_run}
    modes = [option for option, given in modes.items() if given]
    if len(modes) > 1:
        parser.error(f"{modes[0]} and {modes[1]} exclude each other")
    if args.model == "all" and (args.resume or args.evaluate):
        parser.error(f"--model all does not go with {modes[0]}")
    given_for_nothing = ["out_dir"] if args.resume else []
    if args.evaluate:
        given_for_nothing = ["epochs", "batch_size", "seed", "holdout", "out_dir"]
    for key in given_for_nothing:
        if getattr(args, key) is not None:
            parser.error(f"--{key.replace('_', '-')} does not go with {modes[0]}")
    return args


def exit_code(command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Call `command`, and turn the ways in which it is expected to end into an exit code."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = command(args) or 0
        sys.stdout.flush()  # here, where its failure is dealt with, and not at exit
    except (UsageError, RunError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as interrupt:
        return 143 if interrupt.args else 130
    except OSError as error:  # of standard output: all others are dealt with where they arise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it fails again at exit
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone, as `| head`
            return 141
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return code
