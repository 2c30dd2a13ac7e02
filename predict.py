"""Reads the digits on pictures with a trained network.

    python predict.py digit.png photo.jpg
    python predict.py digit.png --weights runs/model1-strong-seed42/weights.pt --show

    | File      |    Digits |     Confidence | Least certain digit | Runner-up |
    | --------- | --------: | -------------: | ------------------: | --------- |
    | digit.png |         7 |         99.1 % |          7 (99.1 %) | 2 (0.3 %) |
    | photo.jpg | 3141 5926 | 61.3 %, unsure |          1 (88.9 %) | 4 (9.2 %) |

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, special
from torch import Tensor, nn

from cli import Parser, UsageError, exit_code, whole_number
from files import regular_file
from ink import (
    TALL,
    Component,
    find_components,
    find_ink,
    find_lines,
    open_picture,
    split_touching,
    stroke_width,
    weighted_median,
)
from mnist import IMAGE_SIZE, TestTimeAugmentation, normalize
from networks import ROOT, list_models, load_model

DEFAULT_MODEL = "model4"
WEIGHTS_DIR = ROOT / "weights"
DIGIT_SIZE = 20  # pixels: the longer side of a digit of MNIST
# Stroke width / longer side of the digit: thinner strokes are dilated to the target.
MIN_STROKE, TARGET_STROKE = 0.04, 0.09
# Logistic regression for the confidence, as in `calibrate`, fitted on photos, scans and drawings of
# digits from public repositories, on training images put together into rows and pages, and on
# letters, signs, ruling and blobs. Features: logit of the least probability of a digit; mean over
# the digits of the log probability when rotated; log margin to the next best reading; 1.
COEFFICIENTS = 0.89, 2.22, 0.64, -0.48
ROTATIONS = -15, 15  # degrees: rotated, a letter mistaken for a digit often loses its probability
MIN_CONFIDENCE = 0.66  # of a reading: less is marked "unsure"
MIN_PROBABILITY = 0.94  # of a digit: with less, its "sure" in the JSON is false
SHOWN_SIZE = 10 * IMAGE_SIZE  # pixels

# Costs added to the negative log-likelihood of each digit; lengths in line heights.
CUT_COST, STROKE_COST = 0.1, 0.02  # per cut through ink; per stroke that it crosses
MIN_HEIGHT, LOW_COST = 0.7, 2.0  # of a digit; per line height below it
MAX_WIDTH, BROAD_COST = 0.85, 1.5  # of a digit; per line height above it
SKIP_COST = 1.0  # of leaving out a small component, times its ink / that of a typical one
MAX_JOINED, MAX_JOINED_WIDTH = 6, 1.3  # components per digit, and their width
MAX_GAP = 0.2  # between components of a digit
# Costs added to a reading, whose cost is the mean over its digits.
SINGLE_COST = 0.08  # of a single digit: where several are plausible, it is hardly ever one
PIECE_COST, MAX_PIECES = 0.05, 6  # per further component of a single digit; components at most

# ---------------------------------------------------------------- components to MNIST's images


@dataclass
class CandidateDigit:
    """Consecutive components `first` to `end` - 1 of a line as one candidate digit."""

    first: int
    end: int
    cost: float
    box: tuple[float, ...] = ()  # left, top, right, bottom, from 0 to 1
    image: np.ndarray | None = None  # (28, 28), uint8; without one, they are skipped as noise
    probabilities: Tensor | None = None  # (10,), once it is classified


class Reading(NamedTuple):
    """The digits of a picture, line by line.

    `cost` is their mean cost plus the cost of the area of the picture; `confidence` is the
    calibrated probability that every digit is right, computed only for the reading that is chosen.
    """

    lines: list[list[CandidateDigit]]
    cost: float
    confidence: float = 0.0

    @property
    def digits(self) -> list[CandidateDigit]:
        return [digit for line in self.lines for digit in line]

    @property
    def text(self) -> str:
        best = [[str(digit.probabilities.argmax().item()) for digit in line] for line in self.lines]
        return " ".join(map("".join, best))

    @property
    def sure(self) -> bool:
        return self.confidence >= MIN_CONFIDENCE


def fit_and_centre(ink: np.ndarray) -> np.ndarray:
    """Fits a cropped digit (H, W) into 20 x 20, and centres it by mass in 28 x 28; uint8."""
    longest, width = max(ink.shape), stroke_width(ink)
    if width < MIN_STROKE * longest:  # would fade when downsampled
        wider = round(TARGET_STROKE * longest - width)
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


def segment(
    ink: np.ndarray, area_cost: float, multiple: bool
) -> Iterator[tuple[list[list[CandidateDigit]], float]]:
    """Yields the candidate digits of each line, and a cost.

    The ink (H, W) of an area is one digit or, if `multiple`, lines of digits.
    """
    components = find_components(ink)
    if components and (not multiple or len(components) <= MAX_PIECES):
        cost = SINGLE_COST + PIECE_COST * (len(components) - 1)
        yield [[prepare_digit(ink, components)]], area_cost + cost
    if components and multiple:
        lines = [candidate_digits(ink, line) for line in find_lines(components)]
        if sum(map(len, lines)) > 1:
            yield lines, area_cost


def candidate_digits(ink: np.ndarray, line: list[Component]) -> list[CandidateDigit]:
    """Candidate digits of a line: up to MAX_JOINED consecutive components or pieces each."""
    tallest = max(component.height for component in line)
    line_height = float(np.median([c.height for c in line if c.height > TALL * tallest]))
    line = [piece for component in line for piece in split_touching(component, ink, line_height)]
    mass = weighted_median([piece.mass for piece in line], [piece.mass for piece in line])
    digits = []
    for first, piece in enumerate(line):
        if piece.height < TALL * line_height:
            digits.append(CandidateDigit(first, first + 1, SKIP_COST * piece.mass / mass))
        for end in range(first + 1, min(first + MAX_JOINED, len(line)) + 1):
            if not joinable(line[first:end], line_height):
                break
            digits.append(prepare_digit(ink, line[first:end], first, line_height))
    return digits


def prepare_digit(
    ink: np.ndarray, components: list[Component], first: int = 0, line_height: float | None = None
) -> CandidateDigit:
    """Crops components of the ink (H, W) as a candidate digit; the first one is number `first`."""
    boxes = np.array([component.box for component in components])
    left, top, right, bottom = *boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    for (x, y, *_), component in zip(boxes - (left, top, 0, 0), components):
        height, width = component.mask.shape
        mask[y : y + height, x : x + width] |= component.mask
    mask = cv2.dilate(mask, np.ones((3, 3)))  # keep the antialiased border
    image = fit_and_centre(ink[top:bottom, left:right] * mask)
    line_height = line_height or bottom - top
    cost = BROAD_COST * max(0.0, (right - left) / line_height - MAX_WIDTH)
    cost += LOW_COST * max(0.0, MIN_HEIGHT - (bottom - top) / line_height)
    crossed = components[0].crossed
    cost += (CUT_COST + STROKE_COST * crossed) * (crossed > 0)
    height, width = ink.shape
    box = left / width, top / height, right / width, bottom / height
    return CandidateDigit(first, first + len(components), cost, box, image)


def joinable(components: list[Component], line_height: float) -> bool:
    """Returns whether components may be one digit: with small gaps, and not too wide."""
    if len(components) == 1:
        return True
    edges = [component.box[2] for component in components]
    gap = components[-1].box[0] - max(edges[:-1])
    width = max(edges) - min(component.box[0] for component in components)
    return gap < MAX_GAP * line_height and width < MAX_JOINED_WIDTH * line_height


def best_path(candidates: list[CandidateDigit]) -> tuple[float, list[CandidateDigit]]:
    """Viterbi search for the cheapest sequence of digits that covers a line: cost and digits.

    Cost of a digit: -log(probability) + its cost as a candidate.
    """
    best = {0: (0.0, [])}
    for digit in sorted(candidates, key=lambda digit: digit.first):
        cost, path = best[digit.first]
        if digit.image is not None:
            cost, path = cost - math.log(digit.probabilities.max().item()), [*path, digit]
        if cost + digit.cost < best.get(digit.end, (math.inf,))[0]:
            best[digit.end] = cost + digit.cost, path
    return best[max(best)]


def find_reading(picture: Image.Image, network: nn.Module, multiple: bool = True) -> Reading:
    """Finds the reading of least cost of a picture; UsageError if no digit is found."""
    areas = find_ink(picture)
    segmentations = [each for ink, cost in areas for each in segment(ink, cost, multiple)]
    digits = [digit for lines, _ in segmentations for line in lines for digit in line]
    digits = [digit for digit in digits if digit.image is not None]
    if not digits:
        raise UsageError("no digit found: too little contrast, or a textured background")
    classified = classify(network, torch.from_numpy(np.stack([digit.image for digit in digits])))
    for digit, row in zip(digits, classified):
        digit.probabilities = row
    readings = []
    for lines, area_cost in segmentations:
        costs, paths = zip(*map(best_path, lines))
        found = [path for path in paths if path]
        if found:
            readings.append(Reading(found, area_cost + sum(costs) / sum(map(len, found))))
    best = min(readings, key=lambda reading: reading.cost)
    if not multiple:  # only its probabilities are wanted
        return best
    return best._replace(confidence=calibrate(best, readings, network))


def calibrate(reading: Reading, readings: list[Reading], network: nn.Module) -> float:
    """Calibrated probability that every digit of a reading, the best of `readings`, is right."""
    images = np.stack([digit.image for digit in reading.digits])
    rotated = [ndimage.rotate(images, by, (2, 1), reshape=False, order=1) for by in ROTATIONS]
    unrotated = torch.stack([digit.probabilities for digit in reading.digits])
    views = torch.stack([unrotated, *(classify(network, torch.from_numpy(x)) for x in rotated)])
    best = unrotated.argmax(dim=1).expand(len(views), -1)[..., None]
    chosen = views.gather(2, best)[..., 0].clamp(1e-4, 1 - 1e-4)  # (views, digits)
    others = [other.cost - reading.cost for other in readings if other.text != reading.text]
    margin = min([1.0, *others])
    least, lowest = chosen[0].min(), chosen[1:].amin(dim=0)
    features = least.logit(), lowest.log().mean(), math.log(max(margin, 0.01)), 1
    return float(special.expit(np.dot(COEFFICIENTS, features)))


def read(
    source: str | Path | Image.Image, network: nn.Module, multiple: bool = True
) -> tuple[Image.Image, Reading]:
    """Opens and reads a picture; UsageError, which names the file, if it cannot."""
    name = "" if isinstance(source, Image.Image) else f"{regular_file(Path(source))}: "
    try:
        picture = open_picture(source)
        return picture, find_reading(picture, network, multiple)
    except UsageError as error:
        raise UsageError(f"{name}{error}") from None


def to_mnist(source: str | Path | Image.Image) -> Tensor:
    """Returns the network's input for a picture of one digit: (28, 28), uint8."""
    _, reading = read(source, trained_network(None, None, False), multiple=False)
    return torch.from_numpy(reading.digits[0].image)


