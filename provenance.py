"""Where a result comes from: the commit, versions and hardware of a run."""

import contextlib
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent


def git(*words: str) -> str:
    """The output of a git command in this checkout; empty where there is none."""
    # Do not search the parent folders: a repository there is another project's.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    with contextlib.suppress(OSError):
        settings = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(["git", *words], **settings).stdout.strip()
    return ""


def commit_of(model: str) -> str | None:
    """The last commit that changed a Python file; None where this is no checkout.

    It ends in -dirty where a tracked Python file, or the file of `model` itself, differs from it.
    """
    commit = git("log", "-1", "--format=%h", "--", "*.py")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    changed += git("status", "--porcelain", "--", f"{model}.py")
    if not commit and not changed:
        return None
    return f"{commit}-dirty" if changed else commit


def processor() -> str:
    """The name of the CPU, and the instructions that torch uses: "AMD EPYC, AVX2"."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if "model name" in line).partition(":")[2].strip()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def describe(device: torch.device, model: str) -> dict[str, Any]:
    """Describes what a run of `model` runs on: hardware, versions, and the commit."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "device_name": gpu or processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it would double the start-up
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit_of(model),
    }


def warn_of_changes(config: dict[str, Any], now: dict[str, Any]) -> None:
    """Warns of differences from the start of the run that may change its result."""
    for key in ("commit", "device", "device_name", "threads", "torch"):
        if now[key] != config.get(key):
            change = f"{key} was {config.get(key)} and is {now[key]} now"
            print(f"warning: {change}; the result may differ", file=sys.stderr)
