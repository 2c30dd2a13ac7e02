"""The records of all runs, and the tables and pictures made from them.

    python -m tools.tables                    # updates the tables of the documents, two pictures
    python -m tools.tables --challenge 10k    # prints the table of seeds for another challenge

results/runs.csv has a row per run, results/epochs.csv a row per run and epoch. A table stands
between <!-- name --> and <!-- /name -->.
"""

import io
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import run_folder
import train
from challenges import CHALLENGES, Challenge
from cli import Parser, UsageError, exit_code
from curves import png
from files import write_atomically
from networks import ROOT, get_model, list_models
from run_folder import EpochRecord

try:
    import pandas as pd
    from filelock import FileLock
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from scipy import stats
except ImportError as error:
    print(f"error: {error}; run: pip install -r requirements-dev.txt", file=sys.stderr)
    sys.exit(2)

RESULTS, README = ROOT / "results", ROOT / "README.md"
KEY = ["model", "recipe", "seed", "holdout"]  # identifies a run
MADE_BY = ["commit", "torch", "device", "device_name", "threads"]
COLUMNS = {
    "runs.csv": ["model", "parameters", *KEY[1:], *MADE_BY, "seconds", "views_acc"],
    "epochs.csv": [*KEY, *run_folder.KEYS, run_folder.ONE_VIEW],
}
DEFAULT, LAST_EPOCHS = CHALLENGES["8k"], 5  # the challenge of the documents
CLAIMED, RECIPE = ("model4", "model5"), "strong"  # of the claim; the recipe of most tables
MEET = "meet the challenge (95 %)"

# ------------------------------------------------------------------------------- records


def read(results: Path, name: str, **options: Any) -> pd.DataFrame:
    """runs.csv or epochs.csv in `results`; a table without rows where there is no such file."""
    path = results / name
    return pd.read_csv(path if path.exists() else io.StringIO(",".join(COLUMNS[name])), **options)


def keep_record(row: dict[str, Any], epochs: list[EpochRecord], results: Path = RESULTS) -> None:
    """Puts a run into both files, in its place, instead of any record with the same key."""
    # As text, so that every figure stays as it was written, except what they are sorted by.
    types = defaultdict(lambda: str, seed=int, holdout=int, epoch=int)
    with FileLock(results / ".lock"):
        # Its epochs first: a run without a row in runs.csv is not on record.
        for name, rows in (("epochs.csv", epochs), ("runs.csv", [row])):
            old = read(results, name, dtype=types, keep_default_na=False)
            new = pd.DataFrame(rows, columns=COLUMNS[name], dtype=object)
            table = pd.concat([old[(old[KEY] != new[KEY].iloc[0]).any(axis=1)], new])
            table = table.sort_values([key for key in (*KEY, "epoch") if key in table])
            content = table.to_csv(index=False, lineterminator="\n")
            write_atomically(results / name, content.encode())


def read_epochs(results: Path = RESULTS) -> pd.DataFrame:
    """A row per run and epoch, as in epochs.csv."""
    return read(results, "epochs.csv")


def read_records(results: Path = RESULTS, challenge: Challenge = DEFAULT) -> pd.DataFrame:
    """A row per run: that of runs.csv, and figures of its epochs, with accuracies in %."""
    runs = read(results, "runs.csv", dtype={"commit": str, "torch": str})
    figures = (
        read_epochs(results)
        .groupby(KEY)
        .agg(
            epochs=("epoch", "size"),
            acc=("acc", "last"),
            lowest=("acc", lambda acc: acc.tail(LAST_EPOCHS).min()),
            late_acc=("acc", lambda acc: acc.tail(3).mean()),
            late_loss=("loss", lambda loss: loss.tail(3).mean()),
            one_view_acc=(run_folder.ONE_VIEW, "last"),
            all_acc=("acc", list),
            all_one_view_acc=(run_folder.ONE_VIEW, list),
        )
    )
    records = runs.merge(figures.reset_index(), on=KEY)
    records["reached"] = records["all_acc"].map(challenge.reached).astype(bool)
    for name, accuracies in (("meets", "all_acc"), ("one_view_meets", "all_one_view_acc")):
        pairs = zip(records["parameters"], records[accuracies])
        records[name] = [all(challenge.checks(*pair).values()) for pair in pairs]
    # model10 after model9
    return records.sort_values("model", key=lambda names: names.str.len(), kind="stable")


