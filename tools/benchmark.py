"""Time an epoch as this repository trains it beside the usual way, interleaved on one machine.

    python -m tools.benchmark
    python -m tools.benchmark --model model3 --device cuda --rounds 5

Three ways to train the same model by the same recipe, in turn, round after round:

    usual       torchvision transforms image by image, a DataLoader with workers, `.item()`
                at every step: the loop of most tutorials
    this        Loader and train_one_epoch of train.py
    arithmetic  forward, backward and optimizer step on one batch that stays where it is

Each is timed over the first --images images; an epoch's seconds are scaled from that to 60,000.
"""

import argparse
import functools
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST
from torchvision.transforms import InterpolationMode

from artifacts import Parser, exit_code, whole_number, write_atomically
from train import (
    DATA_DIR,
    DEFAULT_RECIPE,
    MEAN,
    MODELS,
    RECIPES,
    STD,
    Loader,
    Recipe,
    build_optimizer,
    load_mnist,
    reuse_freed_memory,
    select_device,
    train_one_epoch,
)

RESULT = Path(__file__).parent.parent / "results" / "benchmark.md"
TRAINING_IMAGES = 60_000


def usual_way(
    model_name: str, recipe: Recipe, device: torch.device, images: int, workers: int
) -> Callable[[], None]:
    """An epoch over the first `images` images, as it is usually written."""
    transform = transforms.Compose(
        [
            transforms.RandomAffine(
                recipe.rotation,
                (recipe.translation / 28, recipe.translation / 28),
                (1 / (1 + recipe.scaling), 1 + recipe.scaling),
                recipe.shear,
                InterpolationMode(recipe.interpolation),
            )
            if recipe.translation or recipe.scaling or recipe.shear
            else transforms.RandomRotation(
                recipe.rotation, InterpolationMode(recipe.interpolation), fill=0
            ),
            transforms.ToTensor(),
            transforms.Normalize((MEAN,), (STD,)),
        ]
    )
    dataset = Subset(MNIST(DATA_DIR, train=True, transform=transform), range(images))
    loader = DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = MODELS[model_name]().to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.max_lr, momentum=recipe.momentum, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.max_lr, total_steps=1_000_000)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def epoch() -> None:
        model.train()
        total_loss = correct = 0.0
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(inputs)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total_loss += loss.item()
            correct += (logits.argmax(dim=1) == labels).sum().item()

    return epoch


def this_way(
    model_name: str, recipe: Recipe, device: torch.device, images: int
) -> Callable[[], None]:
    """An epoch over the first `images` images, as train.py does it."""
    pixels, labels = load_mnist(DATA_DIR, train=True)
    loader = Loader(
        pixels[:images].to(device), labels[:images].to(device), recipe.batch_size, recipe
    )
    model = MODELS[model_name]().to(device)
    optimizer, scheduler = build_optimizer(model, recipe, 1_000_000)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    return functools.partial(train_one_epoch, model, loader, criterion, optimizer, scheduler)


def arithmetic_alone(
    model_name: str, recipe: Recipe, device: torch.device, images: int
) -> Callable[[], None]:
    """As many steps on one resident batch, written plainly."""
    model = MODELS[model_name]().to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.max_lr, momentum=recipe.momentum, nesterov=True
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    inputs = torch.randn(recipe.batch_size, 1, 28, 28, device=device)
    labels = torch.randint(10, (recipe.batch_size,), device=device)

    def epoch() -> None:
        model.train()
        for _ in range(images // recipe.batch_size):
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()

    return epoch


def seconds_per_epoch(epoch: Callable[[], object], device: torch.device, images: int) -> float:
    """Wall time of `epoch`, scaled to 60,000 images; waits for the device at both ends."""
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)
    if synchronize:
        synchronize()
    start = time.perf_counter()
    epoch()
    if synchronize:
        synchronize()
    return (time.perf_counter() - start) * TRAINING_IMAGES / images


def start_up_seconds() -> float:
    """From process start to the end of a run of one step, beyond importing the two libraries."""

    def measure(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return time.perf_counter() - start

    root = Path(__file__).parent.parent
    imports = min(measure("-c", "import torch, torchvision") for _ in range(3))
    one_step = ("--dry-run", "--epochs", "1", "--quiet")
    return min(measure(str(root / "train.py"), *one_step) for _ in range(3)) - imports


def machine(device: torch.device) -> str:
    """The hardware and versions, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0].partition(":")[2].strip() if models else name
    if device.type == "cuda":
        name += f", {torch.cuda.get_device_name(device)}"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def benchmark(args: argparse.Namespace) -> None:
    """Time the three ways in turn, print the table and write it to results/benchmark.md."""
    reuse_freed_memory()
    device, recipe = select_device(args.device), RECIPES[args.recipe]
    images = min(args.images, TRAINING_IMAGES)
    ways = {
        f"usual way, {args.workers} workers": usual_way(
            args.model, recipe, device, images, args.workers
        ),
        "this repository": this_way(args.model, recipe, device, images),
        "arithmetic alone": arithmetic_alone(args.model, recipe, device, images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, epoch in ways.items():
            elapsed = seconds_per_epoch(epoch, device, images)
            if turn:  # the first round warms up
                seconds[name].append(elapsed)
                print(f"round {turn}, {name}: {elapsed:.1f} s an epoch", file=sys.stderr)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    usual, this, arithmetic = seconds.values()
    lines = [
        f"{args.model}, recipe {recipe.name}, batches of {recipe.batch_size}, {args.rounds} rounds "
        f"over {images:,} images, scaled to 60,000; {machine(device)}.",
        "",
        "| way | seconds an epoch, median (range) | images a second |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {median[name]:.1f} ({min(values):.1f} to {max(values):.1f}) "
            f"| {TRAINING_IMAGES / median[name]:,.0f} |"
            for name, values in seconds.items()
        ),
        "",
    ]
    for title, above, below in (
        ("usual way / this repository", usual, this),
        ("this repository / arithmetic alone", this, arithmetic),
    ):
        ratios = [a / b for a, b in zip(above, below)]
        lines.append(
            f"- {title}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / 1e6 if sys.platform == "darwin" else peak / 1e3
    lines.append(f"- peak memory of the process that ran all three: {peak_mb:,.0f} MB")
    if device.type == "cuda":
        lines.append(f"- peak memory on the GPU: {torch.cuda.max_memory_allocated() / 1e6:,.0f} MB")
    lines.append(f"- start-up over importing torch and torchvision: {start_up_seconds():.1f} s")
    report = "\n".join(lines) + "\n"
    print(report, end="")
    write_atomically(RESULT, report.encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", choices=list(MODELS), default="model3")
    add("--recipe", choices=list(RECIPES), default=DEFAULT_RECIPE)
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="cpu")
    add("--rounds", type=whole_number(1, 100), default=3)
    add("--images", type=whole_number(1000, TRAINING_IMAGES), default=TRAINING_IMAGES)
    add("--workers", type=whole_number(0, 64), default=min(4, os.cpu_count() or 1))
    return exit_code(benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
