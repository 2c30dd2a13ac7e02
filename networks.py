"""Builds a network from its file modelX.py by name, and loads trained weights."""

import contextlib
import copy
import importlib
import inspect
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchsummary import summary

from cli import UsageError
from files import read_state, regular_file

ROOT = Path(__file__).resolve().parent


def list_models() -> list[str]:
    """Lists the networks: the names of all files model5.py, model_small.py, ... beside this one."""
    names = [path.stem for path in ROOT.glob("model[0-9_]*.py")]
    return sorted(names, key=lambda name: (len(name), name))


def get_model(name: str, **sizes: Any) -> nn.Module:
    """Builds class Model_X of modelX.py, with `sizes` as its arguments, in training mode.

    UsageError where file, class, arguments or logits are invalid. An
    exception raised in modelX.py is chained, so that its traceback is shown.
    """
    if name not in list_models():
        raise UsageError(f"{name}: no such model; there are {', '.join(list_models())}")
    class_name = f"Model_{name.removeprefix('model').lstrip('_')}"
    try:
        module = importlib.import_module(name)
        network_class = getattr(module, class_name, None)
        if not inspect.isclass(network_class):
            raise UsageError(f"there is no class {class_name}")
        check_arguments(network_class, sizes)
        model = network_class(**sizes)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = model.eval()(torch.zeros(2, 1, 28, 28))
    except UsageError as error:
        raise UsageError(f"{name}.py: {error}") from None
    except Exception as error:
        raise UsageError(f"{name}.py raised the {type(error).__name__} above; fix it") from error
    if getattr(logits, "shape", None) != (2, 10):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(
            f"{name}.py: images (2, 1, 28, 28) must give logits of shape (2, 10), not {found}"
        )
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if 0 in tensor.stride():  # in-place updates fail on expanded tensors
            raise UsageError(f"{name}.py: {key} is an expanded tensor; register its .clone()")
    return model.train()


def check_arguments(network_class: type, sizes: dict[str, Any]) -> None:
    """UsageError unless the class accepts exactly these arguments."""
    try:
        inspect.signature(network_class).bind(**sizes)
    except TypeError as error:
        words = ", ".join(f"{key}={value}" for key, value in sizes.items()) or "no arguments"
        what = f"must be built with {words} ({error})"
        raise UsageError(f"{network_class.__name__} {what}") from None


def count_parameters(model: nn.Module) -> int:
    """Counts the parameters of a network, shared ones once; buffers are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def summarize(model: nn.Module) -> str:
    """The layers of a network by torchsummary, and its parameters, each counted once."""
    count, printed = count_parameters(model), io.StringIO()
    with contextlib.suppress(Exception), contextlib.redirect_stdout(printed):
        # A copy: torchsummary changes BatchNorm statistics. It fails on some layers.
        summary(copy.deepcopy(model).cpu(), (1, 28, 28), device="cpu")
    table = printed.getvalue()
    differs = "Total params" in table and f"Total params: {count:,}\n" not in table
    why = "; the table counts shared layers at each use, and omits parameters outside of layers"
    return f"{table}{count:,} parameters, each counted once{why if differs else ''}"


def load_model(path: Path, name: str | None = None) -> tuple[str, nn.Module]:
    """Loads the weights in `path`, a file or a run folder; returns the model name and the model.

    Unless `name` is given, it is that of the run's config.json, or the stem of the file, or the
    first whose parameters the weights fit. UsageError when they fit none, or are not finite.
    """
    with contextlib.suppress(OSError):  # a name that is too long: reported by read_state
        path = path / "weights.pt" if path.is_dir() else path
    state, config = read_state(path), {}
    for key in ("model_state_dict", "state_dict"):  # common keys of checkpoints
        state = state[key] if isinstance(state.get(key), dict) else state
    for prefix in ("module.", "_orig_mod.", "module."):  # of DataParallel and torch.compile
        consume_prefix_in_state_dict_if_present(state, prefix)
    with contextlib.suppress(OSError, ValueError, TypeError):
        config |= json.loads(regular_file(path.with_name("config.json")).read_text("utf-8"))
    name = name or config.get("model") or (path.stem if path.stem in list_models() else None)
    sizes = config.get("sizes") if isinstance(config.get("sizes"), dict) else {}
    for candidate in [name] if name else list_models():
        try:
            model = get_model(candidate, **sizes)
        except UsageError:
            if name:
                raise
            continue  # this model file is broken; try the next
        if try_load(model, state):
            check_finite(path, model)
            return candidate, model
    if name:
        raise UsageError(f"{path}: these weights do not fit {name}")
    raise UsageError(f"{path}: these weights fit no model; choose one with --model")


def try_load(model: nn.Module, state: dict[str, Any]) -> bool:
    """Loads `state` into `model`; returns whether it fits."""
    try:
        model.load_state_dict(state)
    except Exception:  # load_state_dict raises several types of error
        return False
    return True


def check_finite(path: Path, model: nn.Module) -> None:
    """UsageError where weights, or the logits of an image, are NaN or infinite."""
    with torch.no_grad():
        logits = model.eval()(torch.ones(1, 1, 28, 28))
    for tensor in (logits, *model.parameters(), *model.buffers()):
        if not tensor.isfinite().all():
            raise UsageError(f"{path} holds weights that are not finite; train again")
