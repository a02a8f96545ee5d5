"""Pairs: where the better answer stands, which side of the split a question is on, which judgments
are set against each other.

Everything here is a pure function of its rows and of (seed, id): the order of the rows, a limit or
a resumed run change nothing.
"""

import functools
import hashlib
import math
import random
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from prefpipe.files import DataError
from prefpipe.prompts import detect_language, flatten_turns, judge_prompt
from prefpipe.rows import (
    CleanJudgment,
    Item,
    JudgmentPair,
    Message,
    PairType,
    Preference,
    Reject,
    Split,
)

# ---- a preference as a question with two answers ---------------------------------------------


def build_item(
    row: Preference, *, split: Split, seed: int, template: str | None = None
) -> Item | Reject:
    """The better answer stands first or second by a coin drawn from (seed, row.id).

    A tie stays a tie (better None) and is placed by the same coin. Left out: an empty question or
    answer, and answers that are equal but for white space.
    """
    turns = (
        row.prompt if isinstance(row.prompt, list) else [Message(role="user", content=row.prompt)]
    )
    question = flatten_turns(turns)
    chosen, rejected = _answer(row.chosen), _answer(row.rejected)
    if not question.strip():
        return Reject(id=row.id, reason="empty_question")
    if not chosen.strip() or not rejected.strip():
        return Reject(id=row.id, reason="empty_answer")
    if _is_equal_but_for_space(chosen, rejected):
        return Reject(id=row.id, reason="identical_answers")
    better = random.Random(f"{seed}:{row.id}").choice((1, 2))
    answer_1, answer_2 = (chosen, rejected) if better == 1 else (rejected, chosen)
    language = detect_language(question)
    return Item(
        id=row.id,
        source=row.source or "unknown",
        split=split,
        language=language,
        question=question,
        answer_1=answer_1,
        answer_2=answer_2,
        better=None if row.tie else better,
        prompt=judge_prompt(question, answer_1, answer_2, language=language, template=template),
    )


def _answer(response: str | list[Message]) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def _is_equal_but_for_space(first: str, second: str) -> bool:
    if first.split(maxsplit=8)[:8] != second.split(maxsplit=8)[:8]:  # most texts differ early
        return False
    return first.split() == second.split()


def swap(item: Item, *, template: str | None = None) -> Item:
    """The same item with its answers the other way round, and the verdict with them.

    template: the one its prompt was made with. DataError where that gives another prompt.
    """

    def prompt(answer_1: str, answer_2: str) -> str:
        language = item.language
        return judge_prompt(item.question, answer_1, answer_2, language=language, template=template)

    if prompt(item.answer_1, item.answer_2) != item.prompt:
        raise DataError(
            f"item {item.id!r}: its prompt is not the template's; give --template as it was given "
            "to preprocess_dataset.py"
        )
    return item.model_copy(
        update={
            "answer_1": item.answer_2,
            "answer_2": item.answer_1,
            "better": None if item.better is None else 3 - item.better,
            "prompt": prompt(item.answer_2, item.answer_1),
        }
    )


# ---- the split, by question ------------------------------------------------------------------

_WINDOW = 24  # bytes of normalised text in one shingle, about five words
_BASE = 0xD1342543DE82EF95  # of the polynomial hash, modulo 2^64
_KEPT = 256  # the shingles with the smallest hashes, of a text that has more
_OWNER = np.uint64((1 << 26) - 1)  # the bits of a key that say whose hash it is
_NO_KEY = (1 << 64) - 1
_WORD = re.compile(r"[^\W_]+")
_ASCII_WORDS = bytes(
    ord(chr(b).lower()) if b < 128 and chr(b).isalnum() else 32 for b in range(256)
)


def question_key(question: str) -> str:
    """Equal for questions that differ in case, white space, punctuation or Unicode form only."""
    return hashlib.blake2b(_plain(question).encode(), digest_size=12).hexdigest()


