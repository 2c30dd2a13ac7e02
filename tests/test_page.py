"""The page to draw on, in a headless Chromium: its networks, their input, and its controls."""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import Digits
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_export import TRAINED, Does, own_network
from torch import Tensor, nn
from torch.nn import functional as F

import predict
from cli import RunError, UsageError
from networks import load_model
from tools import export
from tools.page import build, screenshot

Browser = webdriver.Chrome
URL = build.PAGE.as_uri()

# How people write some digits: the points of each stroke, in a square of 100.
DIGITS = {
    1: ["38,22 54,5", "54,5 54,50 54,95"],
    4: ["34,5 27,30 20,58", "20,58 50,58 84,57", "66,30 64,60 62,97"],
    7: ["18,9 50,8 80,7", "80,7 62,40 46,96"],
    8: ["70,17 50,5 30,16 35,34 56,48 74,68 68,90 48,96 28,86 28,66 48,48 66,34 70,17"],
}


def strokes_of(digit: int, size=0.7, left=0.15, top=0.15) -> list[list[list[float]]]:
    """The points [x, y] of each stroke, in a part of a square from 0 to 1, y downwards."""
    strokes = [np.array([pair.split(",") for pair in text.split()]) for text in DIGITS[digit]]
    return [(stroke.astype(float) * size / 100 + [left, top]).tolist() for stroke in strokes]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser; skips where there is none, which on a hosted runner is a failure."""
    try:
        driver = screenshot.open_browser()
    except RunError as error:
        (pytest.fail if os.getenv("CI") else pytest.skip)(str(error))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Browser]:
    """The browser with the page open, and nothing drawn; it must request and report nothing."""
    screenshot.resize(browser, 1000, 800)
    browser.get(URL)
    browser.execute_script("clearAll(); past.length = 0")
    yield browser
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {event["params"]["request"]["url"] for event in sent}
    assert {url for url in urls if not url.startswith("data:")} == {URL}
    assert browser.get_log("browser") == []


def draw(browser: Browser, strokes: list[list[list[float]]]) -> None:
    """Draw on the field by events that a script sends: those of a driver take a frame each."""
    script = """
        const [pad, [strokes]] = [find("pad"), arguments];
        const {left, top, width} = pad.getBoundingClientRect();
        const send = (type, [x, y]) => pad.dispatchEvent(new PointerEvent(type, {
          pointerId: 1, pointerType: "mouse", clientX: left + x * width, clientY: top + y * width,
          button: type === "pointermove" ? -1 : 0, buttons: 1, bubbles: true,
        }));
        for (const stroke of strokes) {
          send("pointerdown", stroke[0]);
          stroke.slice(1).forEach((point) => send("pointermove", point));
          send("pointerup", stroke.at(-1));
        }"""
    browser.execute_script(script, strokes)


def shown(browser: Browser) -> str:
    """The digit that the page shows after its next update."""
    return browser.execute_async_script(
        "const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(() => done(find('digit').textContent)))"
    )


def check_agreement(browser: Browser, entry: str, network: nn.Module, images: Tensor) -> None:
    """Compares probabilities with PyTorch's; `entry` is a JavaScript expression of a network."""
    function = """
        const images = atob(arguments[0]).match(/[^]{784}/g);
        return images.map((image) => probabilities(
            network, Uint8Array.from(image, (letter) => letter.charCodeAt(0))));"""
    pixels = base64.b64encode(images.numpy().tobytes()).decode()
    found = browser.execute_script(f"const network = {entry};{function}", pixels)
    with torch.inference_mode():
        expected = export.from_pixels(network)(images.float() / 255).softmax(dim=1).numpy()
    assert np.abs(np.array(found) - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).max() > 1e-3  # it depends on the image


def write(network: nn.Module, path: Path) -> Path:
    """Writes a network as tools.export does."""
    content = export.to_onnx(export.from_pixels(network))
    facts = {"network": path.stem, "parameters": "1", "accuracy": "99.00 % of few"}
    onnx.helper.set_model_props(content, facts)
    path.write_bytes(content.SerializeToString())
    return path


