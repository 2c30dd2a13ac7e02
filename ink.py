"""From an image file to lines of ink components.

Background subtraction, removal of ruling, connected components, text lines, and cuts between
touching digits: the first step of heuristic over-segmentation (LeCun et al., 1998, section V).
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, ImageSequence, ImageStat
from scipy import ndimage
from scipy.signal import find_peaks

from cli import UsageError
from mnist import IMAGE_SIZE

DIGIT_HEIGHT = 4 * IMAGE_SIZE  # pixels: much taller digits are downscaled to this
MAX_SIZE = 12 * DIGIT_HEIGHT  # pixels: larger pictures are downscaled to this longer side
PAPER_SIZE = 2 * DIGIT_HEIGHT  # pixels: the longer side for estimates of the background
MIN_CONTRAST = 12  # of 255: less is noise
MAX_FRAMES = 100  # of a GIF: the first of them with ink is read
HEIC = {b"ftyp" + kind for kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")}
# Costs of an area, added to the mean cost of the digits of a reading.
SHEET_COST, RULING_COST = 0.01, 0.04
MIN_LIGHT = 0.15  # of the brightest paper: contrast is corrected down to this illumination
SHEET_AREA = (0.03, 0.97)  # of the picture: a smaller area is ink, a larger one the whole picture
MIN_RECTANGULARITY = 0.85  # of a sheet: its area / its minAreaRect
MIN_EDGE = 0.4  # of a sheet: the contrast at its edge / the overall contrast
RULING_THRESHOLD = 0.15  # least ink of a pixel of a ruled line
RULING_LENGTH = 0.9  # of a side: the least length of a ruled line
RULING_SLOPE = 0.06  # of a ruled line, at most
MIN_GRID = 3  # with this many lines across, it is ruled paper, not a digit
MIN_RULED_SIZE = DIGIT_HEIGHT / 3  # pixels: in a smaller picture a stroke may look like ruling
INK_THRESHOLD = 0.25  # pixels with less ink are background
SPECK = 0.05  # of the ink of a typical component: less is dirt
MAX_COMPONENTS = 300  # more are texture
MIN_ENCLOSED = 0.25  # of its height: a component that encloses one this tall is a frame
TALL = 0.5  # of the height of a line: less is a piece of a digit, or a sign
MAX_RISE = 0.85  # line heights, between a component and its line
MIN_CUT_WIDTH = 0.75  # line heights: narrower components are one digit
MIN_NOTCH = 0.1  # line heights: the depth of a notch
SLOPES = np.linspace(-0.4, 0.4, 9)  # of cuts: columns per row
SLOPE_COSTS = (4, 80)  # penalty on |slope|, in strokes: low follows the ink, high is near vertical
MIN_CUT_DISTANCE = 0.1  # line heights, between the ends of two cuts

# ------------------------------------------------------------------------ files to pictures


def open_picture(source: str | Path | Image.Image) -> Image.Image:
    """Opens a file, or takes an open picture, and flattens it; UsageError if it cannot be read."""
    try:
        if isinstance(source, Image.Image):
            return flatten(source)
        if Path(source).is_dir():
            raise UsageError("a folder; name the pictures in it")
        check_format(Path(source))
        with warnings.catch_warnings(action="ignore"), Image.open(source) as picture:
            picture.draft(None, (MAX_SIZE, MAX_SIZE))  # JPEG alone can be read at a fraction
            if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            for frame in itertools.islice(ImageSequence.Iterator(picture), MAX_FRAMES):
                with contextlib.suppress(UsageError):
                    flat = flatten(frame)
                    if np.ptp(flat.getextrema(), axis=-1).max() >= MIN_CONTRAST:
                        return flat
            return flatten(picture)  # blank
    except UsageError:
        raise
    except Image.DecompressionBombError:
        most = Image.MAX_IMAGE_PIXELS / 1e6
        raise UsageError(f"larger than {most:.0f} million pixels; make it smaller") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise a dozen types
        reason = getattr(error, "strerror", None) or "not a picture, or damaged"
        raise UsageError(reason) from None


def check_format(path: Path) -> None:
    """Rejects PDF and SVG with a UsageError; registers pillow-heif for HEIC, if it is installed."""
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
    """Returns an opaque picture, rotated as its EXIF says, with a longer side below 2 * MAX_SIZE.

    It is RGB, or floats from 0 to 255 if the source has more than 8 bits. Transparent pixels
    become background: the median colour of the others if these are most of the picture; else
    white, or black behind light ink.
    """
    deep = picture.mode.startswith(("I", "F"))
    mode = "F" if deep else "RGBA" if picture.has_transparency_data else "RGB"
    picture = picture.convert(mode).reduce(max(1, max(picture.size) // MAX_SIZE))  # by an integer
    with contextlib.suppress(Exception):  # damaged EXIF is ignored
        picture = ImageOps.exif_transpose(picture)
    if deep:
        scale = 255 / max(picture.getextrema()[1], 1)
        return picture.point(lambda value: value * scale)
    if mode == "RGB":
        return picture
    alpha = picture.getchannel("A")
    if not alpha.getbbox():
        raise UsageError("nothing but transparency")
    visible = ImageStat.Stat(picture.convert("RGB"), mask=alpha)
    paper = visible.median
    if visible.count[0] < picture.width * picture.height / 2:  # ink alone
        paper = [255 if sum(paper) < 3 * 128 else 0] * 3
    background = Image.new("RGBA", picture.size, (*paper, 255))
    return Image.alpha_composite(background, picture).convert("RGB")


# ------------------------------------------------------------------------- pictures to ink


def find_ink(picture: Image.Image) -> Iterator[tuple[np.ndarray, float]]:
    """Yields the ink (H, W), from 0 to 1, of each area that may hold the digits, and its cost.

    Each area is yielded with its ruling and without.
    """
    levels = np.nan_to_num(np.asarray(picture, dtype=np.float32)).clip(-1e4, 1e4)
    for pixels, cost in find_areas(downscale(np.atleast_3d(levels), MAX_SIZE)):
        with contextlib.suppress(UsageError):
            ink = measure_ink(pixels)
            without_ruling, lines = remove_ruling(ink)
            if lines < MIN_GRID or min(ink.shape) < MIN_RULED_SIZE:
                yield limit_height(ink), cost
            if lines:
                yield limit_height(without_ruling), cost + RULING_COST


def limit_height(ink: np.ndarray) -> np.ndarray:
    """Downscales ink (H, W) whose digits are much taller than DIGIT_HEIGHT."""
    height = typical_height(find_components(ink))
    if height <= 1.25 * DIGIT_HEIGHT:
        return ink
    small = downscale(ink[..., None], round(max(ink.shape) * DIGIT_HEIGHT / height))[..., 0]
    return small / small.max()  # thin strokes fade


def downscale(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Area-averages an image (H, W, channels) to a longer side of `longest`; never enlarges it."""
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    width, height = (max(1, round(scale * side)) for side in pixels.shape[1::-1])
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return resized.reshape(height, width, -1)


