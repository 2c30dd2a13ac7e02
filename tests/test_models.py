"""Every model file, and the known ones against their description, layer by layer."""

import itertools
import re
import sys

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch import Tensor, nn
from torch.nn import functional as F

import networks
from networks import count_parameters, get_model

PARTS = ["Target", "Result", "Analysis"]
COUNTS = {"model1": 13_808, "model2": 9_382, "model3": 7_784}
COUNTS |= {"model4": 7_556, "model5": 3_683, "model6": 691, "model_fast": 7_309}


def convs(*channels: int, padding: int = 0, bias: bool = False) -> list[nn.Module]:
    """3x3 convolutions, each followed by BatchNorm and ReLU."""
    layers = []
    for inputs, outputs in itertools.pairwise(channels):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=padding, bias=bias))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers


class Block(nn.Module):
    """The residual block of model4 as described, by other operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.ParameterList([torch.empty(width, 1, 3, 3)])
        self.norm1 = nn.BatchNorm2d(width)
        self.mix = nn.ParameterList([torch.empty(width, width, 1, 1)])
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        filters = enumerate(self.space[0][:, None])  # one a channel
        channels = [F.conv2d(x[:, i : i + 1], weight, padding=1) for i, weight in filters]
        y = self.norm1(torch.cat(channels, dim=1))
        y = torch.einsum("nchw,dc->ndhw", y, self.mix[0][:, :, 0, 0])
        return F.relu(x + self.norm2(y))


class Blur(nn.Module):
    """The maximum of the 2 x 2 window at every pixel, then average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, 1:], x[:, :, :-1])
        x = torch.maximum(rows[..., 1:], rows[..., :-1])
        # An odd side leaves half a window over, whose mean is of the pixels there are.
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")
        return F.avg_pool2d(x, 2)


def deskewed(image: np.ndarray, turn: float, zoom: float) -> np.ndarray:
    """An image (28, 28), centred and deskewed by its moments, rotated and scaled, with scipy."""
    background = image.min()
    ink = image - background
    mass, (row, column) = ink.sum(), ndimage.center_of_mass(ink)
    y, x = np.mgrid[:28, :28]
    covariance = (ink * (y - row) * (x - column)).sum() / mass
    skew = covariance / ((ink * (y - row) ** 2).sum() / mass + 0.001 * 14**2)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    rotation = np.array([[cos, sin], [-sin, cos]]) / zoom  # of rows and columns
    matrix = np.array([[1, 0], [skew, 1]]) @ rotation
    offset = [row, column] - matrix @ [13.5, 13.5]
    return ndimage.affine_transform(ink, matrix, offset, order=1) + background


def gradients(image: np.ndarray) -> np.ndarray:
    """The positive part of the gradient in eight directions, and the image, cropped by a pixel."""
    right, down = (ndimage.sobel(image, axis) / 8 for axis in (1, 0))
    angles = np.radians(np.arange(0, 360, 45))[:, None, None]
    maps = [*np.maximum(np.cos(angles) * right + np.sin(angles) * down, 0), image]
    return np.array(maps)[:, 1:-1, 1:-1]


class Deskewed(nn.Module):
    """Views of digits, deskewed, as maps (N, 9, 13, 13) to a network; the mean of its logits."""

    def __init__(self, network: nn.Module, zoom: float, views: list[tuple[int, float]]) -> None:
        super().__init__()
        self.network, self.training_views, self.views = network, [(0, zoom)], views

    def forward(self, images: Tensor) -> Tensor:
        views = self.training_views if self.training else self.views
        maps = [gradients(deskewed(image[0], *view)) for view in views for image in images.numpy()]
        logits = self.network(Blur()(torch.from_numpy(np.array(maps))))
        return logits.reshape(len(views), len(images), 10).mean(dim=0)


class Repeated(nn.Module):
    """model5 and model6 behind the maps: one block five times, and a discrete cosine transform."""

    def __init__(self, width: int, dense: bool = False) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1 if dense else 2))
        self.dilations = [1, 2, 2, 2, 2] if dense else [1] * 5
        self.scale, self.bias = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(10))
        self.space = nn.ParameterList([torch.empty(width, 1, 3, 3)])
        self.mix = nn.ParameterList([torch.empty(width, width, 1, 1)])
        self.between = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(5))
        self.shifts = nn.ParameterList([torch.empty(width) for _ in range(5)])
        waves = torch.from_numpy(fft.dct(np.eye(width), axis=0)[1:11] / 2)
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        x, read = torch.cat(6 * [maps], dim=1)[:, : len(self.shifts[0])], 0
        for time, norm in enumerate(self.norms):
            wide = self.dilations[time]
            y = F.conv2d(x, self.space[0], None, 1, wide, wide, x.shape[1])
            y = self.between[time](y)
            y = norm(F.conv2d(y, self.mix[0])) + self.shifts[time][:, None, None]
            x = F.relu(x + y) if time else self.pool(F.relu(x + y))
            read = read + (x.mean(dim=(2, 3)) / 3 if time > 1 else 0)
        return self.scale * (read @ self.waves.T) + self.bias


