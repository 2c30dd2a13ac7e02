"""Train many runs, one single-threaded process per core, and keep the record of each.

    python -m tools.study --model model4 --seeds 0-19
    python -m tools.study --model all --recipe classic --seeds 0-2,42
    python -m tools.study --ablation      # each ingredient taken out of the recipe "strong"
    python -m tools.study --sizes         # other widths of model6
    python -m tools.study --model model3 --seeds 0-4 --set max_lr=0.2 --out tries
    python -m tools.study --model model4 --seeds 0-19 --device cuda --processes 8
    python -m tools.study --model model4 --seeds 0-49 --scheduler tcp://HOST:8786    # Dask

What is on record in results/ is not trained, unless --again says so; a half-finished run goes on
where it stopped. The name of a changed recipe has its changes, in tables too. In the end the
tables and pictures are made anew, as by python -m tools.tables.
"""

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli import Parser, RunError, UsageError, exit_code, whole_number
from device import select_device
from networks import get_model, list_models
from recipes import CLASSIC, RECIPES, STRONG, Experiment, Recipe, add_settings
from run_folder import EpochRecord
from tools import tables
from tools.worker import end_with_parent, key_of, train_one

MOST_SEEDS = 10_000
CONNECT_SECONDS = 10  # for the scheduler of a cluster to answer
# Of model6, beside its own 25 channels: "strong" where it is ahead of "mild" on held-out images.
WIDTHS = {18: "mild", 34: "strong", 41: "strong", 48: "strong", 54: "strong"}
Task = Callable[[Experiment], tuple[dict[str, Any], list[EpochRecord]]]  # trains one run


def without(part: str, *fields: str, **changes: float) -> Recipe:
    """Strong with `fields` as in classic and with `changes`, as the recipe strong-without-PART."""
    values = {field: getattr(CLASSIC, field) for field in fields} | changes
    return replace(STRONG, name=f"{STRONG.name}-without-{part}", **values)


VARIANTS = [
    # The average reaches back as many images as in strong.
    without("small-batches", "batch_size", "max_lr", ema_decay=STRONG.ema_decay**4),
    without("affine", "rotation", "translation", "scaling", "shear", "interpolation"),
    without("average", "ema_decay"),
    without("weight-decay", "weight_decay"),
]


# ------------------------------------------------------------------------------- the engine


def in_a_process_of_its_own(task: Task, experiment: Experiment) -> Any:
    """Call `task`, so that a process that is killed takes no other run with it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with_parent) as process:
        return process.submit(task, experiment).result()


@contextlib.contextmanager
def workers(processes: int | None, scheduler: str | None) -> Iterator[Callable[..., Future]]:
    """What submits a task and its experiment, to processes here or to the workers of Dask."""
    if scheduler:
        from distributed import Client  # of requirements-dev.txt

        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a lost connection ends no study
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"--scheduler {scheduler}: nobody answers there ({reason})") from None
        with client, client.get_executor(pure=False) as pool:
            yield pool.submit
        return
    pool = ThreadPoolExecutor(processes or os.cpu_count())
    try:
        yield functools.partial(pool.submit, in_a_process_of_its_own)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()


def train_all(
    experiments: list[Experiment],
    task: Task,
    processes: int | None = None,
    scheduler: str | None = None,
    results: Path | None = None,
) -> None:
    """Train every experiment, and keep its record as it ends, in `results` or that of the project.

    Raises RunError in the end when a run failed or its process was killed; the others are kept.
    """
    failed = []
    with workers(processes, scheduler) as submit:
        futures = {submit(task, one): one.name for one in experiments}
        for future in as_completed(futures):
            name = futures[future]
            try:
                row, records = future.result()
                tables.keep_record(row, records, results or tables.RESULTS)
            except Exception as error:  # of one run: the others go on
                failed.append(name)
                reason = str(error).partition("\n")[0]
                print(f"{name}: {type(error).__name__}: {reason}", file=sys.stderr)
            else:
                last = [record["acc"] for record in records[-5:]]
                lowest = f"{min(last):.2f} % or more in the last {len(last)}"
                print(f"{name}: {last[-1]:.2f} % at the last epoch, {lowest}", flush=True)
    if failed:
        raise RunError(f"not trained: {'; '.join(failed)}; the same command trains them again")


# ----------------------------------------------------------------------------- command line


def seed_range(text: str) -> list[int]:
    """Seeds from "0-19", "42" or "0-4,42", for argparse."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else []
        if not 0 < len(found) <= MOST_SEEDS:
            form = f"is not like 0-19, 42 or 0-4,42, or more than {MOST_SEEDS:,} seeds"
            raise argparse.ArgumentTypeError(f"{text!r} {form}")
        seeds.update(found)
    return sorted(seeds)


