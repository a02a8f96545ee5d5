"""One generate() of the server engine: an event loop in a thread of its own, and its requests.

The caller's thread puts requests in (submit) and takes results out (results); all else happens in
the loop's thread.
"""

import asyncio
import contextlib
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import httpx2
import openai

from prefpipe.llm import SERVER_FAILURES, Completion, Failure, Request
from prefpipe.llm.costs import Spending, estimate_prompt_tokens
from prefpipe.llm.server.limits import Budget, Endpoint, Endpoints, network_reason
from prefpipe.llm.wire import (
    ChatCompletion,
    Result,
    ServedModel,
    completions_of,
    read_error,
    read_reply,
    request_body,
    retry_after,
)

_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """How fast a server is asked."""

    requests_in_flight: int = 64
    requests_per_minute: int | None = None
    """Over all base URLs. None: as fast as the servers answer."""
    tokens_per_minute: int | None = None
    """Over all base URLs, of prompts and texts: estimated first, then corrected by what the server
    reports. None: no limit."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """A try that brought no reply."""

    reason: str
    detail: str = ""
    after: float | None = None
    """Seconds that the server asks to wait."""


class ServerSession:
    """The requests of one generate(), from the first to the last; a context manager."""

    def __init__(self, served: ServedModel, options: ServerOptions, spending: Spending) -> None:
        """spending: counts each reply, also one that is thrown away."""
        self._served, self._options, self._spending = served, options, spending
        self.error: Exception | None = None
        """Set once; no request is sent from then on, those in flight come back."""
        self.ended = False
        """No more results will come: all that came have been given."""
        self._waiting: deque[Request] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: set[asyncio.Task[None] | None] = set()
        """Those of the tasks that wait for a reply, not for their turn."""
        self._done: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._limit_field = "max_tokens"
        self._thread = threading.Thread(target=self._run, name="prefpipe-server", daemon=True)

    # -- in the caller's thread

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._closed.set)
        self._thread.join()

    def submit(self, requests: list[Request]) -> None:
        if requests:
            self._call(self._take, requests)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, on an error it has kept
            self._loop.call_soon_threadsafe(function, *arguments)

    def results(self) -> Iterator[Result]:
        """Waits for one result, then gives all there are."""
        result = self._done.get()
        while result is not None:
            yield result
            try:
                result = self._done.get_nowait()
            except queue.Empty:
                return
        self.ended = True

    # -- in the loop's thread: its life

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # raised again in the caller's thread
            self.error = self.error or error
        finally:
            self._ready.set()
            self._done.put(None)

    async def _main(self) -> None:
        options = self._options
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._endpoints = Endpoints(self._served, options.requests_in_flight)
        self._requests_budget = Budget(options.requests_per_minute)
        self._tokens_budget = Budget(options.tokens_per_minute)
        self._ready.set()
        try:
            await self._closed.wait()
            if self.error and (in_flight := self._tasks & self._in_flight):
                await asyncio.wait(in_flight, timeout=_DRAIN_SECONDS)  # they are paid for
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._endpoints.close()

    def _take(self, requests: list[Request]) -> None:
        self._waiting.extend(requests)
        self._start_waiting()

    def _start_waiting(self) -> None:
        at_once = self._options.requests_in_flight
        while self._waiting and len(self._tasks) < at_once and not self.error:
            task = self._loop.create_task(self._serve(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            assert isinstance(error, Exception)
            self.error = self.error or error
            self._closed.set()
        self._start_waiting()

    # -- in the loop's thread: one request

    async def _serve(self, request: Request) -> None:
        self._done.put(await self._complete(request))

    async def _complete(self, request: Request) -> Result:
        """All samples of the request; choices that a server leaves out are asked for again."""
        completions: list[Completion] = []
        missing = request.samples
        while missing:
            reply = await self._ask(request, missing)
            if isinstance(reply, Failure):
                return reply
            more = completions_of(reply, request.id, missing, self._served)
            if isinstance(more, Failure):
                return more
            completions += more
            missing = missing[len(more) :]
        return completions

    async def _ask(self, request: Request, samples: Sequence[int]) -> ChatCompletion | Failure:
        """One reply, however many tries it takes."""
        body = request_body(self._served, request, samples, self._limit_field)
        tokens = 0
        if self._options.tokens_per_minute:
            tokens = len(samples) * request.max_new_tokens
            tokens += estimate_prompt_tokens(request.messages)
        endpoint, tries = None, 0
        while True:
            # 1) Wait for our turn, then for a server.
            await self._requests_budget.take(1)
            await self._tokens_budget.take(tokens)
            endpoint = await self._endpoints.pick(avoid=endpoint)
            if self.error:
                raise self.error
            # 2) Ask it, once.
            reply = await self._send(endpoint, body)
            if isinstance(reply, ChatCompletion):
                self._tokens_budget.give(tokens - reply.prompt_tokens - reply.new_tokens)
                self._spending.add(reply.prompt_tokens, reply.new_tokens)
                return reply
            # 3) Give up, or see to it that the next try may pass.
            if reply.reason == "renamed":
                continue
            if reply.reason == "no_connection":
                self._endpoints.lost_connection(endpoint, reply.detail)
                continue
            if reply.reason not in SERVER_FAILURES:
                return Failure(request.id, reply.reason, reply.detail)
            tries += 1
            if tries > self._served.max_retries:
                return Failure(request.id, reply.reason, f"{tries} tries; the last: {reply.detail}")
            self._spending.usage.retries += 1
            await self._endpoints.back_off(endpoint, reply.detail, tries, reply.after)

    async def _send(self, endpoint: Endpoint, body: dict[str, Any]) -> ChatCompletion | _Trouble:
        """One try. Raises Stop where no request can pass any more."""
        task = asyncio.current_task()
        endpoint.in_flight += 1
        self._in_flight.add(task)
        try:
            async with asyncio.timeout(self._served.timeout_seconds):
                response = await endpoint.client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body
                )
        except (TimeoutError, openai.APIConnectionError, aiohttp.ClientError) as error:
            reason, detail = network_reason(error)
            return _Trouble(reason, self._served.printable(detail))
        except openai.APIStatusError as error:
            self._endpoints.connected(endpoint)
            if self._renames_limit(error, body):
                return _Trouble("renamed")
            fields = error.body if isinstance(error.body, dict) else {}
            message = str(fields.get("message") or error.response.text)
            stated = {**fields, "message": message}
            reason, detail = read_error(
                error.status_code, stated, body, endpoint.name, self._served
            )
            return _Trouble(reason, detail, retry_after(error.response.headers))
        finally:
            endpoint.in_flight -= 1
            self._in_flight.discard(task)
        self._endpoints.connected(endpoint)
        try:
            reply = read_reply(json.loads(response.content))
        except (ValueError, RecursionError):
            reply = None
        if reply is None:
            kind = response.headers.get("content-type", "no content type")
            text = self._served.printable(response.text)
            return _Trouble("garbled_reply", f"no chat completion but {kind}: {text}")
        return reply

    def _renames_limit(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool:
        """Newer OpenAI models call max_tokens max_completion_tokens, and say so in a 400."""
        if "max_tokens" not in body or "use 'max_completion_tokens'" not in error.message.lower():
            return False
        self._limit_field = "max_completion_tokens"
        body[self._limit_field] = body.pop("max_tokens")
        return True
