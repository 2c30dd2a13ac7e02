"""The records of runs under results/: kept, read, counted, and made into the README's tables.

A record is NAME.csv, a row per epoch, and NAME.json, the settings of the run and where it ran.
Each table of README.md stands between <!-- name --> and <!-- /name -->, and is made of nothing but
records.
"""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from command_line import UsageError
from run_folder import LAST_EPOCHS, MIN_ACCURACY, csv_bytes, lock, run_name, write_atomically
from train import Recipe, training_code

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
RUNS = RESULTS / "runs"
README = ROOT / "README.md"
NAMES = ("model", "recipe", "seed")  # the first columns of a record

Rows = list[dict[str, float]]  # of one run, a row per epoch
Records = dict[tuple[str, str], dict[int, Rows]]  # by (model, recipe), then by seed


# ------------------------------------------------------------------------------- records


def keep_record(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the record of a run with these settings into `folder`."""
    names = dict(zip(NAMES, (config["model"], config["recipe"]["name"], config["seed"])))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_name(**names)}.json"
    config = {key: value for key, value in config.items() if key != "data_dir"}  # a path of here
    # Settings after rows: if only one can be written, `mismatch` must not take old rows for new.
    write_atomically(path.with_suffix(".csv"), csv_bytes([names | row for row in rows]))
    write_atomically(path, json.dumps(config, indent=2).encode())


def mismatch(
    model_name: str, recipe: Recipe, seed: int, folder: Path = RUNS, holdout: int = 0
) -> str:
    """What keeps the record of this run from being that of today's code; "" where nothing does."""
    path = folder / f"{run_name(model_name, recipe.name, seed)}.json"
    if not (path.exists() and path.with_suffix(".csv").exists()):
        return "no record"
    had = json.loads(path.read_text())
    settings = {**had["recipe"], "holdout": had["holdout"], "code": had.get("code")}
    now = dataclasses.asdict(recipe) | {"holdout": holdout, "code": training_code(model_name)}
    changes = [
        f"{key} {settings.get(key)} -> {now[key]}" for key in now if settings.get(key) != now[key]
    ]
    return ", ".join(changes)


def read_records(folder: Path = RUNS) -> Records:
    """The rows of each run on record: by (model, recipe), then by seed."""
    records: Records = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        name = (rows[0]["model"], rows[0]["recipe"])
        records.setdefault(name, {})[int(rows[0]["seed"])] = [
            {key: float(value) for key, value in row.items() if key not in NAMES} for row in rows
        ]
    return {key: dict(sorted(seeds.items())) for key, seeds in sorted(records.items())}


def read_views(folder: Path = RUNS) -> dict[tuple[str, str], list[float]]:
    """Test accuracy in % by nine views of each image, of each run that has it on record."""
    found: dict[tuple[str, str], list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        config = json.loads(path.read_text())
        if "views_acc" in config:
            name = (config["model"], config["recipe"]["name"])
            found.setdefault(name, []).append(config["views_acc"])
    return found


# ---------------------------------------------------------------------------- statistics


def accuracies(seeds: dict[int, Rows]) -> np.ndarray:
    """Accuracy in %, (seeds, epochs), on the test set or on the images held out."""
    return np.array(
        [[row.get("test_acc", row.get("val_acc")) for row in rows] for rows in seeds.values()]
    )


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval for the mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of a proportion, after Wilson (1927)."""
    return tuple(stats.binomtest(successes, trials).proportion_ci(method="wilson"))


def meets(accuracy: np.ndarray) -> np.ndarray:
    """Of each run, (seeds, epochs), whether all of its last five epochs are at 99.4 % or more."""
    return (accuracy[:, -LAST_EPOCHS:] >= MIN_ACCURACY).all(axis=1)


def share(met: np.ndarray) -> str:
    """How many, of how many, and the 95 % interval of the proportion: "14 of 21 (45-83 %)"."""
    low, high = wilson_interval(int(met.sum()), len(met))
    return f"{met.sum()} of {len(met)} ({100 * low:.0f}-{100 * high:.0f} %)"


# -------------------------------------------------------------------------------- tables


def markdown_table(titles: list[str], rows: list[list[object]], names: int = 1) -> str:
    """A Markdown table whose columns are right-aligned but for the first `names`."""
    rules = ["---"] * names + ["---:"] * (len(titles) - names)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [titles, rules, *rows])


def with_tables(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its markers, in place of what was there."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise UsageError(f"README.md: no {start} followed by {end}; put them back")
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def update_readme(tables: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Put what `tables` returns into README.md, and return it. Two studies at once take turns.

    `tables` is called when it is this one's turn, so that the last one sees the records of both.
    """
    with lock(ROOT, wait=True):
        made = tables()
        write_atomically(README, with_tables(README.read_text(encoding="utf-8"), made).encode())
    return made
