"""Say how few parameters are enough: train smaller sizes of model4, five seeds each.

    python -m tools.frontier                 # trains what is missing, one process per core

Network, sizes and recipe ("strong") are fixed beforehand; accuracies are those of the test set at
the last epoch. Records are in results/frontier; results/frontier.png and what README.md says are
made from them, from those in results/runs, and from what others have published.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from command_line import exit_code
from model4 import Model_4
from run_folder import (
    MAX_PARAMETERS,
    MIN_ACCURACY,
    MODELS,
    count_parameters,
    png,
    write_atomically,
)
from tools.records import (
    RESULTS,
    ROOT,
    Records,
    accuracies,
    markdown_table,
    meets,
    read_records,
    share,
    update_readme,
)
from tools.seed_study import STUDIED, Job, Outcome, study_parser, train_one_seed, train_seeds
from train import RECIPES

FRONTIER = RESULTS / "frontier"
PICTURE = RESULTS / "frontier.png"
SEEDS = [0, 1, 2, 3, 4]
SIZES = [  # channels of the stem's two convolutions, and of the blocks
    ((4, 5), 9),
    ((4, 6), 13),
    ((5, 8), 16),
    ((6, 9), 20),
    ((6, 10), 24),
    ((7, 11), 29),
]
OTHERS = {  # name: parameters, test accuracy in %; one run each, by their authors
    "EVA6": (7_496, 99.56),
    "ERAV2": (7_878, 99.51),
    "EVA4": (9_994, 99.61),
    "mnist-minimal-model": (1_936, 99.1),
    "Parameter-Efficient-MNIST": (697, 99.0),
}
KINDS = {  # color, marker and legend
    "attempts": ("C2", "s", "the published networks: mean and range over seeds"),
    "model4": ("C0", "o", "model4 and smaller sizes of it: mean and range over seeds"),
    "others": ("gray", "x", "public answers: one figure each, as reported"),
}
LABELS = {  # points to the right and up, and the side that stands there
    "model4": ((-8, 4), "right"),
    "EVA6": ((-4, -16), "right"),
    "ERAV2": ((8, 2), "left"),
    "model3": ((8, -9), "left"),
}


def add_sizes() -> list[str]:
    """Add the sizes to MODELS, each under the name model4-PARAMETERS; their names."""
    names = []
    for stem, width in SIZES:

        class Sized(Model_4):
            def __init__(self, stem: tuple[int, int] = stem, width: int = width) -> None:
                super().__init__(stem, width)

        Sized.__module__ = Model_4.__module__  # the file that decides what it comes to
        names.append(f"model4-{count_parameters(Sized())}")
        MODELS[names[-1]] = Sized
    return names


def train_one_size(job: Job, work_dir: Path) -> Outcome:
    """`train_one_seed` in a process that does not know the sizes yet."""
    add_sizes()
    return train_one_seed(job, work_dir)


def networks(records: Records) -> dict[str, tuple[int, np.ndarray]]:
    """Parameters and accuracies (seeds, epochs) of each network under "strong", smallest first."""
    found = {}
    for (model, recipe), seeds in records.items():
        if recipe == STUDIED:
            size = model.partition("-")[2]
            count = int(size) if size else count_parameters(MODELS[model]())
            found[model] = count, accuracies(seeds)
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def sentence(records: Records) -> str:
    """The fewest parameters with which every seed tried meets the accuracy of the challenge."""
    for count, accuracy in networks(records).values():
        if meets(accuracy).all():
            return (
                f"The fewest parameters with which every seed tried has its last five epochs "
                f"≥ {MIN_ACCURACY} %: **{count:,}** ({len(accuracy)} seeds, "
                f"{accuracy[:, -1].mean():.2f} % on average at the last epoch)."
            )
    return f"No size has its last five epochs ≥ {MIN_ACCURACY} % on every seed."


def table(records: Records) -> str:
    """A row for each size of model4: the distribution over its seeds."""
    titles = ["parameters", "seeds", "last epoch, mean", "min", "max"]
    titles.append(f"last five epochs ≥ {MIN_ACCURACY} % (95 %)")
    rows = []
    for name, (count, accuracy) in networks(records).items():
        if name.startswith("model4"):
            last = accuracy[:, -1]
            cells = [f"{value:.2f} %" for value in (last.mean(), last.min(), last.max())]
            rows.append([f"{count:,}", len(accuracy), *cells, share(meets(accuracy))])
    return markdown_table(titles, rows, names=0)


def words(records: Records) -> str:
    """What the README says: the sentence, the picture, the table."""
    picture = f"![Parameters against test accuracy]({PICTURE.relative_to(ROOT).as_posix()})"
    return f"{sentence(records)}\n\n{picture}\n\n{table(records)}"


def label(axes: Any, name: str, point: tuple[float, float], **style: object) -> None:
    """Write `name` to the right of a point, or where LABELS says, so that none covers another."""
    place, side = LABELS.get(name, ((8, -4), "left"))
    axes.annotate(name, point, xytext=place, textcoords="offset points", ha=side, **style)


def plot(records: Records) -> bytes:
    """Parameters against test accuracy as a PNG: mean and range of ours, other answers as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(MIN_ACCURACY, color="C1", linewidth=1)
    axes.axvline(MAX_PARAMETERS, color="C1", linewidth=1)
    ours = networks(records)
    for name, (count, accuracy) in ours.items():
        last = accuracy[:, -1]
        spread = [[last.mean() - last.min()], [last.max() - last.mean()]]
        color, marker, _ = KINDS["model4" if name.startswith("model4") else "attempts"]
        axes.errorbar(count, last.mean(), spread, capsize=3, color=color, marker=marker)
        if "-" not in name:
            label(axes, name, (count, last.mean()), color=color)
    line = [(count, a[:, -1].mean()) for name, (count, a) in ours.items() if "model4" in name]
    axes.plot(*zip(*line), color="C0", linewidth=1)
    for name, found in OTHERS.items():
        color, marker, _ = KINDS["others"]
        axes.plot(*found, marker, color=color)
        label(axes, name, found, color=color, fontsize=8)
    for color, marker, text in KINDS.values():
        axes.plot([], [], marker, color=color, label=text)
    axes.legend(loc="lower right", frameon=False)
    axes.set(
        xscale="log",
        xlim=(400, 20_000),
        xlabel="parameters",
        ylabel="test accuracy (%)",
    )
    axes.set_xticks([500, 1_000, 2_000, 4_000, 8_000, 16_000])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def explore(args: argparse.Namespace) -> None:
    """Train what is missing, then bring the picture and the README up to date."""
    names = add_sizes()
    jobs = [(name, RECIPES[STUDIED], seed, 0) for seed in args.seeds for name in names]
    work_dir = Path("runs", "frontier")
    train_seeds(jobs, FRONTIER, work_dir, args.processes, args.scheduler, train_one_size)
    print(update_readme(words_and_picture)["frontier"])


def words_and_picture() -> dict[str, str]:
    """Write results/frontier.png; what README.md says."""
    records = read_records(FRONTIER) | read_records()
    write_atomically(PICTURE, plot(records))
    return {"frontier": words(records)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.frontier"
    return exit_code(prog, explore, study_parser(prog, __doc__, SEEDS).parse_args(argv))


if __name__ == "__main__":
    from tools import frontier  # by its name, by which the workers of a cluster find the task

    sys.exit(frontier.main())
