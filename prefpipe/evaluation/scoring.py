"""Models that score or compare, on held-out questions: scores of all responses, and what they say.

A pair is a question with one right and one wrong response, so that pairs, best of 4 and ties are
scored alike. What compares instead of scoring gives a pair its log-odds, and plays a knockout where
there are more responses; the Ties subset of RewardBench 2, which needs a score for each response,
is a round-robin.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from prefpipe import llm
from prefpipe.compare import tournament
from prefpipe.compare.matches import Contest, Failed, judge_matches, pairwise_matches
from prefpipe.evaluation import metrics
from prefpipe.formats import published
from prefpipe.questions import question_key
from prefpipe.rows import Message, Question, Reject, ScoredQuestion, flatten_turns

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.compare.reward_model import RewardModel

Kind = Literal["dpo", "reward", "pairwise", "judge"]
Play = Callable[[Mapping[str, Contest], Sequence[tournament.Match], Failed], Sequence[float | None]]
Scores = list[float] | Reject
"""Of a question's right responses, then of its wrong ones."""


def responses_of(question: Question) -> list[str]:
    return [*question.right, *question.wrong]


# ---- scores ------------------------------------------------------------------------------------


def by_reward(model: "RewardModel", questions: Sequence[Question]) -> Iterator[Scores]:
    """The reward of each response."""
    from prefpipe.compare.reward_model import Unscorable

    texts = ((q.prompt, responses_of(q)) for q in questions)
    for question, scores in zip(questions, model.score(texts), strict=True):
        if isinstance(scores, Unscorable):
            yield Reject(id=question.id, reason=scores.reason, detail=scores.detail)
        else:
            yield scores


def by_implicit_reward(base: Any, tuned: Any, questions: Sequence[Question]) -> Iterator[Scores]:
    """log p(tuned) - log p(base) of each response, summed over its tokens (Rafailov et al. 2023)."""

    def texts() -> Iterator[tuple[list[Message], list[str]]]:
        for q in questions:
            prompt = q.prompt
            alone = isinstance(prompt, str)
            turns = [Message(role="user", content=prompt)] if alone else list(prompt)
            yield turns, responses_of(q)

    both = zip(questions, base.score(texts()), tuned.score(texts()), strict=True)
    for question, before, after in both:
        failed = next((r for r in (before, after) if isinstance(r, llm.Failure)), None)
        if failed is not None:
            yield Reject(id=question.id, reason=failed.reason, detail=failed.detail)
        else:
            yield [b.sum_logp - a.sum_logp for a, b in zip(before, after, strict=True)]


def by_pairwise(
    model: "PairwiseModel", questions: Sequence[Question], seed: int
) -> Iterator[Scores]:
    return by_matches(partial(pairwise_matches, model), questions, seed)


def by_judge(
    engine: llm.Engine, questions: Sequence[Question], seed: int, **options: Any
) -> Iterator[Scores]:
    return by_matches(partial(judge_matches, engine, seed=seed, **options), questions, seed)


def by_matches(play: Play, questions: Sequence[Question], seed: int) -> Iterator[Scores]:
    """By comparisons: log-odds of a pair, a knockout's winner, a round-robin's strengths (Ties)."""
    contests = {q.id: Contest(q.prompt, responses_of(q)) for q in questions}
    failed: Failed = {}

    def compare(matches: Sequence[tournament.Match]) -> list[float | None]:
        wanted = [match for match in matches if match.id not in failed]
        found = dict(zip(wanted, play(contests, wanted, failed), strict=True))
        return [found.get(match) for match in matches]

    entrants = {q.id: range(len(responses_of(q))) for q in questions}
    ties = {q.id: entrants[q.id] for q in questions if q.source == "rewardbench2/Ties"}
    others = {id: players for id, players in entrants.items() if id not in ties}
    standings = tournament.knockout(others, compare, seed=seed)
    standings |= tournament.round_robin(ties, compare) if ties else {}
    for question in questions:
        standing = standings[question.id]
        if question.id in failed:
            yield failed[question.id]
        elif standing.played and all(match.p is None for match in standing.played):
            yield Reject(id=question.id, reason="all_unreadable")
        else:
            yield _as_scores(standing)


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


def report(
    benchmark: str, questions: Sequence[Question], rows: Sequence[ScoredQuestion]
) -> dict[str, Any]:
    """What one model scored on one benchmark; both lists are of the same questions, in order."""
    pairs = all(len(q.right) == len(q.wrong) == 1 for q in questions)
    found = _pairs_report(questions, rows) if pairs else _best_of_report(questions, rows)
    by_source: dict[str, list[int]] = {}
    for k, question in enumerate(questions):
        by_source.setdefault(question.source, []).append(k)
    found["by_source"] = {
        source: _subset([questions[k] for k in members], [rows[k] for k in members])
        for source, members in sorted(by_source.items())
    }
    if benchmark == "rewardbench":
        accuracy = {
            source.partition("/")[2]: subset["accuracy"]
            for source, subset in found["by_source"].items()
        }
        found["published"] = published.rewardbench_scores(accuracy)
    if benchmark == "rewardbench2":
        found["published"] = published.rewardbench2_scores(rows)
    return found


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
    best = metrics.share_with_interval([published.best_of_score(row) for row in rows])
    chance = [len(q.right) / len(responses_of(q)) for q in questions]
    longest = [_longest_is_right(q) for q in questions]
    return {
        "n": len(questions),
        "responses": sum(len(responses_of(q)) for q in questions) / max(1, len(questions)),
        "accuracy": best.value,
        "interval": [best.low, best.high],
        "random_is_right": _mean(chance),
        "longer_is_right": _mean(longest),
    }


def _longest_is_right(question: Question) -> float:
    most = max(map(len, responses_of(question)))
    right = sum(len(text) == most for text in question.right)
    return right / (right + sum(len(text) == most for text in question.wrong))


def _subset(questions: Sequence[Question], rows: Sequence[ScoredQuestion]) -> dict[str, Any]:
    kept = [(q, row) for q, row in zip(questions, rows, strict=True) if not q.tie]
    best = metrics.share_with_interval([published.best_of_score(row) for _, row in kept])
    return {
        "n": len(questions),
        "accuracy": best.value,
        "interval": [best.low, best.high],
        "longer_is_right": _mean([_longest_is_right(q) for q, _ in kept]),
    }


def overlap(questions: Iterable[Question], trained_on: Iterable[str]) -> dict[str, Any]:
    """How much of the questions' n-grams stands in the texts that were trained on."""
    found = published.Overlap({q.id: flatten_turns(q.prompt) for q in questions})
    for text in trained_on:
        found.add(text)
    return found.report()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
