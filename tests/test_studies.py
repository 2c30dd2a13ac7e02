"""Many seeds and the ablation: what is trained, what is kept, what dies and what goes on."""

import argparse
import csv
import dataclasses
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch

import train
from command_line import RunError, UsageError
from run_folder import write_atomically
from tools import ablation, frontier, records, seed_study
from tools.records import keep_record, mismatch, read_records
from tools.seed_study import train_one_seed, train_seeds
from train import Learner

ROOT = Path(train.__file__).parent
RECIPE = dataclasses.replace(train.RECIPES["strong"], epochs=2, batch_size=128)
JOB = ("model3", RECIPE, 5, 0)


@pytest.fixture
def small_mnist(small_mnist: dict, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What `train` finds, for the nine views too."""
    monkeypatch.setattr(seed_study, "load_mnist", train.load_mnist)
    return small_mnist


def test_a_seed_leaves_a_record(
    small_mnist: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, trained = train_one_seed(JOB, tmp_path / "work")
    assert len(trained) == 2
    keep_record(tmp_path / "records", config, trained)
    command = ["--evaluate", str(tmp_path / "work" / "model3-strong-seed5" / "weights.pt"), "--tta"]
    assert train.main(command) == 0
    views = config["views_acc"]
    assert "model3, mean of nine views: test loss" in (out := capsys.readouterr().out)
    assert f"test accuracy {views:.2f} %" in out
    path = tmp_path / "records" / "model3-strong-seed5.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["model", "recipe", "seed", "epoch", "train_loss", "train_acc"]
    assert [(row["model"], row["recipe"], row["seed"], row["epoch"]) for row in rows] == [
        ("model3", "strong", "5", "1"),
        ("model3", "strong", "5", "2"),
    ]
    assert [float(row["test_acc"]) for row in rows] == [row["test_acc"] for row in trained]
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings["recipe"] == dataclasses.asdict(RECIPE)
    assert records.read_views(tmp_path / "records") == {("model3", "strong"): [views]}
    assert str(tmp_path) not in path.with_suffix(".json").read_text()
    assert read_records(tmp_path / "records")["model3", "strong"][5] == trained


def test_a_run_on_record_is_repeated_only_when_what_decides_it_has_changed(
    small_mnist: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mismatch(*JOB[:3], tmp_path) == "no record"
    keep_record(tmp_path, *train_one_seed(JOB, tmp_path / "work"))
    assert mismatch(*JOB[:3], tmp_path) == ""
    assert mismatch("model3", RECIPE, 6, tmp_path) == "no record"
    other = dataclasses.replace(RECIPE, max_lr=0.2)
    assert mismatch("model3", other, 5, tmp_path) == "max_lr 0.1 -> 0.2"
    assert mismatch(*JOB[:3], tmp_path, holdout=100) == "holdout 0 -> 100"
    monkeypatch.setattr(records, "training_code", lambda name: "f00d")
    assert mismatch(*JOB[:3], tmp_path).endswith(" -> f00d")


def test_fingerprint_is_of_code_not_of_comments(tmp_path: Path) -> None:
    texts = {
        "first": 'def f(x):\n    """Twice."""\n    return 2 * x\n',
        "same": 'def f(x):\n    """Two times."""\n    # x is a number\n    return 2*x\n',
        "other": "def f(x):\n    return 3 * x\n",
    }
    prints = []
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        namespace: dict = {}
        exec(compile(text, str(tmp_path / f"{name}.py"), "exec"), namespace)
        prints.append(train.run_folder.fingerprint(namespace["f"]))
    assert prints[0] == prints[1] != prints[2]
    constants = [train.run_folder.fingerprint(text) for text in ("(0.13, 0.31)", "(0.13, 0.32)")]
    assert constants[0] != constants[1]
    assert train.training_code("model1") != train.training_code("model2")


def test_fingerprint_knows_the_scale_of_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    before = train.training_code("model3")
    monkeypatch.setattr(train.mnist, "STD", 0.31)
    assert train.training_code("model3") != before


def test_a_half_finished_seed_goes_on_where_it_stopped(
    small_mnist: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train_one_seed(JOB, tmp_path / "undisturbed")
    step, steps = Learner.step, []

    def stopped(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(args)
        if len(steps) == 6:  # four steps an epoch
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "training_code", lambda name: "code")
        patch.setattr(seed_study, "training_code", lambda name: "code")
        patch.setattr(Learner, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_one_seed(JOB, tmp_path / "work")
        _, rows = train_one_seed(JOB, tmp_path / "work")
    assert len(steps) == 6 + 4  # the first epoch was not trained again
    for record, other in zip(rows, expected, strict=True):
        assert record | {"seconds": 0} == other | {"seconds": 0}


def test_a_finished_seed_whose_record_was_lost_is_not_trained_again(
    small_mnist: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows = train_one_seed(JOB, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(seed_study, "training_code", lambda name: config["code"])
        patch.setattr(Learner, "step", None)  # no call of it would do
        assert train_one_seed(JOB, tmp_path) == (config, rows)


@pytest.mark.parametrize("change", ["settings", "code"])
def test_a_run_begun_otherwise_begins_anew(
    change: str, small_mnist: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train_one_seed(JOB, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        recipe = dataclasses.replace(RECIPE, max_lr=0.2) if change == "settings" else RECIPE
        code = "former" if change == "code" else train.training_code("model3")
        patch.setattr(train, "training_code", lambda name: code)
        patch.setattr(train, "evaluate", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_one_seed(("model3", recipe, 5, 0), tmp_path / "work")
    config, rows = train_one_seed(JOB, tmp_path / "work")
    assert config["recipe"] == dataclasses.asdict(RECIPE)
    assert [row["test_acc"] for row in rows] == [row["test_acc"] for row in expected]


# ------------------------------------------------------------------- processes and machines

# What a worker runs in place of the training: seed 1 waits to be killed, the first time.
STAND_IN = """
import os, time
from pathlib import Path
from train import training_code

def train_one_seed(job, work_dir):
    model_name, recipe, seed, holdout = job
    mark = Path(work_dir) / f"{seed}-{os.getpid()}"
    mark.touch()
    if seed == 1 and len(list(Path(work_dir).glob("1-*"))) == 1:
        time.sleep(300)
    config = {"model": model_name, "recipe": {"name": recipe.name}, "seed": seed}
    return config | {"code": training_code(model_name)}, [{"epoch": 1, "test_acc": 99.0}] * 5
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the stand-in works in; worker processes find it on their path."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import stand_in

    monkeypatch.setattr(seed_study, "train_one_seed", stand_in.train_one_seed)
    yield work_dir
    del sys.modules["stand_in"]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> object:
    """What `condition` returns, once it is true."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return result


def kill_seed_1(work_dir: Path) -> int:
    """Wait until seed 1 is at work, and kill its process; its number."""
    (mark,) = wait_for(lambda: list(work_dir.glob("1-*")))
    process = int(mark.name.partition("-")[2])
    os.kill(process, signal.SIGKILL)
    return process


def jobs(count: int) -> list[tuple]:
    return [("model3", RECIPE, seed, 0) for seed in range(count)]


def test_a_killed_worker_is_named_and_the_others_go_on(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "records"
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_seed_1, stand_in)
        with pytest.raises(RunError, match="not trained: model3, strong, seed 1; the same command"):
            train_seeds(jobs(4), kept, stand_in, processes=2)
        killed.result()
    assert "model3, strong, seed 1: BrokenProcessPool" in capsys.readouterr().err
    assert sorted(read_records(kept)["model3", "strong"]) == [0, 2, 3]


def test_a_killed_study_leaves_no_workers(stand_in: Path, tmp_path: Path) -> None:
    """The driver is killed outright, so that nobody can tell its worker to stop."""
    code = f"""
import dataclasses, pathlib, stand_in, train
from tools import seed_study
if __name__ == "__main__":
    seed_study.train_one_seed = stand_in.train_one_seed
    recipe = dataclasses.replace(train.RECIPES["strong"], epochs=2)
    folder = pathlib.Path({str(stand_in)!r})
    seed_study.train_seeds([("model3", recipe, 1, 0)], folder / "records", folder, 1)
"""
    driver = tmp_path / "driver.py"
    driver.write_text(code)
    process = subprocess.Popen([sys.executable, str(driver)], cwd=ROOT)
    try:
        (mark,) = wait_for(lambda: list(stand_in.glob("1-*")))
    finally:
        process.kill()
        process.wait()
    worker = int(mark.name.partition("-")[2])

    def is_gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(worker, 0)
            state = Path(f"/proc/{worker}/stat")
            return state.exists() and state.read_text().split(")")[1].split()[0] == "Z"
        return True

    wait_for(is_gone, 10)


def test_a_cluster_does_the_runs_of_a_lost_worker_again(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler and two workers as the README starts them; one is killed in the middle."""
    monkeypatch.setattr(seed_study, "CONNECT_SECONDS", 60)  # on a busy machine
    where = tmp_path / "scheduler.json"  # the scheduler takes any free port, and writes it there
    dask = [sys.executable, "-m", "dask"]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler += ["--scheduler-file", str(where)]
    worker = [*dask, "worker", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    worker += ["--scheduler-file", str(where), "--local-directory", str(tmp_path)]
    processes = [subprocess.Popen(line, **quiet) for line in (scheduler, worker, worker)]
    try:
        wait_for(where.exists)
        address = json.loads(where.read_text())["address"]
        kept = tmp_path / "records"
        with ThreadPoolExecutor(1) as killer:
            killed = killer.submit(kill_seed_1, stand_in)
            train_seeds(jobs(4), kept, stand_in, scheduler=address)
            assert killed.result() in [process.pid for process in processes[1:]]
        assert sorted(read_records(kept)["model3", "strong"]) == [0, 1, 2, 3]
        assert len(list(stand_in.glob("1-*"))) == 2  # lost, and done again by the other
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_scheduler_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(seed_study, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nowhere"):
        with pytest.raises(UsageError, match=f"--scheduler {address}: nobody answers there"):
            train_seeds(jobs(1), tmp_path, tmp_path, scheduler=address)
    assert multiprocessing.active_children() == []


# -------------------------------------------------------------------------------- ablation


def seeds_with(means: list[float]) -> dict[int, list[dict[str, float]]]:
    """A run a seed whose last three epochs have this mean accuracy, and a loss of 1/100 of it."""
    return {
        seed: [
            {"val_acc": accuracy, "val_loss": accuracy / 100}
            for accuracy in (90.0, 99.9, 99.9, mean - 0.1, mean, mean + 0.1)
        ]
        for seed, mean in enumerate(means)
    }


def test_ablation_is_paired_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences -0.1, -0.2, -0.3: mean -0.2, s.e. 0.1 / sqrt(3), t for two degrees 4.303.

    Their interval is 0.248, so they do not exclude zero; -0.2, -0.2, -0.21 do. Unpaired, the
    means of the seeds would differ by far more.
    """
    weak = dataclasses.replace(train.RECIPES["strong"], name="weak")
    clear = dataclasses.replace(train.RECIPES["strong"], name="clear")
    monkeypatch.setattr(ablation, "VARIANTS", {"a part": weak, "another": clear})
    whole = [99.3, 99.4, 99.5]
    table = ablation.table(
        {
            (ablation.MODEL, "strong"): seeds_with(whole),
            (ablation.MODEL, "weak"): seeds_with([99.2, 99.2, 99.2]),
            (ablation.MODEL, "clear"): seeds_with([99.1, 99.2, 99.29]),
        }
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0] == ["nothing: all of strong", "3", "99.400 %", "99.300 %", "0.9940"]
    assert rows[1][:3] == ["a part", "3", "-0.200 ± 0.248"]
    assert rows[2][:3] == ["another", "3", "**-0.203 ± 0.014**"]


def test_rows_that_cannot_be_written_do_not_get_the_settings_of_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = train.training_code("model3")
    config = {"model": "model3", "recipe": dataclasses.asdict(RECIPE), "seed": 5, "holdout": 0}
    keep_record(tmp_path, config | {"code": "former"}, [{"epoch": 1}])
    assert mismatch("model3", RECIPE, 5, tmp_path) == f"code former -> {code}"

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".csv":
            raise RunError("no space")
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_atomically", full)
        with pytest.raises(RunError):
            keep_record(tmp_path, config | {"code": code}, [{"epoch": 1}])
    assert mismatch("model3", RECIPE, 5, tmp_path) == f"code former -> {code}"
    keep_record(tmp_path, config | {"code": code}, [{"epoch": 1}])
    assert mismatch("model3", RECIPE, 5, tmp_path) == ""
    (tmp_path / "model3-strong-seed5.json").unlink()
    assert mismatch("model3", RECIPE, 5, tmp_path) == "no record"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("tool", [seed_study, frontier])
def test_what_is_sent_to_a_cluster_is_found_there_by_name(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of `__main__` would be sent with the paths and networks of the sender."""
    monkeypatch.setattr(tool, "main", lambda: 7)
    monkeypatch.setattr(sys, "argv", ["tool", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(tool.__name__, run_name="__main__")
    assert stop.value.code == 7


@pytest.mark.parametrize("option", ["--model=model4", "--recipe=fast"])
def test_a_network_to_train_needs_seeds(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seed_study, "update_readme", None)  # not to be called
    assert seed_study.main([option]) == 2
    assert "go with --seeds" in capsys.readouterr().err


def test_two_studies_at_once_lose_neither_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are made when it is a study's turn, not before: an old one would replace a new one."""
    readme, order = tmp_path / "README.md", []
    readme.write_text("<!-- a -->\n0\n<!-- /a -->\n")
    monkeypatch.setattr(records, "README", readme)
    monkeypatch.setattr(records, "ROOT", tmp_path)

    def first() -> dict[str, str]:
        other.start()
        other.join(0.3)  # it waits for its turn
        order.append("first")
        return {"a": "1"}

    def second() -> dict[str, str]:
        order.append("second")
        return {"a": "2"}

    other = threading.Thread(target=records.update_readme, args=[second])
    records.update_readme(first)
    other.join()
    assert order == ["first", "second"]
    assert readme.read_text() == "<!-- a -->\n2\n<!-- /a -->\n"


def test_seeds_named_twice_are_trained_once() -> None:
    assert seed_study.seed_range("0-4,42,4,2-3") == [0, 1, 2, 3, 4, 42]
    with pytest.raises(argparse.ArgumentTypeError, match="not like"):
        seed_study.seed_range("4-0")
    with pytest.raises(argparse.ArgumentTypeError, match="more than 10,000"):
        seed_study.seed_range("0-999999999")


def test_each_variant_lacks_what_it_says() -> None:
    strong, classic = train.RECIPES["strong"], train.RECIPES["classic"]
    changed = {
        words.partition(" (")[0]: {
            field.name
            for field in dataclasses.fields(recipe)
            if getattr(recipe, field.name) != getattr(strong, field.name)
        }
        - {"name"}
        for words, recipe in ablation.VARIANTS.items()
    }
    affine = {"rotation", "translation", "scaling", "shear", "interpolation"}
    assert changed == {
        "batches of 32 and their learning rate": {"batch_size", "max_lr", "ema_decay"},
        "shift, scale and shear": affine,
        "averaged weights": {"ema_decay"},
        "weight decay": {"weight_decay"},
    }
    for recipe in ablation.VARIANTS.values():
        for field in set.union(*changed.values()) - {"ema_decay"}:
            assert getattr(recipe, field) in (getattr(strong, field), getattr(classic, field))
