"""Make docs/index.html: a page to draw a digit on, with the trained networks inside.

    python -m tools.page.build             # writes docs/index.html
    python -m tools.page.build --check     # exit code 1 where it is stale

The page is one file, opens from disk and asks nobody for anything. Its source is page.html,
page.css and page.js beside this file. It keeps the networks in weights/ that page.js has code
for; which one is left out is said here, with the reason.
"""

import argparse
import base64
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from attempts import count_parameters, load_network
from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, Loader, load_mnist
from run_folder import ROOT, write_atomically
from script import Parser, RunError, UsageError, exit_code
from tools.trace import Read, Step, trace
from train import TEST_BATCH_SIZE, evaluate

SOURCE = Path(__file__).parent
WEIGHTS = ROOT / "weights"
PAGE = ROOT / "docs" / "index.html"
SAMPLES = (10, 5, 35, 32, 4, 23, 21, 17, 110, 12)  # test images: a plain digit of each kind
MOST_BYTES = 150_000  # of networks: the page opens in seconds on a phone with a slow line
ONLY = {"dilation": {1}, "divisor_override": {None}, "alpha": {1}, "training": {False}}
ONLY |= {"train": {False}, "max": {None}, "rounding_mode": {None}}  # of dropout, clamp, div
ONLY |= {"interpolation_mode": {0}, "padding_mode": {0}, "align_corners": {False}}  # grid_sample
NOTHING = {"dropout", "feature_dropout", "contiguous", "clone"}  # to do for these
ARITHMETIC = dict.fromkeys(("add", "sub", "mul", "div"), "other")
ARITHMETIC |= {"pow": "exponent", "clamp": "min"}  # and what torch calls the second number
STEPS = 2**15 - 1  # a weight is a whole number of 16 bits, times a scale of its channel


def encoded(numbers: np.ndarray) -> str:
    """The bytes of an array, the least significant first, as base64."""
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()


