"""Which of several rated responses become a pair, and which pairs are ties; whoever rated them."""

import random
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Literal, NamedTuple

HowPaired = Literal["best-vs-random", "best-vs-worst", "all"]
_ROUNDING = 1e-9  # means of the same ratings may differ in their last bit


class Pair(NamedTuple):
    """Indices of the mix's responses."""

    chosen: int
    rejected: int
    tie: bool


def higher_rated(a: float, b: float, tie_margin: float = 0.0) -> Literal[-1, 0, 1]:
    """1 where a is over b by more than tie_margin, -1 where b is over a, 0 within it: a tie."""
    if abs(a - b) <= tie_margin + _ROUNDING:
        return 0
    return 1 if a > b else -1


def choose_pairs(
    means: Mapping[int, float],
    how: HowPaired,
    tie_margin: float,
    on_policy: int | None,
    rng: random.Random,
) -> Iterator[Pair]:
    """Which of the rated responses are paired. means: index -> mean rating, of two or more.

        how             chosen     rejected
        best-vs-random  the best   drawn from those rated lower; where all others tie, from them
        best-vs-worst   the best   the worst; of equal ones a drawn one
        all             of any two, a pair each: the higher one, the lower one

    Of several best ones a drawn one is the best. The sides of a tie are in no order that means
    anything. on_policy is on one side of each pair: of `all`, its pairs only; else it is set against
    the best, or, being the best itself, against another one as without it.
    """

    def pair(a: int, b: int) -> Pair:
        order = higher_rated(means[a], means[b], tie_margin)
        return Pair(b, a, False) if order < 0 else Pair(a, b, order == 0)

    if how == "all":
        for a, b in combinations(means, 2):
            if on_policy in (None, a, b):
                yield pair(a, b)
        return
    # 1) who is the best
    highest = max(means.values())
    top = [k for k, mean in means.items() if higher_rated(mean, highest) == 0]
    best = on_policy if on_policy in top else rng.choice(top)
    assert best is not None
    # 2) who may stand against it
    others = [k for k in means if k != best]
    if on_policy is not None and best != on_policy:
        others = [on_policy]
    elif how == "best-vs-worst":
        lowest = min(means[k] for k in others)
        others = [k for k in others if higher_rated(means[k], lowest) == 0]
    else:
        others = [k for k in others if not pair(best, k).tie] or others
    yield pair(best, rng.choice(others))
