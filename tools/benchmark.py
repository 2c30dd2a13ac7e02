"""Time an epoch as this repository trains it beside the usual way, interleaved on one machine.

    python -m tools.benchmark
    python -m tools.benchmark --model model3 --device cuda --rounds 5

Three ways to train the same model by the same recipe, in turn, round after round:

    usual way        torchvision transforms image by image, a DataLoader with workers, `.item()`
                     at every step: the loop of most tutorials
    this repository  Loader and train_one_epoch of train.py
    arithmetic alone forward, backward and optimizer step on one batch that stays where it is

Each has a process of its own and waits there for its turn, since what train.py asks of the
memory allocator holds for a whole process and would help the other two. On a CPU a fourth row
trains one seed a core at the same time, one thread each, as tools.seed_study does.

Each is timed over the first --images images; an epoch's seconds are scaled from that to 60,000.
"""

import argparse
import contextlib
import copy
import functools
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from artifacts import (
    Parser,
    RunError,
    exit_code,
    reuse_freed_memory,
    table_row,
    whole_number,
    write_atomically,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST
from torchvision.transforms import InterpolationMode

from train import (
    DATA_DIR,
    MEAN,
    MODELS,
    RECIPES,
    STD,
    TEST_BATCH_SIZE,
    Loader,
    Recipe,
    build_average,
    build_optimizer,
    evaluate,
    load_mnist,
    replay_as_graph,
    select_device,
    train_one_epoch,
)

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "results" / "benchmark.md"
TRAINING_IMAGES = 60_000
WAYS = ("usual way", "this repository", "arithmetic alone")


def plain_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD-Nesterov as it is usually written: one group, and torch's default kernels."""
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.max_lr,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )


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
    mnist = MNIST(DATA_DIR, train=True, transform=transform, download=True)  # unpacks the archives
    dataset = Subset(mnist, range(images))
    loader = DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = MODELS[model_name]().to(device)
    optimizer = plain_optimizer(model, recipe)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.max_lr, total_steps=1_000_000)
    averaged = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True
    )
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
            if recipe.ema_decay:
                averaged.update_parameters(model)
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
    average = build_average(copy.deepcopy(model), model, recipe.ema_decay)
    if device.type == "cuda":
        replay_as_graph(model, recipe.batch_size)
    return functools.partial(
        train_one_epoch,
        model,
        loader,
        criterion,
        optimizer,
        scheduler,
        average if recipe.ema_decay else None,
    )


def arithmetic_alone(
    model_name: str, recipe: Recipe, device: torch.device, images: int
) -> Callable[[], None]:
    """As many steps on one resident batch, written plainly."""
    model = MODELS[model_name]().to(device)
    optimizer = plain_optimizer(model, recipe)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    inputs = torch.randn(recipe.batch_size, 1, 28, 28, device=device)
    labels = torch.randint(10, (recipe.batch_size,), device=device)

    def epoch() -> None:
        model.train()
        for _ in range(round(images / recipe.batch_size)):
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()

    return epoch


def evaluation_overhead(model_name: str, recipe: Recipe, device: torch.device) -> float:
    """Seconds that evaluation and the row of the table take beyond the forward passes."""
    images, labels = load_mnist(DATA_DIR, train=False)
    loader = Loader(images.to(device), labels.to(device), TEST_BATCH_SIZE)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    model = MODELS[model_name]().to(device).eval()
    resident = [images for images, _ in loader]

    def forward_alone() -> None:
        with torch.inference_mode():
            for images in resident:
                model(images)

    def with_all() -> None:
        loss, accuracy = evaluate(model, loader, criterion)
        record = {"epoch": 1, "train_acc": 0.0, "lr": 0.0, "seconds": 0.0}
        print(
            table_row(record | {"test_loss": loss, "test_acc": accuracy}, "test"), file=sys.stderr
        )

    rounds = [(timed(with_all, device), timed(forward_alone, device)) for _ in range(7)]
    return statistics.median(whole - part for whole, part in rounds)


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Wall time of `action` in seconds; waits for the device at both ends."""
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)
    if synchronize:
        synchronize()
    start = time.perf_counter()
    action()
    if synchronize:
        synchronize()
    return time.perf_counter() - start


# ----------------------------------------------------------------------------- processes


def peak_mb() -> float:
    """Most memory that this process has had resident, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def wait_for_turns(turns: Connection, way: str, threads: int, args: argparse.Namespace) -> None:
    """Train an epoch in `way` at each turn and send its seconds; at the end, the peak memory."""
    torch.set_num_threads(threads)
    device, recipe = select_device(args.device), RECIPES[args.recipe]
    keep = contextlib.nullcontext()
    if way == "usual way":
        epoch = usual_way(args.model, recipe, device, args.images, args.workers)
    elif way == "arithmetic alone":
        epoch = arithmetic_alone(args.model, recipe, device, args.images)
    else:
        keep = reuse_freed_memory()
        epoch = this_way(args.model, recipe, device, args.images)
    with keep:
        timed(epoch, device)  # warms up
        turns.send(None)
        while turns.recv():
            turns.send(timed(epoch, device) * TRAINING_IMAGES / args.images)
    gpu_mb = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None
    turns.send((peak_mb(), gpu_mb))


