"""Train one of three small networks on MNIST, and say whether it meets the challenge.

    python train.py                     # model3, 15 epochs, on the best device there is
    python train.py --model all         # the three attempts, one after the other

The challenge: at most 8,000 parameters, at most 15 epochs, and at least 99.4 % test
accuracy in every one of the last five epochs. What a run prints, a row as each epoch ends:

    | Epoch | Train Acc (%) |     LR | Test Loss | Test Acc (%) | Time (s) |
    | ----: | ------------: | -----: | --------: | -----------: | -------: |
    |     1 |         90.83 | 0.0325 |    0.2074 |        98.19 |     18.6 |

Train accuracy is that of the augmented images while the network learns from them.
LR is the learning rate after the epoch's last batch. Time is the training of the epoch, without
the evaluation that follows it.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import gzip
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchsummary import summary
from tqdm import tqdm

from artifacts import (
    RunError,
    UsageError,
    at_work,
    describe,
    exit_code,
    load_checkpoint,
    load_weights,
    metrics_csv,
    new_run_folder,
    plot_curves,
    read_config,
    reuse_freed_memory,
    state_bytes,
    table_header,
    table_row,
    train_arguments,
    train_parser,
    verdict,
    warn_of_changes,
    write_atomically,
)
from model1 import Model_1
from model2 import Model_2
from model3 import Model_3

DATA_DIR = Path(__file__).parent / "data"
MODELS = {"model1": Model_1, "model2": Model_2, "model3": Model_3}

MEAN, STD = 0.1307, 0.3081  # of the pixels of the 60,000 training images, in [0, 1]
TEST_BATCH_SIZE = 250  # published: 1,024; the result is the same, the peak of memory 65 MB lower
IMAGE_SIZE = 28  # pixels, both ways

MNIST_ARCHIVES = {  # images and labels for training, then for testing; MD5 as published
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


# ------------------------------------------------------------------------------ recipes


@dataclass(frozen=True)
class Recipe:
    """All that decides how a network is trained: one field a setting, the whole experiment."""

    name: str
    epochs: int = 15
    batch_size: int = 128  # images
    # Augmentation: every image has a draw of its own, uniform within these bounds.
    rotation: float = 7.0  # degrees, to both sides
    translation: float = 0.0  # pixels, to both sides, along x and along y
    scaling: float = 0.0  # 0.1 means from 1/1.1 to 1.1 times the size, uniform in the logarithm
    shear: float = 0.0  # degrees, to both sides
    interpolation: str = "nearest"
    # SGD with Nesterov momentum; OneCycleLR, stepped after every batch.
    momentum: float = 0.9
    weight_decay: float = 0.0  # of filters and matrices, not of biases and BatchNorm
    max_lr: float = 0.3
    pct_start: float = 0.2  # the part of all batches in which the learning rate rises
    div_factor: float = 10.0  # starts at max_lr / 10
    final_div_factor: float = 100.0  # ends at max_lr / 10 / 100
    # Cross-entropy, for training and for the reported loss.
    label_smoothing: float = 0.02
    # Exponential moving average of the weights and of BatchNorm's statistics, after every step.
    # The averaged network is the one that is evaluated and kept; until it begins, a plain copy.
    ema_decay: float = 0.0  # 0 for none

    def averages(self, epoch: int) -> bool:
        """Whether weights are averaged in `epoch`, from 1: once the learning rate only falls."""
        return self.ema_decay > 0 and epoch > math.ceil(self.pct_start * self.epochs)


RECIPES = {
    "classic": Recipe("classic"),
    "strong": Recipe(
        "strong",
        batch_size=32,
        rotation=10.0,
        translation=2.0,
        scaling=0.1,
        shear=5.0,
        interpolation="bilinear",
        weight_decay=2e-4,
        max_lr=0.1,
        ema_decay=0.9995,  # over some 2,000 batches: about one epoch
    ),
}
DEFAULT_RECIPE = "strong"


# ------------------------------------------------------------------------------- device


def select_device(name: str) -> torch.device:
    """CUDA, then MPS, then CPU for "auto"; an absent device is an error, never a fallback."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    present = [device for device, is_there in available.items() if is_there]
    if name != "auto" and name not in present:
        raise UsageError(
            f"--device {name}: there is none here; choose from auto, {', '.join(present)}"
        )
    return torch.device(present[0] if name == "auto" else name)


# --------------------------------------------------------------------------------- data


