"""What every script shares: its parser, one-line errors, and exit codes."""

import argparse
import contextlib
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class UsageError(Exception):
    """Bad arguments or files: one line that says what is wrong and what to do. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; handled like Ctrl-C."""


class RunError(Exception):
    """The run cannot continue: one line that says why and what to do. Exit code 1."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with one-line errors, whose --help keeps the lines of the docstring."""

    def __init__(self, prog: str, description: str | None, **options: Any) -> None:
        with contextlib.suppress(AttributeError):  # notebook streams have no reconfigure()
            for stream in (sys.stdout, sys.stderr):  # replace what the encoding lacks
                stream.reconfigure(errors="replace")
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog, None, description, formatter_class=style, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Returns an argparse type: integers from `low` to `high`."""

    def parse(text: str) -> int:
        if not (text.isdecimal() and len(text) < 12 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def exit_code(prog: str, command: Callable[..., int | None], *arguments: Any) -> int:
    """Calls `command` and returns an exit code: 0, 1 or 2 for errors, 130 or 143 for signals."""

    def stop(signum: int, frame: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when `| head` has read enough
    try:
        return command(*arguments) or 0
    except (UsageError, RunError) as error:
        if error.__cause__:  # an error in a model file
            traceback.print_exception(error.__cause__)
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # a path that was given and cannot be used
        print(f"{prog}: error: {error}; choose another path", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # a package that only some tools need
        what = f"{error.name} is not installed; run pip install -r requirements-dev.txt"
        print(f"{prog}: error: {what}", file=sys.stderr)
        return 2
    except Terminated:
        return 143
    except KeyboardInterrupt:
        return 130
