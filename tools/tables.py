"""The records of all runs, and the tables and pictures that are made of nothing else.

    python -m tools.tables      # anew: those in README.md and results/README.md, two pictures

results/runs.csv has a row per run, results/epochs.csv a row per run and epoch. A table stands
between <!-- name --> and <!-- /name -->.
"""

import io
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import run_folder
import train
from cli import Parser, UsageError, exit_code
from curves import png
from files import write_atomically
from networks import ROOT, list_models
from run_folder import EpochRecord

try:
    import pandas as pd
    from filelock import FileLock
    from matplotlib.figure import Figure
    from scipy import stats
except ImportError as error:
    print(f"error: {error}; run: pip install -r requirements-dev.txt", file=sys.stderr)
    sys.exit(2)

MAX_PARAMETERS, MAX_EPOCHS, MIN_ACCURACY, LAST_EPOCHS = 8_000, 15, 99.4, 5
RESULTS, README = ROOT / "results", ROOT / "README.md"
KEY = ["model", "recipe", "seed", "holdout"]  # names a run
MADE_BY = ["commit", "torch", "device", "threads", "seconds"]
COLUMNS = {
    "runs.csv": ["model", "parameters", *KEY[1:], *MADE_BY, "views_acc"],
    "epochs.csv": [*KEY, *run_folder.KEYS],
}
CLAIMED, RECIPE = ("model4", "model5"), "strong"  # of the claim; the recipe of most tables
CHALLENGE = "meet the challenge (95 %)"

# ------------------------------------------------------------------------------- records


def read(results: Path, name: str, **options: Any) -> pd.DataFrame:
    """runs.csv or epochs.csv in `results`; a table without rows where there is no such file."""
    path = results / name
    return pd.read_csv(path if path.exists() else io.StringIO(",".join(COLUMNS[name])), **options)


def keep_record(row: dict[str, Any], epochs: list[EpochRecord], results: Path = RESULTS) -> None:
    """Put a run into both files, in its place and instead of one of the same key, if any."""
    # As text, so that every figure stays as it was written; but for what they are sorted by.
    types = defaultdict(lambda: str, seed=int, holdout=int, epoch=int)
    with FileLock(results / ".lock"):
        # Its epochs first: while a run has no row, it is on record for nobody.
        for name, rows in (("epochs.csv", epochs), ("runs.csv", [row])):
            old = read(results, name, dtype=types, keep_default_na=False)
            new = pd.DataFrame(rows, columns=COLUMNS[name], dtype=object)
            table = pd.concat([old[(old[KEY] != new[KEY].iloc[0]).any(axis=1)], new])
            table = table.sort_values([key for key in (*KEY, "epoch") if key in table])
            content = table.to_csv(index=False, lineterminator="\n")
            write_atomically(results / name, content.encode())


def read_epochs(results: Path = RESULTS) -> pd.DataFrame:
    """A row per run and epoch, as epochs.csv has it."""
    return read(results, "epochs.csv")


def read_records(results: Path = RESULTS) -> pd.DataFrame:
    """A row per run: that of runs.csv, and what its epochs come to, with accuracies in %."""
    runs = read(results, "runs.csv", dtype={"commit": str, "torch": str})
    by_run = read_epochs(results).groupby(KEY)
    figures = by_run["acc"].agg(
        epochs="size",
        acc="last",
        lowest=lambda acc: acc.tail(LAST_EPOCHS).min() if len(acc) >= LAST_EPOCHS else math.nan,
        late_acc=lambda acc: acc.tail(3).mean(),
    )
    figures["late_loss"] = by_run["loss"].agg(lambda loss: loss.tail(3).mean())
    records = runs.merge(figures.reset_index(), on=KEY)
    fits = (records["parameters"] <= MAX_PARAMETERS) & (records["epochs"] <= MAX_EPOCHS)
    records["meets"] = fits & (records["lowest"] >= MIN_ACCURACY)  # the challenge
    records["base"] = records["model"].str.split("-").str[0]  # the network without its size
    # model10 after model9
    return records.sort_values("model", key=lambda names: names.str.len(), kind="stable")


# ------------------------------------------------------------------ statistics and tables


