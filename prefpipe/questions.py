"""Questions: which are the same, which nearly so, and on which side of the split each one is.

Functions that are asked of every row take a block of questions: for texts of a thousand bytes, calling
numpy would cost more than what it does.
"""

import functools
import hashlib
import itertools
import math
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from prefpipe.rows import Split

T = TypeVar("T")

BLOCK = 64
"""Questions in a block that callers make."""

_WORDS = 5  # in a shingle
_OF_THREE_BYTES = 0xE0  # the least first byte of such a character, in UTF-8
_BASE = 0xD1342543DE82EF95  # of the polynomial hash, modulo 2^64
_KEPT = 256  # the shingles with the smallest hashes, of a text that has more
_AT_ONCE = 1 << 16  # bytes hashed together: the numbers made of them stay in the processor's caches
_OWNER_BITS = np.uint64(26)  # of a key: they say whose hash it is
_OWNER = np.uint64((1 << 26) - 1)
_NO_KEY = (1 << 64) - 1  # no shingle has this hash, or is not looked at if it has
_WORD = re.compile(r"[^\W_]+")
_SPACE = ord(" ")
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
    return hashlib.blake2b(_plain_texts([question])[0], digest_size=12).hexdigest()


def splits(questions: Sequence[str], *, validation_share: float, seed: int) -> list[Split]:
    """Of each question its side, the same whatever other questions there are."""
    key = str(seed).encode()
    below = validation_share * 2**64
    return [
        "validation"
        if int.from_bytes(hashlib.blake2b(text, digest_size=8, key=key, person=b"split").digest())
        < below
        else "train"
        for text in _plain_texts(questions)
    ]


def _plain_texts(questions: Sequence[str]) -> list[bytes]:
    """Of each its words, in lower case, one space between them; where it has none, the text itself."""
    if not questions:
        return []
    # what is not ASCII is put in that form one by one, and left as it is below
    texts = [
        (q if q.isascii() else " ".join(_WORD.findall(_folded(q)))).encode() for q in questions
    ]
    codes = np.frombuffer(b" ".join([*texts, b""]).translate(_WORD_BYTES), np.uint8)
    in_word = codes != _SPACE
    kept = in_word.copy()
    kept[1:] |= in_word[:-1]  # the first space behind each word, too
    plain = codes[kept].tobytes()
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    ends = np.add.reduceat(kept, starts, dtype=np.intp).cumsum().tolist()
    return [
        plain[start : end - 1] if start < end else _folded(question).strip().encode()
        for question, start, end in zip(questions, [0, *ends], ends, strict=False)
    ]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


# ---- near duplicates -------------------------------------------------------------------------


def shingles(text: str) -> np.ndarray:
    """Sorted unique hashes (uint64) of any five words in a row; of many, the 256 smallest.

    A text of fewer words is one shingle. Characters from U+0800 on count as words, since Chinese has
    no spaces.
    """
    return next(_smallest_hashes(_plain_texts([text]), _KEPT))


def _smallest_hashes(texts: Sequence[bytes], count: int) -> Iterator[np.ndarray]:
    """shingles of each text, `count` of them at most."""
    for some in _at_once(texts):
        hashes, bounds = _shingle_hashes(some)
        for start, end in itertools.pairwise(bounds.tolist()):
            yield _unique(hashes[start:end])[:count]


