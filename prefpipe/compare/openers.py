"""Who ranks the responses to a prompt: a reward model, a pairwise model, a judge, an implicit reward.

All of them give standings, so that evaluation and ranking need not know who it was. open_reward and
open_pairwise load a model, which is slow: call them once there is work to do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from prefpipe import llm
from prefpipe.compare import matches
from prefpipe.compare.matches import Contest, Contests, Standings, hold
from prefpipe.compare.tournament import Standing, Tournament
from prefpipe.files import NOT_ASKED, Plan, Run
from prefpipe.llm import Failure
from prefpipe.rows import Message, Reject, as_turns, flatten_turns

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.compare.reward_model import RewardModel
    from prefpipe.compare.served_models import OpenRows, ServedPairwiseModel, ServedRewardModel

Ranker = Callable[[Contests, Tournament], Standings]
"""Contests by id -> how each came out. What scores each response holds no tournament."""


def when_asked(run: Run, open_ranker: Callable[[], Ranker], models: Sequence[str]) -> Ranker:
    """The ranker that opens itself once there is something to rank. models: their names; a dry run
    counts what they would read."""
    opened = cache(partial(PlannedRanker, run.plan, models) if run.plan else open_ranker)
    return lambda contests, kind: opened()(contests, kind)


class PlannedRanker:
    """Who ranks nothing, and counts for a plan what the models would read."""

    def __init__(self, plan: Plan, models: Sequence[str]) -> None:
        from prefpipe.llm.local.prompt_reader import PromptReader

        self._plan, self._models = plan, models
        self._reader = [PromptReader.of(name) for name in models][-1]
        self._prompts = self._responses = self._tokens = 0

    def __call__(self, contests: Contests, kind: Tournament) -> Standings:
        for prompt, texts in map(_texts, contests.values()):
            ids = self._reader.read("", as_turns(prompt), 0)
            self._prompts += 1
            self._responses += len(texts)
            self._tokens += 0 if isinstance(ids, Failure) else len(ids)
            self._tokens += sum(map(len, self._reader.completions(texts)))
        names = " and ".join(self._models)
        line = (
            f"{self._responses:,} responses to {self._prompts:,} prompts by {names}; tokens: "
            f"{self._tokens:,} in all texts (by its tokenizer, each text once)"
        )
        numbers = {"prompts": self._prompts, "responses": self._responses, "tokens": self._tokens}
        self._plan.put("to rank", [line], log=names, models=[*self._models], **numbers)
        return {id: Reject(id=id, reason=NOT_ASKED) for id in contests}


def open_reward(
    name: str,
    *,
    weights: Mapping[str, Any],
    open_rows: "OpenRows | None" = None,
    max_length: int | None = None,
) -> Ranker:
    """name: a folder or a hub name. open_rows: of a server that holds the model; None: it is loaded here,
    weights: with these options (load_in_4bit, dtype). max_length: for a model that brings no format of its own."""
    if open_rows:
        from prefpipe.compare.served_models import ServedRewardModel

        return partial(by_reward, ServedRewardModel(name, open_rows, max_length=max_length))
    from prefpipe.compare.reward_model import RewardModel

    model = RewardModel.load(name, max_length=max_length, **weights)
    return partial(by_reward, model)


def open_judge(
    run: Run, open_engine: Callable[[], llm.Engine], *, seed: int, **options: Any
) -> Ranker:
    """open_engine: called once there is something to ask. options: JudgeMatches'."""
    play = matches.JudgeMatches(run, cache(open_engine), seed=seed, **options)
    return lambda contests, kind: hold(contests, play, kind, seed=seed)


def open_pairwise(
    name: str,
    *,
    seed: int,
    weights: Mapping[str, Any],
    open_rows: "OpenRows | None" = None,
    max_length: int | None = None,
    score_temperature: float | None = None,
) -> Ranker:
    """score_temperature: divides the logits; None: the one that the model was saved with."""
    options: Any = {"max_length": max_length, "temperature": score_temperature}
    if open_rows:
        from prefpipe.compare.served_models import ServedPairwiseModel

        return partial(by_pairwise, ServedPairwiseModel(name, open_rows, **options), seed=seed)
    from prefpipe.compare.ab_model import PairwiseModel

    model = PairwiseModel.load(name, **weights, **options)
    return partial(by_pairwise, model, seed=seed)


# ---- by scores -----------------------------------------------------------------------------------


def by_reward(
    model: "RewardModel | ServedRewardModel", contests: Contests, _: Tournament = "knockout"
) -> Standings:
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


def by_pairwise(
    model: "PairwiseModel | ServedPairwiseModel",
    contests: Contests,
    kind: Tournament,
    *,
    seed: int,
) -> Standings:
    """A knockout plays all rounds of as many prompts as make about one batch: what its first round
    reads is kept for the next ones.
    """
    from prefpipe.models.trees import in_batches

    outside: dict[str, list[float]] = {}
    play = partial(matches.pairwise_matches, model, outside=outside)
    standings: Standings = {}
    if kind != "knockout" or all(len(contest.entrants) == 2 for contest in contests.values()):
        standings = hold(contests, play, kind, seed=seed)
    else:
        most = model.max_batch_tokens
        for ids in in_batches(contests, most, lambda id, _: _tokens(contests[id])):
            cached = partial(play, cache=model.new_cache())
            standings |= hold({id: contests[id] for id in ids}, cached, kind, seed=seed)
    means = {id: sum(values) / len(values) for id, values in outside.items()}
    return {
        id: replace(one, outside=means.get(id)) if isinstance(one, Standing) else one
        for id, one in standings.items()
    }


def _tokens(contest: Contest) -> int:
    """An estimate for a knockout's first round, four bytes each: each response stands in both orders."""
    texts = [flatten_turns(contest.prompt), *contest.responses, *contest.responses]
    return sum(len(text.encode()) for text in texts) // 4
