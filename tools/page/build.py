"""Build docs/index.html, a page to draw a digit on, from the networks in weights/*.onnx.

    python -m tools.page.build

The page is one file that opens from disk and sends no request. Its sources are page.html, page.css
and page.js beside this file, and the ONNX files that tools.export writes. A network with a node
that page.js cannot run is left out, with a line that names the node.
"""

import base64
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import predict
from cli import Parser, UsageError, exit_code
from files import write_atomically
from mnist import DATA_DIR, load_mnist
from networks import ROOT

SOURCE = Path(__file__).parent
WEIGHTS = ROOT / "weights"
PAGE = ROOT / "docs" / "index.html"
SAMPLES = (10, 5, 35, 32, 4, 23, 21, 17, 110, 12)  # test images: a plain digit of each class
MOST_BYTES = 500_000  # of a network, so that the page opens in seconds on a slow connection

# The ONNX operators that page.js has, and the values of their attributes that it supports.
SCRIPT = (SOURCE / "page.js").read_text("utf-8")
OPERATORS = set(re.findall(r"^  ([A-Z]\w+)[:(]", SCRIPT, re.MULTILINE))
SUPPORTED: dict[str, dict[str, Sequence[Any]]] = {
    "Conv": {"auto_pad": ["NOTSET"]},
    "MaxPool": {"auto_pad": ["NOTSET"], "dilations": [[1, 1]]},
    "AveragePool": {"auto_pad": ["NOTSET"], "count_include_pad": [0]},
    "GridSample": {"mode": ["bilinear"], "padding_mode": ["zeros"], "align_corners": [0]},
    "Gemm": {"alpha": [1], "beta": [1], "transA": [0]},
    "Pad": {"mode": ["constant", "edge"]},
}
RANKS = {"MatMul": (1, 2), "Conv": (0, 4), "MaxPool": (0, 4)}  # an input, and its dimensions
RESHAPE = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}


def encoded(array: np.ndarray) -> str | list[int]:
    """The bytes of an array of float32 or uint8 as base64; a list of any other."""
    if array.dtype in (np.float32, np.uint8):
        return base64.b64encode(array.tobytes()).decode()
    return array.ravel().tolist()


def optimized(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file for one image, after onnxruntime's basic optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("N", 1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.shape_inference.infer_shapes(onnx.load(options.optimized_model_filepath))


def runnable(node: onnx.NodeProto, shapes: dict[str, Sequence[int]]) -> dict[str, Any]:
    """The attributes of a node as page.js reads them; UsageError if it cannot run the node."""
    op = "Reshape" if node.op_type in RESHAPE else node.op_type
    named = f"page.js cannot run the node {node.name or node.output[0]}, {node.op_type}"
    if op not in OPERATORS or len(node.output) > 1:
        raise UsageError(named)
    number, rank = RANKS.get(op, (0, None))
    if rank not in (None, len(shapes[node.input[number]])):
        raise UsageError(f"{named} of {len(shapes[node.input[number]])} dimensions")
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    values = {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
    if not any(values.get("pads", ())):
        values.pop("count_include_pad", None)
    for name, allowed in SUPPORTED.get(op, {}).items():
        if values.get(name, allowed[0]) not in allowed:
            raise UsageError(f"{named} with {name} {values[name]}")
    if "axis" in values:
        values["axis"] %= len(shapes[node.input[0]])
    return {"op": op, "shape": shapes[node.output[0]]} | values


def network(path: Path) -> dict[str, Any]:
    """The contents of an ONNX file for page.js; UsageError if it cannot run them."""
    model = optimized(path)
    graph, facts = model.graph, {each.key: each.value for each in model.metadata_props}
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    shapes = {name: array.shape for name, array in arrays.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [each.dim_value for each in value.type.tensor_type.shape.dim]
    names = [graph.input[0].name, *arrays, *(node.output[0] for node in graph.node)]
    places = {name: place for place, name in enumerate(names)} | {"": None}
    return {
        "name": facts["network"],
        "parameters": int(facts["parameters"]),
        "accuracy": facts["accuracy"].split()[0],
        "constants": [{"shape": x.shape, "values": encoded(x)} for x in arrays.values()],
        "nodes": [
            runnable(node, shapes) | {"inputs": [places[name] for name in node.input]}
            for node in graph.node
        ],
        "logits": places[graph.output[0].name],
    }


def networks() -> list[dict[str, Any]]:
    """The networks of the page; prints which files are left out, and why."""
    found: list[dict[str, Any]] = []
    for path in sorted(WEIGHTS.glob("*.onnx"), key=lambda path: (len(path.stem), path.stem)):
        try:
            entry = network(path)
            if len(json.dumps(entry)) > MOST_BYTES:
                raise UsageError(f"the page takes at most {MOST_BYTES:,} bytes of a network")
            found.append(entry)
        except Exception as error:  # onnx and onnxruntime raise many types for a bad file
            print(f"{path.name} is left out: {error}")
    if not found:
        raise UsageError(f"{WEIGHTS} has no ONNX file that page.js can run; run tools.export")
    return found


def parts() -> dict[str, str]:
    """The parts of the page without the networks; `digest` is a hash of all sources."""
    images, labels = load_mnist(DATA_DIR, train=False)
    samples = [{"digit": labels[i].item(), "pixels": encoded(images[i].numpy())} for i in SAMPLES]
    found = {"samples": json.dumps(samples), "sure": f"{predict.MIN_PROBABILITY}"}
    found["model"] = predict.DEFAULT_MODEL
    for name in ("page.css", "page.js", "page.html", "build.py"):
        found[name] = (SOURCE / name).read_text(encoding="utf-8")
    digest = hashlib.sha256(json.dumps(found).encode())
    for path in sorted(WEIGHTS.glob("*.onnx")):
        digest.update(path.read_bytes())
    return found | {"digest": digest.hexdigest()}


def build() -> None:
    """Writes the page: page.html with the other parts inserted."""
    found = {**parts(), "networks": json.dumps(networks())}
    page = found.pop("page.html")
    for name, part in found.items():
        page = page.replace(f"/* {name} */", part)
    write_atomically(PAGE, page.encode())
    print(f"{PAGE.relative_to(ROOT)}  {PAGE.stat().st_size / 1000:.1f} kB")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.page.build", __doc__)
    parser.parse_args(argv)
    return exit_code(parser.prog, build)


if __name__ == "__main__":
    sys.exit(main())
