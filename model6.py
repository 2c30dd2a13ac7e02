"""Attempt 6: 99 % with fewer parameters than any public network.

Target    99.0 % on average in 15 epochs, with fewer than 697 parameters: those of the smallest
          public network with 99.0 %, which was chosen on the test set.
Result    99.09 % at the last epoch over 11 seeds with the recipe "tiny", 98.92 to 99.16 %. The
          accuracy averages four views of an image at test time; by one view it is 98.99 %.
Analysis  The design of model5 with 20 channels. Its second pool has a stride of 1, so that maps
          stay 11 x 11, and the block is dilated by 2 after it: the same filters, applied at four
          times as many places, in 2.6 times the time. So small a network underfits: "tiny" has
          milder augmentation than "strong", no weight decay, and an optimizer that rescales
          correlated parameters together (ggt.py).
"""

import torch
from torch import Tensor, nn

from model5 import Model_5


class Model_6(Model_5):
    """Images (N, 1, 28, 28) to logits (N, 10). 691 parameters, receptive field the whole image."""

    stride = 1

    def __init__(self, width: int = 20) -> None:
        super().__init__(width)
        self.dilated = nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width, bias=False)
        self.dilated.weight = self.depthwise.weight  # shared

    def block(self, features: Tensor, number: int) -> Tensor:
        """The block of model5; it is dilated after the second pool, where `number` is 1 to 4."""
        depthwise = self.dilated if number else self.depthwise
        change = self.pointwise(self.between[number](depthwise(features)))
        return torch.relu(features + self.norms[number](change))
