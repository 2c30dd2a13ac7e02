"""Attempt 5: a deskewed digit, one shared block, and four views at test time.

Target    The challenge on every seed with at most 3,762 parameters, the number of a public
          network, and with training steps that cost no more than model4's.
Result    99.51 % at the last epoch over 26 seeds with the recipe "strong", 99.43 % at least; 26 of
          26 have all of the last five epochs at 99.4 % or more. The accuracy averages four views
          of an image at test time; by one view it is 0.05 points lower (five seeds, of which four
          pass). A step takes 0.94 times as long as one of model4 on one thread.
Analysis  What helps a network this small costs no parameter. An image is deskewed by its moments
          and enlarged by a factor of 1.2. Fixed Sobel filters give its gradient in eight
          directions. These maps, repeated to 54 channels, pass five times through one separable
          residual block: its filters are shared, each pass has two BatchNorms of its own, of which
          the second learns a bias. The classifier has ten fixed cosines as weights. 612 numbers
          are fixed (72 of filters, 540 of cosines) and not among the 3,683 parameters.
          Four views at test time, of two rotations and two scales, cost nothing in training.
          Training on two views instead gained as much, in nearly twice the time.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

View = tuple[float, float]  # rotation in degrees, and scale
VIEWS: tuple[View, ...] = ((-7.0, 1.12), (-7.0, 1.28), (7.0, 1.12), (7.0, 1.28))


def deskew(images: Tensor, rotation: float, scale: float) -> Tensor:
    """Centres images (N, 1, S, S), removes their slant, then rotates (degrees) and scales them.

    The centre is that of mass. The slant is the slope of the regression of x on y over the ink:
    cov(x, y) / (var(y) + 0.001); the 0.001 gives a horizontal stroke a slant of 0.
    """
    background = images.amin(dim=(2, 3), keepdim=True)
    ink = images - background  # so that the zero padding of grid_sample is background
    side = images.shape[-1]
    x = (2 * torch.arange(side, device=images.device, dtype=images.dtype) + 1) / side - 1
    y = x[:, None]
    weight = ink / ink.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)

    def mean(values: Tensor) -> Tensor:
        """The mean over the ink of each image: (N, 1, 1, 1)."""
        return (weight * values).sum(dim=(2, 3), keepdim=True)

    mean_x, mean_y = mean(x), mean(y)
    slant = mean((x - mean_x) * (y - mean_y)) / (mean((y - mean_y) ** 2) + 1e-3)
    angle = math.radians(rotation)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    rotated_x, rotated_y = cos * x - sin * y, sin * x + cos * y  # (S, S)
    from_x = rotated_x + slant * rotated_y + mean_x  # (N, 1, S, S): where each pixel comes from
    from_y = (rotated_y + mean_y).expand_as(from_x)
    grid = torch.cat([from_x, from_y], dim=1).permute(0, 2, 3, 1)
    return F.grid_sample(ink, grid, align_corners=False) + background


def gradient_filters() -> Tensor:
    """Sobel filters (8, 1, 3, 3) of the gradient in eight directions, every 45 degrees from +x."""
    offset = torch.arange(-1, 2)
    along_x = (2 - offset.abs())[:, None] * offset / 8  # a smoothed difference
    angles = torch.arange(8)[:, None, None] * math.pi / 4
    return (angles.cos() * along_x + angles.sin() * along_x.T)[:, None]


class Deskewed(nn.Module):
    """A network for deskewed images, with test-time augmentation; subclasses define `logits`.

    Training has one view, the deskewed digit scaled by `scale`. At test time the logits of all
    `views` are averaged.
    """

    def __init__(self, scale: float, views: tuple[View, ...]) -> None:
        super().__init__()
        self.views, self.training_view = views, (0.0, scale)
        self.register_buffer("gradients", gradient_filters(), persistent=False)

    def one_view(self) -> "Deskewed":
        """A copy without test-time augmentation, which shares the weights."""
        model = copy.copy(self)
        model.views = (self.training_view,)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized, to logits (N, 10): the mean over all views."""
        views = [self.training_view] if self.training else self.views
        deskewed = torch.cat([deskew(images, *view) for view in views])
        return sum(self.logits(deskewed).chunk(len(views))) / len(views)

    def gradient_maps(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) to maps (N, 9, 13, 13): the gradient's positive part, the image."""
        rising = torch.relu(F.conv2d(images, self.gradients))
        features = torch.cat([rising, images[:, :, 1:-1, 1:-1]], dim=1)  # 9 x 26 x 26
        # MaxPool2d(2, stride=1), but ten times as fast on a CPU with so few channels.
        features = torch.maximum(features[:, :, 1:], features[:, :, :-1])
        features = torch.maximum(features[..., 1:], features[..., :-1])  # 9 x 25 x 25
        # As in model4: the last row and column are repeated, then the mean halves the size.
        return F.avg_pool2d(F.pad(features, (0, 1, 0, 1), mode="replicate"), 2)


class Model_5(Deskewed):
    """Images (N, 1, 28, 28) to logits (N, 10). 3,683 parameters, receptive field the whole image.

    `width` is the number of channels of the block, at least 11: with 10, the last cosine is 0.
    """

    stride = 2  # of the second pool

    def __init__(
        self, width: int = 54, scale: float = 1.2, views: tuple[View, ...] = VIEWS
    ) -> None:
        super().__init__(scale, views)
        self.width = width
        # The block, which is applied once before the second pool and four times after it.
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        # Each time it has two BatchNorms of its own: between its convolutions, and after them.
        self.between = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(5))
        for norm in self.norms:  # only the bias is learned; nn.BatchNorm2d has no such option
            del norm.weight
            norm.register_buffer("weight", torch.ones(width), persistent=False)
        # The classifier: orthogonal cosines, k + 1 half waves over the channels for digit k. One
        # scale and ten biases are learned.
        phase = math.pi * (torch.arange(width) + 0.5) / width
        cosines = torch.cos(torch.arange(1, 11)[:, None] * phase)  # (10, width)
        self.register_buffer("cosines", cosines, persistent=False)
        self.scale = nn.Parameter(torch.ones(1))  # of the logits
        self.bias = nn.Parameter(torch.zeros(10))

    def block(self, features: Tensor, number: int) -> Tensor:
        """The block, with BatchNorm `number`, from 0: (N, width, H, W) to the same shape."""
        change = self.pointwise(self.between[number](self.depthwise(features)))
        return torch.relu(features + self.norms[number](change))

    def logits(self, images: Tensor) -> Tensor:
        """The logits (N, 10) of deskewed images (N, 1, 28, 28)."""
        features = self.gradient_maps(images)
        features = torch.cat([features] * math.ceil(self.width / 9), dim=1)[:, : self.width]
        if images.is_cpu:  # where this layout is faster
            features = features.contiguous(memory_format=torch.channels_last)
        features = F.max_pool2d(self.block(features, 0), 2, stride=1)
        features = self.block(F.avg_pool2d(features, 2, self.stride), 1)  # width x 6 x 6
        means = []
        for number in range(2, 5):
            features = self.block(features, number)
            means.append(features.mean(dim=(2, 3)))
        pooled = sum(means) / len(means)  # global average pooling of three blocks
        return self.scale * F.linear(pooled, self.cosines) + self.bias
