"""Write RF.md: the receptive field of each layer of each model, computed and measured.

    python -m tools.receptive_field             # writes RF.md
    python -m tools.receptive_field --check     # exit code 1 where RF.md is stale

Both figures come from the modules themselves: the computed one from their kernels and strides,
the measured one from the pixels that have a gradient. Each network is a chain of layers.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from command_line import Parser, RunError, exit_code
from mnist import IMAGE_SIZE
from model4 import Residual
from run_folder import MODELS, count_parameters, write_atomically

RF_MD = Path(__file__).parents[1] / "RF.md"
WIDE = 3 * IMAGE_SIZE  # pixels: on so wide an image no border cuts off the field in its middle

INTRODUCTION = """\
<!-- Written by `python -m tools.receptive_field`: change that file, not this one. -->

# Receptive fields

The receptive field (RF) of a value is the square of input pixels that it can depend on. A layer
with kernel size k combines k neighbouring values of its input along each axis. Neighbours lie
one *jump* apart, counted in input pixels; so the field grows by k - 1 jumps, and a stride
multiplies the jump for the layers that follow:

    RF += (k - 1) * jump
    jump *= stride

Both are 1 at the input. Padding moves the fields and leaves their size alone. Batch
normalisation, activation and dropout treat each position by itself: they change neither number
and have no row below. A linear layer on a 1 x 1 map is a 1x1 convolution. A residual block has
the field of its longer path.

The column *measured* checks this arithmetic. The model, with random weights, reads random images
three times as wide and as high as a digit, so that no border cuts off a field. The value in the
middle of a layer's output is differentiated with respect to the image; measured is the height
and width of the pixels whose gradient is not zero.

In each model the field of the logits is larger than an image of 28 x 28. Still a pixel may not
count at all: a 2 x 2 pool drops the last row and column of a map of odd size, as the second pool
of Model_3 does; those of Model_4 round up instead (ceil_mode), and drop nothing. The line below
each table says how much of an image has a gradient. Nor do all pixels count alike. How much each
one does in the trained Model_4, as `python -m tools.report` draws it:

![How much each pixel counts for the logits of Model_4](results/model4-receptive-field.png)
"""

NAMES = {  # of the layers that get a row; the others treat each position by itself
    nn.Conv2d: "{kind} {0.in_channels} to {0.out_channels}",
    Residual: "residual block",
    nn.MaxPool2d: "max pool",
    nn.AvgPool2d: "average pool",
    nn.Linear: "linear {0.in_features} to {0.out_features}",
}


def chain(model: nn.Module) -> list[nn.Module]:
    """The layers of `model` in the order in which they run; puts it into evaluation mode.

    A residual block is one layer: its field is that of its longer path.
    """

    def flat(module: nn.Module) -> list[nn.Module]:
        parts = list(module.children())
        if isinstance(module, Residual) or not parts:
            return [module]
        return [layer for part in parts for layer in flat(part)]

    return flat(model.eval())


def geometry(layer: nn.Module) -> tuple[int, ...]:
    """Kernel size, stride and padding of a layer; 1, 1, 0 where it treats positions one by one."""
    sizes = [getattr(layer, name, 1) for name in ("kernel_size", "stride")]
    sizes.append(getattr(layer, "padding", 0))
    return tuple(size if isinstance(size, int) else size[0] for size in sizes)


def computed_fields(layers: list[nn.Module]) -> list[tuple[int, int]]:
    """Receptive field and jump after each layer, in input pixels."""
    fields, field, jump = [], 1, 1
    for kernel, stride, _ in map(geometry, layers):
        field += (kernel - 1) * jump
        jump *= stride
        fields.append((field, jump))
    return fields


def measured_fields(layers: list[nn.Module], size: int = WIDE) -> list[tuple[int, int]]:
    """Height and width of the pixels that the middle of each layer's output has a gradient in.

    Max pooling passes a gradient to one pixel of four and an activation may pass none, but over
    all channels and a batch of random images, `size` pixels wide, every edge of a field is reached.
    """
    images = torch.randn(8, 1, size, size, generator=torch.Generator().manual_seed(0))
    features = middle = images.requires_grad_()
    fields = []
    for layer in layers:
        if isinstance(layer, nn.Flatten):  # what follows classifies one position: the middle
            features = middle
        features = layer(features)
        centre = features.shape[-1] // 2
        middle = features[:, :, centre, centre] if features.ndim == 4 else features
        (gradient,) = torch.autograd.grad(middle.sum(), images, retain_graph=True)
        extent = gradient.abs().sum(dim=(0, 1)).nonzero()
        fields.append(tuple((extent.amax(dim=0) - extent.amin(dim=0) + 1).tolist()))
    return fields


def table(name: str) -> str:
    """The Markdown section of one model: a row for the input and for each layer with a name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]()
    layers = chain(model)
    features = torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    rows = [
        ("layer", "k / s / p", "output", "RF", "jump", "measured"),
        ("---", "---", "---", "---:", "---:", "---:"),
        ("input", "", "1 x 28 x 28", 1, 1, ""),
    ]
    for layer, field, measured in zip(layers, computed_fields(layers), measured_fields(layers)):
        features = layer(features)
        if type(layer) in NAMES:
            sizes = "/".join(map(str, geometry(layer)))
            shape = " x ".join(map(str, features.shape[1:]))
            extent = " x ".join(map(str, measured))
            kind = "depthwise" if getattr(layer, "groups", 1) > 1 else "convolution"
            title = NAMES[type(layer)].format(layer, kind=kind)
            rows.append((title, sizes, shape, *field, extent))
    parameters = count_parameters(model)
    title = f"## {type(model).__name__}: {parameters:,} parameters, receptive field {field[0]} px"
    lines = (
        f"| {layer:22} | {sizes:9} | {shape:12} | {field:>4} | {jump:>4} | {measured:>8} |"
        for layer, sizes, shape, field, jump, measured in rows
    )
    seen = " x ".join(map(str, measured_fields(layers, IMAGE_SIZE)[-1]))
    return "\n".join([title, "", *lines, "", f"Of an image of 28 x 28, the logits see {seen}.", ""])


def document() -> str:
    """RF.md as it has to be."""
    return "\n".join([INTRODUCTION, *map(table, MODELS)])


def update(args: argparse.Namespace) -> None:
    """Write RF.md, or with `args.check` raise RunError where it is not as it has to be."""
    content = document()
    if not args.check:
        write_atomically(RF_MD, content.encode())
        print(f"{RF_MD.name} written: {len(MODELS)} models")
    elif not RF_MD.exists() or RF_MD.read_text(encoding="utf-8") != content:
        raise RunError(f"{RF_MD.name} is stale; run python -m tools.receptive_field")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.receptive_field"
    parser = Parser(prog, __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    return exit_code(prog, update, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
