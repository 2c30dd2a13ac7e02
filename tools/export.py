"""Write a trained network as ONNX, a file that other languages and runtimes load without torch.

    python -m tools.export weights/model4.pt                    # weights/model4.onnx
    python -m tools.export weights/model4.pt --out digits.onnx --int8

Input `pixels`: (N, 1, 28, 28), float32 from 0 (paper) to 1 (ink). Output `logits`: (N, 10). The
normalisation is inside, BatchNorm is folded into the convolutions, and the metadata say what it is.

The file is written once onnxruntime has shown, on all 10,000 test images, the same digits as
PyTorch and logits within 1e-4 of its own. --int8 writes a second one beside it, digits-int8.onnx,
whose weights and activations are whole numbers of 8 bits, calibrated on training images.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from command_line import Parser, RunError, UsageError, exit_code, some_path
from mnist import DATA_DIR, IMAGE_SIZE, MEAN, STD, load_mnist
from run_folder import count_parameters, load_weights, weights_file, write_atomically
from tools.folding import folded

OPSET = 17  # of ONNX: what runtimes have understood since 2022
TOLERANCE = 1e-4  # of logits
BATCH_SIZE = 500  # images
CALIBRATION = 1_000  # training images that show int8 which values occur
SOURCE = "MNIST by Yann LeCun and Corinna Cortes, from NIST data, CC BY-SA 3.0"


class FromPixels(nn.Module):
    """A network without BatchNorm that takes pixels from 0 to 1 and normalises them itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = folded(model)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 1, 28, 28) from 0 to 1 to logits (N, 10)."""
        return self.network((pixels - MEAN) / STD)


# ------------------------------------------------------------------------------- writing


def to_onnx(model: nn.Module) -> bytes:
    """An ONNX file of `model`, which takes normalised images; this one takes pixels."""
    buffer = io.BytesIO()
    names = {"input_names": ["pixels"], "output_names": ["logits"]}
    with warnings.catch_warnings(action="ignore"):
        # dynamo=False: torch 2.6 and today's write the same file by it, in a second. The newer
        # exporter takes half a minute, and its file has the paths of this machine in it.
        torch.onnx.export(
            FromPixels(model).eval(),
            (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
            buffer,
            **names,
            dynamic_axes={"pixels": {0: "N"}, "logits": {0: "N"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return without_ceil_mode(buffer.getvalue())


def without_ceil_mode(content: bytes) -> bytes:
    """The ONNX file `content`, whose average pools have padding at their ends for ceil_mode.

    Padding that is not counted makes it the same function. With ceil_mode, many a runtime divides
    what a window has left at the edge by the size of all of it, onnxruntime before 1.29 among them
    (github.com/microsoft/onnxruntime/issues/16203).
    """
    import onnx  # here and below, so that nothing but an export needs the ONNX packages

    model = onnx.load_from_string(content)
    for node in model.graph.node:
        given = {field.name: onnx.helper.get_attribute_value(field) for field in node.attribute}
        if node.op_type == "AveragePool" and given["ceil_mode"] and not any(given["pads"]):
            pads = [0, 0, *(stride - 1 for stride in given["strides"])]
            given |= {"ceil_mode": 0, "count_include_pad": 0, "pads": pads}
            del node.attribute[:]
            node.attribute.extend(onnx.helper.make_attribute(*field) for field in given.items())
    return model.SerializeToString()


def described(content: bytes, name: str, description: str, facts: dict[str, str]) -> bytes:
    """The ONNX file `content` with a name, a description and metadata."""
    import onnx

    model = onnx.load_from_string(content)
    model.graph.name, model.doc_string = name, description
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def to_int8(content: bytes, images: Tensor) -> bytes:
    """The ONNX file `content` in 8 bits; pixels (N, 1, 28, 28) show which values occur."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(BATCH_SIZE))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        names = ("float", "prepared", "int8")
        plain, prepared, small = (str(Path(folder, f"{name}.onnx")) for name in names)
        Path(plain).write_bytes(content)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            small,
            Batches(),
            # QOperator makes files a third smaller, but takes a max pool before its ReLU for one
            # behind it: 19 % accuracy for model2, in place of 99.
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return Path(small).read_bytes()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the advice of onnxruntime's tools from the console: it is about what is done here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)


