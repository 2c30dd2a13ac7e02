"""Train one of the small networks on MNIST, and say whether it meets the challenge.

    python train.py                     # model3, 15 epochs, on the best device there is
    python train.py --model all         # the attempts, one after the other
    python train.py --model model4 --recipe fast    # four epochs: 99.4 % on average
    python train.py --resume runs/model3-strong-seed42
    python train.py --evaluate weights/model3.pt

The challenge: at most 8,000 parameters, at most 15 epochs, and at least 99.4 % test
accuracy in every one of the last five epochs. What a run prints, a row as each epoch ends:

    | Epoch | Train Acc (%) |     LR | Test Loss | Test Acc (%) | Time (s) |
    | ----: | ------------: | -----: | --------: | -----------: | -------: |
    |     1 |         91.93 | 0.0325 |    0.2070 |        98.28 |     20.3 |

Train accuracy is that of the augmented images while the network learns from them.
LR is the learning rate after the epoch's last batch. Time is the training of the epoch, without
the evaluation that follows it.

Each run has a folder of its own: config.json, metrics.csv (a row per epoch), checkpoint.pt (what
a resume needs), weights.pt (after the last epoch, or their average) and curves.png.
Exit codes: 0 done, 1 the run failed, 2 bad arguments or files, 130 Ctrl-C, 141 when whoever
read the output is gone, 143 SIGTERM.
"""

import command_line  # isort: skip  # first: it keeps Ctrl-C quiet while torch is imported
import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchsummary import summary
from tqdm import tqdm

import mnist
import run_folder
from command_line import RunError, UsageError
from mnist import DATA_DIR, IMAGE_SIZE, AverageOfViews, Loader, load_mnist, mix_seed
from run_folder import MODELS, EpochRecord, reuse_freed_memory, table_header, table_row, verdict

TEST_BATCH_SIZE = 250  # images; published: 1,024, with the same result and 65 MB more at the peak


# ------------------------------------------------------------------------------ recipes


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training, one field each, with its unit: the whole experiment."""

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
    ema_decay: float = 0.0  # 0 for none

    def averages(self, epoch: int) -> bool:
        """Whether to average in `epoch`, counted from 1: once the learning rate only falls."""
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
    "fast": Recipe(
        "fast",
        epochs=4,
        rotation=5.0,
        translation=0.5,
        scaling=0.05,
        shear=2.0,
        interpolation="bilinear",
        weight_decay=2e-4,
    ),
}


# ------------------------------------------------------------------------------- device


def select_device(name: str) -> torch.device:
    """CUDA, then MPS, then CPU for "auto"; UsageError for a device that is not there."""
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


class Learner:
    """What trains together: a network and its average, their loss, optimizer and schedule.

    `averaged` is the network that is evaluated and kept: a copy of `model`, which the recipe may
    turn into its exponential moving average, BatchNorm's statistics included, once the learning
    rate only falls.
    """

    STATEFUL = ("model", "averaged", "optimizer", "scheduler")

    def __init__(self, model: nn.Module, recipe: Recipe, batches_per_epoch: int) -> None:
        self.model, self.averaged, self.recipe = model, copy.deepcopy(model), recipe
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.optimizer, self.scheduler = build_optimizer(model, recipe, batches_per_epoch)
        # AveragedModel of torch moves the same way, but looks at every step how many there were,
        # which makes a GPU wait.
        self._move = get_ema_multi_avg_fn(recipe.ema_decay)
        self._values, self._averages = (
            [value for value in network.state_dict().values() if value.is_floating_point()]
            for network in (self.model, self.averaged)
        )

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch (B, 1, 28, 28) and its labels (B,); mean loss and logits (B, 10)."""
        logits = self.model(images)
        loss = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach(), logits.detach()

    def average(self) -> None:
        """Move the average one step toward the network."""
        self._move(self._averages, self._values, 0)  # the 0 is a count that is not used

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in self.STATEFUL}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATEFUL:
            getattr(self, name).load_state_dict(state[name])


def train_one_epoch(
    learner: Learner, loader: Loader, show_bar: bool = False
) -> tuple[float, float]:
    """Learn from every batch of `loader` once; mean loss and accuracy in %, measured on the way.

    Raises RunError when a loss was not finite. Only the bar makes the device wait before the end.
    """
    # Dropout begins anew in every epoch, so that a resume needs no state of its generator.
    torch.manual_seed(mix_seed(loader.seed, loader.epoch, stream=1))
    averages = learner.recipe.averages(loader.epoch)
    losses = torch.zeros(len(loader), device=loader.labels.device)
    correct = torch.zeros((), dtype=torch.long, device=loader.labels.device)
    learner.model.train()
    with tqdm(loader, desc=f"epoch {loader.epoch}", leave=False, disable=not show_bar) as bar:
        for step, (images, labels) in enumerate(bar):
            loss, logits = learner.step(images, labels)
            if averages:
                learner.average()
            losses[step] = loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            if show_bar and step % 50 == 49:
                seen = (step + 1) * loader.batch_size
                bar.set_postfix_str(
                    f"loss {losses.sum().item() / seen:.4f}, "
                    f"accuracy {100 * correct.item() / seen:.2f} %, "
                    f"LR {learner.scheduler.get_last_lr()[0]:.4f}"
                )
    if not averages:
        learner.averaged.load_state_dict(learner.model.state_dict())
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


