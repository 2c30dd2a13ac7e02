"""A whole run: its result, its reproducibility, its files and where it comes from."""

import csv
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import torch
from conftest import Digits
from torch import nn

import provenance
import train
from mnist import Loader
from networks import load_model
from recipes import CLASSIC, STRONG, Experiment


def test_model3_learns_digits_in_one_epoch(mnist: Digits, tmp_path: Path, monkeypatch) -> None:
    """On 10,000 images; about 50 where nothing is learned of one of its settings."""
    parts = {True: [x[:10_000] for x in mnist["train"]], False: [x[:2_000] for x in mnist["test"]]}
    monkeypatch.setattr(train, "load_mnist", lambda _, train, **how: parts[train])
    recipe = replace(CLASSIC, epochs=1, batch_size=64, max_lr=0.1)
    (record,) = train.run(Experiment("model3", recipe), tmp_path, device="cpu", quiet=True)
    assert record["acc"] >= 94


def test_run_folder(small_mnist: Digits, tmp_path: Path) -> None:
    """Every setting, full precision, and weights that attain what the last row says."""
    recipe = STRONG.changed(["epochs=2"])
    experiment = Experiment("model4", recipe, 7, 100, {"stem": [4, 5], "width": 9})
    records = train.run(experiment, tmp_path, device="cpu", quiet=True)
    folder = tmp_path / "model4-stem4,5-width9-strong+epochs=2-seed7-holdout100"
    files = {"config.json", "metrics.csv", "checkpoint.pt", "curves.png", "weights.pt", ".lock"}
    assert {path.name for path in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert Experiment.from_config(config, folder) == experiment
    assert (config["device"], config["torch"]) == ("cpu", torch.__version__)
    assert {"commit", "python", "torchvision", "threads", "data_dir", "challenge"} <= config.keys()
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert "Val Loss |  Val Acc (%)" in train.table_header(holdout=100)
    assert rows == records and [row["epoch"] for row in rows] == [1, 2]
    name, model = load_model(folder)
    loader = Loader(*(part[-100:] for part in small_mnist["train"]), train.TEST_BATCH_SIZE)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    result = train.evaluate(model, loader, criterion)
    assert (name, *result) == ("model4", records[-1]["loss"], records[-1]["acc"])
    assert model.stem[0].out_channels == 4


def test_commit_is_dirty_where_code_of_a_run_differs_from_it(tmp_path, monkeypatch) -> None:
    """Records, documents and the untracked files of other networks make no difference."""

    def git(*words: str) -> str:
        command = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit_of("model1") is None  # no repository at all
    for name in ("train.py", "model1.py", "runs.csv"):
        (tmp_path / name).write_text("first")
    git("init")
    git("add", ".")
    git("commit", "-m", "code")
    head = git("rev-parse", "--short", "HEAD")
    (tmp_path / "runs.csv").write_text("second")
    git("commit", "-a", "-m", "records")
    (tmp_path / "README.md").write_text("new")
    (tmp_path / "model2.py").write_text("a new attempt, which nobody can check out")
    assert provenance.commit_of("model1") == head
    assert provenance.commit_of("model2") == f"{head}-dirty"
    (tmp_path / "train.py").write_text("second")
    assert provenance.commit_of("model1") == f"{head}-dirty"
    (inner := tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(provenance, "ROOT", inner)
    assert provenance.commit_of("model1") is None  # the repository around it is another project's
