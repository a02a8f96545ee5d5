"""An OpenAI-compatible server on loopback, for tests and for trying stages out. Standard library only.

    with Server(lambda body, sample: "text", fault=first_attempt(Fault(status=429))) as server:
        ...ServerEngine([server.url], ...)
        assert max(server.paid.values()) == 1

    python -m embedded.server --help        # the same as a process of its own

It answers what the API answers: `n` choices, `max_tokens`, `stop`, usage, finish reasons, error
objects, 401, 404, keep-alive; and `/v1/files` and `/v1/batches`, where a batch moves on each time it
is looked at, and is run at the latest when the server stops: who forgets one pays for it all the same. What a bad network or a bad server does is a `Fault`, what becomes of a batch a
`BatchFault`.
"""

import asyncio
import dataclasses
import inspect
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from embedded.server.batches import BatchCall, Batches, BatchFault
from embedded.server.http import ApiError, HttpRequest, HttpResponse

TOKEN_CHARACTERS = 4
"""This server's tokenizer: every 4 characters are a token."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one reply. The default is a right one; fields combine."""

    status: int = 200
    retry_after: str | None = None
    """The header of that name: seconds, or an HTTP date."""
    delay_seconds: float = 0.0
    hang: bool = False
    """Take the request, work on nothing, answer never."""
    cut: bool = False
    """Send half the body, then drop the connection. The completions were made and are paid."""
    body: bytes | None = None
    """Sent in place of the answer."""
    raw: bytes | None = None
    """Sent in place of the whole HTTP response, before the connection is dropped."""
    content_type: str = "application/json"
    choices: int | None = None
    """At most that many choices, whatever `n` says; 1 is what servers do that ignore `n`."""
    code: str | None = None
    """The error object's code, as `insufficient_quota`."""
    message: str = "a fault that the test asked for"


