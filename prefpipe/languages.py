"""Which language a text is in, by its letters."""

from typing import TYPE_CHECKING

from prefpipe.rows import Language

if TYPE_CHECKING:
    pass


def detect_language(text: str) -> Language:
    """zh where at least a fifth of the letters are CJK ideographs, else en."""
    if text.isascii():  # most texts: counting would take as long as all the rest of a row
        return "en"
    cjk = sum("\u3400" <= c <= "\u9fff" for c in text)
    letters = sum(c.isalpha() for c in text)
    return "zh" if cjk and cjk * 5 >= letters else "en"
