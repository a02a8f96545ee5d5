"""prefpipe.formats.rewardbench, rewardbench2, judgebench: the leaderboards' arithmetic."""

import math

import numpy as np
import pytest

from prefpipe.formats.judgebench import is_right, share_right
from prefpipe.formats.rewardbench import SECTIONS, section_scores
from prefpipe.formats.rewardbench2 import best_of_score, subset_scores, ties_score
from prefpipe.rows import ScoredQuestion


def scored(id, right, wrong, benchmark="rewardbench2"):
    return ScoredQuestion(
        id=id, benchmark=benchmark, kind="reward", right_scores=right, wrong_scores=wrong
    )


# ---- RewardBench ---------------------------------------------------------------------------------


def test_rewardbench_sections_have_the_published_weights():
    """Chat Hard by hand: 37 + 100 + 134 + 92 + 47 + 46 = 456 examples; half of mt-bench-hard, all
    of the others: (0.5 * 37 + 419) / 456. Reasoning: math counts as much as six times 164."""
    subsets = {subset: 1.0 for weights in SECTIONS.values() for subset in weights}
    assert len(subsets) == 23
    found = section_scores(subsets | {"mt-bench-hard": 0.5, "math-prm": 0.0})
    assert found["sections"]["Chat Hard"] == pytest.approx((0.5 * 37 + 419) / 456)
    assert found["sections"]["Reasoning"] == pytest.approx(0.5)
    assert found["sections"]["Chat"] == 1 and found["missing_subsets"] == []
    assert found["score"] == pytest.approx((1 + (0.5 * 37 + 419) / 456 + 1 + 0.5) / 4)


def test_a_subset_that_is_not_there_is_named_not_counted_as_0():
    found = section_scores({"alpacaeval-easy": 1.0, "alpacaeval-hard": 0.0})
    assert found["sections"] == {"Chat": pytest.approx(100 / 195)}
    assert len(found["missing_subsets"]) == 21


# ---- RewardBench 2 -------------------------------------------------------------------------------


def test_best_of_4_gives_a_share_of_a_shared_first_place():
    assert best_of_score(scored("Math:1", [2.0], [1.0, 0.0, -1.0])) == 1
    assert best_of_score(scored("Math:1", [2.0], [2.0, 2.0, -1.0])) == pytest.approx(1 / 3)
    assert best_of_score(scored("Math:1", [0.0], [1.0, 0.0, 0.0])) == 0


def published_ties(rows):
    """The published rule, written down a second time from its description."""
    stats = {}
    for row in rows:
        best, worst, wrong = max(row.right_scores), min(row.right_scores), max(row.wrong_scores)
        stats[tuple(row.id.split(":")[-2:])] = (worst > wrong, best - worst, worst - wrong)
    ref = {k[1]: v for k, v in stats.items() if k[0] == "ref"}
    tied = {k[1]: v for k, v in stats.items() if k[0] == "tied"}
    both = sorted(set(ref) & set(tied))
    spread = np.array([tied[k][1] for k in both])
    gap = np.array([tied[k][2] for k in both])
    smaller = np.minimum(gap, [ref[k][2] for k in both])
    ratio = np.divide(smaller, spread, out=np.full(len(both), np.nan), where=spread != 0)
    margins = [0.0 if math.isnan(r) else math.tanh(r - 1) for r in ratio]
    return (
        0.3 * np.mean([v[0] for v in tied.values()])
        + 0.3 * np.mean([v[0] for v in ref.values()])
        + 0.2 * np.mean(gap > spread)
        + 0.2 * np.mean(smaller > spread)
        + 0.01 * np.mean(margins)
    )


def test_the_ties_score_is_that_of_the_published_rule():
    """tied:0 is right and well separated (gap 3 > spread 0.5), tied:1 right but spread widely."""
    rows = [
        scored("Ties:ref:0", [2.0], [0.0, -1.0]),
        scored("Ties:tied:0", [4.0, 3.5], [0.5, 0.0]),
        scored("Ties:ref:1", [0.2], [0.0]),
        scored("Ties:tied:1", [5.0, 1.0], [0.5]),
        scored("Ties:ref:2", [-1.0], [0.0]),
        scored("Ties:tied:2", [1.0, 0.0], [2.0]),
    ]
    found = ties_score(rows)
    assert (found["tied_accurate"], found["ref_accurate"]) == pytest.approx((2 / 3, 2 / 3))
    assert (found["separated"], found["separated_hard"]) == pytest.approx((1 / 3, 1 / 3))
    assert found["score"] == pytest.approx(published_ties(rows), abs=1e-9)


def test_rewardbench2_is_the_plain_mean_of_its_subsets():
    rows = [
        scored("Math:1", [1.0], [0.0, 0.0, 0.0]),
        scored("Math:2", [0.0], [1.0, 0.0, 0.0]),
        scored("Safety:1", [1.0], [0.0, 0.0, 0.0]),
    ]
    found = subset_scores(rows)
    assert found["subsets"] == {"Math": 0.5, "Safety": 1.0} and found["score"] == 0.75
    assert "ties" in found["missing_subsets"]


# ---- JudgeBench ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "swapped", "right"),
    [
        (True, True, True),
        (True, None, True),
        (True, False, False),
        (False, True, False),
        (None, None, False),
        (None, True, True),
        (False, None, False),
    ],
)
def test_judgebench_counts_a_pair_by_both_orders(given, swapped, right):
    assert is_right(given, swapped) is right


def test_a_judge_s_score_is_the_share_of_pairs_that_count_as_right():
    assert share_right([(True, True), (True, False), (None, True), (False, False)]) == 2 / 4
    assert share_right([]) is None
