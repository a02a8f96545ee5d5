"""Texts as sets of shingles, any five words in a row, each a 64-bit hash; and as sketches of these.

How near two texts are is the sets' Jaccard similarity, |A and B| / |A or B|. A long text is kept as its
bottom-k sketch (Broder 1997): the k smallest hashes. A hash puts shingles into an order that has
nothing to do with their words, so these k are a random sample, and the same shingle is in the sample of
each text that has it.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from prefpipe.words import plain_texts

_WORDS = 5  # in a shingle
KEPT = 256
"""Hashes of a question's sketch."""
_OF_THREE_BYTES = 0xE0  # the least first byte of such a character, in UTF-8
_BASE = 0xD1342543DE82EF95  # of the polynomial hash, modulo 2^64; odd, so that it has an inverse
_AT_ONCE = 1 << 16  # bytes hashed together: the numbers made of them stay in the processor's caches
_SPACE = ord(" ")


def shingles(text: str, count: int = KEPT) -> np.ndarray:
    """Sorted unique hashes (uint64) of any five words in a row; of more than `count`, the smallest.

    A text of fewer words is one shingle. Characters from U+0800 on count as words, since Chinese has
    no spaces.
    """
    return next(sketches(plain_texts([text]), count))


def jaccard(first: np.ndarray, second: np.ndarray, count: int = KEPT) -> float:
    """|A and B| / |A or B| of two texts' shingles: exact where both have up to `count` together.

    Else the share of common ones among the `count` smallest of both, which are a random sample of
    A or B (Broder 1997, section 4); of 256 its standard error is at most 0.031.
    """
    both = np.sort(np.concatenate([first, second]))
    is_common = both[1:] == both[:-1]
    distinct = both[np.append(True, ~is_common)][:count]
    common = both[1:][is_common]
    return float((common <= distinct[-1]).sum() / len(distinct))


def sketches(texts: Sequence[bytes], count: int) -> Iterator[np.ndarray]:
    """shingles of each text, `count` of them at most."""
    for some in at_once(texts):
        hashes, bounds = shingle_hashes(some)
        for start, end in itertools.pairwise(bounds.tolist()):
            yield unique(hashes[start:end])[:count]


def at_once(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    sizes = itertools.accumulate(map(len, texts))
    for _, group in itertools.groupby(zip(sizes, texts, strict=True), lambda x: x[0] // _AT_ONCE):
        yield [text for _, text in group]


def shingle_hashes(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all texts' shingles; where in them those of each text begin, and the end (N + 1).

    A polynomial hash (Rabin & Karp 1987), for all texts in a few calls of numpy. The bytes b of all
    texts are the digits of one number to the base B, modulo 2^64: byte k adds b[k] * B^k. With the
    running sums of these, what stands from i to j is sums[j] - sums[i]; divided by B^i it no longer
    depends on where it stands. So a shingle costs one difference and one product, however long it is.
    """
    # 1) running sums over the bytes of all texts
    codes = np.frombuffer(b" ".join([*texts, b""]), np.uint8)
    powers, inverses = _powers(1 << len(codes).bit_length())
    sums = np.zeros(len(codes) + 1, np.uint64)  # sums[k]: the hash of what stands before k
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])

    # 2) where words begin: behind a space, at a text's start, and at each character of three bytes
    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
    is_space = codes == _SPACE
    is_start = codes >= _OF_THREE_BYTES
    is_start[1:] |= is_space[:-1]
    is_start[bounds[:-1]] = True
    words = np.append(is_start.nonzero()[0], len(codes))
    first = words.searchsorted(bounds)  # word of each text

    # 3) a shingle from each word that has four more behind it in its text, at least one a text
    counts = np.maximum(np.diff(first) - _WORDS + 1, 1)
    of_text = np.cumsum([0, *counts])
    begin = np.arange(of_text[-1]) + np.repeat(first[:-1] - of_text[:-1], counts)
    end = words[np.minimum(begin + _WORDS, np.repeat(first[1:], counts))]
    end -= is_space[end - 1]
    begin = words[begin]
    return (sums[end] - sums[begin]) * inverses[begin], of_text


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """_BASE, _BASE^2, ... and 1, 1 / _BASE, 1 / _BASE^2, ..., `count` of each, modulo 2^64."""
    steps = np.full((2, count), _BASE, dtype=np.uint64)
    steps[1] = pow(_BASE, -1, 1 << 64)
    steps[1, 0] = 1
    powers, inverses = np.cumprod(steps, axis=1)
    return powers, inverses


def unique(values: np.ndarray) -> np.ndarray:
    """Sorted; by sorting, which for so few takes a fraction of np.unique's hash table."""
    values = np.sort(values)
    keep = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]
