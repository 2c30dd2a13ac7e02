"""Train one of the small networks on MNIST, and say whether it meets the challenge.

    python train.py                     # model3, 15 epochs, on the best device available
    python train.py --model all         # every model, one after the other
    python train.py --model model_fast --recipe fast    # four epochs: 99.4 % on average
    python train.py --evaluate weights/model3.pt
    python train.py --resume RUN_FOLDER # continues a run that was stopped

The challenge: at most 8,000 parameters, at most 15 epochs, and at least 99.4 % test
accuracy in every one of the last five epochs. A run prints a row at the end of each epoch:

    | Epoch | Train Acc (%) |     LR | Test Loss | Test Acc (%) | Time (s) |
    | ----: | ------------: | -----: | --------: | -----------: | -------: |
    |     1 |         91.93 | 0.0325 |    0.2070 |        98.28 |     20.3 |

Train accuracy is measured on the augmented images, during the epoch. LR is the learning rate
after its last batch. The test loss has label smoothing, like that of training. Time is that of
training alone. Each run has a folder of its own (see run_folder.py).
Exit codes: 0 success, 1 the run failed, 2 bad arguments or files, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import contextlib
import copy
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

import run_folder
from challenges import CHALLENGES, Challenge, verdict
from cli import Parser, RunError, UsageError, exit_code, whole_number
from cuda_graph import CudaGraph
from curves import plot_curves, table_header, table_row
from device import reuse_freed_memory, select_device, to_device, verify_mps
from files import write_atomically, write_state
from ggt import GGT
from mnist import DATA_DIR, Augmentation, Loader, TestTimeAugmentation, load_mnist, mix_seed
from networks import count_parameters, get_model, list_models, load_model, summarize
from provenance import describe, warn_of_changes
from recipes import RECIPES, Experiment, Recipe, add_settings, sizes_of
from run_folder import EpochRecord

TEST_BATCH_SIZE = 250  # images; larger batches take more memory for the same result
STATEFUL = ("model", "ema", "optimizer", "scheduler")  # the parts of a checkpoint

# ------------------------------------------------------------------------------- data


def build_loaders(
    experiment: Experiment, device: torch.device, data_dir: Path = DATA_DIR, dry_run: bool = False
) -> tuple[Loader, Loader]:
    """Loaders of the training images, shuffled and augmented, and of the test or validation images.

    UsageError where too few images are left for training. A dry run has one batch of each.
    """
    recipe, holdout = experiment.recipe, experiment.holdout
    images, labels = load_mnist(data_dir, train=True, download=not dry_run)
    if holdout > len(images) - 2:
        what = f"of {len(images)} training images, at least two must be left"
        raise UsageError(f"--holdout {holdout}: {what}")
    if holdout:
        images, test_images = images[:-holdout], images[-holdout:]
        labels, test_labels = labels[:-holdout], labels[-holdout:]
    else:
        test_images, test_labels = load_mnist(data_dir, train=False, download=not dry_run)
    if dry_run:
        images, labels = images[: recipe.batch_size], labels[: recipe.batch_size]
        test_images, test_labels = test_images[:TEST_BATCH_SIZE], test_labels[:TEST_BATCH_SIZE]
    augmentation = Augmentation(
        recipe.rotation, recipe.translation, recipe.scaling, recipe.shear, recipe.interpolation
    )
    images, labels = images.to(device), labels.to(device)
    loader = Loader(images, labels, recipe.batch_size, augmentation, experiment.seed)
    return loader, Loader(test_images.to(device), test_labels.to(device), TEST_BATCH_SIZE)


# ----------------------------------------------------------------------------- training


def build_optimizer(
    model: nn.Module, recipe: Recipe, batches_per_epoch: int
) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """The recipe's optimizer, and a OneCycleLR with a rate for each batch of the run."""
    total_steps, pct_start = recipe.epochs * batches_per_epoch, recipe.pct_start
    if pct_start * total_steps == 1:  # of a dry run: OneCycleLR would divide by 0
        pct_start += 1e-9
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others}]
    settings = {"lr": recipe.max_lr, "momentum": recipe.momentum}
    if recipe.optimizer == "ggt":
        optimizer = GGT(groups, **settings)
    else:
        # The fused kernel does not support complex parameters.
        fused = all(parameter.is_floating_point() for parameter in model.parameters())
        optimizer = torch.optim.SGD(groups, nesterov=True, fused=fused, **settings)
    scheduler = OneCycleLR(
        optimizer,
        recipe.max_lr,
        total_steps,
        pct_start=pct_start,
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    )
    return optimizer, scheduler


