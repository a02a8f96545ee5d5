"""How far a model's probabilities can be trusted: reliability, and the temperature that mends them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    low: float
    high: float
    n: int
    confidence: float
    """Mean probability of the preferred response."""
    accuracy: float
    """Share in which it is the better one; a labelled tie is half."""


def reliability(
    margins: Sequence[float], outcomes: Sequence[float], bins: int = 10
) -> list[ReliabilityBin]:
    """Confidence against accuracy of the preferred response, in equal bins of 0.5..1.

    outcomes: 1 where chosen is better, 0.5 for a labelled tie. Empty bins are left out.
    """
    margin = np.asarray(margins, dtype=np.float64)
    outcome = np.asarray(outcomes, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    hit = np.where(margin > 0, outcome, np.where(margin < 0, 1 - outcome, 0.5))
    bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    filled = []
    for k in np.unique(bin_of).tolist():
        inside = bin_of == k
        edges = 0.5 + k / (2 * bins), 0.5 + (k + 1) / (2 * bins)
        means = float(confidence[inside].mean()), float(hit[inside].mean())
        filled.append(ReliabilityBin(*edges, int(inside.sum()), *means))
    return filled


def expected_calibration_error(
    margins: Sequence[float], outcomes: Sequence[float], bins: int = 10
) -> float:
    """Mean |accuracy - confidence| over the bins of `reliability`, weighted by their size.

    Guo et al. 2017, eq. 3. It is never 0 on few pairs, not even for a calibrated model.
    """
    if not len(margins):
        return 0.0
    parts = reliability(margins, outcomes, bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in parts) / len(margins)


FEWEST = 30
"""Pairs that a temperature is fitted on, at least."""


def fit_temperature(margins: Sequence[float], outcomes: Sequence[float]) -> float:
    """The T > 0 for which sigmoid(margin / T) fits the outcomes best (log loss); Guo et al. 2017.

    The loss is convex in 1 / T, so its slope is bisected. Between 0.001 and 1000: 0.001 where every
    pair is right (no finite T is best), 1000 where margins say nothing or the opposite. Of fewer than
    FEWEST pairs it is 1: five pairs once said 1000.
    """
    if len(margins) < FEWEST:
        return 1.0
    margin = np.asarray(margins, dtype=np.float64)
    outcome = np.asarray(outcomes, dtype=np.float64)
    low, high = np.log(1e-3), np.log(1e3)  # of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-np.clip(margin * np.exp(middle), -60, 60)))
        if float((margin * (p - outcome)).sum()) > 0:
            high = middle
        else:
            low = middle
    return float(np.exp(-(low + high) / 2))


def scaled_loss(margins: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean log loss once the margins are divided by the temperature that fits them best.

    What a model knows, whatever it makes of its own confidence: one that is right more often, and far
    too sure, has the higher loss and the lower scaled loss.
    """
    margin = np.asarray(margins, dtype=np.float64) / fit_temperature(margins, outcomes)
    return float((np.logaddexp(0, margin) - np.asarray(outcomes) * margin).mean())


def fit_order_temperature(
    given: Sequence[float], swapped: Sequence[float], outcomes: Sequence[float]
) -> float:
    """The T for which the mean of sigmoid(given / T) and sigmoid(swapped / T) fits best (log loss).

    given, swapped: log-odds of one pair in both orders. Between 0.05 and 50; 1 of fewer than FEWEST
    pairs.
    """
    if len(given) < FEWEST:
        return 1.0
    from scipy.optimize import minimize_scalar

    both = np.array([given, swapped], dtype=np.float64)
    outcome = np.asarray(outcomes, dtype=np.float64)

    def loss(log_t: float) -> float:
        p = (1 / (1 + np.exp(-np.clip(both / np.exp(log_t), -60, 60)))).mean(0)
        p = np.clip(p, 1e-13, 1 - 1e-13)
        return float(-(outcome * np.log(p) + (1 - outcome) * np.log1p(-p)).mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(50)), method="bounded")
    return float(np.exp(best.x))  # pyright: ignore[reportAttributeAccessIssue]


def cross_scaled(
    margins: Sequence[float], outcomes: Sequence[float], groups: Sequence[str]
) -> list[float]:
    """Each margin divided by the temperature fitted on the other half of the groups.

    So that calibration after scaling is measured on pairs that did not choose the temperature.
    """
    half = [hashlib.sha256(group.encode()).digest()[0] % 2 for group in groups]
    columns = list(zip(margins, outcomes, half, strict=True))
    temperature = {}
    for side in (0, 1):
        others = [(m, o) for m, o, h in columns if h != side]
        temperature[side] = fit_temperature(*zip(*others, strict=True)) if others else 1.0
    return [m / temperature[h] for m, _, h in columns]
