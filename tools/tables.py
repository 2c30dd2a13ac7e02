"""The records of all runs, and the tables and pictures made from them.

    python -m tools.tables                    # updates the tables of the documents, two pictures
    python -m tools.tables --challenge 10k    # prints the results for another challenge

results/runs.csv has a row per run, results/epochs.csv a row per run and epoch. In a document, a
table stands between <!-- name --> and <!-- /name -->.
"""

import io
import re
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.figure import Figure
from scipy import stats

from challenges import CHALLENGES, Challenge
from cli import Parser, UsageError, exit_code
from curves import png, table_header, table_row
from files import write_atomically
from networks import ROOT, get_model, list_models
from run_folder import KEYS, ONE_VIEW, EpochRecord

try:
    import pandas as pd
except ImportError as error:
    print(f"error: {error}; run: pip install -r requirements-dev.txt", file=sys.stderr)
    sys.exit(2)

RESULTS, README = ROOT / "results", ROOT / "README.md"
KEY = ["model", "recipe", "seed", "holdout"]  # identifies a run
MADE_BY = ["commit", "torch", "device", "device_name", "threads"]
COLUMNS = {
    "runs.csv": ["model", "parameters", *KEY[1:], *MADE_BY, "seconds", "views_acc"],
    "epochs.csv": [*KEY, *KEYS, ONE_VIEW],
}
DEFAULT = CHALLENGES["8k"]  # of the documents
CLAIMED, RECIPE = ("model4", "model5"), "strong"  # of the claim in README
MEAN, MEET = "last epoch, mean ± (95 %)", "meet the challenge (95 %)"


def read(results: Path, name: str, **options: Any) -> pd.DataFrame:
    """Reads runs.csv or epochs.csv in `results`; a table without rows if there is no such file."""
    path = results / name
    return pd.read_csv(path if path.exists() else io.StringIO(",".join(COLUMNS[name])), **options)


def keep_record(row: dict[str, Any], epochs: list[EpochRecord], results: Path = RESULTS) -> None:
    """Writes a run to both files, in order, replacing any record with the same key."""
    # As text, so that every figure stays as it was written, except the columns to sort by.
    types = defaultdict(lambda: str, seed=int, holdout=int, epoch=int)
    with FileLock(results / ".lock"):
        # The epochs first: a run is on record once it has a row in runs.csv.
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
    """A row per run, model10 after model9: that of runs.csv, with figures from its epochs."""
    runs, epochs = read(results, "runs.csv", dtype={"commit": str}), read_epochs(results)
    figures = epochs.groupby(KEY).agg(
        epochs=("epoch", "size"),
        all_acc=("acc", list),
        acc=("acc", "last"),
        lowest=("acc", lambda acc: min(challenge.counted_accuracies([*acc]))),
        late_acc=("acc", lambda acc: acc.tail(3).mean()),
        late_loss=("loss", lambda loss: loss.tail(3).mean()),
        reached=("acc", lambda acc: challenge.reached([*acc])),
        one_view_acc=(ONE_VIEW, "last"),
        one_view_reached=(ONE_VIEW, lambda acc: challenge.reached([*acc])),
    )
    records = runs.merge(figures.reset_index(), on=KEY)
    checks = map(challenge.checks, records["parameters"], records["all_acc"])
    records["meets"] = [all(check.values()) for check in checks]
    return records.sort_values("model", key=lambda names: names.str.len(), kind="stable")


def interval(values: pd.Series) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for n = 1."""
    return stats.t.ppf(0.975, len(values) - 1) * values.sem()


def mean_and_interval(values: pd.Series, form: str = ".2f") -> str:
    """Such as "99.58 ± 0.01"; without the interval for one value, "-" for none."""
    spread = f" ± {interval(values):{form.strip('+')}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{spread}" if len(values) else "-"


def mean_on_record(values: pd.Series) -> str:
    """The mean, with the number of seeds if some have no value; "-" if none has."""
    seeds = f" ({values.count()} seeds)" if values.hasnans else ""
    return f"{values.mean():.3f}{seeds}" if values.count() else "-"


def count(met: pd.Series) -> str:
    """Such as "14 of 21"."""
    return f"{met.sum()} of {len(met)}"


def share(met: pd.Series) -> str:
    """The count and the 95 % Wilson interval of the proportion: "14 of 21 (45-83 %)"."""
    low, high = stats.binomtest(int(met.sum()), len(met)).proportion_ci(method="wilson")
    return f"{count(met)} ({100 * low:.0f}-{100 * high:.0f} %)"


def markdown(table: pd.DataFrame, text: int = 1) -> str:
    """A table in Markdown, aligned right except for the first `text` columns."""
    if table.empty:
        return "No records yet."
    sides = ["left"] * text + ["right"] * (table.shape[1] - text)
    return table.to_markdown(index=False, disable_numparse=True, colalign=sides)


def summary(runs: pd.DataFrame, challenge: Challenge = DEFAULT) -> pd.DataFrame:
    """A row per network, recipe and set of images, in the order of `runs`.

    Validation runs have no verdict. Columns without any value are left out.
    """
    counted, enough, rows = challenge.counted.name.lower().replace("_", " "), challenge.accuracy, []
    for key, group in runs.groupby(["model", "recipe", "holdout", "parameters"], sort=False):
        (model, recipe, holdout, parameters), acc = key, group["acc"]
        images = f"{holdout:,} validation" if holdout else "test"
        row = {
            "model": model,
            "recipe": recipe,
            "images": images if runs["holdout"].any() else "-",
            "seeds": str(len(group)),
            "parameters": f"{parameters:,}",
            MEAN: mean_and_interval(acc, ".3f"),
            "std": f"{acc.std():.3f}" if len(acc) > 1 else "-",
            "min": f"{acc.min():.2f}",
            "max": f"{acc.max():.2f}",
            f"last ≥ {enough} %": count(acc >= enough),
            f"{counted} ≥ {enough} %": count(group["reached"]),
            MEET: "-" if holdout else share(group["meets"]),
            "one view": mean_on_record(group["one_view_acc"]),
            "nine views": mean_on_record(group["views_acc"]),
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "-").any()]


def under_one_recipe(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each network under RECIPE, or if it has none, under the last other recipe."""
    last = runs.sort_values("recipe", key=lambda names: names == RECIPE, kind="stable")
    return runs[runs["recipe"] == runs["model"].map(last.groupby("model")["recipe"].last())]


