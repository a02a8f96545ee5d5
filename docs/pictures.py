"""Make the pictures of README.md: the page of a run, a pair, the curves.

    ./pipeline.sh all && uv run python docs/pictures.py data/report.html

Needs Debian's chromium (apt-get install chromium). Each is a screenshot with few colours, to stay small.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

HERE = Path(__file__).parent
COLOURS = 64


def main(report: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 720}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        save("page", page)
        page.locator("#by-file").select_option(label="rag/pairwise_prefs.jsonl")
        page.locator("#contents").evaluate("e => (e.hidden = true)")
        save("pair", page.locator("#pair"))
        save("curves", page.locator("#models .blocks .blocks").first)
        browser.close()


def save(name: str, what: Page | Locator) -> None:
    """A screenshot as docs/NAME.png, with a palette."""
    image = Image.open(BytesIO(what.screenshot())).convert("RGB")
    small = image.quantize(COLOURS, dither=Image.Dither.NONE)
    path = HERE / f"{name}.png"
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {image.width} x {image.height}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
