"""The documents: commands that exist, links that lead somewhere, accuracies on record."""

import importlib
import re

import pytest

from networks import ROOT, list_models
from tools import tables

PUBLISHED = {"99.50", "99.27", "99.44"}  # of the first three attempts, by their author
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CHANGELOG.md"]
DOCUMENTS += [f"results/{name}.md" for name in ("README", "epochs", "tuning")]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall("^    (.*-m pytest .*)$", README, flags=re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_commands_of_the_documents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """And those in the --help of the scripts; a document resumes no run that it has finished."""
    documents = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    scripts = [ROOT / "train.py", ROOT / "predict.py", *ROOT.glob("tools/**/*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in scripts)
    form = r"python (?:-m (tools(?:\.[a-z_]+)+)|(train|predict)\.py)([^\n`#|]*)"
    commands = re.findall(form, documents)
    assert len(commands) >= 12 and not any("--resume " in rest for *_, rest in commands)
    for tool, script, rest in {*commands, *re.findall(form, sources)}:
        with pytest.raises(SystemExit):
            importlib.import_module(tool or script).main(["--help"])
        known = capsys.readouterr().out
        for option in re.findall("--[a-z0-9-]+", rest):
            assert re.search(rf"{option}\b", known), (tool or script, option)


@pytest.mark.parametrize("name", ["CHANGELOG.md", *[f"{name}.py" for name in list_models()]])
def test_every_accuracy_is_on_record(name: str) -> None:
    """As mean, minimum or maximum at the last epoch of a network and recipe, over its seeds."""
    by_run = tables.read_epochs().query("holdout == 0").groupby(["model", "recipe", "seed"])
    by_network = by_run.last().groupby(["model", "recipe"])
    table = by_network[["acc", "train_acc", "one_view_acc"]].agg(["mean", "min", "max"])
    known = {f"{accuracy:.2f}" for accuracy in table.to_numpy().ravel()} | PUBLISHED
    text = (ROOT / name).read_text(encoding="utf-8")
    assert {*re.findall(r"(9\d\.\d\d) (?:%|to)", text)} <= known
    lowest = by_run["acc"].agg(lambda acc: acc.tail(5).min())
    counts = {(sum(x >= 99.4), len(x)) for _, x in lowest.groupby(["model", "recipe"])}
    stated = re.findall(r"(\d+) of (?:the )?(\d\d+) (?:seeds meet|keep)", text)
    assert {(int(met), int(seeds)) for met, seeds in stated} <= counts


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_that_are_there(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    rows = re.findall(r"^\| `([\w/]+(?:\.\w+|/))` ", text, flags=re.MULTILINE)
    for link in links + rows:
        assert (path.parent / link).exists(), link
    for where, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
        target = (path.parent / where if where else path).read_text(encoding="utf-8")
        titles = re.findall("^#+ (.*)$", target, flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert anchor in slugs, anchor
