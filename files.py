"""Atomic writes, and safe loading of weights."""

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from cli import RunError, UsageError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to a temporary file and renames it to `path` once it is on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}; the previous file is unchanged"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def regular_file(path: Path) -> Path:
    """Returns `path`; UsageError for a pipe or a device, which may never end. A folder passes."""
    with contextlib.suppress(OSError):  # reported by open()
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is a pipe or a device; name a file")
    return path


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a dictionary of tensors, numbers and plain containers, as torch.save does."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Reads what `write_state` wrote, with `weights_only=True`; UsageError if it cannot."""
    regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load verifies no checksum
                raise UsageError(f"{path} is damaged; nothing was loaded")
        with warnings.catch_warnings(action="ignore"):  # torch.load warns before it raises
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except zipfile.BadZipFile:
        reason = "is damaged, or in the format from before torch 1.6; save its state_dict() again"
        raise UsageError(f"{path} {reason}") from None
    except pickle.UnpicklingError:
        reason = "holds a pickled object, such as a whole model; save its state_dict() instead"
        raise UsageError(f"{path} {reason}") from None
    except (RuntimeError, ValueError, KeyError, EOFError):  # a zip file without weights
        raise UsageError(f"{path} is damaged, or not a weights file; nothing was loaded") from None
    if not (isinstance(state, dict) and all(isinstance(key, str) for key in state)):
        raise UsageError(
            f"{path} holds no state_dict(), but an object of type {type(state).__name__}"
        )
    return state
