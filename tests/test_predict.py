"""Pictures made from test digits by what happens to pictures, and what predict.py makes of them."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Digits
from PIL import Image, ImageFilter

import predict
from command_line import UsageError
from mnist import normalize, views
from run_folder import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")
Random = np.random.Generator
PER_KIND = 12
EXIF_ORIENTATION = 0x0112
TURNS = {  # what EXIF states, and what was done to the picture
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def enlarge(digit: np.ndarray, size: int) -> np.ndarray:
    """Ink (size, size) from 0 to 1 of a digit (28, 28), uint8."""
    picture = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float64) / 255


def blend(ink: np.ndarray, colour: object, paper: object) -> Image.Image:
    """A picture with ink of one RGB colour on paper of another, or of colours by pixel."""
    paper = np.asarray(paper, dtype=np.float64)
    pixels = paper + ink[..., None] * (np.asarray(colour) - paper)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def place(ink: np.ndarray, random: Random, most: float) -> np.ndarray:
    """The ink somewhere on paper up to `most` times as high and as wide."""
    size = len(ink)
    height, width = (int(size * random.uniform(1, most)) for _ in range(2))
    top, left = random.integers(height - size + 1), random.integers(width - size + 1)
    return np.pad(ink, ((top, height - size - top), (left, width - size - left)))


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def inverted(digit: np.ndarray, random: Random) -> bytes:
    return encode(Image.fromarray(255 - digit), "PNG")


def enlarged(digit: np.ndarray, random: Random) -> bytes:
    return encode(Image.fromarray(digit).resize((280, 280), Image.Resampling.NEAREST), "PNG")


def compressed(digit: np.ndarray, random: Random) -> bytes:
    return encode(Image.fromarray(255 - digit), "JPEG", quality=60)


def coloured(digit: np.ndarray, random: Random) -> bytes:
    brightness = np.array([0.299, 0.587, 0.114])
    while True:
        colour, paper = random.uniform(0, 255, (2, 3))
        if abs((colour - paper) @ brightness) > 50:
            return encode(blend(enlarge(digit, 90), colour, paper), "PNG")


def equally_bright(digit: np.ndarray, random: Random) -> bytes:
    return encode(blend(enlarge(digit, 90), (200, 60, 60), (20, 150, 60)), "BMP")


def padded(digit: np.ndarray, random: Random) -> bytes:
    return encode(blend(place(enlarge(digit, 50), random, 4), (0, 0, 0), (255, 255, 255)), "WEBP")


def cropped(digit: np.ndarray, random: Random) -> bytes:
    rows, columns = np.nonzero(digit > 25)
    ink = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return encode(Image.fromarray(ink), "PNG")


def turned(digit: np.ndarray, random: Random) -> bytes:
    orientation = int(random.choice(list(TURNS)))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    picture = Image.fromarray(255 - digit).resize((112, 112), Image.Resampling.BICUBIC)
    return encode(picture.transpose(TURNS[orientation]), "JPEG", exif=exif)


def transparent(digit: np.ndarray, random: Random) -> bytes:
    ink = (255 * enlarge(digit, 84)).clip(0, 255).astype(np.uint8)
    colour = random.permuted([(0, 0, 0), (255, 255, 255), (200, 30, 30)], axis=0)[0]
    picture = Image.new("RGB", (84, 84), tuple(colour.tolist()))
    picture.putalpha(Image.fromarray(ink))
    return encode(picture, "PNG")


def one_bit(digit: np.ndarray, random: Random) -> bytes:
    return encode(Image.fromarray(digit).resize((140, 140)).convert("1"), "PNG")


def sixteen_bits(digit: np.ndarray, random: Random) -> bytes:
    values = 1000 + (1 - enlarge(digit, 70)).clip(0, 1) * 40_000
    return encode(Image.fromarray(values.astype(np.uint16)), "PNG")


def palette(digit: np.ndarray, random: Random) -> bytes:
    return encode(blend(enlarge(digit, 100), (250, 240, 90), (30, 40, 90)).quantize(16), "GIF")


def photo(digit: np.ndarray, random: Random) -> bytes:
    """Blue or grey ink on yellowish paper with light from one side, noise and blur, as JPEG."""
    ink = place(enlarge(digit, 160), random, 2)
    down, right = np.mgrid[0 : 1 : ink.shape[0] * 1j, 0 : 1 : ink.shape[1] * 1j]
    turn = random.uniform(0, 2 * np.pi)
    light = 0.75 + 0.3 * (np.cos(turn) * (right - 0.5) + np.sin(turn) * (down - 0.5))
    light = light[..., None]
    colour = random.permuted([(30, 40, 130), (70, 70, 75)], axis=0)[0]
    picture = blend(ink, colour * light, np.array([240, 235, 215]) * light)
    noisy = np.asarray(picture) + random.normal(0, 5, (*ink.shape, 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return encode(picture.filter(ImageFilter.GaussianBlur(1)), "JPEG", quality=70)


KINDS: list[Callable[[np.ndarray, Random], bytes]] = [
    inverted,
    enlarged,
    compressed,
    coloured,
    equally_bright,
    padded,
    cropped,
    turned,
    transparent,
    one_bit,
    sixteen_bits,
    palette,
    photo,
]


@pytest.fixture(scope="module")
def folder(mnist: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """156 pictures, each called label-kind-index, of test digits that no two kinds share."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = mnist["test"]
    for number, kind in enumerate(KINDS):
        random = np.random.default_rng(number)
        for index in range(number * PER_KIND, (number + 1) * PER_KIND):
            content = kind(images[index, 0].numpy(), random)
            (folder / f"{labels[index]}-{kind.__name__}-{index}").write_bytes(content)
    return folder