def split_for_ema(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that an EMA averages (parameters, running statistics) and those it copies."""
    averaged, copied = list(model.parameters()), []
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            averaged.append(buffer)
        else:
            copied.append(buffer)
    return averaged, copied


class Trainer:
    """A model and its EMA, with criterion, optimizer and scheduler.

    `ema` is the network that is evaluated and saved. In epochs for which the recipe `has_ema` it
    is the exponential moving average of `model`, in the others a copy of it.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, batches_per_epoch: int) -> None:
        self.model, self.ema, self.recipe = model, copy.deepcopy(model), recipe
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.optimizer, self.scheduler = build_optimizer(model, recipe, batches_per_epoch)
        self._averaged, self._copied = split_for_ema(model)
        self._ema_averaged, self._ema_copied = split_for_ema(self.ema)
        # AveragedModel of torch reads its step count at every step, which makes a GPU wait, and
        # averages all buffers or none.
        self._update = get_ema_multi_avg_fn(recipe.ema_decay)
        is_cuda = next(model.parameters()).is_cuda
        self._graph = CudaGraph(self.forward_backward, model) if is_cuda else None

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients; returns the mean loss and the logits (B, 10)."""
        logits = self.model(images)
        loss = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach(), logits.detach()

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on a batch (B, 1, 28, 28) with labels (B,); returns the mean loss and logits."""
        if self._graph is not None:
            loss, logits = self._graph(images, labels)
        else:
            loss, logits = self.forward_backward(images, labels)
        self.optimizer.step()
        # A step after the last batch would raise the LR again.
        if self.scheduler.last_epoch < self.scheduler.total_steps - 1:
            self.scheduler.step()
        return loss, logits

    def update_ema(self) -> None:
        """Moves the EMA one step toward the model."""
        self._update(self._ema_averaged, self._averaged, 0)  # the 0, a step count, is not used

    def copy_buffers(self) -> None:
        """Copies to the EMA the buffers that it does not average."""
        for ema_buffer, buffer in zip(self._ema_copied, self._copied):
            ema_buffer.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in STATEFUL}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])


def train_one_epoch(
    trainer: Trainer, loader: Loader, show_bar: bool = False
) -> tuple[float, float]:
    """Trains on every batch of `loader` once; returns mean loss and accuracy (%) of the epoch.

    Raises RunError when a loss is not finite. Only the progress bar synchronizes the device
    before the end of the epoch.
    """
    # Reseed dropout in every epoch, so that resuming needs no generator state.
    torch.manual_seed(mix_seed(loader.seed, loader.epoch, stream=1))
    has_ema = trainer.recipe.has_ema(loader.epoch)
    losses = torch.zeros(len(loader), device=loader.labels.device)
    correct = torch.zeros((), dtype=torch.long, device=loader.labels.device)
    trainer.model.train()
    with tqdm(loader, desc=f"epoch {loader.epoch}", leave=False, disable=not show_bar) as bar:
        for step, (images, labels) in enumerate(bar):
            loss, logits = trainer.step(images, labels)
            if has_ema:
                trainer.update_ema()
            losses[step] = loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            if show_bar and step % 50 == 49:
                seen, lr = (step + 1) * loader.batch_size, trainer.scheduler.get_last_lr()[0]
                accuracy = f"{100 * correct.item() / seen:.2f} %"
                bar.set_postfix(loss=losses.sum().item() / seen, accuracy=accuracy, LR=lr)
    if has_ema:
        trainer.copy_buffers()
    else:
        trainer.ema.load_state_dict(trainer.model.state_dict())
    bn_images = trainer.recipe.bn_images
    if bn_images:  # which resemble the test images more than augmented ones do
        plain = Loader(loader.images[:bn_images], loader.labels[:bn_images], TEST_BATCH_SIZE)
        update_bn(plain, trainer.ema)
    not_finite = torch.nonzero(~losses.isfinite())
    if len(not_finite):
        raise RunError(
            f"training diverged: the loss is not finite in epoch {loader.epoch}, batch "
            f"{not_finite[0].item() + 1} of {len(loader)}; try another seed or recipe"
        )
    return losses.sum().item() / len(loader.labels), 100 * correct.item() / len(loader.labels)


