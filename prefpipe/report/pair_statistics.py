"""What a file of preferences is like: lengths, languages, sources, margins, openings, style; streamed.

Counts are over all rows. What compares texts (near-duplicates, the most similar answers) and what is
read one by one is over a sample, the rows with the smallest hash of seed and id: whatever their order.
"""

import heapq
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prefpipe import draws
from prefpipe.languages import detect_language
from prefpipe.rows import Item, JudgmentPair, Preference, Row, answer_of, flatten_turns

_LANGUAGE_OF = 2000  # characters that tell it
_OPENINGS = 100_000  # different ones that are remembered at once
_LIST = re.compile(r"^ *(?:[-*•]|\d+[.)]) ", re.M)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
STYLE: dict[str, Callable[[str], object]] = {
    "list": lambda text: _LIST.search(text) if "\n" in text else _LIST.match(text),
    "heading": lambda text: text.startswith("#") or "\n#" in text,
    "bold": lambda text: "**" in text,
    "code block": lambda text: "```" in text,
    "formula": lambda text: (
        ("$" in text and ("\\" in text or text.count("$") > 1)) or "\\(" in text
    ),
    "link": lambda text: "](" in text or "://" in text,
    "emoji": lambda text: not text.isascii() and _EMOJI.search(text),
    "exclamation": lambda text: "!" in text,
    "ends with a question": lambda text: text.rstrip().endswith(("?", "？")),
}
"""Marks of style, and whether a text has one."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two answers, of whichever kind of row."""

    id: str
    source: str
    prompt: str
    chosen: str
    rejected: str
    margin: float | None
    tie: bool
    row: Row


def pairs_of(rows: Iterator[Row]) -> Iterator[Pair]:
    """Rows of two answers; what a row is: a preference, an item, or a pair of judgments."""
    for row in rows:
        if isinstance(row, Preference):
            prompt = flatten_turns(row.prompt)
            chosen, rejected = answer_of(row.chosen), answer_of(row.rejected)
            yield Pair(row.id, row.source or "", prompt, chosen, rejected, row.margin, row.tie, row)
        elif isinstance(row, Item):
            sides = [row.answer_1, row.answer_2]
            chosen, rejected = reversed(sides) if row.better == 2 else sides
            tie = row.better is None
            yield Pair(row.id, row.source, row.question, chosen, rejected, None, tie, row)
        elif isinstance(row, JudgmentPair):
            prompt = flatten_turns(row.prompt)
            chosen, rejected = answer_of(row.chosen), answer_of(row.rejected)
            yield Pair(row.id, row.pair_type, prompt, chosen, rejected, None, False, row)


@dataclass
class Statistics:
    """What is counted over the pairs of a file."""

    seed: int
    sampled: int
    """Rows that are kept to be compared and read."""
    n: int = 0
    ties: int = 0
    longer_wins: int = 0
    shorter_wins: int = 0
    chosen_lengths: array = field(default_factory=lambda: array("I"))
    rejected_lengths: array = field(default_factory=lambda: array("I"))
    margins: array = field(default_factory=lambda: array("d"))
    prompts: array = field(default_factory=lambda: array("q"))
    """A hash of each prompt."""
    sources: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    openings: dict[str, Counter[str]] = field(
        default_factory=lambda: {"chosen": Counter(), "rejected": Counter()}
    )
    styles: dict[str, Counter[str]] = field(
        default_factory=lambda: {"chosen": Counter(), "rejected": Counter()}
    )
    _sample: list[tuple[int, int, Pair]] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Count one pair."""
        self.n += 1
        self.sources[pair.source] += 1
        self.languages[detect_language(pair.prompt[:_LANGUAGE_OF])] += 1
        self.prompts.append(hash(pair.prompt))
        if pair.margin is not None:
            self.margins.append(pair.margin)
        self._keep(pair)
        if pair.tie:  # its sides are in no order: what they differ in says nothing
            self.ties += 1
            return
        chosen, rejected = len(pair.chosen), len(pair.rejected)
        self.chosen_lengths.append(chosen)
        self.rejected_lengths.append(rejected)
        self.longer_wins += chosen > rejected
        self.shorter_wins += chosen < rejected
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            openings, styles = self.openings[side], self.styles[side]
            openings[opening(text)] += 1
            if len(openings) > _OPENINGS:  # those that were rare so far; the frequent ones stay
                self.openings[side] = Counter(dict(openings.most_common(_OPENINGS // 2)))
            for name, has in STYLE.items():
                if has(text):
                    styles[name] += 1

    def _keep(self, pair: Pair) -> None:
        entry = (-draws.number(self.seed, pair.id), -self.n, pair)  # n: no two are equal
        if len(self._sample) < self.sampled:
            heapq.heappush(self._sample, entry)
        elif entry > self._sample[0]:
            heapq.heapreplace(self._sample, entry)

    @property
    def sample(self) -> list[Pair]:
        """The sampled pairs, in the order of their hash: each beginning is a sample, too."""
        return [pair for _, _, pair in sorted(self._sample, key=lambda e: (-e[0], -e[1]))]

    @property
    def repeated_prompts(self) -> int:
        """Rows whose prompt, letter for letter, stands in an earlier row."""
        import numpy as np

        return self.n - len(np.unique(np.frombuffer(self.prompts, np.int64)))


def opening(text: str) -> str:
    """The first two words of a text, or six characters where it has no spaces."""
    start = text.lstrip()[:40].split()
    words = " ".join(start[:2]).lower()
    return words if words.isascii() else words[:6]