def _plain(question: str) -> str:
    """Its words, in lower case, one space between them; where it has none, the text itself."""
    if question.isascii():  # most texts; the same as below, in a fifth of the time
        words = question.encode().translate(_ASCII_WORDS).split()
        return b" ".join(words).decode() or question.casefold().strip()
    text = unicodedata.normalize("NFKC", question).casefold()
    return " ".join(_WORD.findall(text)) or text.strip()


def split_of(question: str, *, validation_share: float, seed: int) -> Split:
    """The same side for every row of a question, whatever other rows there are."""
    share = random.Random(f"{seed}:split:{question_key(question)}").random()
    return "validation" if share < validation_share else "train"


def shingles(question: str) -> np.ndarray:
    """Sorted unique hashes (uint64) of the text's 24-byte windows; of many, the 256 smallest.

    A text shorter than a window is one hash of the whole.
    """
    return _smallest(_window_hashes(question), _KEPT)


def _window_hashes(question: str) -> np.ndarray:
    """A hash (uint64) of each 24-byte window of its normalised text, in the text's order."""
    plain = _plain(question).encode()
    if len(plain) < _WINDOW:
        digest = hashlib.blake2b(plain, digest_size=8).digest()
        return np.array([int.from_bytes(digest, "big")], dtype=np.uint64)
    count = 1 << len(plain).bit_length()
    powers, inverses = _powers(count)
    terms = np.frombuffer(plain, dtype=np.uint8) * powers[: len(plain)]
    sums = terms.cumsum()
    windows = sums[_WINDOW - 1 :].copy()
    windows[1:] -= sums[:-_WINDOW]  # a window's hash, times _BASE to its place
    return windows * inverses[: len(windows)]


