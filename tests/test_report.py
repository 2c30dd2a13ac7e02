"""The report's pictures against hand computation, and its command line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import train
from cli import UsageError
from curves import table_row
from files import write_state
from mnist import MEAN, STD, Loader
from networks import get_model
from run_folder import read_config, read_metrics
from tools import hand_in, report

PICTURES = ("confusion", "mistakes", "accuracy", "features", "receptive-field", "grad-cam")
HANDED_IN = (*PICTURES, "curves", "augmented")


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor, Tensor]:
    """Six images, their labels, and probabilities: right, then four mistakes, then right."""
    labels = torch.tensor([3, 4, 4, 7, 0, 1])
    probabilities = torch.full((6, 10), 0.01)
    predicted = ((3, 0.9), (9, 0.6), (9, 0.99), (2, 0.8), (6, 0.8), (1, 0.5))
    for row, (digit, confidence) in zip(probabilities, predicted):
        row[digit] = confidence
    return torch.zeros(6, 1, 28, 28, dtype=torch.uint8), labels, probabilities


def test_confusion_has_labels_in_rows_and_shades_mistakes(predictions) -> None:
    _, labels, probabilities = predictions
    matrix = report.confusion_matrix(labels, probabilities.argmax(dim=1))
    expected = {(3, 3): 1, (4, 9): 2, (7, 2): 1, (0, 6): 1, (1, 1): 1}
    assert {tuple(cell): matrix[*cell].item() for cell in matrix.nonzero().tolist()} == expected
    (axes,) = report.plot_confusion(matrix, "model3").axes
    assert axes.get_title() == "model3: 4 of 6 digits are misclassified"
    shaded = np.argwhere(~axes.collections[0].get_array().mask).tolist()
    assert shaded == [[0, 6], [4, 9], [7, 2]]


@pytest.mark.parametrize("most", [500, 2])
def test_the_most_confident_mistakes_are_drawn_first(predictions, most: int) -> None:
    (axes,) = report.plot_mistakes(*predictions, "model3", most).axes
    captions = [text.get_text() for text in axes.texts]
    assert captions == ["4 → 9  99 %", "7 → 2  80 %", "0 → 6  80 %", "4 → 9  60 %"][:most]
    assert len(axes.images) == len(captions)
    assert f"model3: {'2 of ' * (most == 2)}4 mistakes, most" in axes.get_title()


def test_feature_maps_are_those_that_the_layers_read() -> None:
    model, image = get_model("model3").eval(), torch.randn(1, 28, 28)
    (title, filters), *rows = report.feature_maps(model, image)
    assert title == "7 filters of the first layer"
    assert torch.equal(filters, model.block1[0].weight[:, 0])
    expected = "7.26.3 7.24.5 10.11.8 10.9.12 12.3.18 16.3.26 18.3.34"  # channels, size, field
    for row, text in zip(rows, expected.split(), strict=True):
        count, size, field = text.split(".")
        assert row[0] == f"{count} maps of {size} x {size}, receptive field {field} px"
        assert row[1].shape == (int(count), int(size), int(size))
    with torch.inference_mode():
        assert torch.equal(rows[0][1], model.block1[:3](image[None])[0])
        logits = model.head[-1](rows[-1][1].mean(dim=(1, 2)))
        assert torch.allclose(logits, model(image[None])[0], atol=1e-6)
    wide = nn.Sequential(nn.Conv2d(1, 70, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(11830, 10))
    texts, maps = zip(*report.feature_maps(wide, image))  # at most 64 of a layer
    assert texts[1] == "64 of 70 maps of 26 x 26, receptive field 3 px"
    assert [len(each) for each in maps] == [64, 64]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # has a picture without maps
    assert len(report.plot_features(linear, image, "model_small").axes) == 1


@pytest.mark.parametrize(("layer", "depth"), [(None, 7), ("block3.4", 5)])
def test_grad_cam_against_hand_computation(layer: str | None, depth: int) -> None:
    """Behind block3 stand a mean of 3 x 3 and a linear layer; behind block3.4 a ReLU, in place."""
    torch.manual_seed(0)
    model, images = get_model("model3").eval(), torch.randn(5, 1, 28, 28)
    with torch.inference_mode():
        weights = model.head[-1].weight[model(images).argmax(dim=1)]
        maps = model.block3[:depth](model.block2(model.block1(images)))
    passed = 1 if depth == 7 else (maps > 0).float().mean(dim=(2, 3))  # by the ReLU
    expected = torch.einsum("nchw,nc->nhw", maps, weights * passed).relu()
    expected = F.interpolate(expected[:, None], (28, 28), mode="bilinear")[:, 0]
    name, found = report.grad_cam(model, images, layer)
    assert name == (layer or "block3") and found.amax(dim=(1, 2)).tolist() == [1] * 5
    assert torch.allclose(found, expected / expected.amax(dim=(1, 2), keepdim=True), atol=1e-5)


@pytest.mark.parametrize("layer", ["block9", "head"])
def test_grad_cam_of_what_makes_no_maps(layer: str) -> None:
    with pytest.raises(UsageError, match=f"--grad-cam {layer}: .*; there are block1.0, .*head.0$"):
        report.grad_cam(get_model("model3"), torch.zeros(1, 1, 28, 28), layer)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # has no such picture
    assert report.grad_cam(linear, torch.zeros(1, 1, 28, 28), None) is None


def test_gradients_of_a_linear_network_are_its_weights() -> None:
    linear = nn.Linear(784, 10)
    images = torch.randint(256, (7, 1, 28, 28), dtype=torch.uint8)
    loader = Loader(images, torch.zeros(7, dtype=torch.long), 3)
    gradients = report.logit_gradients(nn.Sequential(nn.Flatten(), linear), loader)
    # An input is (pixel - mean) / 0.3081.
    assert torch.allclose(gradients, linear.weight.view(10, 28, 28).abs() / 0.3081)


def test_pixels_without_gradient_are_left_white() -> None:
    """Model_3 halves 7 x 7 to 3 x 3, and reads nothing of the last two rows and columns."""
    images = torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8)
    loader = Loader(images, torch.zeros(20, dtype=torch.long), 20)
    figure = report.plot_receptive_field(get_model("model3"), loader, "model3")
    expected = np.ones((28, 28), dtype=bool)
    expected[:26, :26] = False
    assert np.array_equal(figure.subfigs[0].axes[0].images[0].get_array().mask, expected)


def test_report_md_holds_all_of_a_run(small_data, tmp_path, monkeypatch, capsys) -> None:
    settings = ["--holdout=200", "--epochs=1", "--recipe=classic", "--seed=7", "--challenge=20k"]
    places = ["--data-dir", str(small_data), "--out-dir", str(tmp_path), "--device", "cpu"]
    assert train.main([*settings, *places, "--quiet"]) == 0
    (folder,) = tmp_path.iterdir()
    titles, png = [], report.png
    monkeypatch.setattr(
        report, "png", lambda x: titles.extend(each.get_title() for each in x.axes) or png(x)
    )
    assert report.main([str(folder), "--hand-in"]) == 0
    text = (folder / "report.md").read_text("utf-8")
    rows = [table_row(record) for record in read_metrics(folder)]
    parts = ["Target ", "Total params: 7,784", "- [x] BatchNorm: 7", "| convolution 16 to 18 "]
    parts += [f"commit {read_config(folder)['commit']},", "| rotation | 7.0 |"]
    parts += ["recipe classic+epochs=1, seed 7, commit", "Checklist, challenge 20k"]
    wrong = round(200 - 2 * read_metrics(folder)[0]["acc"])
    assert titles[0] == f"model3: {wrong} of 200 digits are misclassified"
    assert [part for part in rows + parts if part not in text] == []
    linked = re.findall(r"!\[.*\]\((.*)\)", text)
    assert sorted(linked) == sorted(f"model3-{picture}.png" for picture in HANDED_IN)
    for picture in linked:
        with Image.open(folder / picture) as image:
            assert image.width == 900 or picture == "model3-curves.png"

    run = hand_in.read_run(folder)
    (axes,) = hand_in.plot_augmented(run).axes
    grid = 1 - torch.tensor(axes.images[0].get_array()[3:, 3:])  # four rows of tiles, 31 apart
    before, after = ((255 * grid[top:, :28][:28]).round() for top in (0, 31))
    assert (run.loader.images[:, 0] == before).all(dim=(1, 2)).any()
    first = next(iter(run.loader))[0][0, 0] * STD + MEAN
    assert torch.equal((255 * first).round(), after) and not torch.equal(before, after)
    capsys.readouterr()
    (folder / "weights.pt").unlink()
    assert report.main([str(folder), "--hand-in"]) == 2
    assert "not finished" in capsys.readouterr().err


def test_pictures_stand_where_they_are_asked_for(few, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "load_mnist", lambda data_dir, train: few["test"])
    write_state(tmp_path / "weights.pt", get_model("model3").state_dict())
    out = tmp_path / "new" / "folder"
    monkeypatch.setattr(report, "png", lambda figure: b"")  # painted above
    assert report.main([str(tmp_path / "weights.pt"), "--out", str(out)]) == 0
    paths = [out / f"model3-{picture}.png" for picture in PICTURES]
    assert capsys.readouterr().out.split("\n") == [*map(str, paths), ""]
    assert {*out.iterdir()} == {*paths}
    assert report.main([str(tmp_path / "missing")]) == 2
    assert "missing: No such file" in capsys.readouterr().err
