"""Say which digits are on each picture, with a trained network.

    python predict.py digit.png photo.jpg
    python predict.py digit.png --weights runs/model1-strong-seed42/weights.pt --show

    | File      |    Digits |     Confidence | Runner-up |
    | --------- | --------: | -------------: | --------- |
    | digit.png |         7 |         99.1 % | 2 (0.3 %) |
    | photo.jpg | 3141 5926 | 61.3 %, unsure | 4 (9.2 %) |

One digit or several, line by line, on pictures of any size and colour, drawn, scanned or
photographed; of several, confidence and runner-up are of the one that is least sure. Each is
brought to what the network was trained on, the way MNIST was made from NIST's scans (LeCun et al.,
"Gradient-based learning applied to document recognition", 1998): a light digit on black, fitted
into 20 x 20 pixels and centred in 28 x 28 by its centre of mass. What on a picture is digit and
what is table, frame or ruling, the network decides: that of which it is most sure counts. In a
program, `probabilities` does the same for a picture of one digit.
"""

import argparse
import functools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor, nn

from attempts import attempts, load_network
from ink import KEPT_SIZE, TALL, Area, Candidate, Part, candidates, cut, find_lines, find_parts, open_picture, resize, weighted_median
from mnist import IMAGE_SIZE, AverageOfViews, Loader
from run_folder import ROOT
from script import Parser, UsageError, exit_code, one_line, regular_file, whole_number

DEFAULT_MODEL = "model4"
WEIGHTS_DIR = ROOT / "weights"
DIGIT_SIZE = 20  # pixels: the longer side of a digit of MNIST
THIN, THICKENED = 0.04, 0.09  # width of a stroke in the longer side of its digit
SURE = 0.85
PRICE = {Area.ALL: 0.0, Area.EDGE: -0.02, Area.LIGHT: 0.01, Area.DARK: 0.02}
UNRULED_PRICE, PIECE_PRICE, SEVERAL_PRICE = 0.04, 0.08, 0.06
CUT_PRICE, STROKE_PRICE, EDGE_PRICE, LONE_PRICE = 0.1, 0.02, 0.2, 0.05
LEFT_OUT, HEIGHT_PRICE, WIDTH_PRICE = 1.0, 2.0, 1.0
MOST_PIECES, MOST_JOINED, WIDEST = 6, 6, 1.3
SHOWN_SIZE = 10 * IMAGE_SIZE  # pixels

# ------------------------------------------------------------------ parts to MNIST's images


@dataclass(frozen=True)
class Digit:
    """A digit on a picture: left, top, right, bottom in pixels, image (28, 28), probabilities (10,)."""

    box: tuple[float, ...]
    image: np.ndarray
    probabilities: Tensor


@dataclass(frozen=True)
class Reading:
    """The digits of a picture line by line, and the probability that all of them are right."""

    lines: list[list[Digit]]
    score: float
    confidence: float = 0.0
    name: str = ""

    @property
    def digits(self) -> list[Digit]:
        return [digit for line in self.lines for digit in line]

    @property
    def text(self) -> str:
        return " ".join("".join(str(int(d.probabilities.argmax())) for d in line) for line in self.lines)


class Segment(NamedTuple):
    """The parts `first` to `end` of a line, as the image (28, 28) of one digit."""

    first: int
    end: int
    box: tuple[int, int, int, int]
    mass: float
    image: np.ndarray
    cut: float = 0.0  # strokes crossed by its cuts


def segment(ink: np.ndarray, line: list[Part], first: int, end: int) -> Segment:
    parts = line[first:end]
    boxes = np.array([part.box for part in parts])
    left, top, right, bottom = box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    for part in parts:
        x, y = part.box[0] - left, part.box[1] - top
        mask[y : y + part.mask.shape[0], x : x + part.mask.shape[1]] |= part.mask
    mask = cv2.dilate(mask, np.ones((3, 3)))  # with its soft edges
    return Segment(first, end, box, sum(part.mass for part in parts), fit_and_centre(ink[top:bottom, left:right] * mask), line[first].cut)


