"""Models in place of trained ones: how good a text is stands here."""

import math

from prefpipe import llm
from prefpipe.compare.tournament import Match
from prefpipe.verdicts import render_judgment


def quality(text: str) -> float:
    return {"good": 5.0, "fair": 1.0, "bad": -2.0}.get(text.strip(), -3 - len(text) / 10)


def by_quality(contests, matches):
    """The outcomes of matches between texts of known quality."""

    def p(match: Match) -> float:
        texts = contests[match.id].responses
        return 1 / (1 + math.exp(quality(texts[match.second]) - quality(texts[match.first])))

    return [p(match) for match in matches]


class KnownRewards:
    """A reward model whose scores are known; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def score(self, questions):
        for _, responses in questions:
            self.asked += 1
            yield [quality(text) for text in responses]


class AnswerJudge:
    """Says by `verdict(first, second)` which of the two answers is better: 1, 2, or garbage."""

    def __init__(self, verdict):
        self.verdict, self.requests = verdict, []

    def generate(self, requests):
        for request in requests:
            self.requests.append(request)
            text = request.messages[0]["content"]
            first, second = (text.split(f"[Answer {k}]")[1].strip().split("\n")[0] for k in (1, 2))
            said = self.verdict(first, second)
            if isinstance(said, llm.Failure):
                yield llm.Failure(request.id, said.reason, said.detail)
                continue
            answer = render_judgment("why", said, "en") if said in (1, 2) else "no idea"
            yield [
                llm.Completion(
                    id=request.id,
                    sample=0,
                    text=answer,
                    finish_reason="stop",
                    prompt_tokens=9,
                    new_tokens=9,
                )
            ]
