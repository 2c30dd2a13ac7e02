"""Pictures of test digits and of drawn ones, and what predict.py makes of them."""

import io
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
import torch
from conftest import Digits
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import predict
from cli import UsageError
from mnist import TestTimeAugmentation
from networks import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return predict.trained_network(None, None, False)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two pictures of a drawn 7."""
    for kind in ("jpeg", "shadow"):
        (tmp_path / f"{kind}.jpg").write_bytes(pictures.picture(kind, 1007))
    return sorted(tmp_path.glob("*.jpg"))


def digits(row: dict[str, Any]) -> str:
    return "".join(str(digit["top"][0]["digit"]) for digit in row["digits"])


def output(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What the command line prints as JSON: all ten predictions for each picture."""
    assert predict.main([*map(str, arguments), "--json", "--top", "10"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_every_kind_of_picture_is_read(kind: str, network: nn.Module) -> None:
    """Four digits by four hands, other digits for each kind."""
    found = {}
    for hand in range(100, 104):
        digit = (pictures.KINDS.index(kind) + 3 * hand) % 10
        content = io.BytesIO(pictures.picture(kind, 10 * hand + digit))
        found[str(digit)] = predict.read(Image.open(content), network)[1].text
    assert [*found.values()] == [*found]


@pytest.mark.parametrize("kind", pictures.SEVERAL)
def test_every_kind_of_several_digits_is_read(kind: str, network: nn.Module) -> None:
    drawn = [pictures.several(kind, seed) for seed in range(1000, 1040, 10)]
    found = [predict.read(picture, network)[1].text.split() for _, picture in drawn]
    right = [rows == lines for (rows, _), lines in zip(drawn, found)]
    assert sum(right) >= 3, found


def test_several_digits_are_printed_line_by_line(tmp_path: Path, capsys) -> None:
    rows, path = ["31", "4159", "265"], tmp_path / "sheet.png"
    picture = pictures.blend(pictures.sheet(rows, 1000))
    picture.save(path)
    (row,) = output([path], capsys)
    assert digits(row) == "".join(rows) and row["lines"] == rows and row["sure"]
    assert predict.MIN_CONFIDENCE < row["confidence"] <= 1
    left, top, right, bottom = np.array(row["digits"][2]["box"]) * (2 * picture.size)  # the 4
    assert left == pytest.approx(30, abs=3) and top == pytest.approx(30 + 96, abs=8)
    assert right < 100 and bottom == pytest.approx(top + 60, abs=5)
    assert predict.main([str(path), "--show"]) == 0
    out, err = capsys.readouterr()
    assert "| 31 4159 265 |" in out and err == f"predict.py: wrote {path}-seen.png\n"
    seen = np.asarray(Image.open(f"{path}-seen.png"))
    assert seen.shape[1::-1] == picture.size and (seen == (255, 0, 0)).all(axis=2).sum() > 900


def test_confidence_is_honest(network: nn.Module) -> None:
    """Few right readings are unsure, and most of what is no digit is."""

    def sure(seeds: range) -> float:
        drawn = (pictures.blend(np.pad(pictures.ink_of(seed, 60), 15)) for seed in seeds)
        return np.mean([predict.read(one, network)[1].sure for one in drawn])

    assert sure(range(1000, 1030)) >= 0.95
    assert sure(range(-1030, -1000)) <= 0.5


@pytest.mark.parametrize("size", [30, 60, 120])
def test_a_printed_letter_is_no_sure_digit(size: int, network: nn.Module) -> None:
    """An A resembles a 4; the font is sans serif."""
    picture = Image.new("L", (2 * size, 2 * size), 255)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text((size, size), "A", 0, font, anchor="mm")
    assert not predict.read(picture, network)[1].sure


def test_a_test_digit_stays_as_it_is(mnist: Digits) -> None:
    images = mnist["test"][0][:60, 0]
    seen = torch.stack([predict.to_mnist(Image.fromarray(image.numpy())) for image in images])
    assert (seen.float() - images.float()).abs().mean() < 1  # of 255


def test_a_digit_is_fitted_and_centred_as_mnist_is() -> None:
    image = torch.from_numpy(predict.fit_and_centre(np.ones((40, 16)))).float()
    rows, columns = image.nonzero().T
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (20, 8)
    assert image.max() == 255
    for axis in (0, 1):  # pixels begin at their index, so the middle of the image is 13.5
        mass = image.sum(dim=axis)
        assert abs((mass * torch.arange(28)).sum() / mass.sum() - 13.5) <= 0.5


def test_a_large_picture_is_read_as_a_small_one(mnist: Digits) -> None:
    """12 megapixels with a digit of a tenth of the width; JPEG and EXIF are kinds of their own."""
    sheet = Image.new("L", (4000, 3000), 255)
    seven = Image.fromarray(255 - mnist["test"][0][0, 0].numpy())
    sheet.paste(seven.resize((400, 400), Image.Resampling.BICUBIC), (3100, 700))
    small = sheet.crop((2900, 500, 3500, 1100)).resize((300, 300), Image.Resampling.BOX)
    difference = predict.to_mnist(sheet).float() - predict.to_mnist(small).float()
    assert sheet.size == (4000, 3000)  # the caller's picture stays as it is
    assert difference.abs().mean() < 4  # of 255


TTA = {"model": "model1", "tta": True}


@pytest.mark.parametrize("options", [{}, TTA, {"weights": predict.WEIGHTS_DIR / "model2.pt"}])
def test_a_program_gets_what_the_command_line_says(options, photos: list[Path], capsys) -> None:
    named = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
    for path, row in zip(photos, output([*photos, *named], capsys)):
        said = [
            one["confidence"]
            for one in sorted(row["digits"][0]["top"], key=lambda one: one["digit"])
        ]
        with Image.open(path) as picture:
            for source in (path, str(path), picture):
                found = predict.probabilities(source, **options)
                assert found == pytest.approx(said, abs=1e-5)


def test_tta_averages_nine_views(photos: list[Path]) -> None:
    _, model = load_model(predict.WEIGHTS_DIR / f"{predict.DEFAULT_MODEL}.pt")
    seen = torch.stack([predict.to_mnist(path) for path in photos])
    found = torch.tensor([predict.probabilities(path, tta=True) for path in photos])
    expected = predict.classify(TestTimeAugmentation(model).eval(), seen)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, predict.classify(model.eval(), seen), atol=1e-4)


def test_show_writes_what_the_network_saw(photos: list[Path], tmp_path: Path) -> None:
    path = shutil.copy(photos[0], tmp_path / "photo.jpg")
    assert predict.main([str(path), "--show"]) == 0
    seen = torch.from_numpy(np.array(Image.open(tmp_path / "photo.jpg-seen.png")))
    assert seen.shape == (280, 280) and torch.equal(seen[5::10, 5::10], predict.to_mnist(path))


def test_bad_pictures_leave_the_others(tmp_path: Path, mnist: Digits, capsys) -> None:
    seven = Image.fromarray(mnist["test"][0][0, 0].numpy())
    contents = {
        "empty: not a picture, or damaged": b"",
        "cut: not a picture, or damaged": pictures.encode(seven.resize((280, 280)))[:600],
        "white: no digit found: too": pictures.encode(Image.new("RGB", (50, 80), "white")),
        "clear: nothing but transparency": pictures.encode(Image.new("RGBA", (50, 80))),
        "bomb: larger than 89 million pixels": pictures.encode(Image.new("1", (10_000, 10_000))),
        "pdf: a PDF; export its page as PNG": b"%PDF-1.7 ...",
        "svg: an SVG drawing; export it as PNG": b'<?xml version="1.0"?>\n<svg width="9">',
        "folder: a folder; name the pictures in it": None,
        "missing: No such file or directory": None,
    }
    (tmp_path / "folder").mkdir()
    names = [line.partition(":")[0] for line in contents]
    for name, content in zip([*names, "seven"], [*contents.values(), pictures.encode(seven)]):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    assert predict.main([str(tmp_path / name) for name in [*names, "seven"]]) == 2
    out, err = capsys.readouterr()
    for line, expected in zip(err.splitlines(), contents, strict=True):
        assert line.startswith(f"predict.py: error: {tmp_path / expected}")
    rows = out.splitlines()
    assert len(rows) == 3 and rows[2].startswith(f"| {tmp_path / 'seven'} |      7 | ")


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert predict.main([str(tmp_path / "pipe"), "/dev/zero"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith(" is a pipe or a device; name a file") for line in lines] == [True] * 2


def test_heic_needs_a_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "photo").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UsageError, match=r"HEIC; run pip install pillow-heif, or export"):
        predict.to_mnist(tmp_path / "photo")