def probabilities(
    picture: str | Path | Image.Image,
    model: str | None = None,
    weights: str | Path | None = None,
    tta: bool = False,
) -> list[float]:
    """Returns the probabilities of the digits 0 to 9 on a picture of one digit, a file or PIL's.

    `model`, `weights` and `tta` are the options of the command line, with its defaults. Weights
    are loaded once per process. UsageError, with the reason in one line, if there is no picture,
    no digit on it, or no such weights.
    """
    _, reading = read(picture, trained_network(model, weights, tta), multiple=False)
    return reading.digits[0].probabilities.tolist()


@functools.cache
def trained_network(model: str | None, weights: str | Path | None, tta: bool) -> nn.Module:
    """Loads the weights of a model (default: DEFAULT_MODEL); averages nine views for TTA."""
    if weights is None:
        model = model or DEFAULT_MODEL
        weights = WEIGHTS_DIR / f"{model}.pt"
        if not weights.exists():
            train = f"train {model} (python train.py --model {model})"
            then = f"--weights runs/{model}-strong-seed42/weights.pt"
            raise UsageError(f"{weights} is not there; {train}, then predict with {then}")
    _, network = load_model(Path(weights), model)
    return TestTimeAugmentation(network) if tta else network


def classify(network: nn.Module, images: Tensor) -> Tensor:
    """Returns probabilities (N, 10) of the ten digits on images (N, 28, 28), uint8."""
    network.eval()
    with torch.inference_mode():
        batches = images[:, None].split(1024)
        return torch.cat([network(normalize(batch / 255)).softmax(dim=1) for batch in batches])


