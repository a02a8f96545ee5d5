"""Texts that are nearly the same: questions that resemble a held-out one, documents that stand twice.

Two texts are compared as sets of shingles, any five words in a row, each a 64-bit hash; how near they
are is the sets' Jaccard similarity, |A and B| / |A or B|. A long text is kept as its bottom-k sketch
(Broder 1997): the k smallest hashes. A hash puts shingles into an order that has nothing to do with
their words, so these k are a random sample, and the same shingle is in the sample of each text that
has it.
"""

import functools
import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from prefpipe.questions import in_blocks, plain_texts
from prefpipe.rows import Document

_WORDS = 5  # in a shingle
_KEPT = 256  # hashes of a question's sketch
_KEPT_OF_DOCUMENT = 32
_OF_THREE_BYTES = 0xE0  # the least first byte of such a character, in UTF-8
_BASE = 0xD1342543DE82EF95  # of the polynomial hash, modulo 2^64; odd, so that it has an inverse
_AT_ONCE = 1 << 16  # bytes hashed together: the numbers made of them stay in the processor's caches
_SPACE = ord(" ")


# ---- shingles and sketches -------------------------------------------------------------------


def shingles(text: str, count: int = _KEPT) -> np.ndarray:
    """Sorted unique hashes (uint64) of any five words in a row; of more than `count`, the smallest.

    A text of fewer words is one shingle. Characters from U+0800 on count as words, since Chinese has
    no spaces.
    """
    return next(_sketches(plain_texts([text]), count))


def jaccard(first: np.ndarray, second: np.ndarray, count: int = _KEPT) -> float:
    """|A and B| / |A or B| of two texts' shingles: exact where both have up to `count` together.

    Else the share of common ones among the `count` smallest of both, which are a random sample of
    A or B (Broder 1997, section 4); of 256 its standard error is at most 0.031.
    """
    smallest = np.union1d(first, second)[:count]
    common = np.intersect1d(first, second, assume_unique=True)
    return float(np.isin(smallest, common, assume_unique=True).mean())


def _sketches(texts: Sequence[bytes], count: int) -> Iterator[np.ndarray]:
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


def _unique(values: np.ndarray) -> np.ndarray:
    """Sorted; by sorting, which for so few takes a fraction of np.unique's hash table."""
    values = np.sort(values)
    keep = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


# ---- questions: against many that are known from the start ---------------------------------------

# A key is a hash's upper 38 bits, and in its lower 26 the number of the sketch that it is of.
_OWNER_BITS = np.uint64(26)
_OWNER = np.uint64((1 << 26) - 1)
_NO_KEY = (1 << 64) - 1  # no shingle has this hash, or is not looked at if it has


class NearDuplicates:
    """Finds whether a question is nearly one of those given: jaccard(shingles) >= threshold.

    Prefix filter (Chaudhuri et al. 2006; Bayardo et al. 2007): with both sets in one order, here that
    of the hashes, two that share the threshold's part cannot differ in all of their first few. So
    only these of each sketch are kept as keys to look up, and jaccard is asked of what they find. In
    memory are 1 kB a long question, and at a threshold of 0.8 another 0.6 kB: sketches are kept as
    their upper 32 bits, which join two of 256 hashes by a chance of 1 in 100,000.
    """

    def __init__(self, questions: Iterable[str], threshold: float = 0.8) -> None:
        self._threshold = threshold
        self._sketches: list[bytes] = []
        keys = array("Q")
        for block in in_blocks(questions):
            for sketch in _sketches(plain_texts(block), _KEPT):
                first = sketch[: self._prefix(len(sketch))]
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
        """Whether each question is one; a block of them costs little more than one."""
        return [near for some in _at_once(plain_texts(questions)) for near in self._find(some)]

    def _find(self, texts: list[bytes]) -> list[bool]:
        # 1) of all shingles of the block those that the sieve lets through: few
        hashes, bounds = _shingle_hashes(texts)
        hashes &= ~_OWNER
        left = self._sieve.may_have(hashes)
        # 2) of these the ones that are keys, and the texts they are of
        hashes = hashes[left]
        hits = (self._keys[self._keys.searchsorted(hashes)] ^ hashes) <= _OWNER
        asked = bounds.searchsorted(left[hits], side="right") - 1
        # 3) these texts alone are compared
        near = [False] * len(texts)
        for k in set(asked.tolist()):
            near[k] = self._is_near(texts[k], np.unique(hashes[hits][asked == k]))
        return near

    def _is_near(self, text: bytes, hits: np.ndarray) -> bool:
        """hits: the upper bits of those of its hashes that are among the keys."""
        sketch = next(_sketches([text], _KEPT))
        hits = hits[hits <= sketch[self._prefix(len(sketch)) - 1]]
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

    def _prefix(self, size: int) -> int:
        """How many of a sketch of that size: one that has threshold * size of it has one of them."""
        return size - max(1, math.ceil(self._threshold * size - 1e-6)) + 1


class _Sieve:
    """Tells at once of most hashes that no key begins like them: a Bloom filter of one hash.

    It has 16 to 32 bits for each key, one of them set. Most rows of a file resemble no held-out one,
    so what they cost is this look-up: one bit a shingle, where a search in the keys takes 20 steps.
    """

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


# ---- documents: each against those before it -----------------------------------------------------

_KEYS = 3  # hashes that a document is remembered by
_COMMON = 8  # documents that share a hash which tells nothing any more


class EarlierDocuments:
    """Finds the earlier document that a document equals, or nearly equals: jaccard >= near.

    near None: equal ones only. Compared are documents that share one of their three smallest hashes;
    near ones differ in all three by a small chance only. A hash that eight documents have is taken
    for one of a common text (a licence, a header), and the next smallest is taken instead.
    """

    def __init__(self, near: float | None) -> None:
        self._near = near
        self._equal: dict[bytes, str] = {}
        self._by_hash: dict[int, tuple[int, ...]] = {}
        self._sketches: list[tuple[str, bytes]] = []

    def find(self, document: Document) -> tuple[Literal["equal", "nearly_equal"], str] | None:
        """How, and to which id; None, and remembered, where it is the first of its kind."""
        digest = bytes.fromhex(document.content_hash)
        if (same := self._equal.get(digest)) is not None:
            return "equal", same
        if self._near is not None:
            sketch = shingles(document.text, _KEPT_OF_DOCUMENT)
            keys, others = self._keys(sketch)
            for id, known in (self._sketches[other] for other in others):
                known = np.frombuffer(known, np.uint64)
                if jaccard(sketch, known, _KEPT_OF_DOCUMENT) >= self._near:
                    return "nearly_equal", id
            for key in keys:
                self._by_hash[key] = (*self._by_hash.get(key, ()), len(self._sketches))
            # as bytes: an array would keep all its hashes alive
            self._sketches.append((document.id, sketch.tobytes()))
        self._equal[digest] = document.id
        return None

    def _keys(self, sketch: np.ndarray) -> tuple[list[int], list[int]]:
        """The hashes to remember a document by, and the documents that share one of its first."""
        keys, others = list[int](), dict[int, None]()
        for key in sketch.tolist():
            known = self._by_hash.get(key, ())
            others |= dict.fromkeys(known)
            if len(known) < _COMMON:
                keys.append(key)
            if len(keys) == _KEYS:
                break
        return keys, list(others)