def test_what_people_have_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(str(path) for path in folder.iterdir())
    assert len(paths) >= 100
    assert predict.main([*paths, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in rows] == paths
    wrong = [
        row["file"]
        for row in rows
        if Path(row["file"]).name.split("-")[0] != str(row["top"][0]["digit"])
    ]
    assert len(wrong) <= 0.03 * len(paths), wrong


def test_plain_exports(mnist: Digits) -> None:
    images, labels = mnist["test"][0][:1000, 0], mnist["test"][1][:1000]
    seen = []
    for image in images:
        exported = io.BytesIO(encode(Image.fromarray(image.numpy()), "PNG"))
        seen.append(predict.to_mnist(Image.open(exported)))
    seen = torch.stack(seen)
    assert (seen.float() - images.float()).abs().mean() < 1  # of 255: almost unchanged
    guesses = predict.classify(predict.load_network("model3", None, False), seen).argmax(dim=1)
    assert (guesses == labels).float().mean() >= 0.99


def test_a_digit_is_fitted_and_centred_as_mnist_is() -> None:
    image = torch.from_numpy(predict.fit_and_centre(np.ones((40, 16)))).float()
    rows, columns = image.nonzero().T
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (20, 8)
    assert image.max() == 255
    for axis in (0, 1):  # pixels begin at their index, so the middle of the image is 13.5
        mass = image.sum(dim=axis)
        assert abs((mass * torch.arange(28)).sum() / mass.sum() - 13.5) <= 0.5


@pytest.mark.parametrize("ink", [0, 255], ids=["dark ink", "light ink"])
def test_transparency_shows_paper(ink: int) -> None:
    bar = np.zeros((60, 60, 4), dtype=np.uint8)
    bar[10:50, 26:34] = (ink, ink, ink, 255)
    image = predict.to_mnist(Image.fromarray(bar)).float()
    assert image[14, 14] == 255
    assert image[14, 4] == 0


@pytest.fixture
def photos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-photo-*"))[:5]


def guesses_of_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> torch.Tensor:
    """The probabilities (N, 10) that the command line prints."""
    assert predict.main([*arguments, "--json", "--top", "10"]) == 0
    chances = []
    for row in json.loads(capsys.readouterr().out):
        by_digit = {guess["digit"]: guess["confidence"] for guess in row["top"]}
        chances.append([by_digit[digit] for digit in range(10)])
    return torch.tensor(chances)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, []),
        ({"tta": True}, ["--tta"]),
        ({"model": "model1", "tta": True}, ["--model", "model1", "--tta"]),
        (
            {"weights": predict.WEIGHTS_DIR / "model2.pt"},
            ["--weights", str(predict.WEIGHTS_DIR / "model2.pt")],
        ),
    ],
    ids=["defaults", "tta", "model1 and tta", "weights"],
)
def test_a_program_gets_what_the_command_line_says(
    options: dict[str, object],
    arguments: list[str],
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = guesses_of_command([*map(str, photos), *arguments], capsys)
    for path, chances in zip(photos, expected):
        with Image.open(path) as picture:
            for source in (path, str(path), picture, picture.convert("RGB")):
                found = predict.probabilities(source, **options)
                assert [type(chance) for chance in found] == [float] * 10
                torch.testing.assert_close(torch.tensor(found), chances, atol=1e-5, rtol=0)


def test_tta_averages_the_softmax_over_nine_views(
    photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = guesses_of_command([*map(str, photos), "--tta"], capsys)
    seen = torch.stack([predict.to_mnist(path) for path in photos])[:, None]
    model = MODELS[predict.DEFAULT_MODEL]().eval()
    weights = predict.WEIGHTS_DIR / f"{predict.DEFAULT_MODEL}.pt"
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        guesses = [model(view).softmax(dim=1) for view in views(normalize(seen / 255))]
    assert len(guesses) == 9
    torch.testing.assert_close(found, sum(guesses) / 9, atol=1e-5, rtol=0)
    assert not torch.allclose(found, guesses[0], atol=1e-4)


def test_a_program_reads_weights_once(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = predict.probabilities(photos[0])
    monkeypatch.setattr(predict, "load_weights", None)
    assert predict.probabilities(photos[0]) == first


def test_a_program_gets_one_kind_of_error(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"text\.png: not a picture"):
        predict.probabilities(tmp_path / "text.png")
    with pytest.raises(UsageError, match=r"missing\.png: No such file"):
        predict.probabilities(str(tmp_path / "missing.png"))
    with pytest.raises(UsageError, match=r"^nothing stands out"):
        predict.probabilities(Image.new("L", (40, 60), 128))
    with pytest.raises(UsageError, match="model9"):
        predict.probabilities(Image.new("L", (40, 60)), model="model9")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_picture_is_read_as_a_small_one(kind: str, mnist: Digits, tmp_path: Path) -> None:
    """12 megapixels, turned as EXIF says, with a digit of a tenth of the width."""
    digit = Image.fromarray(255 - mnist["test"][0][0, 0].numpy())  # a 7
    sheet = Image.new("L", (4000, 3000), 255)
    sheet.paste(digit.resize((400, 400), Image.Resampling.BICUBIC), (3100, 700))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    turned_sheet = sheet.transpose(TURNS[6])
    path = tmp_path / "large"
    turned_sheet.save(path, kind, exif=exif)
    small = sheet.crop((2900, 500, 3500, 1100)).resize((300, 300), Image.Resampling.BOX)
    difference = predict.to_mnist(path).float() - predict.to_mnist(small).float()
    assert difference.abs().mean() < 4  # of 255
    with Image.open(path) as picture:
        predict.to_mnist(picture)
        assert picture.size == turned_sheet.size  # the caller's picture stays as it is
    chances = predict.probabilities(path)
    assert chances.index(max(chances)) == 7


def test_floats_beyond_all_bounds_are_no_digit() -> None:
    pixels = np.full((40, 60), 3e38, dtype=np.float32)
    pixels[10:30, 28:32] = (-3e38, np.nan, np.inf, -np.inf)
    with pytest.raises(UsageError, match="nothing stands out"):
        predict.to_mnist(Image.fromarray(pixels))


def test_importing_predict_imports_torch_and_little_else() -> None:
    command = "import predict, sys; print(*sys.modules)"
    folder = Path(predict.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=folder, capture_output=True, text=True, check=True
    )
    assert {"torchvision", "train", "matplotlib"}.isdisjoint(done.stdout.split())


def test_show_writes_what_the_network_saw(folder: Path, tmp_path: Path) -> None:
    source = next(folder.glob("*-photo-*"))
    path = tmp_path / "photo.jpg"
    shutil.copy(source, path)
    assert predict.main([str(path), "--show"]) == 0
    seen = Image.open(tmp_path / "photo.jpg-seen.png")
    expected = predict.to_mnist(Image.open(path))
    assert seen.size == (280, 280)
    assert torch.equal(torch.from_numpy(np.array(seen)[5::10, 5::10]), expected)


def test_bad_pictures_leave_the_others(tmp_path: Path, mnist: Digits) -> None:
    digit = Image.fromarray(mnist["test"][0][0, 0].numpy())  # a 7
    digit.save(tmp_path / "seven.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(encode(digit.resize((280, 280)), "PNG")[:600])
    Image.new("RGB", (50, 80), "white").save(tmp_path / "white.png")
    Image.new("RGBA", (50, 80)).save(tmp_path / "nothing.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    (tmp_path / "folder.png").mkdir()
    bad = ["empty", "text", "cut", "white", "nothing", "bomb", "folder", "missing"]
    paths = [str(tmp_path / f"{name}.png") for name in [*bad[:4], "seven", *bad[4:]]]
    done = subprocess.run(
        [sys.executable, predict.__file__, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == len(bad)
    for name, line in zip(bad, lines):
        assert line.startswith(f"predict.py: error: {tmp_path / name}.png: ")
    rows = done.stdout.splitlines()
    assert len(rows) == 3
    assert rows[2].split("|")[1:3] == [f" {tmp_path / 'seven.png'} ", "     7 "]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "PICTURE"),
        (["a.png", "--top", "0"], "--top"),
        (["a.png", "--top", "11"], "--top"),
        (["a.png", "--model", "model9"], "--model"),
        (["a.png", "--weights", "missing.pt"], "missing.pt"),
        (["a.png", "--weights", ""], "--weights"),
        (["a.png", "--model", "model1", "--weights", "weights/model3.pt"], "weights/model3.pt"),
        (["a.png", "--colour"], "--colour"),
    ],
)
def test_bad_settings(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = predict.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert len(captured.err.splitlines()) == 1
    assert named in captured.err
    assert not captured.out


def test_plain_paper_holds_no_digit() -> None:
    with pytest.raises(UsageError, match="nothing stands out"):
        predict.to_mnist(Image.new("L", (40, 60), 128))