# ------------------------------------------------------------------ statistics and tables


def interval(values: pd.Series) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t; NaN for one value."""
    return stats.t.ppf(0.975, len(values) - 1) * values.sem()


def mean_and_interval(values: pd.Series, form: str = ".2f") -> str:
    """Such as "99.58 ± 0.01"; the mean alone of one value, "-" of none."""
    spread = f" ± {interval(values):{form.strip('+')}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{spread}" if len(values) else "-"


def count(met: pd.Series) -> str:
    """Such as "14 of 21"."""
    return f"{met.sum()} of {len(met)}"


def share(met: pd.Series) -> str:
    """A count, and the 95 % interval of the proportion by Wilson (1927): "14 of 21 (45-83 %)"."""
    low, high = stats.binomtest(int(met.sum()), len(met)).proportion_ci(method="wilson")
    return f"{count(met)} ({100 * low:.0f}-{100 * high:.0f} %)"


def markdown(table: pd.DataFrame, text: int = 1) -> str:
    """A table in Markdown, aligned right except for the first `text` columns."""
    if table.empty:
        return "No records yet."
    sides = ["left"] * text + ["right"] * (table.shape[1] - text)
    return table.to_markdown(index=False, disable_numparse=True, colalign=sides)


def summary(runs: pd.DataFrame, challenge: Challenge = DEFAULT) -> pd.DataFrame:
    """A row per network, recipe and set of images, in the order of `runs`: the distribution.

    Of validation images there is no verdict. Columns without any value are left out.
    """
    counted, at_least, rows = challenge.counted.name.lower(), f"≥ {challenge.accuracy} %", []
    for key, group in runs.groupby(["model", "recipe", "holdout", "parameters"], sort=False):
        (model, recipe, holdout, parameters), acc = key, group["acc"]
        one_view, views = group["one_view_acc"], group["views_acc"]
        row = {"model": model, "recipe": recipe}
        row["images"] = f"{holdout:,} validation" if holdout else "test"
        row |= {"seeds": str(len(group)), "parameters": f"{parameters:,}"}
        row["last epoch, mean ± (95 %)"] = mean_and_interval(acc, ".3f")
        row["std"] = f"{acc.std():.3f}" if len(acc) > 1 else "-"
        row |= {"min": f"{acc.min():.2f}", "max": f"{acc.max():.2f}"}
        row[f"last {at_least}"] = count(acc >= challenge.accuracy)
        row[f"{counted.replace('_', ' ')} {at_least}"] = count(group["reached"])
        row[MEET] = "-" if holdout else share(group["meets"])
        by_one = f"{one_view.mean():.3f}, {count(group['one_view_meets'])} meet it"
        row["one view"] = "-" if holdout or one_view.isna().any() else by_one
        row["nine views"] = "-" if views.isna().any() else f"{views.mean():.3f}"
        rows.append(row)
    table = pd.DataFrame(rows)
    if not runs["holdout"].any():
        table = table.drop(columns="images", errors="ignore")
    return table.loc[:, (table != "-").any()]


def under_one_recipe(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of each network under RECIPE, or, where it has none, under the last other recipe."""
    last = runs.sort_values("recipe", key=lambda names: names == RECIPE, kind="stable")
    return runs[runs["recipe"] == runs["model"].map(last.groupby("model")["recipe"].last())]


def attempts_table(tested: pd.DataFrame) -> str:
    """A row for each modelX.py, under one recipe; "-" where none is on record."""
    found = summary(under_one_recipe(tested))
    titles = ["recipe", "parameters", "seeds", "last epoch, mean ± (95 %)", "one view", "min", MEET]
    titles = [title for title in titles if title != "one view" or title in found]
    table = found.reindex(columns=["model", *titles]).drop_duplicates("model", keep="last")
    table = table.set_index("model").reindex(list_models()).astype(object).fillna("-")
    table.insert(0, "attempt", [f"[{name}]({name}.py)" for name in table.index])
    return markdown(table, 2)


