"""Prompts to texts through any OpenAI-compatible server: vLLM, SGLang, llama.cpp, OpenAI itself.

What a server does not get told it may take from the model's generation_config.json (vLLM does:
repetition_penalty and top_k of Qwen2 are not neutral), so temperature and top_p are always sent;
start vLLM with `--generation-config vllm`, or name the rest in extra_body. An option the server
refuses stops the run: nothing is sampled with other settings than the ones asked for.
"""

import asyncio
import contextlib
import email.utils
import functools
import hashlib
import itertools
import json
import queue
import random
import re
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
from pydantic import SecretStr

from prefpipe.llm import SERVER_FAILURES, Completion, Failure, Request
from prefpipe.llm.costs import describe_tokens, estimate_tokens

_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 900.0
_CONNECT_SECONDS = 30.0
_DRAIN_SECONDS = 30.0
_KEEPALIVE_SECONDS = 4.0  # below the 5 s after which uvicorn (vLLM, SGLang) closes idle ones
NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_REFUSED_OPTION = re.compile(r"unrecognized|unsupported|unknown|not supported|extra inputs", re.I)

Result = list[Completion] | Failure


@dataclass
class Usage:
    """What the server has reported so far; tokens of replies that were thrown away are in it."""

    replies: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class ServerEngine:
    """Many requests in flight at once; memory is bounded by requests_in_flight, not by the requests.

    A request is sent again only on 408, 409, 429, 5xx, a timeout or a lost connection, max_retries
    times at most, with growing random pauses or the Retry-After that the server states; then it is
    a Failure, as are other 4xx at once. What no later request can pass either (wrong key, unknown
    model, no money, no server at any base URL, a refused option) ends generate() with SystemExit
    and a sentence, after the requests in flight have come back.

    Failure reasons: SERVER_FAILURES, bad_request, prompt_too_long, garbled_reply, too_few_choices,
    refused, content_filter.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        api_key: SecretStr | None = None,
        *,
        requests_in_flight: int = 64,
        max_retries: int = 8,
        timeout_seconds: float = 600.0,
        first_backoff_seconds: float = 0.5,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        in_order: bool = True,
        structured_output: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """base_urls: each serves the same model; load goes to the least busy one that answers.
        api_key: None for servers that want none. timeout_seconds: of one try, whole.
        requests_per_minute, tokens_per_minute: over all base URLs. Tokens are those of prompts and
        texts, estimated first, then corrected by what the server reports.
        in_order: False yields each result once it is there, for callers that go by id and log it.
        structured_output: send each request's reply_schema, where it has one, as response_format.
        extra_body: fields that go with every request.
        """
        check_base_urls(base_urls)
        self.base_urls = tuple(base_urls)
        self.model = model
        self.api_key = api_key
        self.requests_in_flight = requests_in_flight
        self.max_retries = max_retries
        self.timeout_seconds = timeout_seconds
        self.first_backoff_seconds = first_backoff_seconds
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.in_order = in_order
        self.structured_output = structured_output
        self.extra_body = dict(extra_body or {})
        self.usage = Usage()

    def spent(self) -> str:
        """Tokens and money so far, for a person."""
        return describe_tokens(self.model, self.usage.prompt_tokens, self.usage.new_tokens)

    def generate(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results in the order of the requests (in_order), at most 4 x requests_in_flight read ahead.

        The requests run on while the caller works on a result. Of n samples, new_tokens is the
        reply's total shared out by length of text: servers report no more.
        """
        source = enumerate(requests)
        window = 4 * self.requests_in_flight
        held: dict[int, Result] = {}
        next_index = outstanding = 0
        with _Session(self) as session:
            while True:
                jobs = list(itertools.islice(source, window - outstanding))
                outstanding += len(jobs)
                if not outstanding:
                    return
                session.submit(jobs)
                for index, result in session.results():
                    if self.in_order:
                        held[index] = result
                        while next_index in held:
                            outstanding -= 1
                            yield held.pop(next_index)
                            next_index += 1
                    else:
                        outstanding -= 1
                        yield result
                if session.ended:
                    yield from (held[index] for index in sorted(held))
                    assert session.error
                    if isinstance(session.error, Stop):
                        raise SystemExit(str(session.error))
                    raise session.error


def check_base_urls(base_urls: Sequence[str]) -> None:
    """Raises SystemExit, with a sentence, where there is none or one is no URL of a server."""
    for url in base_urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise SystemExit(f"base URL {url!r}: wanted http://host:port/v1 or https://...")
    if not base_urls:
        raise SystemExit(
            "no base URL given: name one server at least (OPENAI_BASE_URL; for OpenAI itself "
            "OPENAI_API_KEY is enough)"
        )


