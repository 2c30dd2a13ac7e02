"""The log of a run: the table that is printed, and the curves by epoch."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # its import takes half a second, and is needed at the end of a run only
    from matplotlib.figure import Figure


COLUMNS = (  # title, as long as the column is wide; key in a record; format
    ("Epoch", "epoch", "d"),
    ("Train Acc (%)", "train_acc", ".2f"),
    ("    LR", "lr", ".4f"),
    ("Test Loss", "loss", ".4f"),
    ("Test Acc (%)", "acc", ".2f"),
    ("Time (s)", "seconds", ".1f"),
)


def table_header(holdout: int) -> str:
    """The two lines above the rows of the Markdown table."""
    titles = [title.replace("Test", " Val" if holdout else "Test") for title, _, _ in COLUMNS]
    return f"| {' | '.join(titles)} |\n| {' | '.join('-' * (len(t) - 1) + ':' for t in titles)} |"


def table_row(record: dict[str, Any]) -> str:
    """One epoch as a row under `table_header`."""
    cells = [f"{record[key]:{len(title)}{form}}" for title, key, form in COLUMNS]
    return f"| {' | '.join(cells)} |"


def png(figure: "Figure") -> bytes:
    """Renders a figure as PNG, with 120 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def plot_curves(records: list[dict[str, Any]], holdout: int, title: str, target: float) -> bytes:
    """Plots accuracy and loss of training and evaluation by epoch, and the learning rate, as PNG.

    A line marks the accuracy `target`, in %.
    """
    from matplotlib.figure import Figure

    run = {key: [record[key] for record in records] for key in records[0]}
    epochs = run["epoch"]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplot_mosaic([["acc", "loss"], ["lr", "lr"]], height_ratios=[3, 1])
    for name, unit in (("acc", "accuracy (%)"), ("loss", "loss")):
        training = {"color": "gray", "marker": ".", "label": "training, augmented"}
        axes[name].plot(epochs, run[f"train_{name}"], **training)
        label = "validation" if holdout else "test"
        axes[name].plot(epochs, run[name], color="C0", marker=".", label=label)
        axes[name].set_ylabel(unit)
    axes["acc"].axhline(target, color="C1", linewidth=1, label=f"{target} %")
    # The first two epochs lie far below the range of interest.
    margin = 100 - min(*(run["acc"][2:] or run["acc"]), target)
    axes["acc"].set_ylim(100 - 2 * margin, 100)
    axes["lr"].plot(epochs, run["lr"], color="C2", marker=".")
    axes["lr"].set(ylabel="learning rate", ylim=(0, None))
    for axis in axes.values():
        axis.set(xlabel="epoch", xlim=(0.5, epochs[-1] + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    handles = axes["acc"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(title, x=0.02, ha="left")
    return png(figure)
