"""rated_pairs: which responses become a pair, and which pairs are ties."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.rated_pairs import HowPaired, choose_pairs, higher_rated


@pytest.mark.parametrize(
    ("a", "b", "tie_margin", "order"),
    [(4, 3, 0, 1), (3, 4, 0, -1), (4, 4, 0, 0), (4, 3.5, 0.5, 0), (3.4, 4, 0.5, -1)],
)
def test_the_tie_rule(a, b, tie_margin, order):
    assert higher_rated(a, b, tie_margin) == order


MEANS = {0: 3.0, 1: 5.0, 2: 1.0, 3: 2.0}


def chosen_pairs(means=MEANS, how: HowPaired = "all", tie_margin=0.0, on_policy=None, seed="s"):
    rng = random.Random(seed)
    return [tuple(p) for p in choose_pairs(means, how, tie_margin, on_policy, rng)]


def test_best_against_worst_against_a_drawn_one_and_all():
    assert chosen_pairs(how="best-vs-worst") == [(1, 2, False)]
    drawn = {chosen_pairs(how="best-vs-random", seed=str(k))[0] for k in range(40)}
    assert drawn == {(1, 0, False), (1, 2, False), (1, 3, False)}
    assert chosen_pairs() == [(1, 0, False), (0, 2, False), (0, 3, False), (1, 2, False),
                              (1, 3, False), (3, 2, False)]  # fmt: skip


def test_the_on_policy_response_is_on_one_side_of_each_pair():
    assert chosen_pairs(on_policy=3) == [(0, 3, False), (1, 3, False), (3, 2, False)]
    one_a_prompt: list[HowPaired] = ["best-vs-random", "best-vs-worst"]
    for how in one_a_prompt:
        assert chosen_pairs(how=how, on_policy=3) == [(1, 3, False)]
    assert chosen_pairs(how="best-vs-worst", on_policy=1) == [(1, 2, False)]
    drawn = {chosen_pairs(how="best-vs-random", on_policy=1, seed=str(k))[0] for k in range(40)}
    assert drawn == {(1, 0, False), (1, 2, False), (1, 3, False)}
    for k in range(20):  # of two best ones it is the on-policy one
        (pair,) = chosen_pairs({0: 4.0, 1: 4.0, 2: 1.0}, "best-vs-worst", on_policy=1, seed=str(k))
        assert pair == (1, 2, False)


def test_what_is_closer_than_the_tie_margin_is_a_tie():
    means = {0: 4.0, 1: 3.5, 2: 3.4}
    assert [tie for _, _, tie in chosen_pairs(means, tie_margin=0.5)] == [True, False, True]
    for k in range(20):  # the one within the margin is no loser
        assert chosen_pairs(means, "best-vs-random", 0.5, seed=str(k)) == [(0, 2, False)]
    assert chosen_pairs(means, "best-vs-worst", 0.6)[0][2] is True


def test_means_that_differ_in_their_last_bit_are_equal():
    a, b = (0.1 + 0.2) * 10, 3.0
    assert a != b and chosen_pairs({0: a, 1: b}) == [(0, 1, True)]


@given(
    ratings=st.lists(st.sampled_from([1.0, 2.0, 2.5, 3.25, 4.0, 5.0]), min_size=2, max_size=5),
    how=st.sampled_from(["best-vs-random", "best-vs-worst", "all"]),
    tie_margin=st.sampled_from([0.0, 0.5, 1.0]),
    place=st.integers(-1, 4),
    seed=st.integers(0, 5),
)
def test_pairs_say_what_the_ratings_say(ratings, how, tie_margin, place, seed):
    means = dict(enumerate(ratings))
    on_policy = place if 0 <= place < len(ratings) else None
    made = chosen_pairs(means, how, tie_margin, on_policy, str(seed))
    allowed = [p for p in combinations(means, 2) if on_policy is None or on_policy in p]
    assert len(made) == (len(allowed) if how == "all" else 1)
    for chosen, rejected, tie in made:
        assert tuple(sorted((chosen, rejected))) in allowed and chosen != rejected
        assert tie == (abs(means[chosen] - means[rejected]) <= tie_margin)
        assert tie or means[chosen] > means[rejected]
    if how != "all":
        (chosen, rejected, tie) = made[0]
        assert means[chosen] == max(ratings)
        if how == "best-vs-worst" and on_policy in (None, chosen):
            assert means[rejected] == min(v for k, v in means.items() if k != chosen)
        if tie and on_policy is None:  # only where nobody is rated lower than the margin allows
            lower = [v for v in ratings if means[chosen] - v > tie_margin]
            assert not lower
