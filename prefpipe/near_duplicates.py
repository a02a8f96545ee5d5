"""Texts that are nearly the same: questions that resemble a held-out one, documents that stand twice.

Two texts are compared by their shingles (prefpipe/shingles.py).
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from prefpipe.questions import in_blocks
from prefpipe.rows import Document
from prefpipe.shingles import KEPT, at_once, jaccard, shingle_hashes, shingles, sketches, unique
from prefpipe.words import plain_texts

_KEPT_OF_DOCUMENT = 32


# ---- questions: against many that are known from the start ---------------------------------------

# A key is a hash's upper 38 bits, and in its lower 26 the number of the sketch that it is of.
_OWNER_BITS = np.uint64(26)
_OWNER = np.uint64((1 << 26) - 1)
_NO_KEY = (1 << 64) - 1  # no shingle has this hash, or is not looked at if it has
_MANY = 16  # questions that share a hash, which then tells nothing of them


class NearDuplicates:
    """Finds whether a question is nearly one of those given: jaccard(shingles) >= threshold.

    What more than 16 of them share (a system prompt, a template) is left out of the comparison: two
    questions behind one long beginning are not the same question. It counts where a question has
    nothing else, that is, where the question itself is given so often.

    Prefix filter (Chaudhuri et al. 2006; Bayardo et al. 2007): with both sets in one order, here that
    of the hashes, two that share the threshold's part cannot differ in all of their first few. So
    only these of each sketch are kept as keys to look up, and jaccard is asked of what they find. In
    memory are 2 kB a long question, and at a threshold of 0.8 another 0.4 kB.
    """

    def __init__(self, questions: Iterable[str], threshold: float = 0.8) -> None:
        self._threshold = threshold
        self._given = [
            sketch.tobytes()
            for block in in_blocks(questions)
            for sketch in sketches(plain_texts(block), KEPT)
        ]
        self._common = self._common_hashes()
        keys, common_keys = array("Q"), Counter[int]()
        self._has_own = bytearray(len(self._given))
        for owner in range(len(self._given)):
            sketch = np.frombuffer(self._given[owner], np.uint64)
            own = self._own(sketch)
            self._has_own[owner] = len(own) > 0
            first = self._prefix(own if len(own) else sketch)
            if not len(own):  # as many as share these hashes are all nearly alike: some will do
                first = first[[common_keys[key] < _MANY for key in first.tolist()]]
                common_keys.update(first.tolist())
            keys.frombytes((first & ~_OWNER | np.uint64(owner)).tobytes())
        keys.append(_NO_KEY)  # so that a search ends within them
        self._keys = np.frombuffer(keys, np.uint64)
        self._keys.sort()
        self._sieve = _Sieve(self._keys)

    def _common_hashes(self) -> np.ndarray:
        """Those of more than _MANY questions, sorted."""
        hashes = np.frombuffer(b"".join(self._given), np.uint64).copy()
        hashes.sort()
        return unique(hashes[_MANY:][hashes[_MANY:] == hashes[:-_MANY]])

    def _own(self, sketch: np.ndarray) -> np.ndarray:
        """The hashes that are not common."""
        if not len(self._common):
            return sketch
        at = np.minimum(self._common.searchsorted(sketch), len(self._common) - 1)
        return sketch[self._common[at] != sketch]

    def __contains__(self, question: str) -> bool:
        return self.find([question])[0]

    def find(self, questions: Sequence[str]) -> list[bool]:
        """Whether each question is one; a block of them costs little more than one."""
        return [near for some in at_once(plain_texts(questions)) for near in self._find(some)]

    def _find(self, texts: list[bytes]) -> list[bool]:
        # 1) of all shingles of the block those that the sieve lets through: few
        hashes, bounds = shingle_hashes(texts)
        hashes &= ~_OWNER
        left = self._sieve.may_have(hashes)
        # 2) of these the ones that are keys, and the texts they are of
        hashes = hashes[left]
        hits = (self._keys[self._keys.searchsorted(hashes)] ^ hashes) <= _OWNER
        asked = bounds.searchsorted(left[hits], side="right") - 1
        # 3) these texts alone are compared
        near = [False] * len(texts)
        for k in dict.fromkeys(asked.tolist()):
            near[k] = self._is_near(texts[k])
        return near

    def _is_near(self, text: bytes) -> bool:
        sketch = next(sketches([text], KEPT))
        own = self._own(sketch)
        firsts = [self._prefix(sketch), self._prefix(own)] if len(own) else [self._prefix(sketch)]
        hashes = unique(np.concatenate(firsts) & ~_OWNER)
        starts = self._keys.searchsorted(hashes)
        ends = self._keys.searchsorted(hashes | _OWNER, side="right")
        has = (starts < ends).nonzero()[0]
        owners = dict.fromkeys(
            int(key & _OWNER)
            for start, end in zip(starts[has].tolist(), ends[has].tolist(), strict=True)
            for key in self._keys[start:end]
            if key != _NO_KEY
        )
        return any(self._similarity(sketch, own, owner) >= self._threshold for owner in owners)

    def _similarity(self, sketch: np.ndarray, own: np.ndarray, owner: int) -> float:
        given = np.frombuffer(self._given[owner], np.uint64)
        if not self._has_own[owner]:
            return jaccard(sketch, given)
        # a full sketch says nothing of what comes behind its last hash
        reach = min((s[-1] for s in (sketch, given) if len(s) == KEPT), default=_NO_KEY)
        mine, other = (part[part <= reach] for part in (own, self._own(given)))
        return jaccard(mine, other) if len(mine) and len(other) else 0.0

    def _prefix(self, sketch: np.ndarray) -> np.ndarray:
        """The first hashes: one who has threshold * size of the sketch has one of them."""
        size = len(sketch)
        return sketch[: size - max(1, math.ceil(self._threshold * size - 1e-6)) + 1]


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
