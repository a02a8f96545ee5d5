"""Prompts to texts through any OpenAI-compatible server: vLLM, SGLang, llama.cpp, OpenAI itself.

What a server is not told it may take from the model's generation_config.json (vLLM does:
repetition_penalty and top_k of Qwen2 are not neutral), so temperature and top_p are always sent;
start vLLM with `--generation-config vllm`, or name the rest in extra_body. An option the server
refuses stops the run: nothing is sampled with other settings than the ones asked for. Only what asks
for nothing else (wire.dispensable) is left out then, once for all, which is said.

Each generate() has an event loop in a thread of its own: the caller's thread puts requests in
(submit) and takes results out (results); all else happens in the loop's thread.
"""

import asyncio
import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import aiohttp
import httpx2
import openai

from prefpipe.foreign_json import read_json
from prefpipe.llm import SERVER_FAILURES, Completion, Failure, Request, Result, wire
from prefpipe.llm.costs import Estimate, Spending, Spends, estimate, estimate_prompt_tokens
from prefpipe.llm.error_replies import read_error, read_status
from prefpipe.llm.http_clients import BadReply, Elsewhere
from prefpipe.llm.server.dialect import Dialect
from prefpipe.llm.server.limits import Budget, Endpoint, Endpoints, network_reason
from prefpipe.llm.wire import ChatCompletion, ServedModel, Stop

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


class ServerEngine(Spends):
    """Many requests in flight at once; memory is bounded by requests_in_flight.

    A request is sent again only on 408, 409, 429, 5xx, a garbled reply (twice, if paid), a timeout or a lost
    connection, max_retries times at most, with growing random pauses or the Retry-After that the
    server states; then it is a Failure, as are other 4xx at once. Where several requests in a row
    have used up their tries, the next ones get one each, until one passes. What no later request can pass
    either (wrong key, unknown model, no money, no server at any base URL, a refused option) ends
    generate() with SystemExit and a sentence, after the requests in flight have come back.

    Failure reasons: SERVER_FAILURES, bad_request, prompt_too_long, garbled_reply, too_few_choices,
    refused, content_filter.
    """

    def __init__(self, served: ServedModel, options: ServerOptions | None = None) -> None:
        """served.base_urls: each serves the same model; load goes to the least busy that answers."""
        served.check()
        self.served = served
        self.options = options or ServerOptions()
        self._spending = Spending(served.model)
        self.usage, self.spent = self._spending.usage, self._spending.describe

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What they would use at most. Asks nobody."""
        return estimate(requests, self.served.model)

    def generate(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results as they come, at most 4 x requests_in_flight requests read ahead. The requests
        run on while the caller works on a result."""
        source = iter(requests)
        window = 4 * self.options.requests_in_flight
        outstanding = 0
        with ServerSession(self.served, self.options, self._spending) as session:
            while True:
                taken = list(itertools.islice(source, window - outstanding))
                outstanding += len(taken)
                if not outstanding:
                    return
                session.submit(taken)
                for result in session.results():
                    outstanding -= 1
                    yield result


class ServerSession:
    """The requests of one generate(), from the first to the last; a context manager."""

    def __init__(self, served: ServedModel, options: ServerOptions, spending: Spending) -> None:
        """spending: counts each reply, also one that is thrown away."""
        self._served, self._options, self._spending = served, options, spending
        self._error: Exception | None = None
        """Set once; no request is sent from then on, those in flight come back."""
        self._waiting: deque[Request] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._in_flight: set[asyncio.Task[Any] | None] = set()
        """Those of the tasks that wait for a reply, not for their turn."""
        self._done: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._dialect = Dialect(served)
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

    def submit(self, requests: list[Request]) -> None:
        self._call(self._start, requests)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, on an error it has kept
            self._loop.call_soon_threadsafe(function, *arguments)

    def results(self) -> Iterator[Result]:
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

    def _start(self, requests: Sequence[Request] = ()) -> None:
        self._waiting.extend(requests)
        at_once = self._options.requests_in_flight
        while self._waiting and len(self._tasks) < at_once and not self._error:
            task = self._loop.create_task(self._complete(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Result]) -> None:
        self._tasks.discard(task)
        try:
            self._done.put(task.result())
        except asyncio.CancelledError:
            pass  # the session is closed
        except Exception as error:
            self._error = self._error or error
            self._closed.set()
        self._start()

    async def _complete(self, request: Request) -> Result:
        """All samples of the request; choices that are missing or no texts are asked for again."""
        completions: list[Completion] = []
        missing = request.samples
        while missing:
            reply = await self._ask(request, missing)
            if isinstance(reply, Failure):
                return replace(reply, texts=tuple(completions))
            completions += reply
            missing = missing[len(reply) :]
        return completions

    async def _ask(self, request: Request, samples: Sequence[int]) -> Result:
        """The texts of one reply, however many tries it takes."""
        body = self._dialect.body(request, samples)
        whole, tokens = set(body), 0
        if self._options.tokens_per_minute:
            tokens = len(samples) * request.max_new_tokens
            tokens += estimate_prompt_tokens(request.messages)
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
            if isinstance(reply, ChatCompletion):
                if reply.prompt_tokens and reply.new_tokens:  # else the estimate stands
                    self._tokens_budget.give(tokens - reply.prompt_tokens - reply.new_tokens)
                self._spending.add(reply.prompt_tokens, reply.new_tokens)
                self._dialect.passed(whole, body, endpoint.name)
                self._dialect.tell_of_cut(request, reply.prompt_tokens, endpoint.name)
                result = wire.completions_of(reply, request.id, samples, self._served)
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
            reply = wire.read_reply(read_json(response.content))
        except ValueError:
            reply = None
        if isinstance(reply, tuple):
            return _Trouble(*read_error(*reply, body, endpoint.name, self._served))
        if reply:
            return reply
        kind = response.headers.get("content-type", "no content type")
        text = f"{kind}: {response.content[:3000].decode(errors='replace')}"
        return _Trouble("garbled_reply", f"no chat completion but {self._served.printable(text)}")