def test_page_and_picture_are_up_to_date(monkeypatch) -> None:
    page = build.PAGE.read_bytes()
    assert build.parts()["digest"].encode() in page, "run python -m tools.page.build"
    picture = Image.open(screenshot.PICTURE)
    assert picture.text["page"] == hashlib.sha256(page).hexdigest(), "run tools.page.screenshot"
    assert len(page) < 600_000
    monkeypatch.setattr(predict, "MIN_PROBABILITY", 0.5)  # it is written into the page
    assert build.parts()["digest"].encode() not in page


def test_networks_of_the_page_agree_with_pytorch(opened: Browser, few: Digits) -> None:
    for number, name in enumerate(TRAINED):
        network = load_model(build.WEIGHTS / f"{name}.pt")[1]
        check_agreement(opened, f"NETWORKS[{number}]", network, few["test"][0][::10].contiguous())


def rows_of(images: Tensor) -> Tensor:
    """Ten numbers of an image, by operators that no network of the page has."""
    rows = F.pad(images, (2, -1, 0, 3), value=0.5).amax(dim=3)  # (N, 1, 31)
    rows = torch.minimum(rows, 0.5 * rows.exp()).squeeze(1)
    return rows[:, 1:-1:3].unsqueeze(1).reshape(len(images), -1)


