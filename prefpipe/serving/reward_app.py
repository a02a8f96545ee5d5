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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from prefpipe.screen import short_sentence
from prefpipe.serving.api_shapes import (
    Conversations,
    Named,
    OneToken,
    Pairs,
    Queries,
    activated,
    as_sglang,
    completion,
    listed,
    read_conversations,
    read_label_rows,
    read_pairs,
    read_queries,
)
from prefpipe.serving.scorers import Asked, PairwiseScorer, Refused, Scorer
from prefpipe.serving.waiting_rows import WaitingRows

MOST_BYTES = 256_000_000
"""Of one request."""


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

    @property
    def port(self) -> int:
        """Where it listens, also where 0 asked for a free one."""
        return self._socket.getsockname()[1]

    def serve_until_ctrl_c(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # its regular end
            self.run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._words, flush=True)


def make_app(scorer: Scorer, name: str) -> FastAPI:
    """The server of that model, which is called by that name."""
    options: Any = {"docs_url": None, "redoc_url": None, "max_body_size": MOST_BYTES}
    app = FastAPI(title=f"prefpipe: {name}", **options)
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
        if not all(map(math.isfinite, found.values())):
            raise RuntimeError(
                "the model gives scores that are no number: were its weights float16?"
            )
        return [found[place] for place in sorted(found)]

    @app.post("/classify")
    async def classify(body: Conversations) -> Any:
        asked = await read(body, read_conversations, scorer, body)
        values = activated(await scores(asked), body.use_activation)
        if body.input is None and body.messages is None:
            return as_sglang(body, asked, values)
        return listed("classify", name, asked, [
            {"index": k, "label": "LABEL_0", "probs": [value], "num_classes": 1}
            for k, value in enumerate(values)
        ])  # fmt: skip

    @app.post("/pooling")
    async def pooling(body: Conversations) -> Any:
        asked = await read(body, read_conversations, scorer, body)
        values = activated(await scores(asked), body.use_activation)
        return listed("pool", name, asked, [
            {"index": k, "object": "pooling", "data": [value]} for k, value in enumerate(values)
        ])  # fmt: skip

    @app.post("/score")
    @app.post("/v1/score")
    async def score(body: Pairs) -> Any:
        asked = await read(body, read_pairs, scorer, body)
        values = activated(await scores(asked), body.use_activation)
        return listed("score", name, asked, [
            {"index": k, "object": "score", "score": value} for k, value in enumerate(values)
        ])  # fmt: skip

    @app.post("/get_reward")
    async def get_reward(body: Queries) -> Any:
        values = await scores(await read(body, read_queries, scorer, body))
        return {"rewards": values, "scores": values, "extra_logs": {}}

    if isinstance(scorer, PairwiseScorer):

        @app.post("/v1/completions")
        async def completions(body: OneToken) -> Any:
            rows = await read(body, read_label_rows, scorer, body)
            return completion(scorer, name, body, rows, await waiting.results(rows))

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

    @app.exception_handler(HTTPException)
    async def not_taken(request: Request, error: HTTPException) -> JSONResponse:
        known = ", ".join(sorted(getattr(route, "path", "") for route in app.routes[1:]))
        nothing = f"nothing at {request.url.path}; there are {known}"
        said = f"{request.method} {request.url.path}: {error.detail}"
        return _error(error.status_code, nothing if error.status_code == 404 else said)

    @app.exception_handler(RuntimeError)
    async def failed(_: Request, error: RuntimeError) -> JSONResponse:
        return _error(500, str(error))

    return app


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": short_sentence(message), "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status)
