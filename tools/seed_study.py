"""Train with many seeds, one process per core, and say what the accuracy is as a distribution.

    python -m tools.seed_study --model model3 --recipe strong --seeds 0-19
    python -m tools.seed_study --seeds 0-49 --scheduler tcp://HOST:8786    # on a Dask cluster
    python -m tools.seed_study                      # no training: tables and picture anew

A finished seed is not trained again, unless the code or the settings that decide it have changed;
a half-finished one goes on where it stopped. The tables in README.md, results/epochs.md and
results/seeds.png are made from all the records in results/runs.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from command_line import (
    Parser,
    RunError,
    UsageError,
    end_with_parent,
    exit_code,
    whole_number,
)
from mnist import DATA_DIR, AverageOfViews, Loader, load_mnist
from run_folder import (
    COLUMNS,
    LAST_EPOCHS,
    MIN_ACCURACY,
    MODELS,
    count_parameters,
    load_weights,
    png,
    run_name,
    write_atomically,
)
from tools.records import (
    RESULTS,
    ROOT,
    RUNS,
    Records,
    accuracies,
    interval,
    keep_record,
    markdown_table,
    meets,
    mismatch,
    read_records,
    read_views,
    share,
    update_readme,
)
from train import RECIPES, TEST_BATCH_SIZE, Recipe, evaluate, run, training_code

STUDIED = "strong"  # the recipe whose runs the README shows epoch by epoch
MOST_SEEDS = 10_000
CONNECT_SECONDS = 10  # for the scheduler of a cluster to answer
Job = tuple[str, Recipe, int, int]  # model name, recipe, seed, images held out
Outcome = tuple[dict[str, Any], list[dict[str, Any]]]  # settings and rows of a run
Task = Callable[[Job, Path], Outcome]  # trains a job in a folder


# ------------------------------------------------------------------------------ training


def train_one_seed(job: Job, work_dir: Path) -> Outcome:
    """Train a network on one thread in a folder of its own under `work_dir`; settings and rows.

    A relative `work_dir` is one of this clone, on whatever machine it is.
    """
    model_name, recipe, seed, holdout = job
    torch.set_num_threads(1)
    work_dir = ROOT / work_dir
    folder = work_dir / run_name(model_name, recipe.name, seed)
    now = [dataclasses.asdict(recipe), holdout, training_code(model_name)]
    begun = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        had = json.loads((folder / "config.json").read_text())
        begun = [had["recipe"], had["holdout"], had["code"]]
    if folder.exists() and begun != now:
        shutil.rmtree(folder)  # a resume would go on with what has changed since
    with contextlib.redirect_stdout(io.StringIO()):
        rows = run(
            model_name,
            recipe,
            seed=seed,
            out_dir=work_dir,
            device="cpu",
            holdout=holdout,
            folder=folder if folder.exists() else None,
            quiet=True,
        )
    config = json.loads((folder / "config.json").read_text())
    if not holdout:
        config["views_acc"] = accuracy_by_views(folder)
    return config, rows


def accuracy_by_views(folder: Path) -> float:
    """Test accuracy in % of a finished run when it guesses by nine views of each image."""
    _, model = load_weights(folder / "weights.pt")
    loader = Loader(*load_mnist(DATA_DIR, train=False), TEST_BATCH_SIZE)
    return evaluate(AverageOfViews(model), loader, nn.CrossEntropyLoss())[1]


def in_a_process_of_its_own(task: Task, job: Job, work_dir: Path) -> Outcome:
    """Call `task`, so that a process that is killed takes no other run with it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with_parent) as process:
        return process.submit(task, job, work_dir).result()


@contextlib.contextmanager
def workers(task: Task, processes: int | None, scheduler: str | None) -> Iterator[Callable]:
    """A function that submits (job, work_dir) to `task`, here or on the cluster of `scheduler`."""
    if scheduler is None:
        pool = ThreadPoolExecutor(processes or os.cpu_count())
        try:
            yield functools.partial(pool.submit, in_a_process_of_its_own, task)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--scheduler {scheduler}: nobody answers there ({reason})") from None
    with client, client.get_executor(pure=False) as pool:
        yield functools.partial(pool.submit, task)


