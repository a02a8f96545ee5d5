"""Accuracy, agreement, position and length bias, with intervals; every random choice is seeded.

An item is judged twice, in both orders of its answers. A judgment that cannot be read is wrong in
an accuracy, and is in no rate that needs a verdict; the readable share stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Judged:
    """One item and what was said about it, in terms of its own answers 1 and 2."""

    id: str
    better: int | None
    """1 or 2; None is a tie."""
    given: int | None
    """The verdict with answer 1 first; None is unreadable."""
    swapped: int | None
    """The verdict with answer 2 first, as the item's own answer number."""
    lengths: tuple[int, int]
    """Characters of answer 1 and of answer 2."""


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, n: int, z: float = 1.959964) -> Estimate:
    """A share with its 95 % interval; Wilson 1927. n = 0 gives 0 with the interval [0, 1]."""
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def mean_with_interval(scores: Sequence[float], *, seed: int = 0, draws: int = 4000) -> Estimate:
    """Mean of one score an item, with a percentile bootstrap over items (95 %).

    For scores whose parts depend on each other, as the two orders of one item do.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return Estimate(0.0, 0.0, 1.0)
    rng = np.random.default_rng(seed)
    means = np.array(
        [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p that two judges err alike on the same items; McNemar 1947, binomial form."""
    from scipy.stats import binomtest

    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def judge_report(rows: Sequence[Judged], *, seed: int = 0) -> dict[str, float | int | list[float]]:
    """How good a judge is, and how it errs. Shares are 0 to 1.

    accuracy        over items without a tie: mean of both orders; unreadable counts as wrong
    interval        its 95 % bootstrap interval over items
    n, ties         items judged; how many of them are ties (in no accuracy, but in the rates)
    readable        share of all judgments with a verdict
    both_right      share of items that are right in both orders
    agreement       share of items with the same answer in both orders, where both are readable
    first_position  share of readable judgments for the answer that stood first; unbiased is 0.5
    picks_longer    share of readable judgments for the longer answer, where lengths differ
    longer_is_right share of items whose right answer is the longer one: what picking it would score
    """
    decided = [r for r in rows if r.better is not None]
    scores = [((r.given == r.better) + (r.swapped == r.better)) / 2 for r in decided]
    accuracy = mean_with_interval(scores, seed=seed)
    verdicts = [(r, v, first) for r in rows for v, first in ((r.given, 1), (r.swapped, 2))]
    read = [(r, v, first) for r, v, first in verdicts if v is not None]
    both = [r for r in rows if r.given is not None and r.swapped is not None]
    unequal = [(r, v) for r, v, _ in read if r.lengths[0] != r.lengths[1]]
    longer = [r for r in decided if r.lengths[0] != r.lengths[1]]
    return {
        "n": len(rows),
        "ties": len(rows) - len(decided),
        "accuracy": accuracy.value,
        "interval": [accuracy.low, accuracy.high],
        "both_right": _share([r.given == r.better == r.swapped for r in decided]),
        "readable": _share([v is not None for _, v, _ in verdicts]),
        "agreement": _share([r.given == r.swapped for r in both]),
        "first_position": _share([v == first for _, v, first in read]),
        "picks_longer": _share([v == longer_answer(r) for r, v in unequal]),
        "longer_is_right": _share([r.better == longer_answer(r) for r in longer]),
    }


def longer_answer(row: Judged) -> int | None:
    """1 or 2; None where both are of one length."""
    first, second = row.lengths
    return None if first == second else 1 if first > second else 2


def _share(facts: Sequence[bool]) -> float:
    return sum(facts) / len(facts) if facts else 0.0