def download(name: str, folder: Path) -> Path:
    """Fetch an archive from the first of torchvision's mirrors that has it, or RuntimeError."""
    from torchvision.datasets import MNIST  # here, since it would nearly double the start-up
    from torchvision.datasets.utils import download_url

    folder.mkdir(parents=True, exist_ok=True)
    for mirror in MNIST.mirrors:
        with (
            contextlib.suppress(OSError, RuntimeError),
            tempfile.TemporaryDirectory(dir=folder) as partial,
        ):
            download_url(f"{mirror}{name}", partial, md5=MNIST_ARCHIVES[name])
            return Path(partial, name).rename(folder / name)
    raise RuntimeError(f"{name} cannot be downloaded")


def load_mnist(data_dir: str | Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) as uint8 and labels (N,) as int64: 60,000 or, for testing, 10,000.

    Reads the archives in `data_dir`/MNIST/raw, and downloads those that are missing.
    Raises UsageError when that is impossible or when one is not as published.
    """
    raw, absent, parts = Path(data_dir) / "MNIST" / "raw", [], []
    try:
        absent = [folder for folder in (raw, *raw.parents) if not folder.exists()]
        for name, md5 in MNIST_ARCHIVES.items():
            path = raw / name
            if not path.exists():
                download(name, raw)
            content = path.read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                raise UsageError(
                    f"{path} is damaged (MD5 differs); delete it and it will be downloaded again"
                )
            if name.startswith("train") == train:
                content = bytearray(gzip.decompress(content))
                parts.append(torch.frombuffer(content, dtype=torch.uint8))
    except (RuntimeError, OSError) as error:
        with contextlib.suppress(OSError):  # what was made for the download, if it is empty
            for folder in absent:
                folder.rmdir()
        reason = str(error).partition("\n")[0].rstrip(":")
        names = ", ".join(MNIST_ARCHIVES)
        raise UsageError(
            f"--data-dir {data_dir}: no MNIST there ({reason}); put {names} into {raw}"
        ) from None
    images, labels = parts
    # Before the pixels, the file says in 16 bytes what it holds; before the labels, in 8.
    return images[16:].view(-1, 1, IMAGE_SIZE, IMAGE_SIZE), labels[8:].long()


def draw_affine_maps(recipe: Recipe, count: int, generator: torch.Generator) -> Tensor:
    """One random affine map for each of `count` images: (count, 2, 3), as affine_grid takes it.

    A map leads from a pixel of the result to the place in the image that it is read from,
    with both axes running from -1 to 1; the arithmetic is that of torchvision's `affine`.
    """

    def uniform(bound: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * bound

    angle, shear = uniform(math.radians(recipe.rotation)), uniform(math.radians(recipe.shear))
    scale = uniform(math.log1p(recipe.scaling)).exp()
    shift = uniform(recipe.translation), uniform(recipe.translation)
    # The inverse of shift * rotation * shear * scale, as in torchvision's `affine`.
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    to_x = torch.stack([cos - sin * tan, sin + cos * tan], dim=1) / scale[:, None]
    to_y = torch.stack([-sin, cos], dim=1) / scale[:, None]
    linear = torch.stack([to_x, to_y], dim=1)
    offset = -linear @ torch.stack(shift, dim=1)[:, :, None] / (IMAGE_SIZE / 2)
    return torch.cat([linear, offset], dim=2)


def augment(images: Tensor, maps: Tensor, interpolation: str) -> Tensor:
    """Move each image (N, 1, H, W) by its own map (N, 2, 3); black comes in from outside."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, align_corners=False)