def train_seeds(
    jobs: Iterable[Job],
    records_dir: Path = RUNS,
    work_dir: Path = Path("runs", "study"),
    processes: int | None = None,
    scheduler: str | None = None,
    task: Task | None = None,
) -> None:
    """Train every job that has no record of today's code, and keep its record as it ends.

    `task` trains one, `train_one_seed` unless another is given.

    Raises RunError in the end when a run failed or its process was killed; the others are kept.
    """
    todo, failed = [], []
    for model_name, recipe, seed, holdout in jobs:
        why = mismatch(model_name, recipe, seed, records_dir, holdout)
        if why:
            todo.append((model_name, recipe, seed, holdout))
        if why not in ("", "no record"):
            print(f"{model_name}, {recipe.name}, seed {seed} again: {why}", flush=True)
    if not todo:
        return
    (ROOT / work_dir).mkdir(parents=True, exist_ok=True)
    with workers(task or train_one_seed, processes, scheduler) as submit:
        futures: dict[Future, Job] = {submit(job, work_dir): job for job in todo}
        for future in as_completed(futures):
            model_name, recipe, seed, _ = futures[future]
            title = f"{model_name}, {recipe.name}, seed {seed}"
            try:
                config, rows = future.result()
                if config["code"] != training_code(model_name):
                    raise RunError("its worker has another version of the code; update its clone")
                keep_record(records_dir, config, rows)
            except Exception as error:  # of one run: the others go on
                failed.append(title)
                reason = str(error).partition("\n")[0]
                print(f"{title}: {type(error).__name__}: {reason}", file=sys.stderr)
                continue
            last = accuracies({seed: rows})[0, -LAST_EPOCHS:]
            lowest = f", {last.min():.2f} % or more in the last {len(last)}"
            print(f"{title}: {last[-1]:.2f} % at the last epoch{lowest}", flush=True)
    if failed:
        raise RunError(f"not trained: {'; '.join(failed)}; the same command trains them again")


# -------------------------------------------------------------------------------- tables


def statistics_table(records: Records, views: dict[tuple[str, str], list[float]]) -> str:
    """A row for each (model, recipe): the distribution over its seeds.

    The last column is the mean accuracy by nine views, where all of its runs have it on record;
    all others are by the image alone.
    """
    titles = ["model", "recipe", "seeds", "last epoch, mean", "± (95 %)", "std", "min", "max"]
    titles += [f"last five epochs ≥ {MIN_ACCURACY} % (95 %)", "nine views (TTA)"]
    rows: list[list[object]] = []
    for (model_name, recipe_name), seeds in records.items():
        accuracy = accuracies(seeds)
        last, n = accuracy[:, -1], len(accuracy)
        spread = [f"{interval(last):.3f}", f"{last.std(ddof=1):.3f}"] if n > 1 else ["-", "-"]
        row = [model_name, recipe_name, n, f"**{last.mean():.3f} %**", *spread]
        row += [f"{last.min():.2f} %", f"{last.max():.2f} %"]
        row.append(share(meets(accuracy)) if accuracy.shape[1] >= LAST_EPOCHS else "-")
        by_views = views.get((model_name, recipe_name), [])
        rows.append([*row, f"{np.mean(by_views):.3f} %" if len(by_views) == n else "-"])
    return markdown_table(titles, rows, names=2)


def attempts_table(records: Records, recipe_name: str, seed: int = 42) -> str:
    """A row for each model: what one run of it came to."""
    titles = ["attempt", "parameters", "last epoch", "mean of last three", "best, epoch"]
    titles += [f"of the last five ≥ {MIN_ACCURACY} %"]
    rows: list[list[object]] = []
    for model_name, model_class in MODELS.items():
        if seed not in records.get((model_name, recipe_name), {}):
            continue
        (accuracy,) = accuracies({seed: records[model_name, recipe_name][seed]})
        parameters = count_parameters(model_class())
        row = [f"[{model_name}]({model_name}.py)", f"{parameters:,}", f"{accuracy[-1]:.2f} %"]
        row += [f"{accuracy[-3:].mean():.2f} %", f"{accuracy.max():.2f} %, {accuracy.argmax() + 1}"]
        rows.append([*row, f"{(accuracy[-LAST_EPOCHS:] >= MIN_ACCURACY).sum()} of {LAST_EPOCHS}"])
    return markdown_table(titles, rows)


def epochs_table(rows: list[dict[str, float]]) -> str:
    """One run, epoch by epoch, in the columns that train.py prints."""
    columns = [column for column in COLUMNS if column[1] != "seconds"]
    return markdown_table(
        [title.strip() for title, _, _ in columns],
        [
            [f"{row[key]:{'.0f' if spec == 'd' else spec}}" for _, key, spec in columns]
            for row in rows
        ],
        names=0,
    )


def claim(records: Records, model_name: str = "model4", recipe_name: str = STUDIED) -> str:
    """What a model attains, as a distribution, in a sentence."""
    if (model_name, recipe_name) not in records:
        return f'No record of {model_name} under the recipe "{recipe_name}" yet.'
    accuracy = accuracies(records[model_name, recipe_name])
    last, n = accuracy[:, -1], len(accuracy)
    parameters = count_parameters(MODELS[model_name]())
    return (
        f"**{model_name}, {parameters:,} parameters, {accuracy.shape[1]} epochs: "
        f"{last.mean():.2f} ± {interval(last):.2f} % test accuracy at the last epoch** "
        f"(mean over {n} seeds and its 95 % interval; standard "
        f"deviation {last.std(ddof=1):.2f}, minimum {last.min():.2f} %), and "
        f"{meets(accuracy).sum()} of {n} seeds with the last five epochs "
        f'≥ {MIN_ACCURACY} %, under the recipe "{recipe_name}".'
    )


