"""The device: which one is used, and whether it trains as the CPU does."""

import ctypes
import platform
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cli import UsageError


def select_device(name: str) -> torch.device:
    """CUDA, then MPS, then CPU for "auto"; UsageError for a device that is not available."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present = [device for device, is_there in found.items() if is_there] + ["cpu"]
    if name not in ("auto", *present):
        raise UsageError(f"--device {name}: not available; choose auto, {', '.join(present)}")
    return torch.device(present[0] if name == "auto" else name)


def reuse_freed_memory() -> None:
    """Makes glibc, where there is one, keep freed memory, and not map it anew page by page.

    An epoch takes 0.5 to 1.0 of the time (results/README.md).
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold = -1, -3  # see mallopt(3)
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 32 << 20)  # bytes: the maximum
        ctypes.CDLL(None).mallopt(m_trim_threshold, 1 << 30)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Moves a model to `device`, and keeps its memory format except on MPS.

    There, the backward pass of BatchNorm2d in channels-last is wrong (pytorch issue 134580).
    """
    layout = torch.contiguous_format if device.type == "mps" else torch.preserve_format
    return model.to(device, memory_format=layout)


class NoDropout(TorchFunctionMode):
    """Makes every dropout the identity: its draws differ from device to device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return args[0] if "dropout" in function.__name__ else function(*args, **(kwargs or {}))


def one_step(trainer: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a training step without dropout, and how each parameter changes; on the CPU."""
    parameters = dict(trainer.model.named_parameters())
    device = next(iter(parameters.values())).device
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with NoDropout():
        loss, _ = trainer.step(*(part.to(device) for part in batch))
    return loss.cpu(), {name: (x.detach() - before[name]).cpu() for name, x in parameters.items()}


def verified(
    device: torch.device, name: str, trainers: Iterable[Any], batch: tuple[Tensor, Tensor]
) -> torch.device:
    """`device`, if it trains as the CPU does; otherwise the CPU for the name "auto".

    `trainers` are equal ones on the CPU and on `device`: each makes a step with `batch`. UsageError
    where loss or weights differ by more than rounding, or the step fails, for any other name.
    """
    reason, trainers = "", iter(trainers)
    expected_loss, expected = one_step(next(trainers), batch)
    try:
        loss, found = one_step(next(trainers), batch)
        for key, change in expected.items():
            # Rounding alone, which moves some maxima, makes 3 % in model4.
            if not (found[key] - change).abs().max() <= 0.1 * change.abs().max() + 1e-5:
                reason = f"{key} is wrong after one step"
        if not torch.allclose(loss, expected_loss, rtol=1e-3):
            reason = "the loss is wrong"
    except (RuntimeError, TypeError) as error:  # an operation that the device lacks
        reason = str(error).partition("\n")[0]
    if reason and name != "auto":
        raise UsageError(f"--device {name}: {reason}; train with --device cpu")
    if reason:
        print(f"warning: training on the CPU, since on {device.type} {reason}", file=sys.stderr)
    return torch.device("cpu") if reason else device
