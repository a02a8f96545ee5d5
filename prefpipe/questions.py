"""Questions: which are the same, and in which split each one is.

Functions that are asked of every row take a block of questions: for texts of a thousand bytes, calling
numpy would cost more than what it does. Which are nearly the same: prefpipe/near_duplicates.py.
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from prefpipe import draws
from prefpipe.rows import Split

T = TypeVar("T")

BLOCK = 64
"""Questions in a block that callers make."""

_WORD = re.compile(r"[^\W_]+")
_MARKS = re.compile(r"([\W\uff9e\uff9f]{64})")  # no accent is in \w
_SPACE = ord(" ")
# ASCII: letters in lower case and digits stay, all else is a space; other bytes stay as they are.
_WORD_BYTES = bytes(
    b if b >= 128 else ord(chr(b).lower()) if chr(b).isalnum() else _SPACE for b in range(256)
)


def in_blocks(values: Iterable[T], size: int = BLOCK) -> Iterator[list[T]]:
    """The values in lists of `size`; the last one may be shorter."""
    values = iter(values)
    while block := list(itertools.islice(values, size)):
        yield block


def question_key(question: str) -> str:
    """Equal for questions that differ in case, white space, punctuation or Unicode form only."""
    return hashlib.blake2b(plain_texts([question])[0], digest_size=12).hexdigest()


def splits(questions: Sequence[str], *, validation_share: float, seed: int) -> list[Split]:
    """The split of each question. It depends on the question alone, so adding rows moves none."""
    return [
        "validation" if draws.fraction(seed, text) < validation_share else "train"
        for text in plain_texts(questions)
    ]


def plain_texts(questions: Sequence[str]) -> list[bytes]:
    """Each question as its words, in lower case, one space between them, in UTF-8; where it has
    none, as it is. What is equal here is the same question."""
    if not questions:
        return []
    # 1) what is not ASCII is put in that form one by one, and left as it is by step 2
    texts = [
        (q if q.isascii() else " ".join(_WORD.findall(_folded(q)))).encode() for q in questions
    ]
    # 2) all texts in one array of bytes: keep those in words, and the first space behind each word
    codes = np.frombuffer(b" ".join([*texts, b""]).translate(_WORD_BYTES), np.uint8)
    in_word = codes != _SPACE
    kept = in_word.copy()
    kept[1:] |= in_word[:-1]
    plain = codes[kept].tobytes()
    # 3) cut it where the texts end
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    ends = np.add.reduceat(kept, starts, dtype=np.intp).cumsum().tolist()
    return [
        plain[start : end - 1] if start < end else _folded(question).strip().encode()
        for question, start, end in zip(questions, [0, *ends], ends, strict=False)
    ]


def _folded(text: str) -> str:
    return nfkc(text).casefold()


def nfkc(text: str) -> str:
    """Unicode's form NFKC; 64 marks in a row are apart, since putting n in order takes n^2 steps."""
    return "".join(unicodedata.normalize("NFKC", part) for part in _MARKS.split(text))
