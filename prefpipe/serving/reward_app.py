"""A preference model behind the endpoints that vLLM, SGLang and OpenRLHF have for one.

    POST /classify, /pooling      conversations: rendered texts, token ids, or messages (vLLM; /classify
                                  with text or input_ids answers as SGLang does)
    POST /score, /v1/score        prompts and responses (vLLM: text_1, text_2; queries, documents)
    POST /get_reward              query, prompts (OpenRLHF's remote reward model)
    POST /v1/completions          one token with its log-probabilities, of a pairwise model (vLLM)
    GET  /health, /v1/models

Scores are the model's own; use_activation: true gives their sigmoid, as vLLM does. An error is one
sentence in the API's error object.
"""

import asyncio
import contextlib
import math
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel, Field

from prefpipe.rows import Message
from prefpipe.screen import short_sentence
from prefpipe.serving.scorers import (
    Asked,
    PairwiseScorer,
    Refused,
    Scorer,
    asked_of_pairs,
    asked_of_texts,
)
from prefpipe.serving.waiting_rows import WaitingRows

Rows = list[int] | list[list[int]]
Texts = str | list[str]


class RewardServer(uvicorn.Server):
    """uvicorn, which says that it listens once it does."""

    def __init__(self, app: FastAPI, host: str, port: int, words: str) -> None:
        """words: said then. Raises SystemExit where the port cannot be had."""
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        self._words = words
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            raise SystemExit(
                f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port"
            ) from None

    def serve_until_ctrl_c(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # its regular end
            self.run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._words, flush=True)


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


def make_app(scorer: Scorer, name: str) -> FastAPI:
    """The server of that model, which is called by that name."""
    app = FastAPI(title=f"prefpipe: {name}", docs_url=None, redoc_url=None)
    waiting = WaitingRows(scorer.run, scorer.batch_tokens)
    # tokenizers are not for two threads at once; the event loop is to take requests meanwhile
    reader = ThreadPoolExecutor(1, "prefpipe-tokenizer")
    app.state.waiting, app.state.requests = waiting, 0

    async def read(request: Named, function: Callable[..., Any], *values: Any) -> Any:
        app.state.requests += 1
        if request.model not in (None, name):
            raise Refused(f"no model {request.model[:80]!r} here; this is {name}", 404)
        return await asyncio.get_running_loop().run_in_executor(reader, function, *values)

    async def scores(asked: list[Asked]) -> list[float]:
        results = await waiting.results([row for part in asked for row in part.rows])
        found: dict[int, float] = {}
        for part in asked:
            own, results = results[: len(part.rows)], results[len(part.rows) :]
            try:
                found |= zip(part.places, part.finish(own), strict=True)
            except SystemExit as error:  # of a model that is no pairwise model
                raise RuntimeError(str(error)) from None
        return [found[place] for place in sorted(found)]

    @app.post("/classify")
    async def classify(body: Conversations) -> Any:
        asked = await read(body, _conversations, scorer, body)
        values = _activated(await scores(asked), body.use_activation)
        if body.input is None and body.messages is None:  # SGLang's words
            data = [
                {"embedding": [value], "meta_info": {"prompt_tokens": len(part.rows[0])}}
                for value, part in zip(values, asked, strict=False)
            ]
            return (
                data if len(data) > 1 or isinstance(body.text or body.input_ids, list) else data[0]
            )
        return _listed("classify", name, asked, [
            {"index": k, "label": "LABEL_0", "probs": [value], "num_classes": 1}
            for k, value in enumerate(values)
        ])  # fmt: skip

    @app.post("/pooling")
    async def pooling(body: Conversations) -> Any:
        asked = await read(body, _conversations, scorer, body)
        values = _activated(await scores(asked), body.use_activation)
        return _listed("pool", name, asked, [
            {"index": k, "object": "pooling", "data": [value]} for k, value in enumerate(values)
        ])  # fmt: skip

    @app.post("/score")
    @app.post("/v1/score")
    async def score(body: Pairs) -> Any:
        asked = await read(body, _pairs, scorer, body)
        values = _activated(await scores(asked), body.use_activation)
        return _listed("score", name, asked, [
            {"index": k, "object": "score", "score": value} for k, value in enumerate(values)
        ])  # fmt: skip

    @app.post("/get_reward")
    async def get_reward(body: Queries) -> Any:
        values = await scores(await read(body, _queries, scorer, body))
        return {"rewards": values, "scores": values, "extra_logs": {}}

    if isinstance(scorer, PairwiseScorer):

        @app.post("/v1/completions")
        async def completions(body: OneToken) -> Any:
            rows = await read(body, _label_rows, scorer, body)
            names = _label_names(scorer, as_ids=body.return_tokens_as_token_ids)
            choices = [
                _choice(k, dict(zip(names, logps, strict=True)))
                for k, logps in enumerate(await waiting.results(rows))
            ]
            usage = _usage(sum(map(len, rows)), len(rows))
            head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
            return head | {
                "created": int(time.time()),
                "model": name,
                "choices": choices,
                "usage": usage,
            }

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok", "kind": scorer.kind, "model": name}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "prefpipe"}]}

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _error(error.status, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            where = f"{problem['ctx']['error']} at character {problem['loc'][-1]}"
            return _error(400, f"the body is no JSON: {where}")
        field = ".".join(str(part) for part in problem["loc"] if part != "body") or "the body"
        return _error(400, f"{field}: {problem['msg']}")

    @app.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> JSONResponse:
        known = ", ".join(sorted(getattr(route, "path", "") for route in app.routes[1:]))
        return _error(404, f"nothing at {request.url.path}; there are {known}")

    @app.exception_handler(RuntimeError)
    async def failed(_: Request, error: RuntimeError) -> JSONResponse:
        return _error(500, str(error))

    return app


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": short_sentence(message), "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status)


