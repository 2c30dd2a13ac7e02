"""Say which digit is on each picture, with a trained network.

    python predict.py digit.png photo.jpg
    python predict.py digit.png --weights runs/model1-strong-seed42/weights.pt --show

    | File      | Digit | Confidence | Runner-up |
    | --------- | ----: | ---------: | --------- |
    | digit.png |     7 |     99.1 % | 2 (0.3 %) |

One digit per picture, of any size and colour, drawn, scanned or photographed. `to_mnist` brings it
to what the network was trained on, the way MNIST was made from NIST's scans (LeCun et al.,
"Gradient-based learning applied to document recognition", 1998): a light digit on black, fitted
into 20 x 20 pixels and centred in 28 x 28 by its centre of mass. In a program, `probabilities`
does the same for one picture.
"""

import argparse
import functools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor, nn

from attempts import attempts, load_network
from mnist import IMAGE_SIZE, AverageOfViews, Loader
from run_folder import ROOT
from script import Parser, UsageError, exit_code, whole_number

DEFAULT_MODEL = "model4"
WEIGHTS_DIR = ROOT / "weights"
DIGIT_SIZE = 20  # pixels: the longer side of a digit of MNIST
WORKING_SIZE = 4 * IMAGE_SIZE  # pixels: pictures are looked at no larger than this
KEPT_SIZE = 12 * WORKING_SIZE  # pixels: what is twice as long or more is shrunk at once
MIN_CONTRAST = 12  # of 255: paper and noise differ by less
SHOWN_SIZE = 10 * IMAGE_SIZE  # pixels
TOUCHING = np.ones((3, 3), dtype=bool)  # a pixel and those at its sides and corners

# ------------------------------------------------------------------------ picture to ink


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """The picture in a file, its first frame if it moves, or one already open; see `flatten`.

    Raises UsageError when it is none.
    """
    try:
        if isinstance(source, Image.Image):
            return flatten(source)
        if Path(source).is_dir():
            raise UsageError("a folder; name the pictures in it")
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(source) as picture,
        ):
            picture.draft(None, (KEPT_SIZE, KEPT_SIZE))  # JPEG alone can be read at a fraction
            return flatten(picture)
    except UsageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise UsageError(f"larger than {most}; make it smaller") from None
    except UnidentifiedImageError:
        raise UsageError("not a picture, or damaged") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise a dozen types
        raise UsageError(getattr(error, "strerror", None) or "a damaged picture") from None


