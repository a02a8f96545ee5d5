"""Several responses to one prompt -> an order: by score, by knockout, by round-robin.

Knows no model: a compare function gets matches and gives P(first is better) for each. It asks in
both orders and averages, so a match is one comparison. All matches that can be played now, of all
prompts, are given to it at once.

Rules. Responses with equal text (but for white space around it) are one competitor. Empty ones do
not compete. Where P is exactly 0.5 in a knockout, or could not be told (None), a coin drawn from
(seed, id, players) decides who goes on.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Match:
    """Two responses to the prompt `id`, by their index."""

    id: str
    first: int
    second: int


Compare = Callable[[Sequence[Match]], Sequence[float | None]]
"""P(first is better than second), 0 to 1, of each match; None: it could not be told."""


@dataclass(frozen=True, slots=True)
class Played:
    first: int
    second: int
    p: float | None
    """P(first is better)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one prompt's responses came out."""

    order: list[int]
    """Competitors, best first."""
    played: list[Played]
    strengths: list[float] | None = None
    """Of round-robin: for each place of `order`, the Bradley-Terry log-strength; mean 0."""
    cycle: list[int] | None = None
    """Of round-robin: a beats b, b beats c, ..., the last beats a; None: there is none."""


def competitors(responses: Sequence[str]) -> dict[int, list[int]]:
    """First index of each distinct response -> indices of all its copies; empty ones left out."""
    first_of: dict[str, int] = {}
    found: dict[int, list[int]] = {}
    for index, response in enumerate(responses):
        text = response.strip()
        if text:
            found.setdefault(first_of.setdefault(text, index), []).append(index)
    return found


# ---- knockout ------------------------------------------------------------------------------------


def knockout(
    entrants: Mapping[str, Sequence[int]], compare: Compare, *, seed: int
) -> dict[str, Standing]:
    """n - 1 matches for n responses of a prompt; a round of all prompts is one call of compare.

    The bracket is drawn by lot from (seed, id). Where n is no power of two, some have a bye in the
    first round. The winner is the best; places behind it go by the round of the defeat, within a
    round by the place of the one who won. So the best is well founded, the order of those who left
    early is not: use round_robin where the worst matters.
    """
    draws = {
        id: random.Random(f"{seed}:{id}").sample(list(e), len(e)) for id, e in entrants.items()
    }
    byes = {id: 2 ** max(len(d) - 1, 0).bit_length() - len(d) for id, d in draws.items()}
    left = {id: draw[byes[id] :] for id, draw in draws.items()}
    waiting = {id: draw[: byes[id]] for id, draw in draws.items()}
    played: dict[str, list[Played]] = {id: [] for id in entrants}
    beaten_by: dict[str, list[list[tuple[int, int]]]] = {id: [] for id in entrants}
    while any(len(players) > 1 for players in left.values()):
        matches = [
            Match(id, *players[k : k + 2])
            for id, players in left.items()
            for k in range(0, len(players) - 1, 2)
        ]
        winners: dict[str, list[int]] = {id: [] for id in entrants}
        rounds: dict[str, list[tuple[int, int]]] = {id: [] for id in entrants}
        for match, p in zip(matches, compare(matches), strict=True):
            played[match.id].append(Played(match.first, match.second, p))
            first_wins = _coin(match, seed) if p is None or p == 0.5 else p > 0.5
            pair = (match.first, match.second) if first_wins else (match.second, match.first)
            winners[match.id].append(pair[0])
            rounds[match.id].append(pair)
        for id, players in left.items():
            if len(players) > 1:
                left[id] = waiting[id] + winners[id]
                waiting[id] = []
                beaten_by[id].append(rounds[id])
    return {
        id: Standing(_places(left[id] + waiting[id], beaten_by[id]), played[id]) for id in entrants
    }


def _places(winner: list[int], rounds: list[list[tuple[int, int]]]) -> list[int]:
    """The order, from the winner and each round's (winner, loser)."""
    order = list(winner)
    for matches in reversed(rounds):
        place = {player: k for k, player in enumerate(order)}
        order += [loser for _, loser in sorted(matches, key=lambda pair: place[pair[0]])]
    return order


