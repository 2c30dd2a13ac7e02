"""A new file modelX.py is all that an attempt takes: shown in a copy of the repository."""

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import Digits
from PIL import Image

from networks import ROOT

# Each is called as `python SCRIPT ...` or `python -m NAME ...` calls it, in one process.
CALLS = """
import importlib, pathlib, sys

def call(line):
    sys.argv = line.split()
    code = importlib.import_module(sys.argv[0]).main(sys.argv[1:])
    print(f"<{sys.argv[0]}: {code}>", flush=True)

run = "runs/model_new-strong+epochs=2-seed42"
call("tools.new model_new")
call("tools.check model_new")
call("train --model model_new --device cpu --threads 1 --epochs 2")
pathlib.Path(run, "weights.pt").rename("weights/model_new.pt")
call(f"train --resume {run}")
call(f"train --evaluate {run} --tta")
call("predict --model model_new digit.png")
call(f"tools.report {run}")
call("tools.receptive_field")
call("tools.export weights/model_new.pt")
call("tools.page.build")
call("tools.study --model model_new --recipe own --seeds 0 --holdout 9")
call("pytest -k model_new tests/test_models.py")
"""
# What would take time, and shows nothing more.
LEFT_OUT = shutil.ignore_patterns(".*", "data", "runs", "model[12456_]*", "runs.csv", "epochs.csv")


def test_every_script_takes_a_new_model_and_a_new_recipe(
    small_data: Path, mnist: Digits, tmp_path: Path
) -> None:
    """And so do the tests of every model."""
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=LEFT_OUT)
    shutil.copytree(small_data, clone / "data")
    with (clone / "recipes.py").open("a") as recipes:
        recipes.write('RECIPES["own"] = replace(FAST, name="own", epochs=2, batch_size=64)\n')
    Image.fromarray(255 - mnist["test"][0][0, 0].numpy()).save(clone / "digit.png")
    command = [sys.executable, "-c", CALLS]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=1800)
    assert done.stdout.count(": 0>") == CALLS.count("\ncall("), done.stdout + done.stderr
    training, _, rest = done.stdout.partition("<train: 0>")
    assert "|     2 |" in training and "yes  7,784 parameters" in training
    assert "model_new, mean of nine views: test loss" in rest
    assert [*(clone / "runs/model_new-strong+epochs=2-seed42").glob("model_new-*.png")]
    assert "## Model_new: 7,784 parameters" in (clone / "RF.md").read_text()
    assert (clone / "weights" / "model_new.onnx").exists()
    assert "model_new,7784,own,0,9" in (clone / "results/runs.csv").read_text()
    assert "\n1 passed" in rest
