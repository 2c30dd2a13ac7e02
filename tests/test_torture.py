"""A run that is killed and resumed is, in the end, the run that nothing has disturbed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import torture


def test_killed_run_equals_an_undisturbed_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert torture.main(["--kills", "3", "--seed", "1"]) == 0
    out, err = capfd.readouterr()
    # A run may end before its turn comes.
    assert re.search("killed [1-3] times?", out) and "identical: yes" in out
    assert err == ""


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("weights.pt", lambda content: content[:-1] + b"?", "weights.pt"),
        ("metrics.csv", lambda content: content.replace(b"0.3", b"0.4"), "metrics.csv from row 2"),
        ("metrics.csv", lambda content: content + b"3,0.2,7\n", "metrics.csv from row 3"),
        ("metrics.csv", lambda content: content[: content.index(b"2,")], "metrics.csv from row 2"),
        ("checkpoint.pt.tmp", lambda content: content, "files"),
    ],
    ids=["weights", "figure", "row twice", "row missing", "file left over"],
)
def test_every_difference_is_found(
    name: str, change: Callable[[bytes], bytes], expected: str, tmp_path: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    (undisturbed / "weights.pt").write_bytes(b"weights")
    (undisturbed / "metrics.csv").write_bytes(b"epoch,lr,seconds\n1,0.1,5\n2,0.3,6\n")
    shutil.copytree(undisturbed, killed)
    seconds = (killed / "metrics.csv").read_bytes().replace(b",6", b",7")
    (killed / "metrics.csv").write_bytes(seconds)
    assert torture.differences(undisturbed, killed) == []
    path = killed / name
    path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    (difference,) = torture.differences(undisturbed, killed)
    assert difference.startswith(expected)
