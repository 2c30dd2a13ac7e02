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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor, nn

from cli import Parser, UsageError, exit_code, whole_number
from files import regular_file
from ink import KEPT_SIZE, TOUCHING, WORKING_SIZE, find_parts, group, inks, open_picture
from mnist import IMAGE_SIZE, AverageOfViews, Loader
from networks import ROOT, list_models, load_model

DEFAULT_MODEL = "model4"
WEIGHTS_DIR = ROOT / "weights"
DIGIT_SIZE = 20  # pixels: the longer side of a digit of MNIST
THIN, THICKENED = 0.04, 0.09  # width of a stroke in the longer side of its digit
FIRST_SIZE = 3 * IMAGE_SIZE  # pixels: so small is a picture at the first look
SURE = 0.85  # probability: less is unsure; half of what is no digit, one of 75 of MNIST's
PRICE = {"all": 0.0, "edge": -0.02, "light": 0.01, "dark": 0.02}  # of a guess, in probability
SHOWN_SIZE = 10 * IMAGE_SIZE  # pixels

# -------------------------------------------------------------------- pictures to MNIST's images


@dataclass(frozen=True)
class Digit:
    """A digit on a picture: left, top, right, bottom in pixels, and (28, 28) as uint8."""

    box: tuple[float, float, float, float]
    image: np.ndarray


# What a picture may be: the area that counts, whether lines are left out, whether its parts are
# several digits.
Guess = tuple[str, bool, bool]


def look(
    picture: Image.Image, box: tuple[float, ...], shrink: float, only: Guess | None = None
) -> dict[Guess, list[Digit]]:
    """The digits in a box of a picture, made `shrink` times smaller, by what it may be."""
    shape = [max(1, round((box[2 + axis] - box[axis]) / shrink)) for axis in (0, 1)]
    close = picture.resize(shape, Image.Resampling.BOX, box=box)
    levels = np.nan_to_num(np.asarray(close, dtype=np.float32))
    pixels = np.atleast_3d(levels.clip(-1e4, 1e4))  # of 255: one that is far beyond hides no digit
    digits = {}
    for area, lines, ink in inks(pixels, only[:2] if only else None):
        parts = find_parts(ink)
        if parts.any():
            for apart in (False, True) if only is None else only[2:]:
                masks = group(parts) if apart else [parts > 0]
                if only or apart < len(masks):
                    guess = (area, lines, apart)
                    digits[guess] = [cut_out(ink, mask, box, shrink) for mask in masks]
    if not digits:
        raise UsageError("nothing stands out on it: no digit found")
    return digits


def cut_out(ink: np.ndarray, mask: np.ndarray, box: tuple[float, ...], shrink: float) -> Digit:
    """The digit in a mask of the ink (H, W) of a box of a picture, made `shrink` times smaller."""
    rows, columns = crop = ndimage.find_objects(mask.astype(int))[0]
    sides = (columns.start, rows.start, columns.stop, rows.stop)
    place = tuple(float(box[side % 2] + shrink * at) for side, at in enumerate(sides))
    ink = ink * ndimage.binary_dilation(mask, TOUCHING)  # with its soft edges
    return Digit(place, fit_and_centre(ink[crop]))


def zoom(picture: Image.Image, guess: Guess, digits: list[Digit]) -> list[Digit]:
    """The same digits after a closer look, with a margin around them."""
    boxes = np.array([digit.box for digit in digits])
    size = np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1))
    low, high = boxes[:, :2].min(axis=0) - size / 4, boxes[:, 2:].max(axis=0) + size / 4 + 1
    box = (*low.clip(0).astype(int), *np.minimum(high, picture.size).astype(int))
    longest = max(box[2] - box[0], box[3] - box[1])
    shrink = longest / WORKING_SIZE
    if guess[2]:  # each of several as large as one
        shrink = max(1.5 * size / WORKING_SIZE, longest / KEPT_SIZE)
    try:
        return look(picture, box, max(1, shrink), guess)[guess]
    except UsageError:
        return digits


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


def find_digits(
    picture: Image.Image, network: nn.Module, several: bool = True
) -> tuple[list[Digit], Tensor]:
    """The digits on a picture as from `flatten`, and their probabilities (N, 10).

    The network chooses what the picture is: that which it is most sure of, after a first look at
    all of it and a closer one at the best two.
    """
    width, height = picture.size
    shrink = max(1, min(max(width, height), 2 * height) / FIRST_SIZE)
    guesses = look(picture, (0, 0, width, height), shrink)
    guesses = {guess: digits for guess, digits in guesses.items() if several or not guess[2]}
    if shrink == 1:  # no closer look shows more
        _, guess, chances = judge(guesses, network)[0]
        return guesses[guess], chances
    first = judge(guesses, network) if len(guesses) > 1 else []
    near = [guess for score, guess, _ in first[:2] if score > first[0][0] - 0.1] or guesses
    closer = {guess: zoom(picture, guess, guesses[guess]) for guess in near}
    score, guess, chances = judge(closer, network)[0]
    if first and first[0][0] > score + 0.1:  # lines are easier to tell from strokes from afar
        (_, guess, chances), closer = first[0], guesses
    return closer[guess], chances


def judge(
    guesses: dict[Guess, list[Digit]], network: nn.Module
) -> list[tuple[float, Guess, Tensor]]:
    """Guesses with their scores and the probabilities (N, 10) of their digits, the best first."""
    images = [digit.image for digits in guesses.values() for digit in digits]
    chances = classify(network, torch.from_numpy(np.stack(images)))
    judged = []
    for guess, part in zip(guesses, chances.split([len(digits) for digits in guesses.values()])):
        area, lines, apart = guess
        most = part.max(dim=1).values
        price = PRICE[area] + 0.01 * lines  # what is simple is likelier
        if apart:  # two may be the pieces of one; that three or more are sure is no chance
            price += -0.05 if len(most) > 2 and most.min() >= SURE else 0.1
        judged.append((most.mean().item() - price, guess, part))
    return sorted(judged, key=lambda one: one[0], reverse=True)


def read(
    source: str | Path | Image.Image, network: nn.Module, several: bool = True
) -> tuple[Image.Image, list[Digit], Tensor]:
    """A picture as from `flatten`, its digits and their probabilities (N, 10); see `find_digits`.

    Raises UsageError, which names the file, when there is no picture or no digit on it.
    """
    if not isinstance(source, Image.Image):
        regular_file(Path(source))
    try:
        picture = open_picture(source)
        return picture, *find_digits(picture, network, several)
    except UsageError as error:
        file = "" if isinstance(source, Image.Image) else f"{source}: "
        raise UsageError(f"{file}{error}") from None


def to_mnist(source: str | Path | Image.Image) -> Tensor:
    """What the network sees of a picture of one digit: (28, 28), uint8. Errors as `read` has."""
    _, (digit,), _ = read(source, trained_network(None, None, False), several=False)
    return torch.from_numpy(digit.image)


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
    return read(picture, trained_network(model, weights, tta), several=False)[2][0].tolist()


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
    _, network = load_model(Path(weights), model)
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
        cells.append([row["file"].replace("|", "\\|"), text, sure, ", ".join(others)])
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
    add("--model", choices=list_models(), help=f"the network (default: {DEFAULT_MODEL})")
    add("--weights", type=Path, metavar="FILE", help="default: weights/MODEL.pt")
    add("--top", type=whole_number(1, 10), default=2, metavar="N", help="guesses (default: 2)")
    add("--tta", action="store_true", help="average the guesses on nine views of each picture")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--show", action="store_true", help="write what the network saw to PICTURE-seen.png")
    return exit_code("predict.py", predict, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
