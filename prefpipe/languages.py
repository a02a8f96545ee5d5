"""Which language a text is in, by its letters."""

import re

from prefpipe.rows import Language

_IDEOGRAPH = re.compile(r"[\u3400-\u9fff]")
_CHINESE_SENTENCE = re.compile(r"(?:[\u3400-\u9fff][，。、；：！？“”]?){10}")
_LATIN_OR_GREEK = re.compile(
    r"[\u0000-\u024f\u0370-\u03ff\u1e00-\u1fff\u2100-\u214f\uff21-\uff5a\U0001d400-\U0001d7ff]"
)
_WORD = re.compile(r"[^\W\d_]+")
# What hardly any sentence of a language does without; none of these is a word of the other list's.
_ENGLISH = """
    the of and to is in it that for you this with are on be not or was have can your from at by
    if will they there has but we which do their an as i its more when what how use
"""
_ENGLISH_WORDS = frozenset(_ENGLISH.split())
_OTHER = """
    el la los las que del y en un una es por con para se le les des du et est une dans pour der
    das und ist ein eine nicht mit den von zu im il di che è per non della sono os um uma não
    em são het een van niet och att är som det jest się na nie и в на не что và của là các
    không yang dan untuk dengan adalah tidak bir ve bu için ile și să pe az és ja ei että shi
    zai zhe wo ni hen yao
"""
_FEW_WORDS = 7  # "Las Vegas, Los Angeles, El Paso" are names
_OTHER_WORDS = frozenset(_OTHER.split()) - _ENGLISH_WORDS


def ideograph_share(text: str) -> float:
    """CJK ideographs as a share of the letters; 0 of a text without either."""
    if text.isascii():  # most texts: counting would take as long as all the rest of a row
        return 0.0
    ideographs = sum("\u3400" <= c <= "\u9fff" for c in text)
    return ideographs / (sum(map(str.isalpha, text)) or 1)


def detect_language(text: str) -> Language:
    """zh where at least a fifth of the letters are CJK ideographs, else en."""
    return "zh" if ideograph_share(text) >= 0.2 else "en"


def has_chinese_left(text: str) -> bool:
    """Whether the text, or a sentence of it, is Chinese; an English text may quote some words."""
    share = ideograph_share(text)
    words = share >= 0.2 and len(_IDEOGRAPH.findall(text)) >= 5
    return share > 0.5 or words or bool(_CHINESE_SENTENCE.search(text))


def is_foreign(text: str, source: str) -> bool:
    """Whether the text is in another language than English or Chinese: a fifth of its letters are of
    another script, or it has the small words of another language and hardly any English ones.
    Letters and words of the source do not count, since a translation keeps them."""
    own = set(source)
    letters = [c for c in text if c.isalpha()]
    others = sum(not _LATIN_OR_GREEK.match(c) and c not in own for c in letters)
    if others >= 0.2 * len(letters) > 0:
        return True
    words = set(_WORD.findall(text.lower())) - set(_WORD.findall(source.lower()))
    if len(words) < _FEW_WORDS:
        return False
    return len(words & _OTHER_WORDS) > max(1, len(words & _ENGLISH_WORDS))


def length_in_english(text: str) -> float:
    """Characters of the text's translation, roughly: 3.5 for an ideograph, 1 for any other one."""
    return len(text) + 2.5 * len(_IDEOGRAPH.findall(text))
