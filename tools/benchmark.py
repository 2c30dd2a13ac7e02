"""Time an epoch as this repository trains it beside the usual way, each alone on the machine.

    python -m tools.benchmark                             # model3, strong and classic
    python -m tools.benchmark --images 2000 --rounds 1    # a trial, of which no record is kept
    python -m tools.benchmark --rounds 0                  # no timing: the README's table anew

The same network learns by the same recipe, round after round (the loops are in tools/ways.py):

    usual way           of most tutorials, with the workers and threads that were fastest here
    this repository     Loader and train_one_epoch
    seeds at once       the same on a CPU, one single-threaded process per core, as tools.seed_study
                        has them: the time of all over their number
    arithmetic alone    Learner.step on one batch that stays where it is: the practical floor
    floor               3 x 2 x the multiply-adds of convolutions and linear layers (two operations
                        each, and backward twice forward), at the rate of the fastest of ten large
                        float32 matrix products on as many threads

Each has a process that is started, warmed up, timed and ended before that of the next starts:
others in memory, though they only wait, were seen to slow the usual way down.
All but the usual way keep what glibc frees. Times on fewer images are scaled to 60,000.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from command_line import Parser, RunError, end_with_parent, exit_code, whole_number
from run_folder import MODELS, describe, reuse_freed_memory, write_atomically
from tools import ways
from tools.ways import ALL_IMAGES, ARITHMETIC, EVALUATION, OURS, USUAL, Job
from train import RECIPES, select_device

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "benchmark"  # a record for each kind of machine
TRIAL_IMAGES, WARM_UP_IMAGES = 10_000, 2_000
AT_ONCE, FLOOR, RUN = "seeds at once", "floor", "train.py, 1 epoch"
IN_README = (f"{USUAL} (s)", f"{OURS} (s)", f"{AT_ONCE} (s)", f"{USUAL} / {OURS}")
IN_README += (f"peak memory, {RUN} (MB)",)
Measurement = dict[str, float]  # "seconds", peak "MB" and, where there is one, "MB on the GPU"


# -------------------------------------------------------- in a process that ends afterwards


def time_epoch(way: str, job: Job) -> float:
    """Warm up, wait for those that are to start together, and time an epoch."""
    torch.set_num_threads(job.threads)
    with contextlib.nullcontext() if way == USUAL else reuse_freed_memory():
        epoch = ways.BUILD[way](job)
        epoch(WARM_UP_IMAGES)
        together.wait()
        return ways.timed(lambda: epoch(job.images), job.device) * ALL_IMAGES / job.images


def time_python(*arguments: str) -> float:
    """Seconds from the start of Python with these arguments to its end."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise RunError(f"{' '.join(arguments)} failed; what it said is above")
        return time.perf_counter() - start


