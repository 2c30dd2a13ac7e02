"""Write a trained network as ONNX, a file that other languages and runtimes load without torch.

    python -m tools.export weights/model4.pt                    # weights/model4.onnx
    python -m tools.export weights/model4.pt --out digits.onnx --int8

Input `pixels`: (N, 1, 28, 28), float32 from 0 (paper) to 1 (ink). Output `logits`: (N, 10). The
normalisation is inside, and the metadata say what it is. The file is written once onnxruntime has
shown, on all 10,000 test images, the same digits as PyTorch and logits within 1e-4 of its own.
--int8 writes a second one, digits-int8.onnx, in whole numbers of 8 bits.
"""

import argparse
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    """A trained network that takes pixels from 0 to 1 and normalises them itself."""
    return nn.Sequential(Normalize((MEAN,), (STD,)), network).eval()


def to_onnx(model: nn.Module) -> bytes:
    """An ONNX file of `model`. RunError where torch cannot write one of its layers."""
    import onnx  # here and below, so that a missing package is one line

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):
            # dynamo=False: torch 2.6 and today's write the same file by it, in a second. The newer
            # exporter takes half a minute, and its file has the paths of this machine in it.
            torch.onnx.export(
                model,
                (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
                buffer,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "N"}, "logits": {0: "N"}},
                opset_version=17,  # what runtimes have understood since 2022
                dynamo=False,
            )
    except Exception as error:  # torch raises half a dozen types for what it does not know
        raise RunError(f"torch cannot write it as ONNX: {error}".partition("\n")[0]) from None
    content = onnx.load_from_string(buffer.getvalue())
    for node in content.graph.node:
        if node.op_type == "AveragePool":
            replace_ceil_mode(node)
    return content.SerializeToString()


def replace_ceil_mode(pool: Any) -> None:
    """Give an average pool, a node of an ONNX graph, uncounted padding in place of ceil_mode.

    It is the same function. Many a runtime, such as onnxruntime before 1.29, divides what a window
    has left at the edge by its full size (github.com/microsoft/onnxruntime/issues/16203).
    """
    from onnx.helper import get_attribute_value, make_attribute

    given = {field.name: get_attribute_value(field) for field in pool.attribute}
    if given["ceil_mode"] and not any(given["pads"]):
        pads = [0, 0, *(stride - 1 for stride in given["strides"])]
        given |= {"ceil_mode": 0, "count_include_pad": 0, "pads": pads}
        del pool.attribute[:]
        pool.attribute.extend(make_attribute(*field) for field in given.items())


def to_int8(content: bytes, pixels: Tensor) -> bytes:
    """The ONNX file `content` in 8 bits; `pixels` (N, 1, 28, 28) show which values occur."""
    import onnx
    from onnxruntime import quantization

    batches = ({"pixels": batch.numpy()} for batch in pixels.split(BATCH_SIZE))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        small = Path(folder, "int8")
        logging.disable(logging.WARNING)  # onnxruntime advises what torch has done: folding
        quantization.quantize_static(
            onnx.load_from_string(content),
            small,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            # QOperator makes files a third smaller, but takes a max pool before its ReLU for
            # one behind it: 19 % accuracy for model2, in place of 99.
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        logging.disable(logging.NOTSET)
        return small.read_bytes()


def described(content: bytes, facts: dict[str, str]) -> bytes:
    """The ONNX file `content` with a name and metadata."""
    import onnx

    model = onnx.load_from_string(content)
    model.graph.name = facts["network"]
    onnx.helper.set_model_props(model, facts)
    return model.SerializeToString()


def run_onnx(content: bytes, pixels: Tensor) -> Tensor:
    """Logits (N, 10) that onnxruntime computes for pixels (N, 1, 28, 28) from 0 to 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    logits = [session.run(None, {"pixels": part.numpy()})[0] for part in pixels.split(BATCH_SIZE)]
    return torch.from_numpy(np.concatenate(logits))


def check_agreement(model: nn.Module, found: Tensor, pixels: Tensor) -> float:
    """How far logits (N, 10) are from torch's at most; RunError if too far, or a digit differs."""
    with torch.inference_mode():
        expected = torch.cat([model(batch) for batch in pixels.split(BATCH_SIZE)])
    difference = (expected - found).abs().max().item()
    others = (expected.argmax(dim=1) != found.argmax(dim=1)).sum().item()
    if others or not difference <= TOLERANCE:
        what = (
            f"other digits on {others} of {len(found):,} test images, logits {difference:.1e} off"
        )
        raise RunError(f"onnxruntime does not agree ({what}); nothing was written")
    return difference


def files_of(args: argparse.Namespace) -> dict[str, Path]:
    """Precision to the file for it; UsageError where it cannot be written, or should not."""
    weights = args.weights / "weights.pt" if args.weights.is_dir() else args.weights
    out = args.out or weights.with_suffix(".onnx")
    files = {"float32": out} | ({"int8": out.with_stem(f"{out.stem}-int8")} if args.int8 else {})
    for path in files.values():
        if path.suffix != ".onnx" or path.is_dir() or not path.parent.is_dir() or path == weights:
            raise UsageError(f"--out {path}: name a new file FILE.onnx, in a folder that is there")
    return files


def export(args: argparse.Namespace) -> None:
    """Write what was asked for once it is checked, and print what it attains."""
    name, network = load_model(args.weights)
    files, model = files_of(args), from_pixels(network)
    images, labels = load_mnist(args.data_dir, train=False)
    pixels = images.float() / 255
    contents = {"float32": to_onnx(model)}
    if args.int8:
        train_images, _ = load_mnist(args.data_dir, train=True)
        contents["int8"] = to_int8(contents["float32"], train_images[:1_000].float() / 255)
    logits = {precision: run_onnx(content, pixels) for precision, content in contents.items()}
    difference = check_agreement(model, logits["float32"], pixels)
    for precision, path in files.items():
        accuracy = 100 * (logits[precision].argmax(dim=1) == labels).float().mean().item()
        facts = {
            "network": name,
            "parameters": f"{count_parameters(network)}",
            "precision": precision,
            "accuracy": f"{accuracy:.2f} % of {len(pixels):,} test images",
            "data": "MNIST by Yann LeCun and Corinna Cortes, from NIST data, CC BY-SA 3.0",
            "pixels": "(N, 1, 28, 28), from 0 (paper) to 1 (ink), a digit centred as in MNIST",
            "logits": "(N, 10), one a digit; softmax makes probabilities of them",
        }
        content = described(contents[precision], facts)
        write_atomically(path, content)
        print(f"{path}  {len(content) / 1000:.1f} kB  {facts['accuracy'].replace('test ', '')}")
    print(f"float32: the same digits as PyTorch, logits within {difference:.0e}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("python -m tools.export", __doc__)
    add = parser.add_argument
    add("weights", type=Path, metavar="WEIGHTS", help="a file of weights, or a run folder")
    add("--out", type=Path, metavar="FILE.onnx", help="default: beside the weights")
    add("--int8", action="store_true", help="write FILE-int8.onnx too")
    add("--data-dir", type=Path, default=DATA_DIR, metavar="DIR", help="default: data")
    return exit_code(parser.prog, export, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