def printable_url(url: str) -> str:
    """The URL without a user's name and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@functools.cache
def certificates() -> ssl.SSLContext:
    """For the connections of all engines. Reading them takes longer than a whole generate() of a few requests."""
    return httpx2.create_ssl_context()


class Stop(Exception):
    """No request can pass any more; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat completion: at least one choice, each with its text."""

    texts: list[str]
    finish_reasons: list[Any]
    prompt_tokens: int
    new_tokens: int


class _Endpoint:
    """One base URL: its connections, and whether it is worth asking now."""

    def __init__(self, url: str, engine: ServerEngine) -> None:
        self.name = printable_url(url)
        limits = httpx2.Limits(
            max_connections=engine.requests_in_flight,
            max_keepalive_connections=engine.requests_in_flight,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        self.client = openai.AsyncOpenAI(
            base_url=url,
            api_key=engine.api_key.get_secret_value().strip() if engine.api_key else "none",
            max_retries=0,
            timeout=timeout,
            # A quarter of the CPU of the default transport with 512 requests in flight.
            http_client=openai.DefaultAioHttpClient(
                limits=limits, timeout=timeout, verify=certificates()
            ),
        )
        self.in_flight = 0
        self.lost = 0
        """Times in a row that no connection could be had; one request at a time probes it then."""
        self.rests_until = 0.0

    def may_be_asked(self, now: float) -> bool:
        return self.rests_until <= now and not (self.lost and self.in_flight)


class _Session:
    """An event loop in a thread of its own, from the first request of one generate() to the last."""

    def __init__(self, engine: ServerEngine) -> None:
        self.engine = engine
        self.error: Exception | None = None
        """Set once; no request is sent from then on, those in flight come back."""
        self.ended = False
        """No more results will come: all that came have been given."""
        self._waiting: deque[tuple[int, Request]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: set[asyncio.Task[None] | None] = set()
        """Those of the tasks that wait for a reply, not for their turn."""
        self._done: queue.SimpleQueue[tuple[int, Result] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._ever_connected = False
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

    def submit(self, jobs: list[tuple[int, Request]]) -> None:
        if jobs:
            self._call(self._take, jobs)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, on an error it has kept
            self._loop.call_soon_threadsafe(function, *arguments)

    def results(self) -> Iterator[tuple[int, Result]]:
        """Waits for one result, then gives all there are."""
        item = self._done.get()
        while item is not None:
            yield item
            try:
                item = self._done.get_nowait()
            except queue.Empty:
                return
        self.ended = True

    # -- in the loop's thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # raised again in the caller's thread
            self.error = self.error or error
        finally:
            self._ready.set()
            self._done.put(None)

    async def _main(self) -> None:
        engine = self.engine
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._endpoints = [_Endpoint(url, engine) for url in engine.base_urls]
        self._requests_budget = _Budget(engine.requests_per_minute)
        self._tokens_budget = _Budget(engine.tokens_per_minute)
        self._ready.set()
        try:
            await self._closed.wait()
            if self.error and (in_flight := self._tasks & self._in_flight):
                await asyncio.wait(in_flight, timeout=_DRAIN_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for endpoint in self._endpoints:
                await endpoint.client.close()

    def _take(self, jobs: list[tuple[int, Request]]) -> None:
        self._waiting.extend(jobs)
        self._start_waiting()

    def _start_waiting(self) -> None:
        while (
            self._waiting and len(self._tasks) < self.engine.requests_in_flight and not self.error
        ):
            task = self._loop.create_task(self._serve(*self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            assert isinstance(error, Exception)
            self.error = self.error or error
            self._closed.set()
        self._start_waiting()

    async def _serve(self, index: int, request: Request) -> None:
        self._done.put((index, await self._complete(request)))

    async def _complete(self, request: Request) -> Result:
        """All samples of the request; choices that a server leaves out are asked for again."""
        completions: list[Completion] = []
        missing = request.samples
        while missing:
            reply = await self._ask(request, missing)
            if isinstance(reply, Failure):
                return reply
            made = completions_of(reply, request.id, missing, request.prefill, request.stop)
            if isinstance(made, Failure):
                return made
            completions += made
            missing = missing[len(made) :]
        return completions

    async def _ask(self, request: Request, samples: Sequence[int]) -> Reply | Failure:
        """One reply with at least one choice, however many tries it takes."""
        engine = self.engine
        body = self._body(request, samples)
        tokens = 0
        if engine.tokens_per_minute:
            prompt = sum(estimate_tokens(m["content"]) for m in request.messages)
            tokens = prompt + len(samples) * request.max_new_tokens
        endpoint, attempt = None, 0
        while True:
            await self._requests_budget.take(1)
            await self._tokens_budget.take(tokens)
            endpoint = await self._pick(avoid=endpoint)
            task = asyncio.current_task()
            endpoint.in_flight += 1
            self._in_flight.add(task)
            try:
                async with asyncio.timeout(engine.timeout_seconds):
                    response = await endpoint.client.post(
                        "/chat/completions", cast_to=httpx2.Response, body=body
                    )
            except (TimeoutError, openai.APIConnectionError, aiohttp.ClientError) as error:
                reason, detail = _network_reason(error)
                detail, after = printable(detail, engine.api_key), None
            except openai.APIStatusError as error:
                self._connected(endpoint)
                if self._renames_limit(error, body):
                    continue
                reason, detail, after = self._status_reason(error, endpoint, body)
                if reason not in SERVER_FAILURES:
                    return Failure(request.id, reason, detail)
            else:
                self._connected(endpoint)
                reply = _parse_reply(response, request.id, engine)
                if isinstance(reply, Reply):
                    self._tokens_budget.give(tokens - reply.prompt_tokens - reply.new_tokens)
                return reply
            finally:
                endpoint.in_flight -= 1
                self._in_flight.discard(task)
            if reason == "no_connection":
                self._lost_connection(endpoint, detail)
                continue
            if attempt == engine.max_retries:
                return Failure(request.id, reason, f"{attempt + 1} tries; the last: {detail}")
            engine.usage.retries += 1
            await self._back_off(endpoint, detail, attempt, after)
            attempt += 1

    def _lost_connection(self, endpoint: _Endpoint, detail: str) -> None:
        """Let the endpoint rest; raises Stop once none has been there max_retries times in a row.

        No fault of the request, so none of its tries. Few times do where no server has ever been.
        """
        now = self._loop.time()
        if endpoint.rests_until > now:
            return  # another request of the same burst has seen it
        endpoint.lost += 1
        endpoint.rests_until = now + self._pause(endpoint.lost - 1)
        allowed = (
            self.engine.max_retries if self._ever_connected else min(self.engine.max_retries, 2)
        )
        if all(e.lost > allowed for e in self._endpoints):
            raise Stop(
                f"no connection to {', '.join(e.name for e in self._endpoints)} ({detail}): start "
                "the server or correct the base URL; the same command goes on from the rows done"
            )

    def _connected(self, endpoint: _Endpoint) -> None:
        self._ever_connected = True
        endpoint.lost = 0

    async def _pick(self, avoid: _Endpoint | None) -> _Endpoint:
        """The least busy endpoint that may be asked; not the one that just failed, if possible."""
        while True:
            if self.error:
                raise self.error
            now = self._loop.time()
            free = [e for e in self._endpoints if e.may_be_asked(now)]
            if free:
                return min(free, key=lambda e: (e is avoid, e.in_flight))
            rest = min(e.rests_until for e in self._endpoints) - now
            # Not at rest but not free: another request finds out whether the server is back.
            await asyncio.sleep((rest if rest > 0 else 0.1) * random.uniform(1.0, 1.2))

    async def _back_off(
        self, endpoint: _Endpoint, detail: str, attempt: int, after: float | None
    ) -> None:
        """Wait before the next try; what the server asks to wait holds for every request to it."""
        if after is not None and after > _LONGEST_RETRY_AFTER_SECONDS:
            raise Stop(
                f"{endpoint.name}: {detail}: it asks to wait {after:.0f} s; run the same command "
                "again then, it goes on from the rows done"
            )
        now = self._loop.time()
        if after:
            if after >= 5 and endpoint.rests_until < now:
                print(f"{endpoint.name}: {detail}: waiting {after:.0f} s", file=sys.stderr)
            endpoint.rests_until = max(endpoint.rests_until, now + after)
        others = sum(e is not endpoint and e.may_be_asked(now) for e in self._endpoints)
        if attempt >= others:  # each of them gets one try at once
            await asyncio.sleep(max(after or 0.0, self._pause(attempt)))

    def _pause(self, failures: int) -> float:
        """Seconds: doubling, and random so that requests that failed together come back apart."""
        seconds = self.engine.first_backoff_seconds * 2.0 ** min(failures, 30)
        return min(seconds, _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)

    def _body(self, request: Request, samples: Sequence[int]) -> dict[str, Any]:
        return request_body(self.engine, request, samples, self._limit_field)

    def _renames_limit(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool:
        """Newer OpenAI models call max_tokens max_completion_tokens, and say so in a 400."""
        if "max_tokens" not in body or "use 'max_completion_tokens'" not in error.message.lower():
            return False
        self._limit_field = "max_completion_tokens"
        body[self._limit_field] = body.pop("max_tokens")
        return True

    def _status_reason(
        self, error: openai.APIStatusError, endpoint: _Endpoint, body: dict[str, Any]
    ) -> tuple[str, str, float | None]:
        """Reason, detail, and seconds that the server asks to wait. Raises Stop."""
        status, fields = error.status_code, error.body if isinstance(error.body, dict) else {}
        message = str(fields.get("message") or error.response.text)
        place = f"{endpoint.name}: "
        reason, detail = read_error(
            status, {**fields, "message": message}, body, place, self.engine.api_key
        )
        after = retry_after(error.response.headers) if reason in SERVER_FAILURES else None
        return reason, detail, after


class _Budget:
    """Spends at most per_minute in a minute, evenly; a large amount is paid back by waiting."""

    def __init__(self, per_minute: int | None) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._balance = 0.0
        self._at = time.monotonic()
        self._lock = asyncio.Lock()

    async def take(self, amount: float) -> None:
        if self._rate is None:
            return
        async with self._lock:  # first come, first served
            self._refill(self._rate)
            if self._balance < 0:
                await asyncio.sleep(-self._balance / self._rate)
                self._refill(self._rate)
            self._balance -= amount

    def give(self, amount: float) -> None:
        """Correct an estimate: back (or, negative, more) once the true amount is known."""
        self._balance += amount

    def _refill(self, rate: float) -> None:
        now = time.monotonic()
        # A tenth of a second may be caught up on: sleeps end late.
        self._balance = min(self._balance + (now - self._at) * rate, 0.1 * rate)
        self._at = now


def _network_reason(error: BaseException) -> tuple[str, str]:
    """no_connection, timeout or connection_lost, and what the transport said."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    detail = f"{type(causes[-1]).__name__}: {causes[-1]}".rstrip(": ")
    for cause in causes:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return "no_connection", str(cause) or detail
    if isinstance(error, TimeoutError):
        return "timeout", "no reply within the time limit"
    return "connection_lost", detail


