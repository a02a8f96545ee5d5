"""prefpipe.compare.tournament: brackets, strengths, circles; a compare function that counts what it is asked."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from prefpipe.compare.tournament import (
    Match,
    bradley_terry,
    competitors,
    find_cycle,
    knockout,
    log_odds,
    round_robin,
)


class Scored:
    """Compares by a known score of each response, and remembers its calls."""

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores = scores
        self.calls: list[list[Match]] = []

    def __call__(self, matches: Sequence[Match]) -> list[float | None]:
        self.calls.append(list(matches))
        return [
            1 / (1 + math.exp(self.scores[m.id][m.second] - self.scores[m.id][m.first]))
            for m in matches
        ]


# ---- knockout ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 17), min_size=1, max_size=6), st.integers(0, 99))
def test_a_knockout_of_n_takes_n_minus_1_matches_and_finds_the_best(sizes, seed):
    scores = {f"q{k}": [float((7 * i + k) % n) for i in range(n)] for k, n in enumerate(sizes)}
    compare = Scored(scores)
    standings = knockout({id: range(len(v)) for id, v in scores.items()}, compare, seed=seed)
    for id, standing in standings.items():
        n = len(scores[id])
        assert len(standing.played) == n - 1
        assert sorted(standing.order) == list(range(n))
        assert scores[id][standing.order[0]] == max(scores[id])
    # one call a round for all prompts together: as many rounds as the largest needs
    assert len(compare.calls) == max(math.ceil(math.log2(n)) if n > 1 else 0 for n in sizes)


def test_nobody_meets_twice_and_the_second_place_lost_the_final():
    compare = Scored({"q": [0.0, 1, 2, 3, 4, 5, 6]})
    standing = knockout({"q": range(7)}, compare, seed=1)["q"]
    met = [frozenset((m.first, m.second)) for m in standing.played]
    assert len(set(met)) == 6
    final = standing.played[-1]
    assert set(standing.order[:2]) == {final.first, final.second}


def test_places_behind_the_winner_go_by_round_then_by_who_won():
    """4 responses, 0 > 1 > 2 > 3: whoever lost to the winner in round 1 stands before the other."""
    compare = Scored({"q": [3.0, 2.0, 1.0, 0.0]})
    standing = knockout({"q": range(4)}, compare, seed=5)["q"]
    first_round = standing.played[:2]
    by_winner = {min(m.first, m.second): max(m.first, m.second) for m in first_round}
    winners = sorted(by_winner)  # the smaller number is the better response
    assert standing.order == [*winners, *(by_winner[w] for w in winners)]


def test_byes_go_to_as_many_as_the_next_power_of_two_leaves():
    compare = Scored({"q": [float(k) for k in range(11)]})
    knockout({"q": range(11)}, compare, seed=0)
    assert [len(call) for call in compare.calls] == [3, 4, 2, 1]  # 11 - 8 = 3, then 8 players


def test_the_bracket_is_drawn_from_seed_and_id_only():
    scores = {"a": [0.0] * 8, "b": [0.0] * 8}
    alone, together = Scored(scores), Scored(scores)
    knockout({"a": range(8)}, alone, seed=3)
    knockout({"b": range(8), "a": range(8)}, together, seed=3)
    assert alone.calls[0] == [m for m in together.calls[0] if m.id == "a"]
    other = Scored(scores)
    knockout({"a": range(8)}, other, seed=4)
    assert other.calls[0] != alone.calls[0]


@pytest.mark.parametrize("p", [0.5, None])
def test_an_undecided_match_is_settled_by_a_seeded_coin(p):
    def undecided(matches):
        return [p] * len(matches)

    standings = [
        knockout({f"q{k}": range(2) for k in range(200)}, undecided, seed=s) for s in (1, 1, 2)
    ]
    assert standings[0] == standings[1] != standings[2]
    first = sum(s.order[0] == 0 for s in standings[0].values())
    assert 70 < first < 130
    assert all(s.played[0].p == p for s in standings[0].values())


def test_one_response_wins_without_a_match_and_none_has_no_order():
    standings = knockout({"one": [4], "none": []}, Scored({}), seed=0)
    assert standings["one"].order == [4] and standings["one"].played == []
    assert standings["none"].order == []


# ---- round-robin ---------------------------------------------------------------------------------


def test_round_robin_asks_every_pair_once_in_one_call():
    compare = Scored({"a": [0.0, 1, 2, 3], "b": [1.0, 0.0]})
    standings = round_robin({"a": range(4), "b": range(2)}, compare)
    assert len(compare.calls) == 1 and len(compare.calls[0]) == 6 + 1
    assert standings["a"].order == [3, 2, 1, 0] and standings["b"].order == [0, 1]


def test_strengths_are_the_scores_the_probabilities_were_made_of():
    true = np.array([1.2, -0.3, 0.4, -1.3])
    wins = 1 / (1 + np.exp(true[None, :] - true[:, None]))
    found = bradley_terry(wins, ridge=1e-9)
    assert found == pytest.approx(true - true.mean(), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_strengths_are_those_of_a_general_optimizer(n, seed):
    """Hard wins, ties and pairs that were not played; the likelihood is written out pair by pair."""
    rng = np.random.default_rng(seed)
    wins = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(i + 1, n):
            if rng.random() < 0.8:
                wins[i, j] = rng.choice([0.0, 0.5, 1.0, rng.random()])
                wins[j, i] = 1 - wins[i, j]

    def loss(s):
        total = 0.005 * (s**2).sum()  # ridge 0.01 / 2
        for i in range(n):
            for j in range(i + 1, n):
                if not np.isnan(wins[i, j]):
                    d = s[i] - s[j]
                    total += wins[i, j] * math.log1p(math.exp(-d))
                    total += (1 - wins[i, j]) * math.log1p(math.exp(d))
        return total

    best = minimize(loss, np.zeros(n), method="BFGS", options={"gtol": 1e-9}).x
    assert bradley_terry(wins) == pytest.approx(best - best.mean(), abs=1e-4)


def test_who_wins_always_is_strong_but_not_infinitely():
    wins = np.array([[np.nan, 1, 1], [0, np.nan, 1], [0, 0, np.nan]])
    strengths = bradley_terry(wins)
    assert 3 < strengths[0] < 20 and strengths[0] == pytest.approx(-strengths[2], abs=1e-6)
    assert strengths[1] == pytest.approx(0, abs=1e-6)


def test_a_circle_is_reported_and_its_members_are_equally_strong():
    beats = {(0, 1): 0.9, (1, 2): 0.9, (0, 2): 0.1}  # 0 > 1 > 2 > 0; all beat 3
    standing = round_robin(
        {"q": range(4)}, lambda ms: [beats.get((m.first, m.second), 0.8) for m in ms]
    )["q"]
    assert standing.cycle is not None and set(standing.cycle) == {0, 1, 2}
    ring = [*standing.cycle, standing.cycle[0]]
    for a, b in itertools.pairwise(ring):
        assert (beats[a, b] if (a, b) in beats else 1 - beats[b, a]) > 0.5
    assert standing.strengths is not None
    assert standing.strengths[:3] == pytest.approx([standing.strengths[0]] * 3, abs=1e-6)
    assert standing.order[-1] == 3


def test_an_order_without_contradiction_has_no_circle():
    standing = round_robin({"q": range(5)}, Scored({"q": [0.0, 3, 1, 4, 2]}))["q"]
    assert standing.cycle is None


def test_a_circle_that_ties_hide_is_found_too():
    """0 > 1 > 2 > 3 > 0, all other pairs tied: no three of them make a circle."""
    beats = np.zeros((4, 4), dtype=bool)
    for a in range(4):
        beats[a, (a + 1) % 4] = True
    assert find_cycle(beats) == [0, 1, 2, 3]


def test_a_match_that_could_not_be_told_is_no_evidence():
    standing = round_robin({"q": range(2)}, lambda ms: [None])["q"]
    assert standing.strengths == pytest.approx([0.0, 0.0]) and standing.order == [0, 1]


# ---- the rules -----------------------------------------------------------------------------------


def test_copies_are_one_competitor_and_empty_responses_none():
    assert competitors(["b", " a ", "", "a", "b", " \n"]) == {0: [0, 4], 1: [1, 3]}


def test_log_odds_are_finite_at_0_and_1():
    assert log_odds(0.5) == 0 and log_odds(0.75) == pytest.approx(math.log(3))
    assert log_odds(1.0) == pytest.approx(-log_odds(0.0), abs=1e-3) and log_odds(1.0) < 31
