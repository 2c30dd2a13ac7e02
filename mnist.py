"""The dataset: MNIST's archives to tensors, random affine transforms, normalised batches."""

import contextlib
import gzip
import hashlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from command_line import UsageError

DATA_DIR = Path(__file__).parent / "data"
IMAGE_SIZE = 28  # pixels, both ways
MEAN, STD = 0.1307, 0.3081  # of the pixels of the 60,000 training images, in [0, 1]
BLACK = -MEAN / STD  # a pixel of 0, normalised

ARCHIVES = {  # images and labels for training, then for testing; MD5 as published
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


# ------------------------------------------------------------------------------- archives


def download(name: str, folder: Path) -> None:
    """Fetch an archive from the first of torchvision's mirrors that has it, or RuntimeError."""
    from torchvision.datasets import MNIST  # here, since it would nearly double the start-up
    from torchvision.datasets.utils import download_url

    folder.mkdir(parents=True, exist_ok=True)
    for mirror in MNIST.mirrors:
        try:
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                download_url(f"{mirror}{name}", partial, md5=ARCHIVES[name])
                Path(partial, name).rename(folder / name)
            return
        except (OSError, RuntimeError) as error:  # the next may have it
            reason = error
    raise RuntimeError(f"{name} cannot be downloaded: {reason}")


def load_mnist(data_dir: str | Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) as uint8 and labels (N,) as int64: 60,000 or, for testing, 10,000.

    Reads the archives in `data_dir`/MNIST/raw, and downloads those that are missing.
    Raises UsageError when that is impossible or when one is not as published.
    """
    raw, absent, parts = Path(data_dir) / "MNIST" / "raw", [], []
    try:
        absent = [folder for folder in (raw, *raw.parents) if not folder.exists()]
        for name, md5 in ARCHIVES.items():
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
        reason = str(error).partition("\n")[0].rstrip(":.")
        names = ", ".join(ARCHIVES)
        raise UsageError(
            f"--data-dir {data_dir}: no MNIST there ({reason}); put {names} into {raw}"
        ) from None
    images, labels = parts
    # Before the pixels, the file says in 16 bytes what it holds; before the labels, in 8.
    return images[16:].view(-1, 1, IMAGE_SIZE, IMAGE_SIZE), labels[8:].long()


# --------------------------------------------------------------------------- augmentation


class Augmentation(Protocol):
    """Bounds of the random transforms; `Recipe` in train.py has them, and says the units."""

    rotation: float
    translation: float
    scaling: float
    shear: float
    interpolation: str


def affine_matrices(
    angle: Tensor, scale: Tensor, shear: Tensor, shift_x: Tensor, shift_y: Tensor
) -> Tensor:
    """Affine transforms (N, 2, 3), as affine_grid takes them, of N angles in radians and so on.

    Each leads from a pixel of the result to the place in the image that it is read from, with
    both axes running from -1 to 1: the inverse of shift * rotation * shear * scale. Shifts are
    in pixels. The arithmetic is that of torchvision's `affine`.
    """
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    to_x = torch.stack([cos - sin * tan, sin + cos * tan], dim=1) / scale[:, None]
    to_y = torch.stack([-sin, cos], dim=1) / scale[:, None]
    linear = torch.stack([to_x, to_y], dim=1)
    shift = torch.stack([shift_x, shift_y], dim=1)[:, :, None]
    return torch.cat([linear, -linear @ shift / (IMAGE_SIZE / 2)], dim=2)


def draw_transforms(bounds: Augmentation, count: int, generator: torch.Generator) -> Tensor:
    """A random affine transform for each of `count` images, (count, 2, 3), uniform in `bounds`."""

    def uniform(bound: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * bound

    angle, shear = uniform(math.radians(bounds.rotation)), uniform(math.radians(bounds.shear))
    scale = uniform(math.log1p(bounds.scaling)).exp()
    shift_x, shift_y = uniform(bounds.translation), uniform(bounds.translation)
    return affine_matrices(angle, scale, shear, shift_x, shift_y)


def augment(images: Tensor, transforms: Tensor, interpolation: str) -> Tensor:
    """Move each image (N, 1, H, W) by its own transform (N, 2, 3); zeros come in from outside."""
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, align_corners=False)


def views(images: Tensor) -> list[Tensor]:
    """Nine views of normalised images (N, 1, 28, 28), for test-time augmentation.

    Each image itself, turned by 6 degrees to both sides, 7 % smaller and larger, and moved by
    one pixel in four directions.
    """
    turn, zoom = math.radians(6), 1.07
    columns = torch.tensor(
        [  # angle, scale, shear, shift along x and along y
            (-turn, 1, 0, 0, 0),
            (turn, 1, 0, 0, 0),
            (0, 1 / zoom, 0, 0, 0),
            (0, zoom, 0, 0, 0),
            (0, 1, 0, -1, 0),
            (0, 1, 0, 1, 0),
            (0, 1, 0, 0, -1),
            (0, 1, 0, 0, 1),
        ]
    ).T
    moved = []
    for matrix in affine_matrices(*columns).to(images.device):
        transforms = matrix.expand(len(images), 2, 3)
        moved.append(augment(images - BLACK, transforms, "bilinear") + BLACK)
    return [images, *moved]


class AverageOfViews(nn.Module):
    """A network that guesses by the mean of its softmax over the nine `views` of an image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 1, 28, 28) to the logarithms of probabilities (N, 10)."""
        guesses = [self.model(view).softmax(dim=1) for view in views(images)]
        return torch.stack(guesses).mean(dim=0).log()


# --------------------------------------------------------------------------------- batches


def mix_seed(seed: int, epoch: int, stream: int = 0) -> int:
    """One 32-bit seed for an epoch of a run; torch's CPU generator takes no more bits.

    `stream` keeps apart what draws independently: 0 the batches, 1 the network's dropout.
    """
    return int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1)[0])


class Loader:
    """Batches of (images, labels) from a dataset that stays on its device as uint8.

    Without augmentation: every image, in order, unchanged. With it: shuffled and augmented, by
    draws that are a pure function of (seed, epoch) and made on the CPU, so that every device
    sees the same batches and no epoch depends on an earlier one. `epoch` is set by the caller.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.augmentation, self.seed, self.epoch = augmentation, seed, 1

    def __len__(self) -> int:
        """The number of batches, the last and shorter one included."""
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 1, 28, 28), float32 and normalised, and labels (B,)."""
        if self.augmentation is None:
            batches = zip(self.images.split(self.batch_size), self.labels.split(self.batch_size))
            for images, labels in batches:
                yield normalize(images.float().div_(255)), labels
            return
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        transforms = draw_transforms(self.augmentation, len(self.images), generator)
        order, transforms = order.to(self.images.device), transforms.to(self.images.device)
        for index, moves in zip(order.split(self.batch_size), transforms.split(self.batch_size)):
            images = self.images[index].float().div_(255)
            images = augment(images, moves, self.augmentation.interpolation)
            yield normalize(images), self.labels[index]


def normalize(images: Tensor) -> Tensor:
    """Pixels from 0 to 1, in place, to mean 0 and standard deviation 1 over the training set."""
    return images.sub_(MEAN).div_(STD)
