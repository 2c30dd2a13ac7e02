"""The notebook: committed with its outputs, and still working from top to bottom."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from networks import ROOT

NOTEBOOK = nbformat.read(ROOT / "mnist_sub_8k.ipynb", as_version=4)
CELLS = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
FEW = """
load_all = train.load_mnist
train.load_mnist = lambda *where, **part: tuple(x[:200] for x in load_all(*where, **part))
"""


def shown(cells: list[NotebookNode], kind: str) -> list[str]:
    """What the cells show of a kind: "text/markdown" for tables, "text" for what they print."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [output.get("data", output).get(kind) for output in outputs]
    return [text for text in found if text]


def test_it_runs_from_top_to_bottom_and_shows_the_tables_of_the_records() -> None:
    """As Jupyter does, in the repository, but for a short training on few images."""
    copy = nbformat.from_dict(NOTEBOOK)
    imports = next(at for at, cell in enumerate(copy.cells) if "\nimport train\n" in cell.source)
    copy.cells.insert(imports + 1, nbformat.v4.new_code_cell(FEW))
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    # It raises the error of a cell that fails; the limit ends a cell that hangs.
    NotebookClient(copy, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert "| Epoch |" in "".join(shown(copy.cells, "text"))
    tables = shown(CELLS, "text/markdown")
    assert len(tables) == 3 and shown(copy.cells, "text/markdown") == tables


def test_it_is_committed_with_its_outputs_and_copies_no_code() -> None:
    nbformat.validate(NOTEBOOK)
    assert all(cell.outputs for cell in CELLS[2:])  # the first two fetch and import
    assert [cell.execution_count for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert not any(output.output_type == "error" for cell in CELLS for output in cell.outputs)
    assert not re.search(r"/(work|root|home|tmp|Users)/", "".join(shown(CELLS, "text")))
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE) for cell in CELLS)


@pytest.mark.parametrize("place", ["zip", "clone", "nothing"])
def test_its_first_cell_finds_the_repository(place: str, tmp_path: Path) -> None:
    """In a clone, or, as in Colab, beside a zip: GitHub's hold a folder named after the branch."""
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "upload.zip", "w") as archive:
            archive.writestr("some-name-main/train.py", "")
            archive.writestr("some-name-main/requirements-dev.txt", "")
    if place == "clone":
        (tmp_path / "train.py").touch()
    (tmp_path / "pip.py").write_text("import sys; print('pip', *sys.argv[1:])")  # installs nothing
    code = CELLS[0].source + "\nimport train; print(Path(train.__file__).parent.name)"
    settings = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}, "text": True}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, **settings)
    pip = "pip install -q -r requirements-dev.txt"
    expected = {"zip": f"{pip}\nsome-name-main\n", "clone": f"{tmp_path.name}\n", "nothing": ""}
    assert done.stdout == expected[place]
    assert ("put this notebook into a clone" in done.stderr) == (place == "nothing")
