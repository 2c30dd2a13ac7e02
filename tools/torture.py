"""Kill a run again and again, resume it each time, and show that nothing is lost by it.

    python -m tools.torture --kills 20

Two runs with the same settings, on one thread of the CPU, in epochs of a few hundred images: one
is left alone, the other is killed by SIGKILL at random moments and resumed until it is done.
Then their weights.pt are compared byte by byte and their metrics.csv row by row, in all columns
but the seconds. Exit code 1 if anything differs. Needs Linux or macOS: Windows has no SIGKILL.
"""

import argparse
import contextlib
import csv
import io
import itertools
import multiprocessing
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, MutableSequence
from pathlib import Path

import run_folder
import train
from command_line import Parser, RunError, UsageError, exit_code, whole_number

IMAGES = 512  # of the training set and of the test set
PHASES = {  # what a kill can fall into: the function, and where it is looked up
    "training": (train, "train_one_epoch"),
    "evaluation": (train, "evaluate"),
    "writing": (run_folder, "write_atomically"),
}
ELSEWHERE = "start or between"


def shorten_epochs() -> None:
    """Let `train` find only the first IMAGES images of each set."""
    load = train.load_mnist
    train.load_mnist = lambda *args, **kwargs: tuple(x[:IMAGES] for x in load(*args, **kwargs))


def child(argv: list[str], progress: MutableSequence[int]) -> None:
    """Be `train.py argv`, keeping in `progress` the number of phases begun and the one at work."""

    def announced(phase: int, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            progress[:] = progress[0] + 1, phase
            result = function(*args, **kwargs)
            progress[1] = 0
            return result

        return call

    for phase, (module, name) in enumerate(PHASES.values(), start=1):
        setattr(module, name, announced(phase, getattr(module, name)))
    train.tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a kill leaves behind
    shorten_epochs()
    with contextlib.redirect_stdout(io.StringIO()):
        sys.exit(train.main(argv))


def train_until_done(
    out_dir: Path, settings: list[str], kills: int, moments: random.Random
) -> tuple[Path, Counter[str]]:
    """Start one run under `out_dir`, kill it up to `kills` times, resume it until it is done.

    Returns its folder, and how many kills fell into each phase. RunError if it fails by itself.
    """
    # Children of a server that has imported torch begin at once, and inherit nothing else from it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train"])
    fallen: Counter[str] = Counter()
    while True:
        # Killed before its config.json was there, a run cannot be resumed: it starts anew.
        folder = next((config.parent for config in out_dir.glob("*/config.json")), None)
        if folder is not None and (folder / "weights.pt").exists():
            return folder, fallen
        argv = ["--resume", str(folder)] if folder else [*settings, "--out-dir", str(out_dir)]
        progress = context.RawArray("i", 2)
        process = context.Process(target=child, args=([*argv, "--threads", "1"], progress))
        process.start()
        if fallen.total() < kills:
            # An epoch has four phases, which last from a millisecond to a few tenths of a second.
            phases, seconds = moments.randrange(7), 10 ** moments.uniform(-3.5, -0.5)
            while process.is_alive() and progress[0] < phases:
                time.sleep(0.0002)
            time.sleep(seconds)
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            fallen[[ELSEWHERE, *PHASES][progress[1]]] += 1
        elif process.exitcode:
            raise RunError(f"train.py {' '.join(argv)} ended with exit code {process.exitcode}")


def differences(undisturbed: Path, killed: Path) -> list[str]:
    """How the second run folder differs from the first one, apart from the seconds."""
    found = []
    names = [sorted(path.name for path in folder.iterdir()) for folder in (undisturbed, killed)]
    if names[0] != names[1]:
        found.append(f"files: {', '.join(names[0])} / {', '.join(names[1])}")
    weights = [(folder / "weights.pt").read_bytes() for folder in (undisturbed, killed)]
    if weights[0] != weights[1]:
        found.append("weights.pt")
    tables = [
        [row | {"seconds": ""} for row in csv.DictReader((folder / "metrics.csv").open())]
        for folder in (undisturbed, killed)
    ]
    for number, rows in enumerate(itertools.zip_longest(*tables), start=1):
        if rows[0] != rows[1]:
            found.append(f"metrics.csv from row {number} on")
            break
    return found


def torture(args: argparse.Namespace) -> None:
    """Do both runs and compare them; RunError if they differ."""
    if not hasattr(signal, "SIGKILL"):
        raise UsageError("there is no SIGKILL on Windows; use Linux or macOS")
    epochs = max(5, args.kills)  # a resumed run rarely gets further than one epoch
    settings = ["--device", "cpu", "--epochs", str(epochs), "--seed", str(args.seed)]
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        undisturbed, _ = train_until_done(Path(first), settings, 0, moments)
        killed, fallen = train_until_done(Path(second), settings, args.kills, moments)
        found = differences(undisturbed, killed)
    where = ", ".join(f"{count} in {phase}" for phase, count in fallen.most_common())
    print(f"{epochs} epochs, killed {fallen.total()} times ({where})")
    print(f"weights and all rows of metrics.csv identical: {'no' if found else 'yes'}")
    if found:
        raise RunError(f"the killed run differs in {'; '.join(found)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.torture"
    parser = Parser(prog, __doc__)
    add, n = parser.add_argument, {"metavar": "N"}
    add("--kills", type=whole_number(1, 1000), default=20, help="default: %(default)s", **n)
    moments = "of the runs and of the moments (default: %(default)s)"
    add("--seed", type=whole_number(0, 2**32 - 1), default=42, help=moments, **n)
    return exit_code(prog, torture, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
