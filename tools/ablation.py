"""Take each ingredient out of the recipe "strong", and say what that costs.

    python -m tools.ablation                 # trains what is missing, one process a core

Every variant trains model3 on the first 50,000 training images with the same seeds and is judged
on the last 10,000: the test set has no part in it. Each run leaves results/ablation/NAME.csv, a row
an epoch, and NAME.json; the table in README.md is made from them. A finished run is never repeated.
"""

import argparse
import dataclasses
import sys

import numpy as np

from artifacts import LAST_EPOCHS, Parser, exit_code, whole_number, write_atomically
from tools.seed_study import (
    README,
    ROOT,
    Records,
    accuracies,
    markdown_table,
    read_records,
    seed_range,
    train_seeds,
    with_tables,
)
from train import RECIPES, Recipe

ABLATION = ROOT / "results" / "ablation"
MODEL, HOLDOUT, SEEDS = "model3", 10_000, [0, 1, 2]
CLASSIC = RECIPES["classic"]


STRONG = RECIPES["strong"]


def without(name: str, *fields: str, **changes: float) -> Recipe:
    """Strong with `fields` as in classic and with `changes`, under the name strong-without-NAME."""
    values = {field: getattr(CLASSIC, field) for field in fields} | changes
    return dataclasses.replace(STRONG, name=f"strong-without-{name}", **values)


VARIANTS = {  # what is taken out, in words
    "nothing": STRONG,
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


def mean_and_error(values: np.ndarray, spec: str, unit: str = "") -> list[str]:
    """The mean of `values` and its standard error, as two cells of a table."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return [f"{values.mean():{spec}}{unit}", "-" if error is None else f"{error:{spec}}"]


def table(records: Records) -> str:
    """A row a variant: held-out accuracy and loss, means of the last three epochs."""
    titles = ["taken out of strong", "seeds", "held-out accuracy", "± (s.e.)"]
    titles += ["lowest of the last five", "± (s.e.)", "loss", "± (s.e.)"]
    rows: list[list[object]] = []
    for ingredient, recipe in VARIANTS.items():
        seeds = records[MODEL, recipe.name]
        accuracy = accuracies(seeds)
        losses = np.array([[row["val_loss"] for row in rows[-3:]] for rows in seeds.values()])
        row = [ingredient, len(seeds), *mean_and_error(accuracy[:, -3:].mean(axis=1), ".3f", " %")]
        row += mean_and_error(accuracy[:, -LAST_EPOCHS:].min(axis=1), ".3f", " %")
        rows.append([*row, *mean_and_error(losses.mean(axis=1), ".4f")])
    return markdown_table(titles, rows)


def ablate(args: argparse.Namespace) -> None:
    """Train what is missing, then bring the table in the README up to date."""
    with_tables(README.read_text(), {"ablation": ""})  # fails now where it would fail in the end
    jobs = [(MODEL, recipe, seed) for seed in args.seeds for recipe in VARIANTS.values()]
    work_dir = ROOT / "runs" / "ablation"
    train_seeds(jobs, ABLATION, work_dir, args.processes, HOLDOUT)
    text = table(read_records(ABLATION))
    print(text)
    write_atomically(README, with_tables(README.read_text(), {"ablation": text}).encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(
        prog="python -m tools.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=seed_range, default=SEEDS, help="default: 0-2")
    parser.add_argument(
        "--processes", type=whole_number(1, 1024), help="at the same time (default: one a core)"
    )
    return exit_code(ablate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
