"""Draw the results of a trained network on the test images, and its feature maps.

    python -m tools.report runs/model3-strong-seed42    # a run folder, or a file of weights
    python -m tools.report runs/model3-strong-seed42 --hand-in
    python -m tools.report weights/model4.pt --out results --grad-cam blocks.5

Writes six PNGs beside the weights, or into --out: confusion matrix, mistakes, accuracy by digit,
filters and feature maps, effective receptive field, Grad-CAM. --hand-in adds report.md, which shows
them with model summary, checklist, receptive fields, log, curves, augmented images, recipe, seed
and commit; for a run with a validation split, all are of its validation images.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torchvision.utils import make_grid

from cli import Parser, UsageError, exit_code
from curves import png
from device import reuse_freed_memory
from files import write_atomically
from mnist import DATA_DIR, STD, Loader, load_mnist, normalize
from networks import load_model
from tools import hand_in
from tools.receptive_field import layers_of
from tools.trace import trace

WIDTH = 7.5  # inches: 900 pixels, the width of a README
BATCH_SIZE = 250  # images
MOST_MISTAKES = 500  # drawn at most: an untrained network makes 9,000
MOST_HANDED_IN = 25  # of them
SHOWN_DIGITS = 40  # with Grad-CAM
MOST_MAPS = 64  # of a layer
SHOWN_IMAGE = 1  # of the test set, for the feature maps: a 2 with strokes at every angle


def predict_probabilities(model: nn.Module, loader: Loader) -> Tensor:
    """The softmax (N, 10) of the logits of all images."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(images).softmax(dim=1) for images, _ in loader])


def confusion_matrix(labels: Tensor, predictions: Tensor) -> Tensor:
    """Counts (10, 10): in row l and column p, how many images of digit l are predicted as p."""
    return torch.bincount(10 * labels + predictions, minlength=100).view(10, 10)


def plot_confusion(matrix: Tensor, name: str) -> Figure:
    """The confusion matrix. Only mistakes are shaded: the diagonal would hide them."""
    mistakes = matrix.float().fill_diagonal_(0).numpy()
    most = max(mistakes.max(), 1)
    figure = Figure(figsize=(WIDTH, 6.8), layout="constrained")
    axes = figure.subplots()
    lines = {"edgecolors": "lightgray", "linewidth": 0.5, "shading": "nearest"}
    shades = np.ma.masked_equal(mistakes, 0)
    axes.pcolormesh(range(10), range(10), shades, cmap="Oranges", vmin=0, vmax=most, **lines)
    for label, prediction in matrix.nonzero().tolist():
        shade, count = mistakes[label, prediction] / most, f"{matrix[label, prediction]}"
        color = "gray" if label == prediction else "white" if shade > 0.6 else "black"
        axes.text(prediction, label, count, ha="center", va="center", color=color)
    title = f"{name}: {mistakes.sum():,.0f} of {matrix.sum():,} digits are misclassified"
    axes.set(title=title, xlabel="prediction", ylabel="label", ylim=(9.5, -0.5))
    axes.set(xticks=range(10), yticks=range(10), aspect="equal")
    return figure


def mistakes_of(labels: Tensor, probabilities: Tensor) -> Tensor:
    """The indices of the misclassified images, the most confident first."""
    confidences, predictions = probabilities.max(dim=1)
    wrong = predictions != labels
    return (confidences * wrong).argsort(descending=True, stable=True)[: wrong.sum()]