def interval(values: pd.Series) -> float:
    """Half the width of the 95 % interval for the mean, by Student's t; NaN for one value."""
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
    """A table in Markdown, aligned right but for the first `text` columns."""
    if table.empty:
        return "No records yet."
    sides = ["left"] * text + ["right"] * (table.shape[1] - text)
    return table.to_markdown(index=False, disable_numparse=True, colalign=sides)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each network and recipe, in the order of `runs`: the distribution over seeds."""
    cells = {
        "seeds": ("acc", lambda acc: str(len(acc))),
        "parameters": ("parameters", lambda numbers: f"{numbers.iloc[0]:,}"),
        "last epoch, mean ± (95 %)": ("acc", lambda acc: mean_and_interval(acc, ".3f")),
        "std": ("acc", lambda acc: f"{acc.std():.3f}" if len(acc) > 1 else "-"),
        "min": ("acc", lambda acc: f"{acc.min():.2f}"),
        "max": ("acc", lambda acc: f"{acc.max():.2f}"),
        f"last ≥ {MIN_ACCURACY} %": ("acc", lambda acc: count(acc >= MIN_ACCURACY)),
        f"last five ≥ {MIN_ACCURACY} %": ("lowest", lambda low: count(low >= MIN_ACCURACY)),
        CHALLENGE: ("meets", share),
        "nine views": ("views_acc", lambda acc: "-" if acc.isna().any() else f"{acc.mean():.3f}"),
    }
    groups = runs.groupby(["model", "recipe", runs["parameters"].rename("size")], sort=False)
    return groups.agg(**cells).droplevel("size").reset_index()


def under_one_recipe(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of each network under RECIPE, or, where it has none, under the last other recipe."""
    last = runs.sort_values("recipe", key=lambda names: names == RECIPE, kind="stable")
    return runs[runs["recipe"] == runs["model"].map(last.groupby("model")["recipe"].last())]


def attempts_table(tested: pd.DataFrame) -> str:
    """A row for each modelX.py, under one recipe; "-" where none is on record."""
    found = summary(under_one_recipe(tested)).drop_duplicates("model", keep="last")
    table = found.set_index("model").reindex(list_models()).astype(object).fillna("-")
    table["attempt"] = [f"[{name}]({name}.py)" for name in table.index]
    titles = ["attempt", "recipe", "parameters", "seeds", "last epoch, mean ± (95 %)", "min"]
    return markdown(table[[*titles, CHALLENGE]], 2)


def claim(tested: pd.DataFrame, name: str) -> str:
    """What a network of the claim attains over its seeds, as a bold sentence."""
    runs = tested.query("model == @name and recipe == @RECIPE")
    if runs.empty:
        return f'**No record of {name} under the recipe "{RECIPE}" yet.**'
    acc = runs["acc"]
    return (
        f"**{name}, {runs['parameters'].max():,} parameters, {runs['epochs'].max()} epochs: "
        f"{mean_and_interval(acc)} % test accuracy at the last epoch (mean of {len(runs)} seeds "
        f"and its 95 % interval; standard deviation {acc.std():.2f}, minimum {acc.min():.2f} %), "
        f"and {count(runs['lowest'] >= MIN_ACCURACY)} seeds with the last five epochs "
        f"≥ {MIN_ACCURACY} %.**"
    )


def epochs_tables(epochs: pd.DataFrame) -> str:
    """One run of each network, seed 42, epoch by epoch, as train.py prints it."""
    runs = under_one_recipe(epochs.query("seed == 42 and holdout == 0"))
    lines = []
    for name in list_models():
        rows = runs[runs["model"] == name]
        if rows.empty:
            continue
        lines += [f"### {name}, {''.join(rows['recipe'].unique())}", "", train.table_header(0)]
        lines += [*map(train.table_row, rows.to_dict("records")), ""]
    return "\n".join(lines[:-1])


