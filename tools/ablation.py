"""Take each ingredient out of the recipe "strong", and say what that costs.

    python -m tools.ablation                 # trains what is missing, one process per core

Every variant trains the same network on the first 50,000 training images with the same seeds and
is judged on the last 10,000: the test set has no part in it. Since the seeds are shared, each
variant is compared with the whole recipe seed by seed. Records are in results/ablation; the table
in README.md is made from them.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from command_line import exit_code
from tools.records import (
    README,
    RESULTS,
    Records,
    Rows,
    accuracies,
    interval,
    markdown_table,
    read_records,
    update_readme,
    with_tables,
)
from tools.seed_study import study_parser, train_seeds
from train import RECIPES, Recipe

ABLATION = RESULTS / "ablation"
MODEL, HOLDOUT, SEEDS = "model4", 10_000, [0, 1, 2]
CLASSIC, STRONG = RECIPES["classic"], RECIPES["strong"]


def without(name: str, *fields: str, **changes: float) -> Recipe:
    """Strong with `fields` as in classic and with `changes`, under the name strong-without-NAME."""
    values = {field: getattr(CLASSIC, field) for field in fields} | changes
    return dataclasses.replace(STRONG, name=f"strong-without-{name}", **values)


VARIANTS = {  # what is taken out, in words
    "batches of 32 and their learning rate (as in classic: 128 and 0.3)": without(
        # The average reaches back as many images as in strong.
        "small-batches",
        "batch_size",
        "max_lr",
        ema_decay=STRONG.ema_decay**4,
    ),
    "shift, scale and shear (as in classic: rotation alone, nearest pixel)": without(
        "affine", "rotation", "translation", "scaling", "shear", "interpolation"
    ),
    "averaged weights": without("average", "ema_decay"),
    "weight decay": without("weight-decay", "weight_decay"),
}


def judge(seeds: dict[int, Rows]) -> dict[str, np.ndarray]:
    """What the variants are compared by, a figure per seed: means of the last three epochs."""
    accuracy = accuracies(seeds)
    losses = np.array([[row["val_loss"] for row in rows] for rows in seeds.values()])
    return {
        "accuracy": accuracy[:, -3:].mean(axis=1),
        "lowest": accuracy[:, -5:].min(axis=1),
        "loss": losses[:, -3:].mean(axis=1),
    }


def table(records: Records) -> str:
    """The whole recipe, then for each variant the mean of the paired differences from it."""
    titles = [
        "taken out of strong",
        "seeds",
        "held-out accuracy",
        "lowest of the last five",
        "loss",
    ]
    whole = records[MODEL, STRONG.name]
    figures = judge(whole)
    cells = [f"{figures[key].mean():.3f} %" for key in ("accuracy", "lowest")]
    cells.append(f"{figures['loss'].mean():.4f}")
    rows: list[list[object]] = [["nothing: all of strong", len(whole), *cells]]
    for ingredient, recipe in VARIANTS.items():
        seeds = records[MODEL, recipe.name]
        shared = sorted(set(seeds) & set(whole))
        ours, theirs = (judge({seed: runs[seed] for seed in shared}) for runs in (seeds, whole))
        row: list[object] = [ingredient, len(shared)]
        for key, digits in (("accuracy", 3), ("lowest", 3), ("loss", 4)):
            change = ours[key] - theirs[key]
            cell = f"{change.mean():+.{digits}f} ± {interval(change):.{digits}f}"
            clear = abs(change.mean()) > interval(change)
            row.append(f"**{cell}**" if clear else cell)
        rows.append(row)
    return markdown_table(titles, rows)


def ablate(args: argparse.Namespace) -> None:
    """Train what is missing, then bring the table in the README up to date."""
    # Fails now where it would fail in the end.
    with_tables(README.read_text(encoding="utf-8"), {"ablation": ""})
    variants = [STRONG, *VARIANTS.values()]
    jobs = [(MODEL, recipe, seed, HOLDOUT) for seed in args.seeds for recipe in variants]
    train_seeds(jobs, ABLATION, Path("runs", "ablation"), args.processes, args.scheduler)
    print(update_readme(lambda: {"ablation": table(read_records(ABLATION))})["ablation"])


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.ablation"
    return exit_code(prog, ablate, study_parser(prog, __doc__, SEEDS).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
