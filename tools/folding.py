"""BatchNorm folded into the convolutions before it, for a network that only guesses from now on.

After training, BatchNorm multiplies each channel by a number and adds another. A convolution
does that anyway: its filters take the factor, its bias the rest.
"""

import copy

import torch
from torch import nn

from command_line import UsageError


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode without BatchNorm and dropout: the same function.

    The arithmetic is in double precision, so that only its last rounding shows. UsageError where
    a BatchNorm does not follow a convolution within one nn.Sequential.
    """
    model = copy.deepcopy(model).eval()
    for module in [*model.modules()]:
        if isinstance(module, nn.Sequential):
            fold_chain(module)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise UsageError("a BatchNorm of this network stands behind no convolution")
    return model


def fold_chain(chain: nn.Sequential) -> None:
    """Fold BatchNorm into the convolutions of one chain, and leave out its dropout, in place."""
    kept: list[tuple[str, nn.Module]] = []
    for name, layer in chain.named_children():
        if isinstance(layer, nn.BatchNorm2d) and kept and isinstance(kept[-1][1], nn.Conv2d):
            absorb(kept[-1][1], layer)
        elif not isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Identity):
            kept.append((name, layer))
    for name, _ in [*chain.named_children()]:
        delattr(chain, name)
    for name, layer in kept:
        chain.add_module(name, layer)


def absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Let `convolution` do what `norm` did behind it, in place."""
    gamma, beta = torch.ones(norm.num_features).double(), torch.zeros(norm.num_features).double()
    if norm.affine:
        gamma, beta = norm.weight.detach().double(), norm.bias.detach().double()
    factor = gamma / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(beta) if convolution.bias is None else convolution.bias.double()
    weight = convolution.weight.detach().double() * factor[:, None, None, None]
    bias = (bias.detach() - norm.running_mean.double()) * factor + beta
    convolution.weight = nn.Parameter(weight.float(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.float(), requires_grad=False)
