"""Write the tables of RF.md: the receptive field of each layer of each model.

    python -m tools.receptive_field             # writes RF.md, below its introduction
    python -m tools.receptive_field --check     # exit code 1 where RF.md is stale

Both figures come from the operations that a network performs (trace.py): the computed one from
kernels, strides and padding, the measured one from the pixels that have a gradient.
"""

import argparse
import contextlib
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cli import Parser, RunError, exit_code
from device import reuse_freed_memory
from files import write_atomically
from mnist import IMAGE_SIZE
from networks import ROOT, count_parameters, get_model, list_models
from tools.trace import Step, first_with_weights, trace

RF_MD = ROOT / "RF.md"
IMAGES = 6  # in a batch; does not divide common numbers of tokens: 16, 49, 50, 196
WIDE = 3 * IMAGE_SIZE  # pixels: so that no border limits the field of the centre
WHOLE = "whole image"
POOLS = {"max_pool2d": "max pool", "amax": "max pool", "avg_pool2d": "average pool"}
POOLS |= {"adaptive_avg_pool2d": "average pool", "mean": "average pool"}
LINEAR = ("linear", "matmul", "mm", "addmm")
JOINS = {"add": "sum", "maximum": "max of two"}  # of two maps
# Besides those that torch tags as pointwise, these keep the receptive field of each position.
BY_POSITION = {"alias", "batch_norm", "cat", "chunk", "contiguous", "dropout", "feature_dropout"}
BY_POSITION |= {"hardswish", "leaky_relu", "pad", "prelu", "repeat", "slice", "split"}
Geometry = tuple[int, int, int | str]  # kernel size, including dilation; stride; padding
Field = tuple[int, int]  # receptive field and jump, in pixels


class Layer(NamedTuple):
    """A step as a layer; None for what is unknown. Without a title, it has no row."""

    title: str | None
    geometry: Geometry | None
    field: Field | None
    shape: list[int]  # of the output, without the batch
    measured: str = ""

    @property
    def reach(self) -> str:
        """The receptive field as text: computed if possible, otherwise measured."""
        pixels = self.field[0] if self.field else self.measured
        return f"the {WHOLE}" if pixels == WHOLE else f"{pixels} px"

    @property
    def cells(self) -> tuple[object, ...]:
        """Its row in the table."""
        is_layer = self.title not in ("input", *JOINS.values())
        sizes = "/".join(map(str, self.geometry or "-")) if is_layer else ""
        shape = " x ".join(map(str, self.shape))
        return self.title, sizes, shape, *(self.field or "--"), self.measured


# ------------------------------------------------------------------------------ computed


def geometry_of(step: Step, source: Tensor) -> Geometry | None:
    """How a step combines positions of its input (N, C, H, W); None if unknown."""
    settings, shape, point = step.settings, step.output.shape, (1, 1, 0)
    if source.ndim < 4:  # behind global pooling, or a sequence
        return None if step.name in POOLS else point
    if step.name in ("conv2d", "max_pool2d", "avg_pool2d") and len(step.reads) == 1:
        kernel = settings.get("kernel_size") or settings["weight"].shape[2:]
        stride, padding = settings["stride"] or kernel, settings["padding"]
        kernel = [1 + d * (k - 1) for k, d in zip(kernel, settings.get("dilation", (1, 1)))]
        padding = [padding] * 2 if isinstance(padding, str) else padding
    elif shape[2:] == source.shape[2:] or step.name == "pad":
        pointwise = torch.Tag.pointwise in step.operation.tags or step.name in BY_POSITION
        return point if pointwise and not settings.get("training") else None
    elif len(shape) < 3 or shape[2:] == (1, 1):  # all of a map
        kernel, stride, padding = source.shape[2:], source.shape[2:], (0, 0)
    else:
        return None
    axes = set(zip(kernel, stride, padding))
    return axes.pop() if len(axes) == 1 else None


def next_field(read: list[Field | None], geometry: Geometry | None) -> Field | None:
    """RF += (k - 1) * jump, jump *= stride, from the largest field read; None if unknown."""
    if geometry is None or None in read or len({jump for _, jump in read}) > 1:
        return None
    (kernel, stride, _), (size, jump) = geometry, max(read)
    return size + (kernel - 1) * jump, jump * stride


def title_of(step: Step, geometry: Geometry | None) -> str | None:
    """The title of a layer with weights, a pool or a sum; None for what keeps the field.

    Any other operation has its own name as title.
    """
    settings = step.settings
    if step.name == "conv2d" and len(step.reads) == 1:
        (outputs, inputs, *_), groups = settings["weight"].shape, settings["groups"]
        kind = "convolution" if groups == 1 else "depthwise" if inputs == 1 else "grouped"
        return f"{kind} {inputs * groups} to {outputs}"
    if weights := step.weights:
        inputs, outputs = weights[0].shape[-2:][:: -1 if step.name == "linear" else 1]
        return f"linear {inputs} to {outputs}" if step.name in LINEAR else step.name
    if step.name in JOINS and len(set(step.reads)) == 2 and step.output.ndim > 2:
        return JOINS[step.name]
    changes = geometry[0] > 1 if geometry else not step.is_view
    return POOLS.get(step.name, step.name if changes else None)