@dataclass(frozen=True)
class Call:
    """A request as the fault function sees it."""

    number: int
    """0-based, over all chat completions of this server."""
    attempt: int
    """0-based, over requests with the same last message."""
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One choice. A plain string stands for Reply(text)."""

    text: str | None
    finish_reason: str = "stop"
    refusal: str | None = None
    tokens: int | None = None
    """What a real model counted; its text has been cut by `stop` and limit already. None: neither."""


Answer = Callable[[dict[str, Any], int], "str | Reply | Awaitable[str | Reply]"]
"""(request body, number of the choice) -> the choice."""
FaultOf = Callable[[Call], "Fault | None"]


def echo(body: dict[str, Any], sample: int) -> str:
    return last_message(body)


def last_message(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def first_attempt(fault: Fault, attempts: int = 1) -> FaultOf:
    """The fault for the first attempts at every request, then a right reply."""
    return lambda call: fault if call.attempt < attempts else None


def random_faults(shares: list[tuple[Fault, float]], seed: int = 0) -> FaultOf:
    """Each fault for its share of the requests; the same for the same call number and seed."""

    def fault_of(call: Call) -> Fault | None:
        at = random.Random(f"{seed}:{call.number}").random()
        for fault, share in shares:
            if at < share:
                return fault
            at -= share
        return None

    return fault_of


class Server:
    """Runs in a thread of its own from start() (or `with`) to stop().

    Counters are for the test to read; they are exact once the replies of interest have arrived.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        fault: FaultOf = lambda call: None,
        batch_fault: Callable[[BatchCall], BatchFault | None] = lambda call: None,
        api_fault: Callable[[HttpRequest, int], Fault | None] = lambda request, number: None,
        api_key: str | None = None,
        models: tuple[str, ...] = (),
        rejected_fields: tuple[str, ...] = (),
        port: int = 0,
    ) -> None:
        """fault: of a chat completion, also (status and choices) of one in a batch; api_fault: of the
        n-th call of /v1/files and /v1/batches: status, delay, body, or cut, once it has done its work.
        api_key: any other key is a 401. models: any other name is a 404; none: all are served.
        rejected_fields: fields of a request that are a 400, as api.openai.com does with top_k.
        port: 0 takes a free one.
        """
        self.answer = answer
        self.fault = fault
        self.api_key = api_key
        self.models = models
        self.rejected_fields = rejected_fields
        self.port = port
        self.requests: list[dict[str, Any]] = []
        """The bodies of all chat completion requests, in order of arrival."""
        self.paid: Counter[str] = Counter()
        """Choices made, by the request's last message."""
        self.paid_tokens = 0
        self.connections = 0
        self.in_flight = 0
        self.peak_in_flight = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Awaitable[HttpResponse]]]] = [
            ("POST", re.compile(r"/v1/chat/completions"), self._chat_completions),
            ("GET", re.compile(r"/v1/models"), self._list_models),
            ("GET", re.compile(r"/stats"), self._stats),
        ]
        self.api_fault = api_fault
        self.api_calls: list[str] = []
        """Method and path of all calls of /v1/files and /v1/batches."""
        self.batches = Batches(self, batch_fault)
        for method, pattern, handler in self.batches.routes:
            self._routes.append((method, pattern, self._with_api_fault(handler)))
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="embedded.server", daemon=True)

    @property
    def url(self) -> str:
        """What clients take as the base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._thread.start()
        self._started.wait()
        if self._failed:
            raise self._failed

    def stop(self) -> None:
        """Drop all connections and give the port back."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- HTTP

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failed = error
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                await self._talk(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client has gone, or the server stops
            finally:
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        await self.batches.run_to_the_end()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await _read_request(reader)
            except ValueError as error:
                writer.write(HttpResponse(400, ApiError(400, str(error)).body).encode())
                await writer.drain()
                return
            if request is None:
                return
            response = await self._respond(request)
            data = response.encode()
            if response.cut or response.raw is not None:
                writer.write(
                    data[: len(data) - len(response.body) // 2 - 1] if response.cut else data
                )
                await writer.drain()
                await asyncio.sleep(0.01)  # so that the client sees what was sent
                return
            writer.write(data)
            await writer.drain()
            if request.headers.get("connection", "").lower() == "close":
                return

    async def _respond(self, request: HttpRequest) -> HttpResponse:
        methods = set()
        for method, pattern, handler in self._routes:
            if match := pattern.fullmatch(request.path.partition("?")[0]):
                methods.add(method)
                if method == request.method:
                    try:
                        self._check_key(request)
                        return await handler(request, **match.groupdict())
                    except ApiError as error:
                        return HttpResponse(error.status, error.body)
        status = 405 if methods else 404
        error = ApiError(status, f"Invalid URL ({request.method} {request.path})")
        return HttpResponse(status, error.body)

    def _check_key(self, request: HttpRequest) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is not None and given != self.api_key:
            # The key stands in the message, whole: a client must not print what a server says as is.
            raise ApiError(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")

    # --- endpoints

    async def _stats(self, request: HttpRequest) -> HttpResponse:
        stats = {
            "requests": len(self.requests),
            "paid": sum(self.paid.values()),
            "paid_twice": sum(n > 1 for n in self.paid.values()),
            "connections": self.connections,
            "peak_in_flight": self.peak_in_flight,
        }
        return HttpResponse(200, json.dumps(stats).encode())

    def _with_api_fault(
        self, handler: Callable[..., Awaitable[HttpResponse]]
    ) -> Callable[..., Awaitable[HttpResponse]]:
        async def handle(request: HttpRequest, **parts: str) -> HttpResponse:
            self.api_calls.append(f"{request.method} {request.path}")
            fault = self.api_fault(request, len(self.api_calls) - 1) or Fault()
            await asyncio.sleep(fault.delay_seconds)
            if fault.status != 200:
                after = (("retry-after", fault.retry_after),) if fault.retry_after else ()
                error = ApiError(fault.status, fault.message, code=fault.code)
                return HttpResponse(fault.status, error.body, headers=after)
            response = await handler(request, **parts)
            if fault.body is not None:
                response = HttpResponse(200, fault.body, fault.content_type)
            return dataclasses.replace(response, cut=fault.cut)

        return handle

    async def complete_line(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of what the Batch API makes of one line."""
        try:
            body = self._validated(json.dumps(body).encode())
            call = self._arrived(body)
            fault = self.fault(call) or Fault()
            if fault.status != 200:
                raise ApiError(fault.status, fault.message, code=fault.code)
            return 200, json.loads(await self._complete(body, call, fault.choices))
        except ApiError as error:
            return error.status, json.loads(error.body)

    def _arrived(self, body: dict[str, Any]) -> Call:
        text = last_message(body)
        with self._lock:
            call = Call(len(self.requests), self._seen[text], body)
            self.requests.append(body)
            self._seen[text] += 1
        return call

    async def _list_models(self, request: HttpRequest) -> HttpResponse:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "tests"}
            for name in self.models
        ]
        return HttpResponse(200, json.dumps({"object": "list", "data": models}).encode())

    async def _chat_completions(self, request: HttpRequest) -> HttpResponse:
        body = self._validated(request.body)
        call = self._arrived(body)
        with self._lock:
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            fault = self.fault(call) or Fault()
            if fault.hang:
                await asyncio.Event().wait()
            if fault.delay_seconds:
                await asyncio.sleep(fault.delay_seconds)
            if fault.raw is not None:
                return HttpResponse(200, b"", raw=fault.raw)
            if fault.status != 200:
                error = ApiError(fault.status, fault.message, code=fault.code)
                after = (("retry-after", fault.retry_after),) if fault.retry_after else ()
                data = error.body if fault.body is None else fault.body
                return HttpResponse(fault.status, data, fault.content_type, after, cut=fault.cut)
            data = await self._complete(body, call, fault.choices)
            if fault.body is not None:
                data = fault.body
            return HttpResponse(200, data, fault.content_type, cut=fault.cut)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _validated(self, data: bytes) -> dict[str, Any]:
        try:
            body = json.loads(data)
        except ValueError:
            raise ApiError(400, "We could not parse the JSON body of your request.") from None
        for name in ("model", "messages"):
            if not body.get(name):
                raise ApiError(400, f"Missing required parameter: '{name}'.", param=name)
        for message in body["messages"]:
            if message.get("role") not in ("system", "user", "assistant"):
                raise ApiError(400, "Invalid value: 'role'", param="messages")
        for name in self.rejected_fields:
            if name in body:
                raise ApiError(400, f"Unrecognized request argument supplied: {name}")
        if self.models and body["model"] not in self.models:
            message = f"The model `{body['model']}` does not exist or you do not have access to it."
            raise ApiError(404, message, code="model_not_found", param="model")
        if body.get("stream"):
            raise ApiError(400, "This server does not stream.", param="stream")
        return body

    async def _complete(self, body: dict[str, Any], call: Call, at_most: int | None) -> bytes:
        n = body.get("n") or 1
        n = n if at_most is None else min(n, at_most)
        choices, new_tokens = [], 0
        for sample in range(n):
            made = self.answer(body, sample)
            if inspect.isawaitable(made):
                made = await made
            reply = made if isinstance(made, Reply) else Reply(made)
            reply, tokens = _cut(reply, body)
            new_tokens += tokens
            message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
            choices.append(
                {
                    "index": sample,
                    "message": message,
                    "finish_reason": reply.finish_reason,
                    "logprobs": None,
                }
            )
        prompt = sum(count_tokens(message["content"]) for message in body["messages"])
        with self._lock:
            self.paid[last_message(body)] += n
            self.paid_tokens += prompt + new_tokens
        completion = {
            "id": f"chatcmpl-{call.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": new_tokens,
                "total_tokens": prompt + new_tokens,
            },
        }
        return json.dumps(completion, ensure_ascii=False).encode()


def count_tokens(text: str) -> int:
    return -(-len(text) // TOKEN_CHARACTERS)


def _cut(reply: Reply, body: dict[str, Any]) -> tuple[Reply, int]:
    """The reply within the request's `stop` and token limit, and its tokens."""
    if reply.text is None or reply.tokens is not None:
        return reply, reply.tokens or 0
    text = reply.text
    stop = body.get("stop") or ()
    for end in [stop] if isinstance(stop, str) else stop:
        text = text.partition(end)[0]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and count_tokens(text) > limit:
        text = text[: limit * TOKEN_CHARACTERS]
        return dataclasses.replace(reply, text=text, finish_reason="length"), limit
    return dataclasses.replace(reply, text=text), count_tokens(text)


async def _read_request(reader: asyncio.StreamReader) -> HttpRequest | None:
    """None where the client closed between two requests."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    except asyncio.LimitOverrunError:
        raise ValueError("headers too long") from None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    try:
        method, path, _ = first.split(" ")
    except ValueError:
        raise ValueError(f"not an HTTP request: {first[:80]!r}") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return HttpRequest(method, path, headers, bytes(body))
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return HttpRequest(method, path, headers, body)
