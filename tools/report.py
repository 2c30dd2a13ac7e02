"""Draw how a trained network does on the 10,000 test digits, and what it looks like inside.

    python -m tools.report runs/model3-strong-seed42    # a run folder, or a file of weights
    python -m tools.report weights/model4.pt --out results

Writes five PNGs beside the weights, or into --out: which digits are taken for which, every
mistake, the accuracy of each digit, filters and feature maps, and the effective receptive field.
"""

import argparse
import math
import sys

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor, nn

from command_line import Parser, UsageError, exit_code, some_path
from mnist import DATA_DIR, IMAGE_SIZE, STD, Loader, load_mnist, normalize
from model4 import Residual
from predict import classify
from run_folder import load_weights, png, weights_file, write_atomically
from tools.receptive_field import chain, computed_fields

WIDTH = 7.5  # inches: 900 pixels, the width of a README
BATCH_SIZE = 250  # images
MOST_MISTAKES = 500  # drawn at most: an untrained network makes 9,000
SHOWN_IMAGE = 1  # of the test set, for the feature maps: a 2 with strokes at every angle

# -------------------------------------------------------------------------------- figures


def confusion_matrix(labels: Tensor, guesses: Tensor) -> Tensor:
    """Counts (10, 10): in row l and column g, how many images of digit l are taken for digit g."""
    return torch.bincount(10 * labels + guesses, minlength=100).view(10, 10)


