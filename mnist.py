"""The dataset: MNIST's archives to tensors, random affine transforms, normalised batches."""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes import Recipe
from script import UsageError, regular_file

DATA_DIR = Path(__file__).parent / "data"
IMAGE_SIZE = 28  # pixels, both ways
MEAN, STD = 0.1307, 0.3081  # of the pixels of the 60,000 training images, in [0, 1]
BLACK = -MEAN / STD  # a pixel of 0, normalised


def load_mnist(data_dir: str | Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) as uint8 and labels (N,) as int64: 60,000 or, for testing, 10,000.

    Reads the archives in `data_dir`/MNIST/raw; torchvision downloads them where some are missing.
    Raises UsageError when that is impossible or when one is damaged.
    """
    raw, part = Path(data_dir) / "MNIST" / "raw", "train" if train else "t10k"
    paths = [raw / f"{part}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")]
    try:
        if not all(path.exists() for path in paths):
            from torchvision.datasets import MNIST  # here, since it nearly doubles the start-up

            MNIST(str(data_dir), download=True)
        images, labels = map(read_archive, paths)
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":.")
        raise UsageError(
            f"--data-dir {data_dir}: no MNIST there ({reason}); put its four archives into {raw}"
        ) from None
    return images[:, None], labels.long()


def read_archive(path: Path) -> Tensor:
    """The numbers in a gzipped file of MNIST, as uint8; UsageError where it is damaged.

    Two zeros, a type (8: uint8) and the count of dimensions, in a byte each; the dimensions, in
    four bytes each; the numbers (http://yann.lecun.com/exdb/mnist).
    """
    try:
        unpacked = gzip.decompress(regular_file(path).read_bytes())
        content = np.frombuffer(bytearray(unpacked), dtype=np.uint8)
        begin = 4 + 4 * int(content[3])
        shape = content[4:begin].view(">u4").tolist()
        return torch.from_numpy(content[begin:].reshape(shape))
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError, IndexError):
        raise UsageError(f"{path} is damaged; put the archive as published in its place") from None


def affine_matrices(
    angle: Tensor, scale: Tensor, shear: Tensor, shift_x: Tensor, shift_y: Tensor
) -> Tensor:
    """Affine transforms (N, 2, 3), as affine_grid takes them; every argument has N values.

    Each leads from a pixel of the result to the place in the image that it is read from, with
    both axes running from -1 to 1: the inverse of shift * rotation * shear * scale. Angles are in
    radians, shifts in pixels. The arithmetic is that of torchvision's `affine`.
    """
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    to_x = torch.stack([cos - sin * tan, sin + cos * tan], dim=1) / scale[:, None]
    to_y = torch.stack([-sin, cos], dim=1) / scale[:, None]
    linear = torch.stack([to_x, to_y], dim=1)
    shift = torch.stack([shift_x, shift_y], dim=1)[:, :, None]
    return torch.cat([linear, -linear @ shift / (IMAGE_SIZE / 2)], dim=2)


def draw_transforms(recipe: Recipe, count: int, generator: torch.Generator) -> Tensor:
    """A random affine transform for each of `count` images, (count, 2, 3), as the recipe bounds."""

    def uniform(bound: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * bound

    angle, shear = uniform(math.radians(recipe.rotation)), uniform(math.radians(recipe.shear))
    scale = uniform(math.log1p(recipe.scaling)).exp()
    shift_x, shift_y = uniform(recipe.translation), uniform(recipe.translation)
    return affine_matrices(angle, scale, shear, shift_x, shift_y)


def augment(images: Tensor, transforms: Tensor, interpolation: str) -> Tensor:
    """Move each image (N, 1, H, W) by its own transform (N, 2, 3); zeros come in from outside."""
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, align_corners=False)


def normalize(images: Tensor) -> Tensor:
    """Pixels from 0 to 1, in place, to mean 0 and standard deviation 1 over the training set."""
    return images.sub_(MEAN).div_(STD)


def mix_seed(seed: int, epoch: int, stream: int = 0) -> int:
    """One 32-bit seed for an epoch of a run; torch's CPU generator takes no more bits.

    `stream` keeps apart what draws independently: 0 the batches, 1 the network's dropout.
    """
    return int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1)[0])


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
                yield normalize(images.float().div_(255)), labels
            return
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        transforms = draw_transforms(self.recipe, len(self.images), generator)
        order, transforms = order.to(self.images.device), transforms.to(self.images.device)
        for index, moves in zip(order.split(self.batch_size), transforms.split(self.batch_size)):
            images = self.images[index].float().div_(255)
            images = augment(images, moves, self.recipe.interpolation)
            yield normalize(images), self.labels[index]


class AverageOfViews(nn.Module):
    """A network that guesses by the mean of its softmax over nine views of an image.

    The image itself, turned by 6 degrees to both sides, 7 % smaller and larger, and moved by one
    pixel in four directions (test-time augmentation).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        turn, zoom = math.radians(6), 1.07
        angle = torch.tensor([-turn, turn, 0, 0, 0, 0, 0, 0])
        scale = torch.tensor([1, 1, 1 / zoom, zoom, 1, 1, 1, 1])
        shift_x = torch.tensor([0.0, 0, 0, 0, -1, 1, 0, 0])
        shift_y = torch.tensor([0.0, 0, 0, 0, 0, 0, -1, 1])
        transforms = affine_matrices(angle, scale, torch.zeros(8), shift_x, shift_y)
        self.register_buffer("transforms", transforms)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 1, 28, 28) to the logarithms of probabilities (N, 10)."""
        guesses = [self.model(images).softmax(dim=1)]
        for transform in self.transforms:
            transforms = transform.expand(len(images), 2, 3)
            moved = augment(images - BLACK, transforms, "bilinear") + BLACK  # black comes in
            guesses.append(self.model(moved).softmax(dim=1))
        return torch.stack(guesses).mean(dim=0).log()
