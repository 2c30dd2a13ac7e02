"""Write the tables of RF.md: the receptive field of each layer of each model.

    python -m tools.receptive_field             # writes RF.md, below its introduction
    python -m tools.receptive_field --check     # exit code 1 where RF.md is stale

Both figures come from what a network does, operation by operation (trace.py): the computed one
from kernels, strides and padding, the measured one from the pixels that have a gradient.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cli import Parser, RunError, exit_code
from files import write_atomically
from mnist import IMAGE_SIZE
from networks import ROOT, count_parameters, get_model, list_models
from tools.trace import Step, trace

RF_MD = ROOT / "RF.md"
WIDE = 3 * IMAGE_SIZE  # pixels: on so wide an image no border cuts off the field in its middle
POOLS = {"max_pool2d": "max pool", "amax": "max pool", "avg_pool2d": "average pool"}
POOLS |= {"adaptive_avg_pool2d": "average pool", "mean": "average pool"}
# Besides what torch calls pointwise, these treat each position by itself.
BY_POSITION = {"alias", "batch_norm", "cat", "chunk", "contiguous", "dropout"}
BY_POSITION |= {"feature_dropout", "hardswish", "leaky_relu", "prelu", "repeat", "slice", "split"}
Geometry = tuple[int, int, int | str]  # kernel size, its dilation included; stride; padding
Field = tuple[int, int]  # pixels along an axis that a value can depend on; from a value to the next


class Layer(NamedTuple):
    """What is known of a step; without a title, it changes no field and has no row."""

    title: str | None
    geometry: Geometry | None
    field: Field | None


# ------------------------------------------------------------------------------ computed


def geometry_of(step: Step, source: Tensor) -> Geometry | None:
    """How a step combines the positions of the map (N, C, H, W) that it reads; None if unknown."""
    settings, shape, point = step.settings, step.output.shape, (1, 1, 0)
    if source.ndim < 4:  # all of an image has been read
        return point
    if step.name in ("conv2d", "max_pool2d", "avg_pool2d") and len(step.reads) == 1:
        kernel = settings.get("kernel_size") or settings["weight"].shape[2:]
        stride, padding = settings["stride"] or kernel, settings["padding"]
        kernel = [1 + d * (k - 1) for k, d in zip(kernel, settings.get("dilation", (1, 1)))]
        padding = [padding] * 2 if isinstance(padding, str) else padding
    elif shape[2:] == source.shape[2:]:
        pointwise = torch.Tag.pointwise in step.operation.tags or step.name in BY_POSITION
        return point if pointwise and not settings.get("training") else None
    elif len(shape) < 3 or shape[2:] == (1, 1):  # all of a map
        kernel, stride, padding = source.shape[2:], source.shape[2:], (0, 0)
    else:
        return None
    axes = set(zip(kernel, stride, padding))
    return axes.pop() if len(axes) == 1 else None


def next_field(read: list[Field | None], geometry: Geometry | None) -> Field | None:
    """RF += (k - 1) * jump, jump *= stride, from the largest of what is read; None if unknown."""
    if geometry is None or None in read or len({jump for _, jump in read}) > 1:
        return None
    (kernel, stride, _), (size, jump) = geometry, max(read)
    return size + (kernel - 1) * jump, jump * stride


def title_of(step: Step, geometry: Geometry | None) -> str | None:
    """What a step is called in its row; None where it has none, since it changes no field."""
    if step.name in ("conv2d", "linear") and len(step.reads) == 1:
        weight, groups = step.settings["weight"], step.settings.get("groups", 1)
        kind = "linear" if step.name == "linear" else "depthwise" if groups > 1 else "convolution"
        return f"{kind} {weight.shape[1] * groups} to {weight.shape[0]}"
    changes = geometry is None or geometry[0] > 1  # a flattened map, or what is unknown
    return POOLS.get(step.name, step.name if changes else None)


def layers(steps: list[Step]) -> list[Layer]:
    """What is known of each step; of the images, the first, that they are the input."""
    result = [Layer("input", None, (1, 1))]
    for step in steps[1:]:
        geometry = geometry_of(step, steps[step.reads[0]].output)
        field = next_field([result[read].field for read in step.reads], geometry)
        result.append(Layer(title_of(step, geometry), geometry, field))
    return result


# ------------------------------------------------------------------------------ measured


def extent(values: Tensor, images: Tensor) -> str:
    """Height x width of the pixels that `values` have a gradient in; a dash if they have none."""
    with contextlib.suppress(RuntimeError):  # an operation that cannot be differentiated
        (gradient,) = torch.autograd.grad(values.sum(), images, retain_graph=True)
        pixels = gradient.abs().sum(dim=(0, 1)).nonzero()
        if len(pixels):
            return "{} x {}".format(*(pixels.amax(dim=0) - pixels.amin(dim=0) + 1).tolist())
    return "-"


def middle(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The middle of a tensor, of this shape."""
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - size) // 2, size)
    return tensor.contiguous()


