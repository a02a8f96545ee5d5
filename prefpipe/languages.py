"""Which language a text is in, by its letters."""

from prefpipe.rows import Language


def ideograph_share(text: str) -> float:
    """CJK ideographs as a share of the letters; 0 of a text without either."""
    if text.isascii():  # most texts: counting would take as long as all the rest of a row
        return 0.0
    ideographs = sum("\u3400" <= c <= "\u9fff" for c in text)
    return ideographs / (sum(map(str.isalpha, text)) or 1)


def detect_language(text: str) -> Language:
    """zh where at least a fifth of the letters are CJK ideographs, else en."""
    return "zh" if ideograph_share(text) >= 0.2 else "en"


def is_mostly_chinese(text: str) -> bool:
    """More than half of the letters are CJK ideographs; an English text may quote some."""
    return ideograph_share(text) > 0.5
