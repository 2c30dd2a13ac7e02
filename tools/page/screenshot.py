"""Draw results/page.png, the picture of docs/index.html, in headless Chromium.

    python -m tools.page.screenshot

The picture's PNG text `page` is the SHA-256 of docs/index.html.
"""

import hashlib
import io
import os
import shutil
import sys

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

from cli import Parser, RunError, exit_code
from files import write_atomically
from networks import ROOT
from tools.page.build import PAGE

PICTURE = ROOT / "results" / "page.png"


def open_browser() -> webdriver.Chrome:
    """A headless Chromium or Chrome that logs its requests; RunError where there is none."""
    # GitHub's runners have the driver for their Chrome in CHROMEWEBDRIVER.
    folders = os.pathsep.join(filter(None, [os.getenv("CHROMEWEBDRIVER"), os.getenv("PATH")]))
    driver = shutil.which("chromedriver", path=folders)
    if driver is None:
        raise RunError("chromedriver not found; install Chromium or Chrome, and chromedriver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        return webdriver.Chrome(options, Service(driver))
    except WebDriverException as error:
        raise RunError(f"the browser does not start: {str(error).splitlines()[0]}") from None


def resize(browser: webdriver.Chrome, width: int, height: int, scheme: str = "light") -> None:
    """Emulates a screen of that size, in the light or the dark colour scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    colour = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colour})


def screenshot() -> None:
    """Writes the picture."""
    browser = open_browser()
    try:
        resize(browser, 1280, 1100)  # shows all of the page
        browser.get(PAGE.as_uri())
        browser.execute_async_script("setTimeout(arguments[0], 500)")  # ends the transitions
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    finally:
        browser.quit()
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text("page", hashlib.sha256(PAGE.read_bytes()).hexdigest())
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", pnginfo=text, optimize=True)
    write_atomically(PICTURE, buffer.getvalue())
    print(f"{PICTURE.relative_to(ROOT)}  {len(buffer.getvalue()) / 1000:.1f} kB")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = Parser("python -m tools.page.screenshot", __doc__)
    parser.parse_args(argv)
    return exit_code(parser.prog, screenshot)


if __name__ == "__main__":
    sys.exit(main())
