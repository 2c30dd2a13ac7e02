"""The page to draw on, in a headless Chromium: its networks, its eyes, its manners."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Digits
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_export import small_network

import predict
from mnist import Loader
from run_folder import MODELS, load_weights
from tools import page
from tools.folding import folded

pytestmark = pytest.mark.usefixtures("one_thread")
Browser = webdriver.Chrome
Stroke = np.ndarray  # points (N, 2) in a square from 0 to 1, y downwards

TRAINED = [name for name in MODELS if (page.ROOT / "weights" / f"{name}.pt").exists()]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_BROWSER = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
URL = page.PAGE.as_uri()
FRAME = 16  # ms: screens show some 60 pictures a second

# How people write the ten digits: points on a curve for each stroke, in a square of 100.
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

# Of each style: the pointer, its pressure, and the part of the field: size, left, top.
STYLES = {
    "plain": ("mouse", 0.5, (0.70, 0.15, 0.15)),
    "thick": ("pen", 1.0, (0.74, 0.13, 0.13)),
    "thin": ("pen", 0.05, (0.70, 0.14, 0.16)),
    "large": ("mouse", 0.5, (0.92, 0.04, 0.04)),
    "small": ("touch", 0.5, (0.40, 0.30, 0.30)),
    "off-centre": ("mouse", 0.5, (0.50, 0.46, 0.03)),
}


def strokes_of(digit: int) -> list[Stroke]:
    """The digit as it is drawn: curves through the points (Catmull and Rom, 1974)."""
    strokes = []
    for text in DIGITS[digit]:
        knots = np.array([pair.split(",") for pair in text.split()], dtype=float) / 100
        padded = np.concatenate([knots[:1], knots, knots[-1:]])
        points = [knots[:1]]
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:]):
            t = np.array([[0.5], [1.0]])
            bend = 2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)
            points.append(b + t / 2 * (c - a + t * bend))
        strokes.append(np.concatenate(points))
    return strokes


def placed(stroke: Stroke, where: tuple[float, float, float]) -> Stroke:
    """The stroke in a part of the drawing field: its size, left and top, of 1."""
    size, *corner = where
    return stroke * size + np.array(corner)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium or Chrome that logs what it asks for; skips where there is none.

    On a hosted runner that is a failure: there the page is to be tested.
    """
    give_up = pytest.fail if os.getenv("CI") else pytest.skip
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    found = found or (str(MAC_BROWSER) if MAC_BROWSER.exists() else None)
    if found is None:
        give_up("no Chromium or Chrome here: the page is not tested")
    # Hosted runners keep the driver that fits their Chrome in a folder of its own.
    path = os.pathsep.join(filter(None, [os.getenv("CHROMEWEBDRIVER"), os.getenv("PATH")]))
    driver_path = shutil.which("chromedriver", path=path)
    if driver_path is None:
        give_up("no chromedriver here: the page is not tested")
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
    """The browser with the page open, on a desktop by day, and nothing drawn.

    Whatever a test does with it, the page asks for nothing but itself and has no complaint.
    """
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(URL)
    browser.execute_script("clearAll(); past.length = 0")
    yield browser
    assert asked_for(browser) == {URL}
    assert browser.get_log("browser") == []


def asked_for(browser: Browser) -> set[str]:
    """The addresses that were asked for since this was last called; data are none."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {event["params"]["request"]["url"] for event in sent}
    return {url for url in urls if not url.startswith("data:")}


def draw(
    browser: Browser, strokes: list[Stroke], kind: str = "mouse", pressure: float = 0.5
) -> None:
    """Draw strokes, in a square from 0 to 1, on the field by events of a pointer."""
    pad = browser.execute_script(
        "find('pad').scrollIntoView({block: 'nearest'}); return find('pad').getBoundingClientRect()"
    )
    pointer = PointerInput(kind, kind)
    builder = ActionBuilder(browser, mouse=pointer, duration=0)
    for stroke in strokes:
        corner = np.array([pad["x"], pad["y"]])
        places = (corner + stroke * pad["width"]).round().astype(int).tolist()
        action = builder.pointer_action
        action.move_to_location(*places[0], pressure=pressure)
        action.pointer_down(pressure=pressure)
        for place in places[1:]:
            action.move_to_location(*place, pressure=pressure)
        action.pointer_up()
    builder.perform()


def draw_fast(browser: Browser, strokes: list[Stroke], kind: str, pressure: float) -> None:
    """The same by events that a script sends: a driver waits for a picture after each."""
    script = """
        const [pad, [strokes, pointerType, pressure]] = [find("pad"), arguments];
        const {left, top, width} = pad.getBoundingClientRect();
        const send = (type, [x, y]) => pad.dispatchEvent(new PointerEvent(type, {
          pointerId: 1, pointerType, pressure, clientX: left + x * width, clientY: top + y * width,
          button: type === "pointermove" ? -1 : 0, buttons: 1, bubbles: true,
        }));
        for (const stroke of strokes) {
          send("pointerdown", stroke[0]);
          stroke.slice(1).forEach((point) => send("pointermove", point));
          send("pointerup", stroke.at(-1));
        }"""
    browser.execute_script(script, [stroke.tolist() for stroke in strokes], kind, pressure)


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


def task_seconds(browser: Browser) -> float:
    """What the page's main thread has computed so far."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return {metric["name"]: metric["value"] for metric in metrics}["TaskDuration"]


