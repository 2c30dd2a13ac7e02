"""A whole run: its reproducibility, its interruption and resumption, its files and its words."""

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fail_at
from torch import nn

import run_folder
import train
from challenges import verdict
from mnist import Loader
from networks import load_model
from recipes import CLASSIC, STRONG, Experiment

ONE_EPOCH, TWO_EPOCHS = (replace(CLASSIC, epochs=epochs) for epochs in (1, 2))


def run(
    out_dir: Path, recipe: train.Recipe = TWO_EPOCHS, seed: int = 42, holdout: int = 0, **how: Any
) -> list[dict[str, Any]]:
    experiment = Experiment("model3", recipe, seed, holdout)
    return train.run(experiment, out_dir, device="cpu", **how)


def only_folder(out_dir: Path) -> Path:
    (folder,) = out_dir.iterdir()
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal to the last bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_epoch_of_model3_reaches_97_percent(tmp_path: Path) -> None:
    """The real thing: all 60,000 images, the classic recipe squeezed into one epoch."""
    (record,) = run(tmp_path, ONE_EPOCH, quiet=True)
    assert record["acc"] >= 97


def test_same_seed_same_weights_and_a_folder_for_each_run(small_mnist, tmp_path) -> None:
    run(tmp_path, ONE_EPOCH, quiet=True)
    first = only_folder(tmp_path)
    content = {path: path.read_bytes() for path in first.iterdir()}
    for seed in (42, 2):
        run(tmp_path, ONE_EPOCH, seed, quiet=True)
    assert {path: path.read_bytes() for path in first.iterdir()} == content
    (again,), (other,) = ({*tmp_path.glob(f"*-seed{seed}*")} - {first} for seed in (42, 2))
    assert same(weights(first), weights(again)) and not same(weights(first), weights(other))


# -------------------------------------------------------------- interruption and resumption


def start(out_dir: Path, recipe: str) -> int:
    """Three epochs, as a user starts them; where weights are averaged, from the second on."""
    command = ["--recipe", recipe, "--epochs", "3", "--batch-size", "128", "--device", "cpu"]
    return train.main([*command, "--quiet", "--out-dir", str(out_dir)])


@pytest.mark.parametrize("recipe", ["classic", "strong"])  # without an average and with one
def test_resumed_run_equals_an_uninterrupted_one(small_mnist, tmp_path, recipe, capsys) -> None:
    """To the last bit, though only the resumed one prints the layers; its table is whole."""
    assert start(tmp_path / "whole", recipe) == 0
    with pytest.MonkeyPatch.context() as patch:
        # Six batches per epoch, of which the last two are the test's: in the third epoch.
        fail_at(12 + 3, nn.CrossEntropyLoss, "forward", KeyboardInterrupt(), patch)
        assert start(tmp_path / "stopped", recipe) == 130
    folder, reference = (only_folder(tmp_path / name) for name in ("stopped", "whole"))
    assert capsys.readouterr().err.strip().endswith(f"--resume {folder}")
    assert len(rows(folder)) == 2 and not (folder / "weights.pt").exists()
    assert train.main(["--resume", str(folder)]) == 0
    assert same(weights(folder), weights(reference)) and files(folder) == files(reference)
    for ours, theirs in zip(rows(folder), rows(reference), strict=True):
        assert ours | {"seconds": None} == theirs | {"seconds": None}
    out = capsys.readouterr().out
    assert "Total params: 7,784" in out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    header, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert header == ["Epoch", "Train Acc (%)", "LR", "Test Loss", "Test Acc (%)", "Time (s)"]
    for row, cells in zip(rows(folder), body, strict=True):
        expected = [row["epoch"], *(f"{float(row[key]):.2f}" for key in ("train_acc", "acc"))]
        assert [cells[0], cells[1], cells[4]] == expected
        assert cells[3] == f"{float(row['loss']):.4f}"


# ------------------------------------------------------------------------------- printed