def fit_and_centre(ink: np.ndarray) -> np.ndarray:
    """A cropped digit (H, W), light on black: fitted into 20 x 20, centred by mass in 28 x 28."""
    inside = ink > 0.25
    border = inside & ~ndimage.binary_erosion(inside)
    width = 2 * ink.sum() / max(1, border.sum())  # of a stroke
    longest = max(ink.shape)
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


# ------------------------------------------------------------------ images to digits


class Line(NamedTuple):
    parts: list[Part]
    segments: list[Segment]
    size: float


class Layout(NamedTuple):
    """A candidate with what each digit may be: lines of segments."""

    candidate: Candidate
    lines: list[Line]
    whole: bool
    left_out: float
    lone: bool = False


def lay_out(candidate: Candidate, several: bool) -> list[Layout]:
    """How the ink of a candidate may be divided: all of it one digit, or lines of several."""
    ink = candidate.ink
    parts, left_out = find_parts(ink)
    if not parts:
        return []
    layouts = []
    if not several or len(parts) <= MOST_PIECES:
        one = segment(ink, parts, 0, len(parts))
        layouts.append(Layout(candidate, [Line(parts, [one], one.box[3] - one.box[1])], True, left_out))
    if several:
        lines = [cut_line(ink, line) for line in find_lines(parts)]
        if sum(len(line.segments) for line in lines) > 1:
            layouts.append(Layout(candidate, lines, False, left_out, len(parts) == 1))
    return layouts


def cut_line(ink: np.ndarray, line: list[Part]) -> Line:
    size = float(np.median([part.height for part in line if part.height > TALL * max(p.height for p in line)]))
    pieces = [piece for part in line for piece in cut(part, ink, size)]
    found = []
    for first in range(len(pieces)):
        for end in range(first + 1, min(first + MOST_JOINED, len(pieces)) + 1):
            if end > first + 1 and not joinable(pieces, first, end, size):
                break
            found.append(segment(ink, pieces, first, end))
    return Line(pieces, found, size)


def joinable(pieces: list[Part], first: int, end: int, size: float) -> bool:
    """Whether parts may be one digit: not too wide, and near each other."""
    parts = pieces[first:end]
    left, right = min(part.box[0] for part in parts), max(part.box[2] for part in parts)
    gap = parts[-1].box[0] - max(part.box[2] for part in parts[:-1])
    small = min(parts[-1].height, parts[-2].height) < TALL * size
    return right - left < WIDEST * size and gap < (0.25 if small else 0.12) * size


def best_path(line: Line, logs: list[float], whole: bool) -> tuple[float, list[int]]:
    """The segments that make up a line at the least cost, and that cost."""
    mass = weighted_median(*np.array([(part.mass, part.mass) for part in line.parts]).T)
    best: list[tuple[float, list[int]]] = [(0.0, [])] + [(np.inf, [])] * len(line.parts)
    for index, one in sorted(enumerate(line.segments), key=lambda pair: pair[1].first):
        cost = best[one.first][0] - logs[index] + (CUT_PRICE + STROKE_PRICE * one.cut) * (one.cut > 0)
        height = (one.box[3] - one.box[1]) / line.size
        cost += HEIGHT_PRICE * max(0.0, 0.7 - height)
        width = (one.box[2] - one.box[0]) / line.size
        cost += WIDTH_PRICE * max(0.0, width - (1.2 if whole else 0.85))
        if cost < best[one.end][0]:
            best[one.end] = cost, [*best[one.first][1], index]
        if one.end == one.first + 1 and is_small(line.parts[one.first], line.size):
            cost = best[one.first][0] + LEFT_OUT * line.parts[one.first].mass / mass
            if cost < best[one.end][0]:
                best[one.end] = cost, best[one.first][1]
    return best[-1]


def is_small(part: Part, size: float) -> bool:
    return part.height < TALL * size


