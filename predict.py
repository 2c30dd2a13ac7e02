"""Say which digit is on each picture, with a trained network.

    python predict.py digit.png photo.jpg                # weights/model3.pt
    python predict.py *.png --weights runs/model1-strong-seed42/weights.pt --show

    | File      | Digit | Confidence | Runner-up  |
    | --------- | ----: | ---------: | ---------- |
    | digit.png |     7 |     99.1 % | 2 (0.3 %)  |

One digit a picture, of any size and colour, drawn, scanned or photographed. `to_mnist` brings it
to what the network was trained on, the way MNIST was made from NIST's scans (LeCun et al.,
"Gradient-based learning applied to document recognition", 1998): a light digit on black, fitted
into 20 x 20 pixels and centred in 28 x 28 by its centre of mass.
"""

import argparse
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from command_line import Parser, UsageError, exit_code, some_path, whole_number
from mnist import IMAGE_SIZE, Loader
from run_folder import MODELS, load_weights, write_atomically

WEIGHTS_DIR = Path(__file__).parent / "weights"
DIGIT_SIZE = 20  # pixels: the longer side of a digit of MNIST
WORKING_SIZE = 4 * IMAGE_SIZE  # pixels: pictures are looked at no larger than this
MIN_CONTRAST = 12  # of 255: paper and noise differ by less
SHOWN_SIZE = 10 * IMAGE_SIZE  # pixels

# ------------------------------------------------------------------------ picture to ink


def open_picture(path: Path) -> Image.Image:
    """The picture in `path`, upright; its first frame if it moves. UsageError if it is none."""
    try:
        if path.is_dir():
            raise UsageError("a folder; name the pictures in it")
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            picture = Image.open(path)
            picture.load()
            return flatten(ImageOps.exif_transpose(picture))
    except UsageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise UsageError(f"larger than {most}; make it smaller") from None
    except UnidentifiedImageError:
        raise UsageError("not a picture, or damaged") from None
    except OSError as error:
        raise UsageError(error.strerror or "a damaged picture") from None
    except Exception:  # a damaged file makes Pillow's decoders raise a dozen types
        raise UsageError("a damaged picture") from None


