"""The API's endpoints: chat completions, models, and those of embedded/server/batches.py."""

import asyncio
import dataclasses
import inspect
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from embedded.server.batches import BatchCall, Batches, BatchFault
from embedded.server.faults import Answer, Call, Fault, FaultOf, Reply, echo, last_message
from embedded.server.http import ApiError, HttpRequest, HttpResponse, HttpServer

TOKEN_CHARACTERS = 4
"""This server's tokenizer: every 4 characters are a token."""


class Server(HttpServer):
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
        super().__init__(port)
        self.answer = answer
        self.fault = fault
        self.api_key = api_key
        self.models = models
        self.rejected_fields = rejected_fields
        self.requests: list[dict[str, Any]] = []
        """The bodies of all chat completion requests, in order of arrival."""
        self.paid: Counter[str] = Counter()
        """Choices made, by the request's last message."""
        self.paid_tokens = 0
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

    # --- who is answered

    async def respond(self, request: HttpRequest) -> HttpResponse:
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

    async def before_stop(self) -> None:
        await self.batches.run_to_the_end()

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
