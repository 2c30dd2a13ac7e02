"""Device selection, and a check of MPS against the CPU."""

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cli import UsageError


def select_device(name: str) -> torch.device:
    """CUDA, then MPS, then CPU for "auto"; UsageError for a device that is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    devices = [device for device, is_available in available.items() if is_available] + ["cpu"]
    if name not in ("auto", *devices):
        raise UsageError(f"--device {name}: not available; choose auto, {', '.join(devices)}")
    return torch.device(devices[0] if name == "auto" else name)


def reuse_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it to the system.

    An epoch then takes 50 to 100 % of the time (results/README.md).
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold = -1, -3  # see mallopt(3)
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 32 << 20)  # 32 MiB, the maximum
        ctypes.CDLL(None).mallopt(m_trim_threshold, 1 << 30)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Moves a model to `device`, and keeps its memory format except on MPS.

    There, the backward pass of BatchNorm2d in channels-last is wrong (pytorch issue 134580).
    """
    layout = torch.contiguous_format if device.type == "mps" else torch.preserve_format
    return model.to(device, memory_format=layout)


class Step(NamedTuple):
    """A training step: its loss, and the change of each parameter by name."""

    loss: Tensor
    changes: dict[str, Tensor]


class NoDropout(TorchFunctionMode):
    """Makes every dropout the identity: its draws differ from device to device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return args[0] if "dropout" in function.__name__ else function(*args, **(kwargs or {}))


def one_step(trainer: Any, batch: tuple[Tensor, Tensor]) -> Step:
    """Runs one training step without dropout; loss and changes are CPU tensors."""
    parameters = dict(trainer.model.named_parameters())
    device = next(iter(parameters.values())).device
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with NoDropout():
        loss, _ = trainer.step(*(part.to(device) for part in batch))
    changes = {name: (x.detach() - before[name]).cpu() for name, x in parameters.items()}
    return Step(loss.cpu(), changes)


def check_step(step: Step, expected: Step) -> None:
    """RuntimeError where the loss or a parameter differs by more than rounding."""
    if not torch.allclose(step.loss, expected.loss, rtol=1e-3):
        raise RuntimeError("the loss is wrong")
    for name, change in expected.changes.items():
        # Rounding, which changes the argmax of some max pools, makes 3 % in model4. The `not`
        # catches NaN too.
        if not (step.changes[name] - change).abs().max() <= 0.1 * change.abs().max() + 1e-5:
            raise RuntimeError(f"{name} is wrong after one step")


def verify_mps(
    device: torch.device,
    name: str,
    trainer_on: Callable[[torch.device], Any],
    batch: tuple[Tensor, Tensor],
) -> torch.device:
    """Returns `device` if it trains as the CPU does; otherwise the CPU, for the name "auto".

    `trainer_on` builds equal trainers; each makes one step with `batch`. UsageError where the step
    fails or gives another result, for any other name.
    """
    expected = one_step(trainer_on(torch.device("cpu")), batch)
    try:
        check_step(one_step(trainer_on(device), batch), expected)
    except (RuntimeError, TypeError) as error:  # wrong, or an operation that the device lacks
        reason = str(error).partition("\n")[0]
        if name != "auto":
            raise UsageError(f"--device {name}: {reason}; train with --device cpu") from None
        print(f"warning: training on the CPU, since on {device.type} {reason}", file=sys.stderr)
        return torch.device("cpu")
    return device