def ablation_table(records: pd.DataFrame) -> str:
    """A whole recipe, then for each part the mean of the paired differences without it."""
    held_out, rows = records[records["holdout"] > 0].set_index("seed"), []
    titles = {"late_acc": "held-out accuracy (%)", "lowest": "lowest of the last five (%)"}
    for (model, recipe), runs in held_out.groupby(["model", "recipe"]):
        base, _, part = recipe.partition("-without-")
        whole = held_out.query("model == @model and recipe == @base")
        row = {"model": model, "recipe": base, "taken out": part or "nothing", "seeds": len(runs)}
        for name, title in (titles | {"late_loss": "loss"}).items():
            form = ".4f" if name == "late_loss" else ".3f"
            row[title] = f"{runs[name].mean():{form}}"
            if part:
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
        axis.axhline(MIN_ACCURACY, color="C1", linewidth=1)
        axis.axvspan(len(table) - LAST_EPOCHS + 0.5, len(table) + 0.5, color="C1", alpha=0.08)
        axis.plot(table, color="C0", alpha=0.3, linewidth=1)
        axis.plot(table.mean(axis=1), color="C0", linewidth=2.5)
        met = count((table.tail(LAST_EPOCHS) >= MIN_ACCURACY).all())
        axis.set_title(f"{name}: {met} seeds with the last five ≥ {MIN_ACCURACY} %", fontsize=10)
        low = min(98.6, table.tail(LAST_EPOCHS).min(axis=None))
        axis.set(xlabel="epoch", xticks=table.index[::2], ylim=(low, 99.75))
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def plot_frontier(records: pd.DataFrame) -> bytes:
    """Parameters against test accuracy: mean and range of ours, one figure each of public ones."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(MIN_ACCURACY, color="gray", linewidth=1)
    axes.axvline(MAX_PARAMETERS, color="gray", linewidth=1)
    runs = under_one_recipe(records.query("holdout == 0"))
    # Former attempts share a prefix, and no design: each is a family of its own.
    families = runs["base"].where(runs["base"].isin(list_models()), runs["model"])
    for number, (base, found) in enumerate(runs.groupby(families)):
        last, color = found.groupby("parameters")["acc"].agg(["mean", "min", "max"]), f"C{number}"
        name = f"{base} and other sizes" if len(last) > 1 else base
        if (recipes := sorted({*found["recipe"]})) != [RECIPE]:
            name += f", {' and '.join(recipes)}"
        axes.vlines(last.index, last["min"], last["max"], color=color)
        axes.plot(last["mean"], f".-{color}", markersize=9, label=f"{name}: mean, range")
    public = pd.read_csv(RESULTS / "public.csv", keep_default_na=False)
    for letter, (name, _, parameters, accuracy, chosen) in zip(ascii_uppercase, public.to_numpy()):
        color, why = ("red", ", chosen by the test set") if chosen else ("black", "")
        point = {"color": color, "marker": f"${letter}$", "linestyle": "", "zorder": 3}
        axes.plot(parameters, accuracy, label=f"{name}{why}", **point)
    axes.set(xscale="log", xlabel="parameters", ylabel="test accuracy (%)")
    axes.set_xticks(ticks := [500, 1_000, 2_000, 4_000, 8_000, 16_000], [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


# ------------------------------------------------------------------------------ documents


def write_tables(path: Path, tables: dict[str, str]) -> None:
    """Put each table between its markers in the document `path`, in place of what was there."""
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
    whole = tested[tested["model"] == tested["base"]]
    small = tested[tested["parameters"] <= MAX_PARAMETERS]
    sizes = under_one_recipe(small).sort_values("parameters", kind="stable")
    return {
        README: {
            "claim": "\n".join(f"- {claim(tested, name)}" for name in CLAIMED),
            "attempts": attempts_table(whole),
        },
        RESULTS / "README.md": {
            "seeds": markdown(summary(whole), 2),
            "epochs": epochs_tables(epochs),
            "ablation": ablation_table(records),
            "sizes": markdown(summary(sizes), 2),
        },
    }


def update() -> dict[str, str]:
    """Make all tables and pictures anew from the records; those of results/README.md by name."""
    with FileLock(RESULTS / ".lock"):  # two studies at once take turns
        epochs, records = read_epochs(RESULTS), read_records(RESULTS)
        made = documents(records, epochs)
        for path, tables in made.items():
            write_tables(path, tables)
        write_atomically(RESULTS / "seeds.png", plot_seeds(epochs))
        write_atomically(RESULTS / "frontier.png", plot_frontier(records))
    return made[RESULTS / "README.md"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    Parser("python -m tools.tables", __doc__).parse_args(argv)
    return exit_code("python -m tools.tables", lambda: print(update()["seeds"]))


if __name__ == "__main__":
    sys.exit(main())