def _coin(match: Match, seed: int) -> bool:
    return random.Random(f"{seed}:{match.id}:{match.first}:{match.second}").random() < 0.5


# ---- round-robin ---------------------------------------------------------------------------------


def round_robin(entrants: Mapping[str, Sequence[int]], compare: Compare) -> dict[str, Standing]:
    """Everyone against everyone once, in one call of compare: n (n - 1) / 2 matches a prompt.

    The order is that of the Bradley-Terry strengths; equal ones keep the order of the input.
    """
    matches = [
        Match(id, a, b)
        for id, players in entrants.items()
        for k, a in enumerate(players)
        for b in players[k + 1 :]
    ]
    played: dict[str, list[Played]] = {id: [] for id in entrants}
    for match, p in zip(matches, compare(matches), strict=True):
        played[match.id].append(Played(match.first, match.second, p))
    standings = {}
    for id, players in entrants.items():
        place = {player: k for k, player in enumerate(players)}
        wins = np.full((len(players), len(players)), np.nan)
        for match in played[id]:
            if match.p is not None:
                a, b = place[match.first], place[match.second]
                wins[a, b], wins[b, a] = match.p, 1 - match.p
        strengths = bradley_terry(wins)
        order = sorted(range(len(players)), key=lambda k: -strengths[k])
        cycle = find_cycle(wins > 0.5)
        standings[id] = Standing(
            order=[players[k] for k in order],
            played=played[id],
            strengths=[float(strengths[k]) for k in order],
            cycle=None if cycle is None else [players[k] for k in cycle],
        )
    return standings


def bradley_terry(wins: np.ndarray, *, ridge: float = 0.01) -> np.ndarray:
    """Log-strengths s (mean 0) with sigmoid(s_i - s_j) as close to wins[i, j] as can be.

    wins (n, n): P(i is better than j) or a share of wins, a tie being 0.5; wins[j, i] is
    1 - wins[i, j]; NaN: not played. Maximum of the Bradley-Terry likelihood with a normal prior of
    variance 1 / ridge, without which one who wins always would be infinitely strong (Bradley &
    Terry 1952; Newton's method as in Hunter 2004, section 3, its steps halved until they help).
    """
    n = len(wins)
    known = ~np.isnan(wins)
    won = np.where(known, wins, 0.0)
    strengths = np.zeros(n)

    def loss(s: np.ndarray) -> float:
        return float(
            (won * np.logaddexp(0, s[None, :] - s[:, None]))[known].sum() + ridge / 2 * (s**2).sum()
        )

    for _ in range(100):
        expected = np.where(known, 1 / (1 + np.exp(strengths[None, :] - strengths[:, None])), 0.0)
        gradient = (expected - won).sum(1) + ridge * strengths
        weight = expected * expected.T
        hessian = np.diag(weight.sum(1)) - weight + ridge * np.eye(n)
        step = np.linalg.solve(hessian, gradient)
        while np.abs(step).max(initial=0) > 1e-10 and loss(strengths - step) > loss(strengths):
            step /= 2
        strengths = strengths - step
        if np.abs(step).max(initial=0) <= 1e-10:
            break
    return strengths - strengths.mean() if n else strengths


def find_cycle(beats: np.ndarray) -> list[int] | None:
    """Places that beat each other in a circle, the first of them first; None: there is no circle.

    beats (n, n), bool. Depth-first search; who is neither better nor worse is not connected.
    """
    state = [0] * len(beats)  # 0 unseen, 1 on the path, 2 done
    path: list[int] = []

    def visit(node: int) -> list[int] | None:
        state[node] = 1
        path.append(node)
        for other in np.flatnonzero(beats[node]):
            if state[other] == 1:
                return [int(k) for k in path[path.index(int(other)) :]]
            if state[other] == 0 and (found := visit(int(other))):
                return found
        state[node] = 2
        path.pop()
        return None

    for node in range(len(beats)):
        if state[node] == 0 and (found := visit(node)):
            return found
    return None


def log_odds(p: float) -> float:
    """The margin of a probability, log p / (1 - p); within +-30, so that 0 and 1 have one."""
    p = min(max(p, 1e-13), 1 - 1e-13)
    return float(np.log(p / (1 - p)))
