"""Time an epoch as this repository trains it beside the usual way, each alone on the machine.

    python -m tools.benchmark                             # model3, strong and classic
    python -m tools.benchmark --images 2000 --rounds 1    # a trial, of which no record is kept
    python -m tools.benchmark --rounds 0                  # no timing: the table anew

The same network learns by the same recipe, round after round, each way in a process that is
started, warmed up, timed and ended before the next: others in memory slow the usual way down,
though they only wait. Times on fewer images are scaled to 60,000. What was measured goes into
results/benchmark.json, and the table of all of it into results/README.md.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import multiprocessing, nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset

from cli import Parser, RunError, exit_code, whole_number
from device import reuse_freed_memory, select_device
from files import write_atomically
from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, Loader, load_mnist
from networks import ROOT, get_model, list_models
from provenance import describe
from recipes import RECIPES, Recipe
from train import Trainer, train_one_epoch

RECORD, DOCUMENT = ROOT / "results" / "benchmark.json", ROOT / "results" / "README.md"
ALL_IMAGES, TRIAL_IMAGES, WARM_UP_IMAGES = 60_000, 10_000, 2_000
USUAL = "usual way"  # of most tutorials, with the workers and threads that were fastest here
OURS = "this repository"  # Loader and train_one_epoch
AT_ONCE = "seeds at once"  # one single-threaded process per core: the time over their number
# The record has the last two from a former version of this tool.
RATIOS = ((USUAL, OURS), (OURS, AT_ONCE), (OURS, "arithmetic alone"), (OURS, "floor"))
What = tuple[str, Recipe, torch.device]  # a network, a recipe, and where they are timed
Epoch = Callable[[int], object]  # goes once through the first so many training images
Way = Callable[[], Epoch]  # builds all that an epoch needs
Measurement = dict[str, float]  # "seconds", peak "MB" and, where there is one, "MB on the GPU"

# -------------------------------------------------------------------------- what is timed


def usual_way(name: str, recipe: Recipe, device: torch.device, workers: int) -> Epoch:
    """Transforms image by image, a DataLoader, plain SGD, `.item()` at every step."""
    from torchvision import datasets, transforms  # here: no other way needs its memory

    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    shift, scale = recipe.translation / IMAGE_SIZE, 1 + recipe.scaling
    interpolation = transforms.InterpolationMode(recipe.interpolation)
    augment = transforms.RandomRotation(recipe.rotation, interpolation)
    if recipe.translation or recipe.scaling or recipe.shear:
        bounds = recipe.rotation, (shift, shift), (1 / scale, scale), recipe.shear
        augment = transforms.RandomAffine(*bounds, interpolation)
    steps = [augment, transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
    transform = transforms.Compose(steps)
    dataset = datasets.MNIST(DATA_DIR, transform=transform, download=True)  # unpacks the archives
    model = get_model(name).to(device)
    sgd = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": True}
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.max_lr, **sgd)
    scheduler = OneCycleLR(optimizer, recipe.max_lr, total_steps=1_000_000)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    move = get_ema_multi_avg_fn(recipe.ema_decay)
    ema = AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    loading = {"num_workers": workers, "pin_memory": device.type == "cuda", "shuffle": True}

    def epoch(count: int) -> None:
        loader = DataLoader(Subset(dataset, range(count)), recipe.batch_size, **loading)
        total_loss = correct = 0.0
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
    """What train.py does in an epoch that averages."""
    reuse_freed_memory()
    images, labels = (part.to(device) for part in load_mnist(DATA_DIR, train=True))
    trainer = Trainer(get_model(name).to(device), recipe, ALL_IMAGES)  # more than will be taken

    def epoch(count: int) -> None:
        loader = Loader(images[:count], labels[:count], recipe.batch_size, recipe)
        loader.epoch = recipe.epochs  # the last: if any averages, it does
        train_one_epoch(trainer, loader)

    return epoch


# ------------------------------------------------------------------------------ measuring


def time_one(copy: int, way: Way, threads: int, images: int, start: Any, results: Any) -> None:
    """Put into `results` what an epoch took, and the most memory of this process."""
    torch.set_num_threads(threads)
    epoch = way()
    epoch(WARM_UP_IMAGES)
    start.wait()  # for all that are to be timed at once
    begin = time.perf_counter()
    epoch(images)  # ends with figures that are read from the device, so that is done too
    found = {"seconds": (time.perf_counter() - begin) * ALL_IMAGES / images}
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["MB"] = peak / (1e6 if sys.platform == "darwin" else 1e3)
    if peak := torch.cuda.max_memory_allocated():
        found["MB on the GPU"] = peak / 1e6
    results.put(found)


def alone(name: str, way: Way, threads: int, images: int, copies: int = 1) -> Measurement:
    """What an epoch takes in a process of its own; or the slowest of copies, over their number."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(copies, timeout=600), context.SimpleQueue()
    try:
        multiprocessing.spawn(time_one, (way, threads, images, start, results), copies)
    except (ProcessExitedException, ProcessRaisedException) as error:
        raise RunError(f"{name}: {str(error).splitlines()[-1]}") from None
    found = max((results.get() for _ in range(copies)), key=lambda found: found["seconds"])
    return found | {"seconds": found["seconds"] / copies}


