"""The three networks against their published description, layer by layer."""

import pytest
import torch
from torch import Tensor, nn

from run_folder import MODELS


def conv(inputs: int, outputs: int, padding: int = 0, bias: bool = False) -> list[nn.Module]:
    """A 3x3 convolution with what the description lets follow it: BatchNorm, then ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=bias)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def described(name: str) -> nn.Sequential:
    """The network as it was published, each pool after the ReLU of the convolution before it."""
    layers = {
        "model1": [
            *conv(1, 16),
            *conv(16, 32),
            nn.Conv2d(32, 10, 1, bias=False),
            nn.MaxPool2d(2, 2),
            nn.Dropout(0.05),
            *conv(10, 16),
            *conv(16, 16),
            *conv(16, 16),
            *conv(16, 16, padding=1),
            nn.Dropout(0.05),
            nn.AvgPool2d(6),
            nn.Conv2d(16, 10, 1, bias=False),
        ],
        "model2": [
            *conv(1, 16, padding=1, bias=True),
            *conv(16, 16, padding=1, bias=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(16, 12, 1),
            nn.Dropout(0.05),
            *conv(12, 20, padding=1, bias=True),
            *conv(20, 20, padding=1, bias=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(20, 24, 1),
            nn.Dropout(0.05),
            nn.AvgPool2d(7),
            nn.Conv2d(24, 10, 1),
        ],
        "model3": [
            *conv(1, 7),
            *conv(7, 7),
            *conv(7, 10),
            nn.MaxPool2d(2, 2),
            *conv(10, 10),
            *conv(10, 12),
            nn.MaxPool2d(2, 2),
            *conv(12, 16, padding=1),
            *conv(16, 18, padding=1),
            nn.Dropout(0.05),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(18, 10),
        ],
    }
    return nn.Sequential(*layers[name], nn.Flatten())


@pytest.mark.parametrize(
    ("name", "count", "biased"),
    [
        ("model1", 13_808, set()),
        ("model2", 9_382, {nn.Conv2d}),
        ("model3", 7_784, {nn.Linear}),
    ],
)
def test_parameter_count_and_biases(name: str, count: int, biased: set[type]) -> None:
    model = MODELS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert (layer.bias is not None) == (type(layer) in biased)


@pytest.mark.parametrize("count", [1, 128])
@pytest.mark.parametrize("name", MODELS)
def test_output_shape(name: str, count: int) -> None:
    assert MODELS[name]()(torch.zeros(count, 1, 28, 28)).shape == (count, 10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_network_is_the_described_one(name: str, training: bool, mnist: dict) -> None:
    """Same logits, gradients and statistics: pooling before ReLU is the same as after it."""
    torch.manual_seed(0)
    model, reference = MODELS[name]().train(training), described(name).train(training)
    for parameter in model.parameters():  # of both signs, BatchNorm's too: then order matters
        nn.init.normal_(parameter)
    values = model.state_dict().values()
    reference.load_state_dict(dict(zip(reference.state_dict(), values, strict=True)))

    def results(network: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)  # of dropout
        logits = network(mnist["train"][0][:16] / 255)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        return [logits, *gradients, *network.buffers()]

    pairs = zip(results(model), results(reference), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
