"""The ink on a picture: any file to what stands out from its paper, and that to its parts.

A picture may be a sheet on a table, a panel on a page, a cell of a form or a crop without a margin:
`inks` gives the ink for each of these, and `group` the parts that belong to one digit.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from cli import UsageError
from mnist import IMAGE_SIZE

WORKING_SIZE = 4 * IMAGE_SIZE  # pixels: pictures are looked at no larger than this
KEPT_SIZE = 12 * WORKING_SIZE  # pixels: what is twice as long or more is shrunk at once
MIN_CONTRAST = 12  # of 255: paper and noise differ by less
MOST_FRAMES = 100  # of a GIF: so many are looked at for one with ink
HEIC = {b"ftyp" + kind for kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")}
LINE_LENGTH = 0.9  # of a side: what is straight so far is likely no stroke of a digit
MOST_SLOPE = 0.04  # of such a line
GRID = 3  # lines: no digit has as many
SHEET = (0.03, 0.97)  # of the picture: smaller areas are ink, larger ones all of it
TOUCHING = np.ones((3, 3), dtype=bool)  # a pixel and those at its sides and corners

# ------------------------------------------------------------------------ files to pictures


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """The picture in a file, or one already open, as `flatten` has it.

    Raises UsageError when it is none.
    """
    try:
        if isinstance(source, Image.Image):
            return flatten(source)
        if Path(source).is_dir():
            raise UsageError("a folder; name the pictures in it")
        check_kind(Path(source))
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(source) as picture,
        ):
            picture.draft(None, (KEPT_SIZE, KEPT_SIZE))  # JPEG alone can be read at a fraction
            for frame in itertools.islice(ImageSequence.Iterator(picture), MOST_FRAMES):
                with contextlib.suppress(UsageError):
                    flat = flatten(frame)
                    if np.ptp(flat.getextrema(), axis=-1).max() >= MIN_CONTRAST:
                        return flat
            return flatten(picture)  # blank
    except UsageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
        raise UsageError(f"larger than {most}; make it smaller") from None
    except UnidentifiedImageError:
        raise UsageError("not a picture, or damaged") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise a dozen types
        raise UsageError(getattr(error, "strerror", None) or "a damaged picture") from None


def check_kind(path: Path) -> None:
    """UsageError for drawings that are no pixels; teaches Pillow HEIC, where it can learn it."""
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"%PDF"):
        raise UsageError("a PDF; export its page as PNG")
    if b"<svg" in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UsageError("an SVG drawing; export it as PNG")
    if head[4:12] in HEIC:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            reason = "a photo in HEIC; run pip install pillow-heif, or export it as JPEG"
            raise UsageError(reason) from None
        register_heif_opener()


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


# ------------------------------------------------------------------------- pictures to ink


def measure_ink(pixels: np.ndarray, paper: np.ndarray | None = None) -> np.ndarray:
    """How much ink each pixel of a picture (H, W, channels) holds: (H, W), from 0 to 1.

    Ink is what stands out from the paper around it, and covers less than the paper; so light and
    shadow do not matter, nor which of the two is the darker. Beyond the edges lies paper of the
    colour `paper`, or what lies at the edges. UsageError where nothing stands out.
    """
    high, wide, _ = pixels.shape
    reach = min(max(high, wide) // 4, min(high, wide)) + 1
    around = ((reach, reach), (reach, reach), (0, 0))
    inner, pixels = pixels, np.pad(pixels, around, mode="edge")
    if paper is not None:
        pixels[:] = paper
        pixels[reach:-reach, reach:-reach] = inner
    size = int(0.3 * max(pixels.shape[:2])) | 1  # wider than any stroke
    # The direction in colour along which the picture varies most, from paper to ink: the skew
    # tells its sign, since ink is the rarer of the two.
    detail, half = pixels[::2, ::2], size // 2 | 1  # enough for that
    detail = detail - ndimage.uniform_filter(detail, (half, half, 1), mode="nearest")
    detail = detail.reshape(-1, pixels.shape[2])
    axis = np.linalg.eigh(detail.T @ detail).eigenvectors[:, -1]
    along = detail @ axis
    axis = axis * np.sign((along * along * along).sum())  # far faster than ** 3
    tone = pixels @ axis
    ink = tone - ndimage.grey_opening(tone, (size, size), mode="nearest")
    ink = ink[reach:-reach, reach:-reach]
    full = np.quantile(ink[ink >= ink.max() / 2], 0.9)
    rest = ink[ink < full / 2]
    noise = 2 * np.median(rest) if rest.size else 0.0
    if full < max(MIN_CONTRAST, 1.5 * noise):
        raise UsageError("nothing stands out on it: no digit found")
    return ((ink - noise) / (full - noise)).clip(0, 1)


def find_lines(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """The level lines across nearly all of the ink (H, W): a mask (H, W), and how many they are."""
    height, width = ink.shape
    lines = np.zeros(ink.shape, dtype=bool)
    across, most = np.arange(width), round(MOST_SLOPE * width)
    inked = ndimage.grey_dilation(ink, (3, 1)) > 0.2  # faint where it passes from row to row
    for rise in range(-most, most + 1, 2):  # a line may be slightly turned
        rows = np.arange(height)[:, None] + np.round(rise * (across / width - 0.5)).astype(int)
        rows = rows.clip(0, height - 1)
        full = np.count_nonzero(inked[rows, across], axis=1) > LINE_LENGTH * width
        lines[rows[full], across] = True
    count = ndimage.label(lines[:, width // 2])[1]
    return lines, count


def without_lines(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """Ink (H, W) without lines across it, of squared paper or a frame, and how many there are."""
    (level, below), (upright, beside) = find_lines(ink), find_lines(ink.T)
    lines = level | upright.T
    if not lines.any():
        return ink, 0
    rest = np.where(lines, 0, ink)
    closed = ndimage.grey_closing(rest, (7, 7))  # where strokes cross lines
    return np.where(lines, np.minimum(closed, ink), ink), below + beside


def find_sheets(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The largest solid light and dark areas of a picture, holes filled: masks (H, W) by name.

    A sheet of paper on a table, a panel on a page, or the inside of a frame.
    """
    colours = pixels.reshape(-1, pixels.shape[2])
    colours = colours - colours.mean(axis=0)
    axis = np.linalg.eigh(colours.T @ colours).eigenvectors[:, -1]
    tone = pixels @ (axis * np.sign(axis.sum() or 1))
    middle = tone.mean()
    for _ in range(8):  # between the means of both sides (Ridler and Calvard, 1978)
        above = tone > middle
        if above.all() or not above.any():
            return {}
        middle = (tone[above].mean() + tone[~above].mean()) / 2
    sheets = {}
    for name, side in (("light", tone > middle), ("dark", tone <= middle)):
        labels, _ = ndimage.label(side)
        part = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
        outside, _ = ndimage.label(np.pad(~part, 1, constant_values=True))
        sheet = (outside != outside[0, 0])[1:-1, 1:-1]  # binary_fill_holes is slower
        rows, columns = ndimage.find_objects(sheet.astype(int))[0]
        box = (rows.stop - rows.start) * (columns.stop - columns.start)
        if sheet.sum() > 0.6 * box and part.sum() > 0.65 * sheet.sum():  # neither stroke nor ring
            sheets[name] = sheet
    return sheets