def plot_confusion(matrix: Tensor, name: str) -> Figure:
    """The counts. Mistakes alone are shaded: they would vanish beside a thousand right guesses."""
    mistakes = matrix.float().fill_diagonal_(0).numpy()
    most = max(mistakes.max(), 1)
    figure = Figure(figsize=(WIDTH, 6.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.ma.masked_equal(mistakes, 0), cmap="Oranges", vmin=0, vmax=most)
    for label, guess in matrix.nonzero().tolist():
        shade = mistakes[label, guess] / most
        color = "gray" if label == guess else "white" if shade > 0.6 else "black"
        axes.text(guess, label, f"{matrix[label, guess]}", ha="center", va="center", color=color)
    axes.set(xticks=range(10), yticks=range(10), xlabel="guess", ylabel="label")
    axes.set_title(
        f"{name}: {mistakes.sum():,.0f} of {matrix.sum():,} test digits are taken for another"
    )
    axes.set_xticks(np.arange(9) + 0.5, minor=True)
    axes.set_yticks(np.arange(9) + 0.5, minor=True)
    axes.grid(which="minor", color="lightgray", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("lightgray")
    return figure


def tile(axes: Axes, image: Tensor, x: float, y: float, size: float, **style: object) -> None:
    """Draw an image (H, W) as a square with its top left corner at (x, y); y points down."""
    axes.imshow(image.numpy(), extent=(x, x + size, y + size, y), interpolation="nearest", **style)


def sheet(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure as wide as all, and axes without a frame for `width` x `height` units of tiles."""
    figure = Figure(figsize=(WIDTH, WIDTH * height / width + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.axis("off")
    return figure, axes


def plot_mistakes(images: Tensor, labels: Tensor, probabilities: Tensor, name: str) -> Figure:
    """Each misclassified image with label, guess and confidence; the surest mistakes first."""
    confidences, guesses = probabilities.max(dim=1)
    wrong = (guesses != labels).nonzero()[:, 0]
    wrong = wrong[confidences[wrong].argsort(descending=True, stable=True)]
    drawn = wrong[:MOST_MISTAKES].tolist()
    count = f"the {len(drawn)} surest of {len(wrong):,} mistakes"
    if len(drawn) == len(wrong):
        count = f"all {len(wrong)} mistakes, the surest first"
    columns, line = 10, 1.2
    height = line * max(math.ceil(len(drawn) / columns), 1)
    figure, axes = sheet(columns, height, f"{name}: {count} (label → guess, confidence)")
    for place, index in enumerate(drawn):
        y, x = divmod(place, columns)
        # A range that begins below zero makes the paper light gray, and so shows its edges.
        tile(axes, images[index, 0], x, line * y, 0.94, cmap="gray_r", vmin=-20, vmax=255)
        text = f"{labels[index]} → {guesses[index]}  {100 * confidences[index]:.0f} %"
        axes.text(x + 0.47, line * y + 1.04, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(height, 0))
    return figure


def plot_accuracy(matrix: Tensor, name: str) -> Figure:
    """Accuracy of each digit, with its 95 % interval and its number of mistakes."""
    right, total = matrix.diag().numpy(), matrix.sum(dim=1).numpy()
    accuracy, overall = 100 * right / total, 100 * right.sum() / total.sum()
    bounds = [
        binomtest(k, n).proportion_ci(method="wilson")
        for k, n in zip(right.tolist(), total.tolist())
    ]
    low, high = 100 * np.array(bounds).T
    # Rounding can lift the upper bound of a digit without a mistake 1e-14 below its accuracy.
    errors = np.maximum([accuracy - low, high - accuracy], 0)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(overall, color="gray", linewidth=1, linestyle="--")
    axes.text(9.6, overall, f"all\n{overall:.2f} %", color="gray", va="center")
    axes.errorbar(range(10), accuracy, errors, fmt="o", color="C0")
    ticks = [f"{digit}\n{total[digit] - right[digit]}/{total[digit]}" for digit in range(10)]
    axes.set_xticks(range(10), ticks)
    axes.set(xlim=(-0.5, 9.5), xlabel="digit, and mistakes/images", ylabel="accuracy (%)")
    axes.set_title(f"{name}: accuracy by digit, with 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def feature_maps(model: nn.Module, image: Tensor) -> list[tuple[Tensor, int]]:
    """What each convolution, block and average pool reads, the normalised image (1, 28, 28) first.

    Maps of shape (channels, height, width), each with its receptive field in pixels.
    """
    maps, features, field = [], image[None], 1
    layers = chain(model)
    with torch.inference_mode():
        for layer, (next_field, _) in zip(layers, computed_fields(layers)):
            if isinstance(layer, nn.Conv2d | Residual | nn.AvgPool2d) and features.shape[-1] > 1:
                maps.append((features[0], field))
            features, field = layer(features), next_field
    return maps


def plot_features(model: nn.Module, image: Tensor, name: str) -> Figure:
    """The filters of the first layer, and the feature maps of one normalised image (1, 28, 28)."""
    first = next(layer for layer in chain(model) if isinstance(layer, nn.Conv2d))
    rows = [(f"{len(first.weight)} filters of the first layer", first.weight.detach()[:, 0])]
    for maps, field in feature_maps(model, image)[1:]:
        count, height, width = maps.shape
        rows.append((f"{count} maps of {height} x {width}, receptive field {field} px", maps))

    gap, most_tiles = 0.035, 20  # the sheet is one unit wide; more maps take two lines
    lines = [math.ceil(len(maps) / most_tiles) for _, maps in rows]
    columns = [math.ceil(len(maps) / count) for count, (_, maps) in zip(lines, rows)]
    height = 0.15 + sum(gap + count / across for count, across in zip(lines, columns))
    figure, axes = sheet(1, height, f"{name}: filters, and feature maps of one digit")
    tile(axes, image[0], 0, 0, 0.14, cmap="gray_r")
    legend = "the image, 28 x 28\nbelow: red is positive, blue negative, white zero"
    axes.text(0.16, 0.07, f"{legend}; each row has a scale of its own", va="center", fontsize=9)
    y = 0.15
    for (text, maps), count, across in zip(rows, lines, columns):
        axes.text(0, y + gap / 2, text, va="center", fontsize=9)
        y += gap
        largest = maps.abs().max().item()
        for place, picture in enumerate(maps):
            line, column = divmod(place, across)
            style = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
            tile(axes, picture, column / across, y + line / across, 0.95 / across, **style)
        y += count / across
    axes.set(xlim=(0, 1), ylim=(height, 0))
    return figure


def logit_gradients(model: nn.Module, loader: Loader) -> Tensor:
    """Mean of |d logit / d pixel| over the images of `loader`, (10, 28, 28); pixels in [0, 1]."""
    model.eval()
    total = torch.zeros(10, IMAGE_SIZE, IMAGE_SIZE)
    for images, _ in loader:
        logits = model(images.requires_grad_())
        for digit in range(10):
            (gradient,) = torch.autograd.grad(logits[:, digit].sum(), images, retain_graph=True)
            total[digit] += gradient[:, 0].abs().sum(dim=0)
    return total / len(loader.labels) / STD


def plot_receptive_field(model: nn.Module, loader: Loader, name: str) -> Figure:
    """How much each pixel counts for all logits together, and for each: where they really look."""
    gradients = logit_gradients(model, loader).numpy()
    together = np.ma.masked_equal(gradients.mean(axis=0), 0)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    count = f"mean of {len(loader.labels):,} test digits"
    figure.suptitle(f"{name}: how much each pixel counts, |∂ logit / ∂ pixel|, {count}")
    left, right = figure.subfigures(1, 2, width_ratios=[2.4, 1])
    axes = left.subplots()
    picture = axes.imshow(together, cmap="viridis", vmin=0)
    left.colorbar(picture, ax=axes, shrink=0.8)
    mean_image = loader.images.float().mean(dim=(0, 1)) / 255
    axes.contour(mean_image.numpy(), levels=[0.1], colors="white", linewidths=1)
    notes = ["line: 10 % grey in the mean test digit", "white pixels: no gradient at all"]
    axes.set_xlabel("\n".join(notes if together.mask.any() else notes[:1]))
    axes.set(xticks=range(0, 28, 4), yticks=range(0, 28, 4), title="all logits")
    right.suptitle("each logit")
    for digit, axes in enumerate(right.subplots(5, 2).flat):
        seen = np.ma.masked_equal(gradients[digit], 0)
        axes.imshow(seen, cmap="viridis", vmin=0, vmax=gradients.max())
        axes.text(1, 2, f"{digit}", va="center", color="white", fontsize=9)
        axes.axis("off")
    return figure


# --------------------------------------------------------------------------- command line


def report(args: argparse.Namespace) -> None:
    """Write the five pictures and print where they are."""
    weights = weights_file(args.path)
    if not weights.is_file():
        raise UsageError(f"{weights} is not there; name a run that is finished, or a weights file")
    name, model = load_weights(weights)
    out = args.out or weights.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}; name another folder") from None
    images, labels = load_mnist(args.data_dir, train=False)
    fifth = Loader(images[::5], labels[::5], BATCH_SIZE)  # gradients are ten times the work
    probabilities = classify(model, images[:, 0])
    matrix = confusion_matrix(labels, probabilities.argmax(dim=1))
    shown = normalize(images[SHOWN_IMAGE] / 255)
    figures = {
        "confusion": plot_confusion(matrix, name),
        "mistakes": plot_mistakes(images, labels, probabilities, name),
        "accuracy": plot_accuracy(matrix, name),
        "features": plot_features(model, shown, name),
        "receptive-field": plot_receptive_field(model, fifth, name),
    }
    for key, figure in figures.items():
        path = out / f"{name}-{key}.png"
        write_atomically(path, png(figure))
        print(path)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.report"
    parser = Parser(prog, __doc__)
    add = parser.add_argument
    add("path", type=some_path, metavar="RUN_FOLDER_OR_WEIGHTS")
    add("--out", type=some_path, metavar="DIR", help="default: beside the weights")
    add("--data-dir", type=some_path, default=DATA_DIR, metavar="DIR", help="default: data")
    return exit_code(prog, report, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
