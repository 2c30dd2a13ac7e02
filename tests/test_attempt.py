"""One file is an attempt: a stranger's network, in a copy of the repository, works everywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import networks
import train
from cli import UsageError
from networks import ROOT

# Nothing in it is as in the attempts that are here: a plain forward, a block of its own, a mean.
NETWORK = '''"""An attempt of a stranger.

Target    To see whether it runs.
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
    call("train", "--model", "all", "--dry-run", "--epochs", "1", "--quiet")
    call("predict", "--model", "model_small", "digit.png")
    call("tools.report", run)
    call("tools.receptive_field")
    call("tools.export", "weights/model_small.pt", "--int8")
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


def test_one_file_is_an_attempt(clone: Path, mnist: dict) -> None:
    Image.fromarray(255 - mnist["test"][0][0, 0].numpy()).save(clone / "digit.png")
    (clone / "calls.py").write_text(CALLS)
    done = subprocess.run(
        [sys.executable, "calls.py"], cwd=clone, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.count(": 0>") == done.stdout.count("\n<") == 10, done.stdout + done.stderr
    parts = done.stdout.split("<train --model: 0>")
    assert "|     5 |" in parts[0] and "yes  376 parameters" in parts[0]
    assert "model_small, mean of nine views: test loss" in done.stdout
    assert all(
        f"{name}-strong+epochs=1-seed42: dry run" in parts[1] for name in ("model1", "model_small")
    )
    assert (
        len([*(clone / "runs/model_small-strong+epochs=5-seed42").glob("model_small-*.png")]) == 6
    )
    assert "Model_small: 376 parameters" in (clone / "RF.md").read_text()
    assert len([*(clone / "weights").glob("model_small*.onnx")]) == 2
    rows = [line for line in done.stdout.splitlines() if "model_small" in line and "|" in line]
    assert "own" in rows[-1] and "2" in rows[-1].split("|")[3]
    assert (clone / "results/runs.csv").read_text().count("model_small,376,own,") == 2


def test_the_tests_of_every_attempt_take_it_too(clone: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "model_small", "tests/test_models.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(". "), done.stdout  # a single one


BAD = {
    "no Python": ("class Model_bad", "cannot be imported"),
    "no class": ("class Model: pass", "must have a class Model_bad"),
    "arguments": (NETWORK.replace("width=6", "width"), "built without arguments"),
    "colours": (NETWORK.replace("Conv2d(1, width", "Conv2d(3, width"), "(N, 1, 28, 28)"),
    "shape": (NETWORK.replace("Linear(2, 10", "Linear(2, 11"), "(2, 11)"),
    "no tensor": (NETWORK.replace("return self.second", "return 1, self.second"), "(N, 10)"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_file_that_is_no_attempt_says_how_to_mend_it(
    fault, tmp_path, monkeypatch, capsys
) -> None:
    text, named = BAD[fault]
    (tmp_path / "model_bad.py").write_text(text.replace("Model_small", "Model_bad"))
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model_bad", raising=False)
    with pytest.raises(UsageError, match=r"^model_bad\.py .*\)$") as error:
        networks.get_model("model_bad")
    assert named in str(error.value) and "\n" not in str(error.value)
    assert train.main(["--model", "model_bad", "--dry-run"]) == 2
    assert capsys.readouterr().err == f"train.py: error: {error.value}\n"


def test_names_are_found_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model10.py", "model2.py", "model_small.py", "other.py", "model3.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    assert networks.list_models() == ["model2", "model10", "model_small"]