def _smallest(hashes: np.ndarray, count: int) -> np.ndarray:
    """The smallest `count` distinct values, sorted; all where there are fewer."""
    likely = 1.25 * (count + 40) / len(hashes)
    if likely < 0.6:  # hashes are spread evenly: most of the sorting can be left out
        few = _unique(hashes[hashes < np.uint64(likely * 2**64)])
        if len(few) >= count:
            return few[:count]
    return _unique(hashes)[:count]


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
    0.8 another 0.4 kB: hashes are kept as their upper 32 bits, which join two of 256 by a chance of
    1 in 100,000.
    """

    def __init__(self, questions: Iterable[str], threshold: float = 0.8) -> None:
        self._threshold = threshold
        self._sketches: list[bytes] = []
        keys = array("Q")  # the upper bits of a hash, and which sketch it is of
        for owner, question in enumerate(questions):
            sketch = shingles(question)
            self._sketches.append(_upper_half(sketch).tobytes())
            first = sketch[: self._first(len(sketch))]
            keys.frombytes((first & ~_OWNER | np.uint64(owner)).tobytes())
        keys.append(_NO_KEY)  # so that a search ends within them
        self._keys = np.frombuffer(keys, np.uint64)
        self._keys.sort()

    def __contains__(self, question: str) -> bool:
        hashes = _window_hashes(question)
        # at least as many as there have to be: a sketch may have fewer than _KEPT
        first = _smallest(hashes, self._first(_KEPT)) & ~_OWNER
        starts = self._keys.searchsorted(first)
        found = (self._keys[starts] ^ first) <= _OWNER
        if not found.any():
            return False
        ends = self._keys.searchsorted(first[found] | _OWNER, side="right")
        owners = {
            int(key & _OWNER)
            for start, end in zip(starts[found], ends, strict=True)
            for key in self._keys[start:end]
            if key != _NO_KEY
        }
        half = _upper_half(_smallest(hashes, _KEPT))
        return any(
            jaccard(half, np.frombuffer(self._sketches[owner], np.uint32)) >= self._threshold
            for owner in owners
        )

    def _first(self, size: int) -> int:
        """How many of a sketch of that size: one that has threshold * size of it has one of them."""
        return size - max(1, math.ceil(self._threshold * size - 1e-6)) + 1


def _upper_half(sketch: np.ndarray) -> np.ndarray:
    return _unique((sketch >> np.uint64(32)).astype(np.uint32))


# ---- judgments against each other ------------------------------------------------------------


def build_judgment_pairs(
    item: Item,
    judgments: Sequence[CleanJudgment],
    *,
    max_best_of_n: int,
    max_unreadable: int,
    max_hint: int,
    seed: int,
) -> list[JudgmentPair] | Reject:
    """Pairs of one item's judgments: a right verdict (chosen) against a wrong or unreadable one.

    best_of_n             right against wrong among the samples without a hint
    best_of_n_unreadable  right against a sample nobody can read, which is only ever rejected
    hint                  the text for the right hint against the one for the wrong hint; where one
                          of them is unreadable, a sample without a hint stands in for it

    Which samples meet is drawn from (seed, id); within a type no text is used twice on the same
    side. Source: Con-J, Ye et al., ICLR 2025, section 3.
    """
    if item.better is None:
        return Reject(id=item.id, reason="tie")
    if not judgments:
        return Reject(id=item.id, reason="no_judgments")
    rng = random.Random(f"{seed}:{item.id}")
    free = [j for j in judgments if j.hint is None]
    right = _shuffled([j for j in free if j.verdict == item.better], rng)
    wrong = _shuffled([j for j in free if j.verdict == 3 - item.better], rng)
    unreadable = _shuffled([j for j in free if j.verdict is None and j.text.strip()], rng)
    told = [j for j in judgments if j.variant in ("guide", "guide_reverse") and j.verdict]
    told_right = [j for j in told if j.verdict == item.better]
    told_wrong = [j for j in told if j.verdict == 3 - item.better]

    plans: list[tuple[PairType, list[CleanJudgment], list[CleanJudgment], int]] = [
        ("best_of_n", right, wrong, max_best_of_n),
        ("best_of_n_unreadable", right[::-1], unreadable, max_unreadable),
    ]
    if told_right or told_wrong:
        plans.append(("hint", told_right or right[-1:], told_wrong or wrong[-1:], max_hint))
    pairs: list[JudgmentPair] = []
    seen: set[tuple[str, str]] = set()
    for pair_type, chosen, rejected, most in plans:
        made = 0
        for good, bad in zip(chosen, rejected, strict=False):
            texts = (good.judgment or "", bad.judgment or bad.text)
            if made == most or texts in seen:
                continue
            seen.add(texts)
            pairs.append(_pair(item, pair_type, made, good, bad, texts))
            made += 1
    if pairs:
        return pairs
    if not any(j.verdict for j in judgments):
        return Reject(id=item.id, reason="all_unreadable")
    if not (right or told_right):
        return Reject(id=item.id, reason="no_right_judgment")
    if not (wrong or unreadable or told_wrong):
        return Reject(id=item.id, reason="no_wrong_judgment")
    return Reject(id=item.id, reason="no_pair_of_a_wanted_type")


def _pair(
    item: Item,
    pair_type: PairType,
    number: int,
    chosen: CleanJudgment,
    rejected: CleanJudgment,
    texts: tuple[str, str],
) -> JudgmentPair:
    assert item.better is not None
    return JudgmentPair(
        id=f"{item.id}:{pair_type}:{number}",
        item_id=item.id,
        split=item.split,
        pair_type=pair_type,
        better=item.better,
        prompt=[Message(role="user", content=item.prompt)],
        chosen=[Message(role="assistant", content=texts[0])],
        rejected=[Message(role="assistant", content=texts[1])],
        chosen_sample=chosen.sample,
        rejected_sample=rejected.sample,
    )


def _shuffled(judgments: list[CleanJudgment], rng: random.Random) -> list[CleanJudgment]:
    """In an order of the item's own, distinct texts only: equal samples add nothing to a pair."""
    unique = list({j.judgment or j.text: j for j in judgments}.values())
    rng.shuffle(unique)
    return unique