# ------------------------------------------------------------------------------ checking


def run_onnx(content: bytes, pixels: Tensor) -> Tensor:
    """Logits (N, 10) that onnxruntime computes for pixels (N, 1, 28, 28) from 0 to 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    logits = [
        session.run(["logits"], {"pixels": batch.numpy()})[0] for batch in pixels.split(BATCH_SIZE)
    ]
    return torch.from_numpy(np.concatenate(logits))


def run_torch(model: nn.Module, pixels: Tensor) -> Tensor:
    """Logits (N, 10) of the network as it was trained, for pixels (N, 1, 28, 28) from 0 to 1."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model((batch - MEAN) / STD) for batch in pixels.split(BATCH_SIZE)])


def check_agreement(expected: Tensor, found: Tensor) -> float:
    """The largest difference between logits (N, 10); RunError where it, or a digit, is wrong."""
    difference = (expected - found).abs().max().item()
    others = (expected.argmax(dim=1) != found.argmax(dim=1)).sum().item()
    if others or not difference <= TOLERANCE:
        raise RunError(
            f"onnxruntime gives other digits on {others} of {len(found):,} test images, and logits "
            f"that differ by up to {difference:.1e}; nothing was written"
        )
    return difference


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy in % of logits (N, 10) against labels (N,)."""
    return 100 * (logits.argmax(dim=1) == labels).float().mean().item()


# --------------------------------------------------------------------------- command line


def export(args: argparse.Namespace) -> None:
    """Write what was asked for once it is checked, and print what it attains."""
    weights = weights_file(args.weights)
    name, model = load_weights(weights)
    out = args.out or weights.with_suffix(".onnx")
    small_out = out.parent / f"{out.stem}-int8.onnx"
    for path in (out, small_out) if args.int8 else (out,):
        if path.suffix != ".onnx" or path.is_dir():
            raise UsageError(f"--out {path}: name a file that ends in .onnx")
        if not path.parent.is_dir():
            raise UsageError(f"--out {path}: no such folder; make it first")
        if path.exists() and path.samefile(weights):
            raise UsageError(f"--out {path}: these are the weights; name another file")
    test_images, test_labels = load_mnist(args.data_dir, train=False)
    pixels = test_images.float() / 255
    expected = run_torch(model, pixels)
    parameters = count_parameters(model)
    description = f"{name}: which digit is it? {parameters:,} parameters, trained on MNIST."

    def facts(logits: Tensor, precision: str) -> dict[str, str]:
        return {
            "network": name,
            "parameters": f"{parameters}",
            "precision": precision,
            "accuracy": f"{accuracy(logits, test_labels):.2f} % of {len(pixels):,} test images",
            "data": SOURCE,
            "pixels": "(N, 1, 28, 28), from 0 (paper) to 1 (ink), a digit centred as in MNIST",
            "logits": "(N, 10), one a digit; softmax makes probabilities of them",
        }

    plain = to_onnx(model)
    content = described(plain, name, description, facts(expected, "float32"))
    difference = check_agreement(expected, run_onnx(content, pixels))
    outputs = {out: (content, expected)}
    if args.int8:
        train_images, _ = load_mnist(args.data_dir, train=True)
        small = to_int8(plain, train_images[:CALIBRATION].float() / 255)
        logits = run_onnx(small, pixels)
        content = described(small, name, description, facts(logits, "int8"))
        outputs[small_out] = (content, logits)
    for path, (content, logits) in outputs.items():
        write_atomically(path, content)
        percent = accuracy(logits, test_labels)
        print(f"{path}  {len(content) / 1000:.1f} kB  {percent:.2f} % of {len(pixels):,} images")
    print(f"float32: the same digits as PyTorch, logits within {difference:.0e}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prog = "python -m tools.export"
    parser = Parser(prog, __doc__)
    add = parser.add_argument
    add("weights", type=some_path, metavar="WEIGHTS", help="a file of weights, or a run folder")
    add("--out", type=some_path, metavar="FILE.onnx", help="default: beside the weights")
    add("--int8", action="store_true", help="write FILE-int8.onnx too")
    add("--data-dir", type=some_path, default=DATA_DIR, metavar="DIR", help="default: data")
    return exit_code(prog, export, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
