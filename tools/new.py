"""Write a file for a new network: a copy of model3 with a docstring to fill in.

python -m tools.new model7
"""

import argparse
import re
import sys

from cli import Parser, UsageError, exit_code
from networks import ROOT

DOCSTRING = '''"""What is new in this attempt, in one sentence.

Target    The accuracy that you want, with how many parameters, and why this network may reach it.
Result    What it reached: the last epoch, over how many seeds, with which recipe.
Analysis  Why, and what to change next.
"""'''


def write(args: argparse.Namespace) -> None:
    """Writes the file; UsageError if it exists, or the name is not that of a model."""
    path = ROOT / f"{args.name}.py"
    if not re.fullmatch(r"model([0-9]+|_\w+)", args.name, re.ASCII):
        raise UsageError(f"{args.name}: name it model7 or model_small")
    class_name = f"Model_{args.name.removeprefix('model').lstrip('_')}"
    _, _, code = (ROOT / "model3.py").read_text("utf-8").split('"""', 2)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(DOCSTRING + code.replace("Model_3", class_name))
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