def _at_once(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    sizes = itertools.accumulate(map(len, texts))
    for _, group in itertools.groupby(zip(sizes, texts, strict=True), lambda x: x[0] // _AT_ONCE):
        yield [text for _, text in group]


def _shingle_hashes(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all texts' shingles; where in them those of each text begin, and the end (N + 1)."""
    data = b" ".join([*texts, b""])
    codes = np.frombuffer(data, np.uint8)
    powers, inverses = _powers(1 << len(codes).bit_length())
    sums = np.zeros(len(codes) + 1, np.uint64)  # sums[k]: the hash of what stands before k
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])

    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
    is_space = codes == _SPACE
    is_start = codes >= _OF_THREE_BYTES
    is_start[1:] |= is_space[:-1]
    is_start[bounds[:-1]] = True
    words = np.append(is_start.nonzero()[0], len(codes))  # where they begin
    first = words.searchsorted(bounds)  # word of each text

    counts = np.maximum(np.diff(first) - _WORDS + 1, 1)
    of_text = np.cumsum([0, *counts])
    begin = np.arange(of_text[-1]) + np.repeat(first[:-1] - of_text[:-1], counts)
    end = words[np.minimum(begin + _WORDS, np.repeat(first[1:], counts))]
    end -= is_space[end - 1]
    begin = words[begin]
    return (sums[end] - sums[begin]) * inverses[begin], of_text


def _unique(values: np.ndarray) -> np.ndarray:
    """Sorted; by sorting, which for so few takes a fraction of np.unique's hash table."""
    values = np.sort(values)
    keep = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """_BASE, _BASE^2, ... and 1, 1 / _BASE, 1 / _BASE^2, ..., `count` of each, modulo 2^64."""
    steps = np.full((2, count), _BASE, dtype=np.uint64)
    steps[1] = pow(_BASE, -1, 1 << 64)
    steps[1, 0] = 1
    powers, inverses = np.cumprod(steps, axis=1)
    return powers, inverses


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A and B| / |A or B| of two texts' shingles: exact where both have up to 256 together.

    Else the share of common ones among the 256 smallest of both (Broder 1997, section 4), whose
    standard error is at most 0.031.
    """
    smallest = np.union1d(first, second)[:_KEPT]
    common = np.intersect1d(first, second, assume_unique=True)
    return float(np.isin(smallest, common, assume_unique=True).mean())


class NearDuplicates:
    """Finds whether a question is nearly one of those given: jaccard(shingles) >= threshold.

    Sets that share so much have one of their first few hashes in common, where both are in the same
    order (prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007), so only these are looked up
    and jaccard is asked of what they find. In memory are 1 kB a long question, and at a threshold of
    0.8 another 0.6 kB: hashes are kept as their upper 32 bits, which join two of 256 by a chance of
    1 in 100,000.
    """

    def __init__(self, questions: Iterable[str], threshold: float = 0.8) -> None:
        self._threshold = threshold
        self._sketches: list[bytes] = []
        keys = array("Q")  # the upper bits of a hash, and which sketch it is of
        for block in in_blocks(questions):
            for sketch in _smallest_hashes(_plain_texts(block), _KEPT):
                first = sketch[: self._first(len(sketch))]
                owner = np.uint64(len(self._sketches))
                keys.frombytes((first & ~_OWNER | owner).tobytes())
                self._sketches.append(_upper_half(sketch).tobytes())
        keys.append(_NO_KEY)  # so that a search ends within them
        self._keys = np.frombuffer(keys, np.uint64)
        self._keys.sort()
        self._sieve = _Sieve(self._keys)

    def __contains__(self, question: str) -> bool:
        return self.find([question])[0]

    def find(self, questions: Sequence[str]) -> list[bool]:
        """Of each question, whether it is one."""
        if not questions:
            return []
        return [near for some in _at_once(_plain_texts(questions)) for near in self._find(some)]

    def _find(self, texts: list[bytes]) -> list[bool]:
        hashes, bounds = _shingle_hashes(texts)
        hashes &= ~_OWNER
        left = self._sieve.may_have(hashes)
        hashes = hashes[left]
        hits = (self._keys[self._keys.searchsorted(hashes)] ^ hashes) <= _OWNER
        asked = bounds.searchsorted(left[hits], side="right") - 1
        found = [False] * len(texts)
        for k in set(asked.tolist()):
            found[k] = self._is_near(texts[k], np.unique(hashes[hits][asked == k]))
        return found

    def _is_near(self, text: bytes, hits: np.ndarray) -> bool:
        """hits: the upper bits of those of its hashes that are among the keys."""
        sketch = next(_smallest_hashes([text], _KEPT))
        hits = hits[hits <= sketch[self._first(len(sketch)) - 1]]
        starts = self._keys.searchsorted(hits)
        ends = self._keys.searchsorted(hits | _OWNER, side="right")
        owners = {
            int(key & _OWNER)
            for start, end in zip(starts, ends, strict=True)
            for key in self._keys[start:end]
            if key != _NO_KEY
        }
        half = _upper_half(sketch)
        return any(
            jaccard(half, np.frombuffer(self._sketches[owner], np.uint32)) >= self._threshold
            for owner in owners
        )

    def _first(self, size: int) -> int:
        """How many of a sketch of that size: one that has threshold * size of it has one of them."""
        return size - max(1, math.ceil(self._threshold * size - 1e-6)) + 1


class _Sieve:
    """16 to 32 bits a key, one of them set: tells at once of most hashes that no key begins like them."""

    def __init__(self, keys: np.ndarray) -> None:
        size = 1 << (16 * len(keys)).bit_length()
        self._last = np.uint64(size - 1)
        self._bits = np.zeros(size // 8, np.uint8)
        for part in np.split(keys, range(1 << 16, len(keys), 1 << 16)):  # not all at once: memory
            byte, bit = self._places(part)
            np.bitwise_or.at(self._bits, byte, np.uint8(1) << bit)

    def may_have(self, hashes: np.ndarray) -> np.ndarray:
        """Where in these hashes those stand that may be among the keys."""
        byte, bit = self._places(hashes)
        return (self._bits[byte] >> bit & 1).nonzero()[0]

    def _places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number = hashes >> _OWNER_BITS & self._last
        return (number >> np.uint64(3)).astype(np.intp), (number & np.uint64(7)).astype(np.uint8)


def _upper_half(sketch: np.ndarray) -> np.ndarray:
    return _unique((sketch >> np.uint64(32)).astype(np.uint32))