def evaluate(model: nn.Module, loader: Loader, criterion: nn.Module) -> tuple[float, float]:
    """Mean loss and accuracy (%) over every image of `loader`, each counted once."""
    model.eval()
    loss = torch.zeros((), device=loader.labels.device)
    correct = torch.zeros((), dtype=torch.long, device=loader.labels.device)
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images)
            loss += criterion(logits, labels) * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
    return loss.item() / len(loader.labels), 100 * correct.item() / len(loader.labels)


def train_and_evaluate(
    trainer: Trainer, loader: Loader, test_loader: Loader, show_bar: bool
) -> EpochRecord:
    """Trains for the epoch `loader.epoch`, evaluates, and returns its record."""
    clock = time.perf_counter()
    train_loss, train_accuracy = train_one_epoch(trainer, loader, show_bar)
    seconds = time.perf_counter() - clock  # reading the loss has synchronized the device
    loss, accuracy = evaluate(trainer.ema, test_loader, trainer.criterion)
    record = {"epoch": loader.epoch, "train_loss": train_loss, "train_acc": train_accuracy}
    record |= {"lr": trainer.scheduler.get_last_lr()[0], "loss": loss, "acc": accuracy}
    record["seconds"] = seconds
    # An optional method of networks with test-time augmentation (model5.Deskewed).
    if hasattr(trainer.ema, "one_view") and len(trainer.ema.views) > 1:
        one_view = evaluate(trainer.ema.one_view(), test_loader, trainer.criterion)
        record[run_folder.ONE_VIEW] = one_view[1]
    return record


# ---------------------------------------------------------------------------------- run


def build_trainer(
    experiment: Experiment, device_name: str, data_dir: Path, dry_run: bool
) -> tuple[Trainer, Loader, Loader]:
    """Builds the trainer and the loaders, on the device of that name; MPS is verified first."""
    reuse_freed_memory()
    device, recipe = select_device(device_name), experiment.recipe
    torch.manual_seed(experiment.seed)
    model = get_model(experiment.model, **experiment.sizes)

    if device.type == "mps":
        loader, _ = build_loaders(experiment, torch.device("cpu"), data_dir, dry_run)

        def trainer_on(where: torch.device) -> Trainer:
            return Trainer(to_device(copy.deepcopy(model), where), recipe, len(loader))

        device = verify_mps(device, device_name, trainer_on, next(iter(loader)))
    loader, test_loader = build_loaders(experiment, device, data_dir, dry_run)
    return Trainer(to_device(model, device), recipe, len(loader)), loader, test_loader