# ------------------------------------------------------------------------------ the file


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert page.PAGE.stat().st_size < 150_000


def test_a_stale_page_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "SAMPLES", page.SAMPLES[:9])
    assert page.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err


def test_what_the_page_cannot_run_is_named() -> None:
    for layer in (
        torch.nn.Softplus(),
        torch.nn.Conv2d(1, 1, 3, dilation=2),
        torch.nn.Conv2d(1, 1, (3, 1)),
        torch.nn.Conv2d(1, 1, 3, padding="same"),
        torch.nn.MaxPool2d(3, padding=1),
    ):
        with pytest.raises(page.UsageError, match="no code for"):
            page.layers(layer)


def test_compact_leaves_the_code() -> None:
    source = "/* What\n   for. */\n\n  a(); // why\n  // because\n  /** More. */\n  b(/x/);\n"
    assert page.compact(source) == "a(); // why\nb(/x/);"
    with pytest.raises(page.UsageError, match="would be lost"):
        page.compact("/* why */ a();\nb();")


# -------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("name", TRAINED)
def test_networks_read_as_pytorch_does(name: str, opened: Browser, mnist: Digits) -> None:
    images = mnist["test"][0][::10, 0].contiguous()
    _, model = load_weights(page.ROOT / "weights" / f"{name}.pt", name)
    expected = predict.classify(model, images).numpy()
    found = guesses(opened, f"NETWORKS.find((entry) => entry.name === '{name}')", images)
    assert np.abs(found - expected).max() < 1e-3
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_depthwise_and_residual_layers(opened: Browser, mnist: Digits) -> None:
    images = mnist["test"][0][:20, 0]
    network = small_network()
    with torch.inference_mode():
        normalised, _ = next(iter(Loader(images[:, None], torch.zeros(20), 20)))
        expected = network(normalised).softmax(dim=1).numpy()
    layers = json.dumps(page.layers(folded(network)))
    found = guesses(opened, f"{{layers: unpacked({layers})}}", images)
    assert np.abs(found - expected).max() < 1e-3
    assert np.ptp(expected, axis=0).max() > 0.01  # it does not say the same of all of them


def test_a_guess_takes_less_than_a_frame(opened: Browser) -> None:
    """By the processor time of the page's thread, so that other processes do not count."""
    draw(opened, [placed(stroke, (0.7, 0.15, 0.15)) for stroke in strokes_of(8)])
    script = "network = NETWORKS[arguments[0]]; for (let i = 0; i < arguments[1]; i++) guess()"
    opened.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    for index, name in enumerate(TRAINED):
        opened.execute_script(script, index, 5)
        before = task_seconds(opened)
        opened.execute_script(script, index, 20)
        assert 1000 / 20 * (task_seconds(opened) - before) < FRAME, name
    opened.execute_cdp_cmd("Performance.disable", {})


# ------------------------------------------------------------------------------- the eye


def test_strokes_are_prepared_as_predict_does(opened: Browser) -> None:
    cases = [
        [[[*point, width] for point in (112 * placed(stroke, where)).tolist()] for stroke in digit]
        for digit in map(strokes_of, range(10))
        for width, where in ((9, (0.7, 0.12, 0.2)), (5, (0.4, 0.55, 0.05)))
    ]
    line = [[30, 20, 9], [34, 90, 12]]
    cases += [[line], [line, [[90, 90, 4]]], [[[12, 60, 9], [60, 50, 9], [100, 52, 9]]]]
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
        difference = np.abs(seen.reshape(28, 28) - expected)
        assert difference.max() <= 2, strokes  # of 255


def test_what_touches_the_edge_is_kept(opened: Browser) -> None:
    """The bar of a 5; predict.py would take it for a part of the desk beside the paper."""
    five = [[[40, 20, 9], [40, 50, 9], [70, 60, 9], [60, 90, 9]], [[45, 0, 9], [80, 0, 9]]]
    script = "return findDigit(inkOf(arguments[0])).box.top"
    assert opened.execute_script(script, five) == 0
    assert opened.execute_script(script, five[:1]) > 10


def test_digits_of_all_kinds_are_recognised(opened: Browser) -> None:
    wrong = []
    for style, (kind, pressure, where) in STYLES.items():
        for digit in range(10):
            opened.execute_script("clearAll()")
            how = draw if style == "plain" else draw_fast
            how(opened, [placed(s, where) for s in strokes_of(digit)], kind, pressure)
            found = shown(opened)
            if found != str(digit):
                wrong.append(f"{style} {digit}: {found}")
    assert len(wrong) <= 3, wrong


