"""Networks by name, weights from files, the settings of a run, and who imports whom."""

import ast
import io
import json
import math
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fail_at

import networks
import run_folder
import train
from cli import UsageError
from networks import ROOT, get_model, load_model
from provenance import describe
from recipes import CLASSIC, Experiment, sizes_of

NETWORK = """
from torch import nn
from torch.nn import functional as F

class Model_own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3, stride=3)

    def forward(self, images):
        x = self.conv(images)
        return x.mean(dim=(2, 3))
"""


@pytest.fixture
def write_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes model_own.py, the only network that is found."""
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model_own", raising=False)
    return (tmp_path / "model_own.py").write_text


def test_names_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model10.py", "model2.py", "model_small.py", "other.py", "model3.txt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    assert networks.list_models() == ["model2", "model10", "model_small"]


BUFFER = 'self.register_buffer("ones", self.conv.weight[0].detach().expand(6, 1, 3, 3))'
UNFIT = {  # a change of NETWORK that is reported in one line, and what it says
    "class": (("Model_own", "Model_other"), "there is no class Model_own"),
    "arguments": (("self):", "self, width):"), "built with no arguments"),
    "shape": (("(1, 10", "(1, 11"), "must give logits of shape (2, 10), not (2, 11)"),
    "tuple": (("return x", "return x, x"), "not tuple"),
    "expanded": (("3)\n", f"3)\n        {BUFFER}\n"), "ones is an expanded tensor; register"),
}
RAISES = {  # that is reported as Python does, with the line at fault
    "syntax": (("return x", "return return x"), "return return x.mean(dim=(2, 3))"),
    "init": (("stride=3", "strides=3"), "self.conv = nn.Conv2d(1, 10, 3, strides=3)"),
    "forward": (("(images)\n", "(image)\n"), "x = self.conv(image)"),
}


@pytest.mark.parametrize("fault", [*UNFIT, *RAISES])
def test_error_in_a_model_file(fault: str, write_model: Any, capsys) -> None:
    change, named = (UNFIT | RAISES)[fault]
    write_model(NETWORK.replace(*change))
    assert train.main(["--model", "model_own", "--dry-run"]) == 2
    *trace, line = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: model_own.py")
    if fault in UNFIT:
        assert named in line and trace == []
    else:
        at_fault = [text.strip() for text in trace].index(named)
        assert 'model_own.py", line ' in trace[at_fault - 1]


ODD = """
import torch
from torch import nn

class Model_own(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(784), 0
        self.weight = nn.Parameter(torch.randn(784, 10, dtype=torch.complex64))

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, images):
        self.calls += self.training
        return (self.norm(images.flatten(1)).to(self.weight.dtype) @ self.weight).abs()
"""


def test_extra_state_complex_weights_and_batchnorm_of_vectors(
    write_model, small_mnist, tmp_path, monkeypatch, capsys
) -> None:
    """Trains without a batch of one image, resumes, and is evaluated by its own recipe."""
    write_model(ODD)
    command = "--model model_own --recipe classic --epochs 2 --batch-size 499 --device cpu"
    command += f" --set max_lr=0.001 --set label_smoothing=0.2 --out-dir {tmp_path / 'runs'}"
    with pytest.MonkeyPatch.context() as patch:
        fail_at(2, train, "evaluate", KeyboardInterrupt(), patch)
        assert train.main(command.split()) == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert train.main(["--resume", str(folder)]) == 0
    assert load_model(folder)[1].calls == 2
    out = capsys.readouterr().out
    assert "Total params: 1,568" in out  # by torchsummary, which sees layers only
    assert "9,408 parameters, each counted once; the table counts shared layers at each" in out
    loss = run_folder.read_metrics(folder)[-1]["loss"]
    for path, options in ((folder, []), (folder / "weights.pt", []), (folder, ["--recipe=tiny"])):
        assert train.main(["--evaluate", str(path), *options]) == 0
        assert (f"test loss {loss:.4f}," in capsys.readouterr().out) == (options == [])


# ---------------------------------------------------------------------------- weights


class Payload:
    """Makes a file in whoever unpickles it."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch was_run",)


