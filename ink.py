"""The ink on a picture: any file to what stands out from its paper, and that to its parts.

A picture may be a sheet on a table, a panel on a page, a cell of a form or a crop without a margin:
`inks` gives the ink for each of these, and `group` the parts that belong to one digit.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
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

WORKING_SIZE = 4 * IMAGE_SIZE  # pixels: digits are looked at no larger than this
KEPT_SIZE = 12 * WORKING_SIZE  # pixels: what is twice as long or more is shrunk at once
BACKGROUND_SIZE = 2 * WORKING_SIZE  # pixels: paper and sheets are found at this size
MIN_CONTRAST = 12  # of 255: paper and noise differ by less
DARKEST = 0.15  # of the brightest paper: where less light falls, ink is not enhanced further
MOST_FRAMES = 100  # of a GIF: so many are looked at for one with ink
HEIC = {b"ftyp" + kind for kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")}
LINE_LENGTH = 0.9  # of a side: what is straight so far is likely no stroke of a digit
LINE_STEPS = 10  # such a line is level for this part of its length
MOST_LINE = 0.06  # of the square on its length: with the strokes that touch it
LINE_WIDTH = 0.015  # of its length: what is wider is no line
PALE = 0.7  # of ink: darker ruling cannot be told from strokes by its darkness
GRID = 3  # lines: no digit has as many
COARSE = WORKING_SIZE / 3
SOLID = 0.85  # of the rectangle around a sheet
SHARP = 0.4  # of the difference of light and dark areas: at the edge of a sheet
SHEET = (0.03, 0.97)  # of the picture: smaller areas are ink, larger ones all of it
THRESHOLD = 0.25  # of ink: less is paper
SPECK = 0.05  # of a digit's ink: less is dirt
FRAMED = 0.25  # of its height: what is as high inside a part makes it a frame
MOST_PARTS = 300  # more are no writing
TALL = 0.5  # of a digit's height: less is a piece of a digit or a sign
LEVEL = 0.15  # of its height: so much of it is beside its neighbour in a line
REACH = 4  # heights: neighbours in a line are not farther apart
SAME_LINE = 0.5  # heights: off the line through others
WIDE = 0.75  # heights: what is wider may be several digits that touch
CUT_SIZE = 40  # pixels: the height at which cuts are looked for
SLANT_PRICE = 4  # strokes: of a cut of slope 1
CUT_STROKES = 12  # strokes: the most that a cut crosses
NOTCH = 0.1  # heights: the depth of a notch in the outline between digits that touch
CUTS_APART = 0.1  # heights
SLOPES = np.linspace(-0.4, 0.4, 9)  # of cuts
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


class Area(Enum):
    """The part of a picture that may hold the digits."""

    ALL = "all of it"
    EDGE = "all of it, with paper beyond its edges"
    LIGHT = "its largest light area, such as a sheet on a table"
    DARK = "its largest dark area, such as a panel on a page"


class Candidate(NamedTuple):
    """What a picture may be, with the ink (H, W) from 0 to 1 that follows from it."""

    area: Area
    unruled: bool  # ruling has been removed
    ink: np.ndarray


def resize(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The same, reduced by averaging until no side has more than `longest` pixels."""
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = [max(1, round(scale * side)) for side in pixels.shape[1::-1]]
    return np.reshape(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), (*size[::-1], *pixels.shape[2:]))


def main_axis(pixels: np.ndarray) -> np.ndarray:
    """The direction in colour along which centred pixels (..., channels) vary most."""
    pixels = pixels.reshape(-1, pixels.shape[-1])
    return np.linalg.eigh(pixels.T @ pixels).eigenvectors[:, -1]


