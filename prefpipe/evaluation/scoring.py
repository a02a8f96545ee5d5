"""How right models are that rank responses: reward models, pairwise models, implicit rewards, judges.

A pair is a question with one right and one wrong response, so that pairs, best of 4 and ties are
scored alike. What compares instead of scoring gives a pair its log-odds, and plays a knockout where
there are more responses; where the published score needs a score for each response (the Ties subset
of RewardBench 2), it is a round-robin.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefpipe.compare import tournament
from prefpipe.compare.matches import Contest
from prefpipe.compare.openers import Ranker
from prefpipe.evaluation import held_out, metrics
from prefpipe.evaluation.held_out import Kind, Measured
from prefpipe.files import RowLog, Run, windows_left
from prefpipe.formats import FORMATS
from prefpipe.formats.rewardbench2 import best_of_score
from prefpipe.questions import question_key
from prefpipe.rows import Question, Reject, ScoredQuestion, flatten_turns
from prefpipe.screen import progress

WINDOW = 64
"""Questions that are scored, then logged, together."""
Scores = list[float] | Reject
"""A question's: first those of its right responses, then of its wrong ones."""


def measure(
    run: Run, scored: Sequence[Measured], open_ranker: Callable[[Kind, str], Ranker], output: Path
) -> dict[str, dict[str, Any]]:
    """By set and kind: accuracy with interval and length null, calibration, published scores.

    Every question is emitted here: its scores, to output, or why it has none. open_ranker: of a kind
    and a set's name; all sets of a kind come one after the other.
    """
    log, unscored = run.open_log(ScoredQuestion, "scores"), run.open_log(Reject, "unscored")
    report: dict[str, dict[str, Any]] = {}
    kinds: dict[Kind, None] = dict.fromkeys(measured.kind for measured in scored)
    for kind in kinds:
        for measured in (m for m in scored if m.kind == kind):
            questions = list(held_out.questions(measured, run))
            rank = open_ranker(kind, measured.name)
            scorable = [q for q in questions if isinstance(q, Question)]
            _score(scorable, measured, rank, log, unscored, run.shards.owns)
            if run.shards.keeps_logs:
                continue
            usable = (_usable(question, measured, unscored) for question in questions)
            kept = list(held_out.counted(run, usable))
            rows = [log.get(_key(question, measured)) for question in kept]
            for row in rows:
                run.emit(row, to=output)
            if kept:
                report.setdefault(measured.name, {})[kind] = report_of(measured.name, kept, rows)
    return report


def _key(question: Question, measured: Measured) -> str:
    return f"{question.id}\t{measured.name}\t{measured.kind}"


def _usable(
    question: Question | Reject, measured: Measured, unscored: RowLog[Reject]
) -> Question | Reject:
    if isinstance(question, Reject) or _key(question, measured) not in unscored:
        return question
    return unscored.get(_key(question, measured)).model_copy(update={"id": question.id})


def _score(
    questions: Sequence[Question],
    measured: Measured,
    rank: Ranker,
    log: RowLog[ScoredQuestion],
    unscored: RowLog[Reject],
    owns: Callable[[str], bool],
) -> None:
    """Log what the logs lack, window by window: the scores of a question, or why it has none."""
    keys = {question.id: _key(question, measured) for question in questions}
    done = lambda q: keys[q.id] in log or keys[q.id] in unscored  # noqa: E731
    windows = windows_left(questions, WINDOW, done, owns)
    for window in progress(windows, len(windows), f"{measured.kind}: {measured.name}"):
        for question, scores in zip(window, scores_of(window, rank), strict=True):
            if done(question):
                continue
            if isinstance(scores, Reject):
                unscored.add(scores.model_copy(update={"id": keys[question.id]}))
                continue
            n = len(question.right)
            row = ScoredQuestion(
                id=question.id,
                benchmark=measured.name,
                kind=measured.kind,
                right_scores=scores[:n],
                wrong_scores=scores[n:],
            )
            log.add(row)