def attempts_table(tested: pd.DataFrame) -> str:
    """A row for each modelX.py, under one recipe; "-" if no run is on record."""
    titles = ["recipe", "parameters", "seeds", MEAN, "one view", "min", MEET]
    found = summary(under_one_recipe(tested)).reindex(columns=["model", *titles])
    table = found.drop_duplicates("model", keep="last").set_index("model").reindex(list_models())
    table = table.astype(object).fillna("-")
    table.insert(0, "attempt", [f"[{name}]({name}.py)" for name in table.index])
    return markdown(table, 2)


def claim(tested: pd.DataFrame, name: str) -> str:
    """The accuracy of a network over its seeds, as a bold sentence."""
    runs = tested.query("model == @name and recipe == @RECIPE")
    if runs.empty:
        return f'**No record of {name} under the recipe "{RECIPE}" yet.**'
    acc, by_one = runs["acc"], runs.dropna(subset="one_view_acc")
    text = (
        f"{name}, {runs['parameters'].max():,} parameters, {runs['epochs'].max()} epochs: "
        f"{mean_and_interval(acc)} % test accuracy at the last epoch (mean of {len(runs)} seeds "
        f"and its 95 % interval; standard deviation {acc.std():.2f}, minimum {acc.min():.2f} %), "
        f"and {count(runs['reached'])} seeds with the last five epochs ≥ {DEFAULT.accuracy} %."
    )
    if views := getattr(get_model(name), "views", ()):
        text += f" Each prediction averages {len(views)} views of the image"
        if len(by_one):
            mean, met = by_one["one_view_acc"].mean(), count(by_one["one_view_reached"])
            text += f"; by one view ({len(by_one)} seeds): {mean:.2f} %, and {met} seeds"
        text += "."
    return f"**{text}**"


def epochs_tables(epochs: pd.DataFrame) -> str:
    """The run of each network with seed 42, epoch by epoch, as train.py prints it."""
    runs, tables = under_one_recipe(epochs.query("seed == 42 and holdout == 0")), []
    for name in list_models():
        rows = runs[runs["model"] == name].to_dict("records")
        if rows:
            lines = [f"### {name}, {rows[0]['recipe']}", "", table_header(0), *map(table_row, rows)]
            tables.append("\n".join(lines))
    return "\n\n".join(tables)


def ablation_table(records: pd.DataFrame) -> str:
    """Recipes on validation images; for changes of a recipe, the mean paired difference."""
    validated, rows = records[records["holdout"] > 0].set_index(["holdout", "seed"]), []
    titles = {"late_acc": "accuracy (%)", "lowest": "lowest of the last five (%)"}
    titles["late_loss"] = "loss"
    for (model, recipe), runs in validated.groupby(["model", "recipe"]):
        base, _, changes = recipe.partition("+")
        whole = validated.query("model == @model and recipe == @base")
        row = {"model": model, "recipe": base, "changes": changes.replace("+", ", ") or "none"}
        row["seeds"] = str(len(runs))
        for name, title in titles.items():
            form = ".4f" if title == "loss" else ".3f"
            row[title] = f"{runs[name].mean():{form}}"
            if changes:
                change = (runs[name] - whole[name]).dropna()  # paired by seed
                cell = mean_and_interval(change, f"+{form}")
                row[title] = f"**{cell}**" if abs(change.mean()) > interval(change) else cell
        rows.append(row)
    return markdown(pd.DataFrame(rows), 3)


