"""Pictures of digits for the tests of predict.py, drawn by seed: `picture(kind, seed)`.

A hand draws each digit along a skeleton of its own choice, with its own slant, width and pen. Seed
10 h + d is digit d by hand h. Nothing was tuned on the hands from 100 on.
"""

import io

import cv2
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.interpolate import splev, splprep

Random = np.random.Generator

# Digits, letters that are none, and signs. The points of each stroke: x to the right and y
# downwards, 100 high; a bar begins another stroke.
SKELETONS = """
0 30,0 8,15 0,50 8,85 30,100 52,85 60,50 52,15 30,0
0 36,4 14,6 1,40 6,82 28,100 52,86 60,48 48,12 26,2
1 30,0 30,100
1 12,22 32,0|32,0 32,100
1 14,20 32,0|32,0 32,100|10,100 54,100
2 4,22 16,3 38,0 54,14 52,36 30,66 2,98|2,98 60,98
2 4,24 18,2 44,4 54,24 40,58 14,90 2,92 8,80 24,84 42,98 60,92
3 4,12 24,0 48,6 52,26 38,44 20,48|20,48 46,52 58,72 46,94 22,100 0,88
3 4,2 54,2|54,2 24,42|24,42 50,50 58,74 42,97 18,99 0,88
4 14,0 8,30 2,58|2,58 60,56|42,22 42,100
4 44,0 2,66|2,66 60,66|44,0 44,100
5 10,4 6,44|6,44 28,36 50,46 58,70 44,94 20,100 0,90|10,4 56,2
5 54,4 14,4|14,4 8,42|8,42 34,36 56,56 52,84 28,100 2,92
6 50,2 24,18 6,48 4,78 24,100 48,92 56,72 42,54 22,56 6,76
6 34,0 14,26 2,64 10,92 32,100 52,86 50,66 30,58 8,72
7 2,4 56,4|56,4 36,48 22,100
7 2,4 56,4|56,4 36,48 22,100|16,52 50,50
7 4,16 4,4|4,4 58,2|58,2 24,100
8 44,14 28,0 10,10 12,30 32,48 52,70 46,94 26,100 6,90 8,68 28,48 48,28 46,12
8 30,0 12,10 14,38 30,46 46,38 48,10 30,0|30,46 8,58 6,88 30,100 54,88 52,58 30,46
9 52,18 34,0 10,10 4,32 18,50 42,46 54,20|54,20 54,60 50,100
9 52,24 40,2 16,4 4,28 16,48 40,46 52,24|54,14 56,60 44,94 22,100 8,92
A 0,100 30,0|30,0 60,100|10,62 50,62
Q 30,0 6,14 0,50 8,86 30,100 52,86 60,50 52,14 30,0|36,74 66,104
E 0,0 0,100|0,0 54,0|0,48 44,48|0,100 56,100
F 0,0 0,100|0,0 54,0|0,48 44,48
H 0,0 0,100|60,0 60,100|0,50 60,50
K 0,0 0,100|56,0 0,54|14,44 60,100
M 0,100 4,0|4,0 34,70|34,70 64,0|64,0 70,100
N 0,100 0,0|0,0 60,100|60,100 60,0
R 0,100 0,0|0,0 40,0 54,24 36,48 0,50|20,50 60,100
T 0,0 60,0|30,0 30,100
W 0,0 16,100|16,100 34,30|34,30 52,100|52,100 70,0
X 0,0 60,100|60,0 0,100
heart 30,30 14,4 0,24 30,100|30,30 48,4 62,24 30,100
arrow 0,50 90,50|60,26 90,50|60,74 90,50
hash 20,0 14,100|46,0 40,100|0,32 66,32|0,68 66,68
tick 0,55 20,100|20,100 70,0
face 50,0 15,12 0,50 15,88 50,100 85,88 100,50 85,12 50,0|34,30 34,38|66,30 66,38|26,62 50,80 74,62
spiral 50,50 58,44 60,56 48,62 38,50 46,34 66,34 74,54 60,74 34,70 24,46 40,20 72,20
"""
DIGITS, OTHERS = [[] for _ in range(10)], []
for line in SKELETONS.strip().splitlines():
    name, _, points = line.partition(" ")
    (DIGITS[int(name)] if name.isdecimal() else OTHERS).append(points)


