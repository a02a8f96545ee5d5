"""What a word is, and which signs count: one rule for all who compare texts.

A word is letters and digits of any script with the marks that belong to them (the vowel signs of
Hindi, Tamil or Thai are no letters, and without them other words are left). Punctuation separates.
A sign counts where it changes what a sum or a line of code says: a + b and a - b, == and !=, C and
C++, -5 and 5, \\d and \\D. It does not where it marks a list, a quote or emphasis, or joins two words.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

_MARKS = re.compile(r"([\W\uff9e\uff9f]{64})")  # no accent is in \w
_CASED = re.compile(r"([\\-][A-Za-z])")
_SPACE = ord(" ")
# ASCII: letters in lower case and digits stay, all else is a space; other bytes stay as they are.
_WORD_BYTES = bytes(
    b if b >= 128 else ord(chr(b).lower()) if chr(b).isalnum() else _SPACE for b in range(256)
)


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, in order; no signs. Of Chinese and Japanese, which have no
    spaces, each character."""
    visible = text if text.isascii() else _patterns()["unseen"].sub("", nfkc(text))
    return _patterns()["word"].findall(visible.casefold())


def plain_texts(texts: Sequence[str]) -> list[bytes]:
    """Each text as its words, in lower case, one space between them, and the signs that count, with
    none beside them, in UTF-8; where it has neither, as it is. Equal here are texts that differ in
    case, white space, punctuation or Unicode form only.
    """
    if not texts:
        return []
    # 1) what is not ASCII is put in that form one by one, and left as it is by what follows
    ready = [(text if text.isascii() else _of_words(text)).encode() for text in texts]
    # 2) all texts in one array of bytes: those in words stay, then the signs that count
    raw = b"\n".join([*ready, b""])
    original = np.frombuffer(raw, np.uint8)
    codes = np.frombuffer(bytearray(raw.translate(_WORD_BYTES)), np.uint8)
    starts, ends = _write_signs(original, codes)
    # 3) of the spaces only the first behind each word, and none beside a sign
    in_word = codes != _SPACE
    kept = in_word.copy()
    kept[1:] |= in_word[:-1]
    if len(starts):
        spaces = (kept & ~in_word).nonzero()[0]
        before = spaces.searchsorted(starts[(codes[starts - 1] == _SPACE) & (starts > 0)]) - 1
        kept[spaces[before[before >= 0]]] = False
        kept[ends[codes[ends] == _SPACE]] = False
    plain = codes[kept].tobytes()
    # 4) cut it where the texts end
    first = np.cumsum([0, *(len(text) + 1 for text in ready[:-1])])
    cuts = np.add.reduceat(kept, first, dtype=np.intp).cumsum().tolist()
    return [
        plain[start:end].strip() or _folded(text).strip().encode()
        for text, start, end in zip(texts, [0, *cuts], cuts, strict=False)
    ]


def nfkc(text: str) -> str:
    """Unicode's form NFKC; 64 marks in a row are apart, since putting n in order takes n^2 steps."""
    return "".join(unicodedata.normalize("NFKC", part) for part in _MARKS.split(text))


def _folded(text: str) -> str:
    """In lower case, but for ASCII letters behind a sign: \\d is not \\D, nor is -o -O."""
    parts = _CASED.split(nfkc(text))
    return "".join(part if k % 2 else part.casefold() for k, part in enumerate(parts))


def _of_words(text: str) -> str:
    """Words, ASCII and the other signs (minus, euro, an emoji), all else a space. Dropped is what
    nobody sees: soft hyphens, joiners, zero-width spaces, variation selectors."""
    folded = _patterns()["unseen"].sub("", _folded(text)).replace("\u2212", "-")
    return _patterns()["other"].sub(" ", folded)


@functools.cache
def _patterns() -> dict[str, Any]:
    import regex  # knows marks and symbols, which re does not

    patterns = {
        "word": r"[\u3040-\u30ff\u3400-\u9fff]|[[\p{L}\p{M}\p{N}]--[\u3040-\u30ff\u3400-\u9fff]]+",
        "unseen": r"[\p{Cf}\ufe00-\ufe0f]+",
        "other": r"[^\p{L}\p{N}\p{M}\p{Sm}\p{Sc}\p{So}\x00-\x7f]+",
    }
    return {name: regex.compile(pattern, regex.V1) for name, pattern in patterns.items()}


# ---- the signs of ASCII --------------------------------------------------------------------------