def run(
    experiment: Experiment,
    out_dir: Path,
    *,
    resumed: Path | None = None,
    device: str = "auto",
    data_dir: Path = DATA_DIR,
    challenge: Challenge = CHALLENGES["8k"],
    dry_run: bool = False,
    quiet: bool = False,
) -> list[EpochRecord]:
    """Trains one network, prints a row per epoch, and returns a record of each.

    A run folder is made under `out_dir`, unless `resumed` is the one to continue. A `dry_run`
    takes one batch of each set. Raises RunError when a loss is not finite or a file cannot be
    written, UsageError where device, network, data or folder is invalid.
    """
    begin = time.perf_counter()
    recipe, holdout, name = experiment.recipe, experiment.holdout, experiment.name
    trainer, loader, test_loader = build_trainer(experiment, device, data_dir, dry_run)
    place = {"challenge": challenge.name, "data_dir": str(data_dir.resolve())}
    config = asdict(experiment) | place | describe(loader.labels.device, experiment.model)
    folder = resumed or run_folder.new_run_folder(out_dir, name, config)
    with contextlib.nullcontext() if dry_run else run_folder.lock(folder):
        records = run_folder.load_checkpoint(folder, trainer)
        if not quiet:
            print(f"{name}, device {config['device']}, torch {torch.__version__}")
            print(summarize(trainer.model))
            print("\n".join(["", table_header(holdout), *map(table_row, records)]), flush=True)
        done = len(records)
        show_bar = not quiet and sys.stdout.isatty() and sys.stderr.isatty()
        for epoch in range(done + 1, recipe.epochs + 1):
            loader.epoch = epoch
            records.append(train_and_evaluate(trainer, loader, test_loader, show_bar))
            run_folder.save_epoch(folder, records, trainer.state_dict())
            if not quiet:
                print(table_row(records[-1]), flush=True)
        curves = plot_curves(records, holdout, name, challenge.accuracy)
        write_atomically(folder / "curves.png", curves)
        write_state(folder / "weights.pt", trainer.ema.state_dict())
    result = verdict(challenge, count_parameters(trainer.model), records, holdout)
    print(f"\n{name}: {'dry run, not judged' if dry_run else result}")
    trained = sum(record["seconds"] for record in records[done:])
    print(f"{trained:.0f} s of training, {time.perf_counter() - begin:.0f} s in all")
    if not dry_run:
        print(f"Weights, curves and records are in {folder}")
    return records


# ------------------------------------------------------------------------ command line

# What goes with --resume and --evaluate; an option with its default value passes unnoticed.
RESUME_OPTIONS = {"resume", "device", "threads", "data_dir", "quiet"}
EVALUATE_OPTIONS = {"evaluate", "model", "recipe", "device", "threads", "data_dir", "tta"}


def train(args: argparse.Namespace) -> None:
    """Trains the model that was asked for, or all, each in a folder of its own."""
    recipe = RECIPES[args.recipe or "strong"].changed(args.settings)
    sizes, model = sizes_of(args.sizes), args.model or "model3"
    names = list_models() if model == "all" else [model]
    for name in names:
        get_model(name, **sizes)  # reports errors before training starts
    options = {"device": args.device, "data_dir": args.data_dir or DATA_DIR, "quiet": args.quiet}
    with tempfile.TemporaryDirectory() as scratch:  # of a dry run, deleted afterwards
        out_dir = Path(scratch) if args.dry_run else args.out_dir
        for name in names:
            experiment = Experiment(name, recipe, args.seed, args.holdout, sizes)
            challenge = CHALLENGES[args.challenge]
            run(experiment, out_dir, challenge=challenge, dry_run=args.dry_run, **options)