def areas(pixels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """What else than a picture (H, W, channels) `measure_ink` may be given: pixels and paper.

    By name: the picture with paper around it, where something reaches the edge, and the largest
    light and dark area of it, with paper in place of the rest.
    """
    found = {}
    paper = np.median(pixels, axis=(0, 1))
    contrast = np.abs(pixels - paper).max(axis=2)
    edge = np.concatenate([contrast[0], contrast[-1], contrast[:, 0], contrast[:, -1]])
    if edge.max() > contrast.max() / 2:
        found["edge"] = pixels, paper
    for name, sheet in find_sheets(pixels).items():
        inside = ndimage.binary_erosion(sheet, iterations=max(1, round(max(sheet.shape) / 50)))
        if SHEET[0] < sheet.mean() < SHEET[1] and inside.any():
            paper = np.median(pixels[inside], axis=0)
            found[name] = np.where(inside[..., None], pixels, paper), paper
    return found


def inks(
    pixels: np.ndarray, only: tuple[str, bool] | None = None
) -> Iterator[tuple[str, bool, np.ndarray]]:
    """What may be the ink of a picture (H, W, channels): an area, whether without lines, (H, W).

    The area "all" is all of the picture; for others see `areas`. With `only`, no other pair of
    area and lines; a closer look may show nothing but that area.
    """
    found = {"all": (pixels, None)}
    if only is None or only[0] != "all":
        found |= areas(pixels)
    if only:
        found = {only[0]: found.get(only[0], found["all"])}
    has_lines = False
    for area, (part, paper) in found.items():
        if area == "edge" and has_lines:
            continue  # they reach the edge, no digit does
        with contextlib.suppress(UsageError):
            ink = measure_ink(part, paper)
            if only:
                yield area, only[1], without_lines(ink)[0] if only[1] else ink
                continue
            clear, lines = without_lines(ink)
            coarse = min(ink.shape) < WORKING_SIZE / 3  # a stroke may be as long as a line
            if lines < GRID or coarse:
                yield area, False, ink
            if lines:
                yield area, True, clear
            has_lines = has_lines or (lines and not coarse)


# --------------------------------------------------------------------------- ink to parts


def find_parts(ink: np.ndarray) -> np.ndarray:
    """The connected parts of the ink (H, W), numbered, without specks and edges of the paper: 0."""
    labels, count = ndimage.label(ink > 0.25, TOUCHING)
    mass = np.bincount(labels.ravel(), ink.ravel(), count + 1)
    mass[0] = 0  # the paper
    inside = mass.copy()
    inside[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    if inside.max() > 0.2 * mass.max():  # or the digit itself reaches the edge
        mass = inside
    return np.where((mass > 0.05 * mass.max())[labels], labels, 0)


def group(parts: np.ndarray) -> list[np.ndarray]:
    """The digits that numbered parts make up, line by line from left to right: a mask (H, W) each.

    Parts belong together where one lies close above another, as the pieces of a broken stroke or
    the bar of a 5 do, or where one is small and near.
    """
    found = {number: box for number, box in enumerate(ndimage.find_objects(parts), 1) if box}
    spans = np.array([[(side.start, side.stop) for side in box] for box in found.values()])
    low, high = spans[..., 0], spans[..., 1]  # (N, 2), down and to the right
    size, tallest = high - low, (high - low)[:, 0].max()
    gap = np.maximum(low[:, None], low) - np.minimum(high[:, None], high)  # (N, N, 2)
    shared = -gap[..., 1] > 0.3 * np.minimum(size[:, None, 1], size[:, 1])
    small = np.minimum(size[:, None, 0], size[:, 0]) < 0.4 * tallest
    joined = (shared & (gap[..., 0] < 0.15 * tallest)) | (small & (gap.max(2) < 0.2 * tallest))
    count, digit_of = connected_components(joined)
    numbers, digits = np.array(list(found)), []
    for one in (digit_of == digit for digit in range(count)):
        top, left, bottom = low[one, 0].min(), low[one, 1].min(), high[one, 0].max()
        if bottom - top > 0.4 * tallest:
            digits.append((top, bottom, left, np.isin(parts, numbers[one])))
    digits.sort(key=lambda digit: digit[0])
    result = []
    while digits:  # a line: those whose middle is above the foot of the topmost
        foot = digits[0][1]
        line = [digit for digit in digits if (digit[0] + digit[1]) / 2 < foot]
        digits = [digit for digit in digits if (digit[0] + digit[1]) / 2 >= foot]
        result += [mask for *_, mask in sorted(line, key=lambda digit: digit[2])]
    return result