MET = [98.0] * 9 + [99.6, 99.4, 99.45, 99.48, 99.40, 99.44]
WORDS = [
    "test accuracy 99.44 % at the last epoch, 99.44 % mean of the last three",
    "99.60 % best (epoch 10)",
    "yes  7,784 parameters",
    "yes  15 epochs",
    "yes  5 of the last 5 epochs at 99.4 % or more",
    "The challenge is met.",
]


@pytest.mark.parametrize(
    ("parameters", "accuracies", "expected"),
    [
        (7_784, MET, WORDS),
        (7_784, [*MET[:-2], 99.39, 99.5], ["NO   4 of the last 5", "is not met."]),
        (7_784, [98.0, *MET], ["NO   16 epochs", "is not met."]),
        (7_784, [99.5] * 4, ["NO   4 of the last 5", "takes 5 epochs or more, is not met."]),
        (7_784, [98.0, 98.5], ["98.50 % at the last epoch, 98.50 % best (epoch 2)"]),
        (13_808, MET, ["NO   13,808 parameters", "yes  5 of", "is not met."]),
    ],
)
def test_verdict(parameters: int, accuracies: list[float], expected: list[str]) -> None:
    text = verdict(parameters, [{"acc": accuracy} for accuracy in accuracies], holdout=0)
    assert [part for part in expected if part not in text] == []


def test_verdict_on_held_out_images_says_so() -> None:
    text = verdict(7_784, [{"acc": accuracy} for accuracy in MET], holdout=100)
    assert "held-out accuracy 99.44 %" in text and "test" not in text
    assert "The challenge" not in text


# ---------------------------------------------------------------------------------- kept


def test_run_folder(small_mnist: dict, tmp_path: Path) -> None:
    """Every setting, full precision, and weights that attain what the last row says."""
    recipe = replace(STRONG, epochs=2)
    records = run(tmp_path, recipe, seed=7, holdout=100, quiet=True)
    folder = only_folder(tmp_path)
    written = {"config.json", "metrics.csv", "checkpoint.pt", "curves.png", "weights.pt"}
    assert files(folder) == written
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["seed"], config["holdout"]) == ("model3", 7, 100)
    assert train.Recipe(**config["recipe"]) == recipe
    assert (config["device"], config["torch"]) == ("cpu", torch.__version__)
    assert {"commit", "python", "torchvision", "threads", "data_dir"} <= config.keys()

    keys = ["epoch", "train_loss", "train_acc", "lr", "loss", "acc", "seconds"]
    assert [*rows(folder)[0]] == keys
    for row, record in zip(rows(folder), records, strict=True):
        assert [float(row[key]) for key in keys] == [record[key] for key in keys]

    fits, model = load_model(folder)
    loader = Loader(*(part[-100:] for part in small_mnist["train"]), train.TEST_BATCH_SIZE)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    result = train.evaluate(model, loader, criterion)
    assert (fits, *result) == ("model3", records[-1]["loss"], records[-1]["acc"])


def test_a_network_of_other_sizes_is_recorded_and_read_as_such(small_mnist, tmp_path) -> None:
    experiment = Experiment("model4", ONE_EPOCH, sizes={"stem": (4, 5), "width": 9})
    train.run(experiment, tmp_path, device="cpu", quiet=True)
    folder = only_folder(tmp_path)
    assert folder.name == "model4-1046-classic-seed42"
    name, network = load_model(folder)
    assert name == "model4" and network.stem[0].out_channels == 4


def test_commit_is_dirty_when_code_has_changed_not_documents(tmp_path, monkeypatch) -> None:
    """A study writes records and README while it goes on: that must not mark its later runs."""

    def git(*words: str) -> str:
        command = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def described() -> str | None:
        return run_folder.describe(torch.device("cpu"))["commit"]

    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    assert described() is None  # no repository at all
    for name in ("code.py", "README.md"):
        (tmp_path / name).write_text("first")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "--short", "HEAD")
    assert described() == head
    (tmp_path / "README.md").write_text("second")
    (tmp_path / "record.csv").write_text("new")
    assert described() == head
    (tmp_path / "model5.py").write_text("a new attempt, which nobody can check out")
    assert described() == f"{head}-dirty"
    (inner := tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(run_folder, "ROOT", inner)
    assert described() is None  # the repository around it is of something else
