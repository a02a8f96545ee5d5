"""prefpipe.llm.server.server_engine against a real HTTP server: what is asked, what is retried, what is paid."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from pydantic import SecretStr

from embedded.server import (
    Answer,
    Fault,
    FaultOf,
    Reply,
    Server,
    first_attempt,
    last_message,
    random_faults,
)
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.server.server_engine import ServerEngine, ServerOptions
from prefpipe.llm.wire import ServedModel

ROOT = Path(__file__).parent.parent
KEY = "sk-a-very-secret-key"


def request(id: object = "a", text: str | None = None, **options) -> Request:
    return Request(id=str(id), messages=({"role": "user", "content": text or f"q{id}"},), **options)


def engine(*servers: Server | str, **options) -> ServerEngine:
    urls = [s if isinstance(s, str) else s.url for s in servers]
    pace = {name: options.pop(name) for name in vars(ServerOptions()) if name in options}
    served = ServedModel(urls, **{"model": "m", "first_backoff_seconds": 0.01, **options})
    return ServerEngine(served, ServerOptions(**pace))


def numbered(body, sample) -> str:
    return f"{body['messages'][-1]['content']}/{sample}"


def only(message: str, fault: Fault) -> FaultOf:
    return lambda call: fault if last_message(call.body) == message else None


def completions(result: list[Completion] | Failure) -> list[Completion]:
    assert not isinstance(result, Failure), result
    return result


def texts(result: list[Completion] | Failure) -> list[str]:
    return [completion.text for completion in completions(result)]


def by_id(results: Iterable[list[Completion] | Failure]) -> dict[str, list[Completion] | Failure]:
    """They come as they are ready."""
    return {(r if isinstance(r, Failure) else r[0]).id: r for r in results}


def all_texts(results: Iterable[list[Completion] | Failure]) -> dict[str, list[str]]:
    return {id: texts(result) for id, result in by_id(results).items()}


def right(count: int) -> dict[str, list[str]]:
    """What numbered answers to the requests 0 to count - 1."""
    return {str(i): [f"q{i}/0"] for i in range(count)}


# ---- order, flow, memory


def held_until(condition: Callable[[], bool], message: str | None = None) -> Answer:
    """numbered, but the reply (to that message, or any) waits for the condition."""

    async def answer(body, sample) -> str:
        while message in (None, last_message(body)) and not condition():
            await asyncio.sleep(0.01)
        return numbered(body, sample)

    return answer


def test_each_request_has_its_own_answer_with_hundreds_in_flight():
    server = Server(held_until(lambda: server.peak_in_flight >= 200))
    with server:
        results = list(engine(server, requests_in_flight=200).generate(map(request, range(400))))
    assert len(results) == 400 and all_texts(results) == right(400)
    assert server.peak_in_flight == 200
    assert server.connections == 200  # kept alive: fewer than one a request


def test_no_more_than_four_times_the_requests_in_flight_are_read_ahead():
    pulled = []

    def source():
        for i in range(200):
            pulled.append(i)
            yield request(i)

    with Server(numbered) as server:
        for given, _ in enumerate(engine(server, requests_in_flight=5).generate(source())):
            assert len(pulled) <= given + 20
            assert given or len(pulled) == 20
    assert len(pulled) == 200


def test_results_do_not_wait_for_a_slow_first_one():
    server = Server(held_until(lambda: sum(server.paid.values()) == 39, "q0"))
    with server:
        used = engine(server, requests_in_flight=5)
        ids = [completions(result)[0].id for result in used.generate(map(request, range(40)))]
    assert ids[-1] == "0" and sorted(ids, key=int) == [str(i) for i in range(40)]


def test_it_also_runs_where_an_event_loop_runs_already():
    async def notebook() -> int:
        return len(list(engine(server).generate([request()])))

    with Server() as server:
        assert asyncio.run(notebook()) == 1


def test_stopping_early_leaves_no_thread_and_no_connection():
    with Server() as server:
        generated = engine(server).generate(map(request, range(1000)))
        next(generated)
        generated.close()
        assert "prefpipe-server" not in {t.name for t in threading.enumerate()}
        asked = len(server.requests)
        time.sleep(0.1)
        assert len(server.requests) == asked < 1000


def test_an_error_of_the_callers_requests_comes_through_and_ends_the_thread():
    def source():
        yield request()
        raise KeyError("caller's own")

    with Server() as server, pytest.raises(KeyError, match="caller's own"):
        list(engine(server).generate(source()))
    assert "prefpipe-server" not in {t.name for t in threading.enumerate()}


# ---- what is asked


def test_the_settings_that_were_asked_for_reach_the_server():
    asked = Request(
        id="a",
        messages=({"role": "system", "content": "s"}, {"role": "user", "content": "u"}),
        samples=(0, 1, 2),
        max_new_tokens=77,
        temperature=1.2,
        top_p=0.95,
        top_k=50,
        seed=3,
    )
    with Server() as server:
        list(engine(server, extra_body={"min_p": 0.1}).generate([asked]))
    (body,) = server.requests
    assert isinstance(body.pop("seed"), int)
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_tokens": 77,
        "temperature": 1.2,
        "top_p": 0.95,
        "top_k": 50,
        "n": 3,
        "min_p": 0.1,
    }


def test_a_greedy_request_says_temperature_zero_and_nothing_else_of_sampling():
    with Server() as server:
        list(engine(server).generate([request(top_p=0.9, top_k=5, seed=4)]))
    assert set(server.requests[0]) == {"model", "messages", "max_tokens", "temperature"}
    assert server.requests[0]["temperature"] == 0


def test_the_seed_depends_on_seed_id_and_first_sample_only():
    def seeds(*requests):
        with Server() as server:
            list(engine(server, requests_in_flight=1).generate(requests))
        return [body["seed"] for body in server.requests]

    first = request("a", temperature=1.0, samples=(0, 1))
    others = [
        request("b", temperature=1.0, samples=(0, 1)),
        request("a", temperature=1.0, samples=(0, 1), seed=1),
        request("a", temperature=1.0, samples=(1,)),  # what a resumed run may lack
    ]
    assert seeds(*others, first)[-1] == seeds(first)[0]
    assert len(set(seeds(first, *others))) == 4


def test_max_tokens_is_renamed_for_models_that_want_another_name():
    wants_other = Fault(
        status=400,
        code="unsupported_parameter",
        message="Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
    )
    with Server(
        numbered, fault=lambda call: wants_other if "max_tokens" in call.body else None
    ) as server:
        results = list(
            engine(server, requests_in_flight=1).generate(
                request(i, max_new_tokens=9) for i in range(3)
            )
        )
    assert all_texts(results) == right(3)
    assert [b.get("max_completion_tokens") for b in server.requests] == [None, 9, 9, 9]


# ---- n choices


@pytest.mark.parametrize(
    "choices, asked", [(8, [8]), (3, [8, 5, 2]), (1, [8, 7, 6, 5, 4, 3, 2, 1])]
)
def test_missing_choices_are_asked_for_again_and_none_is_paid_twice(choices, asked):
    made = iter(range(100))
    with Server(
        lambda body, sample: f"text {next(made)}", fault=lambda _: Fault(choices=choices)
    ) as server:
        (result,) = engine(server).generate([request(samples=tuple(range(8)), temperature=1.0)])
    assert [body.get("n", 1) for body in server.requests] == asked
    assert len({body["seed"] for body in server.requests}) == len(asked)
    assert [c.sample for c in completions(result)] == list(range(8))
    assert texts(result) == [f"text {i}" for i in range(8)]
    assert server.paid["qa"] == 8


def test_only_the_samples_asked_for_are_made():
    with Server(numbered) as server:
        (result,) = engine(server).generate([request(samples=(2, 5), temperature=1.0)])
    assert [(c.sample, c.text) for c in completions(result)] == [(2, "qa/0"), (5, "qa/1")]


def test_no_choice_at_all_is_a_failure():
    with Server(fault=lambda _: Fault(choices=0)) as server:
        (result,) = engine(server).generate([request()])
    assert isinstance(result, Failure) and result.reason == "too_few_choices"
    assert len(server.requests) == 1


def test_tokens_add_up_to_what_the_server_counted():
    with Server(lambda body, sample: "x" * (3 + 40 * sample)) as server:
        used = engine(server)
        (result,) = used.generate([request(samples=(0, 1, 2), temperature=1.0)])
    # 4 characters a token: 1 + 11 + 21 of 3, 43 and 83; the prompt "qa" is 1
    assert sum(c.new_tokens for c in completions(result)) == 33
    assert [c.new_tokens for c in completions(result)] == [
        33 * 3 // 129,
        33 * 46 // 129,
        33 - 33 * 46 // 129,
    ]
    assert (used.usage.prompt_tokens, used.usage.new_tokens) == (1, 33)
    assert server.paid_tokens == 34


def test_a_text_cut_at_the_limit_says_so():
    with Server(lambda body, sample: "x" * 100) as server:
        (result,) = engine(server).generate([request(max_new_tokens=5)])
    assert [(c.text, c.finish_reason, c.new_tokens) for c in completions(result)] == [
        ("x" * 20, "length", 5)
    ]


# ---- what is tried again


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_passing_error_is_tried_again_and_paid_once(status):
    with Server(numbered, fault=first_attempt(Fault(status=status), attempts=2)) as server:
        used = engine(server)
        (result,) = used.generate([request()])
    assert texts(result) == ["qa/0"]
    assert len(server.requests) == 3 and used.usage.retries == 2
    assert server.paid["qa"] == 1


@pytest.mark.parametrize("status", [400, 413, 418, 422])
def test_other_client_errors_are_failures_at_once(status):
    with Server(
        numbered, fault=lambda c: Fault(status=status) if c.number == 0 else None
    ) as server:
        bad, good = engine(server, requests_in_flight=1).generate([request("a"), request("b")])
    assert isinstance(bad, Failure) and bad.reason == "bad_request"
    assert str(status) in bad.detail
    assert texts(good) == ["qb/0"]
    assert len(server.requests) == 2


def test_a_prompt_over_the_context_length_is_named():
    too_long = Fault(
        status=400,
        code="context_length_exceeded",
        message="This model's maximum context length is 128000 tokens.",
    )
    with Server(fault=lambda _: too_long) as server:
        (result,) = engine(server).generate([request()])
    assert isinstance(result, Failure) and result.reason == "prompt_too_long"


@pytest.mark.parametrize(
    "fault, reason",
    [
        (Fault(status=429), "rate_limited"),
        (Fault(status=500), "server_error"),
        (Fault(hang=True), "timeout"),
        (Fault(cut=True), "connection_lost"),
        (Fault(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), "connection_lost"),
        (Fault(raw=b""), "connection_lost"),
    ],
    ids=["429", "500", "hang", "cut", "no_http", "empty"],
)
def test_after_the_stated_number_of_tries_it_is_a_failure_and_the_rest_goes_on(fault, reason):
    with Server(numbered, fault=only("qbad", fault)) as server:
        limit = 0.5 if fault.hang else 60.0
        used = engine(server, max_retries=2, timeout_seconds=limit)
        results = by_id(used.generate([request("bad"), request("good")]))
    first, second = results["bad"], results["good"]
    assert isinstance(first, Failure) and first.reason == reason
    assert first.detail.startswith("3 tries")
    assert texts(second) == ["qgood/0"]
    assert [last_message(body) for body in server.requests].count("qbad") == 3


def test_a_hang_and_a_cut_connection_pass_on_the_next_try():
    for fault in (Fault(hang=True), Fault(cut=True)):
        with Server(numbered, fault=first_attempt(fault)) as server:
            (result,) = engine(server, timeout_seconds=0.5).generate([request()])
        assert texts(result) == ["qa/0"] and len(server.requests) == 2


def test_retry_after_is_obeyed_by_every_request_to_that_server():
    arrivals = []

    def fault(call):
        arrivals.append(time.monotonic())
        return Fault(status=429, retry_after="0.8") if call.number == 0 else None

    with Server(fault=fault) as server:
        results = list(engine(server, requests_in_flight=3).generate(map(request, range(30))))
    assert not any(isinstance(r, Failure) for r in results)
    early = [at for at in arrivals if at - arrivals[0] < 0.8]
    assert len(arrivals) == 31 and len(early) < 31 - 10  # the 3 that were sent, and few more


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b"<html>Bad gateway</html>", content_type="text/html"),
        Fault(body=b'{"choices": [{"message": '),
        Fault(body=b"[]"),
        Fault(body=b'{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}'),
        Fault(body=b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}'),
        Fault(body=b"\xff\xfe\x00"),
        Fault(body=b""),
    ],
    ids=["html", "half", "list", "number", "abort", "bytes", "empty"],
)
def test_a_garbled_reply_is_asked_for_again_and_in_the_end_a_failure(fault):
    with Server(numbered, fault=only("qa", fault)) as server:
        used = engine(server, requests_in_flight=1, max_retries=2)
        bad, good = used.generate([request("a"), request("b")])
    assert isinstance(bad, Failure) and bad.reason == "garbled_reply" and bad.detail
    assert texts(good) == ["qb/0"]
    assert len(server.requests) == 3 + 1
    with Server(numbered, fault=first_attempt(fault)) as server:
        (result,) = engine(server).generate([request("a")])
    assert texts(result) == ["qa/0"] and len(server.requests) == 2


@pytest.mark.parametrize(
    "error, reason, asked",
    [
        ({"message": "upstream failed"}, "server_error", 2),
        ("Unexpected endpoint", "server_error", 2),
        ({"code": 502}, "server_error", 2),
        ({"code": "429", "message": "slow down"}, "rate_limited", 2),
        ({"code": 400, "message": "no"}, "bad_request", 1),
    ],
    ids=str,
)
def test_an_error_in_a_reply_with_status_200_is_one_of_the_status_that_it_states(
    error, reason, asked
):
    body = json.dumps({"choices": None, "error": error}).encode()
    with Server(fault=lambda _: Fault(body=body)) as server:
        (result,) = engine(server, max_retries=1).generate([request()])
    assert isinstance(result, Failure) and result.reason == reason
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    "odd",
    [Reply(None), Reply("", "content_filter"), Reply(None, refusal="no"), Reply("half", "abort")],
    ids=str,
)
def test_of_several_choices_the_good_ones_are_kept_and_the_others_asked_for_again(odd):
    def answer(body, sample):
        return odd if body.get("n") == 8 and sample == 2 else f"{body.get('n', 1)}/{sample}"

    with Server(answer) as server:
        (result,) = engine(server).generate([request(samples=tuple(range(8)), temperature=1.0)])
    assert texts(result) == [*(f"8/{k}" for k in (0, 1, 3, 4, 5, 6, 7)), "1/0"]
    assert [c.sample for c in completions(result)] == list(range(8))
    assert [body.get("n", 1) for body in server.requests] == [8, 1]


@pytest.mark.parametrize(
    "error",
    [{"code": ["a"]}, {"code": {"x": 1}}, {"message": {"a": 1}}, {"param": [0]}, 17, None, "text"],
    ids=str,
)
def test_an_error_object_of_any_types_has_a_reason(error):
    raw = json.dumps({"error": error}).encode()
    head = b"HTTP/1.1 400 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with Server(fault=lambda _: Fault(raw=head % len(raw) + raw)) as server:
        (result,) = engine(server).generate([request()])
    assert isinstance(result, Failure) and result.reason == "bad_request"


def test_without_a_usage_the_estimate_of_the_tokens_stands():
    no_usage = b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'
    seconds = []
    for body in (
        no_usage,
        no_usage[:-1] + b', "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    ):
        with Server(fault=lambda _, body=body: Fault(body=body)) as server:
            used = engine(server, tokens_per_minute=60_000, requests_in_flight=1)
            start = time.monotonic()
            list(used.generate(request(i, max_new_tokens=300) for i in range(4)))
            seconds.append(time.monotonic() - start)
    assert seconds[0] > 0.6 > seconds[1]  # 300 tokens take 0.3 s; 4 requests wait three times


@pytest.mark.parametrize("key", ["sk-“abc”", "sk-\u200babc", "sk-a\nbc", "sk-a\rbc", "sk-a\x00bc"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key):
    with pytest.raises(SystemExit, match="OPENAI_API_KEY") as stopped:
        engine("http://127.0.0.1:9/v1", api_key=SecretStr(key))
    assert "sk-" not in str(stopped.value)


def test_a_base_url_with_a_password_is_refused_and_not_shown():
    with pytest.raises(SystemExit, match="password") as stopped:
        engine("http://me:word@127.0.0.1:9/v1")
    assert "word@" not in str(stopped.value)


@pytest.mark.parametrize(
    "reply, reason",
    [
        (Reply(None, refusal="I will not."), "refused"),
        (Reply(None, finish_reason="content_filter"), "content_filter"),
        (Reply("half a", finish_reason="content_filter"), "content_filter"),
        (Reply(None), "garbled_reply"),
    ],
)
def test_a_choice_without_a_text_is_a_failure_with_its_reason(reply, reason):
    with Server(lambda body, sample: reply) as server:
        (result,) = engine(server, max_retries=1).generate([request()])
    assert isinstance(result, Failure) and result.reason == reason


def test_under_all_faults_at_once_every_sample_comes_once():
    faults = random_faults(
        [
            (Fault(status=429, retry_after="0.02"), 0.1),
            (Fault(status=500), 0.1),
            (Fault(cut=True), 0.05),
            (Fault(hang=True), 0.02),
            (Fault(choices=1), 0.2),
            (Fault(delay_seconds=0.05), 0.2),
        ]
    )
    with Server(numbered, fault=faults) as server:
        used = engine(server, requests_in_flight=64, max_retries=20, timeout_seconds=2.0)
        results = list(
            used.generate(request(i, samples=(0, 1, 2), temperature=1.0) for i in range(80))
        )
    assert len(results) == 80
    for id, result in by_id(results).items():
        assert [(c.id, c.sample) for c in completions(result)] == [(id, k) for k in range(3)]
        assert {text.partition("/")[0] for text in texts(result)} == {f"q{id}"}
    assert used.usage.retries > 10


# ---- what ends the run


@pytest.mark.parametrize("status, words", [(401, "API key"), (404, "model"), (405, "/v1")])
def test_what_no_request_can_pass_stops_the_run_with_a_sentence(status, words):
    stops = pytest.raises(SystemExit, match=f"{status}.*{words}")
    with Server(fault=lambda _: Fault(status=status)) as server, stops as stop:
        list(engine(server, requests_in_flight=4).generate(map(request, range(100))))
    assert server.url in str(stop.value)
    assert len(server.requests) <= 4


def test_a_wrong_key_and_an_unknown_model_are_told_apart():
    with Server(api_key="right", models=("m",)) as server:
        with pytest.raises(SystemExit, match="OPENAI_API_KEY"):
            list(engine(server, api_key=SecretStr("wrong")).generate([request()]))
        with pytest.raises(SystemExit, match="other-model"):
            other = engine(server, model="other-model", api_key=SecretStr("right"))
            list(other.generate([request()]))
        assert texts(*engine(server, api_key=SecretStr("right\n")).generate([request()])) == ["qa"]


@pytest.mark.parametrize("status, code", [(429, "insufficient_quota"), (402, None)])
def test_no_money_is_not_waited_for(status, code):
    broke = Fault(status=status, code=code, message="You exceeded your quota")
    with Server(fault=lambda _: broke) as server, pytest.raises(SystemExit, match="cannot pay"):
        list(engine(server, requests_in_flight=1).generate(map(request, range(9))))
    assert len(server.requests) == 1


def test_a_wait_of_hours_is_not_waited_for():
    stops = pytest.raises(SystemExit, match="asks to wait 7200 s")
    with Server(fault=lambda _: Fault(status=429, retry_after="7200")) as server, stops:
        list(engine(server).generate([request()]))


def test_an_option_that_the_server_refuses_stops_the_run():
    with Server(rejected_fields=("top_k",)) as server:
        with pytest.raises(SystemExit, match="refuses top_k"):
            list(engine(server).generate([request(temperature=1.0, top_k=50)]))
        assert texts(*engine(server).generate([request(temperature=1.0)])) == ["qa"]


def test_a_schema_is_sent_where_it_is_wanted_and_a_server_that_refuses_it_stops_the_run():
    schema = {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]}
    short = {
        "why": {"type": "string", "minLength": 4, "maxLength": 99}
    }  # strict servers refuse these
    with Server(numbered) as server:
        asked_for = request(reply_schema={**schema, "properties": short})
        list(engine(server).generate([asked_for]))
        list(engine(server, structured_output=True).generate([request("a")]))
        list(engine(server, structured_output=True).generate([asked_for]))
    *before, asked = [body.get("response_format") for body in server.requests]
    assert before == [None, None] and asked
    assert asked["type"] == "json_schema" and asked["json_schema"]["schema"] == schema
    refused = Fault(status=400, message="response_format json_schema is not supported")
    with (
        Server(numbered, fault=lambda call: refused) as server,
        pytest.raises(SystemExit, match=r"refuses response_format.*--leave-out-options"),
    ):
        list(engine(server, structured_output=True).generate([request(reply_schema=schema)]))


def test_no_server_at_all_is_told_after_a_few_tries():
    used = engine("http://127.0.0.1:9/v1", "http://127.0.0.1:19/v1", max_retries=99)
    with pytest.raises(SystemExit, match=r"no connection to http://127.*start the server"):
        list(used.generate(map(request, range(100))))


def test_a_server_that_goes_away_for_good_stops_the_run_and_for_a_while_does_not():
    server = Server(numbered)
    server.start()
    generated = engine(server, requests_in_flight=4, max_retries=3).generate(
        map(request, range(99))
    )
    results = [next(generated) for _ in range(20)]
    server.stop()
    threading.Timer(0.03, (again := Server(numbered, port=server.port)).start).start()
    results += [next(generated) for _ in range(20)]
    again.stop()
    with pytest.raises(SystemExit, match="no connection"):
        for result in generated:
            results.append(result)
    answered = all_texts(results)
    assert 40 <= len(results) == len(answered) < 99
    assert answered == {id: [f"q{id}/0"] for id in answered}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", ""])
def test_a_base_url_without_http_is_told_before_anything_is_sent(url):
    with pytest.raises(SystemExit, match="wanted http://"):
        engine(url)


def test_replies_in_flight_still_come_when_the_run_is_stopped():
    """They are paid for; a caller that logs by id has them when it goes on."""
    faults = {"q0": Fault(delay_seconds=0.5), "q1": Fault(delay_seconds=0.1, status=401)}
    with Server(numbered, fault=lambda call: faults[last_message(call.body)]) as server:
        generated = engine(server, requests_in_flight=2).generate(map(request, range(9)))
        assert texts(next(generated)) == ["q0/0"]
        with pytest.raises(SystemExit, match="401"):
            next(generated)
    assert len(server.requests) == 2


def test_ctrl_c_ends_a_waiting_run_at_once(tmp_path):
    code = (
        "import signal, sys\n"
        # a shell that runs the tests in the background has it ignored, which children inherit
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from prefpipe.llm import Request; from prefpipe.llm.server.server_engine import ServerEngine\n"
        "from prefpipe.llm.wire import ServedModel\n"
        "request = Request(id='a', messages=({'role': 'user', 'content': 'x'},))\n"
        "try: list(ServerEngine(ServedModel([sys.argv[1]], 'm')).generate([request]))\n"
        "except KeyboardInterrupt: sys.exit(7)"
    )
    with Server(fault=lambda _: Fault(hang=True)) as server:
        command = [sys.executable, "-c", code, server.url]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
            while not server.requests and run.poll() is None:
                time.sleep(0.02)
            run.send_signal(signal.SIGINT)
            try:
                _, errors = run.communicate(timeout=20)
            finally:
                run.kill()  # else leaving the block would wait for ever
    assert run.returncode == 7, errors


# ---- several servers


def test_a_server_that_dies_is_replaced_by_the_other_and_used_again_when_it_is_back():
    slow = lambda call: Fault(delay_seconds=0.01)  # noqa: E731
    first, second = Server(numbered, fault=slow), Server(numbered, fault=slow)
    first.start()
    again = Server(numbered, fault=slow, port=first.port)

    def until_it_is_used_again():
        for i in range(100_000):
            if len(again.requests) > 20:
                return
            yield request(i)

    with second:
        generated = engine(first, second, requests_in_flight=8).generate(until_it_is_used_again())
        results = [next(generated) for _ in range(100)]
        first.stop()
        results += [next(generated) for _ in range(100)]
        with again:
            results += list(generated)
    assert all_texts(results) == right(len(results))
    assert len(first.requests) > 20 and len(again.requests) > 20


def test_a_failing_server_is_left_for_the_other_without_a_pause():
    with Server(fault=lambda _: Fault(status=500)) as bad, Server(numbered) as good:
        start = time.monotonic()
        used = engine(bad, good, requests_in_flight=1, first_backoff_seconds=60.0)
        results = list(used.generate(map(request, range(4))))
    assert all_texts(results) == right(4)
    assert time.monotonic() - start < 30 <= 60 * 0.5  # the shortest pause


# ---- budgets


def test_requests_a_minute_are_kept_to():
    with Server() as server:
        start = time.monotonic()
        list(engine(server, requests_per_minute=1200).generate(map(request, range(21))))
        # 20 a second, the first at once and 2 in advance at most
        assert time.monotonic() - start > 0.85


def test_tokens_a_minute_are_kept_to_by_what_the_server_reports():
    with Server(lambda body, sample: "x" * 396) as server:  # 99 tokens, and 1 of the prompt
        start = time.monotonic()
        used = engine(server, tokens_per_minute=60_000, requests_in_flight=1)
        list(used.generate(request(i, max_new_tokens=99) for i in range(11)))
        # 1,000 a second: 10 times 100 must have been paid back before the eleventh
        assert time.monotonic() - start > 0.85
    assert server.paid_tokens == 1100


# ---- the key


def test_the_key_is_sent_and_nowhere_to_be_read(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    echoing = Server(api_key="another", fault=lambda _: Fault(status=400, message=f"no {KEY}"))
    with Server(
        api_key=KEY, fault=first_attempt(Fault(status=400, message=f"bad {KEY}"))
    ) as server:
        used = engine(server, api_key=SecretStr(KEY), requests_in_flight=1)
        results = list(used.generate([request(), request()]))
    assert isinstance(results[0], Failure) and not isinstance(results[1], Failure)
    with echoing, pytest.raises(SystemExit) as stop:  # its 401 quotes the whole key
        list(engine(echoing, api_key=SecretStr(KEY)).generate([request()]))
    assert "***" in str(stop.value) and "***" in results[0].detail
    out, err = capfd.readouterr()
    seen = [str(stop.value), repr(results), repr(used), repr(vars(used)), out, err, caplog.text]
    assert not any(KEY in text for text in seen)


def test_a_reply_that_is_paid_and_of_no_use_is_asked_for_three_times_and_a_page_as_often_as_any_error():
    abort = Fault(body=b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}')
    page = Fault(body=b"<html>Bad gateway</html>", content_type="text/html")
    for fault, tries in ((abort, 3), (page, 6)):
        with Server(numbered, fault=only("qa", fault)) as server:
            list(engine(server, max_retries=5).generate([request("a"), request("b")]))
        assert len(server.requests) == tries + 1


def test_tries_that_were_not_paid_do_not_count_as_paid_ones_of_no_use():
    abort = Fault(body=b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}')
    faults = [Fault(status=500), Fault(status=500), abort, Fault(status=500), abort]
    with Server(numbered, fault=lambda call: dict(enumerate(faults)).get(call.attempt)) as server:
        (result,) = engine(server, max_retries=5).generate([request("a")])
    assert not isinstance(result, Failure)
    assert len(server.requests) == 6


def test_where_rows_in_a_row_have_used_up_their_tries_the_next_ones_get_one_until_one_passes():
    dead = Fault(status=500)
    with Server(numbered, fault=lambda call: dead if call.number < 20 else None) as server:
        used = engine(server, max_retries=3, requests_in_flight=1)
        results = by_id(used.generate(map(request, range(13))))
    failed = [id for id, result in results.items() if isinstance(result, Failure)]
    assert failed == [str(k) for k in range(3 + 8)]  # 3 rows of 4 tries, 8 of one
    assert len(server.requests) == 20 + 2


def test_the_good_choices_beside_one_that_is_bad_each_time_are_given_with_the_failure():
    def answer(body, sample):
        return Reply(None) if body.get("n", 1) == 1 or sample == 2 else f"t{sample}"

    with Server(answer) as server:
        (failure,) = engine(server).generate([request(samples=(0, 1, 2), temperature=1.0)])
    assert isinstance(failure, Failure) and failure.reason == "garbled_reply"
    assert [(c.sample, c.text) for c in failure.texts] == [(0, "t0"), (1, "t1")]
    assert [body.get("n", 1) for body in server.requests] == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "ab"}],
        [{"type": "output_text", "text": "ab"}],
    ],
)
@pytest.mark.parametrize("reason", ["stop", "STOP", "eos", "end_turn"])
def test_a_text_in_parts_that_ends_for_a_reason_in_other_words_is_a_text(content, reason):
    choice = {"message": {"content": content}, "finish_reason": reason}
    body = json.dumps({"choices": [choice]}).encode()
    with Server(fault=lambda _: Fault(body=body)) as server:
        (result,) = engine(server).generate([request()])
    assert [(c.text, c.finish_reason) for c in completions(result)] == [("ab", "stop")]