def claim(tested: pd.DataFrame, name: str) -> str:
    """What a network of the claim attains over its seeds, as a bold sentence."""
    runs = tested.query("model == @name and recipe == @RECIPE")
    if runs.empty:
        return f'**No record of {name} under the recipe "{RECIPE}" yet.**'
    acc, views, one_view = runs["acc"], getattr(get_model(name), "views", ()), ""
    if len(views) > 1:
        one_view = f" It averages {len(views)} views of an image at test time"
        if runs["one_view_acc"].notna().all():
            mean = mean_and_interval(runs["one_view_acc"])
            one_view += f"; by one view it has {mean} %, {count(runs['one_view_meets'])} seeds"
    return (
        f"**{name}, {runs['parameters'].max():,} parameters, {runs['epochs'].max()} epochs: "
        f"{mean_and_interval(acc)} % test accuracy at the last epoch (mean of {len(runs)} seeds "
        f"and its 95 % interval; standard deviation {acc.std():.2f}, minimum {acc.min():.2f} %), "
        f"and {count(runs['reached'])} seeds with the last five epochs "
        f"≥ {DEFAULT.accuracy} %.{one_view and one_view + '.'}**"
    )


def epochs_tables(epochs: pd.DataFrame) -> str:
    """One run of each network, seed 42, epoch by epoch, as train.py prints it."""
    runs = under_one_recipe(epochs.query("seed == 42 and holdout == 0"))
    lines = []
    for name in list_models():
        rows = runs[runs["model"] == name]
        if not rows.empty:
            lines += [f"### {name}, {rows['recipe'].iloc[0]}", "", train.table_header(0)]
            lines += [*map(train.table_row, rows.to_dict("records")), ""]
    return "\n".join(lines[:-1])


def ablation_table(records: pd.DataFrame) -> str:
    """A recipe on validation images, and the mean of the paired differences for its changes."""
    validated, rows = records[records["holdout"] > 0].set_index("seed"), []
    titles = {"late_acc": "accuracy (%)", "lowest": "lowest of the last five (%)"}
    for (model, recipe, holdout), runs in validated.groupby(["model", "recipe", "holdout"]):
        base, _, changes = recipe.partition("+")
        whole = validated.query("model == @model and recipe == @base and holdout == @holdout")
        row = {"model": model, "recipe": base, "changes": changes.replace("+", ", ") or "none"}
        row["seeds"] = str(len(runs))
        for name, title in (titles | {"late_loss": "loss"}).items():
            form = ".4f" if name == "late_loss" else ".3f"
            row[title] = f"{runs[name].mean():{form}}"
            if changes:
                change = (runs[name] - whole[name]).dropna()  # seed by seed
                cell = mean_and_interval(change, f"+{form}")
                row[title] = f"**{cell}**" if abs(change.mean()) > interval(change) else cell
        rows.append(row)
    return markdown(pd.DataFrame(rows), 3)


# ------------------------------------------------------------------------------- pictures


