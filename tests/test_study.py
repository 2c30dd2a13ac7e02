"""Many runs: what is trained, what is kept, what dies and what goes on."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from cli import RunError
from networks import ROOT
from recipes import CLASSIC, STRONG, Experiment
from tools import study, tables, worker
from train import Trainer

OWN = replace(STRONG, name="own", epochs=2, batch_size=128)  # two times four steps with few images


@pytest.fixture
def steps(small_mnist: dict, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Few images, in `worker` too; the steps of training are counted, and stop at the last."""
    steps, step = SimpleNamespace(taken=0, last=1000), Trainer.step

    def counted(*arguments: object) -> object:
        steps.taken += 1
        if steps.taken == steps.last:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(worker, "load_mnist", train.load_mnist)
    monkeypatch.setattr(Trainer, "step", counted)
    return steps


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results without records, documents around it, and a recipe of one's own."""
    (folder := tmp_path / "results").mkdir()
    for name in ("README.md", "results/README.md", "results/public.csv"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(tables, "RESULTS", folder)
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    monkeypatch.setattr(worker, "ROOT", tmp_path)
    monkeypatch.setitem(train.RECIPES, "own", OWN)
    return folder


def test_a_study_trains_what_has_no_record(steps, results, monkeypatch, capsys) -> None:
    monkeypatch.setattr(study, "in_a_process_of_its_own", lambda task, one: task(one))
    command = ["--model", "model3", "--recipe", "own", "--processes", "1", "--seeds"]
    assert study.main([*command, "1"]) == 0 and steps.taken == 8
    assert study.main([*command, "1,0-1,0"]) == 0 and steps.taken == 2 * 8
    out = capsys.readouterr().out
    assert "1 of 2 runs are on record" in out and "model3-own-seed0: " in out
    assert re.search(r"\| model3 +\| own +\| +2 \| +7,784 \|", out)  # the distribution
    runs, epochs = tables.read(results, "runs.csv"), tables.read_epochs(results)
    assert [*runs["seed"]] == [0, 1] and [*epochs["epoch"]] == [1, 2, 1, 2]
    folder = results.parent / "runs" / "study" / "model3-own-seed1"
    assert train.main(["--evaluate", str(folder), "--tta"]) == 0
    assert f"test accuracy {runs['views_acc'][1]:.2f} %" in capsys.readouterr().out
    assert study.main([*command, "0-1", "--again"]) == 0 and steps.taken == 4 * 8
    assert tables.read_epochs(results)["loss"].equals(epochs["loss"])


def test_a_changed_recipe_has_another_name(steps, results, monkeypatch, capsys) -> None:
    monkeypatch.setattr(study, "in_a_process_of_its_own", lambda task, one: task(one))
    command = ["--model", "model3", "--recipe", "own", "--seeds", "1", "--processes", "1"]
    changed = [*command, "--set", "max_lr=0.2", "--epochs", "1"]
    assert study.main(changed) == 0 and steps.taken == 4
    assert study.main([*changed, "--set", "max_lr=0.1"]) == 0 and steps.taken == 4 + 4  # the last
    assert study.main([*command, "--out", str(results / "tries" / "two")]) == 0
    names = ["own+epochs=1", "own+epochs=1+max_lr=0.2"]  # 0.1 is what the recipe has
    assert [*tables.read(results, "runs.csv")["recipe"]] == names
    assert [*tables.read(results / "tries" / "two", "runs.csv")["recipe"]] == ["own"]
    assert "own+epochs=1+max_lr=0.2" in (results / "README.md").read_text()


def test_a_half_finished_run_goes_on_where_it_stopped(steps, tmp_path: Path) -> None:
    """A smaller size, which is taken up by its name, and held-out images, which have no views."""
    one = Experiment("model6", OWN, 5, 100, {"width": 18})
    _, expected = worker.train_one(one, work_dir=tmp_path / "undisturbed")
    steps.taken, steps.last = 0, 6  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        worker.train_one(one, work_dir=tmp_path)
    row, records = worker.train_one(one, work_dir=tmp_path)
    assert steps.taken == 6 + 4  # the first epoch was not trained again
    for record, other in zip(records, expected, strict=True):
        assert record | {"seconds": 0} == other | {"seconds": 0}
    assert row["model"] == "model6-587" and row["parameters"] == 587 and row["views_acc"] is None
    # It is finished now. If its record is lost, it is made of what is there.
    assert worker.train_one(one, work_dir=tmp_path) == (row, records) and steps.taken == 10
    worker.train_one(one, again=True, work_dir=tmp_path)
    assert steps.taken == 10 + 8
    config = tmp_path / "model6-587-own-seed5-holdout100" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"code": 7}))  # another run
    worker.train_one(one, work_dir=tmp_path)
    assert steps.taken == 18 + 8


# ------------------------------------------------------------------- processes and machines

# What a worker runs in place of the training: seed 1 waits to be killed, the first time.
STAND_IN = """
import os, time

def task(folder, experiment):
    seed = experiment.seed
    (folder / f"{seed}-{os.getpid()}").touch()
    if seed == 1 and len(list(folder.glob("1-*"))) == 1:
        time.sleep(300)
    if seed == 3:
        raise ValueError("three")
    row = {"model": "model3", "recipe": "own", "seed": seed, "holdout": 0, "parameters": 7784}
    return row, [row | {"epoch": 1, "acc": 99.0}]
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[functools.partial]:
    """The stand-in; it works in the folder task.args[0], and other processes find its module."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]), os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))
    import stand_in

    (tmp_path / "work").mkdir()
    yield functools.partial(stand_in.task, tmp_path / "work")
    del sys.modules["stand_in"]


