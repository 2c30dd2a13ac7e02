"""How every script takes its options and ends: one line on standard error, and an exit code."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def one_line(text: str) -> str:
    """Text with what cannot be printed, such as a line break in a file's name, as an escape."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class OneLineError(Exception):
    """Its text is one line, whatever the name of a file holds."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(OneLineError):
    """What the user gave is wrong; the message is one line and says what to do. Exit code 2."""


class RunError(OneLineError):
    """The run cannot go on; the message is one line and says what to do. Exit code 1."""


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is reported in one line, and --help keeps the docstring's lines."""

    def __init__(self, prog: str, description: str | None) -> None:
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, formatter_class=style, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {UsageError(message)}\n")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`, for argparse."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and len(text) < 12 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def regular_file(path: Path) -> Path:
    """The path; UsageError where it is a pipe or a device, which may never end."""
    with contextlib.suppress(OSError):  # whoever opens it reports that
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is a pipe or a device; name a file")
    return path


def exit_code(prog: str, command: Callable[..., int | None], *arguments: Any) -> int:
    """Call `command`: 0 or what it returns, 1 or 2 for errors, 130 for Ctrl-C, 143 for SIGTERM."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(signum)

    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when `| head` has read enough
    try:
        return command(*arguments) or 0
    except (UsageError, RunError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # of a place that was named and cannot be used
        print(f"{prog}: error: {UsageError(error)}; name another place", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # a package that only some tools need
        what = f"{error.name} is not installed; run pip install -r requirements-dev.txt"
        print(f"{prog}: error: {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return 143 if interrupt.args else 130
