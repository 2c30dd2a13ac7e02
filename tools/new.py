"""Write the file of a new network, as a start.

    python -m tools.new model7

The network meets what tools.check asks for every challenge; change it and its docstring.
"""

import argparse
import re
import sys

from cli import Parser, UsageError, exit_code
from networks import ROOT

TEMPLATE = '''"""What is new in this attempt, in one sentence.

Target    The accuracy that you want, with how many parameters, and why this network may reach it.
Result    What it reached: the last epoch, over how many seeds, with which recipe.
Analysis  Why, and what to change next.
"""

from torch import Tensor, nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution that keeps the size, BatchNorm and ReLU."""
    layers = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class CLASS_NAME(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10). 7,154 parameters, receptive field 56 px."""

    def __init__(self) -> None:
        super().__init__()
        # Beside each layer: its output (channels x height x width) and receptive field.
        self.features = nn.Sequential(
            block(1, 8),  # 8 x 28 x 28, RF 3
            block(8, 8),  # 8 x 28 x 28, RF 5
            nn.MaxPool2d(2),  # 8 x 14 x 14, RF 6
            block(8, 12),  # 12 x 14 x 14, RF 10
            block(12, 12),  # 12 x 14 x 14, RF 14
            nn.MaxPool2d(2),  # 12 x 7 x 7, RF 16
            block(12, 16),  # 16 x 7 x 7, RF 24
            block(16, 16),  # 16 x 7 x 7, RF 32
        )
        self.head = nn.Sequential(
            nn.Dropout(0.05),
            nn.AdaptiveAvgPool2d(1),  # 16 x 1 x 1, RF 56
            nn.Flatten(),
            nn.Linear(16, 10),  # 10 logits, RF 56
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28), normalized, to logits (N, 10)."""
        return self.head(self.features(images))
'''


def write(args: argparse.Namespace) -> None:
    """Writes the file; UsageError where there is one, or the name is none of a model."""
    path = ROOT / f"{args.name}.py"
    if not re.fullmatch(r"model([0-9]+|_\w+)", args.name, re.ASCII):
        raise UsageError(f"{args.name}: name it model7 or model_small")
    try:
        with path.open("x", encoding="utf-8") as file:
            class_name = f"Model_{args.name.removeprefix('model').lstrip('_')}"
            file.write(TEMPLATE.replace("CLASS_NAME", class_name))
    except FileExistsError:
        raise UsageError(f"{path.name} exists; choose another name") from None
    print(f"{path.name} written; next: python -m tools.check {args.name}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.new", __doc__)
    parser.add_argument("name", metavar="MODEL", help="such as model7 or model_small")
    return exit_code(parser.prog, write, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
