"""Train many runs, each in a single-threaded process of its own, and keep their records.

    python -m tools.study --model model4 --seeds 0-19
    python -m tools.study --model all --recipe classic --seeds 0-2,42
    python -m tools.study --model model5 --size width=34 --seeds 0-4
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
from recipes import RECIPES, Experiment, add_settings, sizes_of
from run_folder import EpochRecord, is_finished, read_config, read_metrics
from tools import tables

TRAIN, RUNS = ROOT / "train.py", ROOT / "runs" / "study"
RUNNING: set[subprocess.Popen] = set()  # they end with the study


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
    options = [f"--model={experiment.model}", f"--recipe={recipe}", f"--seed={experiment.seed}"]
    options += [f"--holdout={experiment.holdout}", f"--challenge={challenge}", f"--out-dir={RUNS}"]
    options += [f"--set={setting}" for setting in settings]
    return options + [f"--size={name}={value}" for name, value in experiment.sizes.items()]


def earlier_runs(experiment: Experiment, device: str) -> list[Path]:
    """The folders of runs of `experiment` with this commit, torch and device."""
    commit, found = commit_of(experiment.model), []
    if not commit or commit.endswith("-dirty"):  # the code of an earlier run is not known
        return []
    now = {"commit": commit, "torch": torch.__version__, "device": device}
    for folder in RUNS.glob(f"{experiment.name}*"):
        with suppress(UsageError):  # damaged, or of another version
            config = read_config(folder)
            run = Experiment.from_config(config, folder)
            is_same = (run.name, run.recipe) == (experiment.name, experiment.recipe)
            if is_same and now.items() <= config.items():
                found.append(folder)
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
                print(f"{name}: {records[-1]['acc']:.2f} % at the last epoch", flush=True)
            except Exception as error:  # of one run: the others go on
                failed.append(name)
                reason = str(error).partition("\n")[0] or type(error).__name__
                print(f"{name}: {reason}", file=sys.stderr)
    finally:  # also after Ctrl-C or SIGTERM
        for future in futures:
            future.cancel()
        while not all(future.done() for future in futures):  # a run may just be starting
            for process in list(RUNNING):
                process.terminate()
            time.sleep(0.1)
    if failed:
        raise RunError(f"not trained: {'; '.join(failed)}; the same command trains them again")


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


def study(args: argparse.Namespace) -> None:
    """Trains what is not on record, updates tables and pictures, and prints the distribution."""
    if not args.scheduler:
        select_device(args.device)
    recipe, sizes = RECIPES[args.recipe or "strong"].changed(args.settings), sizes_of(args.sizes)
    models = list_models() if args.model == "all" else [args.model]
    for model in models:
        get_model(model, **sizes)  # fails before hours of training
    pairs = product(args.seeds, models)  # seed by seed
    experiments = [Experiment(model, recipe, seed, args.holdout, sizes) for seed, model in pairs]
    keys, results = [key_of(one) for one in experiments], args.out or tables.RESULTS
    results.mkdir(parents=True, exist_ok=True)
    on_record = tables.read(results, "runs.csv")[tables.KEY].to_dict("records")
    todo = [one for one, key in zip(experiments, keys) if args.again or key not in on_record]
    print(f"{len(keys) - len(todo)} of {len(keys)} runs are on record", flush=True)
    task = partial(train_one, device=args.device, challenge=args.challenge, again=args.again)
    try:
        if args.scheduler:
            train_all(todo, task, dask_workers(args.scheduler), results)
        else:
            train_all(todo, task, ThreadPoolExecutor(args.processes or os.cpu_count()), results)
    finally:
        if not args.out:
            tables.update()
    challenge = CHALLENGES[args.challenge]
    records = tables.read_records(results, challenge)
    asked = records.loc[[key in keys for key in records[tables.KEY].to_dict("records")]]
    print(tables.markdown(tables.summary(asked, challenge), 2))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser, default = Parser("python -m tools.study", __doc__), "default: %(default)s"
    add = parser.add_argument
    add("--model", choices=[*list_models(), "all"], default="model3", help=default)
    add_settings(parser)
    add("--seeds", type=seed_range, required=True, help="0-19, 42 or 0-4,42")
    holdout = "train without the last N training images, and evaluate on them, as for tuning"
    add("--holdout", type=whole_number(0, 50_000), default=0, metavar="N", help=holdout)
    add("--challenge", choices=[*CHALLENGES], default="8k", help=default)
    add("--out", type=Path, metavar="DIR", help="keep records here, and update no table")
    add("--again", action="store_true", help="train also what is on record")
    add("--device", choices=["cuda", "mps", "cpu"], default="cpu", help=default)
    processes = "at the same time (default: one per core)"
    add("--processes", type=whole_number(1, 1024), metavar="N", help=processes)
    add("--scheduler", metavar="ADDRESS", help="train on the workers of this Dask scheduler")
    return exit_code(parser.prog, study, parser.parse_args(argv))


if __name__ == "__main__":
    from tools import study as module  # by which name Dask's workers find its functions

    sys.exit(module.main())