def wait_for(path: Path, pattern: str) -> Path:
    """The file in the folder `path` that fits the pattern, once it is there."""
    end = time.monotonic() + 60
    while not (found := list(path.glob(pattern))):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found[0]


def kill_seed_1(task: functools.partial) -> int:
    """Wait until seed 1 is at work, and kill its process; its number."""
    process = int(wait_for(task.args[0], "1-*").name.partition("-")[2])
    os.kill(process, signal.SIGKILL)
    return process


def experiments(*seeds: int) -> list[Experiment]:
    return [Experiment("model3", OWN, seed) for seed in seeds]


def test_runs_that_fail_are_named_and_the_others_go_on(task, results, capsys) -> None:
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_seed_1, task)
        with pytest.raises(RunError, match="the same command trains them again") as error:
            study.train_all(experiments(1, 3, 0), task, processes=2)
        killed.result()
    assert {*re.findall(r"seed(\d)", str(error.value))} == {"1", "3"}
    err = capsys.readouterr().err
    assert "model3-own-seed1: BrokenProcessPool" in err
    assert "model3-own-seed3: ValueError: three" in err
    assert [*tables.read(results, "runs.csv")["seed"]] == [0]


def test_a_killed_study_leaves_no_workers(task: functools.partial) -> None:
    """The driver is killed outright, so that nobody can tell its worker to stop."""
    code = f"""
import functools, pathlib, recipes, stand_in
from tools import study
task = functools.partial(stand_in.task, pathlib.Path({str(task.args[0])!r}))
study.train_all([recipes.Experiment("model3", recipes.STRONG, 1)], task, 1)
"""
    # Its worker holds the other end of the pipe as long as it lives.
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        wait_for(task.args[0], "1-*")
    finally:
        process.kill()
    assert process.communicate(timeout=30) == (b"", None)


def test_a_cluster_repeats_the_runs_of_a_lost_worker(task, results, tmp_path, monkeypatch) -> None:
    """A scheduler and two workers as results/README.md starts them; one is killed on the way."""
    monkeypatch.setattr(study, "CONNECT_SECONDS", 60)  # on a busy machine
    where = tmp_path / "scheduler.json"  # the scheduler takes any free port, and writes it there
    dask, at = [sys.executable, "-m", "dask"], ["--no-dashboard", "--scheduler-file", str(where)]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *at]
    one = [*dask, "worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(line, **quiet) for line in (scheduler, one + at, one + at)]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as script.exit_code sets it
    try:
        wait_for(tmp_path, where.name)
        address = json.loads(where.read_text())["address"]
        with ThreadPoolExecutor(1) as killer:
            killed = killer.submit(kill_seed_1, task)
            study.train_all(experiments(0, 1, 2), task, scheduler=address)
            assert killed.result() in [process.pid for process in processes[1:]]
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN  # a lost socket ends nothing
        assert [*tables.read(results, "runs.csv")["seed"]] == [0, 1, 2]
        assert len(list(task.args[0].glob("1-*"))) == 2  # lost, and done again by the other
    finally:
        for process in processes:
            process.kill()
            process.wait()


WRONG = ["", "--ablation --sizes", "--ablation --recipe fast", "--sizes --epochs 3"]
WRONG += [
    "--seeds 4-0",
    "--seeds 0-999999999",
    "--scheduler x --seeds 1",
    "--scheduler tcp://127.0.0.1:9 --seeds 1",
]


@pytest.mark.parametrize("command", WRONG)
def test_what_cannot_be_asked_for_is_one_line(command, results, monkeypatch, capsys) -> None:
    monkeypatch.setattr(study, "CONNECT_SECONDS", 1)
    with suppress(SystemExit):
        assert study.main(command.split()) == 2
    err, named = capsys.readouterr().err, (command.split() or ["--seeds"])[0]
    assert err.count("\n") == 1 and named in err


def test_each_variant_lacks_what_it_says() -> None:
    smaller, affine, average, decay = (replace(one, name="strong") for one in study.VARIANTS)
    moves = ("rotation", "translation", "scaling", "shear", "interpolation")
    assert smaller == replace(STRONG, batch_size=128, max_lr=0.3, ema_decay=0.9995**4)
    assert affine == replace(STRONG, **{name: getattr(CLASSIC, name) for name in moves})
    assert average == replace(STRONG, ema_decay=0.0)
    assert decay == replace(STRONG, weight_decay=0.0)
    names = [one.name.partition("-without-")[2] for one in study.VARIANTS]
    assert names == ["small-batches", "affine", "average", "weight-decay"]


def test_the_average_reaches_back_as_many_images_unless_it_is_set() -> None:
    larger = {"batch_size": 128, "name": "strong+batch_size=128"}
    assert STRONG.changed(["batch_size=128"]) == replace(STRONG, ema_decay=0.9995**4, **larger)
    larger["name"] += "+ema_decay=0.9995"  # as in strong, but over four times as many images
    assert STRONG.changed(["batch_size=128", "ema_decay=0.9995"]) == replace(STRONG, **larger)


def test_the_sizes_are_those_of_one_family(results, monkeypatch, capsys) -> None:
    """Parameters by hand: 14 w + w^2 + 11 of w channels."""
    asked: list[Experiment] = []
    monkeypatch.setattr(study, "train_all", lambda experiments, *_: asked.extend(experiments))
    assert study.main(["--sizes", "--seeds", "3"]) == 0
    names = ["587-mild", "1643-strong", "2266-strong", "2987-strong", "3683-strong"]
    assert [one.name for one in asked] == [f"model6-{name}-seed3" for name in names]