def find_digits(picture: Image.Image, network: nn.Module, several: bool = True) -> list[Reading]:
    """The readings of a picture as from `flatten`, the best first."""
    levels = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    pixels = resize(np.atleast_3d(levels.clip(-1e4, 1e4)), KEPT_SIZE)
    layouts = [layout for one in candidates(pixels) for layout in lay_out(one, several)]
    if not layouts:
        raise UsageError("nothing stands out on it: no digit found")
    images = [one.image for layout in layouts for line in layout.lines for one in line.segments]
    chances = iter(classify(network, torch.from_numpy(np.stack(images))))
    readings = []
    for layout in layouts:
        scale = max(picture.size) / max(layout.candidate.ink.shape)
        total, lines = 0.0, []
        for line in layout.lines:
            rows = [next(chances) for _ in line.segments]
            score, path = best_path(line, [row.max().clamp(min=1e-4).log().item() for row in rows], layout.whole)
            total -= score
            digits = []
            for index in path:
                one = line.segments[index]
                digits.append(Digit(tuple(scale * at for at in one.box), one.image, rows[index]))
            if digits:
                lines.append(digits)
        count = sum(map(len, lines))
        price = PRICE[layout.candidate.area] + UNRULED_PRICE * layout.candidate.unruled
        price += EDGE_PRICE * layout.left_out
        if layout.whole:
            tallest = max(part.height for part in layout.lines[0].parts)
            price += PIECE_PRICE * (sum(part.height > TALL * tallest for part in layout.lines[0].parts) - 1)
        else:
            price += SEVERAL_PRICE / max(count, 1)
            if layout.lone:
                price += LONE_PRICE
        if lines:
            c = layout.candidate
            readings.append(Reading(lines, total / count - price, 0.0, f"{c.area.name} {c.unruled} {layout.whole}"))
    return sorted(readings, key=lambda one: one.score, reverse=True)


def read(source: str | Path | Image.Image, network: nn.Module, several: bool = True) -> Reading:
    """The reading of a picture; raises UsageError, which names the file, when there is none."""
    if not isinstance(source, Image.Image):
        regular_file(Path(source))
    try:
        picture = open_picture(source)
        best = find_digits(picture, network, several)[0]
        return replace(best, confidence=min(d.probabilities.max().item() for d in best.digits))
    except UsageError as error:
        file = "" if isinstance(source, Image.Image) else f"{source}: "
        raise UsageError(f"{file}{error}") from None


def to_mnist(source: str | Path | Image.Image) -> Tensor:
    """What the network sees of a picture of one digit: (28, 28), uint8. Errors as `read` has."""
    reading = read(source, trained_network(None, None, False), several=False)
    return torch.from_numpy(reading.digits[0].image)


def probabilities(
    picture: str | Path | Image.Image,
    model: str | None = None,
    weights: str | Path | None = None,
    tta: bool = False,
) -> list[float]:
    """The probabilities of the digits 0 to 9 on a picture of one digit, a file or a PIL image.

    `model`, `weights` and `tta` are the options of the command line, with its defaults. Weights
    are read once a process. Raises UsageError, with the reason in one line, where there is no
    picture, no digit on it, or no such weights.
    """
    reading = read(picture, trained_network(model, weights, tta), several=False)
    return reading.digits[0].probabilities.tolist()


@functools.cache
def trained_network(model: str | None, weights: str | Path | None, tta: bool) -> nn.Module:
    """The network to guess with: DEFAULT_MODEL's, unless a model or weights are named."""
    if weights is None:
        model = model or DEFAULT_MODEL
        weights = WEIGHTS_DIR / f"{model}.pt"
        if not weights.exists():
            train = f"train {model} (python train.py --model {model})"
            then = f"--weights runs/{model}-strong-seed42/weights.pt"
            raise UsageError(f"{weights} is not there; {train}, then predict with {then}")
    _, network = load_network(Path(weights), model)
    return AverageOfViews(network) if tta else network


