"""prefpipe.llm.batch_api.batch_http: a bad network, and what no call can pass."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from pydantic import SecretStr

from embedded.server import Fault, Server, last_message
from prefpipe.llm.batch_api.batch_engine import BatchEngine, BatchOptions
from prefpipe.llm.batch_api.batch_record import RECORD
from prefpipe.llm.wire import ServedModel
from tests.batch_helpers import engine, numbered, request, right, sizes, texts

pytestmark = pytest.mark.usefixtures("no_account")

KEY = "sk-a-very-secret-key"


def test_a_create_whose_reply_was_lost_is_found_and_not_made_twice():
    def cut(request, number):
        creates = request.method == "POST" and request.path == "/v1/batches"
        return Fault(cut=True) if creates and not seen.add(number) and len(seen) == 1 else None

    seen: set[int] = set()
    with Server(numbered, api_fault=cut) as server:
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
    assert sizes(server) == [3] and "GET /v1/batches?limit=100" in server.api_calls


def test_a_create_that_never_reached_the_server_is_made():
    def fault(request, number):
        creates = request.method == "POST" and request.path == "/v1/batches"
        return Fault(status=500) if creates and not seen.add(number) and len(seen) < 3 else None

    seen: set[int] = set()
    with Server(numbered, api_fault=fault) as server:
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
    assert sizes(server) == [3] and len(seen) == 3


def test_passing_errors_of_every_call_change_nothing():
    def fault(request, number):
        at = random.Random(number).random()
        for share, kind in [
            (0.1, Fault(status=429, retry_after="0.01")),
            (0.2, Fault(status=503)),
            (0.3, Fault(cut=True)),
            (0.4, Fault(body=b"<html>gateway</html>", content_type="text/html")),
        ]:
            if at < share:
                return kind
        return None

    with Server(numbered, api_fault=fault) as server:
        used = engine(server, requests=5, max_retries=30)
        assert texts(used.generate(map(request, range(40)))) == right(40)
    assert sizes(server) == [5] * 8 and set(server.paid.values()) == {1}


def test_after_the_stated_tries_it_stops_and_the_same_command_goes_on():
    broken = True
    with Server(numbered, api_fault=lambda r, n: Fault(status=500) if broken else None) as server:
        with pytest.raises(SystemExit, match=r"3 tries; the last: HTTP 500.*nothing is lost"):
            list(engine(server, max_retries=2).generate([request(0)]))
        broken = False
        assert texts(engine(server).generate([request(0)])) == right(1)
    assert sizes(server) == [1]


def test_the_batch_is_found_on_a_later_page_of_the_list():
    with Server(numbered) as server:
        engine(server).submit([request(0)])
        made = server.batches.batches
        for number in range(1, 120):
            shown = made["batch_0"].shown | {"id": f"batch_{number}", "input_file_id": "file-x"}
            shown["metadata"] = {"prefpipe": "of another run"}
            made[f"batch_{number}"] = dataclasses.replace(made["batch_0"], shown=shown)
        record = Path("batches") / RECORD
        # killed between the create's reply and its line
        record.write_bytes(record.read_bytes().splitlines(keepends=True)[0])
        assert texts(engine(server).generate([request(0)])) == right(1)
    assert len(sizes(server)) == 120
    assert sum(call.startswith("GET /v1/batches?") for call in server.api_calls) == 2


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"api_key": KEY}, "check the API key"),
        ({"models": ("other",)}, "check the model's name"),
        ({"rejected_fields": ("temperature",)}, "refuses temperature"),
    ],
    ids=["key", "model", "option"],
)
def test_what_no_request_can_pass_stops_the_run_with_a_sentence(kwargs, words):
    with Server(**kwargs) as server, pytest.raises(SystemExit, match=words):
        list(engine(server, api_key=SecretStr("wrong")).generate(map(request, range(3))))


def test_answers_beside_a_refused_option_are_given_before_the_run_stops():
    def fault(call):
        refused = Fault(status=400, message="Unsupported parameter: temperature")
        return refused if last_message(call.body) == "q1" else None

    got = []
    with Server(numbered, fault=fault) as server, pytest.raises(SystemExit, match="temperature"):
        for result in engine(server).generate(map(request, range(3))):
            got.append(result)
    assert texts(got) == {"0": ["q0/0"], "2": ["q2/0"]}


def test_a_batch_of_another_server_is_told():
    with Server(numbered) as first:
        engine(first).submit([request()])
    with Server(numbered) as second, pytest.raises(SystemExit, match="batch_0 is not known there"):
        list(engine(second).generate([request()]))
    assert not second.paid


@pytest.mark.parametrize(
    ("urls", "words"),
    [([], "no base URL given"), (["http://a/v1", "http://b/v1"], "talks to one server; found 2")],
    ids=["none", "two"],
)
def test_it_wants_one_server(urls, words):
    used = BatchEngine(ServedModel(urls, "m"), BatchOptions(folder=Path("batches")))
    with pytest.raises(SystemExit, match=words):
        used.submit([request()])


def test_an_id_that_is_none_is_never_shown_nor_asked_for():
    def api_fault(call, number):
        if call.method == "POST" and call.path == "/v1/batches":
            return Fault(body=b'{"id": "\\u001b[31mbatch", "status": "validating"}')
        if call.path.startswith("/v1/batches?"):
            shown = server.batches.batches["batch_0"].shown | {"id": "\x1b[31mbatch"}
            return Fault(body=json.dumps({"data": [shown]}).encode())
        return None

    with (
        Server(numbered, api_fault=api_fault) as server,
        pytest.raises(SystemExit, match=r"it calls a batch '.*', which is no id") as end,
    ):
        list(engine(server).generate([request(0)]))
    assert "\x1b" not in str(end.value) and sizes(server) == [1]
