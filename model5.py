"""Attempt 5: half the parameters of model4, since one block does the work of four.

Target    The challenge on every seed with at most 3,762 parameters.
Result    To be measured.
Analysis  Most of model4's parameters are in its blocks. Here one block is applied four times: its
          filters are shared, the BatchNorms behind them are not. So it can be wider, 41 channels.
          The head reads the mean of what the block gives the last three times. BatchNorm has no
          scale and shift between a depthwise and a 1x1 convolution, where they would change
          nothing.
"""

import torch
from torch import Tensor, nn


def halve() -> nn.Sequential:
    """The largest value around every pixel, then a mean: a digit moved by a pixel changes less."""
    return nn.Sequential(nn.MaxPool2d(2, stride=1), nn.AvgPool2d(2, ceil_mode=True))


class Model_5(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10). 3,711 parameters, receptive field 63 px.

    `stem` and `width` are its numbers of channels.
    """

    def __init__(self, stem: tuple[int, int] = (5, 8), width: int = 41) -> None:
        super().__init__()
        first, second = stem
        # Beside each layer: its output (channels x height x width) and receptive field.
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, bias=False),  # 5 x 26 x 26, RF 3
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, bias=False),  # 8 x 24 x 24, RF 5
            nn.BatchNorm2d(second),
            halve(),  # 8 x 12 x 12, RF 7
            nn.ReLU(inplace=True),
            nn.Conv2d(second, second, 3, padding=1, groups=second, bias=False),  # RF 11
            nn.BatchNorm2d(second, affine=False),
            nn.Conv2d(second, width, 1, bias=False),  # 41 x 12 x 12, RF 11
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        # The block, which is applied once before the second pool and three times after it.
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.between = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.halve = halve()
        self.head = nn.Linear(width, 10)
        self.to(memory_format=torch.channels_last)  # in which the blocks train faster on a CPU

    def block(self, features: Tensor, number: int) -> Tensor:
        """The block, with BatchNorm `number`, from 0: (N, width, H, W) to the same shape."""
        change = self.pointwise(self.between[number](self.depthwise(features)))
        return torch.relu(features + self.norms[number](change))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalised, to logits (N, 10)."""
        features = self.block(self.stem(images), 0)  # 41 x 12 x 12, RF 15
        features, means = self.halve(features), []  # 41 x 6 x 6, RF 19
        for number in (1, 2, 3):
            features = self.block(features, number)  # RF 27, 35, 43
            means.append(features.mean(dim=(2, 3)))
        return self.head(sum(means) / len(means))