def plot_seeds(epochs: pd.DataFrame, fewest: int = 10) -> bytes:
    """Test accuracy by epoch of attempts with `fewest` seeds: seeds faint, the mean bold."""
    runs = epochs.query("recipe == @RECIPE and holdout == 0 and model in @list_models()")
    runs = runs.groupby("model").filter(lambda rows: rows["seed"].nunique() >= fewest)
    models, panels = runs.groupby("model"), max(runs["model"].nunique(), 1)
    figure = Figure(figsize=(4.5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    axes[0].set_ylabel("test accuracy (%)")
    for axis, (name, rows) in zip(axes, models):
        table = rows.pivot(index="epoch", columns="seed", values="acc")
        late = table.loc[DEFAULT.counted_accuracies([*table.index])]
        axis.axhline(DEFAULT.accuracy, color="C1", linewidth=1)
        axis.axvspan(late.index[0] - 0.5, late.index[-1] + 0.5, color="C1", alpha=0.08)
        axis.plot(table, color="C0", alpha=0.3, linewidth=1)
        axis.plot(table.mean(axis=1), color="C0", linewidth=2.5)
        met = f"{count((late >= DEFAULT.accuracy).all())} seeds with the last five"
        axis.set_title(f"{name}: {met} ≥ {DEFAULT.accuracy} %", fontsize=10)
        axis.set(xlabel="epoch", xticks=table.index[::2])
        axis.set_ylim(min(98.6, late.min(axis=None)), 99.75)
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def plot_frontier(tested: pd.DataFrame) -> bytes:
    """Test accuracy against parameters: our attempts, other sizes of them, public networks."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 - DEFAULT.accuracy, color="gray", linewidth=1)
    axes.axvline(DEFAULT.parameters.value, color="gray", linewidth=1)
    box = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0}
    label = partial(axes.annotate, textcoords="offset points", bbox=box)
    runs = under_one_recipe(tested[tested["epochs"] == DEFAULT.epochs.value])  # without "fast"
    errors = (100 - runs["acc"]).groupby([runs["model"], runs["parameters"]])
    table = errors.agg(["mean", interval]).reset_index().sort_values("parameters")
    for number, name in enumerate(list_models()):
        sizes = table[table["model"].str.fullmatch(f"{name}(-.*)?")]
        if len(sizes) > 1:
            axes.plot(sizes["parameters"], sizes["mean"], f".-C{number}", alpha=0.3)
            smallest = sizes[["parameters", "mean"]].iloc[0]
            label(f"other sizes of {name}", smallest, (7, -9), color=f"C{number}")
    public = pd.read_csv(RESULTS / "public.csv", keep_default_na=False)
    for repository, _, parameters, accuracy, chosen in public.to_numpy():
        axes.plot(parameters, 100 - accuracy, "k^", fillstyle="none" if chosen else "full")
        label(repository.split("/")[0], (parameters, 100 - accuracy), (7, -7), fontsize=8)
    attempts = table[table["model"].isin(list_models())].set_index("model")
    axes.errorbar("parameters", "mean", "interval", data=attempts, fmt="o-", capsize=3)
    for name, parameters, error, _ in attempts.itertuples():
        label(name, (parameters, error), (-7, 6), ha="right", color="C0", weight="bold")
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="test accuracy (%)")
    counts = [500 * 2**n for n in range(6)]
    accuracies = [98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7]
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_yticks([100 - accuracy for accuracy in accuracies], accuracies)
    axes.set_ylim(2.3, 0.28)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("ours: 95 % interval; public: triangles, hollow if chosen on the test set")
    return png(figure)


def write_tables(path: Path, tables: dict[str, str]) -> None:
    """Replaces what is between the markers of each table in the document `path`."""
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
    attempts = tested[~tested["model"].str.contains("-")]
    small = under_one_recipe(tested[tested["parameters"] <= DEFAULT.parameters.value])
    sizes = summary(small.sort_values("parameters", kind="stable"))
    claims = "\n".join(f"- {claim(tested, name)}" for name in CLAIMED)
    results = {"seeds": markdown(summary(attempts), 2), "sizes": markdown(sizes, 2)}
    return {
        README: {"claim": claims, "attempts": attempts_table(attempts)},
        RESULTS / "README.md": results | {"ablation": ablation_table(records)},
        RESULTS / "epochs.md": {"epochs": epochs_tables(epochs)},
    }


def update() -> None:
    """Updates all tables and pictures from the records."""
    with FileLock(RESULTS / ".lock"):  # two studies at once take turns
        epochs, records = read_epochs(RESULTS), read_records(RESULTS)
        for path, tables in documents(records, epochs).items():
            write_tables(path, tables)
        write_atomically(RESULTS / "seeds.png", plot_seeds(epochs))
        write_atomically(RESULTS / "frontier.png", plot_frontier(records.query("holdout == 0")))


def show(name: str | None) -> None:
    """Prints the results of all networks for a challenge, or updates the documents."""
    if name:
        tested = read_records(RESULTS, CHALLENGES[name]).query("holdout == 0")
        print(markdown(summary(tested, CHALLENGES[name]), 2))
    else:
        update()
        print("README.md, results/*.md, seeds.png and frontier.png are up to date")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.tables", __doc__)
    challenge = "print the results for this challenge; update nothing"
    parser.add_argument("--challenge", choices=[*CHALLENGES], help=challenge)
    return exit_code(parser.prog, show, parser.parse_args(argv).challenge)


if __name__ == "__main__":
    sys.exit(main())
