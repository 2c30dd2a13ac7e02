"""Make docs/index.html: a page to draw a digit on, with the trained networks inside.

    python -m tools.page             # writes docs/index.html
    python -m tools.page --check     # exit code 1 where it is stale

The page is one file, opens from disk and asks nobody for anything. Its source is page.html,
page.css and page.js beside this file; the networks are those of run_folder.MODELS that have
weights in weights/, and their accuracy is that of the run on record that ended with them.
"""

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from command_line import Parser, RunError, UsageError, exit_code
from mnist import DATA_DIR, MEAN, STD, load_mnist
from model4 import Residual
from run_folder import MODELS, count_parameters, load_weights, write_atomically
from tools.folding import folded
from tools.records import ROOT, read_records

SOURCE = Path(__file__).parent
PAGE = ROOT / "docs" / "index.html"
RECIPE, SEED = "strong", 42  # of the runs whose weights are in weights/
SAMPLES = (10, 5, 35, 32, 4, 23, 21, 17, 110, 12)  # test images: a plain digit of each kind
MOST_BYTES = 150_000
STEPS = 2**15 - 1  # a weight is a whole number of 16 bits, times a scale of its channel

# ------------------------------------------------------------------------------ networks


def encoded(numbers: np.ndarray) -> str:
    """The bytes of an array, the least significant first, as base64."""
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()


def convolution(weight: Tensor, bias: Tensor | None, **shape: int) -> dict[str, Any]:
    """The layer that a convolution (out, in / groups, k, k) is on the page.

    16 bits with a scale per channel are ten times closer to a weight than its float16 is, and
    as short.
    """
    filters = weight.detach().double().flatten(1).numpy()
    scales = (np.abs(filters).max(axis=1) / STEPS).astype(np.float32)
    scales[scales == 0] = 1
    steps = np.rint(filters / scales[:, None].astype(np.float64)).astype(np.int16)
    offsets = np.zeros(len(filters)) if bias is None else bias.detach().numpy()
    return {
        "kind": "convolution",
        "channels": len(filters),
        **shape,
        "filters": encoded(steps),
        "scales": encoded(scales),
        "bias": encoded(offsets.astype(np.float32)),
    }


def only(layer: nn.Module, **expected: object) -> None:
    """UsageError where `layer` has a setting that the page's code does not know."""
    for name, value in expected.items():
        found = getattr(layer, name)
        if found not in (value, (value, value)):
            raise UsageError(f"the page has no code for {layer}: {name} must be {value}")


def square(value: int | tuple[int, int] | str) -> int:
    """A size along both axes, given as one number or two."""
    if isinstance(value, str):
        raise UsageError(f"the page has no code for {value!r} in place of a number")
    across, down = (value, value) if isinstance(value, int) else value
    if across != down:
        raise UsageError(f"the page has no code for kernels of {across} x {down}")
    return across


def layers(module: nn.Module) -> list[dict[str, Any]]:
    """What the page runs of a folded module, in order; UsageError where it has no code for it."""
    children = dict(module.named_children())
    if isinstance(module, Residual):
        return [{"kind": "residual", "body": layers(children["body"])}]
    if children:
        return [layer for child in children.values() for layer in layers(child)]
    match module:
        case nn.Conv2d():
            only(module, dilation=1, padding_mode="zeros")
            shape = {
                "size": square(module.kernel_size),
                "stride": square(module.stride),
                "padding": square(module.padding),
                "groups": module.groups,
            }
            return [convolution(module.weight, module.bias, **shape)]
        case nn.Linear():  # on a map of 1 x 1
            shape = {"size": 1, "stride": 1, "padding": 0, "groups": 1}
            return [convolution(module.weight, module.bias, **shape)]
        case nn.MaxPool2d():
            only(module, dilation=1, padding=0)
            size, stride = square(module.kernel_size), square(module.stride)
            return [{"kind": "max", "size": size, "stride": stride, "ceil": module.ceil_mode}]
        case nn.AvgPool2d():
            only(module, padding=0)
            size, stride = square(module.kernel_size), square(module.stride)
            return [{"kind": "mean", "size": size, "stride": stride, "ceil": module.ceil_mode}]
        case nn.AdaptiveAvgPool2d():
            only(module, output_size=1)
            return [{"kind": "mean"}]  # of all there is
        case nn.ReLU():
            return [{"kind": "relu"}]
        case nn.Flatten():
            return [{"kind": "flatten"}]
        case nn.Dropout() | nn.Identity():
            return []
    raise UsageError(f"the page has no code for {module}")


