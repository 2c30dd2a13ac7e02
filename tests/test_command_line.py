"""The command line as a user calls it: help, dry runs, bad arguments, damaged files, resumption."""

import functools
import io
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Digits, take_few
from torch import Tensor, nn

import command_line
import run_folder
import train
from mnist import load_mnist
from run_folder import MODELS

PARSER = command_line.train_parser("", [*MODELS], [*train.RECIPES], train.DATA_DIR)
LONG = "x" * 300  # more than file systems take

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    small_mnist: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """Call `train.py` in an empty folder: exit code, standard output, standard error.

    Python's warnings are on standard error as well, as they would be without pytest.
    """
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        run_folder, "plot_curves", lambda *args: b""
    )  # it takes longer than the rest
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def call(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            try:
                code = train.main([str(argument) for argument in argv])
            except SystemExit as exit:
                code = exit.code
        out, err = capsys.readouterr()
        return code, out, err + "".join(f"{warning.message}\n" for warning in caught)

    return call


def stop_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come in the evaluation of the epoch with that number."""
    evaluate, calls = train.evaluate, []

    @functools.wraps(evaluate)  # so that the fingerprint is that of the code
    def interrupted(*args: Any) -> tuple[float, float]:
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", interrupted)


@pytest.fixture(scope="module")
def stopped_once(mnist: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three epochs that was stopped in the second one."""
    out_dir = tmp_path_factory.mktemp("runs")
    options = ["--epochs", "3", "--holdout", "100", "--device", "cpu", "--out-dir", str(out_dir)]
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()):
        take_few(mnist, patch)
        stop_in_epoch(2, patch)
        assert train.main([*options, "--quiet"]) == 130
    return out_dir / "model3-strong-seed42"


@pytest.fixture
def stopped(call: Call, stopped_once: Path) -> Path:
    """A copy of it, where train.py puts runs."""
    return shutil.copytree(stopped_once, Path("runs/model3-strong-seed42").resolve())


