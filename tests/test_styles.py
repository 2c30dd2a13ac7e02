"""Networks in five styles, each a file of its own, through the tools that look inside one."""

import re

import pytest
import torch

import networks
from files import write_state
from tools import export, receptive_field, report

HEAD = '''"""An attempt."""

import torch
from torch import nn
from torch.nn import functional as F


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.build()


'''
STYLES = {  # the network, its receptive field by hand, and the last layer that makes maps
    "nested": (
        """
class Block(Own):
    def build(self):
        norm = nn.Sequential(nn.BatchNorm2d(4), nn.LeakyReLU(inplace=True))
        bent = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout2d(0.1), norm)
        self.paths = nn.ModuleDict({"straight": nn.Identity(), "bent": bent})

    def forward(self, x):
        return sum(path(x) for path in self.paths.values())


class Model_nested(Own):
    def build(self):
        deep = nn.Sequential(Block(), nn.Sequential(Block(), nn.AvgPool2d(6)))
        self.stages = nn.ModuleList([nn.Conv2d(1, 4, 4, stride=2), nn.MaxPool2d(2), deep])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.head(x)
""",
        *(42, "stages.2.1.0"),
    ),
    "functional": (
        """
class Model_functional(Own):
    def build(self):
        self.filters = nn.Parameter(torch.randn(5, 1, 5, 5) / 5)
        self.depthwise = nn.Parameter(torch.randn(5, 1, 3, 3) / 3)
        self.matrix = nn.Parameter(torch.randn(5, 10) / 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(F.conv2d(x, self.filters, padding=2)), 2)
        x = F.silu(F.conv2d(x, self.depthwise, groups=5, dilation=2))
        return F.adaptive_avg_pool2d(x, 1).flatten(1) @ self.matrix
""",
        *(32, None),
    ),
    "shared": (
        """
class Model_shared(Own):
    def build(self):
        self.first, self.again = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.tied = nn.Conv2d(6, 6, 3, padding=1)
        self.tied.weight = self.again.weight
        self.norm, self.out = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        start = x = F.max_pool2d(self.first(x), 2)
        for layer in (self.again, self.again, self.tied):
            x = F.relu(self.norm(layer(x)), inplace=True) + x
        left, right = x.chunk(2, dim=1)
        x = torch.cat([start[:, :3], right * torch.sigmoid(left)], dim=1).tanh_()
        return self.out(x.mean(dim=(2, 3)))
""",
        *(40, "tied"),
    ),
    "attention": (
        """
class Model_attention(Own):
    def build(self):
        self.patches, self.out = nn.Conv2d(1, 24, 4, 4), nn.Linear(24, 10)
        self.qkv = nn.Linear(24, 72)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(-1, 49, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + (q @ k.transpose(-2, -1)).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
        return self.out(x.mean(1))
""",
        *(None, "patches"),
    ),
    "fourier": (
        """
class Model_fourier(Own):
    def build(self):
        self.first, self.spectrum, self.out = nn.Conv2d(1, 4, 3), nn.Identity(), nn.Linear(4, 10)

    def forward(self, x):
        spectrum = self.spectrum(torch.fft.rfft2(self.first(x))) ** 2
        return self.out(torch.fft.irfft2(spectrum, s=(26, 26)).mean(dim=(2, 3)))
""",
        *(None, "first"),
    ),
}
ROWS = {  # of those that see the whole image at some operation: layer, output and measured field
    "attention": """convolution 1 to 24 24 x 7 x 7 4 x 4
linear 24 to 72 49 x 72 4 x 4
softmax 4 x 49 x 49 whole image
sum 49 x 24 whole image
average pool 24 whole image
linear 24 to 10 10 whole image""",
    "fourier": """convolution 1 to 4 4 x 26 x 26 3 x 3
fft_rfft2 4 x 26 x 14 whole image
average pool 4 whole image
linear 4 to 10 10 whole image""",
}


@pytest.mark.parametrize("style", STYLES)
def test_tools_take_a_network_in_any_style(style, few, tmp_path, monkeypatch, capsys) -> None:
    source, field, layer = STYLES[style]
    name = f"model_{style}"
    (tmp_path / f"{name}.py").write_text(HEAD + source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(networks, "ROOT", tmp_path)
    for tool in (report, export):
        monkeypatch.setattr(tool, "load_mnist", lambda data_dir, train: few["test"])
    titles = []  # of the pictures, which are not painted
    monkeypatch.setattr(
        report, "png", lambda figure: titles.extend(axes.get_title() for axes in figure.axes) or b""
    )
    torch.manual_seed(0)
    weights = tmp_path / f"{name}.pt"
    write_state(weights, networks.get_model(name).state_dict())

    assert report.main([str(weights)]) == 0
    named = [title.split()[3].rstrip(",") for title in titles if "Grad-CAM" in title]
    assert named == ([layer] if layer else [])

    text = receptive_field.table(name)
    reach = f"{field} px" if field else "the whole image"
    assert text.startswith(f"## Model_{style}: ") and f"receptive field {reach}\n" in text
    if field:
        assert f" {field} x {field} |\n" in text  # as measured
    else:
        cells = [re.split(r" *\| *", line) for line in text.splitlines() if line[:1] == "|"][3:]
        assert "\n".join(f"{row[1]} {row[3]} {row[6]}" for row in cells) == ROWS[style]
    if style != "fourier":  # which ONNX has not
        assert export.main([str(weights)]) == 0
        assert weights.with_suffix(".onnx").exists() and not capsys.readouterr().err
