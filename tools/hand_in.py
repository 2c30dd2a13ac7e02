"""The report of a run, report.md: everything that assignments ask for, from its run folder."""

import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn
from torchvision.utils import make_grid

from challenges import CHALLENGES, Challenge, verdict
from cli import UsageError
from curves import plot_curves, png, table_header, table_row
from mnist import DATA_DIR, MEAN, STD, Augmentation, Loader, load_mnist
from networks import count_parameters, summarize
from recipes import Experiment
from run_folder import is_finished, read_config, read_metrics
from tools.check import checklist
from tools.receptive_field import table

AUGMENTED = 20  # images
CAPTIONS = {
    "curves": "Accuracy, loss and learning rate by epoch",
    "augmented": f"{AUGMENTED} training images, before and after augmentation",
    "confusion": "Confusion matrix",
    "accuracy": "Accuracy by digit",
    "mistakes": "The most confident mistakes",
    "grad-cam": "Grad-CAM",
    "features": "Filters and feature maps",
    "receptive-field": "Effective receptive field",
}


class Run(NamedTuple):
    """A finished run, as its folder has it."""

    experiment: Experiment
    challenge: Challenge
    config: dict[str, Any]
    records: list[dict[str, Any]]
    data_dir: Path


def read_run(folder: Path) -> Run:
    """Reads a run folder; UsageError where it is none, or the run is not finished."""
    config = read_config(folder)
    if not is_finished(folder):
        resume = f"python train.py --resume {shlex.quote(str(folder))}"
        raise UsageError(f"{folder}: this run is not finished; {resume}")
    challenge = CHALLENGES.get(str(config.get("challenge")), CHALLENGES["8k"])
    data_dir = Path(str(config.get("data_dir")))
    data_dir = data_dir if data_dir.exists() else DATA_DIR  # the clone was moved
    return Run(Experiment.from_config(config), challenge, config, read_metrics(folder), data_dir)


def plot_augmented(run: Run, data_dir: Path) -> Figure:
    """The first images of epoch 1, before and after augmentation."""
    recipe, seed = run.experiment.recipe, run.experiment.seed
    augmentation = Augmentation(*(getattr(recipe, name) for name in Augmentation._fields))
    images, labels = load_mnist(data_dir, train=True)
    count = len(images) - run.experiment.holdout
    none = Augmentation(0, 0, 0, 0, "nearest")  # in the same order, since the seed is the same
    loaders = (
        Loader(images[:count], labels[:count], AUGMENTED, x, seed) for x in (none, augmentation)
    )
    before, after = (next(iter(loader))[0] * STD + MEAN for loader in loaders)
    half = AUGMENTED // 2
    rows = torch.cat([before[:half], after[:half], before[half:], after[half:]])
    figure = Figure(figsize=(7.5, 3.5), layout="constrained")
    axes = figure.subplots()
    grid = make_grid(1 - rows, half, padding=3, pad_value=0.8)[0]
    axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks([31 * row + 17 for row in range(4)], 2 * ["before", "after"])
    axes.set(xticks=[], title=f"{run.experiment.model}: training images of recipe {recipe.name}")
    return figure


def pictures_of(run: Run, data_dir: Path) -> dict[str, bytes]:
    """The curves and the augmented images, as PNG."""
    holdout, name = run.experiment.holdout, run.experiment.name
    curves = plot_curves(run.records, holdout, name, run.challenge.accuracy)
    return {"curves": curves, "augmented": png(plot_augmented(run, data_dir))}


def text_of(run: Run, model: nn.Module, files: dict[str, str]) -> str:
    """report.md, with the pictures of the keys of CAPTIONS that are there."""
    experiment, config = run.experiment, run.config
    pictures = {
        key: f"### {caption}\n\n![{caption}]({files[key]})"
        for key, caption in CAPTIONS.items()
        if key in files
    }
    training = [pictures.pop(key) for key in ("curves", "augmented")]
    settings = [f"| {name} | {value} |" for name, value in config["recipe"].items()]
    words = [f"recipe {experiment.recipe.name}", f"seed {experiment.seed}"]
    words += [f"{key} {config.get(key)}" for key in ("commit", "device", "threads", "torch")]
    rows = table(experiment.model, **experiment.sizes).partition("\n")[2].strip()
    judged = verdict(run.challenge, count_parameters(model), run.records, experiment.holdout)
    return "\n\n".join(
        [
            f"# {experiment.name}",
            f"```\n{judged}\n```",
            f"{', '.join(words)} ({config.get('device_name')})",
            f"```\n{(sys.modules[type(model).__module__].__doc__ or '').strip()}\n```",
            f"## Checklist, challenge {run.challenge.name}",
            "\n".join(f"- {line}" for line in checklist(model, run.challenge)),
            f"## Model summary\n\n```\n{summarize(model)}\n```",
            f"## Receptive field\n\n{rows}",
            "## Training",
            "\n".join([table_header(experiment.holdout), *map(table_row, run.records)]),
            *training,
            "### Recipe\n\n| setting | value |\n| --- | --- |\n" + "\n".join(settings),
            f"## Predictions for the {'validation' if experiment.holdout else 'test'} images",
            *pictures.values(),
            "",
        ]
    )
