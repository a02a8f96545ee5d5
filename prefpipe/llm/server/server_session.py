"""The requests of one generate() at a server: sent at once, tried again, and their results as they come.

An event loop in a thread of its own: the caller's thread puts requests in (submit) and takes results
out (results); all else happens in the loop's thread.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import aiohttp
import httpx2
import openai

from prefpipe.foreign_json import read_json
from prefpipe.llm import SERVER_FAILURES, Failure
from prefpipe.llm.costs import Spending
from prefpipe.llm.error_replies import read_error, read_status
from prefpipe.llm.http_clients import BadReply, Elsewhere
from prefpipe.llm.server.dialect import Language
from prefpipe.llm.server.limits import Budget, Endpoint, Endpoints, network_reason
from prefpipe.llm.wire import ServedModel, Stop

_DRAIN_SECONDS = 30.0
_LOST = (
    *(TimeoutError, openai.APIConnectionError, aiohttp.ClientError, BadReply),
    *(LookupError, UnicodeError),  # of a reply whose charset is none
)
_PAID_TRIES = 3  # of replies without a text that can be used
_LOST_ROWS = 3  # requests in a row that used up their tries: the next ones get one each


@dataclass(frozen=True)
class ServerOptions:
    """How fast a server is asked."""

    requests_in_flight: int = 64
    requests_per_minute: int | None = None
    """Over all base URLs. None: as fast as the servers answer."""
    tokens_per_minute: int | None = None
    """Over all base URLs, of prompts and texts: estimated first, then corrected by what the server
    reports. None: no limit."""


class _Trouble(NamedTuple):
    """A try that brought no text. after: seconds that the server asks to wait. paid: it is so all
    the same, as far as can be known."""

    reason: str
    detail: str = ""
    after: float | None = None
    paid: bool = False


class ServerSession:
    """The requests of one generate(), from the first to the last; a context manager."""

    def __init__(
        self, served: ServedModel, options: ServerOptions, spending: Spending, dialect: Language
    ) -> None:
        """spending: counts each reply, also one that is thrown away."""
        self._served, self._options, self._spending = served, options, spending
        self._error: Exception | None = None
        """Set once; no request is sent from then on, those in flight come back."""
        self._waiting: deque[Any] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._in_flight: set[asyncio.Task[Any] | None] = set()
        """Those of the tasks that wait for a reply, not for their turn."""
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._dialect = dialect
        self._lost_rows = 0
        """Requests in a row that used up their tries."""
        self._thread = threading.Thread(target=self._run, name="prefpipe-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._closed.set)
        self._thread.join()

    def submit(self, requests: list[Any]) -> None:
        self._call(self._start, requests)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, on an error it has kept
            self._loop.call_soon_threadsafe(function, *arguments)

    def results(self) -> Iterator[Any]:
        """Waits for one result, then gives all there are; raises the error behind the last one."""
        result = self._done.get()
        while result is not None:
            yield result
            try:
                result = self._done.get_nowait()
            except queue.Empty:
                return
        assert self._error
        raise SystemExit(str(self._error)) if isinstance(self._error, Stop) else self._error

    # -- in the loop's thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # raised again in the caller's thread
            self._error = self._error or error
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
            if self._error and (in_flight := self._tasks & self._in_flight):
                await asyncio.wait(in_flight, timeout=_DRAIN_SECONDS)  # they are paid for
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._endpoints.close()

    def _start(self, requests: Sequence[Any] = ()) -> None:
        self._waiting.extend(requests)
        at_once = self._options.requests_in_flight
        while self._waiting and len(self._tasks) < at_once and not self._error:
            task = self._loop.create_task(self._complete(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        try:
            self._done.put(task.result())
        except asyncio.CancelledError:
            pass  # the session is closed
        except Exception as error:
            self._error = self._error or error
            self._closed.set()
        self._start()

    async def _complete(self, request: Any) -> Any:
        """All samples of the request; choices that are missing or no texts are asked for again."""
        completions: list[Any] = []
        missing = request.samples
        while missing:
            reply = await self._ask(request, missing)
            if isinstance(reply, Failure):
                return replace(reply, texts=tuple(completions))
            completions += reply
            missing = missing[len(reply) :]
        return completions

    async def _ask(self, request: Any, samples: Sequence[int]) -> Any:
        """The texts of one reply, however many tries it takes."""
        body = self._dialect.body(request, samples)
        whole, tokens = set(body), 0
        if self._options.tokens_per_minute:
            tokens = self._dialect.tokens(request, samples)
        endpoint, tries, paid = None, 0, 0
        while True:
            # 1) Wait for our turn, then for a server.
            await self._requests_budget.take(1)
            await self._tokens_budget.take(tokens)
            endpoint = await self._endpoints.pick(avoid=endpoint)
            if self._error:
                raise self._error
            # 2) Ask it, once.
            reply = await self._send(endpoint, body)
            if not isinstance(reply, _Trouble):
                if reply.prompt_tokens and reply.new_tokens:  # else the estimate stands
                    self._tokens_budget.give(tokens - reply.prompt_tokens - reply.new_tokens)
                self._spending.add(reply.prompt_tokens, reply.new_tokens)
                self._dialect.passed(whole, body, endpoint.name)
                self._dialect.tell_of_cut(request, reply.prompt_tokens, endpoint.name)
                result = self._dialect.results(reply, request, samples)
                if not isinstance(result, Failure):
                    self._lost_rows = 0
                    return result
                reply = _Trouble(result.reason, result.detail, paid=True)
            # 3) Give up, or see to it that the next try may pass.
            if reply.reason == "adapted":
                continue
            if reply.reason == "no_connection":
                self._endpoints.lost_connection(endpoint, reply.detail)
                continue
            if reply.reason not in (*SERVER_FAILURES, "garbled_reply"):
                self._dialect.failed(whole, body)
                return Failure(request.id, reply.reason, reply.detail)
            tries, paid = tries + 1, paid + reply.paid
            most = self._served.max_retries + 1 if self._lost_rows < _LOST_ROWS else 1
            if tries >= most or paid >= _PAID_TRIES:
                self._lost_rows += 1
                return Failure(request.id, reply.reason, f"{tries} tries; the last: {reply.detail}")
            self._spending.usage.retries += 1
            await self._endpoints.back_off(endpoint, reply.detail, tries, reply.after)

    async def _send(self, endpoint: Endpoint, body: dict[str, Any]) -> Any:
        """One try. Raises Stop where no request can pass any more."""
        task = asyncio.current_task()
        endpoint.in_flight += 1
        self._in_flight.add(task)
        try:
            async with asyncio.timeout(self._served.timeout_seconds):
                response = await endpoint.client.post(
                    self._dialect.address(body, endpoint.root),
                    cast_to=httpx2.Response,
                    body=body,
                )
        except Elsewhere as error:
            raise Stop(
                f"{endpoint.name}: {self._served.printable(error)}; correct the base URL"
            ) from None
        except _LOST as error:
            reason, detail = network_reason(error)
            is_paid = isinstance(error, BadReply)
            return _Trouble(reason, self._served.printable(detail), paid=is_paid)
        except openai.APIStatusError as error:
            self._endpoints.connected(endpoint)
            if self._dialect.adapts(error, body):
                return _Trouble("adapted")
            return _Trouble(*read_status(error, body, endpoint.name, self._served))
        finally:
            endpoint.in_flight -= 1
            self._in_flight.discard(task)
        self._endpoints.connected(endpoint)
        try:
            reply = self._dialect.read(read_json(response.content))
        except ValueError:
            reply = None
        if isinstance(reply, tuple):
            return _Trouble(*read_error(reply[0], reply[1], body, endpoint.name, self._served))
        if reply:
            return reply
        kind = response.headers.get("content-type", "no content type")
        text = f"{kind}: {response.content[:3000].decode(errors='replace')}"
        return _Trouble(
            "garbled_reply", f"no {self._dialect.reply_is} but {self._served.printable(text)}"
        )