def strokes(skeleton: str, hand: Random, random: Random) -> list[np.ndarray]:
    """The strokes of a skeleton as a hand draws them: points (N, 2), about 100 high."""
    slant, wide, turn = hand.uniform(-0.1, 0.35), hand.uniform(0.85, 1.2), hand.uniform(-0.06, 0.06)
    moved, result = {}, []  # strokes that meet go on meeting
    for text in skeleton.split("|"):
        names = text.split()
        for name in names:
            moved.setdefault(name, np.float64(name.split(",")) + random.normal(0, 1.8, 2))
        points = np.array([moved[name] for name in names])
        x, y = splev(np.linspace(0, 1, 60), splprep(points.T, k=min(3, len(points) - 1), s=0)[0])
        x = np.array(x) * wide + slant * (50 - np.array(y))
        result.append(np.stack([x - turn * y, y + turn * x], axis=1))
    return result


def ink_of(seed: int, size: int, pen: float | None = None, gap: bool = False) -> np.ndarray:
    """What the hand of a seed draws: ink (H, W) from 0 to 1, cropped; H or W is `size` pixels.

    `pen` is its width in pixels (default: the hand's own). Seeds below zero draw no digits.
    """
    hand, random = np.random.default_rng(abs(seed) // 10), np.random.default_rng(abs(seed))
    pen = pen or max(1.0, hand.uniform(0.05, 0.13) * size)
    others = random.choice(OTHERS)
    lines = strokes(others if seed < 0 else hand.choice(DIGITS[seed % 10]), hand, random)
    low, high = (f([f(line, axis=0) for line in lines], axis=0) for f in (np.min, np.max))
    scale, times = (size - pen) / (high - low).max(), 4  # drawn larger, for soft edges
    width, height = ((high - low) * scale + pen).round().astype(int).clip(1).tolist()
    canvas = np.zeros((times * height, times * width), dtype=np.uint8)
    for number, line in enumerate(lines):
        points = (times * ((line - low) * scale + pen / 2)).round().astype(np.int32)
        # A pen that fails for a moment leaves a gap in the first stroke.
        parts = [points[:27], points[33:]] if gap and number == 0 else [points]
        cv2.polylines(canvas, parts, False, 255, max(1, round(times * pen)))
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA) / 255


def place(ink: np.ndarray, random: Random, margin: tuple[float, float]) -> np.ndarray:
    """Ink with paper around it: on each side, between two parts of its longer side."""
    around = (random.uniform(*margin, (2, 2)) * max(ink.shape)).round().astype(int)
    return np.pad(ink, around)


