"""What tools/benchmark.py times: an epoch as it is usually written, as it is here, and floors."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode

from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, Loader, load_mnist
from run_folder import MODELS
from train import TEST_BATCH_SIZE, Learner, Recipe, evaluate, replay_as_graph, train_one_epoch

ALL_IMAGES = 60_000
USUAL, OURS = "usual way", "this repository"
ARITHMETIC, EVALUATION = "arithmetic alone", "evaluation"
Epoch = Callable[[int], None]  # goes once through the first so many training images


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, and with what."""

    model: str
    recipe: Recipe
    device: torch.device
    images: int
    threads: int
    workers: int = 0  # of the usual way's DataLoader


def usual_way(job: Job) -> Epoch:
    """Transforms image by image, a DataLoader, plain SGD, `.item()` at every step."""
    from torchvision import datasets, transforms  # here: no other way needs its memory

    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    recipe, device = job.recipe, job.device
    shift, scale = recipe.translation / IMAGE_SIZE, 1 + recipe.scaling
    interpolation = transforms.InterpolationMode(recipe.interpolation)
    if recipe.translation or recipe.scaling or recipe.shear:
        bounds = recipe.rotation, (shift, shift), (1 / scale, scale), recipe.shear
        augment = transforms.RandomAffine(*bounds, interpolation)
    else:
        augment = transforms.RandomRotation(recipe.rotation, interpolation)
    transform = transforms.Compose(
        [
            augment,
            transforms.ToTensor(),
            transforms.Normalize((MEAN,), (STD,)),
        ]
    )
    dataset = datasets.MNIST(DATA_DIR, transform=transform, download=True)  # unpacks the archives
    model = MODELS[job.model]().to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.max_lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    scheduler = OneCycleLR(optimizer, recipe.max_lr, total_steps=1_000_000)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    averaging = get_ema_multi_avg_fn(recipe.ema_decay)
    averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)

    def epoch(count: int) -> None:
        loader = DataLoader(
            Subset(dataset, range(count)),
            recipe.batch_size,
            shuffle=True,
            num_workers=job.workers,
            pin_memory=device.type == "cuda",
        )
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
                averaged.update_parameters(model)
            total_loss += loss.item()
            correct += (logits.argmax(dim=1) == labels).sum().item()

    return epoch


def this_way(job: Job, way: str) -> Epoch:
    """What train.py does in an epoch that averages; its steps on one batch; or its evaluation."""
    images, labels = (part.to(job.device) for part in load_mnist(DATA_DIR, train=True))
    model, recipe = MODELS[job.model]().to(job.device), job.recipe
    learner = Learner(model, recipe, ALL_IMAGES // recipe.batch_size)
    if job.device.type == "cuda":
        replay_as_graph(model, recipe.batch_size)
    batch = next(iter(Loader(images, labels, recipe.batch_size, recipe)))

    def train(count: int) -> None:
        loader = Loader(images[:count], labels[:count], recipe.batch_size, recipe)
        loader.epoch = recipe.epochs  # the last: if any averages, it does
        train_one_epoch(learner, loader)

    def take_steps(count: int) -> None:
        model.train()
        for _ in range(round(count / recipe.batch_size)):
            learner.step(*batch)

    def judge(count: int) -> None:  # on as many as the test set has to the training set
        loader = Loader(images[: count // 6], labels[: count // 6], TEST_BATCH_SIZE)
        evaluate(learner.averaged, loader, learner.criterion)

    return {OURS: train, ARITHMETIC: take_steps, EVALUATION: judge}[way]


BUILD: dict[str, Callable[[Job], Epoch]] = {USUAL: usual_way}
BUILD |= {way: partial(this_way, way=way) for way in (OURS, ARITHMETIC, EVALUATION)}


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds on the clock; waits for the device at both ends."""
    synchronize = getattr(torch, device.type).synchronize
    synchronize()
    start = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - start


def epoch_flop(model_name: str) -> int:
    """Floating-point operations of an epoch: three times a forward pass, for each image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        MODELS[model_name]().eval()(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    return 3 * counter.get_total_flops() * ALL_IMAGES


def peak_rate(device: torch.device, size: int) -> float:
    """Floating-point operations a second, in the fastest of ten products of square matrices."""
    left, right = torch.randn(2, size, size, device=device)
    return 2 * size**3 / min(timed(lambda: left @ right, device) for _ in range(10))


def time_floor(job: Job) -> float:
    """Seconds that an epoch's operations take at the peak rate."""
    torch.set_num_threads(job.threads)
    return epoch_flop(job.model) / peak_rate(job.device, 2048 if job.device.type == "cpu" else 8192)
