"""BatchNorm folded into the convolutions before it, for a network that only guesses from now on.

After training, BatchNorm multiplies each channel by a number and adds another. A convolution
does that anyway: its filters take the factor, its bias the rest.
"""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from command_line import UsageError


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode without BatchNorm and dropout: the same function.

    The arithmetic is in double precision, so that only its last rounding shows. UsageError where
    a BatchNorm does not follow a convolution within one nn.Sequential.
    """
    model = copy.deepcopy(model).eval().double()
    for module in [*model.modules()]:
        if isinstance(module, nn.Sequential):
            fold_chain(module)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise UsageError("a BatchNorm of this network stands behind no convolution")
    return model.float().requires_grad_(False)


def fold_chain(chain: nn.Sequential) -> None:
    """Fold BatchNorm into the convolutions of one chain, and leave out its dropout, in place."""
    kept: dict[str, nn.Module] = {}
    for name, layer in chain.named_children():
        last = next(reversed(kept), "")
        if isinstance(layer, nn.BatchNorm2d) and isinstance(kept.get(last), nn.Conv2d):
            kept[last] = fuse_conv_bn_eval(kept[last], layer)
        elif not isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Identity):
            kept[name] = layer
    for name in [name for name, _ in chain.named_children()]:
        delattr(chain, name)
    for name, layer in kept.items():
        chain.add_module(name, layer)
