"""Train one of the small networks on MNIST, and say whether it meets the challenge.

    python train.py                     # model3, 15 epochs, on the best device there is
    python train.py --model all         # every attempt, one after the other
    python train.py --model model4 --recipe fast    # four epochs: 99.4 % on average
    python train.py --evaluate weights/model3.pt
    python train.py --resume FOLDER     # goes on with a run that was stopped

The challenge: at most 8,000 parameters, at most 15 epochs, and at least 99.4 % test
accuracy in every one of the last five epochs. What a run prints, a row as each epoch ends:

    | Epoch | Train Acc (%) |     LR | Test Loss | Test Acc (%) | Time (s) |
    | ----: | ------------: | -----: | --------: | -----------: | -------: |
    |     1 |         91.93 | 0.0325 |    0.2070 |        98.28 |     20.3 |

Train accuracy is that of the augmented images while the network learns from them. LR is the
learning rate after the epoch's last batch. The loss has label smoothing, as in training. Time is
the training of the epoch alone. Each run has a folder of its own (see run_folder.py).
Exit codes: 0 done, 1 the run failed, 2 bad arguments or files, 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import contextlib
import copy
import ctypes
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchsummary import summary
from tqdm import tqdm

import run_folder
from attempts import attempts, build_network, count_parameters, load_network
from cuda_graph import CudaGraph
from mnist import DATA_DIR, IMAGE_SIZE, AverageOfViews, Loader, load_mnist, mix_seed
from recipes import RECIPES, Experiment, Recipe, add_settings
from run_folder import EpochRecord, table_header, table_row, verdict
from script import Parser, RunError, UsageError, exit_code, whole_number

TEST_BATCH_SIZE = 250  # images; larger ones take more memory for the same result

# ------------------------------------------------------------------------ device and data


def select_device(name: str) -> torch.device:
    """CUDA, then MPS, then CPU for "auto"; UsageError for a device that is not there."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present = [device for device, is_there in found.items() if is_there] + ["cpu"]
    if name not in ("auto", *present):
        raise UsageError(f"--device {name}: not here; choose from auto, {', '.join(present)}")
    return torch.device(present[0] if name == "auto" else name)