class Asking(Protocol):
    """What an engine puts into every request."""

    model: str
    structured_output: bool
    extra_body: dict[str, Any]


def request_body(
    engine: Asking, request: Request, samples: Sequence[int], limit_field: str
) -> dict[str, Any]:
    """The chat completion request for those samples. limit_field: how the server calls max_tokens."""
    messages: list[Any] = list(request.messages)
    body: dict[str, Any] = {"model": engine.model, "messages": messages}
    body[limit_field] = request.max_new_tokens
    body["temperature"] = request.temperature
    if request.temperature > 0:
        body["top_p"] = request.top_p
        if request.top_k:
            body["top_k"] = request.top_k
        body["seed"] = seed_of(request.seed, request.id, samples[0])
    if len(samples) > 1:
        body["n"] = len(samples)
    if request.stop:
        body["stop"] = list(request.stop)
    if request.prefill:
        messages.append({"role": "assistant", "content": request.prefill})
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
    if engine.structured_output and request.reply_schema:
        body["response_format"] = response_format(request.reply_schema)
    return body | engine.extra_body


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The API's word for: the reply is one JSON object of this schema."""
    named = {"name": "reply", "strict": True, "schema": dict(schema)}
    return {"type": "json_schema", "json_schema": named}


def seed_of(seed: int, id: str, first_sample: int) -> int:
    """Other samples of one prompt are asked for with another seed, also by a resumed run."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}:{first_sample}".encode()).digest()[:4]) >> 1


def read_error(
    status: int,
    error: Mapping[str, Any],
    body: Mapping[str, Any],
    place: str,
    api_key: SecretStr | None,
) -> tuple[str, str]:
    """Reason and detail of the API's error object for a request with that body.

    Raises Stop, its message beginning with place, where no later request can pass either.
    """
    code, param = error.get("code"), error.get("param")
    detail = f"HTTP {status}: {printable(str(error.get('message')), api_key)}"
    if status in (401, 403):
        raise Stop(f"{place}{detail}; check the API key (OPENAI_API_KEY)")
    if status in (404, 405):
        raise Stop(
            f"{place}{detail}; check the model's name ({body.get('model')}) and the "
            "base URL, which ends in /v1 on most servers"
        )
    if status == 402 or code in NO_MONEY:
        raise Stop(f"{place}{detail}; the account cannot pay for more")
    if status in (400, 422):
        if code == "context_length_exceeded" or "context length" in detail:
            return "prompt_too_long", detail
        options = set(body) - {"model", "messages"}
        refused = {name for name in options if name == param}
        if not refused and _REFUSED_OPTION.search(detail):
            refused = {name for name in options if re.search(rf"\b{name}\b", detail)}
        if refused:
            raise Stop(
                f"{place.removesuffix(': ')} refuses {', '.join(sorted(refused))}: {detail}; set it "
                "to the value that switches it off, or use a server that takes it"
            )
        return "bad_request", detail
    if status == 429:
        return "rate_limited", detail
    if status in (408, 409) or status >= 500:
        return "server_error", detail
    return "bad_request", detail


def _parse_reply(response: httpx2.Response, id: str, engine: ServerEngine) -> Reply | Failure:
    """The reply's choices, in order; a Failure where it is no chat completion or has no text."""
    try:
        data = json.loads(response.content)
    except (ValueError, RecursionError):
        data = None
    reply = read_reply(data, id, engine.usage, engine.api_key)
    if reply is None:
        kind = response.headers.get("content-type", "no content type")
        text = printable(response.text, engine.api_key)
        return Failure(id, "garbled_reply", f"no chat completion but {kind}: {text}")
    return reply


