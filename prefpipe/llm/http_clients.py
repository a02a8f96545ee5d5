"""HTTP clients that keep to bounds: no reply is read past a size, none leads to another host.

httpx2 reads what comes, unpacks it, and follows where it leads: a server of a stranger may send a
gigabyte, a few kilobytes that unpack to one, or the prompts elsewhere.
"""

import time
import zlib
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx2
import openai

MOST_BYTES = 16_000_000
"""Of one reply, unpacked: some hundred texts of the longest kind."""
_MOST_REDIRECTS = 5
_PLAIN = {"accept-encoding": "identity"}
T = TypeVar("T")


class BadReply(Exception):
    """A reply that is not read on; the message says what is wrong with it."""


class _Body:
    """The body of a reply, as it comes in."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if self._encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise BadReply(f"content-encoding {self._encoding[:50]!r}, which was not asked for")
        self._data = bytearray()

    def add(self, part: bytes) -> None:
        self._data += part
        if len(self._data) > MOST_BYTES:
            raise BadReply(f"more than {MOST_BYTES:,} bytes")

    def whole(self) -> httpx2.Response:
        """The reply with its body, unpacked."""
        data, old = bytes(self._data), self._response
        if self._encoding not in ("identity", "") and data:
            unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                data = unpacking.decompress(data, MOST_BYTES)
            except zlib.error as error:
                raise BadReply(f"not {self._encoding}: {error}") from None
            if unpacking.unconsumed_tail:
                raise BadReply(f"more than {MOST_BYTES:,} bytes, unpacked")
        left = ("content-encoding", "transfer-encoding", "content-length")
        headers = [(name, value) for name, value in old.headers.multi_items() if name not in left]
        return httpx2.Response(
            old.status_code,
            headers=headers,
            content=data,
            request=old.request,
            extensions=old.extensions,
        )


def _next_request(response: httpx2.Response, number: int) -> httpx2.Request | None:
    """The request that a redirect asks for. Raises BadReply where it leads to another host: the
    prompts were meant for this one."""
    if response.next_request is None:
        return None
    here, there = response.request.url, response.next_request.url
    if (here.scheme, here.host, here.port) != (there.scheme, there.host, there.port):
        raise Elsewhere(f"it redirects to {there.scheme}://{there.netloc.decode()}, another server")
    if number == _MOST_REDIRECTS:
        raise BadReply(f"more than {_MOST_REDIRECTS} redirects")
    return response.next_request


class Elsewhere(BadReply):
    """A redirect to another server."""


class AsyncClient(openai.DefaultAioHttpClient):
    """A quarter of the CPU of the default transport with 512 requests in flight."""

    def __init__(self, **options: Any) -> None:
        super().__init__(follow_redirects=False, headers=_PLAIN, **options)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        options |= {"stream": True}
        for number in range(_MOST_REDIRECTS + 1):
            response = await super().send(request, **options)
            try:
                if following := _next_request(response, number):
                    request = following
                    continue
                body = _Body(response)
                async for part in response.aiter_raw():
                    body.add(part)
                return body.whole()
            finally:
                await response.aclose()
        raise AssertionError


class Client(openai.DefaultHttpxClient):
    """The same without an event loop; a stream is left to the caller, with bounded()."""

    def __init__(self, most_seconds: float, **options: Any) -> None:
        """most_seconds: that a reply may take, whole."""
        super().__init__(follow_redirects=False, headers=_PLAIN, **options)
        self._most_seconds = most_seconds

    def send(
        self, request: httpx2.Request, *, stream: bool = False, **options: Any
    ) -> httpx2.Response:
        began = time.monotonic()
        for number in range(_MOST_REDIRECTS + 1):
            response = super().send(request, stream=True, **options)
            is_read = True
            try:
                if following := _next_request(response, number):
                    request = following
                    continue
                body = _Body(response)
                if stream and response.is_success:
                    is_read = False
                    return response
                for part in response.iter_raw():
                    body.add(part)
                    if time.monotonic() - began > self._most_seconds:
                        raise BadReply(f"not whole after {self._most_seconds:.0f} s")
                return body.whole()
            finally:
                if is_read:
                    response.close()
        raise AssertionError


def bounded(response: Any, most_bytes: int, patience_seconds: float) -> Iterator[bytes]:
    """The parts of a stream. Raises BadReply where there are more than most_bytes, or where after
    patience_seconds they come at less than a kilobyte a second."""
    began, size = time.monotonic(), 0
    for part in response.iter_bytes():
        size += len(part)
        if size > most_bytes:
            raise BadReply(f"more than {most_bytes:,} bytes")
        seconds = time.monotonic() - began
        if seconds > patience_seconds and size < 1000 * seconds:
            raise BadReply(f"{size:,} bytes in {seconds:.0f} s")
        yield part