# ----------------------------------------------------------------------- command line


def describe(file: Path, reading: Reading, top: int) -> dict[str, Any]:
    """Returns a reading for JSON: `top` predictions per digit, boxes normalized to [0, 1]."""
    digits = []
    for digit in reading.digits:
        best = digit.probabilities.topk(top)
        predictions = zip(best.indices.tolist(), best.values.tolist())  # digits, probabilities
        digits.append(
            {
                "box": [round(float(at), 4) for at in digit.box],
                "sure": best.values[0].item() >= MIN_PROBABILITY,
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
    cells = [["File", "Digits", "Confidence", "Least certain digit", "Runner-up"]]
    for row in rows:
        confidence = f"{100 * row['confidence']:.1f} %{'' if row['sure'] else ', unsure'}"
        least = min((digit["top"] for digit in row["digits"]), key=lambda top: top[0]["confidence"])
        first, *others = (f"{one['digit']} ({100 * one['confidence']:.1f} %)" for one in least)
        file = row["file"].replace("|", "\\|")
        cells.append([file, " ".join(row["lines"]), confidence, first, ", ".join(others)])
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * (width - 1) + end for width, end in zip(widths, "-:::-")])
    lines = [
        [f"{cell:{side}{width}}" for cell, side, width in zip(line, "<>>><", widths)]
        for line in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(path: Path, picture: Image.Image, reading: Reading) -> None:
    """Writes the network's input for one digit, enlarged, or a box around each of several.

    Boxes are numbered in reading order, with digit and probability. UsageError if it cannot.
    """
    digits = reading.digits
    seen = Image.fromarray(digits[0].image).resize([SHOWN_SIZE] * 2, Image.Resampling.NEAREST)
    if len(digits) > 1:
        seen = Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8)).convert("RGB")
        draw = ImageDraw.Draw(seen)
        for number, digit in enumerate(digits, 1):
            box = tuple(np.multiply(digit.box, [*picture.size, *picture.size]))
            draw.rectangle(box, outline="red", width=max(1, max(picture.size) // 400))
            probability, best = digit.probabilities.max(dim=0)
            size = max(8, (box[2] - box[0]) / 4)
            text = f"{number}: {best} {100 * probability:.0f} %"
            font = ImageFont.load_default(size)
            draw.text(box[:2], text, "red", font, anchor="ld", stroke_width=1, stroke_fill="white")
    target = path.with_name(f"{path.name}-seen.png")
    try:
        seen.save(target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from None
    print(f"predict.py: wrote {target}", file=sys.stderr)


def predict(args: argparse.Namespace) -> int:
    """Prints the readings; returns the exit code, 2 if a picture could not be read."""
    network = trained_network(args.model, args.weights, args.tta)
    rows, failed = [], False
    for path in args.pictures:
        try:
            picture, reading = read(path, network)
            rows.append(describe(path, reading, args.top))
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
    seen = "write PICTURE-seen.png: the network's input, or boxes if there are several digits"
    add("pictures", nargs="+", type=Path, metavar="PICTURE", help="with a digit or several")
    add("--model", choices=list_models(), help=f"the network (default: {DEFAULT_MODEL})")
    add("--weights", type=Path, metavar="FILE", help="default: weights/MODEL.pt")
    add("--top", type=whole_number(1, 10), default=2, metavar="N", help="predictions (default: 2)")
    add("--tta", action="store_true", help="average nine views of each digit")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--show", action="store_true", help=seen)
    return exit_code("predict.py", predict, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
