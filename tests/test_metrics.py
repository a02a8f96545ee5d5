"""prefpipe.evaluation.metrics: numbers by hand, and against scipy's."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prefpipe.evaluation.calibration import expected_calibration_error
from prefpipe.evaluation.metrics import (
    BothOrders,
    Estimate,
    ScoredPair,
    half_for_ties,
    judge_report,
    length_buckets,
    longer_answer,
    mcnemar_p,
    mean_with_interval,
    order_scores,
    preference_report,
    share_with_interval,
    spearman,
    wilson,
)


def judged(id: str, better, given, swapped, lengths=(3, 2)) -> BothOrders:
    return BothOrders(id, better, given, swapped, lengths)


ROWS = [
    judged("a", 1, 1, 1),  # right in both orders
    judged("b", 1, 1, 2),  # whichever stands first
    judged("c", 2, 1, 1, (2, 3)),  # wrong in both
    judged("d", 2, 2, None, (4, 4)),  # once unreadable; lengths are equal
    judged("e", 2, None, None),  # never readable
    judged("f", None, 1, 1),  # a tie
]


def test_the_report_is_that_of_a_hand_count():
    report = judge_report(ROWS)
    interval = report.pop("interval")
    assert report == {
        "n": 6,
        "ties": 1,
        "accuracy": (1 + 1 / 2 + 0 + 1 / 2 + 0) / 5,
        "both_right": 1 / 5,
        "readable": (2 + 2 + 2 + 1 + 0 + 2) / 12,
        "agreement": 3 / 4,  # a, c, f of a, b, c, f
        # verdict 1 in the given order, 2 in the swapped one: a, b, b, c, f of 9 readable ones
        "first_position": 5 / 9,
        # the longer is answer 1 in a, b, f and 2 in c; d has none: a a, b, f f of 8
        "picks_longer": 5 / 8,
        "longer_is_right": 3 / 4,  # a, b, c of a, b, c, e
    }
    assert interval[0] < report["accuracy"] < interval[1]


def test_the_order_of_answers_and_their_numbers_are_not_mixed_up():
    """A judge that always says what stands first picks answer 1, then answer 2, as item numbers."""
    rows = [judged(str(k), 1 + k % 2, 1, 2) for k in range(10)]
    report = judge_report(rows)
    assert (report["first_position"], report["agreement"], report["accuracy"]) == (1.0, 0.0, 0.5)


def test_where_there_is_nothing_to_share_there_is_no_number():
    """E.g. not one readable judgment: an agreement of 0 would be a claim."""
    report = judge_report([judged("a", 1, None, None, (2, 2))])
    assert (report["accuracy"], report["readable"]) == (0.0, 0.0)
    names = ("agreement", "first_position", "picks_longer", "longer_is_right")
    assert [report[name] for name in names] == [None] * 4
    ties = judge_report([judged("a", None, 1, 1)])
    assert (ties["accuracy"], ties["interval"], ties["n"], ties["ties"]) == (None, None, 1, 1)


def test_scores_by_item():
    assert order_scores(ROWS) == [1.0, 0.5, 0.0, 0.5, 0.0]  # the tie has none


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(*[st.sampled_from([1, 2, None])] * 3, st.integers(0, 3), st.integers(0, 3)),
        min_size=1,
        max_size=20,
    )
)
def test_the_report_does_not_depend_on_the_order_of_the_answers(rows):
    """Each item with its answers exchanged, and its two orders with them: the same judge."""
    items = [judged(str(k), b, g, s, (l1, l2)) for k, (b, g, s, l1, l2) in enumerate(rows)]
    turn = {1: 2, 2: 1, None: None}
    mirrored = [
        judged(r.id, turn[r.better], turn[r.swapped], turn[r.given], r.lengths[::-1]) for r in items
    ]
    report = judge_report(items)
    assert judge_report(mirrored) == report
    shares = [v for k, v in report.items() if k not in ("n", "ties", "interval") and v is not None]
    assert all(0 <= share <= 1 for share in shares)


def test_the_longer_answer():
    lengths = [(3, 2), (2, 3), (2, 2)]
    assert [longer_answer(judged("a", 1, 1, 1, both)) for both in lengths] == [1, 2, None]


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (170, 200), (1, 1)])
def test_the_wilson_interval_is_scipys(successes, n):
    theirs = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    ours = wilson(successes, n)
    assert ours.value == successes / n
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_a_share_of_nothing_is_anything():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_the_bootstrap_interval_covers_as_the_normal_one_does():
    """Of 400 scores the percentile bootstrap is the normal interval, near enough."""
    rng = np.random.default_rng(0)
    scores = rng.choice([0.0, 0.5, 1.0], size=400, p=[0.2, 0.2, 0.6])
    ours = mean_with_interval(scores.tolist())
    half = 1.959964 * scores.std() / 20
    assert ours.value == pytest.approx(scores.mean())
    assert (ours.low, ours.high) == pytest.approx(
        (scores.mean() - half, scores.mean() + half), abs=0.006
    )


def test_the_bootstrap_interval_is_the_percentiles_of_means_of_items_drawn_with_replacement():
    scores = np.array([0.0, 0.5, 1.0, 1.0, 0.5, 1.0, 0.0])
    rng = np.random.default_rng(4)
    means = [scores[rng.integers(0, 7, 7)].mean() for _ in range(4000)]
    ours = mean_with_interval(scores.tolist(), seed=4)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)
    assert mean_with_interval([0.5]) == Estimate(0.5, 0.5, 0.5)


def test_the_bootstrap_is_seeded():
    scores = [0.0, 0.5, 1.0, 1.0]
    assert mean_with_interval(scores, seed=3) == mean_with_interval(scores, seed=3)
    assert str(mean_with_interval([1.0, 1.0])) == "1.000 [1.000, 1.000]"


def test_mcnemars_p_by_hand():
    """Of the items on which only one is right, 5 go to the first: 2 * (1/2)^5 = 1/16."""
    first = [True] * 5 + [True, False]
    second = [False] * 5 + [True, False]
    assert mcnemar_p(first, second) == mcnemar_p(second, first) == pytest.approx(2 / 2**5)
    # 1 against 3: 2 * (1 + 4) / 2^4
    first, second = [True, False, False, False], [False, True, True, True]
    assert mcnemar_p(first, second) == pytest.approx(2 * (1 + 4) / 2**4)
    assert mcnemar_p([True, False], [True, False]) == 1.0


def test_mcnemars_p_is_the_share_of_coin_flips_that_are_as_uneven():
    """Each item on which they differ goes either way with 1/2: all ways counted."""
    first = [True, True, True, True, True, False, True]
    second = [False, False, False, False, False, True, True]
    flips = list(product([0, 1], repeat=6))
    as_uneven = sum(abs(sum(flip) - 3) >= abs(5 - 3) for flip in flips)
    assert mcnemar_p(first, second) == pytest.approx(as_uneven / len(flips))


# ---- scored pairs: ties counted as wrong, silently (fault R10) --------------------------------------


def pair(margin, tie=False, lengths=(10, 10), id="p", question=None):
    return ScoredPair(id, question or id, margin, tie, lengths)


def test_a_margin_of_exactly_0_counts_half_and_the_rate_is_shown():
    """1, 1, 0.5, 0 of four pairs: (1 + 1 + 0.5 + 0) / 4 = 0.625; one of four is undecided."""
    report = preference_report([pair(m, id=f"p{k}") for k, m in enumerate((2.0, 0.1, 0.0, -1.0))])
    assert half_for_ties([2.0, 0.1, 0.0, -1.0]) == [1, 1, 0.5, 0]
    assert report["accuracy"] == 0.625 and report["undecided"] == 0.25


def test_labelled_ties_are_in_no_accuracy_and_are_counted():
    rows = [pair(1.0, id="a"), pair(-3.0, tie=True, id="b"), pair(2.0, tie=True, id="c")]
    report = preference_report(rows)
    assert (report["n"], report["ties"], report["accuracy"]) == (3, 2, 1.0)
    # in the calibration they are: at 95 % and 88 % confidence the fair probability is 0.5
    certain = expected_calibration_error([1.0], [1.0])
    assert report["ece"] > certain


# ---- intervals, ranks, lengths -------------------------------------------------------------------


def test_pairs_of_one_question_are_counted_as_one_piece_of_evidence():
    """Ten questions of ten pairs, each all right or all wrong: as good as ten pairs."""
    scores = [float(q < 7) for q in range(10) for _ in range(10)]
    groups = [str(q) for q in range(10) for _ in range(10)]
    clustered, alone = share_with_interval(scores, groups), share_with_interval(scores)
    ten = wilson(7, 10)
    assert alone == wilson(70, 100)
    assert clustered.value == pytest.approx(0.7)
    assert (clustered.low, clustered.high) == pytest.approx((ten.low, ten.high), abs=1e-9)


def test_groups_that_even_out_do_not_narrow_the_interval():
    scores = [1.0, 0.0] * 20
    groups = [str(k // 2) for k in range(40)]
    assert share_with_interval(scores, groups) == share_with_interval(scores)


def test_spearman_is_pearson_of_the_ranks_and_nothing_where_one_side_is_constant():
    a, b = [0.1, 3.0, 2.0, 2.0, 5.0], [0.0, 1.0, 0.5, 1.0, 1.0]
    assert spearman(a, b) == pytest.approx(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
    assert spearman(a, [1.0] * 5) is None


def test_length_buckets_hold_every_pair_once_and_equal_lengths_together():
    differences = [-30, -20, 0, 0, 0, 0, 10, 20, 30, 40]
    scores = [0.0, 0.0, 1, 1, 0, 0, 1, 1, 1, 1]
    buckets = length_buckets(differences, scores)
    assert sum(b["n"] for b in buckets) == 10
    inside = [[d for d in differences if b["from"] <= d <= b["to"]] for b in buckets]
    assert sorted(d for part in inside for d in part) == differences
    (zero,) = [b for b in buckets if b["from"] == 0]
    assert zero["accuracy"] == pytest.approx(sum(s for d, s in zip(differences, scores, strict=True) if zero["from"] <= d <= zero["to"]) / zero["n"])  # fmt: skip
    assert buckets[0]["accuracy"] == 0 and buckets[-1]["accuracy"] == 1


def test_the_length_null_is_what_picking_the_longer_would_score():
    lengths = [(9, 3), (9, 3), (3, 9), (5, 5)]
    rows = [pair(1.0, lengths=both, id=str(k)) for k, both in enumerate(lengths)]
    report = preference_report(rows)
    assert report["longer_is_right"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
