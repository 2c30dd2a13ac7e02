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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cli import Parser, RunError, UsageError, exit_code
from files import write_atomically
from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, Loader, load_mnist
from networks import ROOT, count_parameters, load_model
from tools.trace import Read, Step, trace
from train import TEST_BATCH_SIZE, evaluate

SOURCE = Path(__file__).parent
WEIGHTS = ROOT / "weights"
PAGE = ROOT / "docs" / "index.html"
SAMPLES = (10, 5, 35, 32, 4, 23, 21, 17, 110, 12)  # test images: a plain digit of each kind
MOST_BYTES = 260_000  # of networks: the page opens in seconds on a phone with a slow line
ONLY = {"dilation": {1}, "divisor_override": {None}, "alpha": {1}, "training": {False}}
ONLY |= {"train": {False}, "max": {None}, "rounding_mode": {None}}  # of dropout, clamp, div
ONLY |= {"interpolation_mode": {0}, "padding_mode": {0}, "align_corners": {False}}  # grid_sample
NOTHING = {"dropout", "feature_dropout", "contiguous", "clone"}  # to do for these
IMAGES = {"alias", "cat", "chunk", "split", "slice"}  # may put images elsewhere in a batch
ARITHMETIC = dict.fromkeys(("add", "sub", "mul", "div", "maximum"), "other")
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


def constant(value: Tensor | float, image: int, ndim: int) -> dict[str, Any]:
    """A layer that reads nothing: a number, or a tensor, as it stands beside `ndim` dimensions."""
    tensor = torch.as_tensor(value).detach().numpy().astype(np.float32)
    if tensor.ndim == ndim and len(tensor) > 1:  # it has a part for each image
        tensor = tensor[image : image + 1]
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


def is_view(step: Step) -> bool:
    """Whether its output may be in the memory of what it reads."""
    alias = step.operation and step.operation._schema.returns[0].alias_info
    return bool(alias) and not alias.is_write


def moves_images(step: Step) -> bool:
    """Whether all that it does is to put whole images elsewhere in a batch."""
    all_read = len(step.reads) == len(step.settings.get("tensors", step.reads))
    return step.name in IMAGES and step.settings.get("dim", 0) == 0 and all_read


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


def check(step: Step, steps: list[Step], number: int) -> None:
    """UsageError where page.js would do something else than the step of this number does."""
    for name in ONLY.keys() & step.settings.keys():
        single(step, name)
    grids = [is_grid(steps[read]) for read in step.reads]
    if grids != ([False, True] if step.name == "grid_sampler" else [False] * len(grids)):
        raise UsageError(f"page.js has no code for {step.name} of a permuted tensor")
    source = steps[step.reads[0]]
    written = step.operation._schema.is_mutable and is_view(source)
    if written and any(source.reads[0] in later.reads for later in steps[number + 1 :]):
        raise UsageError(f"page.js has no code for {step.name} in place, on a part")


def layers(model: nn.Module) -> list[dict[str, Any]]:
    """What page.js runs of a trained network, in order; UsageError where it has no code for it.

    Each reads the outputs of layers, `of`, counted from 1; 0 is the image. BatchNorm is folded
    into the convolution before it, or into one of its own. Where a network makes several images
    of one, each has layers of its own.
    """
    steps = trace(model, torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    readers = Counter(read for step in steps for read in step.reads)
    result: list[dict[str, Any]] = []
    places = [[0]]  # of each step's images among the layers

    def place(operand: Any, image: int, ndim: int) -> int:
        """Where page.js finds what an image reads of a step, or of a constant."""
        if isinstance(operand, Read):
            found = places[operand]
            return found[image if len(found) > 1 else 0]
        result.append(constant(operand, image, ndim))
        return len(result)

    def add(step: Step, image: int) -> int:
        """Add what makes one image of the output of a step, and return its place."""
        first, norm, ndim = step.reads[0], step.name == "batch_norm", step.output.ndim
        folded = norm and steps[first].name == "conv2d" and readers[first] == 1
        at = place(Read(first), image, ndim)
        if not (folded or step.name in NOTHING):
            alone = replace(step, output=step.output[:1])
            layer = layer_of(alone, [steps[read].output[:1] for read in step.reads])
            sources = [place(Read(x), image, ndim) for x in step.reads] * layer.pop("times", 1)
            if second := ARITHMETIC.get(step.name):
                two = step.settings["self"], step.settings[second]
                sources = [place(operand, image, ndim) for operand in two]
            result.append({"of": sources} | ({"copy": image} if image else {}) | layer)
            at = len(result)
        if norm:
            _, weight, bias, mean, variance, _, _, eps, _ = step.settings.values()
            layer = result[at - 1]
            fused = (layer["weight"], layer["bias"], mean, variance, eps, weight, bias)
            layer["weight"], layer["bias"] = fuse_conv_bn_weights(*fused)
        return at

    for number, step in enumerate(steps[1:], 1):
        check(step, steps, number)
        if moves_images(step):
            # Run on the places of images in place of these, it tells where each one goes.
            told = {x: torch.tensor(places[x])[:, None] for x in step.reads}
            places.append(step.run(told).flatten().tolist())
            continue
        images = range(max(len(places[read]) for read in step.reads))
        if step.output.shape[:1] != (len(images),):
            raise UsageError(f"page.js has no code for {step.name} to {(*step.output.shape,)}")
        places.append([add(step, image) for image in images])
    (last,) = places[-1]
    return told_once([packed(layer) for layer in result[:last]])


def told_once(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers, of which those whose numbers an earlier one has too tell its number, from 0."""
    known: dict[str, int] = {}
    for number, layer in enumerate(layers):
        for name in {"filters", "scales", "bias", "values"} & layer.keys():
            if (first := known.setdefault(name + layer[name], number)) < number:
                layer[name] = first
    return layers


def networks(images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """What the page knows of the networks in weights/; prints which are left out, and why."""
    found: list[dict[str, Any]] = []
    for path in sorted(WEIGHTS.glob("*.pt"), key=lambda path: (len(path.stem), path.stem)):
        try:
            name, model = load_model(path, path.stem)
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
