"""Write the tables of RF.md: the receptive field of each layer of each model.

    python -m tools.receptive_field             # writes RF.md, below its introduction
    python -m tools.receptive_field --check     # exit code 1 where RF.md is stale

Both figures come from what a network does, operation by operation (trace.py): the computed one
from kernels, strides and padding, the measured one from the pixels that have a gradient.
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
from tools.trace import Step, trace

RF_MD = ROOT / "RF.md"
IMAGES = 6  # in a batch: a divisor of no usual number of tokens, 16, 49, 50 or 196
WIDE = 3 * IMAGE_SIZE  # pixels: on so wide an image no border cuts off the field in its middle
WHOLE = "whole image"
POOLS = {"max_pool2d": "max pool", "amax": "max pool", "avg_pool2d": "average pool"}
POOLS |= {"adaptive_avg_pool2d": "average pool", "mean": "average pool"}
LINEAR = ("linear", "matmul", "mm", "addmm")
JOINS = {"add": "sum", "maximum": "max of two"}  # of two maps
# Besides what torch calls pointwise, these treat each position by itself.
BY_POSITION = {"alias", "batch_norm", "cat", "chunk", "contiguous", "dropout"}
BY_POSITION |= {"feature_dropout", "hardswish", "leaky_relu", "prelu", "repeat", "slice", "split"}
Geometry = tuple[int, int, int | str]  # kernel size, its dilation included; stride; padding
Field = tuple[int, int]  # pixels along an axis that a value can depend on; from a value to the next


class Layer(NamedTuple):
    """What is known of a step; one without a title has no row."""

    title: str | None
    geometry: Geometry | None
    field: Field | None


class Row(NamedTuple):
    """A row of the table: a layer, with the receptive field that was measured."""

    title: str
    geometry: str
    shape: str
    field: str
    jump: str
    measured: str

    @property
    def reach(self) -> str:
        """Its receptive field in words: as computed, or else as measured."""
        return f"{self.measured if self.field == '-' else self.field} px".replace(
            f"{WHOLE} px", f"the {WHOLE}"
        )


# ------------------------------------------------------------------------------ computed


def geometry_of(step: Step, source: Tensor) -> Geometry | None:
    """How a step combines the positions of the map (N, C, H, W) that it reads; None if unknown."""
    settings, shape, point = step.settings, step.output.shape, (1, 1, 0)
    if source.ndim < 4:  # all of an image has been read, or it is a sequence
        return None if step.name in POOLS else point
    if step.name in ("conv2d", "max_pool2d", "avg_pool2d") and len(step.reads) == 1:
        kernel = settings.get("kernel_size") or settings["weight"].shape[2:]
        stride, padding = settings["stride"] or kernel, settings["padding"]
        kernel = [1 + d * (k - 1) for k, d in zip(kernel, settings.get("dilation", (1, 1)))]
        padding = [padding] * 2 if isinstance(padding, str) else padding
    elif step.name == "pad":  # fields move, and are no larger
        return point if settings["mode"] != "circular" else None
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
    """The title of a step with weights, a pool, a sum, or of one that may change the field.

    The last of these has the name of its operation. None for any other.
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


def layers(steps: list[Step]) -> list[Layer]:
    """What is known of each step; of the images, the first, that they are the input."""
    result = [Layer("input", None, (1, 1))]
    for step in steps[1:]:
        geometry = geometry_of(step, steps[step.reads[0]].output)
        field = next_field([result[read].field for read in step.reads], geometry)
        result.append(Layer(title_of(step, geometry), geometry, field))
    return result


# ------------------------------------------------------------------------------ measured


def extent(values: Tensor, images: Tensor) -> tuple[int, int]:
    """Height and width of the pixels that `values` have a gradient in; 0 if they have none."""
    values = values.abs() if values.is_complex() else values
    with contextlib.suppress(RuntimeError):  # an operation that cannot be differentiated
        (gradient,) = torch.autograd.grad(values.sum(), images, retain_graph=True)
        pixels = gradient.abs().sum(dim=(0, 1)).nonzero()
        if len(pixels):
            return tuple((pixels.amax(dim=0) - pixels.amin(dim=0) + 1).tolist())
    return 0, 0


