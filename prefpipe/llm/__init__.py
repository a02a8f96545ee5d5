"""Prompts to texts: one protocol, several engines.

local     transformers in this process (prefpipe.llm.local.local_engine)
server    any OpenAI-compatible endpoint (prefpipe.llm.server.server_engine)
batch     the OpenAI Batch API (prefpipe.llm.batch_api.batch_engine)
scripted  canned answers, for tests (prefpipe.llm.scripted)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from prefpipe.rows import Completion, Message

SERVER_FAILURES = frozenset(
    {"rate_limited", "server_error", "timeout", "connection_lost", "batch_unreadable"}
)
"""Reasons of a Failure that lie with the server or the network: the same request may pass later."""

MANY = 20
"""From this many prompts on, equal samples are no accident."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to answer it. temperature 0 is greedy: top_p, top_k, seed have no effect.
    A text depends on the request and the sample's number only, not on what else is in its batch:
    the noise is drawn from (seed, id, sample, position)."""

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
    """A request without a completion, and the reason, such as prompt_too_long; the run goes on."""

    id: str
    reason: str
    detail: str = ""
    texts: tuple[Completion, ...] = ()
    """Of its samples those that have come, and are not asked for again."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Sum of the log-probabilities (nats) of a given text's tokens, and their number; the end of
    turn counts."""

    sum_logp: float
    n_tokens: int


Result = list[Completion] | Failure


class Engine(Protocol):
    """Requests to texts."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result a request, as soon as it is there: callers go by id, not by the order. Reads a
        bounded number of requests ahead."""
        ...


@runtime_checkable
class PaidEngine(Engine, Protocol):
    """An engine whose texts cost money; spent: tokens and money so far, for a person."""

    def spent(self) -> str: ...