def measured_fields(steps: list[Step]) -> Iterator[str]:
    """The pixels that the value in the middle of each step's output has a gradient in.

    The steps run on images WIDE pixels wide. What reads all of a map reads its middle, as large
    as the map of a digit is. Max pooling passes a gradient to one pixel of four and an activation
    may pass none, but over all channels and a batch of random images every edge is reached.
    """
    images = torch.randn(8, 1, WIDE, WIDE, requires_grad=True)
    outputs: list[Tensor] = [images]  # read as copies, for what works in place
    for step in steps[1:]:
        result = None
        with contextlib.suppress(RuntimeError):  # such as a view to sizes of its own
            result = step.run({x: outputs[x] * 1 for x in step.reads})
        if result is None or result.ndim < 4 or result.shape == step.output.shape:
            read = {x: middle(outputs[x] * 1, steps[x].output.shape) for x in step.reads}
            result = step.run(read)
        outputs.append(result)
        yield extent(middle(result, (*result.shape[:2], 1, 1)[: result.ndim]), images)


# -------------------------------------------------------------------------------- tables


def table(name: str) -> str:
    """The Markdown section of one model: a row for the input and for each layer."""
    torch.manual_seed(0)
    model, images = get_model(name), torch.randn(8, 1, IMAGE_SIZE, IMAGE_SIZE)
    steps = trace(model, images)
    known, measured = layers(steps), ["", *measured_fields(steps)]
    row = "| {:22} | {:9} | {:12} | {:>4} | {:>4} | {:>8} |".format
    rows = [row("layer", "k / s / p", "output", "RF", "jump", "measured")]
    rows.append(row("---", "---", "---", "---:", "---:", "---:"))
    titled = [each for each in zip(steps, known, measured) if each[1].title]
    kinds = (at for at, (step, layer, _) in enumerate(titled) if at and layer.title != step.name)
    # Of what happens to an image before the first layer of a known kind, the last has a row.
    del titled[1 : next(kinds, 1) - 1]
    for step, layer, pixels in titled:
        sizes = "/".join(map(str, layer.geometry or ("-" if pixels else "")))
        shape = " x ".join(map(str, step.output.shape[1:]))
        rows.append(row(layer.title, sizes, shape, *(layer.field or "--"), pixels))
    field = known[-1].field[0] if known[-1].field else measured[-1]
    title = f"## {type(model).__name__}: {count_parameters(model):,} parameters"
    seen = extent(model(images.requires_grad_() * 1), images)
    note = f"Of an image of 28 x 28, the logits see {seen}."
    return "\n".join([f"{title}, receptive field {field} px", "", *rows, "", note, ""])


def update(args: argparse.Namespace) -> None:
    """Write RF.md, or with `args.check` raise RunError where it is not as it has to be."""
    before = RF_MD.read_text(encoding="utf-8")
    content = "\n".join([before.partition("\n## ")[0], *map(table, list_models())])
    if not args.check:
        write_atomically(RF_MD, content.encode())
        print(f"{RF_MD.name} written: {len(list_models())} models")
    elif before != content:
        raise RunError(f"{RF_MD.name} is stale; run python -m tools.receptive_field")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("python -m tools.receptive_field", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    return exit_code(parser.prog, update, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
