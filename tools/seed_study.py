"""Train with many seeds, one process a core, and say what the accuracy is as a distribution.

    python -m tools.seed_study --model model3 --recipe strong --seeds 0-19
    python -m tools.seed_study                      # no training: table and picture anew

A finished seed is never trained again; a half-finished one goes on where it stopped. Each run
leaves results/runs/NAME.csv, a row an epoch, and NAME.json, its settings and where it ran. The
tables in README.md and results/seeds.md, and results/seeds.png, are made from all the records.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from artifacts import (
    COLUMNS,
    LAST_EPOCHS,
    MIN_ACCURACY,
    Parser,
    UsageError,
    exit_code,
    whole_number,
    write_atomically,
)
from train import DEFAULT_RECIPE, MODELS, RECIPES, Recipe, run

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "results" / "runs"
PICTURE = ROOT / "results" / "seeds.png"
STATISTICS = ROOT / "results" / "seeds.md"
BENCHMARK = ROOT / "results" / "benchmark.md"  # made by tools.benchmark
README = ROOT / "README.md"
FIELDS = ["model", "recipe", "seed", "epoch", "train_acc", "lr", "test_loss", "test_acc", "seconds"]


# ------------------------------------------------------------------------------ training


Job = tuple[str, Recipe, int]  # model name, recipe, seed


def is_on_record(
    model_name: str, recipe: Recipe, seed: int, records_dir: Path, holdout: int
) -> bool:
    """Whether this run is on record. UsageError if one of its name had other settings."""
    path = records_dir / f"{model_name}-{recipe.name}-seed{seed}.json"
    if not path.with_suffix(".csv").exists():
        return False
    had = json.loads(path.read_text())
    settings = {**had["recipe"], "holdout": had["holdout"]}
    for key, value in {**dataclasses.asdict(recipe), "holdout": holdout}.items():
        if settings.get(key) != value:
            raise UsageError(
                f"{path} was made with {key} {settings.get(key)}, not {value}; "
                "delete it and its .csv to train again"
            )
    return True


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train_one_seed(job: tuple[str, Recipe, int, Path, Path, int]) -> tuple[Job, list[dict]]:
    """Train a network on one thread in a folder of its own, and leave its record in another.

    `job` is a model name, a recipe, a seed, the folder to work in, that of the records, and the
    number of images to hold out.
    """
    model_name, recipe, seed, work_dir, records_dir, holdout = job
    torch.set_num_threads(1)
    name = f"{model_name}-{recipe.name}-seed{seed}"
    folder = work_dir / name
    with contextlib.suppress(OSError, ValueError, KeyError):
        had = json.loads((folder / "config.json").read_text())
        if (had["recipe"], had["holdout"]) != (dataclasses.asdict(recipe), holdout):
            shutil.rmtree(folder)  # begun under settings that have changed since
    if folder.exists() and not (folder / "config.json").exists():
        shutil.rmtree(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        records = run(
            model_name,
            recipe,
            seed=seed,
            device="cpu",
            out_dir=work_dir,
            holdout=holdout,
            folder=folder if folder.exists() else None,
            quiet=True,
        )
    text = io.StringIO()
    fields = [field.replace("test", "val") if holdout else field for field in FIELDS]
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({"model": model_name, "recipe": recipe.name, "seed": seed} | record)
    records_dir.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    del config["data_dir"]  # a path of this machine
    write_atomically(records_dir / f"{name}.json", json.dumps(config, indent=2).encode())
    write_atomically(records_dir / f"{name}.csv", text.getvalue().encode())
    return (model_name, recipe, seed), records


def train_seeds(
    jobs: Iterable[Job],
    records_dir: Path = RECORDS,
    work_dir: Path = ROOT / "runs" / "study",
    processes: int | None = None,
    holdout: int = 0,
) -> None:
    """Train every (model name, recipe, seed) that has no record yet, one process a core."""
    todo = [
        (*job, work_dir, records_dir, holdout)
        for job in jobs
        if not is_on_record(*job, records_dir, holdout)
    ]
    if not todo:
        return
    work_dir.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    # Ctrl-C is for this process alone; leaving the block stops the others, in mid-epoch if need be.
    with context.Pool(processes or os.cpu_count(), ignore_interrupts) as pool:
        for job, records in pool.imap_unordered(train_one_seed, todo):
            model_name, recipe, seed = job
            last = accuracies({seed: records})[0, -LAST_EPOCHS:]
            print(
                f"{model_name}, {recipe.name}, seed {seed}: {last[-1]:.2f} % at the last "
                f"epoch, {last.min():.2f} % or more in the last five",
                flush=True,
            )


# ---------------------------------------------------------------------------- statistics

Records = dict[tuple[str, str], dict[int, list[dict[str, float]]]]


def read_records(records_dir: Path = RECORDS) -> Records:
    """The rows of each run on record: by (model, recipe), then by seed."""
    records: Records = {}
    for path in sorted(records_dir.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        model_name, recipe_name, seed = (rows[0].pop(key) for key in FIELDS[:3])
        records.setdefault((model_name, recipe_name), {})[int(seed)] = [
            {key: float(value) for key, value in row.items() if key not in FIELDS[:3]}
            for row in rows
        ]
    return {key: dict(sorted(seeds.items())) for key, seeds in sorted(records.items())}


def accuracies(seeds: dict[int, list[dict[str, float]]]) -> np.ndarray:
    """Accuracy in %, (seeds, epochs), on the test set or on the images held out."""
    return np.array(
        [[row.get("test_acc", row.get("val_acc")) for row in rows] for rows in seeds.values()]
    )


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval for the mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    t = np.random.default_rng(0).standard_t(len(values) - 1, 1_000_000)
    return float(np.quantile(t, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))


def steady(accuracy: np.ndarray) -> np.ndarray:
    """Of each run, (seeds, epochs), how many of the last five epochs are at 99.4 % or more."""
    return (accuracy[:, -LAST_EPOCHS:] >= MIN_ACCURACY).sum(axis=1)


def markdown_table(titles: list[str], rows: list[list[object]], names: int = 1) -> str:
    """A Markdown table whose columns stand to the right, but for the first `names`."""
    rules = ["---"] * names + ["---:"] * (len(titles) - names)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [titles, rules, *rows])


def statistics_table(records: Records) -> str:
    """A row for each (model, recipe): the distribution over its seeds."""
    titles = ["model", "recipe", "seeds", "last epoch, mean", "± (95 %)", "std", "min", "max"]
    titles += ["mean of last three", f"seeds with the last five all at {MIN_ACCURACY} %"]
    rows: list[list[object]] = []
    for (model_name, recipe_name), seeds in records.items():
        accuracy = accuracies(seeds)
        last, n = accuracy[:, -1], len(accuracy)
        spread = [f"{interval(last):.3f}", f"{last.std(ddof=1):.3f}"] if n > 1 else ["-", "-"]
        row = [model_name, recipe_name, n, f"**{last.mean():.3f} %**", *spread]
        row += [f"{last.min():.2f} %", f"{last.max():.2f} %", f"{accuracy[:, -3:].mean():.3f} %"]
        rows.append([*row, f"{(steady(accuracy) == LAST_EPOCHS).sum()} of {n}"])
    return markdown_table(titles, rows, names=2)


def attempts_table(records: Records, recipe_name: str, seed: int = 42) -> str:
    """A row for each model: what one run of it came to."""
    titles = ["attempt", "parameters", "last epoch", "mean of last three", "best, epoch"]
    titles += [f"last five at {MIN_ACCURACY} %"]
    rows: list[list[object]] = []
    for model_name, model_class in MODELS.items():
        if seed not in records.get((model_name, recipe_name), {}):
            continue
        accuracy = accuracies({seed: records[model_name, recipe_name][seed]})
        parameters = sum(parameter.numel() for parameter in model_class().parameters())
        row = [f"[{model_name}]({model_name}.py)", f"{parameters:,}", f"{accuracy[0, -1]:.2f} %"]
        row += [
            f"{accuracy[0, -3:].mean():.2f} %",
            f"{accuracy.max():.2f} %, {accuracy.argmax() + 1}",
        ]
        rows.append([*row, f"{steady(accuracy)[0]} of {LAST_EPOCHS}"])
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


def claim(records: Records, recipe_name: str) -> str:
    """What model3 attains, as a distribution, in a sentence."""
    if ("model3", recipe_name) not in records:
        return f'No record of the recipe "{recipe_name}" yet.'
    accuracy = accuracies(records["model3", recipe_name])
    last, n = accuracy[:, -1], len(accuracy)
    return (
        f"**model3, 7,784 parameters, 15 epochs: {last.mean():.2f} ± {interval(last):.2f} % test "
        f"accuracy at the last epoch** (mean over {n} seeds and its 95 % interval; standard "
        f"deviation {last.std(ddof=1):.2f}, minimum {last.min():.2f} %), and "
        f"{(steady(accuracy) == LAST_EPOCHS).sum()} of {n} seeds with every one of the last five "
        f'epochs at {MIN_ACCURACY} % or more, under the recipe "{recipe_name}".'
    )


def readme_tables(records: Records) -> dict[str, str]:
    """The claim and the tables of README.md by the name of their markers."""
    tables = {"claim": claim(records, DEFAULT_RECIPE), "seeds": statistics_table(records)}
    tables["benchmark"] = BENCHMARK.read_text().strip()
    tables["attempts"] = attempts_table(records, DEFAULT_RECIPE)
    for model_name in MODELS:
        seeds = records.get((model_name, DEFAULT_RECIPE), {})
        tables[model_name] = epochs_table(seeds[42]) if 42 in seeds else "No record yet."
    return tables


def with_tables(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its markers, in place of what was there."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise UsageError(f"README.md: no {start} followed by {end}; put them back")
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def plot_seeds(records: Records, model_name: str = "model3") -> bytes:
    """Test accuracy by epoch as a PNG: each seed faint, the mean bold, a panel a recipe."""
    from matplotlib.figure import Figure

    recipes = [recipe for model, recipe in records if model == model_name]
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(recipes), sharey=True, squeeze=False)[0]
    for axis, recipe in zip(panels, recipes):
        accuracy = accuracies(records[model_name, recipe])
        epochs = np.arange(1, accuracy.shape[1] + 1)
        axis.axhline(MIN_ACCURACY, color="C1", linewidth=1)
        axis.plot(epochs, accuracy.T, color="C0", alpha=0.3, linewidth=1)
        axis.plot(epochs, accuracy.mean(axis=0), color="C0", linewidth=2.5)
        axis.set(title=f"{model_name}, {recipe}: {len(accuracy)} seeds and their mean")
        axis.set(xlabel="epoch", ylim=(98.6, 99.7), xticks=epochs[::2])
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].annotate(f"{MIN_ACCURACY} %", (1, MIN_ACCURACY + 0.01), color="C1")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


# -------------------------------------------------------------------------- command line


def seed_range(text: str) -> list[int]:
    """Seeds from "0-19", "42" or "0-4,42", for argparse."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text!r} is not like 0-19, 42 or 0-4,42")
        seeds.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return seeds


def study(args: argparse.Namespace) -> None:
    """Train what is missing, then bring the README's table and the picture up to date."""
    recipe = RECIPES[args.recipe]
    names = list(MODELS) if args.model == "all" else [args.model]
    train_seeds(
        [(name, recipe, seed) for seed in args.seeds for name in names], processes=args.processes
    )
    records = read_records()
    print(statistics_table(records))
    write_atomically(README, with_tables(README.read_text(), readme_tables(records)).encode())
    write_atomically(STATISTICS, f"{statistics_table(records)}\n".encode())
    write_atomically(PICTURE, plot_seeds(records))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(
        prog="python -m tools.seed_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", choices=[*MODELS, "all"], default="model3")
    parser.add_argument("--recipe", choices=list(RECIPES), default=DEFAULT_RECIPE)
    parser.add_argument("--seeds", type=seed_range, default=[], help="0-19, 42 or 0-4,42")
    parser.add_argument(
        "--processes", type=whole_number(1, 1024), help="at the same time (default: one a core)"
    )
    return exit_code(study, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
