"""Train many runs, each in a single-threaded process of its own, and keep their records.

    python -m tools.study --model model4 --seeds 0-19
    python -m tools.study --model all --recipe classic --seeds 0-2,42
    python -m tools.study --ablation      # the recipe "strong" without each of its parts
    python -m tools.study --sizes         # other widths of model6
    python -m tools.study --model model3 --seeds 0-4 --set max_lr=0.2 --out tries
    python -m tools.study --model model4 --seeds 0-49 --scheduler tcp://HOST:8786    # Dask

A run is `python train.py ...` with a folder under runs/study. Only runs without a record are
trained. A finished or unfinished one of the same commit, torch and device is taken or resumed;
every other folder stays as it is. Then tables and pictures are updated (python -m tools.tables).
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from challenges import CHALLENGES
from cli import Parser, RunError, UsageError, exit_code, whole_number
from device import select_device
from networks import ROOT, count_parameters, get_model, list_models
from provenance import commit_of
from recipes import RECIPES, STRONG, Experiment, add_settings, sizes_of
from run_folder import EpochRecord, is_finished, read_config, read_metrics
from tools import tables

TRAIN, RUNS = ROOT / "train.py", ROOT / "runs" / "study"
RUNNING: set[subprocess.Popen] = set()  # they end with the study
# Of model6, beside its own 25: "strong" where its validation loss is below that of "mild".
WIDTHS = {18: "mild", 34: "strong", 41: "strong", 48: "strong", 54: "strong"}
AFFINE = ["rotation=7", "translation=0", "scaling=0", "shear=0", "interpolation=nearest"]
# "strong", whole and without each of its parts
PARTS = ([], ["batch_size=128", "max_lr=0.3"], AFFINE, ["ema_decay=0"], ["weight_decay=0"])
ABLATION = [STRONG.changed(settings) for settings in PARTS]

# ----------------------------------------------------------------------------------- a run


def call_train(*options: Any) -> str:
    """Runs train.py on one thread; returns what it prints. RunError if it fails."""
    command = [sys.executable, TRAIN, *options, "--threads", 1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([str(word) for word in command], **pipes) as process:
        RUNNING.add(process)
        out, errors = process.communicate()
        RUNNING.remove(process)
    if process.returncode:  # negative: the number of a signal
        raise RunError(errors.strip().rpartition("\n")[2] or f"exit code {process.returncode}")
    return out


def options_of(experiment: Experiment, challenge: str) -> list[str]:
    """The options of train.py; the name of a changed recipe holds all changes."""
    recipe, *settings = experiment.recipe.name.split("+")
    values = {"model": experiment.model, "recipe": recipe, "seed": experiment.seed}
    values |= {"holdout": experiment.holdout, "challenge": challenge, "out-dir": RUNS}
    sizes = [f"--size={name}={value}" for name, value in experiment.sizes.items()]
    return [f"--{k}={v}" for k, v in values.items()] + [f"--set={s}" for s in settings] + sizes


def earlier_runs(experiment: Experiment, device: str) -> list[Path]:
    """The folders of runs of `experiment` with this commit, torch and device."""
    now = {"commit": commit_of(experiment.model), "torch": torch.__version__, "device": device}
    if (now["commit"] or "-dirty").endswith("-dirty"):  # the code of that run is not known
        return []
    found = []
    for path in RUNS.glob(f"{experiment.name}*/config.json"):
        with suppress(UsageError):  # damaged, or of another version
            config = read_config(path.parent)
            run = Experiment.from_config(config)
            is_same = (run.name, run.recipe) == (experiment.name, experiment.recipe)
            if is_same and now.items() <= config.items():
                found.append(path.parent)
    return found


def key_of(experiment: Experiment) -> dict[str, Any]:
    """What identifies the record of an experiment."""
    values = experiment.network, experiment.recipe.name, experiment.seed, experiment.holdout
    return dict(zip(tables.KEY, values))


def train_one(
    experiment: Experiment, device: str, challenge: str, again: bool
) -> tuple[dict[str, Any], list[EpochRecord]]:
    """Trains one run, or resumes it; returns its row of runs.csv, and its rows of epochs.csv.

    A finished run is taken as it is, unless it is to be trained `again`.
    """
    earlier = earlier_runs(experiment, device)
    folder = next((run for run in earlier if is_finished(run) and not again), None)
    if not folder:
        begun = next((["--resume", run] for run in earlier if not is_finished(run)), None)
        options = begun or options_of(experiment, challenge)
        printed = call_train(*options, "--device", device, "--quiet")
        folder = Path(printed.splitlines()[-1].partition(" are in ")[2])
    config, records, key = read_config(folder), read_metrics(folder), key_of(experiment)
    row = key | {name: config.get(name) for name in tables.MADE_BY}
    row["parameters"] = count_parameters(get_model(experiment.model, **experiment.sizes))
    row["seconds"] = sum(record["seconds"] for record in records)
    if not experiment.holdout:  # --evaluate reads the test set
        printed = call_train("--evaluate", folder, "--tta", "--device", device)
        row["views_acc"] = float(printed.partition("test accuracy ")[2].split()[0])
    return row, [key | record for record in records]


# -------------------------------------------------------------------------------- many runs


def dask_workers(scheduler: str) -> Executor:
    """The workers of a Dask scheduler; OSError where none answers."""
    from distributed import Client  # of requirements-dev.txt

    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a lost connection ends no study
    return Client(scheduler, timeout=10).get_executor(pure=False)


def train_all(experiments: list[Experiment], task: Any, pool: Executor, results: Path) -> None:
    """Maps `task` over the experiments, and keeps each record in `results` once it is there.

    RunError at the end where runs failed; the others are kept.
    """
    futures, failed = {pool.submit(task, one): one.name for one in experiments}, []
    try:
        for future in as_completed(futures):
            name = futures[future]
            try:
                row, records = future.result()
                tables.keep_record(row, records, results)
            except Exception as error:  # of one run: the others go on
                failed.append(name)
                reason = str(error).partition("\n")[0] or type(error).__name__
                print(f"{name}: {reason}", file=sys.stderr)
            else:
                print(f"{name}: {records[-1]['acc']:.2f} % at the last epoch", flush=True)
    finally:
        for future in futures:
            future.cancel()
        while not all(future.done() for future in futures):  # after Ctrl-C or SIGTERM
            for process in list(RUNNING):
                process.terminate()
            time.sleep(0.1)
    if failed:
        raise RunError(f"not trained: {'; '.join(failed)}; the same command trains them again")


# ----------------------------------------------------------------------------- command line


def seed_range(text: str) -> list[int]:
    """Seeds from "0-19", "42" or "0-4,42", for argparse."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else None
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is not like 0-19, 42 or 0-4,42")
        seeds.update(found)
    return sorted(seeds)