def read_reply(
    data: Any, id: str, usage: Usage, api_key: SecretStr | None
) -> Reply | Failure | None:
    """The choices of a chat completion, in order, counted in usage; None where it is none."""
    try:
        choices = sorted(data["choices"], key=lambda choice: choice.get("index", 0))
        messages = [choice["message"] for choice in choices]
        texts = [message.get("content") for message in messages]
        finish_reasons = [choice.get("finish_reason") for choice in choices]
        used = data.get("usage") or {}
        prompt_tokens = int(used.get("prompt_tokens") or 0)
        new_tokens = int(used.get("completion_tokens") or 0)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    usage.replies += 1
    usage.prompt_tokens += prompt_tokens
    usage.new_tokens += new_tokens
    if not texts:
        return Failure(id, "too_few_choices", "the reply has no choices")
    for place, (message, reason) in enumerate(zip(messages, finish_reasons, strict=True)):
        if texts[place] is None and reason == "length":
            texts[place] = ""  # a reasoning model that spent its tokens before the answer
        if not isinstance(texts[place], str):
            if reason == "content_filter":
                return Failure(id, "content_filter")
            if message.get("refusal"):
                return Failure(id, "refused", printable(message["refusal"], api_key))
            return Failure(id, "garbled_reply", f"choice {place} has no text")
    return Reply(texts, finish_reasons, prompt_tokens, new_tokens)


