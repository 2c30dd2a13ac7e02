"""The page to draw on, in a headless Chromium: its networks, its eyes, its manners."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Digits
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_export import TRAINED, own_network
from torch import nn

import predict
from mnist import DATA_DIR, load_mnist
from networks import load_model
from tools import tables
from tools.page import build

pytestmark = pytest.mark.usefixtures("one_thread")
Browser = webdriver.Chrome

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSERS += ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)
URL = build.PAGE.as_uri()

# How people write the ten digits: the points of each stroke, in a square of 100.
DIGITS = [
    ["50,5 25,20 18,50 28,85 50,96 75,82 82,50 73,18 50,5"],
    ["38,22 54,5", "54,5 54,50 54,95"],
    ["22,25 35,8 58,5 75,18 74,38 52,65 22,93", "22,93 50,93 82,92"],
    ["24,14 45,4 68,10 73,28 58,43 42,47", "42,47 66,52 78,70 66,90 44,96 22,86"],
    ["34,5 27,30 20,58", "20,58 50,58 84,57", "66,30 64,60 62,97"],
    ["32,8 29,25 26,44", "26,44 48,38 70,47 77,68 64,90 42,96 22,87", "32,8 55,7 76,5"],
    ["66,5 42,22 26,52 27,80 46,96 68,88 74,70 60,54 40,57 27,74"],
    ["18,9 50,8 80,7", "80,7 62,40 46,96"],
    ["70,17 50,5 30,16 35,34 56,48 74,68 68,90 48,96 28,86 28,66 48,48 66,34 70,17"],
    ["72,30 60,8 38,8 26,26 34,46 54,46 72,30", "72,30 70,62 62,96"],
]


def strokes_of(digit: int, size=0.7, left=0.15, top=0.15) -> list[list[list[float]]]:
    """The points [x, y] of each stroke, in a part of a square from 0 to 1, y downwards."""
    strokes = [[pair.split(",") for pair in text.split()] for text in DIGITS[digit]]
    return [
        [[left + size * int(x) / 100, top + size * int(y) / 100] for x, y in stroke]
        for stroke in strokes
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium or Chrome that logs what it asks for; skips where there is none.

    On a hosted runner that is a failure: there the page is to be tested.
    """
    give_up = pytest.fail if os.getenv("CI") else pytest.skip
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    # Hosted runners keep the driver that fits their Chrome in a folder of its own.
    path = os.pathsep.join(filter(None, [os.getenv("CHROMEWEBDRIVER"), os.getenv("PATH")]))
    driver_path = shutil.which("chromedriver", path=path)
    if found is None or driver_path is None:
        give_up("no Chromium or Chrome here, or no chromedriver: the page is not tested")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument("--window-size=1000,800")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options, Service(driver_path))
    except WebDriverException as error:
        give_up(f"the browser does not start: {str(error).splitlines()[0]}")
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Browser]:
    """The browser with the page open, and nothing drawn.

    Whatever a test does with it, the page asks for nothing but itself and has no complaint.
    """
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
    """The digit that the page shows once it has had time for a guess."""
    return browser.execute_async_script(
        "const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(() => done(find('digit').textContent)))"
    )


def guesses(browser: Browser, network: str, images: torch.Tensor) -> np.ndarray:
    """Probabilities (N, 10) that a network, a JavaScript expression, gives images (N, 28, 28)."""
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const [network, result] = [%s, []];
        for (let at = 0; at < bytes.length; at += 784) {
          result.push(probabilities(network, bytes.subarray(at, at + 784)));
        }
        return JSON.stringify(result);"""
    pixels = base64.b64encode(images.numpy().tobytes()).decode()
    return np.array(json.loads(browser.execute_script(script % network, pixels)))


def test_the_page_is_up_to_date_and_its_weights_are_those_on_record(monkeypatch, capsys) -> None:
    found = build.networks(*load_mnist(DATA_DIR, train=False))
    assert capsys.readouterr().out == ""  # none is left out
    monkeypatch.setattr(build, "networks", lambda *arguments: found)
    assert build.main(["--check"]) == 0
    assert build.PAGE.stat().st_size < 270_000
    runs = tables.read_records().query("seed == 42 and holdout == 0")
    on_record = tables.under_one_recipe(runs).set_index("model")["acc"]
    for network in found:
        # Another processor rounds otherwise: a digit between two guesses may fall to another side.
        accuracy = float(network["accuracy"])
        assert accuracy == pytest.approx(on_record[network["name"]], abs=0.011)
    monkeypatch.setattr(build, "networks", lambda *arguments: [])
    assert build.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err


class Does(nn.Module):
    """A network that does what a function does."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Softplus(), nn.Conv2d(1, 1, 3, dilation=2), nn.Conv2d(1, 1, (3, 1))),
        *(nn.Conv2d(1, 1, 3, padding="same"), nn.MaxPool2d(3, padding=1), nn.InstanceNorm2d(1)),
        *(nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(2), nn.Linear(28, 28)),
        *(
            Does(nn.functional.dropout),
            Does(torch.squeeze),
            Does(lambda x: x[:, :, 1:3, 2:3].mean(1)),
        ),
        Does(lambda x: torch.ones(1, 1, 28, 1).expand_as(x)),
        Does(lambda x: x.repeat(2, 1, 1, 1)),
        Does(lambda x: torch.cat([x, torch.ones(1, 1, 28, 28)])),
        Does(lambda x: ((y := x * 1), y[..., 1:].mul_(2), y + 1)[-1]),  # a part in place
        Does(lambda x: x.repeat(1, 2, 1, 1).permute(0, 2, 3, 1).flatten(1)),
        Does(
            lambda x: nn.functional.grid_sample(x, torch.zeros(1, 28, 28, 2), align_corners=False)
        ),
    ],
)
def test_what_the_page_cannot_run_is_named(layer: nn.Module) -> None:
    with pytest.raises(build.UsageError, match=r"page\.js has no code for \w+ "):
        build.layers(layer)


