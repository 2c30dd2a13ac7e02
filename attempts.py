"""The networks by name: modelX.py to a new network, a file of weights to a trained one."""

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from run_folder import ROOT, read_state
from script import UsageError, regular_file


def attempts() -> list[str]:
    """The names of the networks: of every file model5.py, model_small.py, ... beside this one."""
    names = [path.stem for path in ROOT.glob("model[0-9_]*.py")]
    return sorted(names, key=lambda name: (len(name), name))


def build_network(name: str, **sizes: Any) -> nn.Module:
    """A new network: class Model_X of modelX.py, with `sizes`, if any, as its arguments.

    Raises UsageError where the file, the class or its logits are not as they must be.
    """
    class_name = f"Model_{name.removeprefix('model').lstrip('_')}"
    problem = "cannot be imported; mend it"
    try:
        module = importlib.import_module(name)
        problem = f"must have a class {class_name}"
        network_class = getattr(module, class_name)
        problem = f"must have a class {class_name} that is built without arguments"
        network = network_class(**sizes)
        problem = f"must have a {class_name} that takes images of shape (N, 1, 28, 28)"
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = network.eval()(torch.zeros(2, 1, 28, 28))
        problem = f"must have a {class_name} that returns logits of shape (N, 10)"
        if logits.shape != (2, 10):
            raise ValueError(f"for N = 2 it is {tuple(logits.shape)}")
    except Exception as error:  # whatever a stranger's file may raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"{name}.py {problem} ({reason})") from None
    return network.train()


def count_parameters(model: nn.Module) -> int:
    """The number of a network's parameters; statistics of BatchNorm are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(state: dict[str, Any]) -> dict[str, Any]:
    """What tensors under which names; None for what is no tensor."""
    return {
        name: (value.shape, value.dtype, value.layout, value.device.type)
        if isinstance(value, torch.Tensor)
        else None
        for name, value in state.items()
    }


def load_network(path: Path, name: str | None = None) -> tuple[str, nn.Module]:
    """The name of a network, and it with the weights in `path`, a file or the folder of a run.

    Unless `name` says it, the network is that of the run's config.json, or that which the file is
    called after, or the first that the weights fit. UsageError when they fit none.
    """
    with contextlib.suppress(OSError):  # of a name that is too long: read_state reports it
        path = path / "weights.pt" if path.is_dir() else path
    state, config = read_state(path), {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        config |= json.loads(regular_file(path.with_name("config.json")).read_text("utf-8"))
    known = name or config.get("model") or (path.stem if path.stem in attempts() else None)
    for candidate in [known] if known else attempts():
        try:
            network = build_network(candidate, **config.get("sizes", {}))
        except UsageError:
            if known:
                raise
            continue  # one that is not meant does no harm
        if kinds(state) == kinds(network.state_dict()):
            network.load_state_dict(state)
            with torch.no_grad():
                logits = network.eval()(torch.ones(1, 1, 28, 28))
            if not all(value.isfinite().all() for value in (logits, *state.values())):
                raise UsageError(f"{path} holds values whose results are not finite; train again")
            return candidate, network
    names = known or ", ".join(attempts())
    raise UsageError(f"{path} holds weights of another network than {names}, or of another type")
