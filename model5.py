"""Attempt 5: model4 narrower, without the parameters that change nothing.

Target    The challenge on every seed with as few parameters as possible.
Result    99.54 % at the last epoch over 21 seeds with the strong recipe, 99.45 % at least; all
          21 keep their last five epochs at 99.4 % or more.
Analysis  The scale of a BatchNorm between a depthwise and a 1x1 convolution can be part of the 1x1
          filters, and its shift is taken out by the BatchNorm that follows. Without them the
          network can do the same with 196 parameters less. Dropout regularises a network that
          has capacity to spare, which this one has not. What else was tried at this size, blocks
          that share their filters above all, differs by less than seeds do.
"""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """relu(x + body(x)): a depthwise-separable 3x3 convolution beside a path that keeps x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width, affine=False),  # a scale and a shift here would change nothing
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        return torch.relu(features + self.body(features))


class Model_5(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10). 5,048 parameters, receptive field 55 px.

    `stem` and `width` are its numbers of channels.
    """

    def __init__(self, stem: tuple[int, int] = (7, 11), width: int = 29) -> None:
        super().__init__()
        first, second = stem
        # Beside each layer: its output (channels x height x width) and receptive field.
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, bias=False),  # 7 x 26 x 26, RF 3
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, bias=False),  # 11 x 24 x 24, RF 5
            nn.BatchNorm2d(second),
            nn.MaxPool2d(2, stride=1),  # 11 x 23 x 23, RF 6
            nn.AvgPool2d(2, ceil_mode=True),  # 11 x 12 x 12, RF 7
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(
            # The first one changes the number of channels, so there is no sum with its input.
            nn.Conv2d(
                second, second, 3, padding=1, groups=second, bias=False
            ),  # 11 x 12 x 12, RF 11
            nn.BatchNorm2d(second, affine=False),
            nn.Conv2d(second, width, 1, bias=False),  # 29 x 12 x 12, RF 11
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            Residual(width),  # 29 x 12 x 12, RF 15
            nn.MaxPool2d(2, stride=1),  # 29 x 11 x 11, RF 17
            nn.AvgPool2d(2, ceil_mode=True),  # 29 x 6 x 6, RF 19
            Residual(width),  # 29 x 6 x 6, RF 27
            Residual(width),  # 29 x 6 x 6, RF 35
        )
        self.head = nn.Sequential(
            nn.AvgPool2d(6),  # 29 x 1 x 1, RF 55
            nn.Flatten(),
            nn.Linear(width, 10),  # 10 logits, RF 55
        )
        self.to(memory_format=torch.channels_last)  # in which the blocks train faster on a CPU

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalised, to logits (N, 10)."""
        return self.head(self.blocks(self.stem(images)))
