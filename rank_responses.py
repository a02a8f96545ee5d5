"""Rank several responses to each prompt: by a reward model, a pairwise model, or a judge.

Reads   data/responses.jsonl              Responses rows (any number of responses a prompt)
Writes  data/ranking/rankings.jsonl       Ranking rows: the order, scores or matches, best and worst
        data/ranking/preferences.jsonl    Preference rows: best against worst
        data/ranking/README.md            the card: how the rows were made
        data/ranking/rank_responses.rejects.jsonl   Reject rows: what could not be ranked, and why

    {"id": "p8", "prompt": "2+2?", "responses": ["5", "4", "4", ""], "right": [false, true, true, false], "source": "sums"}
 -> {"id": "p8", "by": "reward", "tournament": null, "ranking": [1, 0], "copies": [[1, 2], [0]], "scores": [1.9, -0.7], "margins": [2.6], "best": 1, "worst": 0, "comparisons": [], "cycle": null, "best_is_right": true, "right_share": 0.5, "outside": null}

Responses of equal text are one competitor; empty ones do not compete; with fewer than two left, or
without a prompt, the row is a reject. A pairwise model and a judge are asked in both orders, which is
one comparison: knockout takes n - 1 of them and finds the best, round-robin n (n - 1) / 2 and orders
all (Bradley-Terry strengths, a tie being half a win; circles are reported): prefpipe/compare/tournament.py.

    uv run rank_responses.py --by pairwise --tournament round-robin
"""

import os
from functools import partial
from pathlib import Path

import config
from prefpipe import files, llm
from prefpipe.compare import openers
from prefpipe.compare.matches import Contest
from prefpipe.compare.rankings import By, Totals, to_ranking
from prefpipe.compare.tournament import Tournament, competitors
from prefpipe.formats import prompts
from prefpipe.formats.opening import say
from prefpipe.publish.cards import write_data_card
from prefpipe.ranges import Positive
from prefpipe.rows import Message, Preference, Ranking, Reject, Responses, as_turns
from prefpipe.screen import progress
from prefpipe.settings import EngineStage, NoEffectOnRows, PairColumns, local_folders
from prefpipe.templates import template_files


class Settings(
    PairColumns, EngineStage, env_prefix="RANK_", cli_shortcuts={"score-temperature": "temperature"}
):
    input: Path = config.RESPONSES
    """Responses rows, or a published format with several answers to a prompt (--format)."""
    output: Path = config.RANKING
    """Folder of rankings.jsonl and preferences.jsonl."""
    by: By = "reward"
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
    score_temperature: float | None = None
    """Divides the pairwise model's logits; None: the one it was saved with, else 1."""
    prompts_at_once: NoEffectOnRows[Positive] = 64
    """Prompts whose matches of a round are played together, at most."""


def main(
    s: Settings, ranker: openers.Ranker | None = None, judge: llm.Engine | None = None
) -> None:
    rankings, preferences = s.output / "rankings.jsonl", s.output / "preferences.jsonl"
    model = {"reward": s.reward_model, "pairwise": s.pairwise_model, "judge": s.judge}[s.by]
    shown = template_files(s.template, "judge") if s.by == "judge" else []
    inputs = [*files.here([s.input]), *local_folders(model), *shown]
    outputs = {rankings: Ranking, preferences: Preference}
    with s.open_run(
        inputs=inputs,
        outputs=outputs,
        home=s.output,
        unit="prompts",
        card=write_data_card,
        by_logs=True,
    ) as run:
        if run.finished:
            return
        # a warning of tokenizers otherwise, where a library forks later
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        log, unranked = run.open_log(Ranking), run.open_log(Reject, "unranked")
        rank_windows(s, run, log, unranked, ranker or open_ranker(s, run, judge))
        run.end_shard()
        totals = Totals()
        read = prompts.read_responses(s.input, s.limit, s.how_read(), partial(say, run))
        for row in prompts.accepted(run, read):
            if unusable := why_not(row):
                run.emit(unusable)
            elif row.id in unranked:
                run.emit(unranked.get(row.id))
            else:
                ranking = log.get(row.id)
                totals.add(ranking)
                run.keep((rankings, ranking), (preferences, to_preference(row, ranking)))
        run.summary |= totals.summary()
    print("\n".join(totals.lines(s.by)))


