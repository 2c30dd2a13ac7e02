"""What happens to a run when disk, numbers, terminal or signals get in its way."""

import errno
import io
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import mnist
import run_folder
import train
from command_line import RunError, UsageError, exit_code

ROOT = Path(train.__file__).parent
# All that a run of two epochs writes, in this order; resumed, it goes on after the checkpoint.
EPOCH = ["metrics.csv", "checkpoint.pt"]
WRITES = ["config.json", *EPOCH, *EPOCH, "curves.png", "weights.pt"]


def train_two_epochs(out_dir: Path, *options: str) -> int:
    return train.main(["--epochs", "2", "--quiet", "--out-dir", str(out_dir), *options])


def folder_of(out_dir: Path) -> Path:
    return out_dir / "model3-strong-seed42"


def assert_failed(code: int, captured: tuple[str, str], *named: str) -> None:
    """The run ended with exit code 1 and one line on standard error that has all of `named`."""
    out, err = captured
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and all(text in err for text in named)


# --------------------------------------------------------------------------- a full disk


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile(io.FileIO):
    """Takes half of what is written to it, as the last file on a disk does."""

    def write(self, content: bytes) -> None:
        super().write(content[: len(content) // 2])
        no_space()


FAULTS = {
    "write": (Path, "open", lambda path, mode: FullFile(path, mode)),
    "fsync": (os, "fsync", no_space),
    "rename": (Path, "replace", no_space),
}


@contextmanager
def fault_at(number: int, fault: str) -> Iterator[None]:
    """Let the file that is written as the one with that number meet a full disk."""
    owner, name, failing = FAULTS[fault]
    function, calls = getattr(owner, name), []

    def call(*args: object, **kwargs: object) -> object:
        if name == "open" and args[1:] != ("wb",):
            return function(*args, **kwargs)
        calls.append(args)
        return (failing if len(calls) == number else function)(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


@pytest.mark.parametrize("fault", FAULTS)
def test_full_disk_costs_no_more_than_what_was_being_written(
    fault: str,
    small_mnist: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_folder, "plot_curves", lambda *args: b"a picture")
    shorter = ("--batch-size", "9999", "--holdout", "400")  # a single batch an epoch
    assert train_two_epochs(tmp_path / "undisturbed", *shorter) == 0
    undisturbed = folder_of(tmp_path / "undisturbed")
    for number, name in enumerate(WRITES, start=1):
        out_dir = tmp_path / str(number)
        folder = folder_of(out_dir)
        capsys.readouterr()
        with fault_at(number, fault):
            code = train_two_epochs(out_dir, *shorter)
        assert_failed(code, capsys.readouterr(), str(folder / name), "No space left on device")
        before = WRITES[: number - 1]
        if not before:  # nothing could take it up again, so nothing of it is left
            assert not folder.exists()
            continue
        assert {path.name for path in folder.iterdir()} == set(before)
        if "checkpoint.pt" in before:
            records = run_folder.read_state(folder / "checkpoint.pt")["records"]
            assert len(records) == before.count("checkpoint.pt")
        assert train.main(["--resume", str(folder), "--quiet"]) == 0
        for path in undisturbed.glob("*.p*"):
            if path.name != "checkpoint.pt":  # it has the seconds
                assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, where that can be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("making a file system of its own takes Linux and root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_runs_full_for_real(
    small_disk: Path,
    small_mnist: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, filler = folder_of(small_disk), small_disk / "filler"

    def evaluate(*args: object) -> tuple[float, float]:
        if (folder / "checkpoint.pt").exists():  # so this is the second epoch
            with pytest.raises(OSError, match="No space left"), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(512))
        return 0.1, 99.0

    monkeypatch.setattr(train, "evaluate", evaluate)
    code = train_two_epochs(small_disk)
    assert_failed(code, capsys.readouterr(), str(folder), "No space left on device")
    assert len(run_folder.read_state(folder / "checkpoint.pt")["records"]) == 1
    assert {path.name for path in folder.iterdir()} == {"config.json", *EPOCH}
    filler.unlink()
    monkeypatch.setattr(train, "evaluate", lambda *args: (0.1, 99.0))
    assert train.main(["--resume", str(folder), "--quiet"]) == 0
    assert {path.name for path in folder.iterdir()} == set(WRITES)


# ------------------------------------------------------------------ numbers that are none


def test_loss_that_is_not_finite(
    small_mnist: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    augment, calls = mnist.augment, itertools.count(1)
    batches = math.ceil(len(small_mnist["train"][0]) / train.RECIPES["strong"].batch_size)

    def spoilt(*args: object) -> torch.Tensor:
        return augment(*args) * (math.nan if next(calls) == batches + 3 else 1)

    monkeypatch.setattr(mnist, "augment", spoilt)
    code = train_two_epochs(tmp_path)
    assert_failed(code, capsys.readouterr(), "not finite", f"epoch 2, batch 3 of {batches}", "try ")
    state = run_folder.read_state(folder_of(tmp_path) / "checkpoint.pt")
    assert len(state["records"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("batch_size", ["100", "9999"])
def test_learning_rate_that_is_absurd(
    batch_size: str,
    small_mnist: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In an epoch of a single batch, only the test loss can tell what the step has done.
    absurd = replace(train.RECIPES["strong"], max_lr=1e38)
    monkeypatch.setitem(train.RECIPES, "strong", absurd)
    code = train.main(["--batch-size", batch_size, "--quiet", "--out-dir", str(tmp_path)])
    assert_failed(code, capsys.readouterr(), "not finite", "epoch 1", "try ")
    assert [path.name for path in folder_of(tmp_path).iterdir()] == ["config.json"]


# ------------------------------------------------------- processes, pipes and signals

CHILD = """
import signal, sys
from tools import torture
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
torture.shorten_epochs()
sys.argv[0] = "train.py"
sys.exit(torture.train.main())
"""


def start(*argv: str | Path, **streams: object) -> subprocess.Popen:
    """`train.py argv`, with short epochs, in a process of its own."""
    command = [sys.executable, "-c", CHILD, "--device", "cpu", "--threads", "1", *map(str, argv)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(command, cwd=ROOT, text=True, **streams)


def read_until(process: subprocess.Popen, start: str) -> list[str]:
    """The lines that the process prints, up to one that begins with `start`."""
    lines = []
    while not (lines and lines[-1].startswith(start)):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return lines


@dataclass
class Stopped:
    """A run that a signal has stopped: how it ended, and all that it printed."""

    code: int
    out: str
    err: str


@dataclass
class Pair:
    """Two runs that were started at the same time, the folders, and a try to resume one of them."""

    runs: list[Stopped]
    folders: list[Path]
    resumed: tuple[int, str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One of the two is stopped by SIGTERM, the other by SIGINT."""
    out_dir = tmp_path_factory.mktemp("out dir")  # with a space, for the command that resumes
    threads = torch.get_num_threads()
    processes = [start("--epochs", "1000", "--out-dir", out_dir) for _ in range(2)]
    try:
        seen = [read_until(process, "|     2 |") for process in processes]
        folders = sorted(out_dir.iterdir())
        with redirect_stderr(io.StringIO()) as err, pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.Learner, "step", None)  # this is not to be reached
            resumed = train.main(["--resume", str(folders[0]), "--quiet"]), err.getvalue()
        runs = []
        for process, signum, lines in zip(processes, (signal.SIGTERM, signal.SIGINT), seen):
            process.send_signal(signum)
            out, err = process.communicate()
            runs.append(Stopped(process.returncode, "".join(lines) + out, err))
    finally:
        torch.set_num_threads(threads)  # a resume sets those of the run
        for process in processes:
            process.kill()
    return Pair(runs, folders, resumed)


def resume_command(run: Stopped) -> list[str]:
    """The words of the command that a stopped run names."""
    return shlex.split(run.err.partition("to go on: ")[2])


def test_runs_started_together_have_folders_of_their_own(pair: Pair) -> None:
    assert len(pair.folders) == 2
    for folder in pair.folders:
        rows = (folder / "metrics.csv").read_text().splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) >= 2


def test_run_at_work_is_not_resumed(pair: Pair) -> None:
    code, err = pair.resumed
    # A warning may come first: the runs have one thread, this process perhaps more.
    (error,) = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert code == 2 and f"--resume {pair.folders[0]}: another process" in error


def test_signals_end_a_run_cleanly(pair: Pair) -> None:
    assert [run.code for run in pair.runs] == [143, 130]
    commands = [resume_command(run) for run in pair.runs]
    # The Python that was called, which need not be the first on the path.
    assert [Path.cwd() / command[0] for command in commands] == [Path(sys.executable)] * 2
    assert [command[1:-1] for command in commands] == [["train.py", "--resume"]] * 2
    assert sorted(Path(command[-1]) for command in commands) == pair.folders
    for folder in pair.folders:
        assert {path.name for path in folder.iterdir()} == {"config.json", *EPOCH}


def test_output_that_is_no_terminal_is_plain(pair: Pair) -> None:
    for run in pair.runs:
        assert not re.search(r"[^\n -~]", run.out + run.err)
        table = run.out[run.out.index("| Epoch |") :].splitlines()
        assert len(table) >= 4 and {len(row) for row in table} == {len(table[0])}
        assert run.err.strip().count("\n") == 0


def test_closed_pipe_ends_a_run_quietly(pair: Pair) -> None:
    # The lock of a process that has ended is gone: the command that the run named works.
    process = start(*resume_command(pair.runs[0])[2:])
    read_until(process, "|     2 |")
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == ""


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        process = start("--epochs", "1", "--out-dir", tmp_path, stdout=full)
        err = process.communicate()[1]
    assert_failed(process.returncode, ("", err), "No space left on device")


def test_output_that_has_no_such_characters_escapes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a console of Windows, or a file whose name is not UTF-8."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_code("x", lambda args: print("≥ 99.4 %", flush=True), Namespace()) == 0
    assert stream.buffer.getvalue() == b"\\u2265 99.4 %\n"


def test_closed_streams_hinder_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `>&-` and `2>&-`: Python has None in their place."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    def command(args: Namespace) -> None:
        assert not (sys.stdout.isatty() or sys.stderr.isatty())
        print("a result")
        raise UsageError("a mistake")

    assert exit_code("x", command, Namespace()) == 2


def test_other_errors_of_the_system_are_not_taken_for_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def denied(args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(train, "start", denied)
    assert train.main([]) == 1
    print("still there")
    out, err = capfd.readouterr()
    assert out == "still there\n"
    assert err.count("\n") == 1 and "Permission denied: 'somewhere'" in err


def test_ctrl_c_while_torch_is_imported_has_no_traceback(tmp_path: Path) -> None:
    """A torch that takes Ctrl-C for an import: what a slow disk makes likely."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for script in ("train.py", "predict.py"):
        command = [sys.executable, str(ROOT / script), "--help"]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode in (130, -signal.SIGINT)
        assert (done.stdout, done.stderr) == ("", "")


def test_ctrl_c_before_there_is_a_run_leaves_none(
    small_mnist: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_atomically", interrupted)
    assert train_two_epochs(tmp_path) == 130
    assert capsys.readouterr().err == ""  # there is nothing to go on with
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RunError("the loss is not finite"), 1)]
)
def test_a_run_that_ends_early_names_the_models_that_were_not_begun(
    error: BaseException,
    code: int,
    small_mnist: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*args: object) -> None:
        raise error

    monkeypatch.setattr(train, "train_one_epoch", stopped)
    assert train_two_epochs(tmp_path, "--model", "all") == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert any("--resume" in line and "model1" in line for line in lines) == (code == 130)
    assert any("not finite" in line for line in lines) == (code == 1)
    others = ", ".join([*run_folder.MODELS][1:])
    assert any(line.startswith(f"not begun: {others};") for line in lines)


def test_allocator_gets_its_settings_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds that mallopt(3) documents: 128 kB each."""
    asked = {}

    class Libc:
        def mallopt(self, parameter: int, value: int) -> None:
            asked[parameter] = value

        def malloc_trim(self, padding: int) -> None:
            asked["trimmed"] = padding

    monkeypatch.setattr(run_folder.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(run_folder.ctypes, "CDLL", lambda name: Libc())
    with run_folder.reuse_freed_memory():
        assert asked == {-3: 32 * 2**20, -1: 2**30}
    assert asked == {-3: 131_072, -1: 131_072, "trimmed": 0}


def test_folders_made_at_the_same_moment_differ(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(
            pool.map(lambda _: run_folder.new_run_folder(tmp_path, "run", {}), range(64))
        )
    assert len(set(folders)) == 64


def test_handler_of_sigterm_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert train.main(["--evaluate", "nothing"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
