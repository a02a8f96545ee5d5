"""Rank several responses to each prompt: by a reward model, a pairwise model, or a judge.

Reads   data/responses.jsonl              Responses rows (any number of responses a prompt)
Writes  data/ranking/rankings.jsonl       Ranking rows: the order, scores or matches, best and worst
        data/ranking/preferences.jsonl    Preference rows: best against worst
        data/ranking/rank_responses.rejects.jsonl   Reject rows: what could not be ranked, and why

    {"id": "p8", "prompt": "2+2?", "responses": ["5", "4", "4", ""], "right": [false, true, true, false], "source": "sums"}
 -> {"id": "p8", "by": "reward", "tournament": null, "ranking": [1, 0], "copies": [[1, 2], [0]], "scores": [1.9, -0.7], "margins": [2.6], "best": 1, "worst": 0, "comparisons": [], "cycle": null, "best_is_right": true, "right_share": 0.5}

Responses of equal text are one competitor; empty ones do not compete; with fewer than two left, or
without a prompt, the row is a reject. A pairwise model and a judge are asked in both orders, which is
one comparison: knockout takes n - 1 of them and finds the best, round-robin n (n - 1) / 2 and orders
all (Bradley-Terry strengths, a tie being half a win; circles are reported). See prefpipe/compare/tournament.py.

    uv run rank_responses.py --by pairwise --tournament round-robin
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import config
from prefpipe import files, screen
from prefpipe.compare import tournament
from prefpipe.compare.matches import Contest, Failed, judge_matches, pairwise_matches
from prefpipe.ranges import Positive
from prefpipe.rows import Comparison, Message, Preference, Ranking, Reject, Responses, flatten_turns
from prefpipe.settings import EngineStage, NoEffectOnRows, local_folders

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.compare.reward_model import RewardModel

Tournament = Literal["knockout", "round-robin"]
Results = dict[str, Ranking | Reject]
Ranker = Callable[[Sequence[Responses]], Results]


class Settings(EngineStage, env_prefix="RANK_"):
    input: Path = config.RESPONSES
    """Responses rows, JSONL or Parquet."""
    output: Path = config.RANKING
    """Folder of rankings.jsonl and preferences.jsonl."""
    by: Literal["reward", "pairwise", "judge"] = "reward"
    """Who ranks."""
    tournament: Tournament = "knockout"
    """Which comparisons a pairwise model or a judge makes; a reward model scores each response."""
    reward_model: str = str(config.REWARD_MODEL)
    """A folder or a hub name of a one-label classifier."""
    pairwise_model: str = str(config.PAIRWISE_MODEL)
    """A folder or a hub name of a model of the A/B format."""
    judge: str = str(config.TUNED_JUDGE)
    """A folder or a hub name of a judge, asked with the prompt of preprocess_dataset.py."""
    template: str | None = None
    """A Jinja file to use as the judge's prompt in place of prefpipe/templates/judge.*.jinja."""
    max_length: Positive | None = None
    """Most tokens of a row, for a model that brings no format of its own; None: its positions."""
    temperature: float | None = None
    """Divides the pairwise model's logits; None: the one it was saved with, else 1."""
    prompts_at_once: NoEffectOnRows[Positive] = 64
    """Prompts whose matches of a round are played together, at most."""


def main(s: Settings, ranker: Ranker | None = None) -> None:
    rankings, preferences = s.output / "rankings.jsonl", s.output / "preferences.jsonl"
    model = {"reward": s.reward_model, "pairwise": s.pairwise_model, "judge": s.judge}[s.by]
    inputs = [s.input, *local_folders(model), *([Path(s.template)] if s.template else [])]
    outputs = {rankings: Ranking, preferences: Preference}
    with files.open_run(s, inputs=inputs, outputs=outputs, home=s.output, unit="prompts") as run:
        if run.finished:
            return
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        log = run.open_log(Ranking)
        left = [
            row
            for row in run.peek(s.input, Responses)
            if row.id not in log and not isinstance(competitors(row), Reject)
        ]
        unranked: dict[str, Reject] = {}
        if left:
            rank = ranker or open_ranker(s)
            starts = range(0, len(left), s.prompts_at_once)
            for start in screen.progress(starts, len(starts), "windows"):
                for id, result in rank(left[start : start + s.prompts_at_once]).items():
                    if isinstance(result, Reject):
                        unranked[id] = result
                    else:
                        log.add(result)
        found = Totals()
        for row in run.read(s.input, Responses):
            players = competitors(row)
            if isinstance(players, Reject) or row.id in unranked:
                run.emit(players if isinstance(players, Reject) else unranked[row.id])
                continue
            made = log.get(row.id)
            found.add(made)
            run.keep((rankings, made), (preferences, to_preference(row, made)))
        run.summary |= found.summary()
    print("\n".join(found.lines(s.by)))