def packed(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer whose weight (out, in / groups, k, k) and bias, if it has them, are text."""
    if layer["kind"] != "convolution":
        return layer
    # 16 bits with a scale per channel are ten times closer to a weight than its float16 is.
    filters = layer.pop("weight").detach().flatten(1).numpy()
    scales = np.abs(filters).max(axis=1) / STEPS
    scales[scales == 0] = 1
    steps = np.rint(filters / scales[:, None]).astype(np.int16)
    bias = encoded(layer.pop("bias").detach().numpy().astype(np.float32))
    scales = encoded(scales.astype(np.float32))
    return layer | {"filters": encoded(steps), "scales": scales, "bias": bias}


def single(step: Step, name: str) -> Any:
    """A setting that is the same along both axes; UsageError where page.js cannot have it."""
    value = step.settings[name]
    values = set(value) if isinstance(value, list) else {value}
    if len(values) > 1 or isinstance(value, str) or not values <= ONLY.get(name, values):
        raise UsageError(f"page.js has no code for {step.name} with {name} {value}")
    return values.pop()


def convolution(weight: Tensor, bias: Tensor | None, **sizes: int) -> dict[str, Any]:
    """A layer of weight (out, in / groups, k, k) and bias, both in double precision."""
    bias = torch.zeros(len(weight)) if bias is None else bias
    layer = {"kind": "convolution", "stride": 1, "padding": 0, "groups": 1} | sizes
    layer |= {"channels": len(weight), "size": weight.shape[-1]}
    return layer | {"weight": weight.double(), "bias": bias.double()}


def sides(shape: Sequence[int]) -> dict[str, int]:
    """Channels, height and width of a batch of that shape, which may have no height and width."""
    return dict(zip(("channels", "height", "width"), (*shape[1:], 1, 1)))


def constant(value: Tensor | float, ndim: int) -> dict[str, Any]:
    """A layer that reads nothing: a number, or a tensor, as it stands beside `ndim` dimensions."""
    tensor = torch.as_tensor(value).detach().numpy().astype(np.float32)
    shape = (1,) * (ndim - tensor.ndim) + tensor.shape
    return {"kind": "constant", "of": [], "values": encoded(tensor), **sides(shape)}


def is_of_all(step: Step, source: Tensor) -> bool:
    """Whether it makes one number of each map of `source`."""
    axes = {axis % 4 for axis in step.settings.get("dim") or (2, 3)}
    return source.ndim == 4 and axes == {2, 3} and step.output[0].numel() == source.shape[1]


def layer_of(step: Step, sources: list[Tensor]) -> dict[str, Any]:
    """What page.js runs for a step that reads `sources`; UsageError where it has no code."""
    settings, shape, source = step.settings, step.output.shape, sources[0]
    one = (*source.shape[:2], 1, 1)
    match step.name:
        case "conv2d" if settings["weight"].shape[2] == settings["weight"].shape[3]:
            sizes = {name: single(step, name) for name in ("stride", "padding", "groups")}
            return convolution(settings["weight"], settings["bias"], **sizes)
        case "linear" if source.ndim == 2:
            return convolution(settings["weight"][:, :, None, None], settings["bias"])
        case "batch_norm":
            # Into this one, which changes nothing by itself, it is folded.
            return convolution(torch.ones(shape[1], 1, 1, 1), None, groups=shape[1])
        case "max_pool2d" | "avg_pool2d" if single(step, "padding") == 0:
            size, kind = single(step, "kernel_size"), step.name.partition("_")[0]
            stride = single(step, "stride") if settings["stride"] else size
            return {"kind": kind, "size": size, "stride": stride, "ceil": settings["ceil_mode"]}
        case "mean" | "adaptive_avg_pool2d" if is_of_all(step, source):
            return {"kind": "avg"}
        case "amin" | "amax" | "sum" if is_of_all(step, source):
            return {"kind": step.name.removeprefix("a")}
        case "flatten" | "view" | "reshape" | "squeeze" if shape in (one, (1, source.numel())):
            return {"kind": "flatten"}
        case "relu":
            return {"kind": "relu"}
    return other_layer_of(step, sources)


def is_grid(step: Step) -> bool:
    """Whether it turns two maps, x and y, into what grid_sample reads; page.js leaves them."""
    return step.name == "permute" and step.settings["dims"] == [0, 2, 3, 1]


def other_layer_of(step: Step, sources: list[Tensor]) -> dict[str, Any]:
    """The same for arithmetic, and for what puts numbers elsewhere."""
    settings, shape, source = step.settings, step.output.shape, sources[0]
    dimensions = {each.ndim for each in (*sources, step.output)}
    match step.name:
        case name if name in ARITHMETIC and dimensions in ({2}, {4}):
            return {"kind": name}
        case "cat" if settings["dim"] == 1 and len(sources) == len(settings["tensors"]):
            return {"kind": "join"}
        case "repeat" if settings["repeats"] == [1, shape[1] // source.shape[1], 1, 1]:
            return {"kind": "join", "times": shape[1] // source.shape[1]}
        case "expand" | "expand_as" if dimensions == {4} and isinstance(settings["self"], Read):
            return {"kind": "expand", **sides(shape)}
        case "slice" if settings["dim"] > 0 and settings["step"] == 1:
            kept = range(source.shape[settings["dim"]])[settings["start"] : settings["end"]]
            start = [kept[0] * (axis == settings["dim"]) for axis in (1, 2, 3)]
            return {"kind": "crop", "from": start, **sides(shape)}
        case "permute" if is_grid(step):
            return {"kind": "same"}
        case "grid_sampler" if source.shape[1] == 1:
            return {"kind": "sample"}
    raise UsageError(f"page.js has no code for {step.name} of {(*source.shape,)} to {(*shape,)}")


def layers(model: nn.Module) -> list[dict[str, Any]]:
    """What page.js runs of a trained network, in order; UsageError where it has no code for it.

    Each reads the outputs of layers, `of`, counted from 1; 0 is the image. BatchNorm is folded
    into the convolution before it, or into one of its own.
    """
    steps = trace(model, torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    readers = Counter(read for step in steps for read in step.reads)
    result: list[dict[str, Any]] = []
    places = [0]  # of steps among the layers

    def place(operand: Any, ndim: int) -> int:
        """Where page.js finds one of two numbers: a step's, or a constant."""
        if isinstance(operand, Read):
            return places[operand]
        result.append(constant(operand, ndim))
        return len(result)

    for step in steps[1:]:
        first, norm = step.reads[0], step.name == "batch_norm"
        for name in ONLY.keys() & step.settings.keys():
            single(step, name)
        grids = [is_grid(steps[read]) for read in step.reads]
        if grids != ([False, True] if step.name == "grid_sampler" else [False] * len(grids)):
            raise UsageError(f"page.js has no code for {step.name} of a permuted tensor")
        folded = norm and steps[first].name == "conv2d" and readers[first] == 1
        if folded or step.name in NOTHING:
            places.append(places[first])
        else:
            layer = layer_of(step, [steps[read].output for read in step.reads])
            sources = [places[read] for read in step.reads] * layer.pop("times", 1)
            if second := ARITHMETIC.get(step.name):
                two = step.settings["self"], step.settings[second]
                sources = [place(operand, step.output.ndim) for operand in two]
            result.append({"of": sources} | layer)
            places.append(len(result))
        if norm:
            _, weight, bias, mean, variance, _, _, eps, _ = step.settings.values()
            layer = result[places[-1] - 1]
            fused = (layer["weight"], layer["bias"], mean, variance, eps, weight, bias)
            layer["weight"], layer["bias"] = fuse_conv_bn_weights(*fused)
    return told_once([packed(layer) for layer in result])


def told_once(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers, of which those whose filters an earlier one has too tell its number, from 0."""
    known: dict[str, int] = {}
    for number, layer in enumerate(layers):
        if "filters" in layer and (first := known.setdefault(layer["filters"], number)) < number:
            layer["filters"] = first
    return layers


def networks(images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """What the page knows of the networks in weights/; prints which are left out, and why."""
    found: list[dict[str, Any]] = []
    for path in sorted(WEIGHTS.glob("*.pt"), key=lambda path: (len(path.stem), path.stem)):
        try:
            name, model = load_network(path, path.stem)
            loader = Loader(images, labels, TEST_BATCH_SIZE)
            accuracy = f"{evaluate(model, loader, nn.CrossEntropyLoss())[1]:.2f}"
            entry = {"name": name, "parameters": count_parameters(model), "accuracy": accuracy}
            entry["layers"] = layers(model)
            if len(json.dumps([*found, entry])) > MOST_BYTES:
                raise UsageError("the page would become too large")
            found.append(entry)
        except Exception as error:  # whatever a stranger's network may raise
            print(f"{path.name} is left out: {error}")
    if not found:
        raise UsageError(f"{WEIGHTS} has no weights of a network that page.js has code for")
    return found


def page() -> bytes:
    """The whole page."""
    images, labels = load_mnist(DATA_DIR, train=False)
    parts = {name: (SOURCE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    text = (SOURCE / "page.html").read_text(encoding="utf-8")
    samples = [{"digit": labels[i].item(), "pixels": encoded(images[i].numpy())} for i in SAMPLES]
    data = {"mean": MEAN, "deviation": STD, "samples": samples}
    data["networks"] = networks(images, labels)
    for name, content in {**parts, "data": json.dumps(data)}.items():
        text = text.replace(f"/* {name} */", content)
    return text.encode()


def make(args: argparse.Namespace) -> None:
    """Write the page, or RunError where it is to be checked and stale."""
    content, where = page(), PAGE.relative_to(ROOT)
    if not args.check:
        write_atomically(PAGE, content)
        print(f"{where}  {len(content) / 1000:.1f} kB")
    elif not PAGE.exists() or PAGE.read_bytes() != content:
        raise RunError(f"{where} is stale; run python -m tools.page.build")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("python -m tools.page.build", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is stale")
    return exit_code(parser.prog, make, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