def completions_of(
    reply: Reply, id: str, samples: Sequence[int], prefill: str, stop: Sequence[str] = ()
) -> Result:
    """The reply's choices as the first of those samples; there may be fewer of them.

    stop: where some server left one of these in a text, it ends there (transformers serve does).
    """
    for reason in reply.finish_reasons:
        if reason == "content_filter":
            return Failure(id, "content_filter")
        if reason not in ("stop", "length"):
            detail = f"finish_reason {str(reason)[:50]!r} is neither stop nor length"
            return Failure(id, "garbled_reply", detail)
    new_tokens = _share_out(reply.new_tokens, [len(text) for text in reply.texts])
    completions = []
    for sample, text, reason, tokens in zip(
        samples, reply.texts, reply.finish_reasons, new_tokens, strict=False
    ):
        cut = min((at for end in stop if (at := text.find(end)) >= 0), default=None)
        completions.append(
            Completion(
                id=id,
                sample=sample,
                text=prefill + text[:cut],
                finish_reason=reason if cut is None else "stop",
                prompt_tokens=reply.prompt_tokens,
                new_tokens=tokens,
            )
        )
    return completions


def _share_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to total: 10, [1, 1, 2] -> 2, 3, 5."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    ends = [total * end // whole for end in itertools.accumulate(weights)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the server states them (a number or an HTTP date); None: it does not."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(float(headers[name]) * unit, 0.0)
        except (KeyError, ValueError):
            continue
    try:
        return max(
            email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0
        )
    except (KeyError, ValueError):
        return None


def printable(text: str, api_key: SecretStr | None) -> str:
    """At most 300 characters on one line, without the key: servers echo it."""
    if api_key and (secret := api_key.get_secret_value()):
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
