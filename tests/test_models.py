"""Every attempt that is there, and the known ones against their description, layer by layer."""

import itertools
import re
import sys

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch import Tensor, nn
from torch.nn import functional as F

import attempts
from attempts import build_network, count_parameters

PARTS = ["Target", "Result", "Analysis"]
COUNTS = {"model1": 13_808, "model2": 9_382, "model3": 7_784}
COUNTS |= {"model4": 7_556, "model5": 5_048, "model6": 986, "model7": 3_683}


def convs(*channels: int, padding: int = 0, bias: bool = False) -> list[nn.Module]:
    """3x3 convolutions, each followed by what the description lets follow it."""
    layers = []
    for inputs, outputs in itertools.pairwise(channels):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=padding, bias=bias))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers


class Block(nn.Module):
    """A residual block of model4 or model5 as it is described, from functions alone."""

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.space = nn.ParameterList([torch.empty(width, 1, 3, 3)])
        self.norm1 = nn.BatchNorm2d(width, affine=affine)
        self.mix = nn.ParameterList([torch.empty(width, width, 1, 1)])
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        filters = enumerate(self.space[0][:, None])  # one a channel
        channels = [F.conv2d(x[:, i : i + 1], weight, padding=1) for i, weight in filters]
        y = self.norm1(torch.cat(channels, dim=1))
        y = torch.einsum("nchw,dc->ndhw", y, self.mix[0][:, :, 0, 0])
        return F.relu(x + self.norm2(y))


