"""Accuracy, agreement, position and length bias, with intervals; every random choice is seeded.

An item is judged twice, in both orders of its answers. A judgment that cannot be read is wrong in
an accuracy, and is in no rate that needs a verdict; the readable share stands beside it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefpipe.evaluation import calibration


@dataclass(frozen=True, slots=True)
class BothOrders:
    """One item and what a judge said of it in both orders, in terms of its own answers 1 and 2."""

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

    def as_accuracy(self) -> dict[str, Any]:
        """Its fields in a report."""
        return {"accuracy": self.value, "interval": [self.low, self.high]}


def wilson(successes: float, n: float, z: float = 1.959964) -> Estimate:
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
    if not len(scores):
        return Estimate(0.0, 0.0, 1.0)
    values = np.asarray(scores, dtype=np.float64)
    mean = float(values.mean())
    if len(values) == 1:  # scipy asks for two
        return Estimate(mean, mean, mean)
    from scipy.stats import bootstrap

    # batch: a matrix of all draws would take 8 bytes an item and draw
    options = {"n_resamples": draws, "batch": 100, "method": "percentile"}
    drawn = bootstrap((values,), np.mean, rng=np.random.default_rng(seed), **options)
    return Estimate(mean, *map(float, drawn.confidence_interval))


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p that two judges err alike on the same items; McNemar 1947, binomial form."""
    from scipy.stats import binomtest

    only_one = [a for a, b in zip(first, second, strict=True) if a != b]
    return float(binomtest(sum(only_one), len(only_one), 0.5).pvalue) if only_one else 1.0


def order_scores(rows: Sequence[BothOrders]) -> list[float]:
    """For each item that is no tie, the share of its two orders that were judged right: 0, 0.5 or 1."""
    return [
        ((r.given == r.better) + (r.swapped == r.better)) / 2 for r in rows if r.better is not None
    ]


def judge_report(rows: Sequence[BothOrders], *, seed: int = 0) -> dict[str, Any]:
    """How good a judge is, and how it errs. Shares are 0 to 1; None: there is nothing to share.

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
    accuracy = mean_with_interval(order_scores(rows), seed=seed).as_accuracy()
    verdicts = [(r, v, first) for r in rows for v, first in ((r.given, 1), (r.swapped, 2))]
    read = [(r, v, first) for r, v, first in verdicts if v is not None]
    both = [r for r in rows if r.given is not None and r.swapped is not None]
    unequal = [(r, v) for r, v, _ in read if r.lengths[0] != r.lengths[1]]
    longer = [r for r in decided if r.lengths[0] != r.lengths[1]]
    return {
        "n": len(rows),
        "ties": len(rows) - len(decided),
        **(accuracy if decided else {"accuracy": None, "interval": None}),
        "both_right": share([r.given == r.better == r.swapped for r in decided]),
        "readable": share([v is not None for _, v, _ in verdicts]),
        "agreement": share([r.given == r.swapped for r in both]),
        "first_position": share([v == first for _, v, first in read]),
        "picks_longer": share([v == longer_answer(r) for r, v in unequal]),
        "longer_is_right": share([r.better == longer_answer(r) for r in longer]),
    }


def longer_answer(row: BothOrders) -> int | None:
    """1 or 2; None where both are of one length."""
    first, second = row.lengths
    return None if first == second else 1 if first > second else 2


def share(facts: Sequence[float]) -> float | None:
    """Their mean; None: there is nothing to take a share of."""
    return sum(facts) / len(facts) if facts else None


# ---- scores of pairs: reward and pairwise models ------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair and by how much a model prefers its chosen response."""

    id: str
    question: str
    """Equal for pairs of one prompt: they are no independent evidence."""
    margin: float
    """Log-odds that chosen is better: r(chosen) - r(rejected), or logit of the probability."""
    tie: bool
    """Annotators saw no difference: there is no right answer, the fair probability is 0.5."""
    lengths: tuple[int, int]
    """Characters of chosen and of rejected."""


def half_for_ties(margins: Sequence[float]) -> list[float]:
    """1 where the margin is positive, 0.5 where it is exactly 0, else 0."""
    return [0.5 if m == 0 else float(m > 0) for m in margins]


