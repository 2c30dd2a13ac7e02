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

from tools import receptive_field, records, seed_study

ROOT = Path(__file__).parent.parent
PATH = ROOT / "mnist_sub_8k.ipynb"
MAX_SECONDS = 600  # a cell: it is there to end what hangs
FEW = """
load_all = train.load_mnist
train.load_mnist = lambda *where, **part: tuple(x[:1000] for x in load_all(*where, **part))
"""


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def test_it_runs_from_top_to_bottom(notebook: nbformat.NotebookNode) -> None:
    """In the repository, as Jupyter does; NotebookClient raises the error of a cell that fails.

    It trains on few images: a whole epoch has a test of its own.
    """
    copy = nbformat.from_dict(notebook)
    imports = next(at for at, cell in enumerate(copy.cells) if "\nimport train\n" in cell.source)
    copy.cells.insert(imports + 1, nbformat.v4.new_code_cell(FEW))
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(copy, timeout=MAX_SECONDS, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    table = next(cell for cell in copy.cells if "train.run(" in cell.source)
    assert "| Epoch |" in "".join(output.get("text", "") for output in table.outputs)


def test_it_is_committed_with_its_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell for cell in cells if cell.outputs]
    assert len(shown) >= len(cells) - 2  # the first two cells fetch and import
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert str(ROOT) not in PATH.read_text()


def test_it_imports_the_code_and_copies_none(notebook: nbformat.NotebookNode) -> None:
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert not re.search(r"^\s*(def|class) ", "\n".join(sources), flags=re.MULTILINE)
    assert re.search("^import train$", "\n".join(sources), flags=re.MULTILINE)


def test_its_tables_are_those_of_the_records(notebook: nbformat.NotebookNode) -> None:
    shown = "\n".join(
        str(output.get("data", {}).get("text/markdown", ""))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    found = records.read_records()
    for table in (
        seed_study.attempts_table(found, "strong"),
        seed_study.statistics_table(found, records.read_views()),
        receptive_field.table("model3"),
    ):
        assert table in shown


def first_cell(notebook: nbformat.NotebookNode) -> str:
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def run_first_cell(notebook: nbformat.NotebookNode, folder: Path) -> subprocess.CompletedProcess:
    """Run it in `folder`, with a pip that installs nothing and says what it was asked for."""
    (folder / "pip.py").write_text("import sys; print('pip', *sys.argv[1:])")
    code = first_cell(notebook) + "\nimport train; print(Path(train.__file__).parent.name)"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_its_first_cell_works_beside_a_zip_of_the_repository(
    notebook: nbformat.NotebookNode, tmp_path: Path
) -> None:
    """As in Colab after an upload: GitHub's zips hold a folder with the name of the branch."""
    with zipfile.ZipFile(tmp_path / "upload.zip", "w") as archive:
        archive.writestr("some-name-main/train.py", "")
        archive.writestr("some-name-main/requirements.txt", "")
    done = run_first_cell(notebook, tmp_path)
    assert done.stdout.split("\n")[:2] == ["pip install -q -r requirements.txt", "some-name-main"]


def test_its_first_cell_does_nothing_in_a_clone(
    notebook: nbformat.NotebookNode, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("")
    assert run_first_cell(notebook, tmp_path).stdout == f"{tmp_path.name}\n"


def test_it_names_no_place_that_may_not_be_there(
    notebook: nbformat.NotebookNode, tmp_path: Path
) -> None:
    texts = [(ROOT / "README.md").read_text(), *(cell.source for cell in notebook.cells)]
    assert not any("OWNER" in text or "colab.research" in text for text in texts)
    assert not re.search(r"https?://|git clone|\bgit\b", first_cell(notebook))
    assert "put this notebook into a clone" in run_first_cell(notebook, tmp_path).stderr
