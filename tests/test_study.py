"""Many runs: which are trained, resumed, taken and left alone, and how they end."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Digits, fail_at

import provenance
import run_folder
import train
from cli import RunError
from mnist import Loader, TestTimeAugmentation
from networks import ROOT, load_model
from recipes import CLASSIC, RECIPES, STRONG, Experiment, sizes_of
from tools import study, tables

COMMIT = "abc1234"
# train.py as it is, but with few images and at a clean commit.
SMALL = """
import sys
sys.path.insert(0, {root!r})
import provenance, train
provenance.commit_of = lambda model: {commit!r}
sys.exit(train.main([*sys.argv[1:], "--data-dir", {data!r}]))
"""
# A run in which only the seed matters: 0 succeeds, 1 fails, 2 is killed, 3 takes forever.
STAND_IN = r"""
import os, pathlib, sys, time
seed = next(int(word[7:]) for word in sys.argv if word.startswith("--seed="))
folder = pathlib.Path(__file__).parent / f"seed{{seed}}"
folder.mkdir()
(folder / "pid").write_text(str(os.getpid()))
if seed == 1:
    sys.exit("a warning\ntrain.py: error: the loss was not finite")
if seed == 2:
    os.kill(os.getpid(), 9)
if seed == 3:
    time.sleep(300)
