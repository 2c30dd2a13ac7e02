"""The report of a run to hand in, report.md, made from its run folder."""

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
from curves import table_header, table_row
from mnist import DATA_DIR, MEAN, STD, Augmentation, Loader
from networks import count_parameters, summarize
from recipes import Experiment
from run_folder import is_finished, read_config, read_metrics
from tools.check import checklist
from tools.receptive_field import table
from train import build_loaders

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
    """A finished run, read from its folder."""

    experiment: Experiment
    challenge: Challenge
    config: dict[str, Any]
    records: list[dict[str, Any]]
    loader: Loader  # training images
    test_loader: Loader  # test or validation images


def read_run(folder: Path, data_dir: Path | None = None) -> Run:
    """Reads a run folder; UsageError where it is none, or the run is not finished.

    The dataset is that of the run, unless `data_dir` is given.
    """
    config = read_config(folder)
    if not is_finished(folder):
        resume = f"python train.py --resume {shlex.quote(str(folder))}"
        raise UsageError(f"{folder}: this run is not finished; {resume}")
    experiment = Experiment.from_config(config, folder)
    challenge = CHALLENGES.get(str(config.get("challenge")), CHALLENGES["8k"])
    former = Path(str(config.get("data_dir")))
    data_dir = data_dir or (former if former.exists() else DATA_DIR)  # the clone was moved
    loaders = build_loaders(experiment, torch.device("cpu"), data_dir)
    return Run(experiment, challenge, config, read_metrics(folder), *loaders)


def plot_augmented(run: Run) -> Figure:
    """The first images of epoch 1, before and after augmentation."""
    images, labels, seed = run.loader.images, run.loader.labels, run.loader.seed
    identity = Augmentation(0, 0, 0, 0, "nearest")  # the same seed gives the same order
    loaders = (
        Loader(images, labels, AUGMENTED, augmentation, seed)
        for augmentation in (identity, run.loader.augmentation)
    )
    before, after = (next(iter(loader))[0] * STD + MEAN for loader in loaders)
    half = AUGMENTED // 2
    rows = torch.cat([before[:half], after[:half], before[half:], after[half:]])
    figure = Figure(figsize=(7.5, 3.5), layout="constrained")
    axes = figure.subplots()
    grid = make_grid(1 - rows, half, padding=3, pad_value=0.8)[0]
    axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks([31 * row + 17 for row in range(4)], 2 * ["before", "after"])
    recipe = run.experiment.recipe.name
    axes.set(xticks=[], title=f"{run.experiment.model}: training images of recipe {recipe}")
    return figure


def text_of(run: Run, model: nn.Module, files: list[str]) -> str:
    """The text of report.md, which shows the pictures in `files`."""
    experiment, config = run.experiment, run.config
    pictures = {
        key: f"### {caption}\n\n![{caption}]({file})"
        for key, caption in CAPTIONS.items()
        if (file := f"{experiment.model}-{key}.png") in files
    }
    training = [pictures.pop(key) for key in ("curves", "augmented")]
    settings = [f"| {name} | {value} |" for name, value in config["recipe"].items()]
    words = [f"recipe {experiment.recipe.name}", f"seed {experiment.seed}"]
    words += [f"{key} {config.get(key)}" for key in ("commit", "device", "threads", "torch")]
    rows = table(experiment.model, **experiment.sizes).partition("\n")[2].strip()
    judged = verdict(run.challenge, count_parameters(model), run.records, experiment.holdout)
    parts = [
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
    return "\n\n".join(parts)
