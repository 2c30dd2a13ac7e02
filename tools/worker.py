"""One run of a study, in a process or on a machine of its own, which finds it here by name."""

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist import DATA_DIR, AverageOfViews, Loader, load_mnist
from networks import ROOT, count_parameters, load_model
from provenance import describe
from recipes import Experiment
from run_folder import EpochRecord, read_config
from train import TEST_BATCH_SIZE, evaluate, run


def end_with_parent() -> None:
    """In a worker process: leave Ctrl-C to its parent, and end when that does, however it ends."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def accuracy_by_views(network: nn.Module, device: str) -> float:
    """Test accuracy in % where the network guesses by nine views of each image."""
    images, labels = (part.to(device) for part in load_mnist(DATA_DIR, train=False))
    views = AverageOfViews(network).to(device)
    return evaluate(views, Loader(images, labels, TEST_BATCH_SIZE), nn.CrossEntropyLoss())[1]


def key_of(experiment: Experiment) -> dict[str, Any]:
    """What names the record of an experiment."""
    names = {"model": experiment.network, "recipe": experiment.recipe.name}
    return names | {"seed": experiment.seed, "holdout": experiment.holdout}


def train_one(
    experiment: Experiment, again: bool = False, work_dir: Path | None = None, device: str = "cpu"
) -> tuple[dict[str, Any], list[EpochRecord]]:
    """Train on one thread, in a folder of its own: a row of runs.csv, and those of epochs.csv.

    Goes on with what is in that folder, if it is of the same experiment, code, torch and device.
    What is finished there is returned as it is, but trained `again` where that is asked for.
    """
    torch.set_num_threads(1)
    out_dir = work_dir or ROOT / "runs" / "study"  # in this clone, on whatever machine it is
    folder = out_dir / experiment.name
    if folder.exists():
        begun = read_config(folder) if (folder / "config.json").exists() else {}
        here = describe(torch.device(device), experiment.model)
        now = asdict(experiment) | {name: here[name] for name in ("commit", "torch", "device")}
        is_finished = (folder / "weights.pt").exists()
        if not now.items() <= begun.items() or (again and is_finished):
            shutil.rmtree(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        resumed = folder if folder.exists() else None
        records = run(experiment, out_dir, resumed=resumed, device=device, quiet=True)
    config, (_, network) = read_config(folder), load_model(folder)
    key = key_of(experiment)
    row = key | {
        "parameters": count_parameters(network),
        **{name: config[name] for name in ("commit", "torch", "device", "threads")},
        "seconds": sum(record["seconds"] for record in records),
        "views_acc": None if experiment.holdout else accuracy_by_views(network, device),
    }
    return row, [key | record for record in records]