class Blur(nn.Module):
    """The largest of each 2 x 2 window, of which there is one at every pixel, halved by a mean."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, 1:], x[:, :, :-1])
        x = torch.maximum(rows[..., 1:], rows[..., :-1])
        # An odd side leaves half a window over; its mean is of what is there.
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")
        return F.avg_pool2d(x, 2)


def separable(first: int, second: int, width: int, affine: bool, dropout: float) -> list[nn.Module]:
    """The layers of model4 and model5, with a weight and a bias between two convolutions or not."""
    return [
        *convs(1, first),
        nn.Conv2d(first, second, 3, bias=False),
        nn.BatchNorm2d(second),
        Blur(),
        nn.ReLU(),
        nn.Conv2d(second, second, 3, padding=1, groups=second, bias=False),
        nn.BatchNorm2d(second, affine=affine),
        nn.Conv2d(second, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, affine),
        Blur(),
        Block(width, affine),
        Block(width, affine),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width, 10),
    ]


def upright(image: np.ndarray, turn: float) -> np.ndarray:
    """An image (28, 28) moved and sheared by the moments of its ink, then turned, with scipy."""
    paper = image.min()
    ink = image - paper
    mass, (row, column) = ink.sum(), ndimage.center_of_mass(ink)
    y, x = np.mgrid[:28, :28]
    covariance = (ink * (y - row) * (x - column)).sum() / mass
    slant = covariance / ((ink * (y - row) ** 2).sum() / mass + 0.001 * 14**2)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    matrix = np.array([[1, 0], [slant, 1]]) @ [[cos, sin], [-sin, cos]]  # of rows and columns
    offset = [row, column] - matrix @ [13.5, 13.5]
    return ndimage.affine_transform(ink, matrix, offset, order=1) + paper


def rising(image: np.ndarray) -> np.ndarray:
    """Its slope in eight directions, 0 where negative, and an image, cropped by a pixel."""
    right, down = (ndimage.sobel(image, axis) / 8 for axis in (1, 0))
    angles = np.radians(np.arange(0, 360, 45))[:, None, None]
    maps = [*np.maximum(np.cos(angles) * right + np.sin(angles) * down, 0), image]
    return np.array(maps)[:, 1:-1, 1:-1]


class Repeated(nn.Module):
    """model6 and model7 as described: one block five times, and a discrete cosine transform."""

    def __init__(self, width: int, *turns: float) -> None:
        super().__init__()
        self.turns = turns
        self.scale, self.bias = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(10))
        self.space = nn.ParameterList([torch.empty(width, 1, 3, 3)])
        self.mix = nn.ParameterList([torch.empty(width, width, 1, 1)])
        self.between = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.shifts = nn.ParameterList([torch.empty(width) for _ in range(5)])
        waves = torch.from_numpy(fft.dct(np.eye(width), axis=0)[1:11] / 2)
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        views = [upright(image[0], turn) for turn in self.turns for image in images.numpy()]
        maps = Blur()(torch.from_numpy(np.array([*map(rising, views)])))
        x, read = torch.cat(6 * [maps], dim=1)[:, : len(self.shifts[0])], 0
        for time, norm in enumerate(self.norms):
            y = self.between[time](F.conv2d(x, self.space[0], padding=1, groups=x.shape[1]))
            y = norm(F.conv2d(y, self.mix[0])) + self.shifts[time][:, None, None]
            x = F.relu(x + y) if time else Blur()(F.relu(x + y))
            read = read + (x.mean(dim=(2, 3)) / 3 if time > 1 else 0)
        logits = self.scale * (read @ self.waves.T) + self.bias
        return logits.reshape(len(self.turns), len(images), 10).mean(dim=0)


def described(name: str) -> nn.Sequential:
    """The network as it was published, each pool after the ReLU of the convolution before it."""
    layers = {
        "model1": [
            *convs(1, 16, 32),
            nn.Conv2d(32, 10, 1, bias=False),
            nn.MaxPool2d(2, 2),
            nn.Dropout(0.05),
            *convs(10, 16, 16, 16),
            *convs(16, 16, padding=1),
            nn.Dropout(0.05),
            nn.AvgPool2d(6),
            nn.Conv2d(16, 10, 1, bias=False),
        ],
        "model2": [
            *convs(1, 16, 16, padding=1, bias=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(16, 12, 1),
            nn.Dropout(0.05),
            *convs(12, 20, 20, padding=1, bias=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(20, 24, 1),
            nn.Dropout(0.05),
            nn.AvgPool2d(7),
            nn.Conv2d(24, 10, 1),
        ],
        "model3": [
            *convs(1, 7, 7, 10),
            nn.MaxPool2d(2, 2),
            *convs(10, 10, 12),
            nn.MaxPool2d(2, 2),
            *convs(12, 16, 18, padding=1),
            nn.Dropout(0.05),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(18, 10),
        ],
        "model4": separable(8, 12, 37, affine=True, dropout=0.05),
        "model5": separable(7, 11, 29, affine=False, dropout=0.0),
        "model6": [Repeated(25, 0)],
        "model7": [Repeated(54, -7, 7)],
    }
    return nn.Sequential(*layers[name], nn.Flatten())


@pytest.mark.parametrize("name", attempts.attempts())
def test_every_attempt_is_what_its_file_says(name: str) -> None:
    """Shape, parameters and the three parts of the docstring, of a stranger's file too."""
    network = build_network(name)
    for count in (1, 128):
        assert network(torch.zeros(count + 1, 1, 28, 28)).shape == (count + 1, 10)
    story, contract = sys.modules[name].__doc__, type(network).__doc__
    assert story and re.findall("^(Target|Result|Analysis)", story, re.MULTILINE) == PARTS
    assert contract and f"{count_parameters(network):,} parameters" in contract


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", COUNTS)
def test_network_is_the_described_one(name: str, training: bool, mnist: dict) -> None:
    """Same logits, gradients and statistics: pooling before ReLU is the same as after it."""
    torch.manual_seed(0)
    model, reference = build_network(name).double(), described(name).double()
    assert count_parameters(model) == COUNTS[name]
    for parameter in model.parameters():  # of both signs, BatchNorm's too: then order matters
        nn.init.normal_(parameter)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
            other.copy_(parameter)

    def results(network: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)  # of dropout
        images = mnist["train"][0][:16].double() / 255
        logits = network.train(training)((images - 0.1307) / 0.3081)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        learned = {name for name, _ in network.named_parameters()}
        state = [x for name, x in network.state_dict().items() if name not in learned]
        return [logits, *gradients, *state]

    ours, theirs = results(model), results(reference)
    if name > "model3":  # channels-last: sums are rounded otherwise
        largest = max(value.abs().max().item() for value in theirs)
        exact = 1e-9 if name < "model6" else 1e-4  # whose filters and waves are single
        torch.testing.assert_close(ours, theirs, rtol=exact, atol=exact * largest / 1000)
    else:
        assert all(map(torch.equal, ours, theirs))