def test_networks_that_cannot_be_run_are_left_out(mnist, tmp_path, monkeypatch, capsys) -> None:
    """One that page.js has no code for, and damaged weights."""
    silu = nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(784, 10))

    def load(path: Path, name: str) -> tuple[str, nn.Module]:
        return (name, silu) if name == "model_silu" else load_model(path, name)

    monkeypatch.setattr(build, "load_model", load)
    monkeypatch.setattr(build, "WEIGHTS", tmp_path)
    shutil.copy(build.ROOT / "weights" / "model3.pt", tmp_path)
    for name in ("model_silu", "model4"):
        (tmp_path / f"{name}.pt").write_bytes(b"no weights")
    few = [part[:100] for part in mnist["test"]]
    (entry,) = build.networks(*few)
    assert (entry["name"], entry["parameters"]) == ("model3", 7784)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out: ")[0] for line in lines] == ["model4.pt", "model_silu.pt"]
    assert "silu" in lines[-1]


@pytest.mark.parametrize("name", [*TRAINED, "own"])
def test_networks_read_as_pytorch_does(name: str, opened: Browser, mnist: Digits) -> None:
    images, network = mnist["test"][0][::100, 0].contiguous(), own_network()
    script = f"{{layers: unpacked({json.dumps(build.layers(network))})}}"
    if name != "own":
        _, network = load_model(build.WEIGHTS / f"{name}.pt")
        script = f"NETWORKS.find((entry) => entry.name === '{name}')"
    expected, found = predict.classify(network, images).numpy(), guesses(opened, script, images)
    assert np.abs(found - expected).max() < 1e-3
    assert np.ptp(expected, axis=0).max() > 0.01  # it does not say the same of all of them


def test_several_images_of_one_and_what_is_not_the_answer(opened: Browser, mnist: Digits) -> None:
    """Copies in a batch, with numbers of their own; a sum in place; a head that nobody reads."""
    torch.manual_seed(0)
    linear = nn.Linear(784, 10)

    def forward(x: torch.Tensor) -> torch.Tensor:
        copies = torch.cat([x, x.relu(), x + 1]) * torch.tensor([0.5, 2, -1]).view(3, 1, 1, 1)
        first, last = linear(copies[::2].flatten(1)).chunk(2)
        total = torch.zeros(len(first), 10)
        total += last - 2 * first
        linear(x.flatten(1) - 3)
        return total

    images = mnist["test"][0][::500, 0].contiguous()
    network = Does(lambda x: torch.cat([forward(image[None]) for image in x]))
    script = f"{{layers: unpacked({json.dumps(build.layers(Does(forward)))})}}"
    expected, found = predict.classify(network, images).numpy(), guesses(opened, script, images)
    assert np.abs(found - expected).max() < 1e-3


def test_strokes_are_prepared_as_predict_does(opened: Browser) -> None:
    cases = [
        [[[112 * x, 112 * y, width] for x, y in stroke] for stroke in strokes_of(digit, *where)]
        for digit in range(10)
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
    for digit in range(10):
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
    opened.execute_async_script("setTimeout(arguments[0], 800)")  # for those who do not see it
    assert opened.find_element(By.ID, "spoken").get_attribute("textContent").startswith("Reads 9, ")


@pytest.mark.parametrize(("width", "height", "scheme"), [(360, 740, "light"), (1400, 900, "dark")])
def test_it_fits_phones_and_desktops(width: int, height: int, scheme: str, opened: Browser) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    colour = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colour})
    opened.get(URL)
    draw(opened, strokes_of(4))
    assert shown(opened) == "4"
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for place in ("pad", "bars", "digit", "undo", "clear"):  # seen while one draws
        box = opened.find_element(By.ID, place).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, place
        assert box["y"] + box["height"] <= height, place
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) > 127) == (scheme == "light")