def train_and_evaluate(
    learner: Learner, loader: Loader, test_loader: Loader, split: str, show_bar: bool = False
) -> EpochRecord:
    """Train for the epoch that `loader` is at, evaluate, and return its row in the table.

    `split` is "test" or "val". Raises RunError when a loss is not finite.
    """
    clock = time.perf_counter()
    train_loss, train_accuracy = train_one_epoch(learner, loader, show_bar)
    seconds = time.perf_counter() - clock  # the device is done: the loss was read from it
    loss, accuracy = evaluate(learner.averaged, test_loader, learner.criterion)
    if not math.isfinite(loss):
        raise RunError(
            f"the {split} loss is not finite after epoch {loader.epoch}; try another seed or recipe"
        )
    return {
        "epoch": loader.epoch,
        "train_loss": train_loss,
        "train_acc": train_accuracy,
        "lr": learner.scheduler.get_last_lr()[0],
        f"{split}_loss": loss,
        f"{split}_acc": accuracy,
        "seconds": seconds,
    }


def training_code(model_name: str) -> str:
    """A fingerprint of the code of a network, its batches, its training and its evaluation.

    A change of it changes what a run comes to. `run` decides as well, by how it seeds.
    """
    network = sys.modules[MODELS[model_name].__module__]
    pixels = (repr((mnist.MEAN, mnist.STD)), mnist.normalize, build_loaders)
    batches = (mnist.Loader, mnist.draw_transforms, mnist.affine_matrices, mnist.augment, mix_seed)
    training = (Recipe.averages, build_optimizer, Learner, train_one_epoch, evaluate)
    return run_folder.fingerprint(network, *pixels, *batches, *training)


