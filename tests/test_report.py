"""The report's numbers against hand computation and published ones, and its command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import train
from mnist import DATA_DIR, Loader, load_mnist
from predict import classify
from run_folder import MODELS, write_state
from tools import report

PICTURES = ("confusion", "mistakes", "accuracy", "features", "receptive-field")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return MODELS["model3"]().eval()


@pytest.fixture
def run_folder(tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, as far as the report can tell, and 600 test images, to be quick."""
    monkeypatch.setattr(report, "MOST_MISTAKES", 20)
    few = tuple(part[:600] for part in load_mnist(DATA_DIR, train=False))
    monkeypatch.setattr(report, "load_mnist", lambda data_dir, train: few)
    write_state(tmp_path / "weights.pt", model.state_dict())
    return tmp_path


@pytest.fixture
def guesses() -> tuple[Tensor, Tensor, Tensor]:
    """Six images, their labels, and probabilities: right, then four mistakes, then right."""
    labels = torch.tensor([3, 4, 4, 7, 0, 1])
    probabilities = torch.full((6, 10), 0.01)
    guessed = ((3, 0.9), (9, 0.6), (9, 0.99), (2, 0.8), (6, 0.8), (1, 0.5))
    for row, (guess, confidence) in zip(probabilities, guessed):
        row[guess] = confidence
    return torch.zeros(6, 1, 28, 28, dtype=torch.uint8), labels, probabilities


def test_predictions_score_as_the_trainer_says(model: nn.Module) -> None:
    images, labels = (part[:1500] for part in load_mnist(DATA_DIR, train=False))
    loader = Loader(images, labels, train.TEST_BATCH_SIZE)
    probabilities = classify(model, images[:, 0])
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(1500))
    matrix = report.confusion_matrix(labels, probabilities.argmax(dim=1))
    _, accuracy = train.evaluate(model, loader, nn.CrossEntropyLoss())
    assert 100 * matrix.trace().item() / 1500 == pytest.approx(accuracy)


def test_confusion_matrix_has_labels_in_rows(guesses: tuple[Tensor, Tensor, Tensor]) -> None:
    _, labels, probabilities = guesses
    matrix = report.confusion_matrix(labels, probabilities.argmax(dim=1))
    expected = {(3, 3): 1, (4, 9): 2, (7, 2): 1, (0, 6): 1, (1, 1): 1}
    assert {tuple(cell): matrix[*cell].item() for cell in matrix.nonzero().tolist()} == expected


def test_confusion_picture_shades_mistakes_only() -> None:
    matrix = 1000 * torch.eye(10, dtype=torch.long)
    matrix[4, 9] = 7
    (axes,) = report.plot_confusion(matrix, "model3").axes
    assert axes.get_title() == "model3: 7 of 10,007 test digits are taken for another"
    assert np.argwhere(~axes.images[0].get_array().mask).tolist() == [[4, 9]]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(digit, digit): "1000" for digit in range(10)} | {(9, 4): "7"}


def test_mistakes_are_drawn_surest_first(guesses: tuple[Tensor, Tensor, Tensor]) -> None:
    (axes,) = report.plot_mistakes(*guesses, "model3").axes
    captions = [text.get_text() for text in axes.texts]
    assert captions == ["4 → 9  99 %", "7 → 2  80 %", "0 → 6  80 %", "4 → 9  60 %"]
    assert len(axes.images) == 4
    assert "all 4 mistakes" in axes.get_title()


def test_too_many_mistakes_are_cut_and_counted(guesses, monkeypatch) -> None:
    monkeypatch.setattr(report, "MOST_MISTAKES", 2)
    (axes,) = report.plot_mistakes(*guesses, "model3").axes
    assert len(axes.images) == 2
    assert "the 2 surest of 4 mistakes" in axes.get_title()


def test_feature_maps_are_those_of_the_network(model: nn.Module) -> None:
    image = torch.randn(1, 28, 28)
    maps = report.feature_maps(model, image)
    assert [(*part.shape, field) for part, field in maps] == [
        (1, 28, 28, 1),
        (7, 26, 26, 3),
        (7, 24, 24, 5),
        (10, 11, 11, 8),
        (10, 9, 9, 12),
        (12, 3, 3, 18),
        (16, 3, 3, 26),
        (18, 3, 3, 34),
    ]
    with torch.inference_mode():
        assert torch.equal(maps[1][0], model.block1[:3](image[None])[0])
        assert torch.equal(maps[3][0], model.block1(image[None])[0])
        logits = model.head[-1](maps[-1][0].mean(dim=(1, 2)))
        assert torch.allclose(logits, model(image[None])[0], atol=1e-6)


def test_feature_maps_of_residual_blocks_are_shown_too() -> None:
    model = MODELS["model4"]()
    image = torch.randn(1, 28, 28)
    maps = report.feature_maps(model, image)
    assert [(*part.shape, field) for part, field in maps] == [
        *[(1, 28, 28, 1), (8, 26, 26, 3), (12, 23, 23, 6), (12, 12, 12, 7), (12, 12, 12, 11)],
        *[(37, 12, 12, 11), (37, 11, 11, 17), (37, 6, 6, 19), (37, 6, 6, 27), (37, 6, 6, 35)],
    ]
    with torch.inference_mode():
        assert torch.equal(maps[5][0], model.blocks[:5](model.stem(image[None]))[0])


def test_gradients_of_a_linear_network_are_its_weights() -> None:
    linear = nn.Linear(784, 10)
    images = torch.randint(256, (7, 1, 28, 28), dtype=torch.uint8)
    loader = Loader(images, torch.zeros(7, dtype=torch.long), 3)
    gradients = report.logit_gradients(nn.Sequential(nn.Flatten(), linear), loader)
    # An input is (pixel - mean) / 0.3081.
    assert torch.allclose(gradients, linear.weight.view(10, 28, 28).abs() / 0.3081)


def test_pixels_without_gradient_are_left_white(model: nn.Module) -> None:
    """Model_3 halves 7 x 7 to 3 x 3, and reads nothing of the last two rows and columns."""
    images = torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8)
    loader = Loader(images, torch.zeros(20, dtype=torch.long), 20)
    axes = report.plot_receptive_field(model, loader, "model3").subfigs[0].axes[0]
    expected = np.ones((28, 28), dtype=bool)
    expected[:26, :26] = False
    assert np.array_equal(axes.images[0].get_array().mask, expected)
    assert "white pixels" in axes.get_xlabel()


def test_pictures_stand_beside_the_weights(run_folder: Path, capsys) -> None:
    assert report.main([str(run_folder)]) == 0
    paths = [run_folder / f"model3-{picture}.png" for picture in PICTURES]
    assert capsys.readouterr().out.split("\n") == [*map(str, paths), ""]
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width == 900
            assert len(picture.convert("L").getcolors()) > 20


def test_weights_file_and_folder_can_be_named(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "png", lambda figure: b"a picture")  # drawn above
    out = run_folder / "new" / "folder"
    assert report.main([str(run_folder / "weights.pt"), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"model3-{picture}.png" for picture in PICTURES
    )
    assert [path.name for path in run_folder.glob("*.png")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "is not there"),
        (["empty"], "empty/weights.pt is not there"),
        (["note.txt"], "is damaged"),
        (["weights.pt", "--out", "note.txt"], "--out note.txt: File exists"),
        (["weights.pt", "--digit", "3"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line(run_folder, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(run_folder)
    Path("empty").mkdir()
    Path("note.txt").write_text("no weights")
    try:
        code = report.main(arguments)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1 and message in error
    assert list(run_folder.glob("**/*.png")) == []
