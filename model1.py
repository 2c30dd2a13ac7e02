"""Attempt 1: a baseline that is accurate, but over the budget.

Target    Show that 99.4 % can be reached within 15 epochs, with a plain stack of 3x3
          convolutions, before any parameter is saved.
Result    Over three seeds: 99.61 % at the last epoch with the strong recipe, 99.55 % with the
          classic one, and the last five epochs of every seed above 99.4 % with both.
Analysis  Accurate and steady, but of 13,808 parameters, 5,808 too many. A third of them (4,608)
          are in the second convolution, 16 to 32 channels wide, which the 1x1 convolution after
          it squeezes to 10 again. Train accuracy on the digits that classic rotates ends at
          99.62 %, above the test accuracy: the network has room to spare. So attempt 2 takes
          channels away.
"""

from torch import Tensor, nn


class Model_1(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10). 13,808 parameters, receptive field 32 px."""

    def __init__(self) -> None:
        super().__init__()
        # Beside each layer: its output (channels x height x width) and receptive field.
        self.block1 = nn.Sequential(
            nn.Conv2d(1, 16, 3, bias=False),  # 16 x 26 x 26, RF 3
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, bias=False),  # 32 x 24 x 24, RF 5
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
        )
        self.transition = nn.Sequential(
            nn.Conv2d(32, 10, 1, bias=False),  # 10 x 24 x 24, RF 5
            nn.MaxPool2d(2),  # 10 x 12 x 12, RF 6
            nn.Dropout(0.05),
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(10, 16, 3, bias=False),  # 16 x 10 x 10, RF 10
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, bias=False),  # 16 x 8 x 8, RF 14
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, bias=False),  # 16 x 6 x 6, RF 18
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),  # 16 x 6 x 6, RF 22
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Dropout(0.05),
        )
        self.head = nn.Sequential(
            nn.AvgPool2d(6),  # 16 x 1 x 1, RF 32
            nn.Conv2d(16, 10, 1, bias=False),  # 10 x 1 x 1, RF 32
            nn.Flatten(),  # 10 logits
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized, to logits (N, 10)."""
        return self.head(self.block2(self.transition(self.block1(images))))