def layers_of(steps: list[Step]) -> list[Layer]:
    """Each step as a layer; the first, the images, is the input."""
    result = [Layer("input", None, (1, 1), [1, IMAGE_SIZE, IMAGE_SIZE])]
    for step in steps[1:]:
        geometry = geometry_of(step, steps[step.reads[0]].output)
        field = next_field([result[read].field for read in step.reads], geometry)
        shape = [*step.output.shape]
        batch = next((axis for axis, size in enumerate(shape) if size % IMAGES == 0), 0)
        shape[batch : batch + 1] = []
        result.append(Layer(title_of(step, geometry), geometry, field, shape))
    return result


# ------------------------------------------------------------------------------ measured


def extent(values: Tensor, images: Tensor) -> tuple[int, int]:
    """Height and width of the region of `images` where `values` have a gradient; 0 if none."""
    values = values.abs() if values.is_complex() else values
    with contextlib.suppress(RuntimeError):  # an operation that cannot be differentiated
        (gradient,) = torch.autograd.grad(values.sum(), images, retain_graph=True)
        pixels = gradient.abs().sum(dim=(0, 1)).nonzero()
        if len(pixels):
            return tuple((pixels.amax(dim=0) - pixels.amin(dim=0) + 1).tolist())
    return 0, 0


def middle(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Crops the centre of a tensor to `shape`."""
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - size) // 2, size)
    return tensor.contiguous()


def wide_outputs(steps: list[Step]) -> list[Tensor]:
    """The outputs of the steps for random images of WIDE pixels, which come first.

    Global layers read the centre of their input, at the size that it has for a digit.
    """
    outputs = [torch.randn(IMAGES, 1, WIDE, WIDE, requires_grad=True)]
    for step in steps[1:]:
        result = None
        read = {at: outputs[at] * 1 for at in step.reads}  # copies, for in-place operations
        with contextlib.suppress(RuntimeError):  # such as a view to fixed sizes
            result = step.run(read)
        if result is None or result.ndim < 4 or result.shape == step.output.shape:
            read = {at: middle(outputs[at] * 1, steps[at].output.shape) for at in step.reads}
            result = step.run(read)
        outputs.append(result)
    return outputs


def measured_field(output: Tensor, images: Tensor, is_known: bool) -> str:
    """The region of the images where the central value of an output has a gradient.

    Max pooling passes a gradient to one pixel of four and an activation may pass none, but over
    all channels and a batch of random images every edge is reached.
    """
    centers = [(*output.shape[:2], 1, 1)[: output.ndim]]
    if output.ndim == 3:  # a sequence: (N, C, T), or (N, T, C), where the field is smaller
        centers.append((len(output), 1, output.shape[2]))
    pixels = min(extent(middle(output, center), images) for center in centers)
    if min(pixels) >= (WIDE if is_known else IMAGE_SIZE):
        return WHOLE
    return "{} x {}".format(*pixels) if any(pixels) else "-"


# -------------------------------------------------------------------------------- tables


def rows_of(model: nn.Module) -> list[Layer]:
    """The rows of a network's table: the input, layers with weights, pools and sums.

    Any other operation has a row where it changes the measured field. Of those before the first
    layer with weights, only the last has one.
    """
    steps = trace(model, torch.randn(IMAGES, 1, IMAGE_SIZE, IMAGE_SIZE))
    layers, outputs, first = layers_of(steps), wide_outputs(steps), first_with_weights(steps)
    before = [at for at in range(1, first) if layers[at].title not in (None, *JOINS.values())]
    rows = layers[:1]
    for at in (*before[-1:], *range(first, len(steps))):
        layer = layers[at]
        if layer.title:
            measured = measured_field(outputs[at], outputs[0], bool(layer.field))
            is_layer = layer.title != steps[at].name or steps[at].weights
            if is_layer or measured != rows[-1].measured:
                rows.append(layer._replace(measured=measured))
    return rows


def table(name: str, **sizes: Any) -> str:
    """The Markdown section of one model, with random weights."""
    torch.manual_seed(0)
    model = get_model(name, **sizes)
    line = "| {:22} | {:9} | {:12} | {:>4} | {:>4} | {:>11} |".format
    rows = rows_of(model)
    images = torch.randn(IMAGES, 1, IMAGE_SIZE, IMAGE_SIZE, requires_grad=True)
    seen = "{} x {}".format(*extent(model.eval()(images * 1), images))
    title = f"## {type(model).__name__}: {count_parameters(model):,} parameters"
    lines = [
        f"{title}, receptive field {rows[-1].reach}\n",
        line("layer", "k / s / p", "output", "RF", "jump", "measured"),
        line("---", "---", "---", "---:", "---:", "---:"),
        *(line(*row.cells) for row in rows),
        f"\nOf an image of 28 x 28, the logits see {seen}.\n",
    ]
    return "\n".join(lines)


def update(args: argparse.Namespace) -> None:
    """Writes RF.md; with `args.check`, raises RunError where it is stale."""
    reuse_freed_memory()
    before = RF_MD.read_text(encoding="utf-8")
    models = tqdm(list_models(), "models", leave=False, disable=None)
    content = "\n".join([before.partition("\n## ")[0], *map(table, models)])
    if not args.check:
        write_atomically(RF_MD, content.encode())
        print(f"{RF_MD.name} written: {len(models)} models")
    elif before != content:
        raise RunError(f"{RF_MD.name} is stale; run python -m tools.receptive_field")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.receptive_field", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    return exit_code(parser.prog, update, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