def classify(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities (N, 10) of the ten digits on images (N, 28, 28), uint8 as from `to_mnist`."""
    network.eval()
    with torch.inference_mode():
        batches = Loader(images[:, None], torch.zeros(len(images)), batch_size=1024)
        return torch.cat([network(batch).softmax(dim=1) for batch, _ in batches])


# ----------------------------------------------------------------------- command line


def describe(picture: Image.Image, digits: list[Digit], chances: Tensor, top: int) -> list[dict]:
    """For JSON: of each digit its box, as shares of the picture, and its `top` guesses."""
    result = []
    for digit, row in zip(digits, chances):
        best = row.topk(top)
        guesses = zip(best.indices.tolist(), best.values.tolist())
        result.append(
            {
                "box": [round(at / side, 4) for at, side in zip(digit.box, 2 * picture.size)],
                "sure": row.max().item() >= SURE,
                "top": [{"digit": number, "confidence": chance} for number, chance in guesses],
            }
        )
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the predictions, aligned; of several digits, it tells the least sure."""
    cells = [["File", "Digits", "Confidence", "Runner-up"]]
    for row in rows:
        digits, text = row["digits"], ""
        for before, digit in zip([digits[0], *digits], digits):
            new_line = digit["box"][0] < before["box"][0]
            text += " " * new_line + str(digit["top"][0]["digit"])
        least = min(digits, key=lambda digit: digit["top"][0]["confidence"])
        best, *others = (f"{100 * guess['confidence']:.1f} %" for guess in least["top"])
        others = (f"{guess['digit']} ({text})" for guess, text in zip(least["top"][1:], others))
        sure = best if least["sure"] else f"{best}, unsure"
        cells.append([one_line(row["file"]).replace("|", "\\|"), text, sure, ", ".join(others)])
    w, x, y, z = (max(len(line[column]) for line in cells) for column in range(4))
    lines = [f"| {a:{w}} | {b:>{x}} | {c:>{y}} | {d:{z}} |" for a, b, c, d in cells]
    lines.insert(1, f"| {'-' * w} | {'-' * (x - 1)}: | {'-' * (y - 1)}: | {'-' * z} |")
    return "\n".join(lines)


def show(path: Path, picture: Image.Image, digits: list[Digit]) -> None:
    """Write what the network saw of a picture to path + "-seen.png": a digit, enlarged.

    Where there are several, it is the picture with a box around each.
    """
    seen = Image.fromarray(digits[0].image).resize([SHOWN_SIZE] * 2, Image.Resampling.NEAREST)
    if len(digits) > 1:
        seen = Image.fromarray(np.asarray(picture).astype(np.uint8)).convert("RGB")
        for digit in digits:
            width = max(1, max(picture.size) // 200)
            ImageDraw.Draw(seen).rectangle(digit.box, outline="red", width=width)
    seen.save(path.with_name(f"{path.name}-seen.png"))


def predict(args: argparse.Namespace) -> int:
    """Predict what can be read, print it, and return the exit code: 2 if anything could not."""
    network = trained_network(args.model, args.weights, args.tta)
    rows = []
    for path in args.pictures:
        try:
            picture, digits, chances = read(path, network)
        except UsageError as error:
            print(f"predict.py: error: {error}", file=sys.stderr)
            continue
        digits_found = describe(picture, digits, chances, args.top)
        rows.append({"file": str(path), "digits": digits_found})
        if args.show:
            show(path, picture, digits)
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(table(rows))
    return 2 if len(rows) < len(args.pictures) else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE", help="with a digit or several")
    add("--model", choices=attempts(), help=f"the network (default: {DEFAULT_MODEL})")
    add("--weights", type=Path, metavar="FILE", help="default: weights/MODEL.pt")
    add("--top", type=whole_number(1, 10), default=2, metavar="N", help="guesses (default: 2)")
    add("--tta", action="store_true", help="average the guesses on nine views of each picture")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--show", action="store_true", help="write what the network saw to PICTURE-seen.png")
    return exit_code("predict.py", predict, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
