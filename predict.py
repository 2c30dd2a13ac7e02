"""Reads the digits on pictures with a trained network.

    python predict.py digit.png photo.jpg
    python predict.py digit.png --weights runs/model1-strong-seed42/weights.pt --show

    | File      |    Digits |     Confidence | Least confident digit | Runner-up |
    | --------- | --------: | -------------: | --------------------: | --------- |
    | digit.png |         7 |         99.1 % |            7 (99.1 %) | 2 (0.3 %) |
    | photo.jpg | 3141 5926 | 61.3 %, unsure |            1 (88.9 %) | 4 (9.2 %) |

One digit or several, line by line, on pictures of any size and colour, drawn, scanned or
photographed. The confidence is the probability that the whole reading is right. Digits are cut out
by heuristic over-segmentation and prepared as MNIST was made from NIST's scans (LeCun et al.,
"Gradient-based learning applied to document recognition", 1998). In a program, `probabilities`
does the same for a picture of one digit.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor, nn

from cli import Parser, UsageError, exit_code, whole_number
from files import regular_file
from ink import (
    TALL,
    Area,
    Candidate,
    Part,
    cut,
    find_candidates,
    find_lines,
    find_parts,
    open_picture,
    stroke_width,
    typical,
)
from mnist import IMAGE_SIZE, AverageOfViews, Loader
from networks import ROOT, list_models, load_model

DEFAULT_MODEL = "model4"
WEIGHTS_DIR = ROOT / "weights"
DIGIT_SIZE = 20  # pixels: the longer side of a digit of MNIST
THIN, THICKENED = 0.04, 0.09  # width of a stroke in the longer side of its digit
# Fitted to rows, pages and single digits of training images, and to what is no digit.
CONFIDENCE = 1.34, 6.1, 0.78, -2.9  # of logit of the least probability, -cost, log(digits), 1
SURE_READING = 0.6  # confidence: less is unsure
SURE = 0.94  # probability of a digit, the same for one alone
SHOWN_SIZE = 10 * IMAGE_SIZE  # pixels

# Costs are in units of a negative log-likelihood: of a digit in a line, ...
CUT_COST, STROKE_COST = 0.1, 0.02  # each cut, and each stroke that it crosses
LOW, LOW_COST = 0.7, 2.0  # heights of the line: a lower digit, for each height
BROAD, BROAD_COST = 0.85, 1.5  # heights of the line: a broader digit, for each height
SKIP_COST = 1.0  # a small part that is no digit, for the ink of a digit
BROADEST = 1.2  # of its height: a digit on its own
MOST_JOINED, WIDEST = 6, 1.3  # parts of a digit, and its width in heights
NEAR, SMALL_NEAR = 0.12, 0.25  # heights: the largest gap between parts of a digit
# ... and of a reading, which is the mean over its digits, and these:
AREA_COST = {Area.ALL: 0.0, Area.EDGE: -0.02, Area.LIGHT: 0.01, Area.DARK: 0.02}
UNRULED_COST = 0.04  # ruling that was removed
EDGE_COST = 0.2  # parts left out at the edges, for the ink of a digit
PIECE_COST, MOST_PIECES = 0.05, 6  # one digit of several tall parts: each further one
SEVERAL_COST, LONE_COST = 0.14, 0.05  # several digits, by their number, and of a single part

# -------------------------------------------------------------------- parts to MNIST's images


class Digit(NamedTuple):
    """A digit: its box (left, top, right, bottom) in pixels, image (28, 28), probabilities (10)."""

    box: tuple[float, ...]
    image: np.ndarray
    probabilities: Tensor


class Reading(NamedTuple):
    """The digits of a picture line by line; `cost` is the mean of their costs."""

    lines: list[list[Digit]]
    cost: float

    @property
    def digits(self) -> list[Digit]:
        return [digit for line in self.lines for digit in line]

    @property
    def text(self) -> str:
        lines = (
            [str(digit.probabilities.argmax().item()) for digit in line] for line in self.lines
        )
        return " ".join("".join(line) for line in lines)

    @property
    def confidence(self) -> float:
        """The probability that it is right, by logistic regression."""
        least = min(digit.probabilities.max().item() for digit in self.digits)
        logit = math.log(least / max(1 - least, 1e-4))
        features = logit, -self.cost, math.log(len(self.digits)), 1
        return 1 / (1 + math.exp(-np.dot(CONFIDENCE, features)))

    @property
    def sure(self) -> bool:
        return self.confidence >= SURE_READING


class Segment(NamedTuple):
    """The parts `first` to `end` of a line, as one digit; without an image they are left out."""

    first: int
    end: int
    cost: float
    box: tuple[int, ...] = ()
    image: np.ndarray | None = None


class Layout(NamedTuple):
    """A candidate divided into digits: the segments of each line, and what it costs."""

    candidate: Candidate
    lines: list[list[Segment]]
    cost: float
    several_cost: float = 0.0


def cut_out(ink: np.ndarray, parts: Sequence[Part]) -> tuple[tuple[int, ...], np.ndarray]:
    """Returns the box around parts of the ink (H, W), and their image (28, 28)."""
    boxes = np.array([part.box for part in parts])
    left, top, right, bottom = *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    for part in parts:
        mask[part.box[1] - top : part.box[3] - top, part.box[0] - left : part.box[2] - left] |= (
            part.mask
        )
    mask = cv2.dilate(mask, np.ones((3, 3)))  # with its soft edges
    image = fit_and_centre(ink[top:bottom, left:right] * mask)
    return (int(left), int(top), int(right), int(bottom)), image


def fit_and_centre(ink: np.ndarray) -> np.ndarray:
    """Fits a cropped digit (H, W) into 20 x 20, and centres it by mass in 28 x 28, as uint8."""
    longest, width = max(ink.shape), stroke_width(ink)
    if width < THIN * longest:  # too faint when it is made smaller
        wider = round(THICKENED * longest - width)
        ink = ndimage.grey_dilation(np.pad(ink, wider // 2), (wider + 1, wider + 1))
    height, width = (max(1, round(side * DIGIT_SIZE / max(ink.shape))) for side in ink.shape)
    resized = Image.fromarray(ink.astype(np.float32))
    digit = np.asarray(resized.resize((width, height), Image.Resampling.HAMMING))
    digit = (digit / digit.max()).clip(0, 1)
    centre_y, centre_x = ndimage.center_of_mass(digit)
    top = min(max(round(IMAGE_SIZE / 2 - centre_y), 0), IMAGE_SIZE - height)
    left = min(max(round(IMAGE_SIZE / 2 - centre_x), 0), IMAGE_SIZE - width)
    image = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    image[top : top + height, left : left + width] = (255 * digit).round()
    return image


# ------------------------------------------------------------------ candidates to a reading


def lay_out(candidate: Candidate, several: bool) -> list[Layout]:
    """Divides the ink of a candidate: all of it one digit, and lines of several."""
    parts, left_out = find_parts(candidate.ink)
    if not parts:
        return []
    cost = AREA_COST[candidate.area] + UNRULED_COST * candidate.unruled + EDGE_COST * left_out
    layouts = []
    if not several or len(parts) <= MOST_PIECES:
        tallest = max(part.height for part in parts)
        pieces = sum(part.height > TALL * tallest for part in parts)
        box, image = cut_out(candidate.ink, parts)
        broad = BROAD_COST * max(0.0, (box[2] - box[0]) / (box[3] - box[1]) - BROADEST)
        one = Segment(0, 1, broad, box, image)
        layouts.append(Layout(candidate, [[one]], cost + PIECE_COST * (pieces - 1)))
    if several:
        lines = [find_segments(candidate.ink, line) for line in find_lines(parts)]
        if sum(map(len, lines)) > 1:
            cost += LONE_COST * (len(parts) == 1)
            layouts.append(Layout(candidate, lines, cost, SEVERAL_COST))
    return layouts


def find_segments(ink: np.ndarray, line: list[Part]) -> list[Segment]:
    """Lists what may be a digit in a line: runs of its parts and of their pieces."""
    tallest = max(part.height for part in line)
    size = float(np.median([part.height for part in line if part.height > TALL * tallest]))
    line = [piece for part in line for piece in cut(part, ink, size)]
    mass = typical([part.mass for part in line], [part.mass for part in line])
    segments = []
    for first, part in enumerate(line):
        if part.height < TALL * size:
            segments.append(Segment(first, first + 1, SKIP_COST * part.mass / mass))
        for end in range(first + 1, min(first + MOST_JOINED, len(line)) + 1):
            run = line[first:end]
            if not joinable(run, size):
                break
            box, image = cut_out(ink, run)
            cost = BROAD_COST * max(0.0, (box[2] - box[0]) / size - BROAD)
            cost += LOW_COST * max(0.0, LOW - (box[3] - box[1]) / size)
            cost += (CUT_COST + STROKE_COST * part.crossed) * (part.crossed > 0)
            segments.append(Segment(first, end, cost, box, image))
    return segments


def joinable(run: list[Part], size: float) -> bool:
    """Returns whether parts of a line `size` high may be one digit: near, and not too wide."""
    if len(run) == 1:
        return True
    edges = [part.box[2] for part in run]
    small = min(run[-1].height, run[-2].height) < TALL * size
    near = run[-1].box[0] - max(edges[:-1]) < (SMALL_NEAR if small else NEAR) * size
    return near and max(edges) - min(part.box[0] for part in run) < WIDEST * size


def best_path(
    segments: list[Segment], probabilities: Sequence[Tensor]
) -> tuple[float, list[tuple[Segment, Tensor]]]:
    """Finds the segments that cover a line at the least cost; returns that cost, and the digits.

    The cost of a digit is the negative logarithm of its probability, and that of its segment.
    """
    best = {0: (0.0, [])}
    for segment, row in sorted(zip(segments, probabilities), key=lambda pair: pair[0].first):
        cost, path = best[segment.first]
        if segment.image is not None:
            cost, path = cost - math.log(row.max().item()), [*path, (segment, row)]
        if cost + segment.cost < best.get(segment.end, (math.inf,))[0]:
            best[segment.end] = cost + segment.cost, path
    return best[max(best)]


def find_reading(picture: Image.Image, network: nn.Module, several: bool = True) -> Reading:
    """Reads a picture as from `flatten`; UsageError where nothing stands out on it."""
    layouts = [one for candidate in find_candidates(picture) for one in lay_out(candidate, several)]
    segments = [one for layout in layouts for line in layout.lines for one in line]
    images = [one.image for one in segments if one.image is not None]
    if not images:
        raise UsageError("nothing stands out on it: no digit found")
    rows = iter(classify(network, torch.from_numpy(np.stack(images))))
    readings = []
    for layout in layouts:
        scale = max(picture.size) / max(layout.candidate.ink.shape)
        total, lines = 0.0, []
        for line in layout.lines:
            found = [next(rows) if one.image is not None else None for one in line]
            cost, path = best_path(line, found)
            total += cost
            digits = [
                Digit(tuple(scale * at for at in one.box), one.image, row) for one, row in path
            ]
            lines += [digits] if digits else []
        if lines:
            mean = (total + layout.several_cost) / sum(map(len, lines))
            readings.append(Reading(lines, mean + layout.cost))
    return min(readings, key=lambda reading: reading.cost)


def read(
    source: str | Path | Image.Image, network: nn.Module, several: bool = True
) -> tuple[Image.Image, Reading]:
    """Opens and reads a picture; UsageError, which names the file, where it cannot."""
    if not isinstance(source, Image.Image):
        regular_file(Path(source))
    try:
        picture = open_picture(source)
        return picture, find_reading(picture, network, several)
    except UsageError as error:
        file = "" if isinstance(source, Image.Image) else f"{source}: "
        raise UsageError(f"{file}{error}") from None


def to_mnist(source: str | Path | Image.Image) -> Tensor:
    """Returns what the network sees of a picture of one digit: (28, 28), uint8."""
    _, reading = read(source, trained_network(None, None, False), several=False)
    return torch.from_numpy(reading.digits[0].image)


def probabilities(
    picture: str | Path | Image.Image,
    model: str | None = None,
    weights: str | Path | None = None,
    tta: bool = False,
) -> list[float]:
    """Returns the probabilities of the digits 0 to 9 on a picture of one digit, a file or PIL's.

    `model`, `weights` and `tta` are the options of the command line, with its defaults. Weights
    are read once a process. Raises UsageError, with the reason in one line, where there is no
    picture, no digit on it, or no such weights.
    """
    _, reading = read(picture, trained_network(model, weights, tta), several=False)
    return reading.digits[0].probabilities.tolist()


@functools.cache
def trained_network(model: str | None, weights: str | Path | None, tta: bool) -> nn.Module:
    """Loads DEFAULT_MODEL, unless a model or weights are named; averages nine views for TTA."""
    if weights is None:
        model = model or DEFAULT_MODEL
        weights = WEIGHTS_DIR / f"{model}.pt"
        if not weights.exists():
            train = f"train {model} (python train.py --model {model})"
            then = f"--weights runs/{model}-strong-seed42/weights.pt"
            raise UsageError(f"{weights} is not there; {train}, then predict with {then}")
    _, network = load_model(Path(weights), model)
    return AverageOfViews(network) if tta else network


def classify(network: nn.Module, images: Tensor) -> Tensor:
    """Returns probabilities (N, 10) of the ten digits on images (N, 28, 28), uint8."""
    network.eval()
    with torch.inference_mode():
        batches = Loader(images[:, None], torch.zeros(len(images)), batch_size=1024)
        return torch.cat([network(batch).softmax(dim=1) for batch, _ in batches])


# ----------------------------------------------------------------------- command line


def describe(file: Path, picture: Image.Image, reading: Reading, top: int) -> dict[str, Any]:
    """Returns a reading for JSON: boxes as shares of the picture, `top` predictions a digit."""
    digits = []
    for digit in reading.digits:
        best = digit.probabilities.topk(top)
        predictions = zip(best.indices.tolist(), best.values.tolist())
        digits.append(
            {
                "box": [round(at / side, 4) for at, side in zip(digit.box, 2 * picture.size)],
                "sure": best.values[0].item() >= SURE,
                "top": [{"digit": number, "confidence": value} for number, value in predictions],
            }
        )
    return {
        "file": str(file),
        "lines": reading.text.split(),
        "confidence": reading.confidence,
        "sure": reading.sure,
        "digits": digits,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the predictions as an aligned Markdown table."""
    cells = [["File", "Digits", "Confidence", "Least confident digit", "Runner-up"]]
    for row in rows:
        confidence = f"{100 * row['confidence']:.1f} %{'' if row['sure'] else ', unsure'}"
        least = min(row["digits"], key=lambda digit: digit["top"][0]["confidence"])["top"]
        first, *others = (f"{one['digit']} ({100 * one['confidence']:.1f} %)" for one in least)
        file = row["file"].replace("|", "\\|")
        cells.append([file, " ".join(row["lines"]), confidence, first, ", ".join(others)])
    widths = [max(map(len, column)) for column in zip(*cells)]
    align = [str.ljust, str.rjust, str.rjust, str.rjust, str.ljust]
    cells.insert(1, [each("", width, "-") for each, width in zip(align, widths)])
    cells[1][1:4] = [f"{line[1:]}:" for line in cells[1][1:4]]
    lines = [[each(*cell) for each, *cell in zip(align, line, widths)] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(path: Path, picture: Image.Image, reading: Reading) -> None:
    """Writes what the network saw of one digit, enlarged, or a box around each of several.

    Boxes are numbered in reading order, with digit and confidence. UsageError where it cannot.
    """
    digits = reading.digits
    seen = Image.fromarray(digits[0].image).resize([SHOWN_SIZE] * 2, Image.Resampling.NEAREST)
    if len(digits) > 1:
        seen = Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8)).convert("RGB")
        draw = ImageDraw.Draw(seen)
        for number, digit in enumerate(digits, 1):
            draw.rectangle(digit.box, outline="red", width=max(1, max(picture.size) // 400))
            confidence, best = digit.probabilities.max(dim=0)
            size = max(8, (digit.box[2] - digit.box[0]) / 4)
            text = f"{number}: {best} {100 * confidence:.0f} %"
            font = ImageFont.load_default(size)
            draw.text(
                digit.box[:2], text, "red", font, anchor="ld", stroke_width=1, stroke_fill="white"
            )
    target = path.with_name(f"{path.name}-seen.png")
    try:
        seen.save(target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    print(f"predict.py: wrote {target}", file=sys.stderr)


def predict(args: argparse.Namespace) -> int:
    """Prints what can be read; returns the exit code, 2 where something failed."""
    network = trained_network(args.model, args.weights, args.tta)
    rows, failed = [], False
    for path in args.pictures:
        try:
            picture, reading = read(path, network)
            rows.append(describe(path, picture, reading, args.top))
            if args.show:
                show(path, picture, reading)
        except UsageError as error:
            print(f"predict.py: error: {error}", file=sys.stderr)
            failed = True
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(table(rows))
    return 2 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE", help="with a digit or several")
    add("--model", choices=list_models(), help=f"the network (default: {DEFAULT_MODEL})")
    add("--weights", type=Path, metavar="FILE", help="default: weights/MODEL.pt")
    add("--top", type=whole_number(1, 10), default=2, metavar="N", help="predictions (default: 2)")
    add("--tta", action="store_true", help="average nine views of each digit")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--show", action="store_true", help="write what the network saw to PICTURE-seen.png")
    return exit_code("predict.py", predict, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