def layers() -> nn.Module:
    """The same for layers."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=2)
    pools = nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    rest = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), nn.SiLU(), nn.LeakyReLU(0.2)
    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10), nn.LogSoftmax(dim=-1)
    return nn.Sequential(first, nn.Tanh(), *pools, *rest, *last)


def test_operators_agree_with_pytorch(opened: Browser, few: Digits, tmp_path: Path) -> None:
    used = {node["op"] for entry in build.networks() for node in entry["nodes"]}
    for network in (own_network(), Does(rows_of), layers()):
        entry = build.network(write(network, tmp_path / "own.onnx"))
        used |= {node["op"] for node in entry["nodes"]}
        images = few["test"][0][::20].contiguous()
        check_agreement(opened, f"unpacked({json.dumps(entry)})", network, images)
    assert used == build.OPERATORS


UNKNOWN = {  # to page.js, and how it is named
    "Softplus": nn.Softplus(),
    "Pad with mode reflect": nn.ReflectionPad2d(1),
    "MaxPool with dilations": nn.MaxPool2d(3, dilation=2),
    "AveragePool with count_include_pad": nn.AvgPool2d(3, padding=1),
    "Conv of 3 dimensions": nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 1, 3)),
    "MatMul of 4 dimensions": Does(lambda x: x @ x),
}


@pytest.mark.parametrize("named", UNKNOWN)
def test_what_the_page_cannot_run_is_named(named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"cannot run the node /1/\S+, {named}"):
        build.network(write(UNKNOWN[named], tmp_path / "own.onnx"))


def test_files_that_cannot_be_used_are_left_out(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(build, "WEIGHTS", tmp_path)
    assert build.main([]) == 2
    write(Does(rows_of), tmp_path / "model_rows.onnx")
    write(nn.Sequential(nn.Flatten(), nn.Linear(784, 500)), tmp_path / "model_large.onnx")
    (tmp_path / "model4.onnx").write_bytes(b"no network")
    assert [entry["name"] for entry in build.networks()] == ["model_rows"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model4.onnx", "model_large.onnx"]


def test_strokes_are_prepared_as_predict_does(opened: Browser) -> None:
    cases = [
        [[[112 * x, 112 * y, width] for x, y in stroke] for stroke in strokes_of(digit, *where)]
        for digit in DIGITS
        for width, *where in ((9, 0.7, 0.12, 0.2), (5, 0.4, 0.55, 0.05))
    ]
    script = """
        return arguments[0].map((strokes) => {
          const levels = inkOf(strokes).map((value) => Math.round(255 * value));
          const seen = toMnist(levels.map((level) => level / 255));
          return [levels, seen].map((values) => btoa(String.fromCharCode(...values)));
        });"""
    for strokes, texts in zip(cases, opened.execute_script(script, cases)):
        ink, seen = (np.frombuffer(base64.b64decode(text), dtype=np.uint8) for text in texts)
        picture = Image.fromarray(255 - ink.reshape(112, 112))
        expected = np.asarray(predict.to_mnist(picture), dtype=int)
        assert np.abs(seen.reshape(28, 28) - expected).max() <= 2, strokes  # of 255


def test_drawn_digits_are_recognised(opened: Browser) -> None:
    for digit in DIGITS:
        opened.execute_script("clearAll()")
        draw(opened, strokes_of(digit))
        assert shown(opened) == str(digit)


def test_mouse(opened: Browser) -> None:
    pad = opened.find_element(By.ID, "pad")
    half = pad.size["height"] // 3
    down = ActionChains(opened, duration=20).move_to_element_with_offset(pad, 0, -half)
    down.click_and_hold().move_by_offset(0, half).move_by_offset(0, half).release().perform()
    assert shown(opened) == "1"
    share = opened.execute_script("return find('bars').children[1].textContent")
    assert float(share[1:].split()[0]) > 50  # %
    opened.find_element(By.ID, "clear").click()
    assert shown(opened) == ""
    opened.find_element(By.ID, "undo").click()  # a clearing is taken back too
    assert shown(opened) == "1"


def test_keyboard(opened: Browser) -> None:
    draw(opened, strokes_of(1)[1:])
    draw(opened, strokes_of(7)[:1])
    assert shown(opened) != "1"
    ActionChains(opened).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
    assert shown(opened) == "1"
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert shown(opened) == ""
    for digit, button in enumerate(opened.find_elements(By.CSS_SELECTOR, "#samples button")):
        button.send_keys(Keys.ENTER)
        assert shown(opened) == str(digit)
    switch = opened.find_elements(By.CSS_SELECTOR, "#networks input")
    assert [button.get_attribute("aria-label") for button in switch] == TRAINED
    switch[-1].send_keys(Keys.ARROW_RIGHT)  # from the last to the first
    assert switch[0].is_selected() and shown(opened) == "9"
    assert opened.find_element(By.ID, "parameters").text == "13,808"
    opened.execute_async_script("setTimeout(arguments[0], 800)")
    spoken = opened.find_element(By.ID, "spoken").get_attribute("textContent")
    assert spoken.startswith("Prediction: 9, ")


def test_low_confidence_is_marked_unsure(opened: Browser) -> None:
    assert opened.execute_script("return DATA.sure") == predict.MIN_PROBABILITY
    script = "DATA.sure = arguments[0]; requestUpdate()"
    answer = opened.find_element(By.CSS_SELECTOR, ".answer span")
    draw(opened, strokes_of(1))
    for threshold, unsure in ((0.3, False), (1.01, True)):
        opened.execute_script(script, threshold)
        assert shown(opened) == "1" and answer.is_displayed() == unsure
    opened.execute_script("clearAll()")
    assert shown(opened) == "" and not answer.is_displayed()


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(320, 740, "light"), (800, 900, "dark"), (1000, 800, "light"), (1400, 900, "dark")],
)
def test_it_fits_phones_and_desktops(width: int, height: int, scheme: str, opened: Browser) -> None:
    screenshot.resize(opened, width, height, scheme)
    opened.get(URL)
    draw(opened, strokes_of(4))
    assert shown(opened) == "4"
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for place in ("pad", "bars", "digit", "undo", "clear"):  # visible while one draws
        box = opened.find_element(By.ID, place).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, place
        assert box["y"] + box["height"] <= height, place
    assert opened.execute_script("return find('bars').scrollWidth <= find('bars').clientWidth")
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) > 127) == (scheme == "light")
    boxes = """
        return [...document.querySelectorAll("body *:not(canvas, dd, #bars *)")].map((element) => {
          const {x, y, width, height} = element.getBoundingClientRect();
          return [x, y, width, height];
        });"""
    before = opened.execute_script(boxes)
    for button in opened.find_elements(By.CSS_SELECTOR, "#networks label"):
        assert button.rect["width"] >= 20  # room for a finger
        button.click()
        shown(opened)
        assert opened.execute_script(boxes) == before  # nothing moves
        accuracy = opened.find_element(By.ID, "accuracy")
        assert accuracy.rect["height"] < 30  # on one line
