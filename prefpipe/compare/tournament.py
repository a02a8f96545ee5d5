"""Several responses to one prompt -> an order: by score, by knockout, by round-robin.

Knows no model: a compare function gets matches and gives P(first is better) for each. It asks in
both orders and averages, so a match is one comparison. All matches that can be played now, of all
prompts, are given to it at once.

Rules. Responses with equal text (but for white space around it) are one competitor. Empty ones do
not compete. Where P is exactly 0.5 in a knockout, or could not be told (None), a coin drawn from
(seed, id, players) decides who goes on.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Literal

import numpy as np

from prefpipe import draws

Tournament = Literal["knockout", "round-robin"]


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
    """For each competitor of `order`: the Bradley-Terry log-strength (mean 0) of a round-robin, or
    the score where a model gives one; None: of a knockout."""
    cycle: list[int] | None = None
    """Round-robin: a beats b, b beats c, ..., the last beats a; None: there is no circle."""
    outside: float | None = None
    """See rows.Ranking."""

    def lead(self, a: int, b: int) -> float | None:
        """Log-odds that a is better than b; None: they did not meet, or it could not be told."""
        for match in self.played:
            if match.p is not None and {match.first, match.second} == {a, b}:
                return log_odds(match.p if match.first == a else 1 - match.p)
        return None


def competitors(responses: Sequence[str]) -> dict[int, list[int]]:
    """First index of each distinct response -> indices of all its copies; empty ones left out."""
    first_of: dict[str, int] = {}
    copies: dict[int, list[int]] = {}
    for index, response in enumerate(responses):
        if text := response.strip():
            copies.setdefault(first_of.setdefault(text, index), []).append(index)
    return copies


Course = Generator[list[Match], Mapping[Match, float | None], Standing]
"""A tournament of one prompt: yields what can be played now, gets P(first is better) of each match."""


def _hold(courses: Mapping[str, Course], compare: Compare) -> dict[str, Standing]:
    """Tournaments by id, all at once: what can be played now in any of them is one call of compare."""
    standings: dict[str, Standing] = {}
    left, outcomes = list(courses), None  # None starts a generator
    while left:
        matches: list[Match] = []
        for id in left:
            try:
                matches += courses[id].send(outcomes)  # pyright: ignore[reportArgumentType]
            except StopIteration as end:
                standings[id] = end.value
        if left := [id for id in left if id not in standings]:
            outcomes = dict(zip(matches, compare(matches), strict=True))
    return {id: standings[id] for id in courses}


def knockout(
    entrants: Mapping[str, Sequence[int]], compare: Compare, *, seed: int
) -> dict[str, Standing]:
    """n - 1 matches for n responses of a prompt; a round of all prompts is one call of compare.

    The bracket is drawn by lot from (seed, id). Where n is no power of two, some have a bye in the
    first round. The winner is the best; places behind it go by the round of the defeat, within a
    round by the place of the one who won. So the best is well founded, the order of those who left
    early is not: use round_robin where the worst matters.
    """
    return _hold({id: _knockout(id, players, seed) for id, players in entrants.items()}, compare)


def _knockout(id: str, players: Sequence[int], seed: int) -> Course:
    # 1) The bracket: by lot; so many have a bye that the second round has a power of two.
    lot = draws.rng(seed, id).sample(list(players), len(players))
    byes = 2 ** max(len(lot) - 1, 0).bit_length() - len(lot)
    waiting, left = lot[:byes], lot[byes:]
    played: list[Played] = []
    rounds: list[list[tuple[int, int]]] = []
    # 2) Round by round: who beat whom.
    while len(left) > 1:
        matches = [Match(id, *left[k : k + 2]) for k in range(0, len(left), 2)]
        outcomes = yield matches
        played += [Played(m.first, m.second, outcomes[m]) for m in matches]
        rounds.append([_winner_first(match, outcomes[match], seed) for match in matches])
        left, waiting = [*waiting, *(winner for winner, _ in rounds[-1])], []
    # 3) Everyone behind the winner by when, and by whom, they were beaten.
    order = left + waiting
    for beaten in reversed(rounds):
        rank = {player: k for k, player in enumerate(order)}
        order += [loser for _, loser in sorted(beaten, key=lambda pair: rank[pair[0]])]
    return Standing(order, played)


def _winner_first(match: Match, p: float | None, seed: int) -> tuple[int, int]:
    if p is None or p == 0.5:
        p = draws.rng(seed, match.id, match.first, match.second).random()
        return (match.first, match.second) if p < 0.5 else (match.second, match.first)
    return (match.first, match.second) if p > 0.5 else (match.second, match.first)


def round_robin(entrants: Mapping[str, Sequence[int]], compare: Compare) -> dict[str, Standing]:
    """Everyone against everyone once, in one call of compare: n (n - 1) / 2 matches a prompt.

    The order is that of the Bradley-Terry strengths; equal ones keep the order of the input.
    """
    return _hold({id: _round_robin(id, players) for id, players in entrants.items()}, compare)


def _round_robin(id: str, players: Sequence[int]) -> Course:
    pairs = list(combinations(range(len(players)), 2))
    matches = [Match(id, players[a], players[b]) for a, b in pairs]
    outcomes = yield matches
    wins = np.full((len(players), len(players)), np.nan)
    for (a, b), match in zip(pairs, matches, strict=True):
        if (p := outcomes[match]) is not None:
            wins[a, b], wins[b, a] = p, 1 - p
    strengths = bradley_terry(wins)
    order = sorted(range(len(players)), key=lambda k: -strengths[k])
    cycle = find_cycle(wins > 0.5)
    return Standing(
        order=[players[k] for k in order],
        played=[Played(m.first, m.second, outcomes[m]) for m in matches],
        strengths=[float(strengths[k]) for k in order],
        cycle=None if cycle is None else [players[k] for k in cycle],
    )


def bradley_terry(wins: np.ndarray, *, ridge: float = 0.01) -> np.ndarray:
    """Log-strengths s (mean 0) with sigmoid(s_i - s_j) as close to wins[i, j] as can be.

    wins (n, n): P(i is better than j), wins[j, i] being 1 - wins[i, j], or how often i won against
    j, a tie being 0.5 on both sides; NaN: not played. Maximum of the Bradley-Terry likelihood with a normal prior of
    variance 1 / ridge, without which one who wins always would be infinitely strong (Bradley &
    Terry 1952; Newton's method as in Hunter 2004, section 3, its steps halved until they help).
    """
    n = len(wins)
    known = ~np.isnan(wins)
    won = np.where(known, wins, 0.0)
    games = np.round(won + won.T, 9)  # of shares exactly 1
    strengths = np.zeros(n)

    def loss(s: np.ndarray) -> float:
        unlikely = (won * np.logaddexp(0, s[None, :] - s[:, None]))[known].sum()
        return float(unlikely + ridge / 2 * (s**2).sum())

    for _ in range(100):
        likely = np.where(known, 1 / (1 + np.exp(strengths[None, :] - strengths[:, None])), 0.0)
        gradient = (games * likely - won).sum(1) + ridge * strengths
        weight = games * likely * likely.T
        hessian = np.diag(weight.sum(1)) - weight + ridge * np.eye(n)
        step = np.linalg.solve(hessian, gradient)
        while np.abs(step).max(initial=0) > 1e-10 and loss(strengths - step) > loss(strengths):
            step /= 2
        strengths = strengths - step
        if np.abs(step).max(initial=0) <= 1e-10:
            break
    return strengths - strengths.mean() if n else strengths


def find_cycle(beats: np.ndarray) -> list[int] | None:
    """Players that beat each other in a circle, the first of them first; None: there is no circle.

    beats (n, n), bool. Who is neither better nor worse is not connected.
    """
    # All players in order, then who beats whom in order: the circle found is then always the same.
    graph = TopologicalSorter({player: () for player in range(len(beats))})
    for a, b in np.argwhere(beats).tolist():
        graph.add(b, a)
    try:
        graph.prepare()
    except CycleError as error:
        return error.args[1][:-1]  # it ends with the player that it began with
    return None


def log_odds(p: float) -> float:
    """The margin of a probability, log p / (1 - p); within +-30, so that 0 and 1 have one."""
    p = min(max(p, 1e-13), 1 - 1e-13)
    return float(np.log(p / (1 - p)))