def plot_seeds(epochs: pd.DataFrame, fewest: int = 10) -> bytes:
    """Test accuracy by epoch, each seed faint, the mean bold: attempts with `fewest` seeds."""
    runs = epochs.query("recipe == @RECIPE and holdout == 0")
    runs = runs[runs["model"].isin(list_models())]
    runs = runs.pivot(index=["model", "epoch"], columns="seed", values="acc").groupby("model")
    tables = {name: table.droplevel("model").dropna(axis=1) for name, table in runs}
    tables = {name: table for name, table in tables.items() if table.shape[1] >= fewest}
    figure = Figure(figsize=(4.5 * (len(tables) or 1), 4), layout="constrained")
    panels = figure.subplots(1, len(tables) or 1, sharey=True, squeeze=False)[0]
    panels[0].set_ylabel("test accuracy (%)")
    for axis, (name, table) in zip(panels, tables.items()):
        axis.axhline(DEFAULT.accuracy, color="C1", linewidth=1)
        axis.axvspan(len(table) - LAST_EPOCHS + 0.5, len(table) + 0.5, color="C1", alpha=0.08)
        axis.plot(table, color="C0", alpha=0.3, linewidth=1)
        axis.plot(table.mean(axis=1), color="C0", linewidth=2.5)
        met = count((table.tail(LAST_EPOCHS) >= DEFAULT.accuracy).all())
        axis.set_title(
            f"{name}: {met} seeds with the last five ≥ {DEFAULT.accuracy} %", fontsize=10
        )
        low = min(98.6, table.tail(LAST_EPOCHS).min(axis=None))
        axis.set(xlabel="epoch", xticks=table.index[::2], ylim=(low, 99.75))
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def plot_frontier(tested: pd.DataFrame) -> bytes:
    """Parameters against test error: our attempts with intervals, other sizes, public results."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 - DEFAULT.accuracy, color="gray", linewidth=1)
    axes.axvline(DEFAULT.parameters.value, color="gray", linewidth=1)
    runs = under_one_recipe(tested)
    errors = (100 - runs["acc"]).groupby([runs["model"], runs["parameters"]])
    table = errors.agg(["mean", interval]).reset_index().sort_values("parameters")
    attempts = table[table["model"].isin(list_models())]
    points = attempts["parameters"], attempts["mean"], attempts["interval"]
    axes.errorbar(
        *points, fmt="o-", color="C0", capsize=3, label="attempts, mean and 95 % interval"
    )
    for name, parameters, error, _ in attempts.to_numpy():
        label(axes, name, parameters, error, (-6, 6), ha="right", color="C0", weight="bold")
    for name in list_models():
        sizes = table[table["model"].str.startswith(f"{name}-")]
        axes.plot(
            sizes["parameters"], sizes["mean"], ".-", alpha=0.35, label=f"other sizes of {name}"
        )
    public = pd.read_csv(RESULTS / "public.csv", keep_default_na=False)
    for repository, _, parameters, accuracy, chosen in public.to_numpy():
        axes.plot(parameters, 100 - accuracy, "k^", fillstyle="none" if chosen else "full")
        label(axes, repository, parameters, 100 - accuracy, (6, -2), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="test accuracy (%)")
    axes.set_xticks(ticks := [500, 1_000, 2_000, 4_000, 8_000, 16_000], [f"{n:,}" for n in ticks])
    accuracies = [98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7]
    axes.set_yticks([100 - accuracy for accuracy in accuracies], accuracies)
    axes.invert_yaxis()
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return png(figure)


def label(axes: Axes, text: str, x: float, y: float, offset: tuple, **style: Any) -> None:
    """Writes `text` beside a point; `offset` is in points of a typographer."""
    axes.annotate(text, (x, y), offset, textcoords="offset points", **style)


# ------------------------------------------------------------------------------ documents


def write_tables(path: Path, tables: dict[str, str]) -> None:
    """Puts each table between its markers in the document `path`, in place of what was there."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        made = f"{start}\n{table}\n{end}"
        text, found = re.subn(f"{start}.*?{end}", lambda _, made=made: made, text, flags=re.S)
        if not found:
            raise UsageError(f"{path}: no {start} followed by {end}; put them back")
    write_atomically(path, text.encode())


def documents(records: pd.DataFrame, epochs: pd.DataFrame) -> dict[Path, dict[str, str]]:
    """The tables of each document, by name."""
    tested = records[records["holdout"] == 0]
    whole = tested[~tested["model"].str.contains("-")]
    small = tested[tested["parameters"].map(DEFAULT.parameters.allows)]
    sizes = under_one_recipe(small).sort_values("parameters", kind="stable")
    claims = "\n".join(f"- {claim(tested, name)}" for name in CLAIMED)
    return {
        README: {"claim": claims, "attempts": attempts_table(whole)},
        RESULTS / "README.md": {
            "seeds": markdown(summary(whole), 2),
            "ablation": ablation_table(records),
            "sizes": markdown(summary(sizes), 2),
        },
        RESULTS / "epochs.md": {"epochs": epochs_tables(epochs)},
    }


def update() -> dict[str, str]:
    """Updates all tables and pictures from the records; returns those of results/README.md."""
    with FileLock(RESULTS / ".lock"):  # two studies at once take turns
        epochs, records = read_epochs(RESULTS), read_records(RESULTS)
        made = documents(records, epochs)
        for path, tables in made.items():
            write_tables(path, tables)
        write_atomically(RESULTS / "seeds.png", plot_seeds(epochs))
        write_atomically(RESULTS / "frontier.png", plot_frontier(records.query("holdout == 0")))
    return made[RESULTS / "README.md"]


def show(name: str | None) -> None:
    """Updates everything and prints the table of seeds; that of another challenge only."""
    if name:
        records = read_records(RESULTS, CHALLENGES[name])
        whole = records[(records["holdout"] == 0) & ~records["model"].str.contains("-")]
        print(markdown(summary(whole, CHALLENGES[name]), 2))
    else:
        print(update()["seeds"])


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.tables", __doc__)
    parser.add_argument("--challenge", choices=[*CHALLENGES])
    return exit_code(parser.prog, show, parser.parse_args(argv).challenge)


if __name__ == "__main__":
    sys.exit(main())
