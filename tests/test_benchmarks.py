"""prefpipe.formats.published and the published formats: one record each, and the leaderboards' arithmetic."""

import math

import numpy as np
import pytest

from prefpipe.formats import reading
from prefpipe.formats.published import (
    REWARDBENCH_SECTIONS,
    Overlap,
    best_of_score,
    judgebench_correct,
    rewardbench2_scores,
    rewardbench_scores,
    ties_score,
)
from prefpipe.rows import ScoredQuestion


def scored(id, right, wrong, benchmark="rewardbench2"):
    return ScoredQuestion(
        id=id, benchmark=benchmark, kind="reward", right_scores=right, wrong_scores=wrong
    )


# ---- RewardBench ---------------------------------------------------------------------------------


def test_rewardbench_rows_are_preferences_whose_id_names_the_subset():
    row = reading.rewardbench(
        {
            "prompt": "Q",
            "chosen": "good",
            "chosen_model": "a",
            "rejected": "bad",
            "rejected_model": "b",
            "subset": "math-prm",
            "id": 7,
        }
    )
    assert (row.id, row.prompt, row.chosen, row.rejected) == ("math-prm:7", "Q", "good", "bad")
    assert row.source == "rewardbench/math-prm"


def test_rewardbench_sections_have_the_published_weights():
    """Chat Hard by hand: 37 + 100 + 134 + 92 + 47 + 46 = 456 examples; half of mt-bench-hard, all
    of the others: (0.5 * 37 + 419) / 456. Reasoning: math counts as much as six times 164."""
    subsets = {subset: 1.0 for weights in REWARDBENCH_SECTIONS.values() for subset in weights}
    assert len(subsets) == 23
    found = rewardbench_scores(subsets | {"mt-bench-hard": 0.5, "math-prm": 0.0})
    assert found["sections"]["Chat Hard"] == pytest.approx((0.5 * 37 + 419) / 456)
    assert found["sections"]["Reasoning"] == pytest.approx(0.5)
    assert found["sections"]["Chat"] == 1 and found["missing_subsets"] == []
    assert found["score"] == pytest.approx((1 + (0.5 * 37 + 419) / 456 + 1 + 0.5) / 4)


def test_a_subset_that_is_not_there_is_named_not_counted_as_0():
    found = rewardbench_scores({"alpacaeval-easy": 1.0, "alpacaeval-hard": 0.0})
    assert found["sections"] == {"Chat": pytest.approx(100 / 195)}
    assert len(found["missing_subsets"]) == 21


# ---- RewardBench 2 -------------------------------------------------------------------------------


def record(**changes):
    made = {
        "id": "12",
        "prompt": "Q",
        "chosen": ["good"],
        "rejected": ["b", "c", "d"],
        "num_correct": 1,
        "num_incorrect": 3,
        "total_completions": 4,
        "subset": "Math",
    }
    return {**made, **changes}


def test_rewardbench2_rows_are_questions_with_one_right_and_three_wrong_responses():
    row = reading.rewardbench2(record())
    assert (row.id, row.right, row.wrong) == ("Math:12", ["good"], ["b", "c", "d"])
    assert row.source == "rewardbench2/Math"
    with pytest.raises(ValueError, match="chosen: found str, wanted a list"):
        reading.rewardbench2(record(chosen="good"))
    with pytest.raises(ValueError, match="id: found '12', wanted ref:"):
        reading.rewardbench2(record(subset="Ties"))


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
    found = rewardbench2_scores(rows)
    assert found["subsets"] == {"Math": 0.5, "Safety": 1.0} and found["score"] == 0.75
    assert "ties" in found["missing_subsets"]


# ---- JudgeBench ----------------------------------------------------------------------------------


def test_judgebench_rows_say_which_is_better_and_their_kind():
    made = {
        "pair_id": "81ec57f2",
        "original_id": "10646",
        "source": "mmlu-pro-computer science",
        "question": "Q",
        "response_model": "gpt-4o",
        "response_A": "first",
        "response_B": "second",
        "label": "B>A",
    }
    row = reading.judgebench(made)
    assert (row.id, row.chosen, row.rejected) == ("81ec57f2", "second", "first")
    assert row.source == "judgebench/knowledge"
    assert reading.judgebench({**made, "label": "A>B"}).chosen == "first"
    with pytest.raises(ValueError, match="label: found 'A=B'"):
        reading.judgebench({**made, "label": "A=B"})


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
    assert judgebench_correct(given, swapped) is right


# ---- best of n, contamination --------------------------------------------------------------------


def test_best_of_n_rows_need_to_say_which_responses_are_right():
    row = reading.best_of_n({"id": "a", "prompt": "Q", "responses": ["x", "y", "z"], "right": [False, True, True]})  # fmt: skip
    assert (row.right, row.wrong) == (["y", "z"], ["x"])
    with pytest.raises(ValueError, match="right: wanted true or false for each"):
        reading.best_of_n({"id": "a", "prompt": "Q", "responses": ["x", "y"]})


def test_the_overlap_is_the_share_of_questions_whose_words_were_trained_on():
    words = [f"w{k}" for k in range(30)]
    questions = {
        "seen": " ".join(words[:10]),
        "part": " ".join([*words[:8], "other", "words", "follow", "here", "now", "then", "again"]),
        "new": "nothing of this stands in the text that was trained on before",
        "short": "too short",
    }
    found = Overlap(questions, n=8)
    found.add("intro " + "  ".join(w.upper() for w in words[:12]) + ".")
    report = found.report()
    # "seen" has 3 of 3 n-grams, "part" 1 of 8
    assert report["seen"] == 0.5 and report["mostly_seen"] == 0.25
    assert report["most_seen"] == {"seen": 1.0, "part": 0.125}
    again = Overlap(questions, n=8)
    again.add("Too short!")
    assert again.report()["most_seen"] == {"short": 1.0}