def rank_windows(
    s: Settings,
    run: files.Run,
    log: files.RowLog[Ranking],
    unranked: files.RowLog[Reject],
    rank: openers.Ranker,
) -> None:
    """Rank what the logs lack; a row that could not be ranked stands in unranked."""
    read = (row for _, row in prompts.read_responses(s.input, s.limit, s.how_read()))
    rows = [row for row in read if isinstance(row, Responses) and not why_not(row)]
    how = None if s.by == "reward" else s.tournament
    # a judge's replies are kept one by one, and a server wants all that can be asked at once
    if s.by == "judge":
        rows = [row for row in rows if run.shards.owns(row.id)]
    size = max(1, len(rows)) if s.by == "judge" else s.prompts_at_once
    is_done = lambda row: row.id in log or row.id in unranked  # noqa: E731
    # Cut by the input and not by what is left: in another batch a score has other last digits, and a
    # run that was stopped would end in another file.
    windows = files.windows_left(rows, size, is_done, run.shards.owns)
    for window in progress(windows, len(windows), "windows"):
        standings = rank({row.id: to_contest(row) for row in window}, s.tournament)
        for row in (row for row in window if not is_done(row)):
            if isinstance(standing := standings[row.id], Reject):
                unranked.add(standing)
            else:
                log.add(to_ranking(row, standing, s.by, how))


def open_ranker(s: Settings, run: files.Run, judge: llm.Engine | None = None) -> openers.Ranker:
    """Who ranks; its model is loaded, which is slow, once there is work to do."""
    if s.by == "judge":
        options = {"template": s.template, "max_new_tokens": s.max_new_tokens, "seed": s.seed}
        return openers.open_judge(run, lambda: judge or s.open_engine(s.judge), **options)
    where = {"max_length": s.max_length, **s.where_scored()}
    if s.by == "reward":
        opened = partial(openers.open_reward, s.reward_model, **where)
        return openers.when_asked(run, opened, [s.reward_model])
    options = {"seed": s.seed, "score_temperature": s.score_temperature, **where}
    opened = partial(openers.open_pairwise, s.pairwise_model, **options)
    return openers.when_asked(run, opened, [s.pairwise_model])


def why_not(row: Responses) -> Reject | None:
    """Why nobody can rank these responses, whoever it is; None: it can be tried."""
    if row.right is not None and len(row.right) != len(row.responses):
        detail = f"{len(row.right)} values for {len(row.responses)} responses"
        return Reject(id=row.id, reason="right_does_not_fit", detail=detail)
    if not any(turn["content"].strip() for turn in as_turns(row.prompt)):
        return Reject(id=row.id, reason="empty_question", detail="the prompt is empty")
    different = len(competitors(row.responses))
    if different < 2:
        detail = f"{len(row.responses)} responses, {different} different ones that are not empty"
        return Reject(id=row.id, reason="fewer_than_two_responses", detail=detail)
    return None


def to_contest(row: Responses) -> Contest:
    return Contest(row.prompt, row.responses, [*competitors(row.responses)])


def to_preference(row: Responses, ranking: Ranking) -> Preference:
    """Best against worst; a tie where both have the same score."""
    best, worst = (
        text if isinstance(row.prompt, str) else [Message(role="assistant", content=text)]
        for text in (row.responses[ranking.best], row.responses[ranking.worst])
    )
    # without scores best and worst were compared with each other only where there are two
    if ranking.scores is not None:
        margin = ranking.scores[0] - ranking.scores[-1]
    else:
        margin = ranking.margins[0] if len(ranking.margins) == 1 else None
    return Preference(
        id=row.id,
        prompt=row.prompt,
        chosen=best,
        rejected=worst,
        margin=margin,
        tie=margin == 0,
        source=row.source or f"rank_responses/{ranking.by}",
    )


if __name__ == "__main__":
    Settings.run(main)
