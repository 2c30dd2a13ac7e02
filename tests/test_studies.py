"""Many seeds and the ablation: what is trained, what is on record, what is made of the records."""

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from artifacts import UsageError

import train
from tools import ablation
from tools.seed_study import FIELDS, is_on_record, read_records, train_one_seed

RECIPE = dataclasses.replace(train.RECIPES["strong"], epochs=2, batch_size=128)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A study sets one thread for its process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def job(folder: Path, recipe: train.Recipe = RECIPE, holdout: int = 0) -> tuple:
    return "model3", recipe, 5, folder / "work", folder / "records", holdout


def test_a_seed_leaves_a_record(small_mnist: dict, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    trained, records = train_one_seed(job(tmp_path))
    assert trained == ("model3", RECIPE, 5) and len(records) == 2
    path = tmp_path / "records" / "model3-strong-seed5.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == FIELDS
    assert [(row["model"], row["recipe"], row["seed"], row["epoch"]) for row in rows] == [
        ("model3", "strong", "5", "1"),
        ("model3", "strong", "5", "2"),
    ]
    assert [float(row["test_acc"]) for row in rows] == [record["test_acc"] for record in records]
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings["recipe"] == dataclasses.asdict(RECIPE)
    assert str(tmp_path) not in path.with_suffix(".json").read_text()


def test_a_run_on_record_is_not_repeated_and_another_is_refused(
    small_mnist: dict, tmp_path: Path
) -> None:
    records_dir = tmp_path / "records"
    assert not is_on_record("model3", RECIPE, 5, records_dir, 0)
    (tmp_path / "work").mkdir()
    train_one_seed(job(tmp_path))
    assert is_on_record("model3", RECIPE, 5, records_dir, 0)
    assert not is_on_record("model3", RECIPE, 6, records_dir, 0)
    other = dataclasses.replace(RECIPE, max_lr=0.2)
    with pytest.raises(UsageError, match=r"max_lr 0\.1, not 0\.2"):
        is_on_record("model3", other, 5, records_dir, 0)
    with pytest.raises(UsageError, match="holdout 0, not 100"):
        is_on_record("model3", RECIPE, 5, records_dir, 100)


def test_a_half_finished_seed_goes_on_where_it_stopped(
    small_mnist: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "undisturbed"):
        (folder / "work").mkdir(parents=True)
    _, expected = train_one_seed(job(tmp_path / "undisturbed"))
    train_one_epoch, epochs = train.train_one_epoch, []

    def stopped(model: object, loader: train.Loader, *args: object) -> tuple[float, float]:
        epochs.append(loader.epoch)
        if epochs == [1, 2]:
            raise KeyboardInterrupt
        return train_one_epoch(model, loader, *args)

    monkeypatch.setattr(train, "train_one_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_one_seed(job(tmp_path))
    _, records = train_one_seed(job(tmp_path))
    assert epochs == [1, 2, 2]
    for record, other in zip(records, expected, strict=True):
        assert record | {"seconds": 0} == other | {"seconds": 0}


def test_a_run_begun_under_other_settings_begins_anew(small_mnist: dict, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    train_one_seed(job(tmp_path, dataclasses.replace(RECIPE, max_lr=0.2)))
    for path in (tmp_path / "records").iterdir():
        path.unlink()
    _, records = train_one_seed(job(tmp_path, holdout=100))
    assert all("val_acc" in record for record in records)
    (name,) = read_records(tmp_path / "records")
    assert name == ("model3", "strong")


def test_ablation_table_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds whose last three epochs have means 99.3, 99.4 and 99.5: s.e. 0.1 / sqrt(3).

    The lowest of their last five are 98.0, 99.0 and 99.4.
    """
    monkeypatch.setattr(ablation, "VARIANTS", {"nothing": train.RECIPES["strong"]})
    seeds = {
        seed: [
            {"val_acc": accuracy, "val_loss": loss}
            for accuracy, loss in (
                (90.0, 9.0),
                (98.0 + seed, 9.0),
                (99.9, 9.0),
                (mean - 0.1, 0.1),
                (mean, 0.2),
                (mean + 0.1, 0.3),
            )
        ]
        for seed, mean in enumerate((99.3, 99.4, 99.5))
    }
    row = ablation.table({("model3", "strong"): seeds}).splitlines()[-1]
    assert row == "| nothing | 3 | 99.400 % | 0.058 | 98.800 % | 0.416 | 0.2000 | 0.0000 |"
    alone = ablation.table({("model3", "strong"): {0: seeds[0]}}).splitlines()[-1]
    assert alone == "| nothing | 1 | 99.300 % | - | 98.000 % | - | 0.2000 | - |"


def test_each_variant_lacks_what_it_says() -> None:
    strong, classic = train.RECIPES["strong"], train.RECIPES["classic"]
    for ingredient, recipe in ablation.VARIANTS.items():
        changed = {
            field.name
            for field in dataclasses.fields(recipe)
            if getattr(recipe, field.name) != getattr(strong, field.name)
        } - {"name"}
        assert bool(changed) == (ingredient != "nothing")
        for field in changed - {"ema_decay"}:
            assert getattr(recipe, field) == getattr(classic, field)