def blend(ink: np.ndarray, colour: object = 0.0, paper: object = 255.0) -> Image.Image:
    """A picture with ink of a colour on paper of another: a grey, RGB, or as many as pixels."""
    ink = ink if np.ndim(colour) + np.ndim(paper) == 0 else ink[..., None]
    pixels = np.asarray(paper) + ink * (np.asarray(colour, dtype=float) - np.asarray(paper))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def noisy(pixels: np.ndarray, random: Random, level: float) -> Image.Image:
    noise = random.normal(0, level, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def lines(shape: tuple[int, int], step: float, width: int, both: bool, random: Random):
    """Ink of lines across (H, W), `step` pixels apart, slightly turned; `both`: squares."""
    slope, phase = random.uniform(-0.02, 0.02), random.uniform(0, step, 2)
    y, x = np.mgrid[: shape[0], : shape[1]]
    ink = (y + slope * x + phase[0]) % step < width
    return (ink | ((x - slope * y + phase[1]) % step < width)) if both else ink


# ------------------------------------------------------------ kinds of pictures that went wrong


def panel(seed: int, random: Random) -> Image.Image:
    """A light digit on a black panel of a white page, as a plot or a screenshot has it."""
    ink = place(ink_of(seed, random.integers(50, 120)), random, (0.1, 0.35))
    return blend(place(1 - ink, random, (0.15, 0.9)), 0, 255)


def table(seed: int, random: Random) -> Image.Image:
    """A sheet of paper on a darker table, slightly turned, with light from one side."""
    ink = place(ink_of(seed, random.integers(60, 140)), random, (0.2, 0.6))
    colour, sheet = random.uniform(0, 60), random.uniform(200, 250)
    pixels = sheet + ink * (colour - sheet)
    wood = random.uniform(60, 150) * np.array([1.1, 0.95, 0.75])
    margin = (random.uniform(0.1, 0.9, (2, 2)) * max(pixels.shape)).astype(int)
    inside = np.pad(np.ones(pixels.shape), margin)[..., None]
    picture = np.pad(pixels, margin)[..., None] * inside + wood * (1 - inside)
    turn = random.uniform(-8, 8)
    picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    picture = picture.rotate(turn, Image.Resampling.BICUBIC, fillcolor=tuple(wood.astype(int)))
    light = np.linspace(1, random.uniform(0.7, 1), picture.height)[:, None, None]
    return noisy(np.asarray(picture) * light, random, 3)


def framed(seed: int, random: Random) -> Image.Image:
    """A cell cut from a form with its ruling, and a digit in pencil."""
    ink = 0.6 * place(ink_of(seed, 70), random, (0.15, 0.4))
    width, inset = random.integers(2, 6), random.integers(0, 4)
    frame = np.pad(np.zeros(np.array(ink.shape) - 2 * (width + inset)), width, constant_values=1)
    return noisy(np.asarray(blend(np.maximum(ink, np.pad(frame, inset)), 20, 245)), random, 3)


def squared(seed: int, random: Random) -> Image.Image:
    """Dark squared paper, two to five squares to a digit."""
    ink = place(ink_of(seed, 120), random, (0.2, 0.6))
    grid = lines(ink.shape, 120 / random.uniform(2, 5), random.integers(1, 4), True, random)
    return noisy(np.asarray(blend(np.maximum(ink, random.uniform(0.5, 0.8) * grid))), random, 3)


def touched(seed: int, random: Random) -> Image.Image:
    """A black line from edge to edge that touches the digit on one side."""
    ink = place(ink_of(seed, 90), random, (0.15, 0.5))
    rows, columns = ndimage.find_objects((ink > 0.5).astype(int))[0]
    side, width = random.integers(4), random.integers(2, 6)
    at = [rows.stop - 2, rows.start + 2 - width, columns.start + 2 - width, columns.stop - 2][side]
    (ink if side < 2 else ink.T)[at : at + width] = 1
    return blend(ink, random.uniform(0, 60), 250)


def thin(seed: int, random: Random) -> Image.Image:
    """A pen of one pixel, as drawing programs begin with."""
    return blend(place(ink_of(seed, random.integers(80, 400), pen=1.0), random, (0.1, 0.6)))


def tight(seed: int, random: Random) -> Image.Image:
    """Cropped without a margin, at most 40 pixels."""
    return blend(ink_of(seed, random.integers(10, 41)), random.uniform(0, 80), 255)


FAILED = {f.__name__: f for f in (panel, table, framed, squared, touched, thin, tight)}

# ------------------------------------------------------------- kinds of pictures that were read


def corner(seed: int, random: Random) -> Image.Image:
    ink = ink_of(seed, 60)
    more = random.integers(150, 400, 2)
    return blend(np.pad(ink, [(6, more[0]), (more[1], 6)][:: random.choice([1, -1])]))


def shadow(ink: np.ndarray, random: Random) -> Image.Image:
    """The edge of a shadow across the paper."""
    edge = np.linspace(-1, 1, ink.shape[1]) + random.uniform(-0.5, 0.5)
    light = 1 - random.uniform(0.3, 0.5) / (1 + np.exp(-10 * edge))
    return noisy((235 - 200 * ink) * light, random, 2)


def glare(ink: np.ndarray, random: Random) -> Image.Image:
    """A bright spot, in which ink is paler."""
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j] - random.uniform(-1, 1)
    light = np.exp(-4 * (x**2 + y**2))
    return noisy((170 - 140 * ink) * (1 - 0.5 * light) + 120 * light, random, 2)