def described(name: str) -> nn.Sequential:
    """The network as it was published, each pool after the ReLU of the convolution before it."""
    dropout, views = nn.Dropout(0.05), [*itertools.product([-7, 7], [1.28, 1.12])]
    fast = nn.Sequential(
        *[nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False), nn.BatchNorm2d(9)],
        *[nn.Conv2d(9, 40, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU()],
        *[Block(40), Blur(), Block(40), Block(40)],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10)],
    )
    parts = {
        "model1": [
            [*convs(1, 16, 32), nn.Conv2d(32, 10, 1, bias=False), nn.MaxPool2d(2), dropout],
            [*convs(10, 16, 16, 16), *convs(16, 16, padding=1), dropout],
            [nn.AvgPool2d(6), nn.Conv2d(16, 10, 1, bias=False)],
        ],
        "model2": [
            [*convs(1, 16, 16, padding=1, bias=True), nn.MaxPool2d(2), nn.Conv2d(16, 12, 1)],
            [dropout, *convs(12, 20, 20, padding=1, bias=True), nn.MaxPool2d(2)],
            [nn.Conv2d(20, 24, 1), dropout, nn.AvgPool2d(7), nn.Conv2d(24, 10, 1)],
        ],
        "model3": [
            [*convs(1, 7, 7, 10), nn.MaxPool2d(2), *convs(10, 10, 12), nn.MaxPool2d(2)],
            [*convs(12, 16, 18, padding=1), dropout],
            [nn.AvgPool2d(3), nn.Flatten(), nn.Linear(18, 10)],
        ],
        "model4": [
            [*convs(1, 8), nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), Blur(), nn.ReLU()],
            [nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)],
            [nn.Conv2d(12, 37, 1, bias=False), nn.BatchNorm2d(37), nn.ReLU()],
            [Block(37), Blur(), Block(37), Block(37)],
            [nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout, nn.Linear(37, 10)],
        ],
        "model5": [[Deskewed(Repeated(54), 1.2, views)]],
        "model6": [[Deskewed(Repeated(20, dense=True), 1.2, views)]],
        "model_fast": [[Deskewed(fast, 1.2, views)]],
    }
    return nn.Sequential(*itertools.chain(*parts[name]), nn.Flatten())


@pytest.mark.parametrize("name", networks.list_models())
def test_every_model_file_says_what_it_is(name: str) -> None:
    """Shape, the three parts of the docstring, and the parameters in one of the two."""
    network = get_model(name)
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    story, contract = sys.modules[name].__doc__, type(network).__doc__
    assert story and re.findall("^(Target|Result|Analysis)", story, re.MULTILINE) == PARTS
    assert f"{count_parameters(network):,} parameters" in f"{story}{contract}"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", COUNTS)
def test_network_is_the_described_one(name: str, training: bool, mnist: dict) -> None:
    """Same logits, gradients and statistics: pooling before ReLU is the same as after it."""
    torch.manual_seed(0)
    model, reference = get_model(name).double(), described(name).double()
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
        learned = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        state = [x for name, x in network.state_dict().items() if name not in learned]
        return [logits, *gradients, *state]

    ours, theirs = results(model), results(reference)
    if name <= "model3":
        assert all(map(torch.equal, ours, theirs))
    else:  # channels-last: sums are rounded otherwise; model5 and 6 have filters in float32
        largest = max(value.abs().max().item() for value in theirs)
        exact = 1e-9 if name == "model4" else 1e-4
        torch.testing.assert_close(ours, theirs, rtol=exact, atol=exact * largest / 1000)


def test_model6_has_the_features_of_model5_at_more_places() -> None:
    """Every second one is a feature of model5 with 20 channels (in evaluation)."""
    torch.manual_seed(0)
    dense, sparse = get_model("model6").eval(), get_model("model5", width=20).eval()
    for norm in [*dense.between, *dense.norms]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    sparse.load_state_dict(dense.state_dict(), strict=False)  # not the second name of the filters
    maps = torch.randn(2, 20, 11, 11)
    others = maps[:, :, ::2, ::2]
    for number in range(1, 5):
        maps, others = dense.block(maps, number), sparse.block(others, number)
        torch.testing.assert_close(maps[:, :, ::2, ::2], others)
    images = torch.randn(2, 1, 28, 28)
    assert not torch.allclose(dense(images), sparse(images))


@pytest.mark.parametrize("name", COUNTS)
def test_every_layer_is_called_as_a_module(name: str) -> None:
    """So that the summary, hooks and the report see it."""
    model = get_model(name)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    called: list[nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, _inputs, _output: called.append(module))
    model.eval()(torch.zeros(1, 1, 28, 28))
    assert {*called} == {*layers}
