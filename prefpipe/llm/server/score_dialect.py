"""How servers are asked for a score of token ids, or for the log-probabilities of two tokens behind them.

vLLM and SGLang have words of their own, also among their versions; which of them a server understands
is found out with the first requests. A row is sent as token ids, so that a server reads what is read here.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import openai

from prefpipe.llm import MANY, Failure, error_replies, wire
from prefpipe.llm.environment import route_to
from prefpipe.llm.wire import ServedModel, Stop, brief, count_in

Rows = Sequence[Sequence[int]]
_TOP = 20
"""vLLM's limit of log-probabilities a token; OpenAI's is 5."""


@dataclass(frozen=True)
class RowsRequest:
    """Rows of token ids whose results are wanted together."""

    id: str
    rows: Rows
    samples: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Wording:
    """One way to ask for the results of rows."""

    path: str
    body: Callable[[Rows], dict[str, Any]]
    at_root: bool = True
    """Whether it stands beside /v1, not in it."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of rows: the wordings, the likeliest first, and how results are read of any of them."""

    what: str
    """For a person."""
    wordings: Sequence[Wording]
    values: Callable[[Any], list[Any] | None]
    """One result a row, out of a reply's JSON; None: it holds none."""
    advice: str


class _Body(dict[str, Any]):
    """A request's fields, which knows its wording and its rows."""

    wording: int
    rows: Rows


@dataclass(frozen=True)
class _Values:
    values: list[Any]
    prompt_tokens: int
    new_tokens: int = 0


class ScoreDialect:
    """What one server understands; for all requests of an engine."""

    def __init__(self, served: ServedModel, wanted: Wanted) -> None:
        self._served, self._wanted = served, wanted
        self.reply_is = wanted.what
        self._wording, self._has_passed = 0, False
        self._refusals: dict[str, str] = {}
        """By the path."""
        self._within_one = 0
        """Scores so far that are between 0 and 1; minus one: another one was."""

    def body(self, request: RowsRequest, samples: Sequence[int]) -> dict[str, Any]:
        body = _Body()
        body.rows = request.rows
        return self._write(body)

    def _write(self, body: _Body) -> _Body:
        """The body in the wording that is thought right now."""
        body.clear()
        body.update({"model": self._served.model})
        body.update(self._wanted.wordings[self._wording].body(body.rows))
        body.wording = self._wording
        return body

    def address(self, body: Any, root: str) -> str:
        wording = self._wanted.wordings[body.wording]
        return f"{root}{wording.path}" if wording.at_root else wording.path

    def tokens(self, request: RowsRequest, samples: Sequence[int]) -> int:
        return sum(map(len, request.rows))

    def adapts(self, error: openai.APIStatusError, body: Any) -> bool:
        """Whether the rows, in other words now, are to be sent again. Raises Stop where none are left."""
        said = error.message
        if self._has_passed and body.wording == self._wording:
            return False
        if error.status_code not in (400, 404, 405, 415, 422, 501) or error_replies.is_too_long(
            said
        ):
            return False
        if body.wording == self._wording:  # of requests sent together the first one to be refused
            path = self._wanted.wordings[self._wording].path
            self._refusals.setdefault(path, f"{path}: HTTP {error.status_code} {said}")
            if self._wording + 1 == len(self._wanted.wordings):
                each = (
                    brief(self._served.printable(said))[:70] for said in self._refusals.values()
                )
                name = route_to(self._served.base_urls[0]).name
                raise Stop(
                    f"{name} gives no {self.reply_is} ({'; '.join(each)}); {self._wanted.advice}"
                )
            self._wording += 1
        self._write(body)
        return True

    def read(self, data: Any) -> Any:
        values = self._wanted.values(data)
        if values is None:
            stated = wire.read_reply(data)
            return stated if isinstance(stated, tuple) else None
        usage = data.get("usage") if isinstance(data, dict) else None
        return _Values(values, count_in(usage, "prompt_tokens"))

    def results(
        self, reply: _Values, request: RowsRequest, samples: Sequence[int]
    ) -> list[Any] | Failure:
        if len(reply.values) != len(request.rows):
            found = f"{len(reply.values)} results for {len(request.rows)} rows"
            return Failure(request.id, "garbled_reply", found)
        self._look(reply.values)
        return [(request.id, reply.values)]  # results come as they are ready: each with its name

    def _look(self, values: list[Any]) -> None:
        """Say, once, where scores look like probabilities; scores of a reward model have no bounds."""
        if self._within_one < 0 or not all(isinstance(value, float) for value in values):
            return
        self._within_one += len(values)
        if not all(0 < value < 1 for value in values):
            self._within_one = -1
        elif self._within_one >= MANY:
            self._within_one = -1
            print(
                f"warning: the first {MANY} scores are all between 0 and 1: does the server give a sigmoid "
                "of them? (vLLM does before 0.11 where --override-pooler-config says nothing else)",
                file=sys.stderr,
            )

    def passed(self, whole: set[str], sent: Any, server: str) -> None:
        self._wording, self._has_passed = sent.wording, True

    def failed(self, whole: set[str], sent: Mapping[str, Any]) -> None:
        """Nothing is learnt: no option is left out."""

    def tell_of_cut(self, request: Any, reported: int, server: str) -> None:
        """No server cuts token ids unasked."""


