"""Compare functions for prefpipe.compare.tournament: a pairwise model's and a judge's matches.

Both ask in both orders of the responses. A prompt that cannot be compared at all (too long, say) is
put into `failed` with its reason; its matches have no outcome then.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefpipe import judge, languages, llm, rows, verdicts
from prefpipe.compare.tournament import Match
from prefpipe.rows import Message, Reject

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.models.prefix_cache import PrefixCache


class Contest(NamedTuple):
    """A prompt and the responses that its matches name by index."""

    prompt: str | list[Message]
    responses: Sequence[str]


Failed = dict[str, Reject]


def pairwise_matches(
    model: "PairwiseModel",
    contests: Mapping[str, Contest],
    matches: Sequence[Match],
    failed: Failed,
    *,
    cache: "PrefixCache | None" = None,
) -> list[float | None]:
    """P(first is better) of each match; those of one prompt are computed behind one copy of it."""
    from prefpipe.compare.reward_model import Unscorable

    by_id: dict[str, list[Match]] = {}
    for match in matches:
        by_id.setdefault(match.id, []).append(match)
    questions = (
        (
            contests[id].prompt,
            contests[id].responses,
            [(match.first, match.second) for match in members],
        )
        for id, members in by_id.items()
    )
    found: dict[Match, float] = {}
    for (id, members), compared in zip(by_id.items(), model.compare(questions, cache), strict=True):
        if isinstance(compared, Unscorable):
            failed[id] = Reject(id=id, reason=compared.reason, detail=compared.detail)
        else:
            found |= {match: one.p for match, one in zip(members, compared, strict=True)}
    return [found.get(match) for match in matches]


def judge_matches(
    engine: llm.Engine,
    contests: Mapping[str, Contest],
    matches: Sequence[Match],
    failed: Failed,
    *,
    template: str | None,
    max_new_tokens: int,
    seed: int,
) -> list[float | None]:
    """The share of greedy verdicts for the first response, over both orders.

    An unreadable verdict is none: where one order is unreadable the other decides, where both are
    the match has no outcome.
    """

    def requests() -> Iterator[llm.Request]:
        for match in matches:
            prompt, responses = contests[match.id]
            question = prompt if isinstance(prompt, str) else rows.flatten_turns(prompt)
            language = languages.detect_language(question)
            for order in ((match.first, match.second), (match.second, match.first)):
                text = judge.judge_prompt(
                    question,
                    responses[order[0]],
                    responses[order[1]],
                    language=language,
                    template=template,
                )
                yield llm.Request(
                    id=f"{match.id}\t{order[0]}\t{order[1]}",
                    messages=(Message(role="user", content=text),),
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    reply_schema=verdicts.judgment_schema(language),
                )

    wins: dict[Match, list[float]] = {match: [] for match in matches}
    for result in engine.generate(requests()):
        request_id = result.id if isinstance(result, llm.Failure) else result[0].id
        id, first, second = request_id.rsplit("\t", 2)
        if isinstance(result, llm.Failure):
            if result.reason in llm.SERVER_FAILURES:
                raise SystemExit(
                    f"a request did not pass ({result.reason}, {result.detail}); what is done is "
                    "kept: the same command goes on"
                )
            failed[id] = Reject(id=id, reason=result.reason, detail=result.detail)
            continue
        parsed = verdicts.parse_verdict(result[0].text)
        if isinstance(parsed, verdicts.Verdict):
            winner = int((first, second)[parsed.better - 1])
            match = Match(id, int(first), int(second))
            if match not in wins:
                match = Match(id, int(second), int(first))
            wins[match].append(float(winner == match.first))
    return [sum(won) / len(won) if (won := wins[match]) else None for match in matches]
