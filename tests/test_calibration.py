"""prefpipe.evaluation.calibration: by hand, by brute force, and by scipy where it has the thing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from prefpipe.evaluation.calibration import (
    cross_scaled,
    expected_calibration_error,
    fit_order_temperature,
    fit_temperature,
    reliability,
)


def odds(p: float) -> float:
    return math.log(p / (1 - p))


def test_ece_by_hand():
    """Confidences 0.6, 0.6 (right, wrong) and 0.9, 0.9 (both right): bins of 0.05 from 0.5.
    |0.5 - 0.6| * 2/4 + |1 - 0.9| * 2/4 = 0.1. A sure loss of chosen is a wrong answer."""
    margins = [odds(0.6), -odds(0.6), odds(0.9), odds(0.9)]
    assert expected_calibration_error(margins, [1, 1, 1, 1]) == pytest.approx(0.1)
    assert expected_calibration_error([-odds(0.9)], [1]) == pytest.approx(0.9)
    bins = reliability(margins, [1, 1, 1, 1])
    assert [(b.n, round(b.confidence, 6), b.accuracy) for b in bins] == [
        (2, 0.6, 0.5),
        (2, 0.9, 1.0),
    ]


def test_ece_of_a_tie_is_the_distance_from_one_half():
    assert expected_calibration_error([odds(0.8), -odds(0.8)], [0.5, 0.5]) == pytest.approx(0.3)
    assert expected_calibration_error([0.0], [0.5]) == 0


def test_probabilities_that_are_true_have_a_small_ece_and_temperature_1():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 20_000)
    flipped = rng.random(20_000) < 1 / (1 + np.exp(margins))
    signed = np.where(flipped, -margins, margins)  # chosen first: every outcome is 1
    # a pair of log-odds m is won with probability sigmoid(m): put the winner first
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-np.abs(signed))), 1, -1) * np.abs(
        signed
    )
    ones = [1.0] * 20_000
    assert expected_calibration_error(margins.tolist(), ones) < 0.012
    assert fit_temperature(margins.tolist(), ones) == pytest.approx(1, abs=0.05)
    assert fit_temperature((3 * margins).tolist(), ones) == pytest.approx(3, abs=0.15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_temperature_is_where_the_log_loss_is_smallest(seed):
    rng = np.random.default_rng(seed)
    margins = rng.normal(0.7, 2, 60)
    outcomes = rng.choice([1.0, 1.0, 0.5], 60)

    def loss(log_t):
        x = margins / math.exp(log_t)
        return (outcomes * np.logaddexp(0, -x) + (1 - outcomes) * np.logaddexp(0, x)).mean()

    best = minimize_scalar(loss, bounds=(-6.9, 6.9), method="bounded").fun
    found = fit_temperature(margins.tolist(), outcomes.tolist())
    assert loss(math.log(found)) <= best + 1e-6


def test_the_temperature_stays_finite_where_all_are_right_or_nothing_is_known():
    assert fit_temperature([1.0, 2.0] * 15, [1, 1] * 15) == pytest.approx(0.001)
    assert fit_temperature([1.0, -1.0] * 15, [1, 1] * 15) == pytest.approx(1000)
    # too few to say anything
    assert fit_temperature([1.0, 2.0], [1, 1]) == fit_order_temperature([1.0], [2.0], [1.0]) == 1.0


def test_with_equal_orders_the_order_temperature_is_the_plain_one():
    rng = np.random.default_rng(3)
    margins = rng.normal(1, 2, 300).tolist()
    ones = [1.0] * 300
    plain = fit_temperature(margins, ones)
    assert fit_order_temperature(margins, margins, ones) == pytest.approx(plain, rel=1e-3)


def test_each_half_is_scaled_by_the_other_half_s_temperature():
    margins, ones = [4.0, -1.0, 3.0, 2.0, -0.5, 1.0] * 20, [1.0] * 120
    groups = [f"q{k}" for k in range(120)]
    scaled = cross_scaled(margins, ones, groups)
    ratios = {round(m / s, 9) for m, s in zip(margins, scaled, strict=True)}
    assert len(ratios) == 2
    one, other = sorted(ratios)
    sides = [
        [m for m, s in zip(margins, scaled, strict=True) if round(m / s, 9) == t]
        for t in (one, other)
    ]
    assert fit_temperature(sides[1], [1.0] * len(sides[1])) == pytest.approx(one, rel=1e-6)
    assert fit_temperature(sides[0], [1.0] * len(sides[0])) == pytest.approx(other, rel=1e-6)
