"""A new file modelX.py is all that an attempt takes: shown in a copy of the repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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
# Each is called as `python SCRIPT ...` or `python -m tools.NAME ...` calls it, in one process.
CALLS = """
import importlib, pathlib, sys

def call(name, *words):
    sys.argv = [name, *words]
    code = importlib.import_module(name).main([*words])
    print(f"<{name} {words[0] if words else ''}: {code}>", flush=True)

if __name__ == "__main__":
    run = "runs/model_small-strong+epochs=5-seed42"
    options = ["--device", "cpu", "--threads", "1", "--epochs", "5"]
    call("train", "--model", "model_small", *options)
    pathlib.Path(run, "weights.pt").rename("weights/model_small.pt")
    call("train", "--resume", run)
    call("train", "--evaluate", run, "--tta")
    call("predict", "--model", "model_small", "digit.png")
    call("tools.report", run)
    call("tools.receptive_field")
    call("tools.export", "weights/model_small.pt")
    call("tools.page.build")
    call("tools.study", "--model", "model_small", "--recipe", "own", "--seeds", "0,1")
"""


@pytest.fixture(scope="module")
def clone(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with few images, one more network and one more recipe."""
    copy = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in listed.splitlines() or map(str, ROOT.rglob("*")):
        if not name.startswith("data/") and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    shutil.copytree(small_data, copy / "data")
    (copy / "model_small.py").write_text(NETWORK)
    with (copy / "recipes.py").open("a") as recipes:
        recipes.write('RECIPES["own"] = replace(FAST, name="own", epochs=2, batch_size=64)\n')
    return copy


def test_every_script_takes_a_new_model_and_a_new_recipe(clone: Path, mnist: Digits) -> None:
    Image.fromarray(255 - mnist["test"][0][0, 0].numpy()).save(clone / "digit.png")
    (clone / "calls.py").write_text(CALLS)
    command = [sys.executable, "calls.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=600)
    assert done.stdout.count(": 0>") == CALLS.count("    call("), done.stdout + done.stderr
    training, _, rest = done.stdout.partition("<train --model: 0>")
    assert "|     5 |" in training and "yes  376 parameters" in training
    assert "model_small, mean of nine views: test loss" in rest
    assert [*(clone / "runs/model_small-strong+epochs=5-seed42").glob("model_small-*.png")]
    assert "Model_small: 376 parameters" in (clone / "RF.md").read_text()
    assert (clone / "weights" / "model_small.onnx").exists()
    assert (clone / "results/runs.csv").read_text().count("model_small,376,own,") == 2


def test_the_tests_of_every_attempt_take_it_too(clone: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "model_small", "tests/test_models.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(". "), done.stdout  # a single one