def mix_seed(seed: int, epoch: int) -> int:
    """One 32-bit seed for the pair (seed, epoch); torch's CPU generator takes no more bits."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


class Loader:
    """Batches of (images, labels) from a dataset that stays on its device as uint8.

    Without a recipe: every image, in order, unchanged. With one: shuffled and augmented, by
    draws that are a pure function of (seed, epoch) and made on the CPU, so that every device
    sees the same batches and no epoch depends on an earlier one. `epoch` is set by the caller.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.recipe, self.seed, self.epoch = recipe, seed, 1

    def __len__(self) -> int:
        """The number of batches, the last and shorter one included."""
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 1, 28, 28), float32 and normalised, and labels (B,)."""
        if self.recipe is None:
            batches = zip(self.images.split(self.batch_size), self.labels.split(self.batch_size))
            for images, labels in batches:
                yield self.normalize(images.float().div_(255)), labels
            return
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        maps = draw_affine_maps(self.recipe, len(self.images), generator)
        order, maps = order.to(self.images.device), maps.to(self.images.device)
        for index, map in zip(order.split(self.batch_size), maps.split(self.batch_size)):
            images = self.images[index].float().div_(255)
            images = augment(images, map, self.recipe.interpolation)
            yield self.normalize(images), self.labels[index]

    @staticmethod
    def normalize(images: Tensor) -> Tensor:
        return images.sub_(MEAN).div_(STD)


# ----------------------------------------------------------------------------- training


def build_optimizer(
    model: nn.Module, recipe: Recipe, batches_per_epoch: int
) -> tuple[torch.optim.SGD, OneCycleLR]:
    """SGD-Nesterov, and the OneCycleLR to step after each of epochs x batches_per_epoch batches."""
    total_steps, pct_start = recipe.epochs * batches_per_epoch, recipe.pct_start
    if pct_start * total_steps == 1:  # OneCycleLR would divide by the 0 steps from first to peak
        pct_start += 1e-9
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others}],
        lr=recipe.max_lr,
        momentum=recipe.momentum,
        nesterov=True,
        fused=True,  # one kernel for all parameters
    )
    scheduler = OneCycleLR(
        optimizer,
        max_lr=recipe.max_lr,
        total_steps=total_steps,
        pct_start=pct_start,
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    )
    return optimizer, scheduler


def build_average(averaged: nn.Module, model: nn.Module, decay: float) -> Callable[[], None]:
    """A function that moves `averaged`, a copy of `model`, a step toward it, statistics included.

    AveragedModel of the same module does the same, but makes a GPU wait at every step, since it
    looks at how many there were.
    """
    move = get_ema_multi_avg_fn(decay)
    averages, values = (
        [value for value in module.state_dict().values() if value.is_floating_point()]
        for module in (averaged, model)
    )
    return lambda: move(averages, values, 0)  # the 0 is a count, which this average does not use


def replay_as_graph(model: nn.Module, batch_size: int) -> None:
    """On CUDA: make forward and backward of full batches one launch each, not hundreds.

    Kernels of so small a network take less time than their launches. Short batches and evaluation
    run as before; so does everything where no graph can be captured.
    """
    gc.collect()  # of an earlier model's graphs: they must not be freed during the capture
    device = next(model.parameters()).device
    sample = torch.zeros(batch_size, 1, IMAGE_SIZE, IMAGE_SIZE, device=device)
    state, plain = copy.deepcopy(model.state_dict()), model.forward
    try:
        graphed = torch.cuda.make_graphed_callables(model.train(), (sample,)).forward
    except RuntimeError as error:
        print(f"warning: no CUDA graph, so slower ({error})".splitlines()[0], file=sys.stderr)
        graphed = plain
    model.load_state_dict(state)  # the capture ran a few batches of zeros through BatchNorm
    model.forward = lambda images: (graphed if images.shape == sample.shape else plain)(images)


def train_one_epoch(
    model: nn.Module,
    loader: Loader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: OneCycleLR,
    update_average: Callable[[], None] | None = None,
    show_bar: bool = False,
) -> tuple[float, float]:
    """Train on every batch of `loader` once; mean loss and accuracy in %, measured on the way.

    Raises RunError when a loss was not finite. Only the bar makes the device wait before the end.
    """
    model.train()
    losses = torch.zeros(len(loader), device=loader.labels.device)
    correct = torch.zeros((), dtype=torch.long, device=loader.labels.device)
    with tqdm(loader, desc=f"epoch {loader.epoch}", leave=False, disable=not show_bar) as bar:
        for step, (images, labels) in enumerate(bar):
            logits = model(images)
            loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if update_average is not None:
                update_average()
            losses[step] = loss.detach() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            if show_bar and step % 50 == 49:
                seen = (step + 1) * loader.batch_size
                bar.set_postfix_str(
                    f"loss {losses.sum().item() / seen:.4f}, "
                    f"accuracy {100 * correct.item() / seen:.2f} %, "
                    f"LR {scheduler.get_last_lr()[0]:.4f}"
                )
            scheduler.step()
    not_finite = torch.nonzero(~losses.isfinite())
    if len(not_finite):
        raise RunError(
            f"the loss is not finite since epoch {loader.epoch}, batch {not_finite[0].item() + 1} "
            f"of {len(loader)}; try another seed or recipe"
        )
    return losses.sum().item() / len(loader.labels), 100 * correct.item() / len(loader.labels)


def evaluate(model: nn.Module, loader: Loader, criterion: nn.Module) -> tuple[float, float]:
    """Mean loss and accuracy in % over every image of `loader`, each counted once."""
    model.eval()
    loss = torch.zeros((), device=loader.labels.device)
    correct = torch.zeros((), dtype=torch.long, device=loader.labels.device)
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images)
            loss += criterion(logits, labels) * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
    return loss.item() / len(loader.labels), 100 * correct.item() / len(loader.labels)


# --------------------------------------------------------------------------------- run


def build_loaders(
    recipe: Recipe,
    seed: int,
    device: torch.device,
    data_dir: Path = DATA_DIR,
    holdout: int = 0,
    dry_run: bool = False,
) -> tuple[Loader, Loader]:
    """The training images, shuffled and augmented, and the test images, or those held out."""
    images, labels = load_mnist(data_dir, train=True)
    if holdout:
        images, test_images = images[:-holdout], images[-holdout:]
        labels, test_labels = labels[:-holdout], labels[-holdout:]
    else:
        test_images, test_labels = load_mnist(data_dir, train=False)
    if dry_run:
        images, labels = images[: recipe.batch_size], labels[: recipe.batch_size]
        test_images, test_labels = test_images[:TEST_BATCH_SIZE], test_labels[:TEST_BATCH_SIZE]
    return (
        Loader(images.to(device), labels.to(device), recipe.batch_size, recipe, seed),
        Loader(test_images.to(device), test_labels.to(device), TEST_BATCH_SIZE),
    )


def run(
    model_name: str,
    recipe: Recipe,
    *,
    seed: int = 42,
    device: str = "auto",
    data_dir: Path = DATA_DIR,
    out_dir: Path = Path("runs"),
    holdout: int = 0,
    folder: Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train one model, print as it goes, and return a record of each epoch.

    With `holdout`, the last so many training images are not trained on and take the place of
    the test set. `folder` is that of a run to go on with; without it a new one is made under
    `out_dir`. A `dry_run` takes one batch of each set.
    """
    begin = time.perf_counter()
    target, split = select_device(device), "val" if holdout else "test"
    loader, test_loader = build_loaders(recipe, seed, target, data_dir, holdout, dry_run)

    torch.manual_seed(seed)
    model = MODELS[model_name]().to(target)
    optimizer, scheduler = build_optimizer(model, recipe, len(loader))
    averaged = copy.deepcopy(model)
    update_average = build_average(averaged, model, recipe.ema_decay)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    stateful: dict[str, Any] = {
        "model": model,
        "averaged": averaged,
        "optimizer": optimizer,
        "scheduler": scheduler,
    }
    records: list[dict[str, Any]] = []

    title = f"{model_name}, recipe {recipe.name}, seed {seed}"
    if folder is None:
        folder = new_run_folder(Path(out_dir), f"{model_name}-{recipe.name}-seed{seed}")
    say = (lambda text: None) if quiet else functools.partial(print, flush=True)
    if not quiet:
        say(f"{title}, device {target}, torch {torch.__version__}")
        with torch.random.fork_rng(devices=[]):  # torchsummary trains what it is given: a copy
            summary(copy.deepcopy(model).cpu(), (1, IMAGE_SIZE, IMAGE_SIZE), device="cpu")
    show_bar = not quiet and sys.stdout.isatty() and sys.stderr.isatty()
    with contextlib.nullcontext() if dry_run else at_work(folder), reuse_freed_memory():
        if not (folder / "config.json").exists():
            config = {"model": model_name, "recipe": dataclasses.asdict(recipe), "seed": seed}
            config |= {"holdout": holdout, "data_dir": str(Path(data_dir).resolve())}
            config |= describe(target)
            write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
        elif (folder / "checkpoint.pt").exists():
            records = load_checkpoint(folder / "checkpoint.pt", stateful)
        say("\n".join(["", table_header(split), *(table_row(row, split) for row in records)]))
        if target.type == "cuda":
            replay_as_graph(model, recipe.batch_size)
        for epoch in range(len(records) + 1, recipe.epochs + 1):
            torch.manual_seed(mix_seed(seed, epoch))  # dropout's draws: no state to save
            loader.epoch = epoch
            clock = time.perf_counter()
            is_averaging = recipe.averages(epoch)
            train_loss, train_acc = train_one_epoch(
                model,
                loader,
                criterion,
                optimizer,
                scheduler,
                update_average if is_averaging else None,
                show_bar,
            )
            seconds = time.perf_counter() - clock  # the device is done: the loss was read from it
            if not is_averaging:
                averaged.load_state_dict(model.state_dict())
            loss, accuracy = evaluate(averaged, test_loader, criterion)
            if not math.isfinite(loss):
                raise RunError(
                    f"the {split} loss is not finite after epoch {epoch}; "
                    "try another seed or recipe"
                )
            record = {
                "epoch": epoch,
                "train_loss": train_loss,
                "train_acc": train_acc,
                "lr": scheduler.get_last_lr()[0],
                f"{split}_loss": loss,
                f"{split}_acc": accuracy,
                "seconds": seconds,
            }
            records.append(record)
            # The checkpoint comes last, so that what it takes as done has its row.
            write_atomically(folder / "metrics.csv", metrics_csv(records, split))
            state = {name: part.state_dict() for name, part in stateful.items()}
            write_atomically(folder / "checkpoint.pt", state_bytes(state | {"records": records}))
            say(table_row(record, split))
        write_atomically(folder / "curves.png", plot_curves(records, split, title))
        write_atomically(folder / "weights.pt", state_bytes(averaged.state_dict()))
    say("")
    print(f"{title}: {verdict(model, records, split)}")
    trained = sum(record["seconds"] for record in records)
    print(f"{trained:.0f} s of training, {time.perf_counter() - begin:.0f} s in all", flush=True)
    if not dry_run:
        say(f"Weights, curves and records are in {folder}")
    return records


