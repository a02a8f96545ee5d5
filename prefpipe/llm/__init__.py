"""Prompts to texts: one protocol, several engines.

local     transformers in this process (prefpipe.llm.local.local_engine)
server    any OpenAI-compatible endpoint (prefpipe.llm.server.server_engine)
batch     the OpenAI Batch API (prefpipe.llm.batch_api.batch_engine)
scripted  canned answers, for tests (prefpipe.llm.scripted)
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from prefpipe.files import RowLog
from prefpipe.rows import Completion, Message, Row
from prefpipe.screen import progress

R = TypeVar("R", bound=Row)

SERVER_FAILURES = frozenset({"rate_limited", "server_error", "timeout", "connection_lost"})
"""Reasons of a Failure that lie with the server or the network: the same request may pass later."""

MANY = 20
"""Prompts after which equal samples are no chance."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to answer it. temperature 0 is greedy: top_p, top_k, seed have no effect.

    A text depends on the request and the sample's number only, not on what else is in its batch:
    the noise is drawn from (seed, id, sample, position).
    """

    id: str
    messages: tuple[Message, ...]
    samples: tuple[int, ...] = (0,)
    """Which samples are wanted, by number: a resumed run asks for those it lacks."""
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    """No end of turn before that many (the local engine only; for measurements)."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    reply_schema: Mapping[str, Any] | None = None
    """JSON schema of the answer, where it is an object: what an engine with structured_output tells
    its server. No engine relies on it; the stage's parser reads the text either way."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that no completion could be had for; the rest of the run goes on."""

    id: str
    reason: str
    """snake_case: prompt_too_long, ..."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model makes of one given text."""

    sum_logp: float
    """Sum of its tokens' log-probabilities (nats)."""
    n_tokens: int
    """The end of turn counts."""


class Engine(Protocol):
    """Requests to texts."""

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion] | Failure]:
        """One result a request, as soon as it is there: callers go by id, not by the order.

        Reads a bounded number of requests ahead.
        """
        ...


@runtime_checkable
class PaidEngine(Engine, Protocol):
    """An engine whose texts cost money."""

    def spent(self) -> str:
        """Tokens and money so far, for a person."""
        ...


class Scorer(Protocol):
    """Answers to how probable they are."""

    def score(
        self, prompted: Iterable[tuple[Sequence[Message], Sequence[str]]]
    ) -> Iterator[list[TokenScores] | Failure]:
        """For each (messages, answers), in order: the log-probability of each answer.

        A Failure's id is the number of the prompt, from 0.
        """
        ...


def complete(
    engine: Engine,
    requests: Iterable[Request],
    log: RowLog[R],
    to_row: Callable[[Completion], R],
    *,
    total: int | None = None,
    what: str = "prompts",
) -> dict[str, Failure]:
    """Ask for every request and log a row for each completion as it comes.

    Returns the failures by request id: the rows a stage leaves out. Raises SystemExit where some
    of them may pass later; nothing is written then, and the next run asks for those again. Says so
    on stderr where not one prompt of many got two different samples.
    """
    failures: dict[str, Failure] = {}
    several = alike = 0  # prompts with more than one sample, and with equal ones only
    paid = engine if isinstance(engine, PaidEngine) else None
    results = progress(engine.generate(requests), total, what)
    for result in results:
        if paid:
            results.note(paid.spent())
        if isinstance(result, Failure):
            failures[result.id] = result
            continue
        several += len(result) > 1
        alike += len(result) > 1 and len({completion.text for completion in result}) == 1
        for completion in result:
            log.add(to_row(completion))
    if alike == several >= MANY:
        print(
            f"warning: all samples of a prompt are the same text, for each of {several} prompts; is "
            "the temperature 0, or does the server not sample? (transformers serve does where the "
            "model's generation_config.json has do_sample)",
            file=sys.stderr,
        )
    if later := [f for f in failures.values() if f.reason in SERVER_FAILURES]:
        raise SystemExit(
            f"{len(later)} requests did not pass (the first: {later[0].reason}, {later[0].detail}); "
            "all others are kept: the same command asks for these again"
        )
    return failures