@contextlib.contextmanager
def started(way: str, threads: int, args: argparse.Namespace) -> Iterator[Connection]:
    """A process that trains in `way` when it is told to; it is warmed up and waits."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Not a daemon: the workers of a DataLoader are children of their own.
    process = context.Process(target=wait_for_turns, args=(theirs, way, threads, args))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
    except EOFError:
        raise RunError("a process of the benchmark has ended; what it said is above") from None
    finally:
        process.terminate()
        process.join()


def take_turn(processes: list[Connection]) -> float:
    """Let all of `processes` train an epoch at once; seconds for each, over their number."""
    for process in processes:
        process.send(True)
    return max(process.recv() for process in processes) / len(processes)


def whole_run(model_name: str, recipe: Recipe, epochs: int) -> tuple[float, float]:
    """Seconds and peak MB of `train.py` in a process of its own, evaluation and files included."""
    options = ["--model", model_name, "--recipe", recipe.name, "--epochs", str(epochs)]
    with tempfile.TemporaryDirectory() as out_dir:
        command = [sys.executable, str(ROOT / "train.py"), *options, "--quiet", "--device", "cpu"]
        begin = time.perf_counter()
        process = subprocess.Popen([*command, "--out-dir", out_dir], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RunError(f"train.py {' '.join(options)} failed")
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return time.perf_counter() - begin, peak


def start_up_seconds(device: torch.device) -> tuple[float, float]:
    """From process start to the end of a run of one step; and importing the two libraries."""

    def measure(*command: str) -> float:
        start = time.perf_counter()
        if subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode:
            raise RunError(f"{' '.join(command)} failed; what it said is above")
        return time.perf_counter() - start

    imports = min(measure("-c", "import torch, torchvision") for _ in range(3))
    one_step = ("--dry-run", "--epochs", "1", "--quiet", "--device", device.type)
    return min(measure(str(ROOT / "train.py"), *one_step) for _ in range(3)), imports


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
    """Time the ways in turn and print the table; keep it if it is of all images."""
    device, recipe = select_device(args.device), RECIPES[args.recipe]
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    at_once = f"this repository, {cores} seeds at once"
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, tuple[float, float | None]] = {}
    with contextlib.ExitStack() as stack:
        ways = {way: [stack.enter_context(started(way, threads, args))] for way in WAYS}
        if device.type == "cpu":
            ways[at_once] = [
                stack.enter_context(started("this repository", 1, args)) for _ in range(cores)
            ]
        for turn in range(args.rounds):
            for way, processes in ways.items():
                seconds.setdefault(way, []).append(take_turn(processes))
                latest = f"{seconds[way][-1]:.2f} s an epoch"
                print(f"round {turn + 1}, {way}: {latest}", file=sys.stderr)
        for way, processes in ways.items():
            for process in processes:
                process.send(False)
            peaks[way] = max(process.recv() for process in processes)
    median = {way: statistics.median(values) for way, values in seconds.items()}

    def ratio(above: str, below: str) -> str:
        ratios = [a / b for a, b in zip(seconds[above], seconds[below])]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        return f"- {above} / {below}: {statistics.median(ratios):.2f} ({spread})"

    lines = [
        f"{args.model}, recipe {recipe.name}, batches of {recipe.batch_size}, {args.rounds} rounds "
        f"over {args.images:,} images, scaled to 60,000; the usual way with {args.workers} "
        f"workers; {machine(device)}. Memory is that of one process, without workers.",
        "",
        "| way | seconds an epoch, median (range) | images a second | peak memory (MB) |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {way} | {median[way]:.2f} ({min(values):.2f} to {max(values):.2f}) "
            f"| {TRAINING_IMAGES / median[way]:,.0f} | {peaks[way][0]:,.0f} |"
            for way, values in seconds.items()
        ),
        "",
        ratio("usual way", "this repository"),
        ratio("this repository", "arithmetic alone"),
    ]
    if at_once in ways:
        lines.append(ratio("this repository", at_once))
    overhead = evaluation_overhead(args.model, recipe, device)
    lines.append(
        "- evaluation and the row of the table, beyond the forward passes: "
        f"{overhead:.2f} s, {overhead / median['this repository']:.1%} of an epoch"
    )
    start_up, imports = start_up_seconds(device)
    lines.append(
        f"- start-up: {start_up:.1f} s from the command to the end of a run of one step; "
        f"importing torch and torchvision alone takes {imports:.1f} s"
    )
    if device.type == "cuda":
        lines.append(f"- peak memory on the GPU: {peaks['this repository'][1]:,.0f} MB")
    else:
        (one, one_mb), (five, five_mb) = (whole_run(args.model, recipe, n) for n in (1, 5))
        lines.append(
            f"- all of train.py: 1 epoch {one:.1f} s and {one_mb:,.0f} MB, "
            f"5 epochs {five:.1f} s and {five_mb:,.0f} MB"
        )
    report = "\n".join(lines) + "\n"
    print(report, end="")
    if args.images == TRAINING_IMAGES:
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
    add("--recipe", choices=list(RECIPES), default="classic")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="cpu")
    add("--rounds", type=whole_number(1, 100), default=3)
    add("--images", type=whole_number(1000, TRAINING_IMAGES), default=TRAINING_IMAGES)
    add("--workers", type=whole_number(0, 64), default=min(4, os.cpu_count() or 1))
    return exit_code(benchmark, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
