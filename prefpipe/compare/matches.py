"""Who is better of two responses: a pairwise model's matches, a judge's, and the tournaments of them.

Both are asked in both orders of the responses, and a match is the mean of the two.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefpipe import judge, languages, llm
from prefpipe.compare import tournament
from prefpipe.compare.tournament import Match, Standing
from prefpipe.llm.outcomes import passes_later
from prefpipe.rows import Completion, Message, Reject, as_turns, flatten_turns

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.models.prefix_cache import PrefixCache


class Contest(NamedTuple):
    """A prompt and its responses, which matches name by index."""

    prompt: str | list[Message]
    responses: Sequence[str]
    entrants: Sequence[int]
    """Indices of the responses that compete."""


Contests = Mapping[str, Contest]
"""By the prompt's id."""
Standings = dict[str, Standing | Reject]
"""By the prompt's id how its contest came out, or why it could not be held."""
Outcome = float | Reject | None
"""P(first is better) of a match; None: no verdict could be read; a Reject: the prompt cannot be
compared at all (too long, say)."""
BothOrders = tuple[judge.Showing, judge.Showing]
Play = Callable[[Contests, Sequence[Match]], Sequence[Outcome]]


def hold(contests: Contests, play: Play, kind: tournament.Tournament, *, seed: int) -> Standings:
    """A tournament of each contest; a Reject where it cannot be compared, or nothing could be read."""
    left_out: dict[str, Reject] = {}

    def compare(matches: Sequence[Match]) -> list[float | None]:
        playable = [match for match in matches if match.id not in left_out]
        outcomes = dict(zip(playable, play(contests, playable), strict=True))
        left_out.update({m.id: p for m, p in outcomes.items() if isinstance(p, Reject)})
        return [None if isinstance(p := outcomes.get(m), Reject) else p for m in matches]

    entrants = {id: contest.entrants for id, contest in contests.items()}
    if kind == "knockout":
        standings = tournament.knockout(entrants, compare, seed=seed)
    else:
        standings = tournament.round_robin(entrants, compare)
    detail = "no comparison gave a verdict that can be read"
    for id, standing in standings.items():
        if id not in left_out and standing.played and all(m.p is None for m in standing.played):
            left_out[id] = Reject(id=id, reason="all_unreadable", detail=detail)
    return standings | left_out


def pairwise_matches(
    model: "PairwiseModel",
    contests: Contests,
    matches: Sequence[Match],
    cache: "PrefixCache | None" = None,
) -> list[Outcome]:
    """The model's P(first is better); the matches of one prompt are computed behind one copy of it."""
    by_id: dict[str, list[Match]] = {}
    for match in matches:
        by_id.setdefault(match.id, []).append(match)
    questions = (
        (contests[id].prompt, contests[id].responses, [(m.first, m.second) for m in members])
        for id, members in by_id.items()
    )
    outcomes: dict[Match, Outcome] = {}
    for (id, members), compared in zip(by_id.items(), model.compare(questions, cache), strict=True):
        if isinstance(compared, list):
            outcomes |= {match: one.p for match, one in zip(members, compared, strict=True)}
        else:
            outcomes |= dict.fromkeys(members, compared.reject(id))
    return [outcomes[match] for match in matches]


def judge_matches(
    engine: llm.Engine,
    contests: Contests,
    matches: Sequence[Match],
    *,
    template: str | None,
    max_new_tokens: int,
    seed: int,
    leave_out_failing: bool = False,
) -> list[Outcome]:
    """The share of a judge's greedy verdicts for the first response, over both orders.

    Where one order is unreadable the other decides. Raises SystemExit where the server failed a
    request that may pass later; with leave_out_failing that prompt gets no outcome.
    """
    showings = {match: _show(match, contests[match.id], template) for match in matches}
    requests = (
        llm.Request(
            id=showing.id,
            messages=tuple(as_turns(showing.prompt)),
            max_new_tokens=max_new_tokens,
            seed=seed,
            reply_schema=showing.reply_schema,
        )
        for both in showings.values()
        for showing in both
    )
    # No llm.replies.Replies, which wants all requests of a run beforehand: whom a knockout asks
    # about next hangs on what was answered. The stages log each prompt's result instead.
    replies: dict[str, list[Completion] | Reject] = {}
    for result in engine.generate(requests):
        if not isinstance(result, llm.Failure):
            replies[result[0].id] = result
        elif result.reason in llm.SERVER_FAILURES and not leave_out_failing:
            raise SystemExit(passes_later([result]))
        else:
            replies[result.id] = Reject(id=result.id, reason=result.reason, detail=result.detail)
    return [_outcome(match.id, showings[match], replies) for match in matches]


def _show(match: Match, contest: Contest, template: str | None) -> BothOrders:
    a, b = match.first, match.second
    ids = (f"{match.id}\t{a}\t{b}", f"{match.id}\t{b}\t{a}")
    question, answers = flatten_turns(contest.prompt), (contest.responses[a], contest.responses[b])
    language = languages.detect_language(question)
    return judge.both_orders(ids, question, *answers, language=language, template=template)


def _outcome(
    id: str, both: BothOrders, replies: Mapping[str, list[Completion] | Reject]
) -> Outcome:
    verdicts = [judge.verdict(replies[showing.id], showing) for showing in both]
    for verdict in reversed(verdicts):
        if isinstance(verdict, Reject):
            return verdict.model_copy(update={"id": id})
    wins = [float(verdict == 1) for verdict in verdicts if isinstance(verdict, int)]
    return sum(wins) / len(wins) if wins else None
