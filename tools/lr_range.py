"""Plot loss against learning rate, to choose a recipe's max_lr: the learning-rate range test.

    python -m tools.lr_range --model model3 --recipe classic

An untrained network trains on up to 300 batches while the learning rate rises, until the loss
diverges (Smith, "Cyclical learning rates for training neural networks", 2017). A good max_lr lies
between where the loss falls fastest and where it is lowest. Test images are not used.
"""

import argparse
import sys
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from cli import Parser, RunError, exit_code
from curves import png
from files import write_atomically
from mnist import DATA_DIR, Loader
from networks import list_models
from recipes import RECIPES, Experiment, add_settings, sizes_of
from train import Trainer, build_trainer

RATES = np.geomspace(1e-4, 10, 300)  # one per batch
DIVERGED = 2  # times the first loss
SMOOTHING = 15  # batches, a quarter of a decade: the standard deviation of a Gaussian


def range_test(trainer: Trainer, loader: Loader) -> list[float]:
    """The loss of a batch at each of RATES, until it diverges."""
    losses: list[float] = []
    batches = chain.from_iterable(repeat(loader))  # an epoch may be shorter than RATES
    trainer.model.train()
    for rate, batch in zip(RATES.tolist(), batches):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        losses.append(trainer.step(*batch)[0].item())
        if not losses[-1] < DIVERGED * losses[0]:
            return losses[:-1]
    return losses


def draw(args: argparse.Namespace) -> None:
    """Runs the test, prints the rates that it finds, and writes the plot."""
    recipe = RECIPES[args.recipe or "strong"].changed(args.settings)
    experiment = Experiment(args.model, recipe, holdout=10_000, sizes=sizes_of(args.sizes))
    args.out.mkdir(parents=True, exist_ok=True)
    trainer, loader, _ = build_trainer(experiment, "auto", DATA_DIR, False)
    losses = range_test(trainer, loader)
    smooth = gaussian_filter1d(losses, SMOOTHING, mode="nearest") if losses else np.zeros(1)
    lowest = smooth.argmin()
    if lowest == 0:
        raise RunError(f"{args.model}: the loss falls at no rate from {RATES[0]} to {RATES[-1]}")
    marks = {
        "loss falls fastest": RATES[np.gradient(smooth[: lowest + 1]).argmin()],
        "loss is lowest": RATES[lowest],
        "max_lr of the recipe": recipe.max_lr,
    }
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes, rates = figure.subplots(), RATES[: len(losses)]
    axes.semilogx(rates, losses, ".", color="lightgray", label="loss of a batch")
    axes.semilogx(rates, smooth, label="smoothed")
    for number, (text, rate) in enumerate(marks.items(), start=1):
        print(f"{text:20}  {rate:.2g}")
        axes.axvline(rate, color=f"C{number}", linestyle="--", label=f"{text}: {rate:.2g}")
    axes.set(xlabel="learning rate", ylabel="training loss", ylim=(0, 1.2 * losses[0]))
    axes.set_title(f"{experiment.network}, {recipe.name}")
    axes.legend()
    path = args.out / f"{experiment.network}-{recipe.name}-lr-range.png"
    write_atomically(path, png(figure))
    print(path)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.lr_range", __doc__)
    add = parser.add_argument
    add("--model", choices=list_models(), default="model3", help="default: %(default)s")
    add_settings(parser)
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    return exit_code(parser.prog, draw, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
