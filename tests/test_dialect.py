"""llm.server.dialect: options that a server refuses, in whichever words; what asks for the same is left out."""

from typing import Any

import pytest

from embedded.server import Fault, Server
from prefpipe.llm import Failure, Request
from prefpipe.llm.server.server_engine import ServerEngine, ServerOptions
from prefpipe.llm.wire import ServedModel
from prefpipe.rows import Message


def request(id: object, n=1, **options) -> Request:
    options = {"temperature": 1.2, "seed": 3, **options}
    message = Message(role="user", content=f"q{id}")
    return Request(str(id), (message,), tuple(range(n)), **options)


def ask(requests, refuses, message: str, status=400, served=None) -> tuple[Any, Server]:
    """refuses: of a body, whether the server does; then it says the message."""

    def fault(call):
        return Fault(status=status, message=message) if refuses(call.body) else None

    with Server(lambda body, sample: f"t{sample}", fault=fault) as server:
        used = ServerEngine(ServedModel([server.url], "m", **(served or {})), ServerOptions(1))
        return {
            (r.id if isinstance(r, Failure) else r[0].id): r for r in used.generate(requests)
        }, server


@pytest.mark.parametrize(
    "message",
    [
        "Only one completion choice is allowed",
        "'n' : number must be at most 1",
        "Invalid n value (currently only n = 1 is supported)",
        "Unsupported value: 'n' does not support 4 with this model.",
        "不支持",
    ],
)
def test_several_samples_are_asked_for_one_by_one_where_n_is_refused(message, capsys):
    results, server = ask([request("a", 4), request("b", 2)], lambda b: b.get("n", 1) > 1, message)
    assert [len(results[id]) for id in "ab"] == [4, 2]
    assert [body.get("n") for body in server.requests] == [4, *[None] * 6]
    assert capsys.readouterr().err.endswith("refuses n: left out from here on\n")


@pytest.mark.parametrize("message", ["Extra inputs: seed", 'Unknown name "seed"', "bad request"])
def test_a_seed_that_is_refused_is_left_out(message):
    results, server = ask([request("a"), request("b")], lambda body: "seed" in body, message, 422)
    assert [len(results[id]) for id in "ab"] == [1, 1]
    assert ["seed" in body for body in server.requests] == [True, False, False]
    assert all(body["temperature"] == 1.2 for body in server.requests)


def test_neutral_values_are_left_out_and_others_stop_the_run():
    def refuses(body):
        return "temperature" in body or "top_p" in body or "seed" in body

    results, server = ask([request("a", temperature=1.0)], refuses, "no")
    assert len(results["a"]) == 1 and not {"temperature", "top_p"} & server.requests[-1].keys()
    said = "Unsupported value: 'temperature' does not support 1.2"
    with pytest.raises(SystemExit, match=r"refuses temperature.*--leave-out-options"):
        ask([request("a")], lambda body: "temperature" in body, said)


def test_options_named_as_dispensable_or_unsent_are_left_out_whatever_their_value():
    refuses = lambda body: "temperature" in body  # noqa: E731
    results, server = ask(
        [request("a")],
        refuses,
        "'temperature' unsupported",
        served={"dispensable": ["temperature"]},
    )
    assert len(results["a"]) == 1 and len(server.requests) == 2
    results, server = ask([request("a")], refuses, "no", served={"unsent": ["temperature", "seed"]})
    assert len(results["a"]) == 1 and len(server.requests) == 1


def test_a_request_that_is_refused_beside_others_keeps_the_options_for_all():
    bad = lambda body: body["messages"][0]["content"] == "qbad"  # noqa: E731
    results, server = ask([request("a"), request("bad"), request("b")], bad, "no")
    assert results["bad"].reason == "bad_request" and len(server.requests) == 3
    results, server = ask([request("bad"), request("b")], bad, "no")  # before any has passed
    assert results["bad"].reason == "bad_request" and "seed" in server.requests[-1]


def test_only_a_few_requests_are_tried_without_their_options_in_vain():
    _, server = ask([request(k) for k in range(20)], lambda body: True, "no")
    assert len(server.requests) == 20 + 3


@pytest.mark.parametrize(("reported", "is_said"), [(2048, True), (5000, False), (0, False)])
def test_a_prompt_that_the_server_cuts_is_told_once(reported, is_said, capsys):
    body = (
        '{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], '
        f'"usage": {{"prompt_tokens": {reported}, "completion_tokens": 1}}}}'
    ).encode()
    with Server(fault=lambda call: Fault(body=body)) as server:
        long = [
            Request(str(k), ({"role": "user", "content": "A sentence of it. " * 1500},))
            for k in (1, 2)
        ]
        list(ServerEngine(ServedModel([server.url], "m")).generate(long))
    said = capsys.readouterr().err
    assert said.count("reports 2,048 prompt tokens, far fewer than the about 6,750") == is_said
