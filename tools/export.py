"""Export trained networks to ONNX, for other languages and runtimes.

    python -m tools.export weights/model4.pt                    # writes weights/model4.onnx
    python -m tools.export weights/*.pt                         # one file beside each

Input `pixels`: (N, 1, 28, 28), float32, 0 (background) to 1 (ink). Output `logits`: (N, 10). The
normalization is part of the graph; the metadata describe input, output, parameters and accuracy.
A file is written only if onnxruntime predicts the same digit as PyTorch on all 10,000 test images,
with logits within 1e-4.
"""

import argparse
import io
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from cli import Parser, RunError, UsageError, exit_code
from files import write_atomically
from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, load_mnist
from networks import count_parameters, load_model

TOLERANCE = 1e-4  # of logits
BATCH_SIZE = 500  # images


def from_pixels(network: nn.Module) -> nn.Module:
    """The network with normalization in front, for pixels from 0 to 1, in evaluation mode."""
    return nn.Sequential(Normalize((MEAN,), (STD,)), network).eval()


def traced_len(value: Any, length: Any = len) -> Any:
    """len(value), but shape[0] of a tensor, which torch's tracer records."""
    return value.shape[0] if isinstance(value, Tensor) else length(value)


def to_onnx(model: nn.Module) -> Any:
    """The onnx.ModelProto of `model`, in single precision. RunError if torch cannot export it."""
    import onnx  # here and below, so that a missing package is a one-line error

    buffer = io.BytesIO()
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            mock.patch("builtins.len", traced_len),
            mock.patch.object(torch._C, "_jit_onnx_log"),  # prints what cannot be exported
        ):
            # dynamo=True takes half a minute, and writes absolute paths into the file.
            torch.onnx.export(
                model,
                (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
                buffer,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "N"}, "logits": {0: "N"}},
                opset_version=17,  # supported by runtimes since 2022
                dynamo=False,
            )
    except Exception as error:  # torch raises half a dozen types for unsupported layers
        raise RunError(f"torch cannot export it to ONNX: {first_line(error)}") from None
    return to_float32(onnx.load_from_string(buffer.getvalue()))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def to_float32(content: Any) -> Any:
    """Converts an onnx.ModelProto from double precision, for which onnxruntime has few kernels."""
    from onnx import TensorProto, numpy_helper

    graph = content.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for tensor in [*graph.initializer, *(each.t for each in attributes)]:
        if tensor.data_type == TensorProto.DOUBLE:
            single = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:  # of a Cast
            attribute.i = TensorProto.FLOAT
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    return content


def run_onnx(content: bytes, pixels: Tensor) -> Tensor:
    """Logits (N, 10) that onnxruntime computes for pixels (N, 1, 28, 28) from 0 to 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # do not print errors, which are raised
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        parts = [session.run(None, {"pixels": x.numpy()})[0] for x in pixels.split(BATCH_SIZE)]
    except Exception as error:  # onnxruntime's types have no common base
        raise RunError(f"onnxruntime cannot run it: {first_line(error)}") from None
    return torch.from_numpy(np.concatenate(parts))


def check_agreement(model: nn.Module, logits: Tensor, pixels: Tensor) -> float:
    """The largest difference from PyTorch's logits; RunError if they or a prediction disagree."""
    with torch.inference_mode():
        expected = torch.cat([model(batch) for batch in pixels.split(BATCH_SIZE)])
    difference = (expected - logits).abs().max().item()
    others = (expected.argmax(dim=1) != logits.argmax(dim=1)).sum().item()
    if others or not difference <= TOLERANCE:  # also if it is NaN
        what = f"{others} of {len(logits):,} predictions differ, logits by {difference:.1e}"
        raise RunError(f"onnxruntime disagrees: {what}; nothing was written")
    return difference


def destination(weights: Path, out: Path | None) -> Path:
    """The file to write; UsageError if it cannot be written, or is the file of weights."""
    weights = weights / "weights.pt" if weights.is_dir() else weights
    path = out or weights.with_suffix(".onnx")
    if path.suffix != ".onnx" or path.is_dir() or not path.parent.is_dir() or path == weights:
        raise UsageError(f"--out {path}: name a new file FILE.onnx, in an existing folder")
    return path


def export(args: argparse.Namespace) -> None:
    """Writes one ONNX file for each file of weights, and prints its size and accuracy."""
    from onnx import helper

    if args.out and len(args.weights) > 1:
        raise UsageError("--out names one file; give one file of weights")
    jobs = [(destination(path, args.out), *load_model(path)) for path in args.weights]
    images, labels = load_mnist(args.data_dir, train=False)
    pixels = images.float() / 255
    for path, name, network in jobs:
        model = from_pixels(network)
        content = to_onnx(model)
        logits = run_onnx(content.SerializeToString(), pixels)
        difference = check_agreement(model, logits, pixels)
        accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
        facts = {
            "network": name,
            "parameters": f"{count_parameters(network)}",
            "accuracy": f"{accuracy:.2f} % of {len(pixels):,} test images",
            "data": "MNIST by Yann LeCun and Corinna Cortes, from NIST data, CC BY-SA 3.0",
            "pixels": "(N, 1, 28, 28), 0 (background) to 1 (ink), a digit centred as in MNIST",
            "logits": "(N, 10), one per digit; softmax turns them into probabilities",
        }
        content.graph.name = name
        helper.set_model_props(content, facts)
        write_atomically(path, content.SerializeToString())
        size = f"{path.stat().st_size / 1000:.1f} kB"
        print(f"{path}  {size}  {facts['accuracy']}, logits within {difference:.0e} of PyTorch's")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.export", __doc__)
    add = parser.add_argument
    add("weights", nargs="+", type=Path, metavar="WEIGHTS", help="files of weights or run folders")
    add("--out", type=Path, metavar="FILE.onnx", help="default: beside the weights")
    add("--data-dir", type=Path, default=DATA_DIR, metavar="DIR", help="default: data")
    return exit_code(parser.prog, export, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
