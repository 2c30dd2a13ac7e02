"""The dataset, its augmentation and its loader, against the publication and torchvision."""

import dataclasses
import gzip
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Digits, write_archives
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

import train
from cli import UsageError
from mnist import DATA_DIR, Loader, TestTimeAugmentation, augment, draw_transforms, load_mnist
from recipes import CLASSIC, Experiment

STILL = dataclasses.replace(CLASSIC, rotation=0.0)
GENERAL = dataclasses.replace(
    CLASSIC, rotation=15.0, translation=2.0, scaling=0.1, shear=10.0, interpolation="bilinear"
)

RAW = DATA_DIR / "MNIST" / "raw"
NAMES = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


def test_archives_are_the_published_ones(mnist: Digits) -> None:
    assert all(check_integrity(RAW / name, md5) for name, md5 in MNIST.resources)
    for part, count, first in (("train", 60_000, [5, 0, 4, 1]), ("test", 10_000, [7, 2, 1, 0])):
        images, labels = mnist[part]
        assert (images.shape, images.dtype) == ((count, 1, 28, 28), torch.uint8)
        assert (labels.shape, labels.dtype) == ((count,), torch.int64)
        assert labels[:4].tolist() == first


def test_damaged_archive_is_named(few: Digits, tmp_path: Path) -> None:
    path = write_archives(tmp_path, few) / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    flipped = whole[:900] + bytes([whole[900] ^ 1]) + whole[901:]
    for content in (whole[:-1], flipped, gzip.compress(b"")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"^{re.escape(str(path))} is damaged.*$"):
            load_mnist(tmp_path, train=False)


def blank(count: int, side: int = 28) -> Tensor:
    return torch.zeros(count, 1, side, side)


WRONG = {  # what is said of images and labels
    "labels-idx1-ubyte.gz holds 3 labels for 5 images": (blank(5), torch.zeros(3)),
    "labels-idx1-ubyte.gz holds a label 10": (blank(3), torch.tensor([0, 10, 9])),
    "images-idx3-ubyte.gz holds 3 x 16 x 16 numbers": (blank(3, 16), torch.zeros(3)),
    "images-idx3-ubyte.gz holds 0 x 28 x 28 numbers": (blank(0), torch.zeros(0)),
}


@pytest.mark.parametrize("said", WRONG)
def test_images_and_labels_must_fit(said: str, few: Digits, tmp_path: Path, capsys) -> None:
    """As a user sees it: one line, code 2, and no folder of a run."""
    data_dir = write_archives(tmp_path / "data", few | {"test": WRONG[said]})
    options = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "runs")]
    assert train.main(options) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_only_a_folder_without_archives_is_filled(few, tmp_path, monkeypatch) -> None:
    """The archives of a user are never overwritten, and a dry run downloads nothing."""
    calls = []

    def download(root: str, download: bool) -> None:
        calls.append(root)
        write_archives(Path(root), few)

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    empty, raw = tmp_path / "empty", tmp_path / "user" / "MNIST" / "raw"
    none = "-ubyte.gz, ".join(NAMES) + ".*a dry run downloads nothing"
    with pytest.raises(UsageError, match=none):
        load_mnist(empty, train=True, download=False)
    assert not calls and len(load_mnist(empty, train=False)[0]) == 300 and calls == [str(empty)]
    for name in NAMES:
        shutil.copytree(empty, tmp_path / "user", dirs_exist_ok=True)
        (raw / f"{name}-ubyte.gz").unlink()
        with pytest.raises(UsageError, match=f"user: {name}-ubyte.gz not found in [^,]*; only"):
            load_mnist(tmp_path / "user", train=False)
    assert calls == [str(empty)]


def test_failed_download_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^.*downloaded.*put its four archives into.*$"):
        load_mnist(tmp_path, train=True)


# ------------------------------------------------------------------------ augmentation


def parameters(maps: Tensor) -> dict[str, Tensor]:
    """Arguments of torchvision's `affine` for transforms (N, 2, 3), in degrees and pixels."""
    linear, offset = maps.double().split([2, 1], dim=2)
    scale = 1 / linear[:, 1].norm(dim=1)
    sin, cos = -linear[:, 1, 0] * scale, linear[:, 1, 1] * scale
    shear = (cos * linear[:, 0, 1] - sin * linear[:, 0, 0]) * scale
    shift = -torch.linalg.solve(linear, offset).squeeze(2) * 14
    return {
        "angle": torch.atan2(sin, cos).rad2deg(),
        "scale": scale,
        "shear": torch.atan(shear).rad2deg(),
        "x": shift[:, 0],
        "y": shift[:, 1],
    }


def draw(recipe: train.Recipe, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    maps = draw_transforms(recipe, count, torch.Generator().manual_seed(0))
    return maps, parameters(maps)


def test_classic_rotates_by_up_to_seven_degrees_as_torchvision_does(mnist: dict) -> None:
    """Tensor backend: no pixel differs."""
    images = mnist["test"][0][:1000]
    maps, drawn = draw(CLASSIC, len(images))
    ours = augment(images.float(), maps, CLASSIC.interpolation)
    # `rotate` is counter-clockwise, `affine` clockwise.
    angles = (-drawn["angle"]).tolist()
    theirs = torch.stack([TF.rotate(x, a, fill=0) for x, a in zip(images, angles)])
    assert torch.equal(ours, theirs.float())
    assert 6.9 < drawn["angle"].abs().max() < 7.0001


def test_affine_map_is_that_of_torchvision(mnist: dict) -> None:
    images = mnist["test"][0][:500] / 255
    maps, drawn = draw(GENERAL, len(images))
    ours = augment(images, maps, GENERAL.interpolation)
    columns = (drawn[key].tolist() for key in ("angle", "x", "y", "scale", "shear"))
    theirs = [
        TF.affine(image, angle, [x, y], scale, [shear, 0.0], InterpolationMode.BILINEAR)
        for image, angle, x, y, scale, shear in zip(images, *columns)
    ]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-4)


