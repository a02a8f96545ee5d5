"""llm.error_replies: which errors are of one request, and which of all."""

import time

import pytest
from pydantic import SecretStr

from prefpipe.llm.error_replies import read_error, retry_after
from prefpipe.llm.wire import ServedModel, Stop

SERVED = ServedModel(["http://127.0.0.1:9/v1"], "m", SecretStr("sk-secret"))


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, {"message": "bad"}, "bad_request"),
        (400, {"message": "x", "code": "context_length_exceeded"}, "prompt_too_long"),
        (422, {"message": "the context length is 9"}, "prompt_too_long"),
        (400, {"message": "top_k must be positive"}, "bad_request"),
        (418, {"message": "unknown teapot"}, "bad_request"),
        (429, {"message": "slow down"}, "rate_limited"),
        (409, {}, "server_error"),
        (529, {}, "server_error"),
    ],
    ids=str,
)
def test_an_error_of_one_request_has_a_reason(status, error, reason):
    found, detail = read_error(status, error, {"model": "m", "top_k": 5}, "there", SERVED)
    assert found == reason and detail.startswith(f"HTTP {status}: ")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, {"message": "key sk-secret"}, r"there: HTTP 401: key \*\*\*; check the API key"),
        (404, {"message": "gone"}, r"check the model's name \(m\)"),
        (429, {"code": "insufficient_quota"}, "cannot pay"),
        (400, {"message": "Unrecognized argument: top_k"}, "there refuses top_k"),
        (422, {"message": "no", "param": "top_k"}, "there refuses top_k"),
    ],
    ids=str,
)
def test_an_error_of_all_requests_stops(status, error, words):
    with pytest.raises(Stop, match=words):
        read_error(status, error, {"model": "m", "top_k": 5}, "there", SERVED)


def test_retry_after_may_be_a_date_or_milliseconds():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    waits = retry_after({"retry-after": date})
    assert waits is not None and 28 < waits <= 30
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_a_pause_that_is_no_plain_number_is_none():
    for stated in ("nan", "inf", "1_0", "-5", "", "Mon, 01 Jan 0001 00:00:00 +2359"):
        assert retry_after({"retry-after": stated}) in (None, 0), stated