def plot_digits(
    images: Tensor, labels: Tensor, probabilities: Tensor, title: str, maps: Tensor | None = None
) -> Figure:
    """Each image with label, prediction and confidence.

    Maps (N, 28, 28) from 0 (transparent) to 1, if given, are laid over them.
    """
    columns, line = 10, 1.2
    height = line * max(math.ceil(len(images) / columns), 1)
    figure = Figure(figsize=(WIDTH, WIDTH * height / columns + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{title} (label → prediction, confidence)", fontsize=10)
    axes.set(xlim=(0, columns), ylim=(height, 0))
    axes.axis("off")
    # vmin below zero makes the background light gray, so that edges are visible.
    style = {"cmap": "gray_r", "vmin": -20, "vmax": 255, "interpolation": "nearest"}
    for place, (confidence, prediction) in enumerate(zip(*probabilities.max(dim=1))):
        x, y = place % columns, line * (place // columns)
        box = (x, x + 0.94, y + 0.94, y)
        axes.imshow(images[place, 0].numpy(), extent=box, **style)
        if maps is not None:
            heat = maps[place].numpy()
            axes.imshow(heat, extent=box, cmap="autumn_r", vmin=0, vmax=1, alpha=0.7 * heat)
        text = f"{labels[place]} → {prediction}  {100 * confidence:.0f} %"
        axes.text(x + 0.47, y + 1.04, text, ha="center", va="center", fontsize=8)
    return figure


def plot_mistakes(
    images: Tensor, labels: Tensor, probabilities: Tensor, name: str, most: int = MOST_MISTAKES
) -> Figure:
    """At most `most` misclassified images, the most confident first."""
    mistakes = mistakes_of(labels, probabilities)
    drawn = mistakes[:most]
    part = f"{len(drawn)} of " if len(drawn) < len(mistakes) else ""
    title = f"{name}: {part}{len(mistakes):,} mistakes, most confident first"
    return plot_digits(images[drawn], labels[drawn], probabilities[drawn], title)


def plot_accuracy(matrix: Tensor, name: str) -> Figure:
    """Accuracy by digit, with 95 % Wilson intervals and numbers of mistakes."""
    right, total = matrix.diag().tolist(), matrix.sum(dim=1).tolist()
    accuracy, overall = 100 * np.divide(right, total), 100 * sum(right) / sum(total)
    bounds = [binomtest(*pair).proportion_ci(method="wilson") for pair in zip(right, total)]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(overall, color="gray", linewidth=1, linestyle="--")
    axes.vlines(range(10), *(100 * np.transpose(bounds)))
    axes.plot(range(10), accuracy, "o")
    ticks = [f"{digit}\n{n - k}/{n}" for digit, (k, n) in enumerate(zip(right, total))]
    axes.set_xticks(range(10), ticks)
    axes.set(xlabel="digit, and mistakes/images", ylabel="accuracy (%)")
    axes.set_title(f"{name}: accuracy by digit, with 95 % intervals; {overall:.2f} % in all")
    return figure


def feature_maps(model: nn.Module, image: Tensor) -> list[tuple[str, Tensor]]:
    """Captions, with the filters (N, k, k) of the first convolution and the maps of an image.

    The maps (C, H, W) are the inputs of layers with weights and of average pools, for the
    normalized image (1, 28, 28); at most MOST_MAPS channels of each.
    """
    steps, rows = trace(model, image[None]), []
    first = next((step for step in steps if step.name == "conv2d"), None)
    if first:
        filters = first.settings["weight"][:MOST_MAPS, 0]
        rows.append((f"{len(filters)} filters of the first layer", filters))
    layers = layers_of(steps)
    for step, layer in zip(steps[1:], layers[1:]):
        source = step.reads[0]
        maps, field = steps[source].output[0], layers[source].field
        is_read = source > 0 and (step.weights or layer.title == "average pool")
        if is_read and maps.ndim == 3 and maps.shape[-1] > 1 and maps.is_floating_point():
            count, height, width = maps.shape
            number = f"{MOST_MAPS} of {count}" if count > MOST_MAPS else f"{count}"
            reach = f", receptive field {field[0]} px" if field else ""
            rows.append((f"{number} maps of {height} x {width}{reach}", maps[:MOST_MAPS]))
    return rows


def plot_features(model: nn.Module, image: Tensor, name: str) -> Figure:
    """Filters of the first layer, and feature maps of one normalized image (1, 28, 28)."""
    legend = "red is positive, blue negative, white zero; each row has its own scale"
    grids = [(f"the image, 28 x 28; below: {legend}", image[0])]
    for text, maps in feature_maps(model, image):
        across = math.ceil(len(maps) / math.ceil(len(maps) / 20))  # at most 20 in a line
        large = F.interpolate(maps[:, None], scale_factor=max(1, 120 // maps.shape[-1]))
        grids.append((text, make_grid(large, across, padding=6, pad_value=math.nan)[0]))
    heights = [0.14, *(len(grid) / len(grid[0]) for _, grid in grids[1:])]  # of the width
    figure = Figure(figsize=(WIDTH, WIDTH * sum(heights) + 0.3 * len(grids)), layout="constrained")
    figure.suptitle(f"{name}: filters, and feature maps of one digit")
    rows = figure.subplots(len(grids), height_ratios=heights, squeeze=False)[:, 0]
    for axes, (text, grid) in zip(rows, grids):
        largest = grid.nan_to_num().abs().max().item()
        axes.imshow(grid.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(text, loc="left", fontsize=9)
        axes.set_anchor("W")
        axes.axis("off")
    rows[0].images[0].set(cmap="gray_r", clim=(image.min(), image.max()))
    return figure


def logit_gradients(model: nn.Module, loader: Loader) -> Tensor:
    """Mean of |d logit / d pixel| over the images of `loader`, (10, 28, 28); pixels in [0, 1]."""
    model.eval()
    gradients = [
        jacobian(lambda pixels: model(pixels * 1).sum(dim=0), images)[:, :, 0]
        for images, _ in loader  # * 1 copies, for in-place operations
    ]
    return torch.cat(gradients, dim=1).abs().mean(dim=1) / STD


def plot_receptive_field(model: nn.Module, loader: Loader, name: str) -> Figure:
    """The mean gradient with respect to each pixel: of all logits, and of each."""
    gradients = logit_gradients(model, loader).numpy()
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    count = f"mean of {len(loader.labels):,} digits"
    figure.suptitle(f"{name}: effective receptive field, |∂ logit / ∂ pixel|, {count}")
    left, right = figure.subfigures(1, 2, width_ratios=[2.4, 1])
    axes = left.subplots()
    together = np.ma.masked_equal(gradients.mean(axis=0), 0)
    left.colorbar(axes.imshow(together, vmin=0), ax=axes, shrink=0.8)
    mean_image = loader.images.float().mean(dim=(0, 1)) / 255
    axes.contour(mean_image.numpy(), levels=[0.1], colors="white", linewidths=1)
    axes.set_xlabel("line: 10 % grey in the mean digit\nwhite pixels: no gradient at all")
    axes.set(xticks=range(0, 28, 4), yticks=range(0, 28, 4), title="all logits")
    right.suptitle("each logit")
    for digit, axes in enumerate(right.subplots(5, 2).flat):
        axes.imshow(np.ma.masked_equal(gradients[digit], 0), vmin=0, vmax=gradients.max())
        axes.text(1, 2, f"{digit}", va="center", color="white", fontsize=9)
        axes.axis("off")
    return figure


def grad_cam(model: nn.Module, images: Tensor, layer: str | None) -> tuple[str, Tensor] | None:
    """Grad-CAM (Selvaraju et al., 2017) of the predicted class of normalized images.

    Returns the name of the layer and maps (N, 28, 28) from 0 to 1: the ReLU of the sum of the
    layer's maps, each weighted by the mean gradient of the logit. `layer` is a name of
    named_modules(), by default the last whose maps are larger than a pixel; None if there is none.
    UsageError where `layer` has no maps.
    """
    names, found = {module: name for name, module in model.named_modules()}, {}

    def keep(module: nn.Module, inputs: tuple, output: Any) -> Tensor | None:
        if not (module in names and isinstance(output, Tensor) and output.ndim == 4):
            return None
        if output.is_floating_point():
            found[names[module]] = output
        return output * 1  # a copy, for in-place operations

    with register_module_forward_hook(keep):
        logits = model.eval()(images.requires_grad_() * 1)
    if layer and layer not in found:
        there = ", ".join(found) or "none"
        raise UsageError(f"--grad-cam {layer}: no layer with maps (N, C, H, W); there are {there}")
    layer = layer or next((name for name in reversed(found) if found[name].shape[-1] > 1), None)
    if not layer:
        return None
    best = logits.max(dim=1).values.sum()
    (gradient,) = torch.autograd.grad(best, found[layer], materialize_grads=True)
    maps = (found[layer] * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
    maps = F.interpolate(maps.detach(), images.shape[2:], mode="bilinear")[:, 0]
    return layer, maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)


def report(args: argparse.Namespace) -> None:
    """Writes the pictures, and with `args.hand_in` report.md, and prints where they are."""
    reuse_freed_memory()
    run = hand_in.read_run(args.path, args.data_dir) if args.hand_in else None
    name, model = load_model(args.path)
    out = args.out or (args.path if args.path.is_dir() else args.path.parent)
    out.mkdir(parents=True, exist_ok=True)
    if run:
        loader, most = run.test_loader, MOST_HANDED_IN
    else:
        test_set = load_mnist(args.data_dir or DATA_DIR, train=False)
        loader, most = Loader(*test_set, BATCH_SIZE), MOST_MISTAKES
    images, labels = loader.images, loader.labels
    fifth = Loader(images[::5], labels[::5], BATCH_SIZE)  # gradients are ten times the work
    probabilities = predict_probabilities(model, loader)
    matrix = confusion_matrix(labels, probabilities.argmax(dim=1))
    figures = {
        "confusion": plot_confusion(matrix, name),
        "mistakes": plot_mistakes(images, labels, probabilities, name, most),
        "accuracy": plot_accuracy(matrix, name),
        "features": plot_features(model, normalize(images[SHOWN_IMAGE] / 255), name),
        "receptive-field": plot_receptive_field(model, fifth, name),
    }
    shown = mistakes_of(labels, probabilities)[:SHOWN_DIGITS]
    if cam := grad_cam(model, normalize(images[shown] / 255), args.grad_cam):
        title = f"{name}: Grad-CAM of {cam[0]}, the {len(shown)} most confident mistakes"
        digits = images[shown], labels[shown], probabilities[shown]
        figures["grad-cam"] = plot_digits(*digits, title, cam[1])
    contents = {f"{name}-{key}.png": png(figure) for key, figure in figures.items()}
    if run:
        contents[f"{name}-augmented.png"] = png(hand_in.plot_augmented(run))
        contents[f"{name}-curves.png"] = (args.path / "curves.png").read_bytes()
        contents["report.md"] = hand_in.text_of(run, model, [*contents]).encode()
    for file, content in contents.items():
        write_atomically(out / file, content)
        print(out / file)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.report", __doc__)
    add = parser.add_argument
    add("path", type=Path, metavar="RUN_FOLDER_OR_WEIGHTS")
    add("--out", type=Path, metavar="DIR", help="default: beside the weights")
    layer = "for Grad-CAM, a name of named_modules() (default: the last that has maps)"
    add("--grad-cam", metavar="LAYER", help=layer)
    add("--hand-in", action="store_true", help="write report.md too; the run must be finished")
    add("--data-dir", type=Path, metavar="DIR", help="default: data, or that of the run")
    return exit_code(parser.prog, report, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