def measure_ink(pixels: np.ndarray, paper: np.ndarray | None = None) -> np.ndarray:
    """How much ink each pixel of a picture (H, W, channels) holds: (H, W), from 0 to 1.

    Ink is what stands out from the paper around it and covers less than the paper; so light and
    shadow do not matter, nor which of the two is darker. Beyond the edges lies what lies at them,
    on the picture or on `paper`. Raises UsageError where nothing stands out.
    """
    high, wide, _ = pixels.shape
    small = resize(pixels, BACKGROUND_SIZE)
    reach = min(max(small.shape[:2]) // 4, min(small.shape[:2])) + 1
    around = ((reach, reach), (reach, reach))
    beyond = small if paper is None else cv2.resize(paper, small.shape[1::-1]).reshape(small.shape)
    padded = np.pad(beyond, (*around, (0, 0)), mode="edge")
    padded[reach:-reach, reach:-reach] = small
    size = int(0.3 * max(padded.shape[:2])) | 1  # wider than any stroke
    detail = padded - cv2.blur(padded, (size, size)).reshape(padded.shape)
    axis = main_axis(detail)
    along = detail @ axis
    axis = axis * np.sign((along * along * along).sum())  # skewed towards ink, the rarer of the two
    tone = padded @ axis
    ground = cv2.morphologyEx(tone, cv2.MORPH_OPEN, np.ones((size, size)), borderType=cv2.BORDER_REPLICATE)
    ground = cv2.resize(ground[reach:-reach, reach:-reach], (wide, high))
    ink = pixels @ axis - ground
    if (axis <= 0).all():  # dark on light: where less light falls, ink differs by less
        light = np.maximum(-ground, max(1.0, DARKEST * -ground.min()))
        ink = ink * (light.max() / light)
    step = max(1, max(high, wide) // (4 * WORKING_SIZE))
    some = ink[::step, ::step]  # enough for statistics
    full = np.quantile(some[some >= some.max() / 2], 0.9)
    rest = some[some < full / 2]
    noise = 2 * max(0.0, np.median(rest)) if rest.size else 0.0
    if full < max(MIN_CONTRAST, 1.5 * noise):
        raise UsageError("nothing stands out on it: no digit found")
    return ((ink - noise) / (full - noise)).clip(0, 1)


def find_ruling(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """The level lines across nearly all of the ink (H, W): a mask (H, W), and how many they are."""
    width = ink.shape[1]
    mask = cv2.dilate((ink > 0.15).astype(np.uint8), np.ones((3, 1)))
    level = min(max(3, width // LINE_STEPS), WORKING_SIZE // 2)
    runs = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((1, level)))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(runs)
    lines, count = np.zeros(ink.shape, dtype=bool), 0
    long = stats[:, cv2.CC_STAT_WIDTH] > LINE_LENGTH * width
    for number in np.flatnonzero(long & (stats[:, cv2.CC_STAT_AREA] < MOST_LINE * width**2)):
        y, x = np.nonzero(labels == number)
        on_line = np.ones(len(y), dtype=bool)
        for _ in range(5):  # without the strokes that touch it
            off = np.abs(y - np.polyval(np.polyfit(x[on_line], y[on_line], 2), x))
            on_line = off <= max(1.5, 1.5 * np.median(off))
        if np.median(off) < LINE_WIDTH * width and len(np.unique(x[on_line])) > LINE_LENGTH * width:
            lines[y[on_line], x[on_line]] = True
            count += 1
    return lines, count


def remove_ruling(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """Ink (H, W) without lines across it, of squared paper or a frame, and how many there are."""
    (level, below), (upright, beside) = find_ruling(ink), find_ruling(np.ascontiguousarray(ink.T))
    lines = level | upright.T
    if not lines.any():
        return ink, 0
    pale = 1.5 * np.median(ink[lines & (ink > 0.1)])  # strokes are darker than pale ruling
    darker = (ink - pale).clip(0) / (1 - pale) if pale < PALE else np.zeros_like(ink)
    closed = cv2.morphologyEx(np.where(lines, 0, ink), cv2.MORPH_CLOSE, np.ones((7, 7)))  # where strokes cross lines
    return np.where(lines, np.maximum(darker, np.minimum(closed, ink)), ink), below + beside


def find_sheets(pixels: np.ndarray) -> dict[Area, np.ndarray]:
    """The largest solid light and dark areas of a picture, holes filled: masks (H, W)."""
    centred = pixels - pixels.mean(axis=(0, 1))
    axis = main_axis(centred)
    tone = cv2.normalize(pixels @ (axis * np.sign(axis.sum() or 1)), None, 0, 255, cv2.NORM_MINMAX)
    tone = tone.astype(np.uint8)
    _, light = cv2.threshold(tone, 0, 1, cv2.THRESH_OTSU)
    if light.all() or not light.any():
        return {}
    step = tone[light > 0].mean() - tone[light == 0].mean()
    sheets = {}
    for area, side in ((Area.LIGHT, light), (Area.DARK, 1 - light)):
        outlines, _ = cv2.findContours(side, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = max(outlines, key=cv2.contourArea)
        sheet = cv2.drawContours(np.zeros_like(side), [outline], -1, 1, cv2.FILLED)
        wide, high = cv2.minAreaRect(outline)[1]
        around = cv2.dilate(sheet, np.ones((5, 5))) - sheet, sheet - cv2.erode(sheet, np.ones((5, 5)))
        if not (around[0].any() and around[1].any()):
            continue
        edge = abs(tone[around[0] > 0].mean() - tone[around[1] > 0].mean())  # sharp, no fall of light
        solid = sheet.sum() > SOLID * wide * high and side[sheet > 0].mean() > 0.65
        if solid and edge > SHARP * step and SHEET[0] < sheet.mean() < SHEET[1]:
            sheets[area] = sheet
    return sheets


def areas(pixels: np.ndarray) -> Iterator[tuple[Area, np.ndarray, np.ndarray | None]]:
    """The areas of a picture (H, W, channels) with what `measure_ink` takes: pixels and paper."""
    yield Area.ALL, pixels, None
    small = resize(pixels, BACKGROUND_SIZE)
    contrast = np.abs(small - np.median(small, axis=(0, 1))).max(axis=2)
    edge = np.concatenate([contrast[0], contrast[-1], contrast[:, 0], contrast[:, -1]])
    if edge.max() > contrast.max() / 2:
        window = min(max(small.shape) // 2, 254) | 1
        yield Area.EDGE, pixels, median_filter(small, window)
    for area, sheet in find_sheets(small).items():
        margin = 2 * max(1, round(max(sheet.shape) / 50)) + 1
        inside = cv2.erode(np.pad(sheet, 1), np.ones((margin, margin)))[1:-1, 1:-1]
        if inside.any():
            at = ndimage.distance_transform_edt(inside == 0, return_distances=False, return_indices=True)
            paper = median_filter(small, margin | 7)[tuple(at)]  # the nearest, where light falls unevenly
            size = pixels.shape[1::-1]
            paper = cv2.resize(paper, size).reshape(pixels.shape)
            inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST) > 0
            yield area, np.where(inside[..., None], pixels, paper), None


def median_filter(pixels: np.ndarray, window: int) -> np.ndarray:
    """The median of each channel of pixels (H, W, channels) in a square."""
    filtered = cv2.medianBlur(pixels.clip(0, 255).astype(np.uint8), window)
    return filtered.reshape(pixels.shape).astype(np.float32)


def candidates(pixels: np.ndarray) -> Iterator[Candidate]:
    """What a picture (H, W, channels) may be: each of its areas, with its ruling and without.

    Where digits are larger than WORKING_SIZE, the ink is that of the picture made smaller.
    """
    for area, part, paper in areas(pixels):
        with contextlib.suppress(UsageError):
            ink = measure_ink(part, paper)
            clear, lines = remove_ruling(ink)
            if lines < GRID or min(ink.shape) < COARSE:  # a stroke may be as long as a line
                yield scaled(Candidate(area, False, ink), part, paper)
            if lines:
                yield scaled(Candidate(area, True, clear), part, paper)


def scaled(candidate: Candidate, pixels: np.ndarray, paper: np.ndarray | None) -> Candidate:
    """The candidate at a scale where its digits are at most about WORKING_SIZE pixels high."""
    parts, _ = find_parts(candidate.ink)
    if not parts:
        return candidate
    size = weighted_median(*np.array([(part.height, part.mass) for part in parts]).T)
    if size <= 1.25 * WORKING_SIZE:
        return candidate
    ink = measure_ink(resize(pixels, round(max(pixels.shape) * WORKING_SIZE / size)), paper)
    ink = remove_ruling(ink)[0] if candidate.unruled else ink
    return candidate._replace(ink=ink)


# --------------------------------------------------------------------------- ink to lines of parts


@dataclass(frozen=True)
class Part:
    """A connected part of the ink, or a piece of one: its pixels in `box` (left, top, right, bottom)."""

    box: tuple[int, int, int, int]
    mask: np.ndarray  # (bottom - top, right - left)
    mass: float  # sum of its ink
    cut: float = 0.0  # strokes crossed by the cut on its left

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def find_parts(ink: np.ndarray) -> tuple[list[Part], float]:
    """The connected parts of the ink (H, W), without specks and edges of the paper.

    Also how much ink was left out at the edges, in that of a digit.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats((ink > THRESHOLD).astype(np.uint8))
    mass = np.bincount(labels.ravel(), ink.ravel(), count)
    mass[0] = 0  # the paper
    height, width = ink.shape
    x, y, wide, high, _ = stats.T
    mass[find_frames(labels, stats, mass)] = 0
    at_edge = (x == 0) | (y == 0) | (x + wide == width) | (y + high == height)
    if not mass.any():
        return [], 0.0
    size = weighted_median(high[~at_edge], mass[~at_edge]) if (~at_edge).any() else 0
    inside, left_out = np.where(at_edge, 0, mass), np.zeros(1)
    if inside.max() > 0.2 * mass.max():  # or the digit itself reaches the edge
        like = (high > 0.6 * size) & (high < 1.5 * size) & (wide < 1.5 * size)
        left_out = np.where(at_edge & ~like & (mass > SPECK * inside.max()), mass, 0)
        mass = np.where(at_edge & ~like, 0, mass)
    typical = weighted_median(mass, mass)
    parts = []
    numbers = np.flatnonzero(mass > SPECK * typical)
    for number in numbers if len(numbers) <= MOST_PARTS else []:
        box = (x[number], y[number], x[number] + wide[number], y[number] + high[number])
        box = tuple(int(side) for side in box)
        parts.append(Part(box, labels[box[1] : box[3], box[0] : box[2]] == number, mass[number]))
    return parts, min(1.0, float(left_out.sum() / typical))


def find_frames(labels: np.ndarray, stats: np.ndarray, mass: np.ndarray) -> list[int]:
    """The numbers of connected parts that enclose others, such as a ring around a digit."""
    frames, large = [], np.flatnonzero(mass > SPECK * mass.max())
    low = stats[:, :2]
    high = low + stats[:, 2:4]
    for number in large:
        within = (low[large] > low[number]) & (high[large] < high[number])
        tall = stats[large, cv2.CC_STAT_HEIGHT] > FRAMED * stats[number, cv2.CC_STAT_HEIGHT]
        others = large[within.all(axis=1) & tall]
        if len(others):
            part = (labels == number).astype(np.uint8)
            outline = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0]
            middles = ((low + high) / 2)[others].tolist()
            if any(cv2.pointPolygonTest(outline, middle, False) > 0 for middle in middles):
                frames.append(number)
    return frames


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value that as much weight lies below as above."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def find_lines(parts: list[Part]) -> list[list[Part]]:
    """Lines of parts from top to bottom, each from left to right.

    Neighbours that stand about level are linked to chains; chains along one straight line join.
    """
    boxes = np.array([part.box for part in parts])
    size = weighted_median(boxes[:, 3] - boxes[:, 1], np.array([part.mass for part in parts]))
    tall = [part for part in parts if part.height > TALL * size]
    chains = chain(tall, size)
    slope = weighted_median(*np.array([(fit(line, 0)[0], len(line) - 1) for line in chains]).T) if len(tall) > len(chains) else 0.0
    lines: list[list[Part]] = []
    for line in sorted(chains, key=len, reverse=True):
        (x, y), best = np.mean([part.centre for part in line], axis=0), None
        for other in lines:
            slope_, at = fit(other, slope)
            distance = abs(y - at - slope_ * x)
            apart = all(min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]) < 0.3 * size for a in line for b in other)
            if apart and distance < SAME_LINE * size and (best is None or distance < best[0]):
                best = distance, other
        if best:
            best[1].extend(line)
        else:
            lines.append(list(line))
    for part in parts:
        if part.height <= TALL * size:
            x, y = part.centre
            distances = [abs(y - fit(line, slope)[1] - fit(line, slope)[0] * x) for line in lines]
            if min(distances) < size:
                lines[int(np.argmin(distances))].append(part)
    middle = boxes[:, [0, 2]].mean()
    lines.sort(key=lambda line: fit(line, slope)[1] + fit(line, slope)[0] * middle)
    return [sorted(line, key=lambda part: part.centre[0]) for line in lines]


def fit(line: list[Part], slope: float) -> tuple[float, float]:
    """The straight line through the middles of parts: slope and height at 0.

    With `slope`, where there are too few to tell.
    """
    x, y = np.array([part.centre for part in line]).T
    if len(line) >= 3 and np.ptp(x) > 2 * max(part.height for part in line):
        slope = float(np.polyfit(x, y, 1)[0])
    return slope, float(np.median(y - slope * x))


def chain(parts: list[Part], size: float) -> list[list[Part]]:
    """Parts linked to their neighbours on the right, where both choose each other."""
    left, top, right, bottom = np.array([part.box for part in parts]).T
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    gap = left - right[:, None]
    middle = (top + bottom) / 2
    shift = np.abs(middle[:, None] - middle)
    after = (left + right)[:, None] < left + right
    level = shared > LEVEL * np.minimum((bottom - top)[:, None], bottom - top)
    near = after & level & (gap < REACH * size) & (gap > -0.5 * size)
    cost = np.where(near, np.maximum(gap, 0) + 2 * shift, np.inf)
    best = cost.argmin(axis=1), cost.argmin(axis=0)
    links = [(i, j) for i, j in enumerate(best[0]) if np.isfinite(cost[i, j]) and best[1][j] == i]
    follower, first = dict(links), set(range(len(parts))) - {j for _, j in links}
    chains = []
    for i in sorted(first):
        line = [parts[i]]
        while (i := follower.get(i)) is not None:
            line.append(parts[i])
        chains.append(line)
    return chains


def cut(part: Part, ink: np.ndarray, size: float) -> list[Part]:
    """A part cut where it is narrow, from left to right; whole where it is no wider than a digit.

    A cut is the straight line through a notch in its upper or lower outline that crosses least ink.
    """
    left, top, right, bottom = part.box
    if right - left < WIDE * size:
        return [part]
    held = np.where(part.mask, ink[top:bottom, left:right], 0).astype(np.float32)
    shrink = max(1.0, part.height / CUT_SIZE)
    shape = max(3, round((right - left) / shrink)), max(3, round(part.height / shrink))
    small = cv2.resize(held, shape, interpolation=cv2.INTER_AREA)
    found = sorted(find_cuts(small, size / shrink))
    rows = (np.arange(part.height) + 0.5)[:, None] / shrink
    columns = (np.arange(right - left) + 0.5) / shrink
    piece_of = sum((columns > x + slope * rows).astype(int) for x, slope, _ in found)
    pieces = []
    for index, strokes in enumerate([0.0, *(strokes for *_, strokes in found)]):
        mask = part.mask & (piece_of == index)
        if mask.any():
            y, x = ndimage.find_objects(mask.astype(np.uint8))[0]
            box = (left + x.start, top + y.start, left + x.stop, top + y.stop)
            mass = float(held[mask].sum())
            pieces.append(Part(box, mask[y, x], mass, strokes if pieces else 0.0))
    return pieces


def find_cuts(ink: np.ndarray, size: float) -> list[tuple[float, float, float]]:
    """Cuts through ink (H, W) of lines `size` high: column at the top, slope, strokes crossed."""
    height, width = ink.shape
    stroke, rows = stroke_width(ink), np.arange(height)
    found = []
    for flipped in (False, True):
        inked = (ink[::-1] if flipped else ink) > 0.5
        depth = np.where(inked.any(axis=0), inked.argmax(axis=0), height)
        for x in find_peaks(depth, prominence=NOTCH * size)[0]:
            y = height - 1 - depth[x] if flipped else depth[x]
            columns = np.round(x + SLOPES[:, None] * (rows - y)).astype(int).clip(0, width - 1)
            crossed = ink[rows, columns].sum(axis=1) / stroke
            for price in (SLANT_PRICE, 20 * SLANT_PRICE):
                best = int(np.argmin(crossed + price * np.abs(SLOPES)))
                found.append((crossed[best], x - SLOPES[best] * y, SLOPES[best]))
    cuts: list[tuple[float, float, float]] = []
    for crossed, at, slope in sorted(found):
        ends = np.array([at, at + slope * height])
        near = any((abs(ends - [a, a + s * height]) < CUTS_APART * size).all() for a, s, _ in cuts)
        if crossed < CUT_STROKES and not near:
            cuts.append((at, slope, crossed))
    return cuts


def stroke_width(ink: np.ndarray) -> float:
    """The mean width of the strokes of ink (H, W), in pixels."""
    inside = (ink > THRESHOLD).astype(np.uint8)
    border = inside - cv2.erode(inside, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return float(2 * ink.sum() / max(1, border.sum()))
