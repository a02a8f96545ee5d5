"""Who is better of two responses: a pairwise model's matches, a judge's, and the tournaments of them.

Both are asked in both orders of the responses, and a match is the mean of the two.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prefpipe import judge, languages, llm
from prefpipe.compare import tournament
from prefpipe.compare.tournament import Match, Standing
from prefpipe.files import NOT_ASKED, Run
from prefpipe.llm.replies import Replies
from prefpipe.rows import Message, Reject, as_turns, flatten_turns

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.compare.served_models import ServedPairwiseModel


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

    def not_asked(id: str) -> bool:
        return left_out[id].reason == NOT_ASKED  # of a dry run, which counts the rounds to the last

    def compare(matches: Sequence[Match]) -> list[float | None]:
        playable = [match for match in matches if match.id not in left_out or not_asked(match.id)]
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
    model: "PairwiseModel | ServedPairwiseModel",
    contests: Contests,
    matches: Sequence[Match],
    cache: Any = None,
    outside: dict[str, list[float]] | None = None,
) -> list[Outcome]:
    """The model's P(first is better); the matches of one prompt are computed behind one copy of it.

    cache: the model's new_cache(). outside: gets the probabilities on neither A nor B, by the prompt's id.
    """
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
            if outside is not None:
                outside.setdefault(id, []).extend(one.outside for one in compared)
        else:
            outcomes |= dict.fromkeys(members, compared.reject(id))
    return [outcomes[match] for match in matches]


class JudgeMatches:
    """A judge's matches: the share of its greedy verdicts for the first response, over both orders.

    Where one order is unreadable the other decides.
    """

    def __init__(
        self,
        run: Run,
        open_engine: Callable[[], llm.Engine],
        *,
        name: str = "judge",
        template: str | None,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        """name: of the log of what the judge wrote; one for each set of ids that are different."""
        self._open_engine, self._template = open_engine, template
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        self._round: dict[Match, BothOrders] = {}
        # Whom a knockout asks about next hangs on what was answered, so the requests are always
        # those of the round being played. A stopped tournament is played again from its first
        # round, on the verdicts that are there, and so comes to where it stood.
        self._replies = Replies(run, self._requests, name)

    def _requests(self) -> Iterator[llm.Request]:
        for showings in self._round.values():
            for showing in showings:
                yield llm.Request(
                    id=showing.id,
                    messages=tuple(as_turns(showing.prompt)),
                    reply_schema=showing.reply_schema,
                    **self._options,
                )

    def __call__(self, contests: Contests, matches: Sequence[Match]) -> list[Outcome]:
        """Raises SystemExit where the server failed a request that may pass later."""
        self._round = {match: _show(match, contests[match.id], self._template) for match in matches}
        self._replies.ask(self._open_engine, "verdicts")
        return [self._outcome(match.id, showings) for match, showings in self._round.items()]

    def _outcome(self, id: str, showings: BothOrders) -> Outcome:
        verdicts = [
            judge.verdict(self._replies.of(showing.id, row=id), showing) for showing in showings
        ]
        for verdict in reversed(verdicts):
            if isinstance(verdict, Reject):
                return verdict
        wins = [float(verdict == 1) for verdict in verdicts if isinstance(verdict, int)]
        return sum(wins) / len(wins) if wins else None


def _show(match: Match, contest: Contest, template: str | None) -> BothOrders:
    a, b = match.first, match.second
    ids = (f"{match.id}\t{a}\t{b}", f"{match.id}\t{b}\t{a}")
    question, answers = flatten_turns(contest.prompt), (contest.responses[a], contest.responses[b])
    language = languages.detect_language(question)
    return judge.both_orders(ids, question, *answers, language=language, template=template)
