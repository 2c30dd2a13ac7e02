"""What every script's command line does: options, one-line errors, signals, exit codes.

The options of train.py are here too, and which of them exclude each other. What goes wrong ends in
one line on standard error and an exit code, never in a traceback: 1 where a run failed, 2 for bad
arguments or files, 130 after Ctrl-C, 141 when whoever read the output is gone, 143 after SIGTERM.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO


class UsageError(Exception):
    """What the user gave is wrong; the message is one line and says what to do. Exit code 2."""


class RunError(Exception):
    """The run cannot go on; the message is one line and says what to do. Exit code 1."""


def end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:
    """Show what nothing caught, as Python does, but for Ctrl-C: there is nothing to explain."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def as_typed(*arguments: object) -> str:
    """A command line that calls this Python with `arguments`, to be copied into this very shell.

    Paths are written as they are called from the current folder.
    """
    here, words = Path.cwd(), []
    for word in (Path(sys.executable), *arguments):
        text = str(word)
        if isinstance(word, Path):
            text = str(word.relative_to(here)) if word.is_relative_to(here) else text
            text = f".{os.sep}{text}" if text.startswith("-") else text  # not an option
        words.append(text)
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def end_with_parent() -> None:
    """In a worker process: leave Ctrl-C to its parent, and end when that does, however it ends."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


# From here on, so that Ctrl-C has no traceback while a script that imports this imports torch.
sys.excepthook = end_quietly


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, and tells what was given from what is a default.

    `given` of the result is the set of the names of the options that stood on the command line.
    """

    def __init__(self, prog: str, description: str, **keywords: Any) -> None:
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, formatter_class=style, **keywords)
        self.allow_abbrev = False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        names = [action.dest for action in self._actions]
        not_given = object()  # argparse fills in a default only where there is no value yet
        result = super().parse_args(args, argparse.Namespace(**dict.fromkeys(names, not_given)))
        result.given = {name for name in names if getattr(result, name) is not not_given}
        for name in set(names) - result.given:
            setattr(result, name, self.get_default(name))
        return result


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


def train_arguments(
    description: str, models: list[str], recipes: list[str], data_dir: Path, argv: list[str] | None
) -> argparse.Namespace:
    """The options of train.py with their defaults. Exits with code 2 where they exclude others."""
    parser = train_parser(description, models, recipes, data_dir)
    args = parser.parse_args(argv)
    modes = [name for name in ("resume", "evaluate", "dry_run") if name in args.given]
    barred = {
        "resume": ["evaluate", "dry_run", "out_dir", "tta"],
        "evaluate": ["dry_run", "epochs", "batch_size", "seed", "holdout", "out_dir", "quiet"],
        "dry_run": ["tta"],
    }
    if modes:
        mode = modes[0]
        if args.model == "all" and mode != "dry_run":
            parser.error(f"--model all does not go with --{mode}")
        for name in barred[mode]:
            if name in args.given:
                parser.error(f"--{name} does not go with --{mode}".replace("_", "-"))
    if args.tta and not modes:
        parser.error("--tta goes with --evaluate only")
    return args


def train_parser(description: str, models: list[str], recipes: list[str], data_dir: Path) -> Parser:
    """The options of train.py, each with its default."""
    parser = Parser("train.py", description)
    add, n, where = parser.add_argument, {"metavar": "N"}, {"type": some_path, "metavar": "DIR"}
    add("--model", choices=[*models, "all"], default="model3", help="default: %(default)s")
    add("--recipe", choices=recipes, default="strong", help="default: %(default)s")
    add("--epochs", type=whole_number(1, 1000), help="default: the recipe's", **n)
    add("--batch-size", type=whole_number(2, 9999), help="default: the recipe's", **n)
    seed = "of every random draw (default: %(default)s)"
    add("--seed", type=whole_number(0, 2**32 - 1), default=42, help=seed, **n)
    device = "default: %(default)s, the first of cuda, mps and cpu that is there"
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help=device)
    add("--threads", type=whole_number(1, 1024), help="CPU threads (default: one per core)", **n)
    data = "holds MNIST/raw/*.gz (default: data, beside train.py)"
    add("--data-dir", default=data_dir, help=data, **where)
    out = "holds the run folders (default: %(default)s)"
    add("--out-dir", default=Path("runs"), help=out, **where)
    holdout = "train without the last N training images, and report on them, not on the test set"
    add("--holdout", type=whole_number(0, 50_000), default=0, help=holdout, **n)
    add("--resume", type=some_path, metavar="RUN_FOLDER", help="go on with a run that was stopped")
    evaluate = "test a weights.pt, or a run folder's, and train nothing"
    add("--evaluate", type=some_path, metavar="WEIGHTS", help=evaluate)
    tta = "with --evaluate: the mean guess of nine views of each image (test-time augmentation)"
    add("--tta", action="store_true", help=tta)
    add("--dry-run", action="store_true", help="one batch per epoch; leaves nothing behind")
    add("--quiet", action="store_true", help="print the verdict and the time only")
    return parser


class OutputError(Exception):
    """Standard output cannot be written; its argument is the OSError that says why."""


class Output:
    """Standard output, whose failure can be told from that of any other file."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            raise OutputError(error) from None


def exit_code(
    prog: str, command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace
) -> int:
    """Call `command`, and turn the ways in which it is expected to end into an exit code."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(signum)

    sys.stdout = sys.stdout or io.StringIO()  # where it is closed, as by `>&-`
    sys.stderr = sys.stderr or io.StringIO()
    with contextlib.suppress(AttributeError):  # what is no file has no encoding
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.redirect_stdout(Output(sys.stdout)) as output:
            code = command(args) or 0
            output.flush()  # here, where its failure is dealt with, and not at exit
    except (UsageError, RunError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as interrupt:
        return 143 if interrupt.args else 130
    except OutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it fails again at exit
        if isinstance(error.args[0], BrokenPipeError):  # whoever read it has gone, as `| head`
            return 141
        print(f"{prog}: error: standard output: {error.args[0].strerror}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return code
