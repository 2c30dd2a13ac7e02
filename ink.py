"""The ink on a picture: any file to what stands out from its paper, and that to lines of parts.

A picture may be a sheet on a table, a panel on a page, a cell of a form or a crop without a margin:
`find_candidates` gives the ink for each of these. Its connected parts are put in lines and cut
where digits may touch, the first step of heuristic over-segmentation (LeCun et al., 1998, V).
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from scipy import ndimage
from scipy.signal import find_peaks

from cli import UsageError
from mnist import IMAGE_SIZE

DIGIT_HEIGHT = 4 * IMAGE_SIZE  # pixels: pictures of larger digits are reduced
KEPT_SIZE = 12 * DIGIT_HEIGHT  # pixels: the longer side of the largest picture
PAPER_SIZE = 2 * DIGIT_HEIGHT  # pixels: paper and sheets are found in a picture of this size
MIN_CONTRAST = 12  # of 255: paper and noise differ by less
MOST_FRAMES = 100  # of a GIF: the first of them with ink counts
HEIC = {b"ftyp" + kind for kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")}
DARKEST = 0.15  # of the light of the brightest paper: ink is enhanced down to this
SHEET = (0.03, 0.97)  # of the picture: smaller areas are ink, larger ones all of it
SOLID, SHARP = 0.85, 0.4  # a sheet: of the rectangle around it; of the contrast, at its edge
RULING = 0.15  # of ink: less is not ruling
RULING_LENGTH = 0.9  # of a side: what is straight so far is likely no stroke
RULING_SLOPE = 0.06  # of ruling, at most
PALE = 0.7  # of ink: paler ruling is subtracted, darker ruling erased
GRID = 3  # lines: no digit has as many
COARSE = DIGIT_HEIGHT / 3  # pixels: in smaller pictures a stroke may be as long as ruling
THRESHOLD = 0.25  # of ink: less is paper
SPECK = 0.05  # of the ink of a typical part: less is dirt
MOST_PARTS = 300  # more are texture
FRAMED = 0.25  # of its height: parts of this height inside another make it a frame
TALL = 0.5  # of the height of a line: less is a piece of a digit, or a sign
LEVEL = 0.85  # heights: neighbours in a line differ by less
WIDE = 0.75  # heights: wider parts may be several digits
CUT_SIZE = 40  # pixels: the height at which cuts are looked for
NOTCH = 0.1  # heights: the least depth of a notch
SLOPES = np.linspace(-0.4, 0.4, 9)  # of cuts
SLOPE_COSTS = (4, 80)  # strokes for slope 1: least ink crossed, or straight down
MOST_CROSSED = 12  # strokes, by a cut
APART = 0.1  # heights, between ends of cuts

# ------------------------------------------------------------------------ files to pictures


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """Opens a file, or takes an open picture, as `flatten` returns it; UsageError if it cannot."""
    try:
        if isinstance(source, Image.Image):
            return flatten(source)
        if Path(source).is_dir():
            raise UsageError("a folder; name the pictures in it")
        check_kind(Path(source))
        with warnings.catch_warnings(action="ignore"), Image.open(source) as picture:
            picture.draft(None, (KEPT_SIZE, KEPT_SIZE))  # JPEG alone can be read at a fraction
            if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            for frame in itertools.islice(ImageSequence.Iterator(picture), MOST_FRAMES):
                with contextlib.suppress(UsageError):
                    flat = flatten(frame)
                    if np.ptp(flat.getextrema(), axis=-1).max() >= MIN_CONTRAST:
                        return flat
            return flatten(picture)  # blank
    except UsageError:
        raise
    except Image.DecompressionBombError:
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
    """Returns a picture upright and opaque, the longer side below 2 * KEPT_SIZE pixels.

    RGB from 0 to 255, or floats in that range where it had more than 8 bits. What is transparent
    becomes paper: white, or black behind a light digit. Where most of the picture is opaque and
    has paper of its own, as a sticker has, it becomes like that.
    """
    deep = picture.mode.startswith(("I", "F"))
    mode = "F" if deep else "RGBA" if picture.has_transparency_data else "RGB"
    picture = picture.convert(mode).reduce(max(1, max(picture.size) // KEPT_SIZE))
    with contextlib.suppress(Exception):  # damaged EXIF turns no picture
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


class Area(Enum):
    """The part of a picture that may hold the digits."""

    ALL = "all of it"
    EDGE = "all of it, with paper beyond its edges"
    LIGHT = "its largest light area, such as a sheet on a table"
    DARK = "its largest dark area, such as a panel on a page"


class Candidate(NamedTuple):
    """What a picture may be, and the ink (H, W) from 0 to 1 that follows from it."""

    area: Area
    unruled: bool  # ruling has been removed
    ink: np.ndarray


def find_candidates(picture: Image.Image) -> Iterator[Candidate]:
    """Yields what a picture may be: each of its areas, with its ruling and without."""
    levels = np.nan_to_num(np.asarray(picture, dtype=np.float32)).clip(-1e4, 1e4)
    for area, pixels, paper in find_areas(reduce(np.atleast_3d(levels), KEPT_SIZE)):
        with contextlib.suppress(UsageError):
            ink = measure_ink(pixels, paper)
            clear, lines = remove_ruling(ink)
            if lines < GRID or min(ink.shape) < COARSE:
                yield Candidate(area, False, reduce_ink(ink, False, pixels, paper))
            if lines:
                yield Candidate(area, True, reduce_ink(clear, True, pixels, paper))


def reduce_ink(
    ink: np.ndarray, unruled: bool, pixels: np.ndarray, paper: np.ndarray | None
) -> np.ndarray:
    """Measures ink again, where its digits are much larger than DIGIT_HEIGHT, at that scale."""
    parts, _ = find_parts(ink)
    size = typical([part.height for part in parts], [part.mass for part in parts])
    if size <= 1.25 * DIGIT_HEIGHT:
        return ink
    ink = measure_ink(reduce(pixels, round(max(pixels.shape) * DIGIT_HEIGHT / size)), paper)
    return remove_ruling(ink)[0] if unruled else ink


def reduce(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Averages pixels (H, W, channels) until no side is longer than `longest`."""
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    width, height = (max(1, round(scale * side)) for side in pixels.shape[1::-1])
    reduced = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return reduced.reshape(height, width, -1)