def main_axis(pixels: np.ndarray) -> np.ndarray:
    """Returns the first principal component of centred pixels (H, W, channels)."""
    pixels = pixels.reshape(-1, pixels.shape[-1])
    return np.linalg.eigh(pixels.T @ pixels).eigenvectors[:, -1]


def measure_ink(pixels: np.ndarray) -> np.ndarray:
    """Returns the ink of a picture (H, W, channels) as (H, W), from 0 to 1.

    A white top-hat along the main colour axis, which subtracts the background and so is robust to
    shading. The axis points to the minority, so the ink may be lighter or darker than the paper.
    UsageError if the contrast is too low.
    """
    height, width, _ = pixels.shape
    small = downscale(pixels, PAPER_SIZE)
    margin = min(max(small.shape[:2]) // 4, min(small.shape[:2])) + 1
    padded = np.pad(small, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    size = int(0.3 * max(padded.shape[:2])) | 1  # wider than any stroke
    detail = padded - cv2.blur(padded, (size, size)).reshape(padded.shape)
    axis = main_axis(detail)
    along = detail @ axis
    axis = axis * np.sign((along * along * along).sum())  # ink, the minority, is the longer tail
    background = cv2.morphologyEx(
        padded @ axis, cv2.MORPH_OPEN, np.ones((size, size)), borderType=cv2.BORDER_REPLICATE
    )
    background = cv2.resize(background[margin:-margin, margin:-margin], (width, height))
    ink = pixels @ axis - background
    if (axis <= 0).all():  # dark on light: contrast is proportional to illumination
        light = np.maximum(-background, max(1.0, MIN_LIGHT * -background.min()))
        ink = ink * (light.max() / light)
    step = max(1, max(height, width) // (4 * DIGIT_HEIGHT))
    sample = ink[::step, ::step]  # enough for statistics
    full = np.quantile(sample[sample >= sample.max() / 2], 0.9)
    rest = sample[sample < full / 2]
    noise = 2 * max(0.0, np.median(rest)) if rest.size else 0.0
    if full < max(MIN_CONTRAST, 1.5 * noise):
        raise UsageError("too little contrast")
    return ((ink - noise) / (full - noise)).clip(0, 1)


def find_ruling(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """Finds nearly horizontal lines that span the width: a mask (H, W), and their number."""
    height, width = ink.shape
    lines, rows = np.zeros(ink.shape, dtype=bool), np.arange(height)[:, None]
    inked = cv2.dilate(ink, np.ones((3, 1))) > RULING_THRESHOLD  # closes gaps of sloping lines
    columns = np.arange(width)
    sample = columns[:: 1 + width // (2 * DIGIT_HEIGHT)]  # enough to find them
    steepest, step = round(RULING_SLOPE * width), 2 + 2 * (width // (4 * DIGIT_HEIGHT))
    for drop in range(-steepest, steepest + 1, step):
        offset = np.round(drop * (columns / width - 0.5)).astype(int)
        on_line = inked[(rows + offset[sample]).clip(0, height - 1), sample]
        is_line = on_line.mean(axis=1) > RULING_LENGTH
        lines[(rows[is_line] + offset).clip(0, height - 1), columns] = True
    return lines, ndimage.label(lines[:, width // 2])[1]


def remove_ruling(ink: np.ndarray) -> tuple[np.ndarray, int]:
    """Removes lines across ink (H, W), of ruled paper or a frame; returns also their number."""
    (horizontal, rows), (vertical, columns) = map(find_ruling, (ink, np.ascontiguousarray(ink.T)))
    if rows > 1:  # the columns of a form end at its first and last row
        inside = np.flatnonzero(horizontal.any(axis=1))
        part = slice(inside[0], inside[-1] + 1)
        between, count = find_ruling(np.ascontiguousarray(ink[part].T))
        vertical[:, part] |= between
        columns = max(columns, count)
    lines = horizontal | vertical.T
    if not lines.any():
        return ink, 0
    width = lines.sum() / max(1, rows * ink.shape[1] + columns * ink.shape[0])
    gap = np.ones((2 * round(width) + 5,) * 2)
    closed = cv2.morphologyEx(np.where(lines, 0, ink), cv2.MORPH_CLOSE, gap)
    return np.where(lines, np.minimum(closed, ink), ink), rows + columns  # strokes go on


def find_areas(pixels: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Yields areas of a picture (H, W, channels) that may hold the digits, and their cost.

    All of it; its largest light area, such as a sheet of paper, and its largest dark one, such as
    a panel.
    """
    yield pixels, 0.0
    small = downscale(pixels, PAPER_SIZE)
    for sheet in find_sheets(small):
        margin = 2 * max(1, round(max(sheet.shape) / 50)) + 1
        inside = cv2.erode(np.pad(sheet, 1), np.ones((margin, margin)))[1:-1, 1:-1]
        if inside.any():  # outside becomes the nearest paper inside, as illumination varies
            smooth = cv2.medianBlur(small.clip(0, 255).astype(np.uint8), margin | 7)
            smooth = smooth.reshape(small.shape).astype(np.float32)
            contrast = np.abs(smooth - np.median(smooth[inside > 0], axis=0)).max(axis=2)
            paper = (inside > 0) & (contrast <= contrast[inside > 0].max() / 2)
            nearest = ndimage.distance_transform_edt(
                ~paper, return_distances=False, return_indices=True
            )
            fill = smooth[tuple(nearest)]
            fill = cv2.resize(fill, pixels.shape[1::-1]).reshape(pixels.shape)
            inside = cv2.resize(inside, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            yield np.where(inside[..., None] > 0, pixels, fill), SHEET_COST


def find_sheets(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the largest light and dark region, if rectangular and sharp-edged: masks (H, W)."""
    axis = main_axis(pixels - pixels.mean(axis=(0, 1)))
    tone = cv2.normalize(pixels @ (axis * np.sign(axis.sum() or 1)), None, 0, 255, cv2.NORM_MINMAX)
    tone = tone.astype(np.uint8)
    _, light = cv2.threshold(tone, 0, 1, cv2.THRESH_OTSU)
    if light.all() or not light.any():
        return
    contrast = tone[light > 0].mean() - tone[light == 0].mean()
    near = np.ones((5, 5))
    for side in (light, 1 - light):
        outlines, _ = cv2.findContours(side, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = max(outlines, key=cv2.contourArea)
        sheet = cv2.drawContours(np.zeros_like(side), [outline], -1, 1, cv2.FILLED)
        if not SHEET_AREA[0] < sheet.mean() < SHEET_AREA[1]:
            continue
        outside, inside = (cv2.dilate(sheet, near) > sheet), (cv2.erode(sheet, near) < sheet)
        edge = abs(tone[outside].mean() - tone[inside].mean())  # sharp, unlike a shadow's
        rectangular = sheet.sum() > MIN_RECTANGULARITY * np.prod(cv2.minAreaRect(outline)[1])
        if rectangular and side[sheet > 0].mean() > 0.65 and edge > MIN_EDGE * contrast:
            yield sheet


# ---------------------------------------------------------------- ink to lines of components


@dataclass(frozen=True)
class Component:
    """A connected component of the ink, or a piece of one."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    mask: np.ndarray  # (bottom - top, right - left)
    mass: float  # the sum of its ink
    crossed: float = 0.0  # strokes that the cut on its left crosses

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted median; 0 if empty."""
    if not len(values):
        return 0.0
    order = np.argsort(values)
    total = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(total, total[-1] / 2)])


def typical_height(components: list[Component]) -> float:
    """Median height, weighted by ink."""
    return weighted_median([c.height for c in components], [c.mass for c in components])


def find_components(ink: np.ndarray) -> list[Component]:
    """Finds the connected components of the ink (H, W), without specks and enclosing frames."""
    inked = np.uint8(ink > INK_THRESHOLD)
    if not inked.any():
        return []
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inked)
    mass = np.bincount(labels.ravel(), ink.ravel(), count)
    mass[[0, *find_frames(inked, labels)]] = 0  # 0 is the background
    numbers = np.flatnonzero(mass > SPECK * weighted_median(mass, mass))
    components = []
    for number in numbers if len(numbers) <= MAX_COMPONENTS else []:
        left, top, width, height, _ = stats[number].tolist()
        mask = labels[top : top + height, left : left + width] == number
        box = left, top, left + width, top + height
        components.append(Component(box, mask, float(mass[number])))
    return components


def find_frames(inked: np.ndarray, labels: np.ndarray) -> list[int]:
    """Lists the labels of components that enclose others, such as a ring around a digit."""
    outlines, tree = cv2.findContours(inked, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    heights = [np.ptp(outline[..., 1]) + 1 for outline in outlines]
    frames = []
    for height, (_next, _previous, _child, hole) in zip(heights, tree[0]):
        around = tree[0, hole, 3] if hole >= 0 else -1  # the outline around the hole, its parent
        if around >= 0 and height > MIN_ENCLOSED * heights[around]:
            x, y = outlines[around][0, 0]
            frames.append(labels[y, x])
    return frames


def find_lines(components: list[Component]) -> list[list[Component]]:
    """Groups components into text lines: from top to bottom, each from left to right.

    Each component joins the line whose fitted straight line passes closest to its centre.
    """
    size = typical_height(components)
    small = [c for c in components if c.height <= TALL * size]
    lines: list[list[Component]] = []
    for component in sorted(components, key=lambda component: component.box[0]):
        if component.height > TALL * size:
            before = [line for line in lines if component.box[0] > line[-1].box[2] - 0.3 * size]
            line = min(before, key=lambda line: distance_to_line(line, component), default=None)
            if line and distance_to_line(line, component) < MAX_RISE * size:
                line.append(component)
            else:
                lines.append([component])
    for component in small:
        line = min(lines, key=lambda line: distance_to_line(line, component))
        if distance_to_line(line, component) < size:
            line.append(component)
            line.sort(key=lambda component: component.centre[0])
    slope = float(np.median([fit_baseline(line)[0] for line in lines if len(line) > 2] or [0]))
    lines.sort(key=lambda line: np.mean([(y - slope * x) for x, y in (c.centre for c in line)]))
    return lines


def fit_baseline(line: list[Component]) -> tuple[float, float]:
    """Least-squares line through centres: slope, intercept; of one or two, level with the last."""
    x, y = np.array([component.centre for component in line]).T
    return tuple(np.polyfit(x, y, 1)) if len(line) > 2 and np.ptp(x) > 1 else (0.0, y[-1])


def distance_to_line(line: list[Component], component: Component) -> float:
    """Vertical distance of a component from the line through the (up to four) at its left."""
    x, y = component.centre
    before = [other for other in line if other.centre[0] < x][-4:] or line[:1]
    slope, intercept = fit_baseline(before)
    return abs(y - intercept - slope * x)


def split_touching(component: Component, ink: np.ndarray, line_height: float) -> list[Component]:
    """Cuts a component where digits may touch; returns its pieces from left to right."""
    left, top, right, bottom = component.box
    if right - left < MIN_CUT_WIDTH * line_height:
        return [component]
    own = np.where(component.mask, ink[top:bottom, left:right], 0).astype(np.float32)
    cuts = sorted(find_cuts(own, line_height))
    y, x = np.mgrid[: bottom - top, : right - left]
    piece_of = sum((x > at + slope * y).astype(np.uint8) for at, slope, _ in cuts)
    pieces: list[Component] = []
    for index, crossed in enumerate([0.0, *(crossed for *_, crossed in cuts)]):
        mask = component.mask & (piece_of == index)
        if mask.any():
            rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
            box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
            crossed = float(crossed) if pieces else 0.0
            pieces.append(Component(box, mask[rows, columns], float(own[mask].sum()), crossed))
    return pieces


def find_cuts(ink: np.ndarray, line_height: float) -> list[tuple[float, float, float]]:
    """Finds cuts, straight lines through notches of the upper or lower outline of ink (H, W).

    Returns of each its column in the first row, its slope, and the number of strokes it crosses.
    """
    height, width = ink.shape
    rows, stroke, found = np.arange(height), stroke_width(ink), []
    for flipped in (False, True):
        inked = (ink[::-1] if flipped else ink) > 2 * INK_THRESHOLD
        depth = np.where(inked.any(axis=0), inked.argmax(axis=0), height)
        for x in find_peaks(depth, prominence=MIN_NOTCH * line_height)[0]:
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
        if min(near, default=np.inf) > MIN_CUT_DISTANCE * line_height:
            cuts.append((at, slope, crossed))
    return cuts


def stroke_width(ink: np.ndarray) -> float:
    """Returns the mean stroke width of ink (H, W) in pixels: twice the ink / the outline length."""
    inside = ink > INK_THRESHOLD
    border = inside & ~ndimage.binary_erosion(inside)
    return float(2 * ink.sum() / max(1, border.sum()))