def with_memory(action: Callable[..., float], *arguments: Any) -> Measurement:
    """What `action` timed, and the most memory that this process had, or any child of it."""
    found = {"seconds": action(*arguments)}
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        users = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        peak = max(resource.getrusage(user).ru_maxrss for user in users)
        found["MB"] = peak / (1e6 if sys.platform == "darwin" else 1e3)
    if torch.cuda.is_initialized():
        found["MB on the GPU"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def begin(barrier: Any) -> None:
    """Wait at `barrier` for those that start together, and end when the benchmark does."""
    global together
    together = barrier
    end_with_parent()


# ----------------------------------------------------------------------------- measuring


def alone(action: Callable[..., float], *arguments: Any, copies: int = 1) -> Measurement:
    """What `with_memory` finds in a process of its own; or in the slowest of several, a copy."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(copies, timeout=600)
    with ProcessPoolExecutor(copies, context, begin, (barrier,)) as pool:
        try:
            jobs = [pool.submit(with_memory, action, *arguments) for _ in range(copies)]
            found = max((job.result() for job in jobs), key=lambda found: found["seconds"])
        except BrokenProcessPool:
            raise RunError("a process was killed; is there memory enough?") from None
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return found | {"seconds": found["seconds"] / copies}


def measure(job: Job, rounds: int) -> dict[str, Any]:
    """All that is known of a network and a recipe on this machine, raw, round by round."""
    trials = []
    for workers in (0, 1, 2, 4):  # with the cores that they take, and without
        for threads in sorted({job.threads, max(1, job.threads - workers)}):
            setting = {"workers": workers, "threads": threads}
            trial = replace(job, images=min(job.images, TRIAL_IMAGES), **setting)
            trials.append(setting | alone(time_epoch, USUAL, trial))
    best = min(trials, key=lambda trial: trial["seconds"])
    command = [str(ROOT / "train.py"), "--model", job.model, "--recipe", job.recipe.name]
    command += ["--device", job.device.type, "--epochs", "1", "--quiet"]
    actions: dict[str, tuple] = {
        USUAL: (time_epoch, USUAL, replace(job, workers=best["workers"], threads=best["threads"])),
        OURS: (time_epoch, OURS, job),
        AT_ONCE: (time_epoch, OURS, replace(job, threads=1)),
        ARITHMETIC: (time_epoch, ARITHMETIC, job),
        FLOOR: (ways.time_floor, job),
        EVALUATION: (time_epoch, EVALUATION, job),
        "import of torch": (time_python, "-c", "import torch"),
        "train.py, 1 step": (time_python, *command, "--dry-run"),
        RUN: (time_python, *command),
    }
    if job.device.type != "cpu":
        del actions[AT_ONCE]
    if job.images < ALL_IMAGES:
        del actions[RUN]  # which always takes all
    measured: dict[str, list[Measurement]] = {name: [] for name in actions}
    for number in range(1, rounds + 1):
        for name, action in actions.items():
            copies = (os.cpu_count() or 1) if name == AT_ONCE else 1
            measured[name].append(alone(*action, copies=copies))
            print(f"round {number}, {name}: {measured[name][-1]['seconds']:.2f} s", file=sys.stderr)
    found = describe(job.device) | {"model": job.model, "recipe": job.recipe.name}
    accelerator = job.device.type.upper() if job.device.type != "cpu" else None
    names = [found["device_name"] or accelerator, processor(), f"{job.threads} threads"]
    found |= {"machine": ", ".join(filter(None, names)), "flop": ways.epoch_flop(job.model)}
    return found | {"best": best, "trials": trials, "measured": measured}


def processor() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if "model name" in line).partition(":")[2].strip()
    return platform.processor() or platform.machine()


# --------------------------------------------------------------------- records and table


def keep(run: dict[str, Any], folder: Path) -> None:
    """Put a measurement into the record of its machine, in place of an earlier one like it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub('[^a-z0-9]+', '-', run['machine'].lower())}.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    runs[f"{run['model']}, {run['recipe']}"] = run
    write_atomically(path, json.dumps(runs, indent=1).encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """All measurements on record; `summary` says it in the README."""
    paths = sorted(folder.glob("*.json"))
    return [run for path in paths for run in json.loads(path.read_text()).values()]


def values(run: dict[str, Any], name: str, key: str = "seconds") -> list[float]:
    """One figure per round; none where it was not measured."""
    return [found[key] for found in run["measured"].get(name, []) if key in found]


def ratios(run: dict[str, Any], above: str, below: str) -> list[float]:
    """Seconds of one way over those of another, round by round."""
    return [a / b for a, b in zip(values(run, above), values(run, below))]


def spread(found: list[float]) -> str:
    """Median and range."""
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "-"


def figures(runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """All that was measured: by name, a cell for each run."""
    best = ["{workers}, {threads}".format(**run["best"]) for run in runs]
    rows = {f"workers, threads of the {USUAL}": best}
    for name in dict.fromkeys(name for run in runs for name in run["measured"]):
        rows[f"{name} (s)"] = [spread(values(run, name)) for run in runs]
    for above, below in [(USUAL, OURS), (OURS, AT_ONCE), (OURS, ARITHMETIC), (OURS, FLOOR)]:
        rows[f"{above} / {below}"] = [spread(ratios(run, above, below)) for run in runs]
    for name, unit in [(USUAL, "MB"), (OURS, "MB"), (RUN, "MB"), (OURS, "MB on the GPU")]:
        peaks = [max(values(run, name, unit), default=None) for run in runs]
        cells = ["-" if peak is None else f"{peak:,.0f}" for peak in peaks]
        rows[f"peak memory, {name} ({unit})"] = cells
    return {name: cells for name, cells in rows.items() if set(cells) != {"-"}}


def table(runs: list[dict[str, Any]], names: Collection[str]) -> str:
    """A column for each run, and of `figures` those that are in `names`."""
    from tools.records import markdown_table  # here: scipy would count in every way's memory

    titles = [f"{run['machine']}: {run['model']}, {run['recipe']}" for run in runs]
    rows = [[name, *cells] for name, cells in figures(runs).items() if name in names]
    return markdown_table(["median (range)", *titles], rows)


def summary(runs: list[dict[str, Any]], names: Collection[str] = IN_README) -> str:
    """The range of the ratio in a sentence, and a table: what the README says."""
    if not runs:
        return "Not measured yet."
    kinds: dict[str, list[float]] = {}
    for run in runs:
        kinds.setdefault(f"{run['model']}, {run['recipe']}", []).extend(ratios(run, USUAL, OURS))
    claims = [
        f"{min(found):.2f} to {max(found):.2f} times as long ({kind}; n = {len(found)})"
        for kind, found in kinds.items()
    ]
    machines = len({run["machine"] for run in runs})
    return (
        f"An epoch the usual way takes {', '.join(claims)} as with this repository, on {machines} "
        f"kind{'s' * (machines > 1)} of machine.\n\n{table(runs, names)}"
    )


def document(runs: list[dict[str, Any]]) -> str:
    """README.md of the records: what each way is, and every figure."""
    explained = __doc__[__doc__.index("The same network") :]
    return f"# Every figure of the benchmark\n\n{explained}\n{table(runs, figures(runs))}\n"


# -------------------------------------------------------------------------- command line


def benchmark(args: argparse.Namespace) -> None:
    """Measure, print the table, and keep what is of all images."""
    device, runs = select_device(args.device), []
    if args.rounds:
        for name in [args.recipe] if args.recipe else ["strong", "classic"]:
            job = Job(args.model, RECIPES[name], device, args.images, torch.get_num_threads())
            runs.append(measure(job, args.rounds))
            if args.images == ALL_IMAGES:
                keep(runs[-1], FOLDER)
    if args.images == ALL_IMAGES:
        from tools.records import update_readme

        runs = read(FOLDER)
        update_readme(lambda: {"benchmark": summary(runs)})
        if runs:
            write_atomically(FOLDER / "README.md", document(runs).encode())
    print(summary(runs, figures(runs)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.benchmark"
    parser = Parser(prog, __doc__)
    add = parser.add_argument
    add("--model", choices=list(MODELS), default="model3", help="default: %(default)s")
    add("--recipe", choices=[*RECIPES], help="default: strong, then classic")
    devices = ["auto", "cuda", "mps", "cpu"]
    add("--device", choices=devices, default="auto", help="default: %(default)s")
    add("--rounds", type=whole_number(0, 100), default=3, help="default: %(default)s")
    images = whole_number(1000, ALL_IMAGES)
    add("--images", type=images, default=ALL_IMAGES, help="default: %(default)s, all of them")
    return exit_code(prog, benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
