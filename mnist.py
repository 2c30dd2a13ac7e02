"""The dataset: MNIST's archives to tensors, random affine transforms, normalized batches."""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cli import UsageError
from files import regular_file

DATA_DIR = Path(__file__).parent / "data"
IMAGE_SIZE = 28  # pixels, both ways
MEAN, STD = 0.1307, 0.3081  # of the training images, pixels in [0, 1]
BLACK = -MEAN / STD  # a pixel of 0, normalized
TRAIN_ARCHIVES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST_ARCHIVES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


class Augmentation(NamedTuple):
    """Bounds of the random affine transform of an image; see recipes.Recipe for their units."""

    rotation: float
    translation: float
    scaling: float
    shear: float
    interpolation: str


def load_mnist(data_dir: str | Path, train: bool, download: bool = True) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) as uint8 and labels (N,) as int64: 60,000 or, for testing, 10,000.

    Reads the archives in `data_dir`/MNIST/raw, of any dataset in this format; torchvision downloads
    MNIST's into a folder that has none. UsageError where an archive is missing, is damaged or does
    not fit the others.
    """
    raw = Path(data_dir) / "MNIST" / "raw"
    missing = [name for name in TRAIN_ARCHIVES + TEST_ARCHIVES if not (raw / name).exists()]
    if missing and download and not [*raw.glob("*-ubyte*")]:
        download_mnist(data_dir)
    elif missing:
        what = f"{', '.join(missing)} not found in {raw}"
        why = (
            "only a folder without archives is filled"
            if download
            else "a dry run downloads nothing"
        )
        raise UsageError(f"--data-dir {data_dir}: {what}; {why}")
    paths = [raw / name for name in (TRAIN_ARCHIVES if train else TEST_ARCHIVES)]
    try:
        images, labels = map(read_archive, paths)
    except OSError as error:
        raise UsageError(f"--data-dir {data_dir}: {error.strerror} in {raw}") from None
    check_dataset(paths, images, labels)
    return images[:, None], labels.long()


def download_mnist(data_dir: str | Path) -> None:
    """Downloads MNIST by torchvision; UsageError where that fails."""
    from torchvision.datasets import MNIST  # here, since it nearly doubles the start-up

    try:
        MNIST(str(data_dir), download=True)
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":.")
        raise UsageError(
            f"--data-dir {data_dir}: MNIST cannot be downloaded ({reason}); "
            "put its four archives into its folder MNIST/raw"
        ) from None


def check_dataset(paths: list[Path], images: Tensor, labels: Tensor) -> None:
    """UsageError unless there is a label from 0 to 9 for each image of 28 x 28 pixels."""
    images_path, labels_path = paths
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE) or len(images) == 0:
        shape = " x ".join(map(str, images.shape))
        raise UsageError(f"{images_path} holds {shape} numbers; N x 28 x 28 are needed")
    if labels.shape != images.shape[:1]:
        shape = " x ".join(map(str, labels.shape))
        raise UsageError(f"{labels_path} holds {shape} labels for {len(images)} images")
    if labels.max() > 9:
        raise UsageError(f"{labels_path} holds a label {labels.max()}; the digits are 0 to 9")


def read_archive(path: Path) -> Tensor:
    """Reads a gzipped IDX file of uint8; UsageError where it is damaged.

    Two zeros, the type (8: uint8) and the number of dimensions, one byte each; the dimensions,
    four bytes each; the values (http://yann.lecun.com/exdb/mnist).
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

    Each maps output to input coordinates, with both axes from -1 to 1: the inverse of
    shift * rotation * shear * scale. Angles are in radians, shifts in pixels. The arithmetic is
    that of torchvision's `affine`.
    """
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    to_x = torch.stack([cos - sin * tan, sin + cos * tan], dim=1) / scale[:, None]
    to_y = torch.stack([-sin, cos], dim=1) / scale[:, None]
    linear = torch.stack([to_x, to_y], dim=1)
    shift = torch.stack([shift_x, shift_y], dim=1)[:, :, None]
    return torch.cat([linear, -linear @ shift / (IMAGE_SIZE / 2)], dim=2)


def draw_transforms(bounds: Augmentation, count: int, generator: torch.Generator) -> Tensor:
    """Draws an affine transform for each of `count` images: (count, 2, 3)."""

    def uniform(bound: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * bound

    angle, shear = uniform(math.radians(bounds.rotation)), uniform(math.radians(bounds.shear))
    scale = uniform(math.log1p(bounds.scaling)).exp()
    shift_x, shift_y = uniform(bounds.translation), uniform(bounds.translation)
    return affine_matrices(angle, scale, shear, shift_x, shift_y)


def augment(images: Tensor, transforms: Tensor, interpolation: str) -> Tensor:
    """Transforms each image (N, 1, H, W) by its own matrix (N, 2, 3), with zero padding."""
    grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, align_corners=False)


def normalize(images: Tensor) -> Tensor:
    """Normalizes pixels from 0 to 1, in place, by mean and std of the training set."""
    return images.sub_(MEAN).div_(STD)


def mix_seed(seed: int, epoch: int, stream: int = 0) -> int:
    """A 32-bit seed for an epoch of a run; torch's CPU generator uses only 32 bits.

    `stream` separates independent draws: 0 the batches, 1 the network's dropout.
    """
    return int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1)[0])


class Loader:
    """Batches of (images, labels) from a dataset that stays on its device as uint8.

    Without an augmentation, it yields every image in order. With one, images are shuffled and
    augmented: the random numbers depend only on (seed, epoch) and are drawn on the CPU, so that
    every device gets the same order and transforms, and no epoch depends on an earlier one. The
    caller sets `epoch`.
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
        self.sizes = [len(part) for part in labels.split(batch_size)]
        if len(self.sizes) > 1 and self.sizes[-1] == 1:  # too few for BatchNorm of 1 x 1 maps
            self.sizes[-2:] = [batch_size + 1]

    def __len__(self) -> int:
        """The number of batches; the last may be shorter, or longer by one image."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 1, 28, 28), float32 and normalized, and labels (B,)."""
        if self.augmentation is not None:
            return self.augmented_batches(self.augmentation)
        return self.plain_batches()

    def plain_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image, in order."""
        for images, labels in zip(self.images.split(self.sizes), self.labels.split(self.sizes)):
            yield normalize(images.float().div_(255)), labels

    def augmented_batches(self, augmentation: Augmentation) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch`, shuffled and augmented."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator)
        transforms = draw_transforms(augmentation, len(self.images), generator)
        order, transforms = order.to(self.images.device), transforms.to(self.images.device)
        for index, matrices in zip(order.split(self.sizes), transforms.split(self.sizes)):
            images = self.images[index].float().div_(255)
            images = augment(images, matrices, augmentation.interpolation)
            yield normalize(images), self.labels[index]


class TestTimeAugmentation(nn.Module):
    """Averages the softmax of a network over nine views of an image (test-time augmentation).

    The image itself, rotated by 6 degrees to both sides, scaled by 1/1.07 and 1.07, and shifted by
    one pixel in four directions. A network with views of its own averages those for each of them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        turn, zoom = math.radians(6), 1.07
        views = [  # rotation (radians), scale, shift along x and along y (pixels)
            *((-turn, 1, 0, 0), (turn, 1, 0, 0), (0, 1 / zoom, 0, 0), (0, zoom, 0, 0)),
            *((0, 1, -1, 0), (0, 1, 1, 0), (0, 1, 0, -1), (0, 1, 0, 1)),
        ]
        angle, scale, shift_x, shift_y = torch.tensor(views).T
        transforms = affine_matrices(angle, scale, torch.zeros(8), shift_x, shift_y)
        self.register_buffer("transforms", transforms)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (N, 1, 28, 28) to log-probabilities (N, 10)."""
        probabilities = [self.model(images).softmax(dim=1)]
        for transform in self.transforms:
            transforms = transform.expand(len(images), 2, 3)
            # grid_sample pads with 0: shift the values, so that 0 is black.
            view = augment(images - BLACK, transforms, "bilinear") + BLACK
            probabilities.append(self.model(view).softmax(dim=1))
        return torch.stack(probabilities).mean(dim=0).log()