def test_draws_are_uniform_independent_and_different_for_each_image() -> None:
    count = 60_000
    _, drawn = draw(GENERAL, count)
    drawn["scale"] = drawn["scale"].log()
    bounds = {"angle": 15.0, "scale": math.log(1.1), "shear": 10.0, "x": 2.0, "y": 2.0}
    for key, bound in bounds.items():
        quantiles = drawn[key].sort().values / bound / 2 + 0.5
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded by one uniform sample in a thousand.
        distance = (quantiles - torch.linspace(0, 1, count)).abs().max()
        assert distance < 1.95 / math.sqrt(count)
        assert quantiles[0] > -1e-6 and quantiles[-1] < 1 + 1e-6
        assert len(quantiles.unique()) > 0.99 * count
    correlation = torch.corrcoef(torch.stack(list(drawn.values()))) - torch.eye(5)
    assert correlation.abs().max() < 5 / math.sqrt(count)


# ------------------------------------------------------------------------------ loader


def batches(loader: Loader, epoch: int) -> tuple[Tensor, Tensor]:
    """All images and all labels of one epoch."""
    loader.epoch = epoch
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(
    ("count", "sizes"), [(300, [128, 128, 44]), (256, [128, 128]), (257, [128, 129]), (1, [1])]
)
def test_every_training_image_once_an_epoch_with_its_label(mnist, count, sizes) -> None:
    """The labels number the images, and none of them is moved. No batch of one follows others."""
    images, numbers = mnist["train"][0][:count], torch.arange(count)
    loader = Loader(images, numbers, 128, STILL)
    assert [len(labels) for _, labels in loader] == sizes and len(loader) == len(sizes)
    moved, order = batches(loader, epoch=1)
    assert torch.equal(order.sort().values, numbers)
    assert count == 1 or not torch.equal(order, numbers)
    still, _ = batches(Loader(images, numbers, 128), epoch=1)
    assert torch.equal(moved, still[order])


def test_batches_are_a_pure_function_of_seed_and_epoch(mnist: dict) -> None:
    def epoch_of(seed: int, epoch: int, *earlier: int) -> tuple[Tensor, Tensor]:
        loader = Loader(mnist["train"][0][:300], torch.arange(300), 128, CLASSIC, seed)
        for number in earlier:
            torch.manual_seed(number)
            batches(loader, number)
        return batches(loader, epoch)

    images, order = epoch_of(1, 3)
    again, same_order = epoch_of(1, 3, 1, 2, 3)
    assert torch.equal(images, again) and torch.equal(order, same_order)
    for seed, epoch in ((1, 2), (2, 3), (3, 1)):
        assert not torch.equal(order, epoch_of(seed, epoch)[1])


def test_test_loader_is_neither_shuffled_nor_augmented_nor_cut(mnist: Digits) -> None:
    """Its batches, exactly, are what torchvision's usual transforms make of the test set."""
    _, loader = train.build_loaders(Experiment("model3", CLASSIC), torch.device("cpu"))
    images, labels = zip(*loader)
    assert [len(part) for part in labels] == [250] * 40 and len(loader) == 40
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    reference = torch.stack([usual(image[0].numpy()) for image in mnist["test"][0][::9]])
    assert torch.equal(torch.cat(images)[::9], reference)
    assert torch.equal(torch.cat(labels), mnist["test"][1])


def test_validation_images_are_the_last_training_images(small_mnist: Digits) -> None:
    experiment = Experiment("model3", CLASSIC, holdout=100)
    loader, val_loader = train.build_loaders(experiment, torch.device("cpu"))
    images, labels = small_mnist["train"]
    assert torch.equal(loader.images, images[:400]) and torch.equal(loader.labels, labels[:400])
    val_images, val_labels = batches(val_loader, epoch=1)
    assert torch.equal(val_labels, labels[400:])
    assert torch.equal(val_images, (images[400:] / 255 - 0.1307) / 0.3081)
    for count in (499, 500, 501):
        with pytest.raises(UsageError, match=f"--holdout {count}: .* at least two must be left"):
            train.build_loaders(Experiment("model3", CLASSIC, 42, count), torch.device("cpu"))


def test_nine_views_are_those_of_torchvision(mnist: dict) -> None:
    pixels = mnist["test"][0][:5] / 255
    moves = [(0, 0, 0, 1), (-6, 0, 0, 1), (6, 0, 0, 1), (0, 0, 0, 1 / 1.07), (0, 0, 0, 1.07)]
    moves += [(0, -1, 0, 1), (0, 1, 0, 1), (0, 0, -1, 1), (0, 0, 1, 1)]
    seen: list[Tensor] = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.eye(10)[len(seen) - 1].expand(len(images), 10).log()  # a digit for each view

    average = TestTimeAugmentation(nn.Identity())
    average.model.forward = network
    probabilities = average((pixels - 0.1307) / 0.3081).exp()
    torch.testing.assert_close(probabilities[0], torch.tensor([1 / 9] * 9 + [0]))
    for view, (angle, x, y, scale) in zip(seen, moves, strict=True):
        reference = TF.affine(pixels, angle, [x, y], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        torch.testing.assert_close(view, (reference - 0.1307) / 0.3081, atol=1e-3, rtol=0)