def flatten(picture: Image.Image) -> Image.Image:
    """The same without transparency: RGB from 0 to 255, or floats where it had more than 8 bits.

    What shines through is paper: white, or black behind a light digit; but where the visible
    part is most of the picture and has paper of its own, as a sticker has, that one.
    """
    if picture.mode.startswith(("I", "F")):
        picture = picture.convert("F")
        scale = 255 / max(picture.getextrema()[1], 1)
        return picture.point(lambda value: value * scale)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    small = picture.copy()
    small.thumbnail((64, 64), Image.Resampling.BOX)
    pixels = pil_to_tensor(small).float().flatten(1)
    if not pixels[3].any():
        raise UsageError("nothing but transparency")
    visible = pixels[:3, pixels[3] >= pixels[3].max() / 2]
    paper = visible.median(dim=1).values
    if visible.shape[1] < pixels.shape[1] / 2 or visible.std(dim=1).max() < 20:  # ink alone
        paper = torch.full((3,), 255.0 if paper.mean() < 128 else 0.0)
    ground = Image.new("RGBA", picture.size, (*paper.int().tolist(), 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def sliding(extreme: str, tone: Tensor, size: int) -> Tensor:
    """Mean, least or most of the `size` x `size` window around each pixel of (C, H, W)."""
    if extreme == "least":
        return -sliding("most", -tone, size)
    for window in ((size, 1), (1, size)):  # one direction after the other: far less work
        padding = tuple(side // 2 for side in window)
        if extreme == "mean":
            tone = F.avg_pool2d(tone, window, 1, padding, count_include_pad=False)
        else:
            tone = F.max_pool2d(tone, window, 1, padding)
    return tone


def measure_ink(pixels: Tensor) -> Tensor:
    """How much ink each pixel of a picture (C, H, W) holds: (H, W), from 0 to 1.

    Ink is what stands out from the paper around it, and covers less than the paper; so light and
    shadow do not matter, nor which of the two is the darker. UsageError where nothing stands out.
    """
    reach = max(pixels.shape[1:]) // 4  # paper is thought on beyond the edges
    pixels = F.pad(pixels, [reach] * 4, mode="replicate")
    size = int(0.3 * max(pixels.shape[1:])) | 1  # wider than any stroke
    # The direction in colour along which the picture varies most, from paper to ink: the skew
    # tells its sign, since ink is the rarer of the two.
    detail = (pixels - sliding("mean", pixels, size)).flatten(1)
    axis = torch.linalg.eigh(detail @ detail.T).eigenvectors[:, -1]
    axis = axis * (axis @ detail).pow(3).sum().sign()
    tone = torch.einsum("c,chw->hw", axis, pixels)[None]
    paper = sliding("most", sliding("least", tone, size), size)  # a morphological opening
    ink = (tone - paper)[0, reach : -reach or None, reach : -reach or None]
    full = ink[ink >= ink.max() / 2].quantile(0.9).item()
    rest = ink[ink < full / 2]
    noise = 2 * rest.median().item() if rest.numel() else 0.0
    if full < max(MIN_CONTRAST, 1.5 * noise):
        raise UsageError("nothing stands out on it: no digit found")
    return ((ink - noise) / (full - noise)).clamp(0, 1)


def find_digit(ink: Tensor) -> Tensor:
    """Which pixels of the ink (H, W) belong to the digit, without specks and edges of the paper."""
    mask = ink > 0.25
    labels = torch.arange(1.0, ink.numel() + 1).reshape(1, *ink.shape) * mask
    while True:  # connected components: the largest number spreads over each
        before = labels
        for _ in range(8):
            labels = F.max_pool2d(labels, 3, 1, 1) * mask
        if labels.equal(before):
            break
    labels = labels[0].long()
    mass = torch.bincount(labels.flatten(), ink.flatten())
    mass[0] = 0  # the paper
    rim = torch.cat([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    inside = mass.index_fill(0, rim, 0)
    if inside.max() > 0.2 * mass.max():  # or the digit itself reaches the edge
        mass = inside
    return (mass > 0.05 * mass.max())[labels]


# -------------------------------------------------------------------------- ink to MNIST


def to_mnist(picture: Image.Image) -> Tensor:
    """What the network sees of a picture: (28, 28), uint8. UsageError when it is empty."""
    picture = flatten(picture)
    box = (0, 0, *picture.size)  # left, top, right, bottom
    for _ in range(2):  # at first in all of the picture, then closer
        size = (box[2] - box[0], box[3] - box[1])
        shrink = max(1, max(size) / WORKING_SIZE)
        shape = [max(1, round(side / shrink)) for side in size]
        close = picture.resize(shape, Image.Resampling.BOX, box=box)
        ink = measure_ink(pil_to_tensor(close).float().nan_to_num())
        digit = find_digit(ink)
        ink = ink * F.max_pool2d(digit[None].float(), 3, 1, 1)[0]  # with its soft edges
        y, x = digit.nonzero().T
        top, left, bottom, right = y.min().item(), x.min().item(), y.max() + 1, x.max() + 1
        bottom, right = bottom.item(), right.item()
        margin = max(bottom - top, right - left) / 4
        box = (
            max(0, int(box[0] + shrink * (left - margin))),
            max(0, int(box[1] + shrink * (top - margin))),
            min(picture.width, int(box[0] + shrink * (right + margin)) + 1),
            min(picture.height, int(box[1] + shrink * (bottom + margin)) + 1),
        )
    return fit_and_centre(ink[top:bottom, left:right])


def fit_and_centre(ink: Tensor) -> Tensor:
    """A cropped digit (H, W), light on black: fitted into 20 x 20, centred by mass in 28 x 28."""
    height, width = (max(1, round(side * DIGIT_SIZE / max(ink.shape))) for side in ink.shape)
    resized = Image.fromarray(ink.numpy()).resize((width, height), Image.Resampling.HAMMING)
    digit = torch.from_numpy(np.array(resized))
    digit = (digit / digit.max()).clamp(0, 1)
    centre_y = (digit.sum(dim=1) @ torch.arange(float(height)) / digit.sum()).item()
    centre_x = (digit.sum(dim=0) @ torch.arange(float(width)) / digit.sum()).item()
    top = min(max(round(IMAGE_SIZE / 2 - centre_y), 0), IMAGE_SIZE - height)
    left = min(max(round(IMAGE_SIZE / 2 - centre_x), 0), IMAGE_SIZE - width)
    image = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    image[top : top + height, left : left + width] = (255 * digit).round().byte()
    return image


# ----------------------------------------------------------------------------- prediction


def predict(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Probabilities (N, 10) of the ten digits on images (N, 28, 28), uint8 as from `to_mnist`."""
    model.eval()
    with torch.inference_mode():
        batches = Loader(images[:, None], torch.zeros(len(images)), batch_size=1024)
        return torch.cat([model(batch).softmax(dim=1) for batch, _ in batches])


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the predictions, aligned."""
    cells = [("File", "Digit", "Confidence", "Runner-up")]
    for row in rows:
        first, *others = (f"{guess['confidence']:.1%}".replace("%", " %") for guess in row["top"])
        others = ", ".join(f"{g['digit']} ({p})" for g, p in zip(row["top"][1:], others))
        cells.append((row["file"].replace("|", "\\|"), str(row["top"][0]["digit"]), first, others))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    rule = [("-" * (w - 1) + ":") if 1 <= i <= 2 else "-" * w for i, w in enumerate(widths)]
    cells.insert(1, tuple(rule))
    return "\n".join(
        f"| {a:{widths[0]}} | {b:>{widths[1]}} | {c:>{widths[2]}} | {d:{widths[3]}} |"
        for a, b, c, d in cells
    )


def show(image: Tensor, path: Path) -> None:
    """Write what the network saw of the picture `path`, enlarged, to path + "-seen.png"."""
    enlarged = Image.fromarray(image.numpy()).resize([SHOWN_SIZE] * 2, Image.Resampling.NEAREST)
    content = io.BytesIO()
    enlarged.save(content, "PNG")
    write_atomically(path.with_name(f"{path.name}-seen.png"), content.getvalue())


def run(args: argparse.Namespace) -> int:
    """Predict what can be read, print it, and return the exit code: 2 if anything could not."""
    name = args.model or ("model3" if args.weights is None else None)
    _, model = load_weights(args.weights or WEIGHTS_DIR / f"{name}.pt", name)
    images, paths, failures = [], [], 0
    for path in args.pictures:
        try:
            images.append(to_mnist(open_picture(path)))
            paths.append(path)
        except UsageError as error:
            print(f"predict.py: error: {path}: {error}", file=sys.stderr)
            failures += 1
    rows: list[dict[str, Any]] = [{"file": str(path)} for path in paths]
    if images:
        best = predict(model, torch.stack(images)).topk(args.top)
        for row, digits, confidences in zip(rows, best.indices.tolist(), best.values.tolist()):
            row["top"] = [{"digit": d, "confidence": c} for d, c in zip(digits, confidences)]
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(table(rows))
    for path, image in zip(paths, images) if args.show else ():
        show(image, path)
    return 2 if failures else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("predict.py", __doc__)
    add = parser.add_argument
    add("pictures", nargs="+", type=some_path, metavar="PICTURE", help="one digit on each")
    add("--model", choices=[*MODELS], help="the network (default: model3)")
    add("--weights", type=some_path, metavar="FILE", help="default: weights/MODEL.pt")
    add("--top", type=whole_number(1, 10), default=2, metavar="N", help="guesses (default: 2)")
    add("--json", action="store_true", help="print JSON in place of the table")
    add("--show", action="store_true", help="write what the network saw to PICTURE-seen.png")
    return exit_code("predict.py", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