# ---- requests, read by one thread ------------------------------------------------------------------


def _conversations(scorer: Scorer, body: Conversations) -> list[Asked]:
    given = {
        n: v
        for n in ("input", "text", "input_ids", "messages")
        if (v := getattr(body, n)) is not None
    }
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


def _pairs(scorer: Scorer, body: Pairs) -> list[Asked]:
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


def _queries(scorer: Scorer, body: Queries) -> list[Asked]:
    queries = _as_list(body.query)
    prompts = None if body.prompts is None else _as_list(body.prompts)
    if not queries:
        raise Refused("query is empty")
    if prompts is not None and len(prompts) != len(queries):
        raise Refused(f"{len(queries)} of query and {len(prompts)} prompts: send one for each")
    return asked_of_texts(scorer, queries, prompts)


def _label_rows(scorer: PairwiseScorer, body: OneToken) -> list[list[int]]:
    rows: Any = body.prompt if body.prompt and isinstance(body.prompt[0], list) else [body.prompt]
    return [scorer.label_row(row) for row in rows]


def _as_list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


# ---- replies -----------------------------------------------------------------------------------------


def _activated(scores: list[float], use_activation: bool | None) -> list[float]:
    return (
        [1 / (1 + math.exp(-min(max(x, -700), 700))) for x in scores] if use_activation else scores
    )


def _listed(kind: str, name: str, asked: list[Asked], data: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = sum(len(row) for part in asked for row in part.rows)
    head = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    return head | {"model": name, "data": data, "usage": _usage(tokens, 0)}


def _usage(prompt: int, new: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _label_names(scorer: PairwiseScorer, *, as_ids: bool) -> list[str]:
    if as_ids:
        return [f"token_id:{id}" for id in scorer.labels]
    return [str(scorer.tokenizer.decode([id])) for id in scorer.labels]


def _choice(index: int, logps: dict[str, float]) -> dict[str, Any]:
    """One token, the likelier label, with the log-probabilities of both."""
    best = max(logps, key=lambda name: logps[name])
    logprobs = {
        "tokens": [best],
        "token_logprobs": [logps[best]],
        "top_logprobs": [logps],
        "text_offset": [0],
    }
    return {"index": index, "text": best, "logprobs": logprobs, "finish_reason": "length"}