def saved(value: object, **how: Any) -> bytes:
    """What torch.save makes of `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


MODEL = get_model("model3")
STATE = MODEL.state_dict()
FIRST, FILTERS = next(iter(STATE.items()))
WHOLE = saved(STATE)
BAD = {
    "half": (WHOLE[:20_000], "is damaged, or in the format from before torch 1.6"),
    "old": (saved(STATE, _use_new_zipfile_serialization=False), "from before torch 1.6"),
    "flipped bit": (WHOLE[:9000] + bytes([WHOLE[9000] ^ 1]) + WHOLE[9001:], "is damaged; nothing"),
    "model": (saved(MODEL), "such as a whole model; save its state_dict() instead"),
    "code": (saved({"weights": Payload()}), "holds a pickled object"),
    "number": (saved(1), "holds no state_dict(), but an object of type int"),
    "one more": (saved(STATE | {"more": FILTERS}), "these weights fit no model"),
    "shape": (saved(STATE | {FIRST: FILTERS[:, :, :2]}), "these weights fit no model"),
    "nan": (saved(STATE | {FIRST: FILTERS * math.nan}), "weights that are not finite"),
}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "model_state_dict", "state_dict"])
def test_weights_are_loaded_as_others_save_them(prefix: str, key: str, tmp_path: Path) -> None:
    """By DataParallel and torch.compile, and in checkpoints."""
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    (tmp_path / "some.pt").write_bytes(saved({"epoch": 3, key: state} if key else state))
    name, model = load_model(tmp_path / "some.pt")
    assert name == "model3" and all(map(torch.equal, model.state_dict().values(), STATE.values()))


@pytest.mark.parametrize("kind", BAD)
def test_file_without_weights_says_what_it_is(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = BAD[kind]
    Path("some.pt").write_bytes(content)
    with pytest.raises(UsageError, match=f"^some.pt.*{re.escape(said)}.*$"):
        load_model(Path("some.pt"))
    assert not Path("was_run").exists()


# ----------------------------------------------------------------- settings of a run

CONFIG = json.loads(json.dumps(asdict(Experiment("model3", CLASSIC, sizes={"width": 3}))))


def test_experiment_is_named_after_all_that_decides_it() -> None:
    experiment = Experiment("model3", CLASSIC, sizes={"width": 3})
    assert Experiment.from_config(CONFIG, Path("runs")) == experiment
    for texts, name in ((["width=34"], "model6-width34"), (["a=(4, 6)", "b=1"], "model6-a4,6-b1")):
        assert Experiment("model6", CLASSIC, sizes=sizes_of(texts)).network == name
    recipe = CLASSIC.changed(["max_lr=0.2", "epochs=15"])
    assert Experiment("model6", recipe, 1, 5).name == "model6-classic+max_lr=0.2-seed1-holdout5"
    with pytest.raises(UsageError, match="--size width: write it as"):
        sizes_of(["width"])


WRONG = [{"model": 5}, {"sizes": None}, {"seed": "4"}, {"seed": -1}, {"holdout": -5}, {"recipe": 1}]
RECIPES = [{"x": 1}, {"pct_start": 1.0}, {"name": "../x"}]


@pytest.mark.parametrize("change", [*WRONG, *({"recipe": CONFIG["recipe"] | x} for x in RECIPES)])
def test_config_that_no_run_has_written(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^runs: config\.json is damaged, or of another"):
        Experiment.from_config(CONFIG | change, Path("runs"))


@pytest.mark.parametrize("config", ["", [1], {"seed": 1}, CONFIG | {"model": "this"}])
def test_resume_and_evaluate_with_another_config(config: Any, tmp_path: Path, capsys) -> None:
    if isinstance(config, dict):
        config = describe(torch.device("cpu"), "this") | config
    (tmp_path / "config.json").write_text(json.dumps(config) if config else "{")
    assert train.main(["--resume", str(tmp_path)]) == 2
    (tmp_path / "weights.pt").write_bytes(WHOLE)
    assert train.main(["--evaluate", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 2 and out == ""
    assert err.count("config.json is damaged") + err.count("this: no such model") == 2


# ---------------------------------------------------------------------------- imports

# Of which other modules of this project each may know.
IMPORTS = dict.fromkeys(["cli", "challenges", "curves", "provenance", "cuda_graph", "ggt"], "")
IMPORTS |= dict.fromkeys(["files", "recipes", "device"], "cli")
IMPORTS |= dict.fromkeys(["mnist", "networks", "run_folder"], "cli files")
IMPORTS |= dict.fromkeys(networks.list_models(), "")
IMPORTS |= {"model6": "model5", "model_fast": "model4 model5"}  # made of their parts


def imports_of(name: str) -> set[str]:
    """The modules and packages that a file of this project imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def test_imports_run_one_way() -> None:
    own = {path.stem for path in ROOT.glob("*.py")} | {"tools", "tests"}
    for name, known in IMPORTS.items():
        assert imports_of(name) & own == {*known.split()}, name
    assert "torch" not in imports_of("recipes") | imports_of("cli")
