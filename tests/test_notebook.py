"""The notebook: committed with its outputs, and still working from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
PATH = ROOT / "mnist_sub_8k.ipynb"
MAX_SECONDS = 120


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def test_it_runs_from_top_to_bottom(notebook: nbformat.NotebookNode) -> None:
    """In the repository, as Jupyter does; NotebookClient raises the error of a cell that fails."""
    copy = nbformat.from_dict(notebook)
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


def test_its_badge_and_its_first_cell_name_the_same_repository(
    notebook: nbformat.NotebookNode,
) -> None:
    (owned,) = re.findall(
        r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/mnist_sub_8k\.ipynb",
        notebook.cells[0].source,
    )
    assert f"https://github.com/{owned}" in notebook.cells[1].source
    assert owned in (ROOT / "README.md").read_text()
