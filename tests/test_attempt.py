"""A new file modelX.py is all that an attempt takes: shown in a copy of the repository."""

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import Digits
from PIL import Image

from networks import ROOT

# Unlike the networks of this repository: it has a block of its own, and a mean as pooling.
NETWORK = '''"""A small attempt.

Target    To run everywhere.
Result    It does.
Analysis  Two convolutions, one of them residual.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Add(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + F.relu(self.inner(x))


class Model_small(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10). 376 parameters."""

    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Conv2d(1, width, 1)
        self.add = Add(width)
        self.last = nn.Linear(width, 2)
        self.second = nn.Linear(2, 10, bias=False)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.first(images)), 2)
        return self.second(self.last(self.add(x).mean(dim=(2, 3))))
'''
# Each is called as `python SCRIPT ...` or `python -m NAME ...` calls it, in one process.
CALLS = """
import importlib, pathlib, sys

def call(name, *words):
    sys.argv = [name, *words]
    code = importlib.import_module(name).main([*words])
    print(f"<{name} {words[0] if words else ''}: {code}>", flush=True)

run = "runs/model_small-strong+epochs=2-seed42"
call("train", "--model", "model_small", "--device", "cpu", "--threads", "1", "--epochs", "2")
pathlib.Path(run, "weights.pt").rename("weights/model_small.pt")
call("train", "--resume", run)
call("train", "--evaluate", run, "--tta")
call("predict", "--model", "model_small", "digit.png")
call("tools.report", run)
call("tools.receptive_field")
call("tools.export", "weights/model_small.pt")
call("tools.page.build")
call("tools.study", "--model", "model_small", "--recipe", "own", "--seeds", "0", "--holdout", "9")
call("pytest", "-k", "model_small", "tests/test_models.py")
"""
# What would take time, and shows nothing more.
LEFT_OUT = shutil.ignore_patterns(".*", "data", "runs", "model[12456].*", "runs.csv", "epochs.csv")


def test_every_script_takes_a_new_model_and_a_new_recipe(
    small_data: Path, mnist: Digits, tmp_path: Path
) -> None:
    """And so do the tests of every model."""
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=LEFT_OUT)
    shutil.copytree(small_data, clone / "data")
    (clone / "model_small.py").write_text(NETWORK)
    with (clone / "recipes.py").open("a") as recipes:
        recipes.write('RECIPES["own"] = replace(FAST, name="own", epochs=2, batch_size=64)\n')
    Image.fromarray(255 - mnist["test"][0][0, 0].numpy()).save(clone / "digit.png")
    command = [sys.executable, "-c", CALLS]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=600)
    assert done.stdout.count(": 0>") == CALLS.count("\ncall("), done.stdout + done.stderr
    training, _, rest = done.stdout.partition("<train --model: 0>")
    assert "|     2 |" in training and "yes  376 parameters" in training
    assert "model_small, mean of nine views: test loss" in rest
    assert [*(clone / "runs/model_small-strong+epochs=2-seed42").glob("model_small-*.png")]
    assert "Model_small: 376 parameters" in (clone / "RF.md").read_text()
    assert (clone / "weights" / "model_small.onnx").exists()
    assert "model_small,376,own,0,9" in (clone / "results/runs.csv").read_text()
    assert "\n1 passed" in rest
