"""llm.http_clients: no reply is read beyond a size, and none leads to another host."""

import gzip
import json
import time
import zlib

import pytest

from embedded.server import Fault, Server
from prefpipe.llm import Failure, Request
from prefpipe.llm.http_clients import MOST_BYTES, BadReply, bounded
from prefpipe.llm.server.server_engine import ServerEngine
from prefpipe.llm.wire import ServedModel

BODY = json.dumps({"choices": [{"message": {"content": "so"}, "finish_reason": "stop"}]}).encode()


def raw(body: bytes, *headers: str, status: str = "200 OK") -> Fault:
    head = "\r\n".join(
        [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    )
    return Fault(raw=head.encode() + b"\r\n\r\n" + body)


def asked(fault: Fault, **served) -> str | Failure:
    with Server(fault=lambda call: fault) as server:
        options = {"max_retries": 1, "first_backoff_seconds": 0.01, **served}
        used = ServerEngine(ServedModel([server.url], "m", **options))
        (result,) = used.generate([Request("a", ({"role": "user", "content": "q"},))])
    return result if isinstance(result, Failure) else result[0].text


def bomb(size: int) -> bytes:
    packing = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packing.compress(BODY + b" " * size) + packing.flush()


def test_a_packed_reply_is_read_as_what_it_is():
    assert asked(raw(gzip.compress(BODY), "content-encoding: gzip")) == "so"
    assert asked(raw(zlib.compress(BODY), "content-encoding: deflate")) == "so"
    assert asked(raw(bomb(MOST_BYTES // 2), "content-encoding: gzip")) == "so"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (
            raw(bomb(2 * MOST_BYTES), "content-encoding: gzip"),
            "more than 16,000,000 bytes, unpacked",
        ),
        (raw(BODY + b" " * MOST_BYTES), "more than 16,000,000 bytes"),
        (raw(b"no gzip", "content-encoding: gzip"), "not gzip"),
        (raw(BODY, "content-encoding: br"), "content-encoding 'br', which was not asked for"),
    ],
    ids=["bomb", "huge", "no gzip", "br"],
)
def test_what_is_too_much_or_packed_otherwise_is_garbled(fault, why):
    failure = asked(fault)
    assert isinstance(failure, Failure) and failure.reason == "garbled_reply"
    assert why in failure.detail


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize(
    "there", ["http://127.0.0.2:1/v1", "https://127.0.0.1/v1", "http://evil.example/v1"]
)
def test_a_redirect_to_another_server_stops_the_run(status, there):
    with pytest.raises(SystemExit, match=r"it redirects to http.*another server; correct the base"):
        asked(raw(b"", f"location: {there}", status=status))


def test_a_redirect_on_the_same_server_is_followed():
    location = "location: /v1/chat/completions"
    with Server(
        lambda body, sample: "there",
        fault=lambda call: raw(b"", location, status="308 P") if call.number == 0 else None,
    ) as server:
        used = ServerEngine(ServedModel([server.url], "m"))
        (result,) = used.generate([Request("a", ({"role": "user", "content": "q"},))])
    assert isinstance(result, list) and result[0].text == "there"
    failure = asked(raw(b"", location, status="307 T"))
    assert isinstance(failure, Failure) and "redirects" in failure.detail


class Parts:
    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def iter_bytes(self):
        for part in self._parts:
            time.sleep(0.01)
            yield part


def test_a_stream_ends_at_its_bound_and_where_it_only_drips():
    assert b"".join(bounded(Parts(b"ab", b"c"), 3, 60)) == b"abc"
    with pytest.raises(BadReply, match="more than 3 bytes"):
        list(bounded(Parts(b"ab", b"cd"), 3, 60))
    with pytest.raises(BadReply, match=r"1 bytes in 0 s"):
        list(bounded(Parts(b"a"), 3, -1))