def alpha(ink: np.ndarray, random: Random) -> Image.Image:
    picture = blend(ink * 0, 0, (0.0, 0.0, 40.0))
    picture.putalpha(Image.fromarray((255 * ink).astype(np.uint8)))
    return picture


def chalk(seed: int, random: Random) -> Image.Image:
    ink = place(ink_of(seed, 120), random, (0.15, 0.5))
    grain = ndimage.gaussian_filter(random.normal(0, 1, ink.shape), 0.8) > -0.35
    return noisy(np.asarray(blend(0.9 * ink * grain, 240, (35.0, 70.0, 55.0))), random, 5)


def ruled(seed: int, random: Random) -> Image.Image:
    """Pale blue lines, as exercise books have them."""
    ink = place(ink_of(seed, 100), random, (0.2, 0.6))
    paper = np.full((*ink.shape, 3), 250.0)
    paper[lines(ink.shape, random.uniform(25, 60), 2, False, random)] = (205, 215, 240)
    return blend(ink, (30.0, 30.0, 90.0), paper)


def printed(seed: int, random: Random) -> Image.Image:
    """Small print in a corner."""
    picture = blend(place(ink_of(seed, 120), random, (0.3, 0.6)))
    ImageDraw.Draw(picture).text((6, 4), f"Fig. {random.integers(10)}", fill=60)
    return picture


def navy(ink: np.ndarray) -> Image.Image:
    return blend(ink, (20.0, 20.0, 60.0), 250.0)


