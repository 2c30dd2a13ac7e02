"""Time an epoch of this repository and of the usual way, in turn, each in a process of its own.

    python -m tools.benchmark               # model3 under "strong" and under "classic"
    python -m tools.benchmark --rounds 0    # no timing: updates the table

Both train the same network with the same recipe, after a warm-up. The usual way is that of most
notebooks for this challenge: torchvision's transforms image by image, `.item()` at every step, and
a DataLoader with four workers and pinned memory on a GPU, without workers on a CPU. The record is
results/benchmark.json, its table in results/README.md.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from cli import Parser, exit_code, whole_number
from device import select_device
from files import write_atomically
from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, Loader
from networks import ROOT, get_model, list_models
from provenance import describe
from recipes import CLASSIC, STRONG, Experiment, Recipe
from train import build_trainer, train_one_epoch

RECORD, DOCUMENT = ROOT / "results" / "benchmark.json", ROOT / "results" / "README.md"
IMAGES, WARM_UP_IMAGES = 60_000, 2_000
Epoch = Callable[[int], object]  # trains on the first N images, each once


def usual_way(name: str, recipe: Recipe, device: torch.device) -> Epoch:
    """An epoch as most notebooks write it, with the EMA of the recipe."""
    from torchvision import datasets, transforms  # here, so that ours is timed without it

    shift, scale = recipe.translation / IMAGE_SIZE, 1 + recipe.scaling
    bounds = recipe.rotation, (shift, shift), (1 / scale, scale), recipe.shear
    augment = transforms.RandomAffine(*bounds, transforms.InterpolationMode(recipe.interpolation))
    steps = [augment, transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
    data = datasets.MNIST(DATA_DIR, transform=transforms.Compose(steps), download=True)
    model = get_model(name).to(device)
    sgd = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.max_lr, **sgd)
    scheduler = OneCycleLR(optimizer, recipe.max_lr, total_steps=1_000_000)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    update = get_ema_multi_avg_fn(recipe.ema_decay)
    ema = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    loading = {"num_workers": 4, "pin_memory": True} if device.type == "cuda" else {}

    def epoch(count: int) -> None:
        loader = DataLoader(Subset(data, range(count)), recipe.batch_size, shuffle=True, **loading)
        total_loss, correct = 0.0, 0
        model.train()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            if recipe.ema_decay:
                ema.update_parameters(model)
            total_loss += loss.item()
            correct += (logits.argmax(dim=1) == labels).sum().item()

    return epoch


def this_repository(name: str, recipe: Recipe, device: torch.device) -> Epoch:
    """An epoch of train.py, with the EMA of the recipe."""
    trainer, whole, _ = build_trainer(Experiment(name, recipe), device.type, DATA_DIR, False)

    def epoch(count: int) -> None:
        images, labels = whole.images[:count], whole.labels[:count]
        loader = Loader(images, labels, recipe.batch_size, whole.augmentation)
        loader.epoch = recipe.epochs  # the last, which has an EMA
        train_one_epoch(trainer, loader)

    return epoch


WAYS = {"usual way": usual_way, "this repository": this_repository}


def time_epoch(way: str, name: str, recipe: Recipe, device: torch.device, images: int) -> float:
    """The seconds of an epoch on `images` images, after a warm-up."""
    epoch = WAYS[way](name, recipe, device)
    epoch(WARM_UP_IMAGES)
    begin = time.perf_counter()
    epoch(images)  # reading its loss synchronizes the device
    return time.perf_counter() - begin


def time_alone(*what: Any) -> float:
    """`time_epoch` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(time_epoch, *what).result()


def table(runs: dict[str, dict[str, Any]]) -> str:
    """A column per run in Markdown: median and range over its rounds."""
    import pandas as pd  # here, so that timed processes do not import it

    from tools.tables import markdown

    columns = {}
    for title, run in runs.items():
        rows = {f"{way} (s)": seconds for way, seconds in run["seconds"].items()}
        rows["ratio"] = [usual / ours for usual, ours in zip(*rows.values())]  # round by round
        cells = {k: f"{median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for k, v in rows.items()}
        columns[title] = cells
    return markdown(pd.DataFrame(columns).rename_axis("median (range)").reset_index())


def benchmark(args: argparse.Namespace) -> None:
    """Measures, writes the record, and updates the table."""
    from tools.tables import write_tables

    device = select_device(args.device)
    runs = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found = describe(device, args.model)
    place = f"{found['threads']} threads" if device.type == "cpu" else device.type
    for recipe in (STRONG, CLASSIC) if args.rounds else ():
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _, way in tqdm([*product(range(args.rounds), WAYS)], desc=recipe.name, unit="epoch"):
            seconds[way].append(time_alone(way, args.model, recipe, device, IMAGES))
        title = f"{found['device_name']}, {place}: {args.model}, {recipe.name}"
        runs[title] = found | {"seconds": seconds}
    print(table(runs))
    write_atomically(RECORD, (json.dumps(runs, indent=1) + "\n").encode())
    write_tables(DOCUMENT, {"benchmark": table(runs)})


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser, default = Parser("python -m tools.benchmark", __doc__), "default: %(default)s"
    add = parser.add_argument
    add("--model", choices=list_models(), default="model3", help=default)
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help=default)
    add("--rounds", type=whole_number(0, 100), default=3, help=default)
    return exit_code(parser.prog, benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