def scores_of(questions: Sequence[Question], rank: Ranker) -> Iterator[Scores]:
    """A model's own scores; else log-odds of a pair, a knockout's winner, a round-robin's strengths."""
    ranked_in_full = {subset for form in FORMATS.values() for subset in form.ranked_subsets}
    contests: dict[tournament.Tournament, dict[str, Contest]] = {"knockout": {}, "round-robin": {}}
    for question in questions:
        responses = [*question.right, *question.wrong]
        kind = "round-robin" if question.source in ranked_in_full else "knockout"
        contests[kind][question.id] = Contest(question.prompt, responses, range(len(responses)))
    standings: dict[str, tournament.Standing | Reject] = {}
    for kind, of_kind in contests.items():
        standings |= rank(of_kind, kind) if of_kind else {}
    for question in questions:
        standing = standings[question.id]
        yield standing if isinstance(standing, Reject) else _as_scores(standing)


def _as_scores(standing: tournament.Standing) -> list[float]:
    n = len(standing.order)
    if standing.strengths is not None:
        strength = dict(zip(standing.order, standing.strengths, strict=True))
        return [strength[k] for k in range(n)]
    if n == 2:
        (match,) = standing.played
        p = 0.5 if match.p is None else match.p  # None: excluded by the caller
        margin = tournament.log_odds(p)
        return [margin, 0.0] if match.first == 0 else [-margin, 0.0]
    return [float(k == standing.order[0]) for k in range(n)]


# ---- reports -----------------------------------------------------------------------------------


def report_of(
    benchmark: str, questions: Sequence[Question], rows: Sequence[ScoredQuestion]
) -> dict[str, Any]:
    """What one model scored on one benchmark; both lists are of the same questions, in order."""
    are_pairs = all(len(q.right) == len(q.wrong) == 1 for q in questions)
    report = _pairs_report(questions, rows) if are_pairs else _best_of_report(questions, rows)
    members: dict[str, list[tuple[Question, ScoredQuestion]]] = defaultdict(list)
    for question, row in zip(questions, rows, strict=True):
        members[question.source].append((question, row))
    by_source = {source: _subset(members[source]) for source in sorted(members)}
    published = held_out.published_score(
        benchmark,
        {source: subset["accuracy"] for source, subset in by_source.items()},
        lambda form: form.published_of_scores and form.published_of_scores(rows),
    )
    return report | {"by_source": by_source} | ({"published": published} if published else {})


def _pairs_report(questions: Sequence[Question], rows: Sequence[ScoredQuestion]) -> dict[str, Any]:
    return metrics.preference_report(
        [
            metrics.ScoredPair(
                id=q.id,
                question=question_key(flatten_turns(q.prompt)),
                margin=row.right_scores[0] - row.wrong_scores[0],
                tie=q.tie,
                lengths=(len(q.right[0]), len(q.wrong[0])),
            )
            for q, row in zip(questions, rows, strict=True)
        ]
    )


def _best_of_report(
    questions: Sequence[Question], rows: Sequence[ScoredQuestion]
) -> dict[str, Any]:
    """best: the first place is right; random: what a random pick would score; longest: the longest."""
    n, responses = len(questions), [len(q.right) + len(q.wrong) for q in questions]
    return {
        "n": n,
        "responses": sum(responses) / max(1, n),
        **metrics.share_with_interval([best_of_score(row) for row in rows]).as_accuracy(),
        "random_is_right": _mean(
            [len(q.right) / k for q, k in zip(questions, responses, strict=True)]
        ),
        "longer_is_right": _mean([_longest_is_right(q) for q in questions]),
    }


def _longest_is_right(question: Question) -> float:
    most = max(map(len, [*question.right, *question.wrong]))
    right, wrong = (sum(len(x) == most for x in xs) for xs in (question.right, question.wrong))
    return right / (right + wrong)


def _subset(rows: Sequence[tuple[Question, ScoredQuestion]]) -> dict[str, Any]:
    decided = [(question, row) for question, row in rows if not question.tie]
    return {
        "n": len(rows),
        **metrics.share_with_interval([best_of_score(row) for _, row in decided]).as_accuracy(),
        "longer_is_right": _mean([_longest_is_right(question) for question, _ in decided]),
    }


def _mean(values: Sequence[float]) -> float:
    return metrics.share(values) or 0.0
