"""prefpipe.evaluation.scoring: standings as scores of a question's right and wrong responses."""

import math

import pytest

from prefpipe.compare.matches import hold
from prefpipe.evaluation.scoring import scores_of
from prefpipe.rows import Question, Reject
from tests.known_opinions import by_quality


def question(id, right, wrong, source="x"):
    return Question(id=id, prompt="Q", right=right, wrong=wrong, source=source)


def ranker(play, seed=0):
    return lambda contests, kind: hold(contests, play, kind, seed=seed)


def test_a_pair_s_score_is_the_log_odds_whichever_stood_first():
    questions = [question(str(k), ["good"], ["bad"]) for k in range(9)]
    for scores in scores_of(questions, ranker(by_quality, seed=1)):
        assert scores == pytest.approx([7.0, 0.0], abs=1e-6)


def test_the_ties_subset_is_a_round_robin_others_a_knockout():
    asked = []

    def play(contests, matches):
        asked.append(len(matches))
        return by_quality(contests, matches)

    responses = [f"x{'x' * k}" for k in range(5)]
    ties = question("Ties:tied:0", responses[:2], responses[2:], "rewardbench2/Ties")
    (scores,) = scores_of([ties], ranker(play))
    assert sum(asked) == 10 and isinstance(scores, list) and len(set(scores)) == 5
    asked.clear()
    (scores,) = scores_of([question("q", responses[:1], responses[1:])], ranker(play))
    assert sum(asked) == 4 and scores == [1.0, 0, 0, 0, 0]


def test_what_cannot_be_compared_is_a_reject():
    def play(contests, matches):
        reject = Reject(id="b", reason="too_long")
        return [reject if m.id == "b" else 0.9 for m in matches]

    questions = [question("a", ["x"], ["y"]), question("b", ["x"], ["y"])]
    scores, left_out = scores_of(questions, ranker(play))
    assert isinstance(scores, list) and abs(scores[0]) == pytest.approx(math.log(9))
    assert isinstance(left_out, Reject) and left_out.reason == "too_long"
