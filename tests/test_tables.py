"""Records and the tables made from them: statistics by hand, documents that are up to date."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from challenges import CHALLENGES
from cli import UsageError
from networks import ROOT
from tools import tables
from tools.tables import KEY, RESULTS


def keep(folder: Path, model: str, recipe: str, acc: list[float], **more: Any) -> None:
    """Keep a made-up run; its loss is a hundredth of its accuracy."""
    row = {"model": model, "recipe": recipe, "seed": 0, "holdout": 0, "parameters": 7784}
    row |= {"commit": "12e45", "seconds": 1.5, "train_loss": 0.1, "train_acc": 97.5, "lr": 1e-05}
    row |= more
    epochs = [row | {"epoch": n, "acc": a, "loss": a / 100} for n, a in enumerate(acc, 1)]
    tables.keep_record(row, epochs, folder)


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_documents_are_what_the_records_say() -> None:
    made = tables.documents(tables.read_records(), tables.read_epochs())
    for path, found in made.items():
        text = path.read_text(encoding="utf-8")
        for name, table in found.items():
            part = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
            assert part in text, f"{path.name}, {name}: run python -m tools.tables"


def test_every_run_on_record_is_whole_and_of_a_clean_commit() -> None:
    runs = pd.read_csv(RESULTS / "runs.csv", dtype={"commit": str}).set_index(KEY)
    epochs = tables.read_epochs().groupby(KEY)
    assert runs.index.is_unique and len(runs) >= 169
    assert {*runs.index} == {*epochs.groups}
    assert runs["commit"].str.fullmatch("[0-9a-f]{7,}").all()
    assert all([*rows["epoch"]] == [*range(1, len(rows) + 1)] for _, rows in epochs)
    assert (runs["seconds"] - epochs["seconds"].sum()).abs().max() < 1e-6
    assert [*runs["views_acc"].isna()] == [*runs.index.isin([10_000], "holdout")]
    assert len(pd.read_csv(RESULTS / "tuning.csv")) >= 1870


def test_a_record_kept_again_changes_no_byte(tmp_path: Path) -> None:
    """Every figure is written as it was read, in its place."""
    for name in tables.COLUMNS:
        shutil.copy(RESULTS / name, tmp_path)
    only = "model == 'model1' and recipe == 'strong' and seed == 42"
    names = ["train_loss", "train_acc", "lr", "loss", "acc", "seconds", "views_acc", "one_view_acc"]
    exact = dict.fromkeys(names, lambda text: float(text or "nan"))  # pandas before 3 rounds
    read = (pd.read_csv(RESULTS / name, converters=exact) for name in tables.COLUMNS)
    runs, epochs = (table.query(only) for table in read)
    tables.keep_record(*runs.to_dict("records"), epochs.to_dict("records"), tmp_path)
    for name in tables.COLUMNS:
        assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes()


def test_a_record_replaces_that_of_the_same_run_alone(tmp_path: Path) -> None:
    for seed in (10, 9):
        keep(tmp_path, "model3", "own", [98.0] * 6, seed=seed)
    keep(tmp_path, "model3", "own", [97.0], seed=9, holdout=10_000)
    keep(tmp_path, "model3", "own", [99.0] * 5, seed=9)
    assert tables.read_epochs(tmp_path)["acc"].tolist() == [99.0] * 5 + [97.0] + [98.0] * 6
    records = tables.read_records(tmp_path)
    assert records[["seed", "epochs"]].to_numpy().tolist() == [[9, 5], [9, 1], [10, 6]]
    assert records["commit"].tolist() == ["12e45"] * 3  # which is no number


def test_two_studies_at_once_lose_no_row(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: keep(tmp_path, "model3", "own", [99.0], seed=seed), range(24)))
    assert tables.read_records(tmp_path)["seed"].tolist() == [*range(24)]


def test_a_distribution_by_hand(tmp_path: Path) -> None:
    """Three seeds of six epochs; t for two degrees of freedom is 4.303 (any table)."""
    for seed, (fifth, sixth) in enumerate([(99.39, 99.4), (99.5, 99.5), (99.4, 99.6)]):
        acc = [98.0, 99.4, 99.5, 99.5, fifth, sixth]
        keep(tmp_path, "model3", "own", acc, seed=seed, views_acc=99.5)
    (row,) = cells(tables.markdown(tables.summary(tables.read_records(tmp_path))))
    mean, std = "99.500 ± 0.248", "0.100"  # 4.303 * 0.1 / sqrt(3)
    met = ["3 of 3", "2 of 3", "2 of 3 (21-94 %)"]
    assert row == ["model3", "own", "3", "7,784", mean, std, "99.40", "99.60", *met, "99.500"]


def test_another_challenge_has_other_limits_and_epochs(tmp_path: Path) -> None:
    for recipe, acc in {"a": [99.5] * 15, "b": [99.5, 99.3, 99.3]}.items():
        keep(tmp_path, "model4", recipe, acc, parameters=9_999)
    for name, met in {"8k": [0, 0], "10k": [1, 0], "20k": [1, 1]}.items():
        records = tables.read_records(tmp_path, CHALLENGES[name])
        assert records["meets"].tolist() == met, name
    assert "any ≥ 99.4 %" in tables.summary(records, CHALLENGES["20k"])


def test_validation_runs_have_rows_of_their_own_and_no_verdict(tmp_path: Path) -> None:
    for holdout in (0, 10_000):
        keep(tmp_path, "model3", "own", [99.5 - holdout / 1e4] * 15, holdout=holdout)
    test, validation = cells(tables.markdown(tables.summary(tables.read_records(tmp_path))))
    assert test[2:6] + test[-1:] == ["test", "1", "7,784", "99.500", "1 of 1 (21-100 %)"]
    assert validation[2:6] + validation[-1:] == ["10,000 validation", "1", "7,784", "98.500", "-"]


def test_beside_several_views_stands_one(tmp_path: Path) -> None:
    """The table and the claim; a network of one view has neither, nor a run without a record."""
    keep(tmp_path, "model4", "strong", [99.6] * 15)
    keep(tmp_path, "model5", "strong", [99.6] * 15)
    expected = "Each prediction averages 4 views of the image.**"
    assert expected in tables.claim(tables.read_records(tmp_path), "model5")
    for seed, one in enumerate([99.3, 99.5], 1):
        keep(tmp_path, "model5", "strong", [99.6] * 15, one_view_acc=one, seed=seed)
    records = tables.read_records(tmp_path)
    table = tables.summary(records).set_index("model")
    assert table["one view"].to_dict() == {"model4": "-", "model5": "99.400 (2 seeds)"}
    assert "views" not in tables.claim(records, "model4")
    claim = tables.claim(records, "model5")
    assert "4 views of the image; by one view (2 seeds): 99.40 %, and 1 of 2 seeds." in claim


def test_wilson_interval() -> None:
    """Newcombe (1998), Two-sided confidence intervals for the single proportion, table I."""
    assert tables.share(pd.Series([True] * 81 + [False] * 182)) == "81 of 263 (26-37 %)"
    assert tables.share(pd.Series([False] * 20)) == "0 of 20 (0-16 %)"


def test_ablation_is_paired_by_seed(tmp_path: Path) -> None:
    """Differences -0.1, -0.2, -0.3: mean -0.2, s.e. 0.1 / sqrt(3), t for two degrees 4.303.

    Their interval is 0.248, so they do not exclude zero; -0.2, -0.2, -0.21 do. Unpaired, the
    means of the seeds would differ by far more.
    """
    means = {"": [99.3, 99.4, 99.5], "a": [99.2, 99.2, 99.2], "b": [99.1, 99.2, 99.29]}
    for part, values in means.items():
        for seed, mean in enumerate(values):
            recipe = f"strong+{part}=0+c=1" if part else "strong"
            acc = [90.0, 99.9, 99.9, mean - 0.1, mean, mean + 0.1]
            keep(tmp_path, "model4", recipe, acc, seed=seed, holdout=10_000)
    whole, a, b = cells(tables.ablation_table(tables.read_records(tmp_path)))
    assert whole[2:] == ["none", "3", "99.400", "99.300", "0.9940"]
    assert a[2:5] == ["a=0, c=1", "3", "-0.200 ± 0.248"]
    assert b[2:5] == ["b=0, c=1", "3", "**-0.203 ± 0.014**"]


def test_records_may_be_missing_or_of_unknown_networks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "README", tmp_path / "front.md")
    for path in (RESULTS / "public.csv", RESULTS / "README.md", RESULTS / "epochs.md"):
        shutil.copy(path, tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path / "front.md")
    tables.update()
    assert "<!-- seeds -->\nNo records yet.\n" in (tmp_path / "README.md").read_text()
    assert "No record of model4" in (tmp_path / "front.md").read_text()
    for seed in range(11):
        keep(tmp_path, "model77", "strong", [99.5] * 5, seed=seed)
    keep(tmp_path, "model77-width9", "strong", [99.5] * 5)
    keep(tmp_path, "model9", "own", [99.5] * 5, parameters=8_001)
    keep(tmp_path, "model3", "strong", [99.5] * 5)
    keep(tmp_path, "model9", "own+x=1", [99.5] * 5, holdout=9)  # and nothing to compare with
    tables.update()
    text = (tmp_path / "README.md").read_text()
    made = (text.split(f"<!-- {name} -->\n")[1] for name in ("seeds", "sizes"))
    seeds, sizes = (cells(part.partition("\n<!--")[0]) for part in made)
    expected = [["model3", "strong", "1"], ["model9", "own", "1"], ["model77", "strong", "11"]]
    assert [row[:3] for row in seeds] == expected
    assert [row[0] for row in sizes] == ["model3", "model77", "model77-width9"]
    front = (tmp_path / "front.md").read_text()
    assert re.search(r"model3\.py\) +\| strong +\| +7,784 \| +1 \| +99.500 \| +- \|", front)
    for name in ("seeds.png", "frontier.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_missing_markers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("<!-- a -->")
    with pytest.raises(UsageError, match="no <!-- a --> followed by <!-- /a -->"):
        tables.write_tables(path, {"a": "1"})
    path.write_text("x\n<!-- a -->\n<!-- /a -->\ny")
    tables.write_tables(path, {"a": "1"})
    assert path.read_text() == "x\n<!-- a -->\n1\n<!-- /a -->\ny"
