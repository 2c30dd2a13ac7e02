"""What the documents say: commands that exist, figures that stand in the records."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import train
from command_line import train_parser
from mnist import Loader
from run_folder import MODELS, load_weights
from tools import ablation, benchmark, frontier
from tools.records import (
    RESULTS,
    accuracies,
    interval,
    markdown_table,
    meets,
    read_records,
    share,
    wilson_interval,
    with_tables,
)
from tools.seed_study import epochs_document, readme_tables, statistics_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_tables_are_those_of_the_records() -> None:
    timings = benchmark.read(benchmark.FOLDER)
    tables = readme_tables(read_records()) | {
        "ablation": ablation.table(read_records(ablation.ABLATION)),
        "benchmark": benchmark.summary(timings),
        "frontier": frontier.words(read_records(frontier.FRONTIER) | read_records()),
    }
    assert with_tables(README, tables) == README
    assert (RESULTS / "epochs.md").read_text() == epochs_document(read_records())
    assert (benchmark.FOLDER / "README.md").read_text() == benchmark.document(timings)


def test_records_come_from_clean_commits_and_from_the_code_of_today() -> None:
    """Who changes what decides a run makes its records anew, or they would be of other code."""
    today = {name: train.training_code(name) for name in MODELS}
    paths = sorted(RESULTS.glob("*/*-seed*.json"))
    assert len(paths) > 150
    for path in paths:
        config = json.loads(path.read_text())
        assert re.fullmatch("[0-9a-f]{7,}", config["commit"]), path
        assert config["code"] == today[config["model"].partition("-")[0]], path


def test_changelog_quotes_what_is_on_record() -> None:
    text = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    records = read_records()
    attempts = [(name, "classic") for name in ("model1", "model2", "model3")]
    for name in [*attempts, ("model4", "strong"), ("model4", "fast")]:
        last = accuracies(records[name])[:, -1]
        spread = f"{last.min():.2f} to {last.max():.2f} %"
        assert f"{last.mean():.2f} % on average over {len(last)} seeds, {spread}" in text
    for name in [("model3", "classic"), ("model3", "strong"), ("model4", "strong")]:
        met = meets(accuracies(records[name]))
        assert f"{met.sum()} of {len(met)}" in text
    for count, accuracy in frontier.networks(read_records(frontier.FRONTIER)).values():
        met = meets(accuracy)
        if met.any():
            assert re.search(rf"{count:,}(?: parameters)? {met.sum()} of {len(met)}", text)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall("^    (.*-m pytest .*)$", README, flags=re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_readme_commands_are_accepted() -> None:
    commands = re.findall(r"python train\.py ?([^\n`#]*)", README)
    assert len(commands) >= 5
    parser = train_parser("", [*MODELS], [*train.RECIPES], train.DATA_DIR)
    for command in commands:
        if command != "--help":
            parser.parse_args(command.split())


def test_readme_options_of_other_scripts_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"python (?:-m (tools\.\w+)|(predict)\.py)([^\n`#]*)", README)
    assert len(commands) >= 6
    for tool, script, rest in commands:
        with pytest.raises(SystemExit):
            importlib.import_module(tool or script).main(["--help"])
        known = capsys.readouterr().out
        for option in re.findall("--[a-z0-9-]+", rest):
            assert re.search(rf"{option}\b", known), (tool or script, option)


def test_readme_names_files_that_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    rows = re.findall(r"^\| `([\w./]+)` ", README, flags=re.MULTILINE)
    assert len(rows) >= 10
    for name in links + rows:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", MODELS)
def test_docstring_quotes_the_means_on_record(name: str) -> None:
    """Every mean of the last epoch, by recipe, and beside them only train accuracies."""
    docstring = importlib.import_module(name).__doc__
    means, train_means, met = set(), set(), set()
    for (model_name, _), seeds in read_records().items():
        if model_name == name:
            accuracy = accuracies(seeds)
            last = [rows[-1]["train_acc"] for rows in seeds.values()]
            means.add(f"{accuracy[:, -1].mean():.2f} %")
            train_means.add(f"{np.mean(last):.2f} %")
            met.add((meets(accuracy).sum(), len(accuracy)))
    quoted = set(re.findall(r"\d\d\.\d\d %", docstring))
    assert means <= quoted <= means | train_means
    counts = {(int(k), int(n)) for k, n in re.findall(r"(\d+) of (?:the )?(\d\d)\b", docstring)}
    assert counts <= met


@pytest.mark.parametrize("name", MODELS)
def test_weights_have_the_accuracy_on_record(name: str, mnist: dict) -> None:
    """On all 10,000 test images: that of the last epoch of seed 42 under the default recipe."""
    _, model = load_weights(ROOT / "weights" / f"{name}.pt", name)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.02)
    loader = Loader(*mnist["test"], train.TEST_BATCH_SIZE)
    loss, accuracy = train.evaluate(model, loader, criterion)
    last = read_records()[name, "strong"][42][-1]
    assert loss == pytest.approx(last["test_loss"], abs=1e-5)
    # Another processor rounds otherwise: a digit between two guesses may fall to the other side.
    assert accuracy == pytest.approx(last["test_acc"], abs=0.011)


def test_statistics_by_hand() -> None:
    """Three made-up seeds of six epochs; t for two degrees of freedom is 4.303 (any table)."""
    last = [99.4, 99.5, 99.6]
    seeds = {
        seed: [{"test_acc": accuracy} for accuracy in (98.0, 99.4, 99.5, 99.5, third, value)]
        for seed, (third, value) in enumerate(zip((99.39, 99.5, 99.4), last))
    }
    views = {("model3", "classic"): [99.5, 99.6, 99.55]}
    table = statistics_table({("model3", "classic"): seeds}, views)
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells[2:8] == ["3", "**99.500 %**", "0.248", "0.100", "99.40 %", "99.60 %"]
    assert cells[8:] == ["2 of 3 (21-94 %)", "99.550 %"]
    some = statistics_table({("model3", "classic"): seeds}, {("model3", "classic"): [99.5, 99.6]})
    assert some.splitlines()[-1].endswith("| 2 of 3 (21-94 %) | - |")  # of other runs than the rest
    short = {seed: rows[-4:] for seed, rows in seeds.items()}
    table = statistics_table({("model3", "fast"): short}, {})
    assert table.splitlines()[-1].endswith("| 99.60 % | - | - |")
    assert interval(np.array(last)) == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    """Newcombe (1998), Two-sided confidence intervals for the single proportion, table I."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    met = np.arange(trials) < successes
    expected = f"{successes} of {trials} ({100 * low:.0f}-{100 * high:.0f} %)"
    assert share(met) == expected


def test_markdown_table() -> None:
    table = markdown_table(["a", "b"], [[1, 2]])
    assert table == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