# ------------------------------------------------------------------------ command line


def train(args: argparse.Namespace) -> None:
    """Train the model that was asked for, or all three, each in a folder of its own."""
    recipe = RECIPES[args.recipe or DEFAULT_RECIPE]
    batch_size = args.batch_size or recipe.batch_size
    recipe = dataclasses.replace(
        recipe,
        epochs=args.epochs or recipe.epochs,
        batch_size=batch_size,
        # The average reaches back as many images, whatever a batch has.
        ema_decay=recipe.ema_decay ** (batch_size / recipe.batch_size),
    )
    settings = {"seed": 42 if args.seed is None else args.seed, "holdout": args.holdout or 0}
    settings |= {"device": args.device or "auto", "quiet": args.quiet}
    settings |= {"data_dir": args.data_dir or DATA_DIR}
    for name in MODELS if args.model == "all" else [args.model or "model3"]:
        if args.dry_run:
            with tempfile.TemporaryDirectory() as out_dir:
                run(name, recipe, **settings, out_dir=Path(out_dir), dry_run=True)
        else:
            run(name, recipe, **settings, out_dir=args.out_dir or Path("runs"))


def resume(args: argparse.Namespace) -> None:
    """Go on with the run in the folder `args.resume`, under the settings that it began with."""
    config = read_config(args.resume, vars(args), MODELS, Recipe)
    if not args.threads and config["threads"] <= (os.cpu_count() or 1):
        torch.set_num_threads(config["threads"])  # as before, for the same last digits
    device = args.device or config["device"]
    warn_of_changes(config, describe(select_device(device)))
    run(
        config["model"],
        config["recipe"],
        seed=config["seed"],
        device=device,
        data_dir=args.data_dir or Path(config["data_dir"]),
        holdout=config["holdout"],
        folder=args.resume,
        quiet=args.quiet,
    )


def print_evaluation(args: argparse.Namespace) -> None:
    """Print loss and accuracy of the weights in `args.evaluate` on the 10,000 test images."""
    try:
        name, model = load_weights(args.evaluate, MODELS, args.model)
    except UsageError as error:
        raise UsageError(f"--evaluate {error}") from None
    device = select_device(args.device or "auto")
    images, labels = load_mnist(args.data_dir or DATA_DIR, train=False)
    loader = Loader(images.to(device), labels.to(device), TEST_BATCH_SIZE)
    smoothing = RECIPES[args.recipe or DEFAULT_RECIPE].label_smoothing
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    loss, accuracy = evaluate(model.to(device), loader, criterion)
    print(f"{name}: test loss {loss:.4f}, test accuracy {accuracy:.2f} %")
    print(f"What it gets wrong: python -m tools.report {args.evaluate} --out pictures")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = train_arguments(train_parser(MODELS, RECIPES, DEFAULT_RECIPE), argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    return exit_code(resume if args.resume else print_evaluation if args.evaluate else train, args)


if __name__ == "__main__":
    sys.exit(main())