# ---- scores ----------------------------------------------------------------------------------------


def _lists(rows: Rows) -> list[list[int]]:
    return [[*row] for row in rows]


def _pooled(rows: Rows) -> dict[str, Any]:
    # activation is what vLLM called use_activation before 0.11
    return {"input": _lists(rows), "use_activation": False, "activation": False}


SCORES = Wanted(
    "score",
    (
        Wording("/classify", _pooled),
        Wording("/classify", lambda rows: {"input_ids": _lists(rows)}),
        Wording("/pooling", _pooled),
    ),
    lambda data: _scores(data),
    "start it with a reward model: vLLM, SGLang with --is-embedding, or serve_reward.py",
)
"""A reward model's score of each row: vLLM's /classify, SGLang's, vLLM's /pooling."""


def _scores(data: Any) -> list[float] | None:
    found = data.get("data", [data]) if isinstance(data, dict) else data
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return None
    if all(type(each.get("index")) is int for each in found):
        found = sorted(found, key=lambda each: each["index"])
    scores = [_score(each) for each in found]
    return None if None in scores else scores  # pyright: ignore[reportReturnType]


def _score(each: Mapping[str, Any]) -> float | None:
    """The one number of a row; where each token has one, that of the last token."""
    stated: Any = next((each[key] for key in ("probs", "embedding", "data") if key in each), None)
    numbers: list[Any] = stated if isinstance(stated, list) else []
    while numbers and isinstance(numbers[-1], list):
        numbers = numbers[-1]
    if len(numbers) > 1:
        raise Stop(
            f"the served model gives {len(numbers)} numbers a text; a reward model gives one"
        )
    if not numbers or type(numbers[0]) not in (int, float) or not math.isfinite(numbers[0]):
        return None
    return float(numbers[0])


# ---- log-probabilities -----------------------------------------------------------------------------


def label_logps(ids: tuple[int, int], names: tuple[str, str]) -> Wanted:
    """log p of each of two tokens behind a row: SGLang's /generate, which is asked for just these, else
    an OpenAI completion. vLLM's gives just these, too (those before `logprob_token_ids`, and other
    servers, the likeliest tokens: a label that is not among them is taken for as likely as the last
    one of them, which is more than it is).

    names: the tokens' texts, where a server does not know them by number. One row a request.
    """

    def completed(top: int, rows: Rows) -> dict[str, Any]:
        asked = {"max_tokens": 1, "temperature": 0.0, "logprobs": top}
        return {"prompt": [*rows[0]], **asked}

    def completed_by_vllm(top: int, rows: Rows) -> dict[str, Any]:
        theirs = {"return_tokens_as_token_ids": True, "logprob_token_ids": [*ids]}
        return completed(top, rows) | theirs

    def generated(rows: Rows) -> dict[str, Any]:
        return {
            "input_ids": [*rows[0]],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "token_ids_logprob": [*ids],
        }

    return Wanted(
        "log-probability of a token",
        (
            Wording("/generate", generated),
            Wording("/completions", partial(completed_by_vllm, _TOP), at_root=False),
            Wording("/completions", partial(completed_by_vllm, 5), at_root=False),
            Wording(
                "/completions", partial(completed, 5), at_root=False
            ),  # who knows no more fields
        ),
        partial(_label_logps, ids, names),
        "start it with the pairwise model: vLLM, SGLang, or serve_reward.py",
    )


def _label_logps(
    ids: tuple[int, int], names: tuple[str, str], data: Any
) -> list[tuple[float, float]] | None:
    found = _top_logprobs(data)
    if not found:
        return None
    least = min(found.values())
    a, b = (
        next((found[key] for key in (id, f"token_id:{id}", name) if key in found), least)
        for id, name in zip(ids, names, strict=True)
    )
    return [(a, b)]


def _top_logprobs(data: Any) -> dict[int | str, float]:
    """By a token's number or text, of the one new token; empty: the reply holds none."""
    try:
        if "meta_info" in data:  # SGLang
            return _finite({i: p for p, i, *_ in data["meta_info"]["output_token_ids_logprobs"][0]})
        logprobs = data["choices"][0]["logprobs"]
        if "content" in logprobs:  # llama.cpp, as in chat completions
            top = logprobs["content"][0]["top_logprobs"]
            return _finite({each.get("id", each["token"]): each["logprob"] for each in top})
        return _finite(logprobs["top_logprobs"][0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}


def _finite(found: Mapping[Any, Any]) -> dict[int | str, float]:
    return {key: float(p) for key, p in found.items() if type(p) in (int, float) and p <= 0}
