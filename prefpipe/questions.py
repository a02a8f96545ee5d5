"""Questions: which are the same, and in which split each one is.

Functions that are asked of every row take a block of questions: for texts of a thousand bytes, calling
numpy would cost more than what it does. Which are nearly the same: prefpipe/near_duplicates.py.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from prefpipe import draws
from prefpipe.rows import Split
from prefpipe.words import plain_texts

T = TypeVar("T")

BLOCK = 64
"""Questions in a block that callers make."""


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