def resume(args: argparse.Namespace) -> None:
    """Continues the run in the folder `args.resume`, under the settings that it started with."""
    config = run_folder.read_config(args.resume)
    experiment = Experiment.from_config(config, args.resume)
    if run_folder.is_finished(args.resume):
        raise UsageError(f"--resume {args.resume}: this run is finished")
    threads = config.get("threads")
    if not args.threads and isinstance(threads, int) and 0 < threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)  # the same number gives bit-identical results
    device = args.device if args.device != "auto" else str(config.get("device"))
    warn_of_changes(config, describe(select_device(device), experiment.model))
    former = Path(str(config.get("data_dir")))
    data_dir = args.data_dir or (former if former.exists() else DATA_DIR)  # the clone was moved
    challenge = CHALLENGES.get(str(config.get("challenge")), CHALLENGES["8k"])
    options = {"device": device, "data_dir": data_dir, "challenge": challenge}
    run(experiment, args.resume.parent, resumed=args.resume, quiet=args.quiet, **options)


def print_evaluation(args: argparse.Namespace) -> None:
    """Prints loss and accuracy of the weights in `args.evaluate` on the 10,000 test images."""
    name, model = load_model(args.evaluate, args.model)
    recipe = RECIPES[args.recipe or "strong"]
    folder = args.evaluate if args.evaluate.is_dir() else args.evaluate.parent
    if not args.recipe and (folder / "config.json").exists():
        recipe = Experiment.from_config(run_folder.read_config(folder), folder).recipe
    device = select_device(args.device)
    images, labels = load_mnist(args.data_dir or DATA_DIR, train=False)
    loader = Loader(images.to(device), labels.to(device), TEST_BATCH_SIZE)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    model = to_device(TestTimeAugmentation(model) if args.tta else model, device)
    loss, accuracy = evaluate(model, loader, criterion)
    name += ", mean of nine views" if args.tta else ""
    print(f"{name}: test loss {loss:.4f}, test accuracy {accuracy:.2f} %")
    print(f"Its mistakes: python -m tools.report {args.evaluate} --out pictures")


def build_parser() -> Parser:
    """The options of the command line."""
    parser = Parser("train.py", __doc__)
    add = parser.add_argument
    default = "default: %(default)s"
    add("--model", choices=[*list_models(), "all"], help="default: model3")
    add_settings(parser)
    add("--seed", type=whole_number(0, 2**32 - 1), default=42, metavar="N", help=default)
    add("--challenge", choices=[*CHALLENGES], default="8k", help=default)
    device = f"{default}, the first available of cuda, mps and cpu"
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help=device)
    threads = "CPU threads (default: one per core)"
    add("--threads", type=whole_number(1, 1024), metavar="N", help=threads)
    add("--data-dir", type=Path, metavar="DIR", help="holds MNIST/raw/*.gz (default: data)")
    add("--out-dir", type=Path, default=Path("runs"), metavar="DIR", help=default)
    holdout = "train without the last N training images, and report on them, not on the test set"
    add("--holdout", type=whole_number(0, 1_000_000), default=0, metavar="N", help=holdout)
    add("--resume", type=Path, metavar="RUN_FOLDER", help="continue a run that was stopped")
    evaluate = "evaluate the weights in this file or run folder on the test set"
    add("--evaluate", type=Path, metavar="WEIGHTS", help=evaluate)
    add("--tta", action="store_true", help="with --evaluate: average nine views of each image")
    add("--dry-run", action="store_true", help="one batch per epoch; leaves nothing behind")
    add("--quiet", action="store_true", help="print the verdict, the time and the folder only")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.resume is not None:
        command, mode, allowed = resume, "--resume", RESUME_OPTIONS
    elif args.evaluate is not None:
        command, mode, allowed = print_evaluation, "--evaluate", EVALUATE_OPTIONS
    else:
        command, mode, allowed = train, "training", {*vars(args)} - {"tta"}
    spelled = {"settings": "set, --epochs or --batch-size", "sizes": "size"}
    for name in sorted(given - allowed):
        parser.error(f"--{spelled.get(name, name.replace('_', '-'))} does not go with {mode}")
    if args.model == "all" and command is not train:
        parser.error(f"--model all does not go with {mode}")
    if args.threads:
        torch.set_num_threads(args.threads)
    return exit_code("train.py", command, args)


if __name__ == "__main__":
    sys.exit(main())