def main_axis(pixels: np.ndarray) -> np.ndarray:
    """Returns the direction in colour along which centred pixels (H, W, channels) vary most."""
    pixels = pixels.reshape(-1, pixels.shape[-1])
    return np.linalg.eigh(pixels.T @ pixels).eigenvectors[:, -1]


def measure_ink(pixels: np.ndarray, paper: np.ndarray | None = None) -> np.ndarray:
    """Measures the ink on each pixel of a picture (H, W, channels): (H, W), from 0 to 1.

    Ink is what stands out from the paper around it and covers less than the paper; so light and
    shadow do not matter, nor which of the two is darker. The edges of the picture, or of `paper`,
    continue beyond them. UsageError where nothing stands out.
    """
    high, wide, _ = pixels.shape
    small = reduce(pixels, PAPER_SIZE)
    reach = min(max(small.shape[:2]) // 4, min(small.shape[:2])) + 1
    beyond = small if paper is None else cv2.resize(paper, small.shape[1::-1]).reshape(small.shape)
    padded = np.pad(beyond, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    padded[reach:-reach, reach:-reach] = small
    size = int(0.3 * max(padded.shape[:2])) | 1  # wider than any stroke
    detail = padded - cv2.blur(padded, (size, size)).reshape(padded.shape)
    axis = main_axis(detail)
    along = detail @ axis
    axis = axis * np.sign((along * along * along).sum())  # skewed towards ink, the rarer of the two
    window = np.ones((size, size))
    ground = cv2.morphologyEx(
        padded @ axis, cv2.MORPH_OPEN, window, borderType=cv2.BORDER_REPLICATE
    )
    ground = cv2.resize(ground[reach:-reach, reach:-reach], (wide, high))
    ink = pixels @ axis - ground
    if (axis <= 0).all():  # dark on light: it differs by less where less light falls
        light = np.maximum(-ground, max(1.0, DARKEST * -ground.min()))
        ink = ink * (light.max() / light)
    step = max(1, max(high, wide) // (4 * DIGIT_HEIGHT))
    some = ink[::step, ::step]  # enough for statistics
    full = np.quantile(some[some >= some.max() / 2], 0.9)
    rest = some[some < full / 2]
    noise = 2 * max(0.0, np.median(rest)) if rest.size else 0.0
    if full < max(MIN_CONTRAST, 1.5 * noise):
        raise UsageError("nothing stands out on it: no digit found")
    return ((ink - noise) / (full - noise)).clip(0, 1)


def find_ruling(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """Finds level lines across nearly all of the ink (H, W): a mask (H, W), and their number."""
    height, width = ink.shape
    lines, rows = np.zeros(ink.shape, dtype=bool), np.arange(height)[:, None]
    inked = cv2.dilate(ink, np.ones((3, 1))) > RULING  # faint where it passes from row to row
    columns = np.arange(width)
    some = columns[:: 1 + width // (2 * DIGIT_HEIGHT)]  # enough to find them
    steepest, step = round(RULING_SLOPE * width), 2 + 2 * (width // (4 * DIGIT_HEIGHT))
    for rise in range(-steepest, steepest + 1, step):
        down = np.round(rise * (columns / width - 0.5)).astype(int)
        on_line = inked[(rows + down[some]).clip(0, height - 1), some]
        full = on_line.mean(axis=1) > RULING_LENGTH
        lines[(rows[full] + down).clip(0, height - 1), columns] = True
    return lines, ndimage.label(lines[:, width // 2])[1]


def remove_ruling(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """Removes lines across ink (H, W), of ruled paper or a frame; returns also their number."""
    (level, below), (upright, beside) = find_ruling(ink), find_ruling(np.ascontiguousarray(ink.T))
    lines = level | upright.T
    if not lines.any():
        return ink, 0
    pale = 1.5 * np.median(ink[lines & (ink > RULING / 2)])  # strokes are darker
    darker = (ink - pale).clip(0) / (1 - pale) if pale < PALE else 0
    width = lines.sum() / max(1, below * ink.shape[1] + beside * ink.shape[0])
    gap = np.ones((2 * round(width) + 5,) * 2)
    closed = cv2.morphologyEx(np.where(lines, 0, ink), cv2.MORPH_CLOSE, gap)
    strokes = np.maximum(darker, np.minimum(closed, ink))  # where they cross lines
    return np.where(lines, strokes, ink), below + beside


def find_areas(pixels: np.ndarray) -> Iterator[tuple[Area, np.ndarray, np.ndarray | None]]:
    """Yields the areas of a picture (H, W, channels), and what `measure_ink` takes for each."""
    yield Area.ALL, pixels, None
    small = reduce(pixels, PAPER_SIZE)
    contrast = np.abs(small - np.median(small, axis=(0, 1))).max(axis=2)
    edge = np.concatenate([contrast[0], contrast[-1], contrast[:, 0], contrast[:, -1]])
    if edge.max() > contrast.max() / 2:
        yield Area.EDGE, pixels, median_filter(small, min(max(small.shape) // 2, 254) | 1)
    for area, sheet in find_sheets(small):
        margin = 2 * max(1, round(max(sheet.shape) / 50)) + 1
        inside = cv2.erode(np.pad(sheet, 1), np.ones((margin, margin)))[1:-1, 1:-1]
        if inside.any():  # around it lies what lies at its edge, as light falls unevenly
            nearest = ndimage.distance_transform_edt(inside == 0, None, False, True)
            paper = median_filter(small, margin | 7)[tuple(nearest)]
            paper = cv2.resize(paper, pixels.shape[1::-1]).reshape(pixels.shape)
            inside = cv2.resize(inside, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            yield area, np.where(inside[..., None] > 0, pixels, paper), None


def median_filter(pixels: np.ndarray, window: int) -> np.ndarray:
    """Returns the median of each channel of pixels (H, W, channels) in a square."""
    filtered = cv2.medianBlur(pixels.clip(0, 255).astype(np.uint8), window)
    return filtered.reshape(pixels.shape).astype(np.float32)


def find_sheets(pixels: np.ndarray) -> Iterator[tuple[Area, np.ndarray]]:
    """Yields the largest light and dark areas of a picture that look like sheets: masks (H, W)."""
    axis = main_axis(pixels - pixels.mean(axis=(0, 1)))
    tone = cv2.normalize(pixels @ (axis * np.sign(axis.sum() or 1)), None, 0, 255, cv2.NORM_MINMAX)
    tone = tone.astype(np.uint8)
    _, light = cv2.threshold(tone, 0, 1, cv2.THRESH_OTSU)
    if light.all() or not light.any():
        return
    step = tone[light > 0].mean() - tone[light == 0].mean()
    near = np.ones((5, 5))
    for area, side in ((Area.LIGHT, light), (Area.DARK, 1 - light)):
        outlines, _ = cv2.findContours(side, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = max(outlines, key=cv2.contourArea)
        sheet = cv2.drawContours(np.zeros_like(side), [outline], -1, 1, cv2.FILLED)
        if not SHEET[0] < sheet.mean() < SHEET[1]:
            continue
        outside, inside = (cv2.dilate(sheet, near) > sheet), (cv2.erode(sheet, near) < sheet)
        edge = abs(tone[outside].mean() - tone[inside].mean())  # sharp, unlike that of light
        solid = sheet.sum() > SOLID * np.prod(cv2.minAreaRect(outline)[1])
        if solid and side[sheet > 0].mean() > 0.65 and edge > SHARP * step:
            yield area, sheet


# --------------------------------------------------------------------- ink to lines of parts


@dataclass(frozen=True)
class Part:
    """A connected part of the ink, or a piece of one."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    mask: np.ndarray  # (bottom - top, right - left)
    mass: float  # the sum of its ink
    crossed: float = 0.0  # strokes, by the cut on its left

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def typical(values: Sequence[float], weights: Sequence[float]) -> float:
    """Returns the median of values by weight, 0 of none."""
    if not len(values):
        return 0.0
    order = np.argsort(values)
    total = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(total, total[-1] / 2)])


def find_parts(ink: np.ndarray) -> tuple[list[Part], float]:
    """Finds the connected parts of ink (H, W), without specks, frames and edges of the paper.

    Returns also how much ink was left out at the edges: 1 for as much as a typical part has.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats((ink > THRESHOLD).astype(np.uint8))
    mass = np.bincount(labels.ravel(), ink.ravel(), count)
    mass[0] = 0  # the paper
    mass[find_frames(labels, stats, mass)] = 0
    if not mass.any():
        return [], 0.0
    x, y, wide, high, _ = stats.T
    at_edge = (x == 0) | (y == 0) | (x + wide == ink.shape[1]) | (y + high == ink.shape[0])
    inside, left_out = np.where(at_edge, 0, mass), 0.0
    if inside.max() > 0.2 * mass.max():  # or the digit itself reaches the edge
        size = typical(high[~at_edge], mass[~at_edge])
        like = (high > 0.6 * size) & (high < 1.5 * size) & (wide < 1.5 * size)
        left_out = mass[at_edge & ~like & (mass > SPECK * inside.max())].sum()
        mass = np.where(at_edge & ~like, 0, mass)
    middle = typical(mass, mass)
    numbers = np.flatnonzero(mass > SPECK * middle)
    parts = []
    for number in numbers if len(numbers) <= MOST_PARTS else []:
        left, top, width, height, _ = stats[number].tolist()
        mask = labels[top : top + height, left : left + width] == number
        parts.append(Part((left, top, left + width, top + height), mask, float(mass[number])))
    return parts, min(1.0, left_out / middle)


def find_frames(labels: np.ndarray, stats: np.ndarray, mass: np.ndarray) -> list[int]:
    """Lists the connected parts that enclose others, such as a ring around a digit."""
    frames, large = [], np.flatnonzero(mass > SPECK * mass.max())
    low, size = stats[:, :2], stats[:, 2:4]
    for number in large:
        within = (low[large] > low[number]) & ((low + size)[large] < (low + size)[number])
        others = large[within.all(axis=1) & (size[large, 1] > FRAMED * size[number, 1])]
        if len(others):
            part = (labels == number).astype(np.uint8)
            outline = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0]
            middles = (low + size / 2)[others].tolist()
            if any(cv2.pointPolygonTest(outline, middle, False) > 0 for middle in middles):
                frames.append(number)
    return frames


def find_lines(parts: list[Part]) -> list[list[Part]]:
    """Puts parts in lines from top to bottom, each from left to right and cut where it may be.

    From left to right, each part joins the line that it is most level with, straight or skew.
    """
    size = typical([part.height for part in parts], [part.mass for part in parts])
    small = [part for part in parts if part.height <= TALL * size]
    lines: list[list[Part]] = []
    for part in sorted(parts, key=lambda part: part.box[0]):
        if part.height > TALL * size:
            before = [line for line in lines if part.box[0] > line[-1].box[2] - 0.3 * size]
            line = min(before, key=lambda line: rise(line, part), default=None)
            if line and rise(line, part) < LEVEL * size:
                line.append(part)
            else:
                lines.append([part])
    for part in small:
        line = min(lines, key=lambda line: rise(line, part))
        if rise(line, part) < size:
            line.append(part)
            line.sort(key=lambda part: part.centre[0])
    slope = float(np.median([fit(line)[0] for line in lines if len(line) > 2] or [0]))
    lines.sort(key=lambda line: np.mean([(y - slope * x) for x, y in (p.centre for p in line)]))
    return lines


def fit(line: list[Part]) -> tuple[float, float]:
    """Fits a straight line to the middles of parts: slope, and height at 0; level for two."""
    x, y = np.array([part.centre for part in line]).T
    return tuple(np.polyfit(x, y, 1)) if len(line) > 2 and np.ptp(x) > 1 else (0.0, y[-1])


def rise(line: list[Part], part: Part) -> float:
    """Returns how far a part stands above or below the straight line through those before it."""
    x, y = part.centre
    before = [other for other in line if other.centre[0] < x][-4:] or line[:1]
    slope, start = fit(before)
    return abs(y - start - slope * x)


def cut(part: Part, ink: np.ndarray, size: float) -> list[Part]:
    """Cuts a part of a line `size` high where digits may touch, from left to right."""
    left, top, right, bottom = part.box
    if right - left < WIDE * size:
        return [part]
    held = np.where(part.mask, ink[top:bottom, left:right], 0).astype(np.float32)
    shrink = max(1.0, part.height / CUT_SIZE)
    small = reduce(held[..., None], round(max(held.shape) / shrink))[..., 0]
    cuts = sorted(find_cuts(small, size / shrink))
    y, x = np.mgrid[: bottom - top, : right - left] / shrink
    piece_of = sum((x > at + slope * y).astype(np.uint8) for at, slope, _ in cuts)
    pieces: list[Part] = []
    for index, crossed in enumerate([0.0, *(crossed for *_, crossed in cuts)]):
        mask = part.mask & (piece_of == index)
        if mask.any():
            rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
            box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
            crossed = float(crossed) if pieces else 0.0
            pieces.append(Part(box, mask[rows, columns], float(held[mask].sum()), crossed))
    return pieces


def find_cuts(ink: np.ndarray, size: float) -> list[tuple[float, float, float]]:
    """Finds cuts through ink (H, W): column in the first row, slope, and strokes crossed.

    They are straight lines through the notches in its upper and lower outline.
    """
    height, width = ink.shape
    rows, stroke, found = np.arange(height), stroke_width(ink), []
    for flipped in (False, True):
        inked = (ink[::-1] if flipped else ink) > 2 * THRESHOLD
        depth = np.where(inked.any(axis=0), inked.argmax(axis=0), height)
        for x in find_peaks(depth, prominence=NOTCH * size)[0]:
            y = height - 1 - depth[x] if flipped else depth[x]
            columns = np.round(x + SLOPES[:, None] * (rows - y)).astype(int).clip(0, width - 1)
            crossed = ink[rows, columns].sum(axis=1) / stroke
            for cost in SLOPE_COSTS:
                best = int(np.argmin(crossed + cost * np.abs(SLOPES)))
                found.append((crossed[best], x - SLOPES[best] * y, SLOPES[best]))
    cuts: list[tuple[float, float, float]] = []
    for crossed, at, slope in sorted(found):
        ends = np.array([at, at + slope * height])
        near = [abs(ends - (other, other + s * height)).max() for other, s, _ in cuts]
        if crossed < MOST_CROSSED and min(near, default=np.inf) > APART * size:
            cuts.append((at, slope, crossed))
    return cuts


def stroke_width(ink: np.ndarray) -> float:
    """Returns the mean width of strokes (H, W) in pixels: twice their ink by their outline."""
    inside = ink > THRESHOLD
    border = inside & ~ndimage.binary_erosion(inside)
    return float(2 * ink.sum() / max(1, border.sum()))