def experiments_of(args: argparse.Namespace) -> list[Experiment]:
    """All experiments that were asked for, seed by seed."""
    names = list_models() if args.model == "all" else [args.model]
    recipe, sizes = (
        RECIPES[args.recipe or "strong"].changed(args.settings),
        sizes_of(args.sizes),
    )
    kinds, seeds, holdout = [(name, recipe, sizes) for name in names], args.seeds, args.holdout
    if args.ablation:
        kinds, holdout = [("model4", recipe, {}) for recipe in ABLATION], 10_000
        seeds = seeds or range(3)
    if args.widths:
        kinds = [("model6", RECIPES[name], {"width": width}) for width, name in WIDTHS.items()]
        seeds = seeds or range(5)
    if not seeds:
        raise UsageError("which seeds? Add them, as in --seeds 0-19")
    pairs = product(seeds, kinds)
    return [Experiment(name, recipe, seed, holdout, size) for seed, (name, recipe, size) in pairs]


def study(args: argparse.Namespace) -> None:
    """Trains what is not on record, updates tables and pictures, and prints the distribution."""
    if not args.scheduler:
        select_device(args.device)
    experiments, results = experiments_of(args), args.out or tables.RESULTS
    for one in {one.network: one for one in experiments}.values():
        get_model(one.model, **one.sizes)  # fails before hours of training
    results.mkdir(parents=True, exist_ok=True)
    on_record = tables.read(results, "runs.csv")[tables.KEY].to_dict("records")
    todo = [one for one in experiments if args.again or key_of(one) not in on_record]
    print(f"{len(experiments) - len(todo)} of {len(experiments)} runs are on record", flush=True)
    place = {"device": args.device, "challenge": args.challenge, "again": args.again}
    try:
        if todo:
            threads = ThreadPoolExecutor(args.processes or os.cpu_count())
            pool = dask_workers(args.scheduler) if args.scheduler else threads
            train_all(todo, partial(train_one, **place), pool, results)
    finally:
        if not args.out:
            tables.update()
    challenge, keys = CHALLENGES[args.challenge], [key_of(one) for one in experiments]
    records = tables.read_records(results, challenge)
    asked = records.loc[[key in keys for key in records[tables.KEY].to_dict("records")]]
    print(tables.markdown(tables.summary(asked, challenge), 2))
    if args.ablation:
        print(f"\n{tables.ablation_table(asked)}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser, default = Parser("python -m tools.study", __doc__), "default: %(default)s"
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    what.add_argument("--model", choices=[*list_models(), "all"], default="model3", help=default)
    what.add_argument("--ablation", action="store_true", help="take parts out of the recipe strong")
    widths = {"action": "store_true", "help": "train other widths of model6"}
    what.add_argument("--sizes", dest="widths", **widths)
    add_settings(parser)
    add("--seeds", type=seed_range, help="0-19, 42 or 0-4,42")
    holdout = "train without the last N training images, and evaluate on them, as for tuning"
    add("--holdout", type=whole_number(0, 50_000), default=0, metavar="N", help=holdout)
    add("--challenge", choices=[*CHALLENGES], default="8k", help=default)
    add("--out", type=Path, metavar="DIR", help="keep records here, and update no table")
    add("--again", action="store_true", help="train also what is on record")
    add("--device", choices=["cuda", "mps", "cpu"], default="cpu", help=default)
    processes = "at the same time (default: one per core)"
    add("--processes", type=whole_number(1, 1024), metavar="N", help=processes)
    add("--scheduler", metavar="ADDRESS", help="train on the workers of this Dask scheduler")
    args = parser.parse_args(argv)
    changed = args.recipe or args.settings or args.sizes or args.holdout
    if (args.ablation or args.widths) and changed:
        parser.error("--ablation and --sizes have recipes, sizes and images of their own")
    return exit_code(parser.prog, study, args)


if __name__ == "__main__":
    from tools import study as module  # by which name Dask's workers find its functions

    sys.exit(module.main())