def turned(ink: np.ndarray, random: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    return encode(navy(ink).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


def mnist_like(seed: int, paper: int) -> Image.Image:
    ink = ink_of(seed, 20, pen=2.5)
    around = [(more // 2, more - more // 2) for more in 28 - np.array(ink.shape)]
    return blend(np.pad(ink, around), 255 - paper, paper)


DRAWN = {  # what is drawn by seed
    "corner": corner,
    "tiny": lambda seed, random: blend(place(ink_of(seed, 16), random, (0.2, 0.5))),
    "28 x 28, light": lambda seed, _: mnist_like(seed, 0),
    "28 x 28, dark": lambda seed, _: mnist_like(seed, 255),
    "gap": lambda seed, random: blend(place(ink_of(seed, 90, gap=True), random, (0.15, 0.5))),
    "chalk": chalk,
    "ruled": ruled,
    "printed": printed,
}
INKED = {  # what is made of a digit 90 pixels high on paper: ink (H, W)
    "inverted": lambda ink, _: blend(ink, 255, 0),
    "low contrast": lambda ink, _: blend(ink, 175, 200),
    "noise": lambda ink, random: noisy(230 - 180 * ink, random, 20),
    "shadow": shadow,
    "glare": glare,
    "alpha": alpha,
    "1-bit": lambda ink, _: blend(ink).convert("1"),
    "16-bit": lambda ink, _: Image.fromarray(np.uint16(4e4 - 3e4 * ink)),
    "float": lambda ink, _: encode(Image.fromarray(np.float32(1 - 0.9 * ink)), "TIFF"),
    "jpeg": lambda ink, _: encode(navy(ink), "JPEG", quality=40),
    "exif": turned,
    "equal luminance": lambda ink, _: blend(ink, (200, 60, 60), (20.0, 150.0, 60.0)),
}
KINDS = [*FAILED, *DRAWN, *INKED]


# --------------------------------------------------------------- kinds with several digits


def sheet(rows: list[str], seed: int, size: int = 60, rise: float = 0.0, gap: float = 0.4):
    """Ink of digits by one hand, line by line: `rise` in heights a digit, `gap` in heights."""
    random = np.random.default_rng(seed)
    step, lead = (1 + abs(gap)) * size, round(1.6 * size)
    slope = round(abs(rise) * size * max(map(len, rows)))
    ink = np.zeros((lead * len(rows) + slope + size, round(step * max(map(len, rows))) + 2 * size))
    for down, row in enumerate(rows):
        left = size // 2
        for index, digit in enumerate(row):
            drawn = ink_of(seed // 10 * 10 + int(digit), size)
            climbed = slope * (rise < 0) + round(rise * size * index)
            top = size // 2 + lead * down + climbed + random.integers(0, size // 10 + 1)
            place = ink[top : top + len(drawn), left : left + drawn.shape[1]]
            np.maximum(place, drawn, out=place)
            left += drawn.shape[1] + round(gap * size)
    return ink[:, : np.flatnonzero(ink.max(axis=0))[-1] + size // 2]


def numbers(random: Random, rows: int, low: int, high: int) -> list[str]:
    return [
        "".join(map(str, random.integers(0, 10, random.integers(low, high)))) for _ in range(rows)
    ]


def joined(seed: int, random: Random) -> tuple[list[str], Image.Image]:
    """A cut from a page of accounts: zeros that touch, and a pale line under them."""
    rows = [random.choice(["1000", "2000", "5000", "600", "300"])]
    ink = sheet(rows, seed, 60, gap=-0.03)
    ink[-34:-31] = np.maximum(ink[-34:-31], 0.4)
    return rows, noisy(200 - 150 * ink, random, 3)


def uneven(seed: int, random: Random) -> tuple[list[str], Image.Image]:
    """Two rows on paper that is bright in the middle and dark in the corners."""
    rows = numbers(random, 2, 4, 6)
    ink = place(sheet(rows, seed), random, (0.05, 0.1))
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    return rows, noisy((190 - 110 * ink) * (1 - 0.35 * (x**2 + y**2)), random, 2)


def ringed(seed: int, random: Random) -> tuple[list[str], Image.Image]:
    """A digit in a circle."""
    rows, ink = numbers(random, 1, 1, 2), np.zeros((200, 200))
    drawn = ink_of(seed // 10 * 10 + int(rows[0]), 100)
    left = 100 - drawn.shape[1] // 2
    ink[50 : 50 + len(drawn), left : left + drawn.shape[1]] = drawn
    picture = blend(ink)
    ImageDraw.Draw(picture).ellipse([12, 12, 188, 188], outline=0, width=5)
    return rows, picture


def plain(count: int, low: int, high: int, size: int = 60, rise: float = 0.0):
    """A kind of `count` rows of `low` to `high - 1` digits each."""

    def draw(seed: int, random: Random) -> tuple[list[str], Image.Image]:
        rows = numbers(random, count, low, high)
        return rows, blend(sheet(rows, seed, size, rise * random.choice([-1, 1])))

    return draw


SEVERAL = {
    "level": plain(1, 4, 9),
    "rising": plain(1, 4, 8, rise=0.25),
    "page": plain(6, 6, 9, size=30),
    "two": plain(1, 2, 3, size=40),
    "column": plain(4, 1, 2),
    "squares of four": plain(2, 2, 3),
    "joined": joined,
    "uneven": uneven,
    "ringed": ringed,
}


def several(kind: str, seed: int) -> tuple[list[str], Image.Image]:
    """The lines of digits on a picture with several, by the hand of a seed, and the picture."""
    return SEVERAL[kind](
        seed, np.random.default_rng((seed, len(KINDS) + list(SEVERAL).index(kind)))
    )


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def picture(kind: str, seed: int) -> bytes:
    """A file with the picture of digit `seed % 10`."""
    random = np.random.default_rng((seed, KINDS.index(kind)))
    if kind in INKED:
        made = INKED[kind](place(ink_of(seed, 90), random, (0.15, 0.5)), random)
    else:
        made = (FAILED | DRAWN)[kind](seed, random)
    return made if isinstance(made, bytes) else encode(made)