def measure(what: What, images: int, rounds: int) -> dict[str, Any]:
    """All that is known of a network and a recipe on this machine, raw, round by round."""
    (model, recipe, device), threads = what, torch.get_num_threads()
    found = describe(device, model) | {"model": model, "recipe": recipe.name}
    where = f"{threads} threads" if device.type == "cpu" else device.type
    found["machine"] = f"{found['device_name'] or processor()}, {where}"
    few, trials = min(images, TRIAL_IMAGES), []
    for workers in (0, 1, 2, 4):  # with the cores that they take, and without
        for count in sorted({threads, max(1, threads - workers)}):
            setting = {"workers": workers, "threads": count}
            trials.append(setting | alone(USUAL, partial(usual_way, *what, workers), count, few))
    best = min(trials, key=lambda trial: trial["seconds"])
    usual, ours = partial(usual_way, *what, best["workers"]), partial(this_repository, *what)
    jobs = {USUAL: (usual, best["threads"], images), OURS: (ours, threads, images)}
    if device.type == "cpu":
        jobs[AT_ONCE] = (ours, 1, images, os.cpu_count() or 1)
    measured: dict[str, list[Measurement]] = {name: [] for name in jobs}
    for number in range(1, rounds + 1):
        for name, job in jobs.items():
            measured[name].append(alone(name, *job))
            print(f"round {number}, {name}: {measured[name][-1]['seconds']:.2f} s", file=sys.stderr)
    return found | {"best": best, "trials": trials, "measured": measured}


def processor() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if "model name" in line).partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------- record and table


def read_record() -> dict[str, dict[str, Any]]:
    """All measurements on record, each under its machine, network and recipe."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def figures(run: dict[str, Any]) -> dict[str, str]:
    """All that was measured, by name."""
    cells = {f"workers, threads of the {USUAL}": "{workers}, {threads}".format(**run["best"])}
    rows = {way: [one["seconds"] for one in found] for way, found in run["measured"].items()}
    for above, below in RATIOS:
        pairs = zip(rows.get(above, []), rows.get(below, []))  # round by round
        rows[f"{above} / {below}"] = [one / other for one, other in pairs]
    for name, values in rows.items():
        if values:
            title = name if "/" in name else f"{name} (s)"
            cells[title] = f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    for way, unit in itertools.product((USUAL, OURS, "train.py, 1 epoch"), ("MB", "MB on the GPU")):
        peaks = [found[unit] for found in run["measured"].get(way, []) if unit in found]
        if peaks:
            cells[f"peak memory, {way} ({unit})"] = f"{max(peaks):,.0f}"
    return cells


def summary(runs: dict[str, dict[str, Any]]) -> str:
    """A table with a column for each run."""
    import pandas as pd  # here, like tools.tables: both would count in every way's memory

    from tools.tables import markdown

    table = pd.DataFrame({title: figures(run) for title, run in runs.items()}).fillna("-")
    return markdown(table.rename_axis("median (range)").reset_index())


def benchmark(args: argparse.Namespace) -> None:
    """Measure, keep what is of all images, and print the table."""
    device, is_kept = select_device(args.device), args.images == ALL_IMAGES
    runs = read_record() if is_kept else {}
    recipes = [args.recipe] if args.recipe else ["strong", "classic"]
    for name in recipes if args.rounds else []:
        run = measure((args.model, RECIPES[name], device), args.images, args.rounds)
        runs[f"{run['machine']}: {run['model']}, {run['recipe']}"] = run
        if is_kept:
            write_atomically(RECORD, json.dumps(runs, indent=1).encode())
    print(summary(runs))
    if is_kept:
        from tools.tables import write_tables

        write_tables(DOCUMENT, {"benchmark": summary(runs)})


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("python -m tools.benchmark", __doc__)
    add, default = parser.add_argument, "default: %(default)s"
    add("--model", choices=list_models(), default="model3", help=default)
    add("--recipe", choices=[*RECIPES], help="default: strong, then classic")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help=default)
    add("--rounds", type=whole_number(0, 100), default=3, help=default)
    add("--images", type=whole_number(1000, ALL_IMAGES), default=ALL_IMAGES, help=default)
    return exit_code(parser.prog, benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