def run(
    model_name: str,
    recipe: Recipe,
    *,
    seed: int,
    out_dir: Path,
    device: str = "auto",
    data_dir: Path = DATA_DIR,
    holdout: int = 0,
    folder: Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> list[EpochRecord]:
    """Train one model, print as it goes, and return a record of each epoch.

    The last `holdout` training images, if any, are not trained on and take the place of the test
    set. `folder` is that of a run to go on with; without it a new one is made under
    `out_dir`. A `dry_run` takes one batch of each set.

    Raises RunError when a loss is not finite or a file cannot be written, UsageError when the
    device, the data or the folder is not as it should be.
    """
    begin = time.perf_counter()
    target, split = select_device(device), "val" if holdout else "test"
    loader, test_loader = build_loaders(recipe, seed, target, data_dir, holdout, dry_run)
    torch.manual_seed(seed)
    learner = Learner(MODELS[model_name]().to(target), recipe, len(loader))

    title = f"{model_name}, recipe {recipe.name}, seed {seed}"
    if folder is None:
        config = {"model": model_name, "recipe": dataclasses.asdict(recipe), "seed": seed}
        config |= {"holdout": holdout, "data_dir": str(Path(data_dir).resolve())}
        config |= run_folder.describe(target) | {"code": training_code(model_name)}
        name = run_folder.run_name(model_name, recipe.name, seed)
        folder = run_folder.new_run_folder(Path(out_dir), name, config)
    say = (lambda text: None) if quiet else functools.partial(print, flush=True)
    show_bar = not quiet and sys.stdout.isatty() and sys.stderr.isatty()

    # A dry run leaves no folder to go on with.
    at_work = contextlib.nullcontext() if dry_run else run_folder.at_work(folder)
    with at_work, reuse_freed_memory():
        records = run_folder.load_checkpoint(folder, learner)
        say(f"{title}, device {target}, torch {torch.__version__}")
        if not quiet:
            with torch.random.fork_rng(devices=[]):  # torchsummary trains what it is given: a copy
                copied = copy.deepcopy(learner.model).cpu()
                summary(copied, (1, IMAGE_SIZE, IMAGE_SIZE), device="cpu")
        done = len(records)
        say("\n".join(["", table_header(split), *(table_row(row, split) for row in records)]))
        if target.type == "cuda":
            replay_as_graph(learner.model, recipe.batch_size)
        for epoch in range(done + 1, recipe.epochs + 1):
            loader.epoch = epoch
            records.append(train_and_evaluate(learner, loader, test_loader, split, show_bar))
            run_folder.save_epoch(folder, records, learner)
            say(table_row(records[-1], split))
        curves = run_folder.plot_curves(records, split, title)
        run_folder.write_atomically(folder / "curves.png", curves)
        run_folder.write_state(folder / "weights.pt", learner.averaged.state_dict())
    say("")
    print(f"{title}: {verdict(learner.model, records, split)}")
    whole, part = (sum(row["seconds"] for row in rows) for rows in (records, records[done:]))
    resumed = f" (resumed after epoch {done}; {whole:.0f} s of training in total)" if done else ""
    print(f"{part:.0f} s of training, {time.perf_counter() - begin:.0f} s in all{resumed}")
    if not dry_run:
        say(f"Weights, curves and records are in {folder}")
    sys.stdout.flush()
    return records


# ------------------------------------------------------------------------ command line


def start(args: argparse.Namespace) -> None:
    """Train the model that was asked for, or all, each in a folder of its own."""
    recipe = RECIPES[args.recipe]
    batch_size = args.batch_size or recipe.batch_size
    recipe = dataclasses.replace(
        recipe,
        epochs=args.epochs or recipe.epochs,
        batch_size=batch_size,
        # The average reaches back as many images, whatever the size of a batch.
        ema_decay=recipe.ema_decay ** (batch_size / recipe.batch_size),
    )
    settings = {name: vars(args)[name] for name in ("seed", "holdout", "device", "data_dir")}
    names = list(MODELS) if args.model == "all" else [args.model]
    with tempfile.TemporaryDirectory() if args.dry_run else contextlib.nullcontext() as scratch:
        for place, name in enumerate(names):
            try:
                run(
                    name,
                    recipe,
                    **settings,
                    out_dir=Path(scratch or args.out_dir),
                    dry_run=args.dry_run,
                    quiet=args.quiet,
                )
            except (KeyboardInterrupt, RunError):
                if names[place + 1 :]:
                    rest = ", ".join(names[place + 1 :])
                    print(f"not begun: {rest}; to train them: --model NAME", file=sys.stderr)
                raise


def resume(args: argparse.Namespace) -> None:
    """Go on with the run in the folder `args.resume`, under the settings that it began with."""
    given = {name: vars(args)[name] for name in args.given}
    config = run_folder.read_config(args.resume, given)
    try:
        recipe = Recipe(**config["recipe"])
    except TypeError:
        raise UsageError(
            f"--resume {args.resume}: a run of another version, whose recipe has other settings; "
            "begin a new run"
        ) from None
    if "threads" not in given and config["threads"] <= (os.cpu_count() or 1):
        torch.set_num_threads(config["threads"])  # as before, for the same last digits
    device, data_dir = given.get("device", config["device"]), Path(config["data_dir"])
    # Where the clone has moved: every copy of MNIST is the same. Path.exists fails on long names.
    if not os.path.exists(data_dir):  # noqa: PTH110
        data_dir = DATA_DIR
    now = run_folder.describe(select_device(device)) | {"code": training_code(config["model"])}
    run_folder.warn_of_changes(config, now)
    run(
        config["model"],
        recipe,
        seed=config["seed"],
        out_dir=args.resume.parent,
        device=device,
        data_dir=given.get("data_dir", data_dir),
        holdout=config["holdout"],
        folder=args.resume,
        quiet=args.quiet,
    )


def print_evaluation(args: argparse.Namespace) -> None:
    """Print loss and accuracy of the weights in `args.evaluate` on the 10,000 test images."""
    try:
        name, model = run_folder.load_weights(
            args.evaluate, args.model if "model" in args.given else None
        )
    except UsageError as error:
        raise UsageError(f"--evaluate {error}") from None
    device = select_device(args.device)
    images, labels = load_mnist(args.data_dir, train=False)
    loader = Loader(images.to(device), labels.to(device), TEST_BATCH_SIZE)
    criterion = nn.CrossEntropyLoss(label_smoothing=RECIPES[args.recipe].label_smoothing)
    model = model.to(device)
    loss, accuracy = evaluate(AverageOfViews(model) if args.tta else model, loader, criterion)
    views = ", mean of nine views" if args.tta else ""
    print(f"{name}{views}: test loss {loss:.4f}, test accuracy {accuracy:.2f} %")
    if Path.cwd() == Path(__file__).resolve().parent:  # or Python would not find the tools
        command = command_line.as_typed("-m", "tools.report", args.evaluate, "--out", "pictures")
        print(f"What it gets wrong: {command}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = command_line.train_arguments(__doc__, [*MODELS], [*RECIPES], DATA_DIR, argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    command = resume if args.resume else print_evaluation if args.evaluate else start
    return command_line.exit_code("train.py", command, args)


if __name__ == "__main__":
    sys.exit(main())
