"""Small pictures of the whole page, and how far two of them differ.

Fonts differ between machines, and with them where lines break: for a picture all text is set in the font
that comes with matplotlib, over the page's policy. What is left of the machine (how a browser of another
version smooths a letter) is gone at an eighth of the size, and in the mean of a tile.
"""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

SCALE, TILE = 8, 16
"""A pixel is so many of the page, a tile so many pixels of the picture, each way."""
COLORS = 32


class View(NamedTuple):
    width: int
    scheme: str = "light"
    media: str = "screen"


VIEWS = {
    "wide": View(1280),
    "wide-dark": View(1280, "dark"),
    "phone": View(390),
    "phone-dark": View(390, "dark"),
    "print": View(718, media="print"),  # A4 between its margins
}


def font() -> str:
    """The style that sets everything in one font."""
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    data = base64.b64encode(path.read_bytes()).decode()
    face = f"@font-face {{ font-family: Golden; src: url(data:font/ttf;base64,{data}) }}"
    return f"{face} * {{ font-family: Golden !important; caret-color: transparent }}"


def screenshot(browser: Any, page_file: Path, view: View, style: str = "") -> Image.Image:
    """The page from top to bottom. style: CSS on top of the page's own."""
    size = {"width": view.width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=view.scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media=view.media)
    page.add_style_tag(content=font() + style)
    page.evaluate("document.fonts.ready.then(() => null)")
    shot = page.screenshot(full_page=True, animations="disabled")
    context.close()
    return Image.open(BytesIO(shot)).convert("RGB")


def small(image: Image.Image) -> Image.Image:
    """The picture that is kept: an eighth of the size, of few colours."""
    size = (max(1, image.width // SCALE), max(1, image.height // SCALE))
    return image.resize(size, Image.Resampling.BOX).quantize(COLORS, dither=Image.Dither.NONE)


def difference(one: Image.Image, other: Image.Image) -> tuple[float, tuple[int, int]]:
    """How far the tiles that differ most are apart, of 255, and where on the page they are (x, y).

    255 where one is more than a fiftieth higher than the other; else it is brought to its height.
    """
    if one.width != other.width or abs(one.height - other.height) * 50 > one.height:
        return 255.0, (0, min(one.height, other.height) * SCALE)
    a, b = (np.asarray(x.convert("RGB").resize(one.size), dtype=np.float64) for x in (one, other))
    off = np.abs(tiles(a) - tiles(b)).max(axis=2)
    y, x = np.unravel_index(off.argmax(), off.shape)
    return float(off.max()), (int(x) * TILE * SCALE, int(y) * TILE * SCALE)


def tiles(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of each tile; the page's last rows and columns fill theirs with what is there."""
    down, across = (-pixels.shape[k] % TILE for k in (0, 1))
    filled = np.pad(pixels, ((0, down), (0, across), (0, 0)), mode="edge")
    shape = (filled.shape[0] // TILE, TILE, filled.shape[1] // TILE, TILE, 3)
    return filled.reshape(shape).mean(axis=(1, 3))