def test_the_first_frame_with_ink_counts(tmp_path: Path) -> None:
    seven = pictures.blend(np.pad(pictures.ink_of(1007, 60), 15))
    blank = Image.new("L", seven.size, 255)
    blank.save(tmp_path / "late.gif", save_all=True, append_images=[blank, seven])
    assert np.argmax(predict.probabilities(tmp_path / "late.gif")) == 7


def test_a_picture_that_cannot_be_written_loses_no_prediction(tmp_path: Path, capsys) -> None:
    path = tmp_path / f"{'7' * 245}.png"
    pictures.blend(np.pad(pictures.ink_of(1007, 60), 15)).save(path)
    assert predict.main([str(path), "--show"]) == 2
    out, err = capsys.readouterr()
    assert "|      7 |" in out and err.count("\n") == 1 and "-seen.png: File name too long" in err


def test_phones_make_large_pictures_and_damaged_exif(tmp_path: Path, capfd) -> None:
    """108 megapixels are read at a reduced size; EXIF that nobody can read turns no picture."""
    drawn = pictures.blend(np.pad(pictures.ink_of(1007, 60), 15))
    content = pictures.encode(drawn.resize((9000, 12000)), "JPEG")
    (tmp_path / "large.jpg").write_bytes(content)
    (tmp_path / "exif.jpg").write_bytes(
        pictures.encode(drawn, "JPEG", exif=b"Exif\0\0MM\0*junk" * 9)
    )
    assert predict.main([str(tmp_path / name) for name in ("large.jpg", "exif.jpg")]) == 0
    out, err = capfd.readouterr()
    assert out.count("|      7 |") == 2 and not err


