"""The checklist: networks in the styles of other repositories, and mistakes of other checks."""

import re
import shutil
from pathlib import Path
from textwrap import indent

import pytest

import networks
from networks import ROOT
from tools import check, new

FILE = '''"""Target, Result and Analysis."""
import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs, outputs, size=3):
    return nn.Sequential(nn.Conv2d(inputs, outputs, size), nn.BatchNorm2d(outputs), nn.ReLU())


class {}(nn.Module):
    def __init__(self):
        super().__init__()
{}

    def forward(self, x):
{}
'''
BODY = "self.body = nn.Sequential(conv(1, 8), nn.MaxPool2d(2), conv(8, 8), nn.MaxPool2d(4)"  # 8x2x2
GAP = "global average pooling (of 8 x 2 x 2) and fully connected layer (linear 8 to 10)"
NO_HEAD = "global average pooling or a fully connected layer: none"
STYLES = {  # a name: what it builds, what forward does, and what the list has to say
    "sequential": (
        "self.body = nn.Sequential(conv(1, 8, 8), nn.MaxPool2d(3), nn.Dropout2d(0.1),"
        " nn.AvgPool2d(7), nn.Conv2d(8, 10, 1), nn.Flatten())",
        "return self.body(x)",
        "BatchNorm: 1|dropout: 1, at rate 0.1|global average pooling (of 8 x 7 x 7) and "
        "fully connected layer (convolution 8 to 10)|"
        "28 px at the end; before the pools 8 px, 10 px",
    ),
    "functional": (
        "self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8); self.fc = nn.Linear(8, 10)",
        "x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)\n"
        "x = F.dropout(x, 0.25, training=self.training)\n"
        "return self.fc(x.mean(dim=(2, 3)))",
        "BatchNorm: 1|dropout: 1, at rate 0.25|global average pooling (of 8 x 13 x 13) and "
        "fully connected layer (linear 8 to 10)",
    ),
    "convolution": (
        f"{BODY}, conv(8, 8, 2), nn.Dropout(0.1)); self.last = nn.Conv2d(8, 10, 1)",
        "return F.log_softmax(self.last(self.body(x)).view(-1, 10), dim=1)",
        "fully connected layer (convolution 8 to 8, convolution 8 to 10)|"
        "warning: log-softmax at the end",
    ),
    "flattened": (
        f"{BODY}); self.fc = nn.Linear(32, 10)",
        "x = self.body(x).reshape(len(x), -1)\nif self.training:\n    x = F.dropout(x, 0.2)\n"
        "return self.fc(x)",
        "dropout: 1, at rate 0.2|- [x] fully connected layer (linear 32 to 10)",
    ),
    "missing": (
        "self.body = nn.Sequential(nn.Conv2d(1, 10, 3), nn.Dropout(0.0), nn.MaxPool2d(26))",
        "return self.body(x)[:, :, 0, 0]",
        f"[ ] BatchNorm: none|[ ] dropout: none|[ ] {NO_HEAD}",
    ),
    "uncovered": (  # 6 x 6 of 7 x 7 positions
        "self.body = nn.Sequential(conv(1, 10, 8), nn.MaxPool2d(3), nn.AvgPool2d(6), nn.Flatten())",
        "return self.body(x)",
        f"[ ] {NO_HEAD}|[ ] dropout: none",
    ),
    "everywhere": (  # dropout without self.training; GAP of a view
        f"{BODY}); self.last = nn.Conv2d(8, 10, 1)",
        "x = F.dropout2d(self.body(x), 0.1)\nreturn self.last(x).flatten(2).mean(-1)",
        "[x] global average pooling (of 10 x 4)|dropout: 1, at rate 0.1|"
        "warning: dropout in evaluation too",
    ),
    "frozen": (
        f"{BODY}, nn.AdaptiveAvgPool2d(1)); self.fc = nn.Linear(8, 10)\n"
        "self.fc.weight.requires_grad = False; self.again = self.fc",
        "return F.softmax(self.again(torch.flatten(self.body(x), 1)), dim=-1)",
        f"- [x] 786 parameters, each counted once (fewer than 20,000); 706 are trainable|{GAP}|"
        "warning: softmax at the end",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose networks are found."""
    monkeypatch.syspath_prepend(tmp_path)
    for module in (networks, new):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def write(folder: Path, name: str, build: str, forward: str) -> None:
    parts = (indent(part, " " * 8) for part in (build, forward))
    (folder / f"model_{name}.py").write_text(FILE.format(f"Model_{name}", *parts))


@pytest.mark.parametrize("style", STYLES)
def test_parts_are_found_in_what_a_network_computes(here: Path, style: str, capsys) -> None:
    build, forward, expected = STYLES[style]
    write(here, style, build, forward)
    code = check.main([f"model_{style}", "--challenge", "20k"])
    out, err = capsys.readouterr()
    assert [words for words in expected.split("|") if words not in out] == [], out
    assert ("pooling (" in out) == ("pooling (" in expected), out
    assert code == ("[ ]" in out) == bool(err) and "docstring: complete" in out
    assert ("warning" in out) == ("warning" in expected)


def test_multiply_adds_and_fields_by_hand(capsys) -> None:
    assert check.main(["model3"]) == 0
    out = capsys.readouterr().out
    work = 9 * (7 * 26**2 + 49 * 24**2 + 70 * 22**2 + 100 * 81 + 120 * 49 + (192 + 288) * 9) + 180
    assert f"- {work:,} multiply-adds for an image" in out
    assert "- receptive field: 42 px at the end; before the pools 7 px, 16 px, 34 px" in out
    assert "[x] 7,784 parameters, each counted once (at most 8,000)" in out
    assert check.main(["model3", "model2"]) == 1
    err = capsys.readouterr().err
    assert "requires: model2 (9,382 parameters, each counted once (at most 8,000))" in err


def test_a_mistake_in_the_file_keeps_its_place(here: Path, capsys) -> None:
    forward = "return missing if self.training else self.body(x).flatten(1)[:, :10]"
    write(here, "wrong", f"{BODY})", forward)
    assert check.main(["model_wrong"]) == 2
    err = capsys.readouterr().err
    assert re.search(r'model_wrong\.py", line \d+, in forward', err) and "NameError above" in err


def test_a_new_network_meets_the_challenge_and_is_not_overwritten(here: Path, capsys) -> None:
    shutil.copy(ROOT / "model3.py", here)
    assert new.main(["model7"]) == check.main(["model7", "--challenge", "20k"]) == 0
    content = (here / "model7.py").read_bytes()
    assert content.count(b"Target") == 1 and b"class Model_7(" in content
    assert "docstring: complete" in capsys.readouterr().out
    for name, reason in (("model7", "model7.py exists"), ("net", "net: name it model7")):
        assert new.main([name]) == 2
        assert reason in capsys.readouterr().err
    assert (here / "model7.py").read_bytes() == content