def flatten(picture: Image.Image) -> Image.Image:
    """The same upright and without transparency, the longer side below 2 * KEPT_SIZE pixels.

    RGB from 0 to 255, or floats in that range where it had more than 8 bits. What is transparent
    becomes paper: white, or black behind a light digit. Where most of the picture is opaque and
    has paper of its own, as a sticker has, it becomes like that.
    """
    deep = picture.mode.startswith(("I", "F"))
    mode = "F" if deep else "RGBA" if picture.has_transparency_data else "RGB"
    picture = picture.convert(mode).reduce(max(1, max(picture.size) // KEPT_SIZE))
    picture = ImageOps.exif_transpose(picture)
    if deep:
        scale = 255 / max(picture.getextrema()[1], 1)
        return picture.point(lambda value: value * scale)
    if mode == "RGB":
        return picture
    small = picture.copy()
    small.thumbnail((64, 64), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32).reshape(-1, 4)
    alpha = pixels[:, 3]
    if not alpha.any():
        raise UsageError("nothing but transparency")
    visible = pixels[alpha >= alpha.max() / 2, :3]
    paper = np.median(visible, axis=0)
    if len(visible) < len(pixels) / 2 or visible.std(axis=0).max() < 20:  # ink alone
        paper = np.full(3, 255 if paper.mean() < 128 else 0)
    ground = Image.new("RGBA", picture.size, (*(int(value) for value in paper), 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def measure_ink(pixels: np.ndarray) -> np.ndarray:
    """How much ink each pixel of a picture (H, W, channels) holds: (H, W), from 0 to 1.

    Ink is what stands out from the paper around it, and covers less than the paper; so light and
    shadow do not matter, nor which of the two is the darker. UsageError where nothing stands out.
    """
    reach = max(pixels.shape[:2]) // 4  # so far is the paper extended beyond the edges
    pixels = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    size = int(0.3 * max(pixels.shape[:2])) | 1  # wider than any stroke
    # The direction in colour along which the picture varies most, from paper to ink: the skew
    # tells its sign, since ink is the rarer of the two.
    detail = pixels - ndimage.uniform_filter(pixels, (size, size, 1), mode="nearest")
    detail = detail.reshape(-1, pixels.shape[2])
    axis = np.linalg.eigh(detail.T @ detail).eigenvectors[:, -1]
    axis = axis * np.sign(((detail @ axis) ** 3).sum())
    tone = pixels @ axis
    ink = tone - ndimage.grey_opening(tone, (size, size), mode="nearest")
    ink = ink[reach : len(ink) - reach, reach : ink.shape[1] - reach]
    full = np.quantile(ink[ink >= ink.max() / 2], 0.9)
    rest = ink[ink < full / 2]
    noise = 2 * np.median(rest) if rest.size else 0.0
    if full < max(MIN_CONTRAST, 1.5 * noise):
        raise UsageError("nothing stands out on it: no digit found")
    return ((ink - noise) / (full - noise)).clip(0, 1)


def find_digit(ink: np.ndarray) -> np.ndarray:
    """Which pixels of the ink (H, W) belong to the digit, without specks and edges of the paper."""
    labels, _ = ndimage.label(ink > 0.25, TOUCHING)
    mass = np.bincount(labels.ravel(), ink.ravel())
    mass[0] = 0  # the paper
    inside = mass.copy()
    inside[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    if inside.max() > 0.2 * mass.max():  # or the digit itself reaches the edge
        mass = inside
    return (mass > 0.05 * mass.max())[labels]


# -------------------------------------------------------------------------- ink to MNIST


def to_mnist(picture: str | Path | Image.Image) -> Tensor:
    """What the network sees of a picture: (28, 28), uint8. UsageError when no digit is on it."""
    try:
        return torch.from_numpy(fit_and_centre(cut_out(open_picture(picture))))
    except UsageError as error:
        file = "" if isinstance(picture, Image.Image) else f"{picture}: "
        raise UsageError(f"{file}{error}") from None


def cut_out(picture: Image.Image) -> np.ndarray:
    """The ink of the digit on a picture as from `flatten`, cropped: (H, W), from 0 to 1."""
    box = (0, 0, *picture.size)  # left, top, right, bottom
    for _ in range(2):  # at first in all of the picture, then closer
        size = (box[2] - box[0], box[3] - box[1])
        shrink = max(1, max(size) / WORKING_SIZE)
        shape = [max(1, round(side / shrink)) for side in size]
        close = picture.resize(shape, Image.Resampling.BOX, box=box)
        ink = measure_ink(np.atleast_3d(np.nan_to_num(np.asarray(close))).astype(np.float64))
        digit = find_digit(ink)
        ink = ink * ndimage.binary_dilation(digit, TOUCHING)  # with its soft edges
        rows, columns = crop = ndimage.find_objects(digit.astype(int))[0]
        margin = max(rows.stop - rows.start, columns.stop - columns.start) / 4
        box = (
            max(0, int(box[0] + shrink * (columns.start - margin))),
            max(0, int(box[1] + shrink * (rows.start - margin))),
            min(picture.width, int(box[0] + shrink * (columns.stop + margin)) + 1),
            min(picture.height, int(box[1] + shrink * (rows.stop + margin)) + 1),
        )
    return ink[crop]


def fit_and_centre(ink: np.ndarray) -> np.ndarray:
    """A cropped digit (H, W), light on black: fitted into 20 x 20, centred by mass in 28 x 28."""
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


# ----------------------------------------------------------------------------- prediction


def probabilities(
    picture: str | Path | Image.Image,
    model: str | None = None,
    weights: str | Path | None = None,
    tta: bool = False,
) -> list[float]:
    """The probabilities of the digits 0 to 9 on a picture, a file or a PIL image.

    `model`, `weights` and `tta` are the options of the command line, with its defaults. Weights
    are read once a process. Raises UsageError, with the reason in one line, where there is no
    picture, no digit on it, or no such weights.
    """
    return classify(trained_network(model, weights, tta), to_mnist(picture)[None])[0].tolist()


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


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the predictions, aligned."""
    cells = [["File", "Digit", "Confidence", "Runner-up"]]
    for row in rows:
        best, *others = ((str(g["digit"]), f"{100 * g['confidence']:.1f} %") for g in row["top"])
        runners_up = ", ".join(f"{digit} ({confidence})" for digit, confidence in others)
        cells.append([row["file"].replace("|", "\\|"), *best, runners_up])
    first, last = (max(len(line[column]) for line in cells) for column in (0, 3))
    lines = [f"| {a:{first}} | {b:>5} | {c:>10} | {d:{last}} |" for a, b, c, d in cells]
    lines.insert(1, f"| {'-' * first} | ----: | ---------: | {'-' * last} |")
    return "\n".join(lines)


def show(image: Tensor, path: Path) -> None:
    """Write what the network saw of the picture `path`, enlarged, to path + "-seen.png"."""
    enlarged = Image.fromarray(image.numpy()).resize([SHOWN_SIZE] * 2, Image.Resampling.NEAREST)
    enlarged.save(path.with_name(f"{path.name}-seen.png"))


def predict(args: argparse.Namespace) -> int:
    """Predict what can be read, print it, and return the exit code: 2 if anything could not."""
    network = trained_network(args.model, args.weights, args.tta)
    paths, images = [], []
    for path in args.pictures:
        try:
            images.append(to_mnist(path))
            paths.append(path)
        except UsageError as error:
            print(f"predict.py: error: {error}", file=sys.stderr)
    rows = []
    if images:
        best = classify(network, torch.stack(images)).topk(args.top)
        for path, digits, confidences in zip(paths, best.indices.tolist(), best.values.tolist()):
            top = [{"digit": d, "confidence": c} for d, c in zip(digits, confidences)]
            rows.append({"file": str(path), "top": top})
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(table(rows))
    for path, image in zip(paths, images) if args.show else ():
        show(image, path)
    return 2 if len(paths) < len(args.pictures) else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE", help="one digit on each")
    add("--model", choices=attempts(), help=f"the network (default: {DEFAULT_MODEL})")
    add("--weights", type=Path, metavar="FILE", help="default: weights/MODEL.pt")
    add("--top", type=whole_number(1, 10), default=2, metavar="N", help="guesses (default: 2)")
    add("--tta", action="store_true", help="average the guesses on nine views of each picture")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--show", action="store_true", help="write what the network saw to PICTURE-seen.png")
    return exit_code("predict.py", predict, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
