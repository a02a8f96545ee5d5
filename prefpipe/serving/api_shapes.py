"""Requests and replies as vLLM, SGLang and OpenRLHF write them, read into what is asked of the model.

Taken from their documentation; fields that are not known are passed over, as there.
"""

import math
import time
import uuid
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field

from prefpipe.rows import Message
from prefpipe.serving.scorers import (
    Asked,
    PairwiseScorer,
    Refused,
    Scorer,
    asked_of_pairs,
    asked_of_texts,
)

Rows = list[int] | list[list[int]]
Texts = str | list[str]


class Named(BaseModel):
    """What every request may have; fields that are not known are passed over."""

    model: str | None = None


class Conversations(Named):
    """A request to /classify or /pooling: one of the four that hold conversations."""

    input: Rows | Texts | None = None
    text: Texts | None = None
    input_ids: Rows | None = None
    messages: list[Message] | None = None
    use_activation: bool | None = None
    encoding_format: Literal["float"] = "float"


class Pairs(Named):
    """A request to /score: one prompt or as many as responses."""

    prompts: Texts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    responses: Texts = Field(validation_alias=AliasChoices("text_2", "documents", "data_2"))
    use_activation: bool | None = None


class Queries(Named):
    """A request to /get_reward: prompt and response together, and the prompts alone."""

    query: Texts
    prompts: Texts | None = None


class OneToken(Named):
    """A request to /v1/completions for the log-probabilities of one token."""

    prompt: Rows
    max_tokens: Literal[1]
    logprobs: int = Field(ge=2)
    return_tokens_as_token_ids: bool = False


# ---- requests, read by one thread ------------------------------------------------------------------


def read_conversations(scorer: Scorer, body: Conversations) -> list[Asked]:
    """What /classify and /pooling are asked."""
    fields = ("input", "text", "input_ids", "messages")
    given = {name: v for name in fields if (v := getattr(body, name)) is not None}
    if len(given) != 1:
        found = f"found {' and '.join(given) or 'none'}"
        raise Refused(f"send one of input, text, input_ids and messages; {found}")
    ((field, value),) = given.items()
    if not value:
        raise Refused(f"{field} is empty")
    if field == "messages":
        *turns, last = value
        if last["role"] != "assistant" or not turns:
            raise Refused(
                "messages: the last turn is the response, of the assistant, behind a prompt"
            )
        return asked_of_pairs(scorer, {0: (turns, last["content"])})
    if isinstance(value, str) or isinstance(value[0], str):
        return asked_of_texts(scorer, _as_list(value))
    rows = [value] if isinstance(value[0], int) else value
    return [scorer.row(row, place) for place, row in enumerate(rows)]


def read_pairs(scorer: Scorer, body: Pairs) -> list[Asked]:
    """What /score is asked."""
    prompts, responses = _as_list(body.prompts), _as_list(body.responses)
    if not prompts or not responses:
        raise Refused("text_1 (prompts) or text_2 (responses) is empty")
    if len(prompts) not in (1, len(responses)):
        raise Refused(
            f"{len(prompts)} prompts (text_1) and {len(responses)} responses (text_2): send one prompt, "
            "or as many as responses"
        )
    prompts = prompts * len(responses) if len(prompts) == 1 else prompts
    return asked_of_pairs(scorer, dict(enumerate(zip(prompts, responses, strict=True))))


def read_queries(scorer: Scorer, body: Queries) -> list[Asked]:
    """What /get_reward is asked."""
    queries = _as_list(body.query)
    prompts = None if body.prompts is None else _as_list(body.prompts)
    if not queries:
        raise Refused("query is empty")
    if prompts is not None and len(prompts) != len(queries):
        raise Refused(f"{len(queries)} of query and {len(prompts)} prompts: send one for each")
    return asked_of_texts(scorer, queries, prompts)


def read_label_rows(scorer: PairwiseScorer, body: OneToken) -> list[list[int]]:
    """What /v1/completions is asked."""
    rows: Any = body.prompt if body.prompt and isinstance(body.prompt[0], list) else [body.prompt]
    return [scorer.label_row(row) for row in rows]


def _as_list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


# ---- replies -----------------------------------------------------------------------------------------


def activated(scores: list[float], use_activation: bool | None) -> list[float]:
    """The scores, or where it is asked for their sigmoid."""
    if not use_activation:
        return scores
    return [1 / (1 + math.exp(-min(max(score, -700.0), 700.0))) for score in scores]


def listed(kind: str, name: str, asked: list[Asked], data: list[dict[str, Any]]) -> dict[str, Any]:
    """A reply of vLLM's: what it found, and the tokens that it read."""
    tokens = sum(len(row) for part in asked for row in part.rows)
    return {**_head(kind, "list", name), "data": data, "usage": _usage(tokens, 0)}


def as_sglang(body: Conversations, asked: list[Asked], scores: list[float]) -> Any:
    """SGLang's reply: an embedding of one number a text; of one text that alone."""
    tokens = {k: len(row) for part in asked for k, row in zip(part.places, part.rows, strict=True)}
    data = [
        {"embedding": [score], "meta_info": {"prompt_tokens": tokens[place]}}
        for place, score in enumerate(scores)
    ]
    is_one = isinstance(body.text, str) or bool(
        body.input_ids and isinstance(body.input_ids[0], int)
    )
    return data[0] if is_one else data


def completion(
    scorer: PairwiseScorer,
    name: str,
    body: OneToken,
    rows: list[list[int]],
    logps: list[tuple[float, float]],
) -> dict[str, Any]:
    """A reply of one token a row: the likelier label, with the log-probabilities of both."""
    as_ids = body.return_tokens_as_token_ids
    labels = [
        f"token_id:{id}" if as_ids else str(scorer.tokenizer.decode([id])) for id in scorer.labels
    ]
    choices = []
    for index, (a, b) in enumerate(logps):
        best = labels[b > a]
        logprobs = {
            "tokens": [best],
            "token_logprobs": [max(a, b)],
            "top_logprobs": [dict(zip(labels, (a, b), strict=True))],
            "text_offset": [0],
        }
        choices.append(
            {"index": index, "text": best, "logprobs": logprobs, "finish_reason": "length"}
        )
    usage = _usage(sum(map(len, rows)), len(rows))
    return {**_head("cmpl", "text_completion", name), "choices": choices, "usage": usage}


def _head(kind: str, what: str, name: str) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": what,
        "created": int(time.time()),
        "model": name,
    }


def _usage(prompt: int, new: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