def sign_counts(sign: str, length: int, left: str, right: str) -> bool:
    """Whether a run of signs counts, parentheses in it or not.

    sign: the one that it is made of; "(" of parentheses alone, "" of several (!=, ->, +=), "*" of
    several that stand in prose (important*!). length:
    without parentheses. left, right: what stands beside the run: "n" the line's end, "s" a space, "g"
    a space and then another sign, "a" a letter, "d" a digit, "p" punctuation.
    """
    in_word = left in "ad" and right in "ad"
    apart = left in "sg" and right in "sg"
    if sign in ("", "\\"):
        return True
    if sign == "(":  # 2 * (3 + 4) is another sum without them; (see below) is none
        return "g" in (left, right)
    if sign in "+=<>^&~%":  # not a list's mark, a quote's, a line drawn under a title
        return length < 4 and not (left == "n" and right in "nsg")
    if sign == "-":  # a - b, 7-3, -5, --i; not well-known, one -- two
        if length == 1:
            return apart or left == right == "d" or (left not in "ad" and right in "ad")
        return length == 2 and (left in "ad") != (right in "ad")
    if sign == "*":  # a * b, 2**3; not *this* or **that**
        return in_word or apart
    if sign == "/":  # a / b, 6/2, a//b; not and/or
        return apart or left == right == "d" or (length == 2 and in_word)
    if sign == "|":  # p|q, a || b; no table's
        return in_word or length == 2
    if sign == "#":  # C#
        return length == 1 and left == "a" and right not in "ad"
    if sign == "!":  # !x, 5!
        return left == "d" or (left not in "ad" and right in "ad")
    if sign == "$":  # $5
        return left not in "ad" and right == "d"
    return apart  # a @ b


_SIGNS = "(*#!$@+=<>^&~%-/|\\"
_OF_PROSE = _SIGNS.index("@") + 1  # the last of those that are, in a run of several, none of code
_SIDES = "nsgadp"
_LONGEST = 4  # longer runs count like this one


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two tables of bytes, which sign each is (1 and up; 0: none) and what it is beside a run; and
    which runs count."""
    kinds, sides = np.zeros(256, np.intp), np.full(256, _SIDES.index("p"), np.intp)
    for number, sign in enumerate(_SIGNS, start=1):
        kinds[ord(sign)] = number
    kinds[ord(")")] = kinds[ord("(")]
    sides[: _SPACE + 1] = _SIDES.index("s")
    sides[ord("\n")] = _SIDES.index("n")
    for byte in range(256):
        if chr(byte).isalnum() or byte >= 128:
            sides[byte] = _SIDES.index("d" if chr(byte).isdecimal() else "a")
    runs = product(["", *_SIGNS], range(_LONGEST + 1), _SIDES, _SIDES)
    shape = (len(_SIGNS) + 1, _LONGEST + 1, len(_SIDES), len(_SIDES))
    return kinds, sides, np.array([sign_counts(*run) for run in runs]).reshape(shape)


def _write_signs(original: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write the signs that count into codes, where they are spaces; where their runs begin and end."""
    kind_of, side_of, counts = _tables()
    at = ((codes == _SPACE) & (original > _SPACE)).nonzero()[0]
    kinds = kind_of[original[at]]
    at, kinds = at[kinds > 0], kinds[kinds > 0]
    if not len(at):
        return at, at
    # 1) runs: signs that stand one behind the other
    is_first = np.append(True, np.diff(at) > 1)
    runs = is_first.nonzero()[0]
    starts, ends = at[runs], at[np.append(runs[1:], len(at)) - 1] + 1
    # 2) what each is made of, parentheses (kind 1) aside
    most = np.maximum.reduceat(kinds, runs)
    least = np.minimum.reduceat(np.where(kinds == 1, most.max(), kinds), runs)
    kind = np.where((most > 1) & (least < most), np.where(most > _OF_PROSE, 0, 2), most)
    length = np.minimum(np.add.reduceat(kinds != 1, runs, dtype=np.intp), _LONGEST)
    # 3) what stands beside it; behind a space, another sign
    sides = []
    for beside, behind in ((starts - 1, starts - 2), (ends, ends + 1)):
        side = side_of[original[beside]]
        is_sign = kind_of[original.take(behind, mode="wrap")] > 0
        sides.append(np.where(is_sign & (side == _SIDES.index("s")), _SIDES.index("g"), side))
    does = counts[kind, length, sides[0], sides[1]]
    # 4) as they are; letters behind a backslash or a minus too
    kept = at[np.repeat(does, np.diff(np.append(runs, len(at))))]
    codes[kept] = original[kept]
    cased = kept[np.isin(original[kept], [ord("\\"), ord("-")])] + 1
    cased = cased[side_of[original[cased]] == _SIDES.index("a")]
    codes[cased] = original[cased]
    return starts[does], ends[does]