def share_with_interval(
    scores: Sequence[float], groups: Sequence[str] | None = None, z: float = 1.959964
) -> Estimate:
    """A mean of scores in 0..1 with its 95 % interval; items of one group count as dependent.

    Wilson's interval on the effective sample size n / deff; deff, the design effect, is the
    variance of the mean over whole groups by that over single items (Korn & Graubard 1998). It is
    taken as at least 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    residuals = values - values.mean()
    alone = float((residuals**2).sum())
    deff = 1.0
    if groups is not None and alone > 0:
        sums: dict[str, float] = defaultdict(float)
        for group, residual in zip(groups, residuals.tolist(), strict=True):
            sums[group] += residual
        deff = max(1.0, sum(s * s for s in sums.values()) / alone)
    return wilson(float(values.mean()) * n / deff, n / deff, z)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation; None where one side is constant."""
    from scipy.stats import spearmanr

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def length_buckets(
    differences: Sequence[int], scores: Sequence[float], buckets: int = 5
) -> list[dict[str, Any]]:
    """Accuracy by length difference (chosen - rejected), in buckets of about equal size.

    Equal differences share a bucket, so there can be fewer; from and to are both inside.
    """
    parts = np.array_split(np.sort(np.asarray(differences, dtype=int)), buckets)
    starts = np.unique([part[0] for part in parts if len(part)])
    bucket_of = np.searchsorted(starts, differences, side="right") - 1
    filled = []
    for k in range(len(starts)):
        inside = np.flatnonzero(bucket_of == k).tolist()
        lengths = [differences[i] for i in inside]
        accuracy = share_with_interval([scores[i] for i in inside]).as_accuracy()
        filled.append({"from": min(lengths), "to": max(lengths), "n": len(inside), **accuracy})
    return filled


def preference_report(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """How good a model's preferences are, and how far its probabilities can be trusted.

    n, ties         pairs; how many of them are labelled ties (in the calibration, in no accuracy)
    accuracy        share with a positive margin; a margin of exactly 0 counts half
    interval        its 95 % interval; pairs of one question are no independent evidence
    undecided       share of the pairs with a margin of exactly 0
    mean_margin     in the model's own unit, of the pairs that are no ties
    ece             |confidence - accuracy| of sigmoid(margin), on average
    temperature     margins divided by it fit best; over 1: the model is too sure
    ece_scaled      ece after scaling, each half by the temperature fitted on the other half
    reliability     the bins behind ece; reliability_scaled: after scaling
    spearman        of |margin| with being right: does a larger margin mean more?
    by_length       accuracy by length difference in characters (chosen - rejected)
    longer_is_right what picking the longer response would score, with its interval
    """
    decided = [p for p in pairs if not p.tie]
    margins, questions = [p.margin for p in decided], [p.question for p in decided]
    scores, differences = half_for_ties(margins), [p.lengths[0] - p.lengths[1] for p in decided]
    accuracy = share_with_interval(scores, questions)
    longer = share_with_interval(half_for_ties(differences), questions)
    every, outcomes = [p.margin for p in pairs], [0.5 if p.tie else 1.0 for p in pairs]
    scaled = calibration.cross_scaled(every, outcomes, [p.question for p in pairs])
    return {
        "n": len(pairs),
        "ties": len(pairs) - len(decided),
        **accuracy.as_accuracy(),
        "undecided": share([m == 0 for m in margins]),
        "mean_margin": float(np.mean(margins)) if margins else 0.0,
        "ece": calibration.expected_calibration_error(every, outcomes),
        "temperature": calibration.fit_temperature(every, outcomes),
        "ece_scaled": calibration.expected_calibration_error(scaled, outcomes),
        "reliability": [asdict(b) for b in calibration.reliability(every, outcomes)],
        "reliability_scaled": [asdict(b) for b in calibration.reliability(scaled, outcomes)],
        "spearman": spearman([abs(m) for m in margins], scores),
        "by_length": length_buckets(differences, scores) if decided else [],
        "longer_is_right": longer.value,
        "longer_is_right_interval": [longer.low, longer.high],
    }