def network(name: str, accuracy: float) -> dict[str, Any]:
    """All that the page knows of the network with the weights in weights/."""
    _, model = load_weights(ROOT / "weights" / f"{name}.pt", name)
    return {
        "name": name,
        "parameters": count_parameters(model),
        "accuracy": f"{accuracy:.2f}",
        "layers": layers(folded(model)),
    }


def sample(image: Tensor, label: int) -> dict[str, Any]:
    """A test image (28, 28), cut to what is not black."""
    pixels = image.numpy()
    (rows,), (columns,) = pixels.any(axis=1).nonzero(), pixels.any(axis=0).nonzero()
    cut = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = int(rows[0]), int(columns[0])
    return {
        "digit": label,
        "top": top,
        "left": left,
        "width": cut.shape[1],
        "pixels": encoded(cut),
    }


# ---------------------------------------------------------------------------------- page


def compact(source: str) -> str:
    """CSS or JavaScript without indentation and without lines that are nothing but comment."""
    lines, comment = [], False
    for line in map(str.strip, source.splitlines()):
        comment = comment or line.startswith("/*")
        if line and not comment and not line.startswith("//"):
            lines.append(line)
        if comment and line.partition("*/")[2]:
            raise UsageError(f"code on the line where a comment ends would be lost: {line}")
        comment = comment and "*/" not in line
    return "\n".join(lines)


def page() -> bytes:
    """The whole page. UsageError where a network has no record, or cannot be run on it."""
    records = read_records()
    networks = []
    for name in MODELS:
        if not (ROOT / "weights" / f"{name}.pt").exists():
            continue
        if SEED not in records.get((name, RECIPE), {}):
            raise UsageError(f"no record of {name} under {RECIPE} with seed {SEED} in results/runs")
        networks.append(network(name, records[name, RECIPE][SEED][-1]["test_acc"]))
    images, labels = load_mnist(DATA_DIR, train=False)
    samples = [sample(images[index, 0], labels[index].item()) for index in SAMPLES]
    data = {"mean": MEAN, "deviation": STD, "networks": networks, "samples": samples}
    text = (SOURCE / "page.html").read_text(encoding="utf-8")
    for mark, content in {
        "/* page.css */": compact((SOURCE / "page.css").read_text(encoding="utf-8")),
        "/* page.js */": compact((SOURCE / "page.js").read_text(encoding="utf-8")),
        "{{ data }}": json.dumps(data),
    }.items():
        before, found, after = text.partition(mark)
        if not found:
            raise UsageError(f"tools/page.html: no {mark}")
        text = f"{before}{content}{after}"
    return text.encode()


def make(args: argparse.Namespace) -> None:
    """Write the page, or RunError where it is to be checked and stale."""
    content = page()
    where = PAGE.relative_to(ROOT)
    if len(content) >= MOST_BYTES:
        raise RunError(f"the page has {len(content):,} bytes; it must stay below {MOST_BYTES:,}")
    if args.check:
        if not PAGE.exists() or PAGE.read_bytes() != content:
            raise RunError(f"{where} is stale; run python -m tools.page")
        print(f"{where} is up to date")
        return
    PAGE.parent.mkdir(exist_ok=True)
    write_atomically(PAGE, content)
    print(f"{where}  {len(content) / 1000:.1f} kB")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.page"
    parser = Parser(prog, __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is stale")
    return exit_code(prog, make, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