(folder / "config.json").write_text('{{"commit": "abc1234", "device_name": "a CPU, AVX2"}}')
(folder / "metrics.csv").write_text("{keys}\n1,0.1,97,0.1,0.1,99,20")
print("Weights, curves and records are in", folder)
"""


@pytest.fixture
def folder(tmp_path: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and a train.py of their own, where they and this process are at the same commit."""
    script = SMALL.format(root=str(ROOT), commit=COMMIT, data=str(small_data))
    (tmp_path / "train.py").write_text(script)
    monkeypatch.setattr(study, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    for module in (study, provenance):
        monkeypatch.setattr(module, "commit_of", lambda model: COMMIT)
    return tmp_path


@pytest.fixture
def in_process(folder: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Runs are trained in this process, which is faster; that they are others is shown below."""

    def call_train(*options: Any) -> str:
        code = train.main([*map(str, options), "--data-dir", str(small_data)])
        out, err = capsys.readouterr()
        if code:
            raise RunError(err)
        return out

    monkeypatch.setattr(study, "call_train", call_train)


def begin(experiment: Experiment, data_dir: Path, patch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped in its second epoch."""
    with patch.context() as stopped:
        fail_at(2, train, "train_and_evaluate", KeyboardInterrupt(), stopped)
        with pytest.raises(KeyboardInterrupt):
            train.run(experiment, study.RUNS, device="cpu", data_dir=data_dir, quiet=True)
    return study.RUNS / experiment.name


def test_a_study_trains_what_has_no_record(folder: Path, small_data: Path, capsys) -> None:
    """On two threads of a Dask worker, where a run gives what it gives alone."""
    from distributed import LocalCluster, default_client

    recipe, results = RECIPES["fast"].changed(["epochs=1"]), folder / "tries"
    command = ["--model", "model4", "--recipe", "fast", "--size", "width=9", "--epochs", "1"]
    command += ["--seeds", "0-1", "--holdout", "100", "--out", str(results)]
    two_threads = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    with LocalCluster(**two_threads, dashboard_address=None) as cluster:
        assert study.main([*command, "--scheduler", cluster.scheduler_address]) == 0
        default_client().close()
    assert "0 of 2 runs are on record" in capsys.readouterr().out
    epochs = tables.read_epochs(results)
    for seed in range(2):
        one = Experiment("model4", recipe, seed, 100, {"width": 9})
        (alone,) = train.run(one, folder, device="cpu", data_dir=small_data, quiet=True)
        assert [*epochs[epochs["seed"] == seed]["loss"]] == [alone["loss"]]
    capsys.readouterr()
    assert study.main(command) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| model4-width9 | fast+epochs=1 | 100 validation |")
    for name in tables.COLUMNS:  # the records are lost: they are made from the folders
        (results / name).unlink()
    assert study.main(command) == 0
    assert tables.read_epochs(results).equals(epochs)
    assert len([*study.RUNS.iterdir()]) == 2


def test_the_record_of_a_test_run_has_its_accuracy_by_nine_views(in_process, few: Digits) -> None:
    """And of model5, which averages four views by itself, the accuracy by one view."""
    recipe = STRONG.changed(["epochs=1", "batch_size=128"])
    one = Experiment("model5", recipe, 7, sizes={"width": 18})
    row, (epoch,) = study.train_one(one, "cpu", "8k", again=False)
    assert row["parameters"] == 587 and row["device_name"] == provenance.processor()
    assert 0 < epoch["one_view_acc"] < 100 and row["seconds"] == epoch["seconds"]
    average = TestTimeAugmentation(load_model(study.RUNS / one.name)[1])
    accuracy = train.evaluate(average, Loader(*few["test"], 250), torch.nn.CrossEntropyLoss())[1]
    assert row["views_acc"] == round(accuracy, 2)


def test_a_run_is_resumed_then_taken_and_never_from_another_process(
    in_process, small_data: Path, monkeypatch
) -> None:
    one = Experiment("model4", CLASSIC.changed(["epochs=2"]), 5, 100, {"width": 9})
    begun = begin(one, small_data, monkeypatch)
    before = run_folder.read_metrics(begun)
    train_one = partial(study.train_one, one, "cpu", "8k")
    with run_folder.lock(begun), pytest.raises(RunError, match="another process is at work on it"):
        train_one(again=False)
    _, epochs = train_one(again=False)
    assert [epoch["seconds"] for epoch in epochs][:1] == [before[0]["seconds"]]
    assert train_one(again=False)[1] == epochs and [*study.RUNS.iterdir()] == [begun]
    content = {path: path.read_bytes() for path in begun.iterdir()}
    assert train_one(again=True)[1] != epochs
    again = study.RUNS / f"{one.name}-2" / "weights.pt"  # beside the first one, and the same
    assert again.read_bytes() == content[begun / "weights.pt"]
    assert {path: path.read_bytes() for path in begun.iterdir()} == content


def test_a_run_of_other_code_or_settings_is_not_taken(folder, small_data, monkeypatch) -> None:
    one = Experiment("model4", CLASSIC.changed(["epochs=2"]), 1, 100, {"width": 9})
    begun = begin(one, small_data, monkeypatch)
    assert study.earlier_runs(one, "cpu") == [begun] and study.earlier_runs(one, "cuda") == []
    for change in ({"seed": 10}, {"holdout": 0}, {"sizes": {}}, {"recipe": CLASSIC}):
        assert study.earlier_runs(replace(one, **change), "cpu") == []
    config = run_folder.read_config(begun)
    recipe = config["recipe"] | {"momentum": 0.8}  # of the same name
    for change in ({"torch": "1"}, {"commit": "def5678"}, {"recipe": recipe}, {"seed": ""}):
        (begun / "config.json").write_text(json.dumps(config | change))
        assert study.earlier_runs(one, "cpu") == []
    for unknown in (f"{COMMIT}-dirty", None):  # changed in which way?
        monkeypatch.setattr(study, "commit_of", lambda model, commit=unknown: commit)
        (begun / "config.json").write_text(json.dumps(config | {"commit": unknown}))
        assert study.earlier_runs(one, "cpu") == []


def test_runs_that_fail_are_named_and_the_others_go_on(folder: Path, capsys) -> None:
    (folder / "train.py").write_text(STAND_IN.format(keys=",".join(run_folder.KEYS)))
    results = str(folder / "tries")
    assert study.main(["--seeds", "0-2", "--holdout", "9", "--out", results]) == 1
    *lines, last = sorted(capsys.readouterr().err.splitlines())
    name = "model3-strong-seed{}-holdout9"
    assert lines[0] == f"{name.format(1)}: train.py: error: the loss was not finite"
    assert lines[1] == f"{name.format(2)}: exit code -9"
    assert "trains them again" in last and name.format(1) in last and name.format(0) not in last
    (row,) = tables.read(folder / "tries", "runs.csv").to_dict("records")
    assert (row["seed"], row["device_name"], row["seconds"]) == (0, "a CPU, AVX2", 20)


def test_a_study_that_is_stopped_ends_its_runs(folder: Path) -> None:
    (folder / "train.py").write_text(STAND_IN.format(keys=""))

    def stop() -> int:
        path, end = folder / "seed3" / "pid", time.monotonic() + 60
        while time.monotonic() < end and not (path.exists() and path.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        return int(path.read_text())

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(stop)
        command = ["--seeds", "3-4", "--processes", "1", "--holdout", "9", "--out", str(folder)]
        assert study.main(command) == 143
        with pytest.raises(ProcessLookupError):
            os.kill(run.result(), 0)
    assert not (folder / "seed4").exists()  # which waited


def test_what_cannot_be_asked_for_is_one_line(capsys) -> None:
    for command in ("", "--seeds 4-0", "--seeds 0-999999999", "--seeds 1,a"):
        with pytest.raises(SystemExit, match="2"):
            study.main(command.split())
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "--seeds" in err


def test_the_options_of_a_run_make_its_experiment() -> None:
    changed = STRONG.changed(["rotation=7", "interpolation=nearest", "ema_decay=0"])
    one = Experiment("model4", changed, 3, 10_000, {"stem": (4, 5), "width": 9})
    assert one.network == "model4-stem4,5-width9"
    args = train.build_parser().parse_args(study.options_of(one, "8k"))
    recipe = RECIPES[args.recipe].changed(args.settings)
    assert Experiment(args.model, recipe, args.seed, args.holdout, sizes_of(args.sizes)) == one
