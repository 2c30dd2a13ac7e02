"""Attempt 6: fewer than 1,000 parameters.

Target    99.0 % on average in 15 epochs, with fewer than 1,000 parameters.
Result    98.86 % over 4 seeds with the recipe "mild", 98.82 to 98.93 %: missed so far. model4 at
          1,046 parameters has 98.63 %.
Analysis  So small a network underfits, so it gets what costs no parameter. An image is turned
          upright by its moments before the network sees it. One separable block is applied five
          times, its filters shared, BatchNorm not. The stem's four maps, repeated, are what it
          begins with, and ten cosines are what its 20 channels are compared with. Milder
          transforms and no weight decay than in "strong" suit it: that is the recipe "mild".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def upright(images: Tensor) -> Tensor:
    """Images (N, 1, S, S) with the centre of mass in the middle and without slant.

    The slant is that of the line which tells best, row by row, where in x the ink lies: the
    covariance of x and y over the variance of y.
    """
    paper = images.amin(dim=(2, 3), keepdim=True)
    ink = images - paper
    size = images.shape[-1]
    x = (2 * torch.arange(size, device=images.device, dtype=images.dtype) + 1) / size - 1
    y = x[:, None]
    weight = ink / ink.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        """Over the ink of each image: (N, 1, 1, 1)."""
        return (weight * values).sum(dim=(2, 3), keepdim=True)

    mean_x, mean_y = mean(x), mean(y)
    slant = mean((x - mean_x) * (y - mean_y)) / (mean((y - mean_y) ** 2) + 1e-3)
    from_x = x + slant * y + mean_x  # (N, 1, S, S)
    grid = torch.stack([from_x, (y + mean_y).expand_as(from_x)], dim=-1)[:, 0]
    return F.grid_sample(ink, grid, align_corners=False) + paper


class Model_6(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10). 940 parameters, each image seen as a whole."""

    def __init__(self) -> None:
        super().__init__()
        # Beside each layer: its output (channels x height x width).
        self.stem = nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False),  # 3 x 26 x 26
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 4, 3, bias=False),  # 4 x 24 x 24
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2, stride=1),  # 4 x 23 x 23
            nn.AvgPool2d(2, ceil_mode=True),  # 4 x 12 x 12
            nn.ReLU(inplace=True),
        )
        # The block, which is applied once before the second pool and four times after it.
        self.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False)
        self.pointwise = nn.Conv2d(20, 20, 1, bias=False)
        self.between = nn.ModuleList(nn.BatchNorm2d(20, affine=False) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(20) for _ in range(5))
        self.pool = nn.Sequential(nn.MaxPool2d(2, stride=1), nn.AvgPool2d(2, ceil_mode=True))
        # The classifier is fixed: digit k has k + 1 half waves over the channels, which makes the
        # ten orthogonal. It learns one scale and ten biases.
        phase = math.pi * (torch.arange(20) + 0.5) / 20
        waves = torch.cos(torch.arange(1, 11)[:, None] * phase)  # (10, 20)
        self.register_buffer("waves", waves, persistent=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(10))

    def block(self, features: Tensor, number: int) -> Tensor:
        """The block, with BatchNorm `number`, from 0: (N, 20, H, W) to the same shape."""
        change = self.pointwise(self.between[number](self.depthwise(features)))
        return torch.relu(features + self.norms[number](change))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalised, to logits (N, 10)."""
        features = self.stem(upright(images)).repeat(1, 5, 1, 1)  # 20 x 12 x 12
        # In this layout the block trains faster on a CPU; the stem, with few channels, does not.
        features = features.contiguous(memory_format=torch.channels_last)
        features = self.pool(self.block(features, 0))  # 20 x 6 x 6
        means = []
        for number in range(1, 5):
            features = self.block(features, number)
            means.append(features.mean(dim=(2, 3)))
        late = torch.stack(means[1:]).mean(dim=0)  # 20 means over three blocks and all pixels
        return self.scale * F.linear(late, self.waves) + self.bias