def middle(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The middle of a tensor, of this shape."""
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - size) // 2, size)
    return tensor.contiguous()


def wide_outputs(steps: list[Step]) -> list[Tensor]:
    """The outputs of the steps for random images WIDE pixels wide, which are the first.

    What reads all of a map reads its middle, as large as the map of a digit is.
    """
    outputs = [torch.randn(IMAGES, 1, WIDE, WIDE, requires_grad=True)]
    for step in steps[1:]:
        result, in_place = None, step.operation._schema.is_mutable
        read = {x: outputs[x] * 1 if in_place else outputs[x] for x in step.reads}
        with contextlib.suppress(RuntimeError):  # such as a view to sizes of its own
            result = step.run(read)
        if result is None or result.ndim < 4 or result.shape == step.output.shape:
            read = {x: middle(outputs[x] * 1, steps[x].output.shape) for x in step.reads}
            result = step.run(read)
        outputs.append(result)
    return outputs


def measured_field(output: Tensor, images: Tensor, is_known: bool) -> str:
    """The pixels that the value in the middle of an output has a gradient in.

    Max pooling passes a gradient to one pixel of four and an activation may pass none, but over
    all channels and a batch of random images every edge is reached.
    """
    centers = [(*output.shape[:2], 1, 1)[: output.ndim]]
    if output.ndim == 3:  # a sequence (N, C, T), or else (N, T, C), of which more is read
        centers.append((len(output), 1, output.shape[2]))
    pixels = min(extent(middle(output, center), images) for center in centers)
    if min(pixels) >= (WIDE if is_known else IMAGE_SIZE):
        return WHOLE
    return "{} x {}".format(*pixels) if any(pixels) else "-"


# -------------------------------------------------------------------------------- tables


def rows_of(model: nn.Module) -> list[Row]:
    """The rows of a network's table: its input and its layers.

    Before the first layer with weights, only the last operation has a row. Further operations have
    one where they are a layer with weights, a pool or a sum, or where the measured field changes.
    What reads the whole image is not measured.
    """
    steps = trace(model, torch.randn(IMAGES, 1, IMAGE_SIZE, IMAGE_SIZE))
    known, outputs = layers(steps), wide_outputs(steps)
    first = next((at for at, step in enumerate(steps) if step.weights), len(steps))
    before = [at for at in range(1, first) if known[at].title not in POOLS.values()]
    hidden = set(before) - set([at for at in before if known[at].title == steps[at].name][-1:])
    rows = [Row("input", "", f"1 x {IMAGE_SIZE} x {IMAGE_SIZE}", "1", "1", "")]
    whole: set[int] = set()  # the steps that see the whole image
    for at in tqdm(range(1, len(steps)), "measured", leave=False, disable=None):
        step, (title, geometry, field) = steps[at], known[at]
        if not field and not whole.isdisjoint(step.reads):
            pixels = WHOLE
        elif title and at not in hidden:
            pixels = measured_field(outputs[at], outputs[0], bool(field))
        else:
            continue
        if pixels == WHOLE:
            whole.add(at)
        is_layer = title != step.name or step.weights
        if not title or at in hidden or not (is_layer or pixels != rows[-1].measured):
            continue
        shape = list(step.output.shape)
        del shape[next((axis for axis, size in enumerate(shape) if size % IMAGES == 0), 0)]
        sizes = "" if title in JOINS.values() else "/".join(map(str, geometry or "-"))
        rows.append(
            Row(title, sizes, " x ".join(map(str, shape)), *map(str, field or "--"), pixels)
        )
    return rows


def table(name: str, **sizes: Any) -> str:
    """The Markdown section of one model: a row for the input and for each layer."""
    torch.manual_seed(0)
    model = get_model(name, **sizes)
    line = "| {:22} | {:9} | {:12} | {:>4} | {:>4} | {:>11} |".format
    rows = rows_of(model)
    lines = [line("layer", "k / s / p", "output", "RF", "jump", "measured")]
    lines.append(line("---", "---", "---", "---:", "---:", "---:"))
    lines += [line(*row) for row in rows]
    images = torch.randn(IMAGES, 1, IMAGE_SIZE, IMAGE_SIZE, requires_grad=True)
    seen = "{} x {}".format(*extent(model.eval()(images * 1), images))
    title = f"## {type(model).__name__}: {count_parameters(model):,} parameters"
    note = f"Of an image of 28 x 28, the logits see {seen}."
    return "\n".join([f"{title}, receptive field {rows[-1].reach}", "", *lines, "", note, ""])


def update(args: argparse.Namespace) -> None:
    """Writes RF.md, or with `args.check` raises RunError where it is not as it has to be."""
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
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    return exit_code(parser.prog, update, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