def fast_claim(records: Records, model_name: str = "model4") -> str:
    """What a few epochs come to, in a sentence."""
    if (model_name, "fast") not in records:
        return f'No record of {model_name} under the recipe "fast" yet.'
    accuracy = accuracies(records[model_name, "fast"])
    last = accuracy[:, -1]
    return (
        f'In a hurry? {accuracy.shape[1]} epochs of the recipe "fast" bring {model_name} to '
        f"**{last.mean():.2f} ± {interval(last):.2f} %** (mean over {len(last)} seeds and its "
        f"95 % interval; minimum {last.min():.2f} %; {(last >= MIN_ACCURACY).sum()} of them reach "
        f"{MIN_ACCURACY} %)."
    )


def readme_tables(records: Records) -> dict[str, str]:
    """The claim and the tables of README.md by the name of their markers."""
    return {
        "claim": claim(records),
        "fast": fast_claim(records),
        "seeds": statistics_table(records, read_views()),
        "attempts": attempts_table(records, STUDIED),
    }


def epochs_document(records: Records, seed: int = 42) -> str:
    """results/epochs.md: one run of each network, epoch by epoch."""
    lines = [f'# One run of each network, epoch by epoch: seed {seed}, recipe "{STUDIED}"', ""]
    for model_name in MODELS:
        seeds = records.get((model_name, STUDIED), {})
        if seed in seeds:
            lines += [f"## {model_name}", "", epochs_table(seeds[seed]), ""]
    return "\n".join(lines)


def plot_seeds(records: Records) -> bytes:
    """Test accuracy by epoch as a PNG: each seed faint, the mean bold, a panel for each network."""
    from matplotlib.figure import Figure

    shown = [name for name in (("model3", STUDIED), ("model4", STUDIED)) if name in records]
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    for axis, name in zip(panels, shown):
        accuracy = accuracies(records[name])
        epochs = np.arange(1, accuracy.shape[1] + 1)
        axis.axhline(MIN_ACCURACY, color="C1", linewidth=1)
        axis.axvspan(len(epochs) - LAST_EPOCHS + 0.5, len(epochs) + 0.5, color="C1", alpha=0.08)
        axis.plot(epochs, accuracy.T, color="C0", alpha=0.3, linewidth=1)
        axis.plot(epochs, accuracy.mean(axis=0), color="C0", linewidth=2.5)
        met = f"{meets(accuracy).sum()} of {len(accuracy)} seeds meet the challenge"
        axis.set_title(f"{name[0]}, {name[1]}: {met}", fontsize=11)
        axis.set(xlabel="epoch", xticks=epochs[::2])
        axis.set_ylim(98.6, 99.75)
        band = {"color": "C1", "ha": "center", "fontsize": 9}
        axis.annotate("last five epochs", (len(epochs) - 2, 98.63), **band)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].annotate(f"{MIN_ACCURACY} %", (1, MIN_ACCURACY + 0.01), color="C1")
    return png(figure)


# -------------------------------------------------------------------------- command line


def seed_range(text: str) -> list[int]:
    """Seeds from "0-19", "42" or "0-4,42", for argparse."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else []
        if not found:
            raise argparse.ArgumentTypeError(f"{text!r} is not like 0-19, 42 or 0-4,42")
        if len(found) > MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_SEEDS:,} seeds")
        seeds.extend(found)
    return sorted(set(seeds))


def study_parser(prog: str, description: str, seeds: list[int]) -> Parser:
    """The options that all studies share."""
    parser = Parser(prog, description)
    add = parser.add_argument
    add("--seeds", type=seed_range, default=seeds, help="0-19, 42 or 0-4,42")
    at_once = "at the same time (default: one per core)"
    add("--processes", type=whole_number(1, 1024), metavar="N", help=at_once)
    cluster = "train on the workers of this Dask scheduler, as tcp://HOST:8786"
    add("--scheduler", metavar="ADDRESS", help=cluster)
    return parser


def study(args: argparse.Namespace) -> None:
    """Train what is missing, then bring the README's tables and the picture up to date."""
    if not args.seeds and args.given & {"model", "recipe"}:
        raise UsageError("--model and --recipe go with --seeds, as in --seeds 0-19")
    names = list(MODELS) if args.model == "all" else [args.model]
    jobs = [(name, RECIPES[args.recipe], seed, 0) for seed in args.seeds for name in names]
    try:
        train_seeds(jobs, processes=args.processes, scheduler=args.scheduler)
    finally:
        tables = update_readme(tables_and_pictures)
    print(tables["seeds"])


def tables_and_pictures() -> dict[str, str]:
    """Write results/epochs.md and results/seeds.png; the tables of README.md."""
    records = read_records()
    write_atomically(RESULTS / "epochs.md", epochs_document(records).encode())
    write_atomically(RESULTS / "seeds.png", plot_seeds(records))
    return readme_tables(records)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.seed_study"
    parser, given = study_parser(prog, __doc__, []), "default: %(default)s"
    parser.add_argument("--model", choices=[*MODELS, "all"], default="model3", help=given)
    parser.add_argument("--recipe", choices=[*RECIPES], default=STUDIED, help=given)
    return exit_code(prog, study, parser.parse_args(argv))


if __name__ == "__main__":
    from tools import seed_study  # by its name, by which the workers of a cluster find the task

    sys.exit(seed_study.main())
