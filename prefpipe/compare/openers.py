"""Who ranks the responses to a prompt: a reward model, a pairwise model, a judge, an implicit reward.

All of them give standings, so that evaluation and ranking need not know who it was. open_reward and
open_pairwise load a model, which is slow: call them once there is work to do.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from prefpipe import llm
from prefpipe.compare import matches
from prefpipe.compare.matches import Contest, Contests, Standings, hold
from prefpipe.compare.tournament import Standing, Tournament
from prefpipe.rows import Message, Reject, as_turns, flatten_turns

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.compare.reward_model import RewardModel

Ranker = Callable[[Contests, Tournament], Standings]
"""Contests by id -> how each came out. What scores each response holds no tournament."""


def open_reward(name: str, *, load_in_4bit: bool | None, max_length: int | None = None) -> Ranker:
    """name: a folder or a hub name. max_length: for a model that brings no format of its own."""
    from prefpipe.compare.reward_model import RewardModel

    model = RewardModel.load(name, max_length=max_length, load_in_4bit=load_in_4bit)
    return partial(by_reward, model)


def open_pairwise(
    name: str,
    *,
    seed: int,
    load_in_4bit: bool | None,
    max_length: int | None = None,
    score_temperature: float | None = None,
) -> Ranker:
    """score_temperature: divides the logits; None: the one that the model was saved with."""
    from prefpipe.compare.ab_model import PairwiseModel

    model = PairwiseModel.load(
        name, max_length=max_length, temperature=score_temperature, load_in_4bit=load_in_4bit
    )
    return partial(by_pairwise, model, seed=seed)


# ---- by scores -----------------------------------------------------------------------------------


def by_reward(model: "RewardModel", contests: Contests, _: Tournament = "knockout") -> Standings:
    """By the reward of each response; equal ones keep the order of the input."""
    return _by_scores(contests, model.score(_texts(contest) for contest in contests.values()))


def by_implicit_reward(
    base: Any, tuned: Any, contests: Contests, _: Tournament = "knockout"
) -> Standings:
    """By log p(tuned) - log p(base), summed over a response's tokens; Rafailov et al. 2023, eq. 5."""
    prompted = [(as_turns(prompt), texts) for prompt, texts in map(_texts, contests.values())]
    gains = (
        [b.sum_logp - a.sum_logp for a, b in zip(before, after, strict=True)]
        if isinstance(before, list) and isinstance(after, list)
        else (after if isinstance(before, list) else before)  # a Failure
        for before, after in zip(base.score(prompted), tuned.score(prompted), strict=True)
    )
    return _by_scores(contests, gains)


def _texts(contest: Contest) -> tuple[str | list[Message], list[str]]:
    return contest.prompt, [contest.responses[k] for k in contest.entrants]


def _by_scores(contests: Contests, scored: Iterable[Any]) -> Standings:
    """scored: for each contest the scores of its entrants, or something with a reason and detail."""
    standings: Standings = {}
    for (id, contest), scores in zip(contests.items(), scored, strict=True):
        if not isinstance(scores, list):
            standings[id] = Reject(id=id, reason=scores.reason, detail=scores.detail)
            continue
        of_entrant = dict(zip(contest.entrants, scores, strict=True))
        order = sorted(of_entrant, key=lambda k: -of_entrant[k])
        standings[id] = Standing(order, played=[], strengths=[of_entrant[k] for k in order])
    return standings


# ---- by matches ----------------------------------------------------------------------------------


def by_judge(
    engine: llm.Engine,
    contests: Contests,
    kind: Tournament,
    *,
    seed: int,
    template: str | None,
    max_new_tokens: int,
    leave_out_failing: bool = False,
) -> Standings:
    options = {"template": template, "max_new_tokens": max_new_tokens, "seed": seed}
    return hold(
        contests,
        partial(matches.judge_matches, engine, leave_out_failing=leave_out_failing, **options),
        kind,
        seed=seed,
    )


def by_pairwise(
    model: "PairwiseModel", contests: Contests, kind: Tournament, *, seed: int
) -> Standings:
    """A knockout plays all rounds of as many prompts as make about one batch: what its first round
    reads is kept for the next ones.
    """
    from prefpipe.models.trees import in_batches

    if kind != "knockout" or all(len(contest.entrants) == 2 for contest in contests.values()):
        return hold(contests, partial(matches.pairwise_matches, model), kind, seed=seed)
    standings: Standings = {}
    for ids in in_batches(contests, model.max_batch_tokens, lambda id, _: _tokens(contests[id])):
        play = partial(matches.pairwise_matches, model, cache=model.new_cache())
        standings |= hold({id: contests[id] for id in ids}, play, kind, seed=seed)
    return standings


def _tokens(contest: Contest) -> int:
    """An estimate for a knockout's first round, four bytes each: each response stands in both orders."""
    texts = [flatten_turns(contest.prompt), *contest.responses, *contest.responses]
    return sum(len(text.encode()) for text in texts) // 4