def jobs(args: argparse.Namespace) -> tuple[str, list[Experiment]]:
    """The name of the table that shows what was asked for, and all of its experiments."""
    recipe = RECIPES[args.recipe].changed(args.settings)
    if args.ablation:
        pairs = itertools.product(args.seeds or range(3), [STRONG, *VARIANTS])
        return "ablation", [Experiment("model4", recipe, seed, 10_000) for seed, recipe in pairs]
    if args.sizes:
        return "sizes", [
            Experiment("model6", RECIPES[name], seed, sizes={"width": width})
            for seed, (width, name) in itertools.product(args.seeds or range(5), WIDTHS.items())
        ]
    if not args.seeds:
        raise UsageError("which seeds? Add them, as in --seeds 0-19")
    names = list_models() if args.model == "all" else [args.model]
    pairs = itertools.product(args.seeds, names)
    table = "ablation" if args.holdout else "seeds"
    return table, [Experiment(name, recipe, seed, args.holdout) for seed, name in pairs]


def study(args: argparse.Namespace) -> None:
    """Train what is missing, then bring the tables and pictures up to date."""
    if not args.scheduler:
        select_device(args.device)  # which ends the study here where there is no such device
    table, experiments = jobs(args)
    results = args.out or tables.RESULTS
    results.mkdir(parents=True, exist_ok=True)
    runs = tables.read(results, "runs.csv")[tables.KEY]
    done = [] if args.again else runs.to_dict("records")
    for name in {one.model for one in experiments}:
        get_model(name)  # here, where one that cannot be ends the study
    todo = [one for one in experiments if key_of(one) not in done]
    print(f"{len(experiments) - len(todo)} of {len(experiments)} runs are on record", flush=True)
    try:
        if todo:
            task = functools.partial(train_one, again=args.again, device=args.device)
            train_all(todo, task, args.processes, args.scheduler, results)
    finally:
        made = {} if args.out else tables.update()
    print(made.get(table) or tables.markdown(tables.summary(tables.read_records(results)), 2))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser, default = Parser("python -m tools.study", __doc__), "default: %(default)s"
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    what.add_argument("--model", choices=[*list_models(), "all"], default="model3", help=default)
    what.add_argument("--ablation", action="store_true", help="take parts out of the recipe strong")
    what.add_argument("--sizes", action="store_true", help="train other widths of model6")
    add_settings(parser)
    add("--seeds", type=seed_range, help="0-19, 42 or 0-4,42")
    holdout = "train without the last N training images, and judge on them, as for tuning"
    add("--holdout", type=whole_number(0, 50_000), default=0, metavar="N", help=holdout)
    out = "keep records in this folder, and leave those of the project and its tables as they are"
    add("--out", type=Path, metavar="DIR", help=out)
    add("--again", action="store_true", help="train also what is on record")
    add("--device", choices=["cuda", "mps", "cpu"], default="cpu", help=default)
    at_once = "at the same time (default: one per core)"
    add("--processes", type=whole_number(1, 1024), metavar="N", help=at_once)
    cluster = "train on the workers of this Dask scheduler, as tcp://HOST:8786"
    add("--scheduler", metavar="ADDRESS", help=cluster)
    args = parser.parse_args(argv)
    changed = args.recipe != STRONG.name or args.settings or args.holdout
    if (args.ablation or args.sizes) and changed:
        parser.error("--ablation and --sizes have recipes and images of their own")
    return exit_code("python -m tools.study", study, args)


if __name__ == "__main__":
    sys.exit(main())