def content(folder: Path) -> dict[Path, bytes | None]:
    """All that is in `folder`: the bytes of files, and None for folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(outcome: tuple[int, str, str], named: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.endswith("\n") and err.count("\n") == 1 and named in err
    assert "Traceback" not in err


# ------------------------------------------------------------------------------ numbers

BOUNDS = {
    "--epochs": (1, 1000),
    "--batch-size": (2, 9999),
    "--seed": (0, 2**32 - 1),
    "--threads": (1, 1024),
    "--holdout": (0, 50_000),
}
NO_WHOLE_NUMBERS = [
    *("nan", "inf", "-1", "-0", "1.5", "1e3", "0x10", "1_000", "five", "", " 5", "5 ", "+5"),
    "٣",  # a digit to str.isdigit and int
    "³",  # a digit to str.isdigit only
    "9" * 5000,  # more digits than int takes
]


@pytest.mark.parametrize("text", [*NO_WHOLE_NUMBERS, "too small", "too large", "absent"])
@pytest.mark.parametrize("option", BOUNDS)
def test_numbers_are_bounded(option: str, text: str, call: Call, tmp_path: Path) -> None:
    low, high = BOUNDS[option]
    text = {"too small": str(low - 1), "too large": str(high + 1)}.get(text, text)
    outcome = call(option) if text == "absent" else call(option, text)
    assert_refused(outcome, option)
    assert text == "absent" or f"from {low} to {high}" in outcome[2]
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


@pytest.mark.parametrize("option", BOUNDS)
def test_bounds_themselves_are_accepted(option: str) -> None:
    for number in BOUNDS[option]:
        args = vars(PARSER.parse_args([option, str(number)]))
        assert args[option.lstrip("-").replace("-", "_")] == number


@pytest.mark.parametrize("epochs", [1, 5])
def test_few_steps_are_enough_for_the_schedule(epochs: int, call: Call) -> None:
    # OneCycleLR by itself divides by zero where a fifth of all steps is one step.
    assert call("--dry-run", "--epochs", epochs, "--quiet")[0] == 0


@pytest.mark.parametrize("holdout", [1, 200, 400])
def test_any_part_can_be_held_out(holdout: int, call: Call) -> None:
    code, out, _ = call("--dry-run", "--epochs", "1", "--holdout", holdout)
    assert code == 0 and "| Val Acc (%) |" in out


# -------------------------------------------------------------------- everything but numbers


@pytest.mark.parametrize(
    ("line", "named"),
    [
        # names
        ("--model model9", "--model"),
        ("--model Model_3", "--model"),
        ("--model ''", "--model"),
        ("--model", "--model"),
        ("--recipe adam", "--recipe"),
        ("--recipe ''", "--recipe"),
        ("--device tpu", "--device"),
        ("--device cuda:0", "--device"),
        ("--device cuda", "--device cuda"),
        ("--device mps", "--device mps"),
        # options that are none
        ("--lr 0.1", "--lr"),
        ("--epoch 3", "--epoch"),
        ("--dry-run=1", "--dry-run"),
        ("--quiet=yes", "--quiet"),
        ("model3", "model3"),
        ("-x", "-x"),
        # what excludes each other
        ("--dry-run --resume run", "--dry-run"),
        ("--dry-run --evaluate file", "--dry-run"),
        ("--resume run --evaluate file", "--resume"),
        ("--model all --resume run", "--model all"),
        ("--model all --evaluate file", "--model all"),
        ("--evaluate file --epochs 3", "--epochs"),
        ("--evaluate file --batch-size 3", "--batch-size"),
        ("--evaluate file --seed 3", "--seed"),
        ("--evaluate file --holdout 3", "--holdout"),
        ("--evaluate file --out-dir there", "--out-dir"),
        ("--resume run --out-dir there", "--out-dir"),
        ("--tta", "--tta"),
        ("--tta --dry-run", "--tta"),
        ("--tta --resume run", "--tta"),
        # folders for the runs
        ("--out-dir file", "--out-dir"),
        ("--out-dir file/below", "--out-dir"),
        ("--out-dir /dev/null/below", "--out-dir"),
        ("--out-dir /proc/below", "--out-dir"),
        ("--out-dir ''", "--out-dir"),
        (f"--out-dir {LONG}", "--out-dir"),
        # runs to go on with
        ("--resume nothing", "--resume"),
        ("--resume file", "--resume"),
        ("--resume file/below", "--resume"),
        ("--resume /dev/null", "--resume"),
        ("--resume ''", "--resume"),
        ("--resume .", "--resume"),
        (f"--resume {LONG}", "--resume"),
        # weights
        ("--evaluate nothing", "--evaluate"),
        ("--evaluate .", "--evaluate"),
        ("--evaluate file", "--evaluate"),
        ("--evaluate file/below", "--evaluate"),
        ("--evaluate /dev/null", "--evaluate"),
        ("--evaluate ''", "--evaluate"),
        (f"--evaluate {LONG}", "--evaluate"),
    ],
)
def test_bad_command_line(line: str, named: str, call: Call) -> None:
    Path("file").write_text("this is no run and holds no weights")
    before = content(Path())
    assert_refused(call(*shlex.split(line)), named)
    assert content(Path()) == before


@pytest.mark.parametrize(
    "data_dir", ["nothing", "nothing/below", "file", "file/below", "/dev/null/below", "", LONG]
)
def test_bad_data_folder(data_dir: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "load_mnist", load_mnist)
    Path("file").touch()
    assert_refused(call("--data-dir", data_dir), "--data-dir")
    assert content(Path()) == {Path("file"): b""}


# ------------------------------------------------------------------------- damaged files


def saved(value: object, **options: object) -> bytes:
    """What torch.save makes of `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def weights(change: Callable[[Tensor], Tensor] = lambda bias: bias) -> dict[str, Tensor]:
    """The state of a new model3, with the first weights changed."""
    state = MODELS["model3"]().state_dict()
    first = next(iter(state))
    return state | {first: change(state[first])}


def flipped(content: bytes, place: int) -> bytes:
    """`content` with one bit changed."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGED = {
    "empty": lambda: b"",
    "random": lambda: random.Random(0).randbytes(20_000),
    "text": lambda: b"weights\n",
    "half": lambda: saved(weights())[:20_000],
    "one byte short": lambda: saved(weights())[:-1],
    "one flipped bit": lambda: flipped(saved(weights()), 20_000),
    "a number": lambda: saved(1),
    "a tensor": lambda: saved(torch.zeros(10)),
    "a list": lambda: saved([*weights().values()]),
    "a whole module": lambda: saved(MODELS["model3"]()),
    "no tensors": lambda: saved(dict.fromkeys(weights(), 1.0)),
    "nothing in it": lambda: saved({}),
    "another network": lambda: saved(nn.Linear(784, 10).state_dict()),
    "one entry more": lambda: saved(weights() | {"more": torch.zeros(1)}),
    "one entry less": lambda: saved(dict([*weights().items()][1:])),
    "other shape": lambda: saved(weights(lambda first: first[:, :, :2])),
    "nan": lambda: saved(weights(lambda first: first * math.nan)),
    "infinite": lambda: saved(weights(lambda first: first / 0)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_weights_that_are_no_weights(damage: str, call: Call) -> None:
    Path("weights.pt").write_bytes(DAMAGED[damage]())
    assert_refused(call("--evaluate", "weights.pt"), "--evaluate weights.pt")


@pytest.mark.parametrize("name", MODELS)
def test_weights_tell_of_which_model_they_are(name: str, call: Call) -> None:
    Path("weights.pt").write_bytes(saved(MODELS[name]().state_dict()))
    for other in MODELS:
        outcome = call("--evaluate", "weights.pt", "--model", other)
        if other == name:
            assert outcome[0] == 0 and outcome[1].startswith(f"{name}: test loss")
        else:
            assert_refused(outcome, f"{name}, not of {other}")


class Payload:
    """Runs a command in whoever reads its pickle."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch was_run",)


@pytest.mark.parametrize("damage", [*DAMAGED, "pickle"])
def test_checkpoint_that_is_none(damage: str, stopped: Path, call: Call) -> None:
    hostile = pickle.dumps({"model": Payload()}, protocol=2)
    (stopped / "checkpoint.pt").write_bytes(hostile if damage == "pickle" else DAMAGED[damage]())
    before = content(stopped)
    assert_refused(call("--resume", stopped, "--quiet"), str(stopped / "checkpoint.pt"))
    assert content(stopped) == before and not Path("was_run").exists()


def without_schedule(state: dict) -> None:
    state["scheduler"] = {}


def with_a_short_momentum(state: dict) -> None:
    for values in state["optimizer"]["state"].values():
        values["momentum_buffer"] = torch.zeros(3)


def with_a_nameless_epoch(state: dict) -> None:
    state["records"] = [{}]


def with_an_epoch_more(state: dict) -> None:
    state["records"].append({**state["records"][0], "epoch": 2})


def with_no_accuracy(state: dict) -> None:
    state["records"][0]["val_acc"] = None


@pytest.mark.parametrize(
    "damage",
    [
        *[without_schedule, with_a_short_momentum, with_a_nameless_epoch],
        *[with_an_epoch_more, with_no_accuracy],
    ],
)
def test_checkpoint_that_does_not_fit_the_run(
    damage: Callable[[dict], None], stopped: Path, call: Call
) -> None:
    """torch takes all of these, and reads beyond a momentum that is too short."""
    path = stopped / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    damage(state)
    path.write_bytes(saved(state))
    before = content(stopped)
    assert_refused(call("--resume", stopped, "--quiet"), str(path))
    assert content(stopped) == before


@pytest.mark.parametrize(("key", "value"), [("epochs", 4), ("epochs", 1), ("batch_size", 64)])
def test_a_run_cannot_be_made_longer_in_its_config(
    key: str, value: int, stopped: Path, call: Call
) -> None:
    """Its learning rate follows a schedule of as many steps as it was begun with."""
    config = json.loads((stopped / "config.json").read_text())
    config["recipe"][key] = value
    (stopped / "config.json").write_text(json.dumps(config))
    assert_refused(call("--resume", stopped, "--quiet"), "is not of this run")


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
def test_code_in_weights_is_not_run(form: str, call: Call) -> None:
    hostile = weights() | {"more": Payload()}
    content = {
        "pickle": lambda: pickle.dumps(hostile, protocol=2),
        "torch": lambda: saved(hostile),
        "old torch": lambda: saved(hostile, _use_new_zipfile_serialization=False),
    }[form]()
    Path("weights.pt").write_bytes(content)
    assert_refused(call("--evaluate", "weights.pt"), "--evaluate weights.pt")
    assert not Path("was_run").exists()
    # The file is as dangerous as it is meant to be.
    pickle.loads(content) if form == "pickle" else torch.load("weights.pt", weights_only=False)
    assert Path("was_run").exists()


# -------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("option", "other", "same"),
    [
        ("--model", "model1", "model3"),
        ("--epochs", "4", "3"),
        ("--batch-size", "64", str(train.RECIPES["strong"].batch_size)),
        ("--seed", "7", "42"),
        ("--holdout", "0", "100"),
    ],
)
def test_resume_with_another_setting(
    option: str, other: str, same: str, stopped: Path, call: Call
) -> None:
    before = content(stopped)
    outcome = call("--resume", stopped, option, other)
    assert_refused(outcome, f"{option} {other}")
    assert outcome[2].endswith(f" has {same}\n")
    assert content(stopped) == before
    assert call("--resume", stopped, option, same)[0] == 0


def test_resume_with_another_recipe(stopped: Path, call: Call) -> None:
    config = json.loads((stopped / "config.json").read_text())
    config["recipe"]["name"] = "former"
    (stopped / "config.json").write_text(json.dumps(config))
    outcome = call("--resume", stopped, "--recipe", "strong")
    assert_refused(outcome, "--recipe strong")
    assert outcome[2].endswith(" has former\n")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-2],
        lambda text: "[]",
        lambda text: "\udcff",
        *(lambda text, key=key: text.replace(f'"{key}"', '"other"') for key in ("model", "seed")),
    ],
    ids=["empty", "truncated", "list", "bytes", "no model", "no seed"],
)
def test_resume_with_a_damaged_config(
    damage: Callable[[str], str], stopped: Path, call: Call
) -> None:
    config = stopped / "config.json"
    config.write_text(damage(config.read_text()), errors="surrogateescape")
    assert_refused(call("--resume", stopped), f"--resume {stopped}: its config.json is damaged")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("epochs", 0), ("epochs", 2.5), ("batch_size", 0), ("max_lr", "x"), ("max_lr", -0.1)],
        *[("interpolation", "nope"), ("seed", -1), ("holdout", "100"), ("threads", 0)],
        *[("seed", 2**70), ("holdout", 60_000), ("batch_size", 10**30), ("max_lr", 10**400)],
        *[("momentum", 0), ("pct_start", 2), ("label_smoothing", 2), ("ema_decay", 1.5)],
        *[("div_factor", 0), ("final_div_factor", 0), ("weight_decay", math.nan)],
    ],
)
def test_resume_with_a_value_that_no_run_has(
    key: str, value: object, stopped: Path, call: Call
) -> None:
    config = json.loads((stopped / "config.json").read_text())
    (config["recipe"] if key in config["recipe"] else config)[key] = value
    (stopped / "config.json").write_text(json.dumps(config))
    before = content(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: its config.json is damaged")
    assert content(stopped) == before


@pytest.mark.parametrize(("old", "new"), [("max_lr", "maximum"), ("model3", "model9")])
def test_resume_of_a_run_of_another_version(old: str, new: str, stopped: Path, call: Call) -> None:
    """Nothing of it is damaged: the line must not say so."""
    config = stopped / "config.json"
    config.write_text(config.read_text().replace(f'"{old}"', f'"{new}"'))
    before = content(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: a run of another version")
    assert content(stopped) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("code", "0123456789ab"), ("torch", "1.0"), ("threads", 99_999), ("device_name", "another")],
)
def test_resume_on_another_machine_warns(
    key: str, value: object, stopped: Path, call: Call
) -> None:
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {key: value}))
    code, _, err = call("--resume", stopped, "--quiet")
    assert code == 0 and err.count("\n") == 1
    assert err.startswith(f"warning: {key} was {value} and is {config[key]} now;")
    assert "the result may differ" in err


def test_resume_takes_the_threads_that_the_run_had(stopped: Path, call: Call) -> None:
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {"threads": 1}))
    torch.set_num_threads(2)
    code, _, err = call("--resume", stopped, "--quiet")
    assert (code, err, torch.get_num_threads()) == (0, "", 1)


def test_finished_run_is_not_resumed(stopped: Path, call: Call) -> None:
    code, out, err = call("--resume", stopped)
    assert (code, err) == (0, "") and "at the last epoch" in out
    before = content(stopped)
    assert_refused(call("--resume", stopped), f"--resume {stopped}: this run is finished")
    assert content(stopped) == before


def test_resume_finds_the_data_that_the_run_had(
    stopped: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def load(data_dir: Path, train: bool) -> tuple[Tensor, Tensor]:
        used.append(Path(data_dir))
        raise command_line.UsageError("seen enough")

    monkeypatch.setattr(train, "load_mnist", load)
    call("--data-dir", "elsewhere")
    config = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {"data_dir": "elsewhere"}))
    Path("elsewhere").mkdir()
    call("--resume", stopped)
    call("--resume", stopped, "--data-dir", "moved")
    assert used == [Path("elsewhere"), Path("elsewhere"), Path("moved")]
    Path("elsewhere").rmdir()  # as when the clone was moved: its own data are the same
    for gone in ("elsewhere", LONG):
        (stopped / "config.json").write_text(json.dumps(config | {"data_dir": gone}))
        call("--resume", stopped)
    assert used[3:] == [train.DATA_DIR] * 2


# ------------------------------------------------------------------------- help, dry runs


def test_help_is_worth_reading(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for option in (
        *("model", "recipe", "epochs", "batch-size", "seed", "device", "threads", "data-dir"),
        *("out-dir", "holdout", "resume", "evaluate", "tta", "dry-run", "quiet", "help"),
    ):
        assert re.search(rf"^ .*--{option}\b.*\n? +\S", out, re.MULTILINE), option
    assert all(action.help for action in PARSER._actions)
    for default in (
        "model3",
        "strong",
        "the recipe's",
        "42",
        "auto",
        "data",
        "runs",
    ):
        assert re.search(rf"default: {default}\b", out), default
    examples = re.findall(r"^ +python train\.py(.*?)(?:   .*)?$", out, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        PARSER.parse_args(example.split())


@pytest.mark.parametrize("options", ["", "--model all --holdout 100", "--quiet --out-dir there"])
def test_dry_run_leaves_nothing_behind(
    options: str, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = call("--dry-run", "--epochs", "2", *options.split())
    assert (code, err) == (0, "") and "NO   0 of the last 5 epochs" in out
    assert content(tmp_path) == {tmp_path / "here": None}


def test_dry_run_that_is_stopped_leaves_nothing_behind(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stop_in_epoch(2, monkeypatch)
    code, _, err = call("--dry-run", "--epochs", "2")
    assert code == 130 and "--resume" not in err  # there is nothing to go on with
    assert content(tmp_path) == {tmp_path / "here": None}


def test_commands_to_copy_call_the_python_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert command_line.as_typed("train.py", "a b") == ".venv/bin/python train.py 'a b'"
    monkeypatch.setattr(sys, "executable", "/elsewhere/python3")
    assert command_line.as_typed("-m", Path("a")) == "/elsewhere/python3 -m a"
    script = tmp_path / "clone" / "train.py"
    assert command_line.as_typed(script) == "/elsewhere/python3 clone/train.py"
    script.parent.mkdir()
    monkeypatch.chdir(script.parent)
    assert command_line.as_typed(script) == "/elsewhere/python3 train.py"
    assert command_line.as_typed(tmp_path / "a") == f"/elsewhere/python3 {tmp_path / 'a'}"
    assert command_line.as_typed("--resume", Path("-r")) == "/elsewhere/python3 --resume ./-r"


def test_what_a_run_says_can_be_typed_where_it_was_called(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only in the folder of train.py: tools, which need that, are named nowhere else."""
    root = Path(train.__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(1, patch)
        _, _, err = call("--epochs", "1")
    command = shlex.split(err.partition("to go on: ")[2])
    assert [Path(word).resolve() for word in (command[1], command[3])] == [
        root / "train.py",
        Path("runs/model3-strong-seed42").resolve(),
    ]
    weights = root / "weights" / "model3.pt"
    assert "tools.report" not in call("--evaluate", weights)[1]
    monkeypatch.chdir(root)
    assert "-m tools.report weights/model3.pt --out pictures" in call("--evaluate", weights)[1]


def test_a_run_that_is_stopped_at_once_says_how_to_go_on(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "summary", stop)
    code, _, err = call("--epochs", "1")
    assert code == 130 and "--resume runs/model3-strong-seed42" in err


def test_as_a_user_calls_it(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Payload()))
    lines = ["--epochs nan", "--evaluate weights.pt", "--dry-run --epochs 1"]
    processes = [
        subprocess.Popen(
            [sys.executable, train.__file__, "--threads", "1", *line.split()],
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in lines
    ]
    for line, process in zip(lines, processes):
        out, err = process.communicate()
        if line.startswith("--dry-run"):
            assert (process.returncode, err) == (0, "") and "| Epoch |" in out
        else:
            assert_refused((process.returncode, out, err), line.split()[0])
            assert err.startswith("train.py: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]