def reuse_freed_memory() -> None:
    """Let glibc, where there is one, keep what tensors free, not map each anew, page by page.

    It makes an epoch up to twice as fast (results/README.md).
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold = -1, -3  # see mallopt(3)
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 32 << 20)  # bytes: the most that it takes
        ctypes.CDLL(None).mallopt(m_trim_threshold, 1 << 30)


def build_loaders(
    experiment: Experiment, device: torch.device, data_dir: Path = DATA_DIR, dry_run: bool = False
) -> tuple[Loader, Loader]:
    """The training images, shuffled and augmented, and the test images, or those held out."""
    recipe, holdout = experiment.recipe, experiment.holdout
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
        Loader(images.to(device), labels.to(device), recipe.batch_size, recipe, experiment.seed),
        Loader(test_images.to(device), test_labels.to(device), TEST_BATCH_SIZE),
    )


# ----------------------------------------------------------------------------- training


def build_optimizer(
    model: nn.Module, recipe: Recipe, batches_per_epoch: int
) -> tuple[torch.optim.SGD, OneCycleLR]:
    """SGD-Nesterov, and the OneCycleLR to step after each of epochs x batches_per_epoch batches."""
    total_steps, pct_start = recipe.epochs * batches_per_epoch, recipe.pct_start
    if pct_start * total_steps == 1:  # OneCycleLR divides by this less 1
        pct_start += 1e-9
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
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

    `ema` is the network that is evaluated and kept. In epochs for which the recipe `has_ema` it is
    the exponential moving average of `model`, BatchNorm's statistics included; else a copy of it.
    """

    STATEFUL = ("model", "ema", "optimizer", "scheduler")

    def __init__(self, model: nn.Module, recipe: Recipe, batches_per_epoch: int) -> None:
        self.model, self.ema, self.recipe = model, copy.deepcopy(model), recipe
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.optimizer, self.scheduler = build_optimizer(model, recipe, batches_per_epoch)
        # Not of their state_dicts, which have what two layers share twice.
        self._values, self._ema_values = (
            [x for x in (*one.parameters(), *one.buffers()) if x.is_floating_point()]
            for one in (self.model, self.ema)
        )
        # AveragedModel of torch moves the same way, but looks at every step how many there were,
        # which makes a GPU wait.
        self._average = get_ema_multi_avg_fn(recipe.ema_decay)
        if next(model.parameters()).is_cuda:
            self.propagate = CudaGraph(self.propagate, model)

    def propagate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward, to new gradients; the mean loss and the logits (B, 10)."""
        logits = self.model(images)
        loss = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.detach(), logits.detach()

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch (B, 1, 28, 28) and its labels (B,); mean loss and logits (B, 10)."""
        loss, logits = self.propagate(images, labels)
        self.optimizer.step()
        if self.scheduler.last_epoch < self.scheduler.total_steps - 1:  # the rate is not at its end
            self.scheduler.step()
        return loss, logits

    def update_ema(self) -> None:
        """Move the average one step toward the network."""
        self._average(self._ema_values, self._values, 0)  # the 0 is a count that it does not use

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
    has_ema = learner.recipe.has_ema(loader.epoch)
    losses = torch.zeros(len(loader), device=loader.labels.device)
    correct = torch.zeros((), dtype=torch.long, device=loader.labels.device)
    learner.model.train()
    with tqdm(loader, desc=f"epoch {loader.epoch}", leave=False, disable=not show_bar) as bar:
        for step, (images, labels) in enumerate(bar):
            loss, logits = learner.step(images, labels)
            if has_ema:
                learner.update_ema()
            losses[step] = loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            if show_bar and step % 50 == 49:
                seen, lr = (step + 1) * loader.batch_size, learner.scheduler.get_last_lr()[0]
                accuracy = f"{100 * correct.item() / seen:.2f} %"
                bar.set_postfix(loss=losses.sum().item() / seen, accuracy=accuracy, LR=lr)
    if not has_ema:
        learner.ema.load_state_dict(learner.model.state_dict())
    not_finite = torch.nonzero(~losses.isfinite())
    if len(not_finite):
        raise RunError(
            f"the loss was not finite from epoch {loader.epoch}, batch {not_finite[0].item() + 1} "
            f"of {len(loader)} on; try another seed or recipe"
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


def train_and_evaluate(
    learner: Learner, loader: Loader, test_loader: Loader, show_bar: bool
) -> EpochRecord:
    """Train for the epoch that `loader` is at, evaluate, and return its row in the table."""
    clock = time.perf_counter()
    train_loss, train_accuracy = train_one_epoch(learner, loader, show_bar)
    seconds = time.perf_counter() - clock  # the device is done: the loss was read from it
    loss, accuracy = evaluate(learner.ema, test_loader, learner.criterion)
    return {
        "epoch": loader.epoch,
        "train_loss": train_loss,
        "train_acc": train_accuracy,
        "lr": learner.scheduler.get_last_lr()[0],
        "loss": loss,
        "acc": accuracy,
        "seconds": seconds,
    }


# ---------------------------------------------------------------------------------- run


def print_summary(model: nn.Module) -> None:
    """The layers by torchsummary, which counts shared ones several times, and the true number."""
    with contextlib.suppress(Exception):  # some layers are beyond it
        # A copy, since it moves the statistics of BatchNorm.
        summary(copy.deepcopy(model).cpu(), (1, IMAGE_SIZE, IMAGE_SIZE), device="cpu")
    print(f"{count_parameters(model):,} parameters, each counted once")


def run(
    experiment: Experiment,
    out_dir: Path,
    *,
    resumed: Path | None = None,
    device: str = "auto",
    data_dir: Path = DATA_DIR,
    dry_run: bool = False,
    quiet: bool = False,
) -> list[EpochRecord]:
    """Train one network, print as it goes, and return a record of each epoch.

    `resumed` is the folder of a run to go on with; without it a new one is made under `out_dir`. A
    `dry_run` takes one batch of each set. Raises RunError when a loss is not finite or a file
    cannot be written, UsageError when device, network, data or folder are not as they must be.
    """
    begin = time.perf_counter()
    recipe, holdout, name = experiment.recipe, experiment.holdout, experiment.name
    reuse_freed_memory()
    target = select_device(device)
    loader, test_loader = build_loaders(experiment, target, data_dir, dry_run)
    torch.manual_seed(experiment.seed)
    model = build_network(experiment.model, **experiment.sizes).to(target)
    learner = Learner(model, recipe, len(loader))
    place = {"data_dir": str(data_dir.resolve())} | run_folder.describe(target)
    folder = resumed or run_folder.new_run_folder(out_dir, name, asdict(experiment) | place)
    with contextlib.nullcontext() if dry_run else run_folder.at_work(folder):
        records = run_folder.load_checkpoint(folder, learner)
        if not quiet:
            print(f"{name}, device {target}, torch {torch.__version__}")
            print_summary(model)
            print("\n".join(["", table_header(holdout), *map(table_row, records)]), flush=True)
        done = len(records)
        show_bar = not quiet and sys.stdout.isatty() and sys.stderr.isatty()
        for epoch in range(done + 1, recipe.epochs + 1):
            loader.epoch = epoch
            records.append(train_and_evaluate(learner, loader, test_loader, show_bar))
            run_folder.save_epoch(folder, records, learner.state_dict())
            if not quiet:
                print(table_row(records[-1]), flush=True)
        curves = run_folder.plot_curves(records, "held out" if holdout else "test", name)
        run_folder.write_atomically(folder / "curves.png", curves)
        run_folder.write_state(folder / "weights.pt", learner.ema.state_dict())
    result = verdict(count_parameters(model), records, holdout)
    print(f"\n{name}: {'dry run, not judged' if dry_run else result}")
    trained = sum(record["seconds"] for record in records[done:])
    print(f"{trained:.0f} s of training, {time.perf_counter() - begin:.0f} s in all")
    if not (dry_run or quiet):
        print(f"Weights, curves and records are in {folder}")
    return records


# ------------------------------------------------------------------------ command line


def start(args: argparse.Namespace) -> None:
    """Train the model that was asked for, or all, each in a folder of its own."""
    recipe = RECIPES[args.recipe].changed(args.settings)
    names = attempts() if args.model == "all" else [args.model]
    for name in names:
        build_network(name)  # before hours of training, where one of them cannot be
    place = {"device": args.device, "data_dir": args.data_dir or DATA_DIR}
    with tempfile.TemporaryDirectory() as scratch:  # of a dry run, which leaves nothing behind
        out_dir = Path(scratch) if args.dry_run else args.out_dir
        for name in names:
            experiment = Experiment(name, recipe, args.seed, args.holdout)
            run(experiment, out_dir, dry_run=args.dry_run, quiet=args.quiet, **place)


def resume(args: argparse.Namespace) -> None:
    """Go on with the run in the folder `args.resume`, under the settings that it began with."""
    config = run_folder.read_config(args.resume)
    if (args.resume / "weights.pt").exists():
        raise UsageError(f"--resume {args.resume}: this run is finished")
    try:
        config["recipe"] = Recipe(**config["recipe"])
        experiment = Experiment(**{part.name: config[part.name] for part in fields(Experiment)})
        device, threads = str(config["device"]), int(config["threads"])
        data_dir = args.data_dir or Path(config["data_dir"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"--resume {args.resume}: its config.json is damaged, or of another version; "
            "begin a new run"
        ) from None
    if not args.threads and 0 < threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)  # as before, for the same last digits
    if args.device != "auto":
        device = args.device
    run_folder.warn_of_changes(config, run_folder.describe(select_device(device)))
    if not (args.data_dir or data_dir.exists()):  # the clone has moved
        data_dir = DATA_DIR
    place = {"device": device, "data_dir": data_dir}
    run(experiment, args.resume.parent, resumed=args.resume, quiet=args.quiet, **place)


def print_evaluation(args: argparse.Namespace) -> None:
    """Print loss and accuracy of the weights in `args.evaluate` on the 10,000 test images."""
    name, model = load_network(args.evaluate, args.model if "--model" in args.given else None)
    device = select_device(args.device)
    images, labels = load_mnist(args.data_dir or DATA_DIR, train=False)
    loader = Loader(images.to(device), labels.to(device), TEST_BATCH_SIZE)
    criterion = nn.CrossEntropyLoss(label_smoothing=RECIPES[args.recipe].label_smoothing)
    model = (AverageOfViews(model) if args.tta else model).to(device)
    loss, accuracy = evaluate(model, loader, criterion)
    views = ", mean of nine views" if args.tta else ""
    print(f"{name}{views}: test loss {loss:.4f}, test accuracy {accuracy:.2f} %")
    print(f"What it gets wrong: python -m tools.report {args.evaluate} --out pictures")


GOES_WITH = {  # what may stand beside each of these options
    "--resume": {"--device", "--threads", "--data-dir", "--quiet"},
    "--evaluate": {"--model", "--recipe", "--device", "--threads", "--data-dir", "--tta"},
}


def options() -> Parser:
    """The options of the command line."""
    parser, n = Parser("train.py", __doc__), {"metavar": "N"}
    add = parser.add_argument
    add("--model", choices=[*attempts(), "all"], default="model3", help="default: %(default)s")
    add_settings(parser)
    seed = "of every random draw (default: %(default)s)"
    add("--seed", type=whole_number(0, 2**32 - 1), default=42, help=seed, **n)
    device = "default: %(default)s, the first of cuda, mps and cpu that is there"
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help=device)
    add("--threads", type=whole_number(1, 1024), help="CPU threads (default: one per core)", **n)
    add("--data-dir", type=Path, metavar="DIR", help="holds MNIST/raw/*.gz (default: data)")
    add("--out-dir", type=Path, metavar="DIR", default=Path("runs"), help="default: %(default)s")
    holdout = "train without the last N training images, and report on them, not on the test set"
    add("--holdout", type=whole_number(0, 50_000), default=0, help=holdout, **n)
    add("--resume", type=Path, metavar="RUN_FOLDER", help="go on with a run that was stopped")
    evaluate = "test the weights in this file or run folder, and train nothing"
    add("--evaluate", type=Path, metavar="WEIGHTS", help=evaluate)
    tta = "with --evaluate: the mean guess of nine views of each image (test-time augmentation)"
    add("--tta", action="store_true", help=tta)
    add("--dry-run", action="store_true", help="one batch per epoch; leaves nothing behind")
    add("--quiet", action="store_true", help="print the verdict and the time only")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser, argv = options(), sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.given = {word.partition("=")[0] for word in argv if word.startswith("--")}
    mode = next((mode for mode in GOES_WITH if mode in args.given), None)
    wrong = args.given - {mode} - GOES_WITH[mode] if mode else args.given & {"--tta"}
    for other in sorted(wrong):
        parser.error(f"{other} does not go with {mode or 'training'}")
    if args.model == "all" and mode:
        parser.error(f"--model all does not go with {mode}")
    if args.threads:
        torch.set_num_threads(args.threads)
    command = {"--resume": resume, "--evaluate": print_evaluation}.get(mode, start)
    return exit_code("train.py", command, args)


if __name__ == "__main__":
    sys.exit(main())