def test_a_pen_draws_by_its_pressure(opened: Browser) -> None:
    line = [np.array([[0.5, 0.2], [0.5, 0.8]])]
    for pressure in (0.05, 1.0):
        draw(opened, line, "pen", pressure)
    draw(opened, line)
    thin, thick, mouse = opened.execute_script("return past.filter(Boolean).map((s) => s[0][2])")
    assert thin < mouse < thick


# ------------------------------------------------------------------------------ the page


def test_undo_clear_samples_and_the_switch(opened: Browser) -> None:
    assert shown(opened) == ""
    one, seven = strokes_of(1), strokes_of(7)
    draw(opened, [placed(one[1], (0.7, 0.15, 0.15))])
    assert shown(opened) == "1"
    draw(opened, [placed(seven[0], (0.7, 0.0, 0.15))])
    assert shown(opened) == "7"
    keys = ActionChains(opened)
    keys.key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
    assert shown(opened) == "1"
    opened.execute_script("""
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "Z", ctrlKey: true}))""")
    assert shown(opened) == ""  # with Caps Lock on, too
    draw(opened, [placed(one[1], (0.7, 0.15, 0.15))])
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert shown(opened) == ""
    opened.find_element(By.ID, "undo").click()  # a clearing is taken back too
    assert shown(opened) == "1"
    opened.find_element(By.ID, "clear").click()
    assert shown(opened) == ""
    for digit, button in enumerate(opened.find_elements(By.CSS_SELECTOR, "#samples button")):
        button.send_keys(Keys.ENTER)
        assert shown(opened) == str(digit)
        assert button.get_attribute("aria-label") == f"Sample {digit}"
    draw(opened, [placed(one[1], (0.7, 0.15, 0.15))])  # takes the place of a sample
    assert shown(opened) == "1"
    switch = opened.find_elements(By.CSS_SELECTOR, "#networks input")
    assert [button.get_attribute("aria-label") for button in switch] == TRAINED
    assert switch[-1].is_selected()
    switch[-1].send_keys(Keys.ARROW_RIGHT)  # from the last to the first
    assert switch[0].is_selected()
    assert shown(opened) == "1"
    _, model = load_weights(page.ROOT / "weights" / f"{TRAINED[0]}.pt")
    parameters = sum(weights.numel() for weights in model.parameters())
    for place in ("parameters", "count"):
        assert opened.find_element(By.ID, place).text == f"{parameters:,}"


def test_a_stroke_ends_when_it_is_undone_or_let_go(opened: Browser) -> None:
    script = """
        const pad = find("pad");
        const {left, top} = pad.getBoundingClientRect();
        const send = (type, x, buttons) => pad.dispatchEvent(new PointerEvent(type, {
          pointerId: 1, pointerType: "mouse", clientX: left + x, clientY: top + 50, buttons,
        }));
        pad.setPointerCapture = () => {}; // there is no such pointer
        send("pointerdown", 10, 1);
        send("pointermove", 60, 1);
        send("pointerup", 60, 0);
        const before = JSON.stringify(past);
        send("pointerdown", 90, 1);
        undo();
        send("pointermove", 150, 1);
        send("pointerup", 150, 0);
        const undone = JSON.stringify(past) === before;
        send("pointerdown", 90, 1);
        send("pointermove", 90.1, 1); // no further than can be seen
        send("pointermove", 150, 0); // let go where nobody saw it
        send("pointermove", 200, 1);
        return [undone, past.at(-1).length];"""
    assert opened.execute_script(script) == [True, 1]


def test_everything_on_it_follows_the_drawing(opened: Browser) -> None:
    def state() -> dict[str, Any]:
        return opened.execute_script("""
            const maps = [...document.querySelectorAll("#maps canvas, #seen")];
            return {
              bars: [...find("bars").children].map((row) => row.textContent),
              maps: maps.map((canvas) => canvas.toDataURL()),
            };""")

    shown(opened)
    before = state()
    draw(opened, [placed(stroke, (0.7, 0.15, 0.15)) for stroke in strokes_of(5)])
    assert shown(opened) == "5"
    after = state()
    assert before["bars"] == [*"0123456789"]
    shares = [float(text[1:].split()[0]) for text in after["bars"]]
    assert sum(shares) == pytest.approx(100, abs=0.6)
    assert np.argmax(shares) == 5
    assert len(after["maps"]) > 10
    changed = [one != other for one, other in zip(before["maps"], after["maps"])]
    assert changed[0]
    assert np.mean(changed) > 0.8  # a map may be dead
    opened.execute_async_script("setTimeout(arguments[0], 800)")
    assert opened.find_element(By.ID, "spoken").get_attribute("textContent").startswith("Reads 5, ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1400, 900)])
def test_it_fits_phones_and_desktops(width: int, height: int, scheme: str, opened: Browser) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    colour = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colour})
    opened.get(URL)
    draw(opened, [placed(stroke, (0.7, 0.15, 0.15)) for stroke in strokes_of(4)])
    assert shown(opened) == "4"
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for place in ("pad", "bars", "digit", "undo", "clear"):  # seen while one draws
        box = opened.find_element(By.ID, place).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, place
        assert box["y"] + box["height"] <= height, place
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) > 127) == (scheme == "light")