def competitors(row: Responses) -> dict[int, list[int]] | Reject:
    """First index of each distinct response -> all copies; a Reject with fewer than two, or where
    nothing was asked, whatever would rank them.
    """
    if row.right is not None and len(row.right) != len(row.responses):
        detail = f"{len(row.right)} values for {len(row.responses)} responses"
        return Reject(id=row.id, reason="right_does_not_fit", detail=detail)
    asked = [row.prompt] if isinstance(row.prompt, str) else [m["content"] for m in row.prompt]
    if not any(text.strip() for text in asked):
        return Reject(id=row.id, reason="empty_prompt", detail="the prompt is empty")
    players = tournament.competitors(row.responses)
    if len(players) < 2:
        detail = f"{len(row.responses)} responses, {len(players)} different ones that are not empty"
        return Reject(id=row.id, reason="fewer_than_two_responses", detail=detail)
    return players


def to_preference(row: Responses, made: Ranking) -> Preference:
    """Best against worst; a tie where both have the same score."""
    best, worst = (
        text if isinstance(row.prompt, str) else [Message(role="assistant", content=text)]
        for text in (row.responses[made.best], row.responses[made.worst])
    )
    margin = None if made.scores is None else made.scores[0] - made.scores[-1]
    if made.scores is None and len(made.ranking) == 2:
        margin = made.margins[0]
    return Preference(
        id=row.id,
        prompt=row.prompt,
        chosen=best,
        rejected=worst,
        margin=margin,
        tie=margin == 0,
        source=row.source or f"rank_responses/{made.by}",
    )


# ---- the rankers ---------------------------------------------------------------------------------


def open_ranker(s: Settings) -> Ranker:
    """Load the model: the slow part, so only once there is work to do."""
    if s.by == "reward":
        from prefpipe.compare.reward_model import RewardModel

        reward = RewardModel.load(
            s.reward_model, max_length=s.max_length, load_in_4bit=s.load_in_4bit
        )
        return lambda rows: rank_by_reward(reward, rows)
    if s.by == "pairwise":
        from prefpipe.compare.ab_model import PairwiseModel

        comparer = PairwiseModel.load(
            s.pairwise_model,
            max_length=s.max_length,
            temperature=s.temperature,
            load_in_4bit=s.load_in_4bit,
        )
        return lambda rows: rank_by_pairwise_model(s, rows, comparer)
    options = {"template": s.template, "max_new_tokens": s.max_new_tokens, "seed": s.seed}
    judge = partial(judge_matches, s.open_engine(s.judge), **options)
    return lambda rows: rank_by_matches(s, rows, judge)


def rank_by_reward(model: "RewardModel", rows: Sequence[Responses]) -> Results:
    """By the score of each response; equal scores keep the order of the input."""
    from prefpipe.compare.reward_model import Unscorable

    results: Results = {}
    players = {row.id: tournament.competitors(row.responses) for row in rows}
    questions = ((row.prompt, [row.responses[k] for k in players[row.id]]) for row in rows)
    for row, scores in zip(rows, model.score(questions), strict=True):
        if isinstance(scores, Unscorable):
            results[row.id] = Reject(id=row.id, reason=scores.reason, detail=scores.detail)
            continue
        by_index = dict(zip(players[row.id], scores, strict=True))
        order = sorted(by_index, key=lambda k: -by_index[k])
        ordered = [by_index[k] for k in order]
        results[row.id] = to_ranking(row, "reward", None, order, ordered, [], None)
    return results


Matches = Callable[
    [Mapping[str, Contest], Sequence[tournament.Match], Failed], Sequence[float | None]
]
"""One of prefpipe.compare.matches, its model given."""