def test_a_number_far_beyond_the_others_hides_no_digit() -> None:
    for level in (-1e13, -np.inf):
        drawn = np.array(pictures.blend(np.pad(pictures.ink_of(1003, 60), 15)).convert("F"))
        drawn[0, 0] = level
        assert int(np.argmax(predict.probabilities(Image.fromarray(drawn)))) == 3


def test_a_program_gets_one_kind_of_error(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageError, match=r"missing\.png: No such file"):
        predict.probabilities(str(tmp_path / "missing.png"))
    floats = np.full((40, 60), 3e38, dtype=np.float32)
    floats[10:30, 28:32] = (-3e38, np.nan, np.inf, -np.inf)
    for picture in (Image.new("L", (40, 60), 128), Image.fromarray(floats)):
        with pytest.raises(UsageError, match=r"^no digit found"):
            predict.probabilities(picture)
    monkeypatch.setattr(predict, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(UsageError, match=r"train\.py --model model2\), .* --weights runs/model2-"):
        predict.probabilities(Image.new("L", (40, 60)), model="model2")


BAD = ["", "--top 0", "--top 11", "--model model9", "--weights missing.pt"]


@pytest.mark.parametrize("options", [*BAD, "--model model1 --weights weights/model3.pt"])
def test_bad_settings(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a.png", *options.split()] if options else []
    with suppress(SystemExit):
        assert predict.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and (words or ["PICTURE"])[-1] in err