def rank_by_matches(s: Settings, rows: Sequence[Responses], play: Matches) -> Results:
    """By a tournament; a row of which no match could be told is a Reject."""
    by_id = {row.id: row for row in rows}
    contests = {row.id: Contest(row.prompt, row.responses) for row in rows}
    entrants = {row.id: list(tournament.competitors(row.responses)) for row in rows}
    failed: Failed = {}

    def compare(matches: Sequence[tournament.Match]) -> list[float | None]:
        wanted = [match for match in matches if match.id not in failed]
        found = dict(zip(wanted, play(contests, wanted, failed), strict=True))
        return [found.get(match) for match in matches]

    if s.tournament == "knockout":
        standings = tournament.knockout(entrants, compare, seed=s.seed)
    else:
        standings = tournament.round_robin(entrants, compare)
    results: Results = {}
    for id, standing in standings.items():
        if id in failed:
            results[id] = failed[id]
        elif all(match.p is None for match in standing.played):
            detail = "no comparison gave a verdict that can be read"
            results[id] = Reject(id=id, reason="all_unreadable", detail=detail)
        else:
            results[id] = to_ranking(
                by_id[id],
                s.by,
                s.tournament,
                standing.order,
                standing.strengths,
                standing.played,
                standing.cycle,
            )
    return results


def rank_by_pairwise_model(
    s: Settings, rows: Sequence[Responses], model: "PairwiseModel"
) -> Results:
    """By a tournament; a knockout plays all rounds of as many prompts as make about one batch, since
    what the first round reads is kept for the next ones.
    """
    from prefpipe.models.trees import in_batches

    if s.tournament != "knockout":
        return rank_by_matches(s, rows, partial(pairwise_matches, model))
    results: Results = {}
    for some in in_batches(((_estimate_tokens(row), row) for row in rows), model.max_batch_tokens):
        play = partial(pairwise_matches, model, cache=model.new_cache())
        results |= rank_by_matches(s, some, play)
    return results


def _estimate_tokens(row: Responses) -> int:
    """Of a knockout's first round, where a token has four bytes."""
    texts = [flatten_turns(row.prompt), *row.responses, *row.responses]
    return sum(len(text.encode()) for text in texts) // 4


def to_ranking(
    row: Responses,
    by: Literal["reward", "pairwise", "judge"],
    kind: Tournament | None,
    order: list[int],
    scores: list[float] | None,
    played: Sequence[tournament.Played],
    cycle: list[int] | None,
) -> Ranking:
    copies = tournament.competitors(row.responses)
    met = {(m.first, m.second): m.p for m in played} | {
        (m.second, m.first): None if m.p is None else 1 - m.p for m in played
    }
    margins: list[float | None]
    if scores is not None:
        margins = [a - b for a, b in pairwise(scores)]
    else:
        found = (met.get(pair) for pair in pairwise(order))
        margins = [None if p is None else tournament.log_odds(p) for p in found]
    return Ranking(
        id=row.id,
        by=by,
        tournament=kind,
        ranking=order,
        copies=[copies[k] for k in order],
        scores=scores,
        margins=margins,
        best=order[0],
        worst=order[-1],
        comparisons=[Comparison(first=m.first, second=m.second, p=m.p) for m in played],
        cycle=cycle,
        best_is_right=None if row.right is None else row.right[order[0]],
        right_share=None if row.right is None else sum(row.right) / len(row.right),
    )


# ---- totals --------------------------------------------------------------------------------------


class Totals:
    """What a person wants to know of a run."""

    def __init__(self) -> None:
        self.prompts = self.comparisons = self.undecided = self.cycles = 0
        self.right: list[bool] = []
        self.shares: list[float] = []

    def add(self, made: Ranking) -> None:
        self.prompts += 1
        self.comparisons += len(made.comparisons)
        self.undecided += sum(match["p"] in (None, 0.5) for match in made.comparisons)
        self.cycles += made.cycle is not None
        if made.best_is_right is not None and made.right_share is not None:
            self.right.append(made.best_is_right)
            self.shares.append(made.right_share)

    def summary(self) -> dict[str, float | int]:
        found: dict[str, float | int] = {
            "comparisons": self.comparisons,
            "undecided_comparisons": self.undecided,
            "prompts_with_a_circle": self.cycles,
        }
        if self.right:
            found |= {"best_is_right": _mean(self.right), "random_is_right": _mean(self.shares)}
        return found

    def lines(self, by: str) -> list[str]:
        lines = []
        if self.comparisons:
            lines.append(
                f"{self.comparisons} comparisons, {self.undecided} undecided; responses that beat "
                f"each other in a circle: {self.cycles} of {self.prompts} prompts"
            )
        if self.right:
            lines.append(
                f"the best response by {by} is right: {_mean(self.right):.3f}; a random one: "
                f"{_mean(self.shares):.3f} (n = {len(self.right)})"
            )
        return lines


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    Settings.run(main)
