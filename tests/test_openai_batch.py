"""prefpipe.llm.batch_api.batch_engine against a real HTTP server: what is submitted, kept, paid; every end state."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from embedded.server import ApiError, BatchFault, Fault, Reply, Server, last_message
from prefpipe.files import DataError
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.batch_api.batch_engine import BatchEngine, BatchOptions
from prefpipe.llm.batch_api.batch_record import RECORD, BatchRecord
from prefpipe.llm.wire import ServedModel

ROOT = Path(__file__).parent.parent
KEY = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """The tests' own servers only, whatever the person who runs them has set."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def request(id: object = "a", text: str | None = None, **options) -> Request:
    return Request(id=str(id), messages=({"role": "user", "content": text or f"q{id}"},), **options)


def engine(
    server: Server | str | None, folder: Path | str = "batches", model="m", **options: Any
) -> BatchEngine:
    names = BatchOptions.__dataclass_fields__.keys() & options.keys()
    quick: dict[str, Any] = {"poll_seconds": 0.01, "settle_seconds": 0.0}
    given = quick | {name: options.pop(name) for name in names}
    url = server.url if isinstance(server, Server) else server
    served = ServedModel([url] if url else [], model, **{"first_backoff_seconds": 0.01, **options})
    return BatchEngine(served, BatchOptions(folder=Path(folder), **given))


def numbered(body, sample) -> str:
    return f"{last_message(body)}/{sample}"


def texts(results: Iterable[list[Completion] | Failure]) -> dict[str, Any]:
    """By id: the texts in the order of the samples, or the reason of the failure."""
    found: dict[str, Any] = {}
    for result in results:
        id = result.id if isinstance(result, Failure) else result[0].id
        assert id not in found, "two results for one request"
        found[id] = (
            result.reason
            if isinstance(result, Failure)
            else [completion.text for completion in result]
        )
    return found


def right(count: int) -> dict[str, list[str]]:
    return {str(i): [f"q{i}/0"] for i in range(count)}


def faults(*of_batches: BatchFault):
    """The first batch has the first fault, and so on; later ones are right."""
    return lambda call: of_batches[call.number] if call.number < len(of_batches) else None


def sizes(server: Server) -> list[int]:
    """Requests of each batch that the server has."""
    return [len(batch.call.lines) for batch in server.batches.batches.values()]


# ---- what is sent, and what comes back


def test_every_request_gets_its_own_answer_from_one_batch():
    with Server(numbered) as server:
        assert texts(engine(server).generate(map(request, range(7)))) == right(7)
    assert sizes(server) == [7]
    assert server.paid == Counter({f"q{i}": 1 for i in range(7)})


def test_shards_keep_to_both_limits_of_the_api():
    with Server(numbered) as server:
        found = texts(engine(server, requests=3).generate(map(request, range(8))))
        assert found == right(8) and sizes(server) == [3, 3, 2]
        a_line = len(next(iter(server.batches.files.values())).splitlines(keepends=True)[0])
        used = engine(server, "by-bytes", bytes=2 * a_line + 1)
        assert texts(used.generate(map(request, range(5)))) == right(5)
        assert sizes(server)[3:] == [2, 2, 1]
    inputs = [d for id, d in server.batches.files.items() if id in server.batches.names]
    assert max(map(len, inputs[3:])) <= 2 * a_line + 1


def test_a_request_that_no_batch_can_take_is_named():
    with Server() as server, pytest.raises(SystemExit, match=r"request 'b' has [\d,]+ bytes"):
        list(engine(server, bytes=300).generate([request("a"), request("b", "x" * 400)]))
    assert not server.paid


def test_s11_an_id_may_have_anything_in_it():
    """S11: "00123" and "12e45" stay what they are, and no id is cut or taken for another."""
    ids = [
        "00123",
        "123",
        "12e45",
        "a_b_c",
        "a-0-1",
        "p/7\tx\n",
        '"quo\\te"',
        "编号",
        "",
        "x" * 3000,
    ]
    with Server(numbered) as server:
        requests = [request(id, text=f"text of {place}") for place, id in enumerate(ids)]
        found = texts(engine(server).generate(requests))
        lines = [line for b in server.batches.batches.values() for line in b.call.lines]
    assert found == {id: [f"text of {place}/0"] for place, id in enumerate(ids)}
    for line in lines:  # what each API that has batches takes
        assert len(line["custom_id"]) <= 64
        assert line["custom_id"].replace("-", "").isalnum() and line["custom_id"].isascii()


def test_j5_the_settings_that_were_asked_for_reach_the_api():
    asked = request(samples=(0, 1, 2), max_new_tokens=77, temperature=1.2, top_p=0.9, top_k=5)
    with Server(numbered) as server:
        used = engine(server, extra_body={"response_format": {"type": "json_object"}})
        assert texts(used.generate([asked])) == {"a": ["qa/0", "qa/1", "qa/2"]}
    (body,) = server.requests
    seed = body.pop("seed")
    assert seed == int(seed)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "qa"}],
        "max_completion_tokens": 77,
        "temperature": 1.2,
        "top_p": 0.9,
        "top_k": 5,
        "n": 3,
        "response_format": {"type": "json_object"},
    }


def test_e3_missing_choices_are_asked_for_in_another_batch_and_none_is_paid_twice():
    with Server(numbered, fault=lambda call: Fault(choices=2)) as server:
        asked = request(samples=(0, 1, 2, 3, 4), temperature=1.0)
        found = texts(engine(server).generate([asked]))
    assert [body.get("n", 1) for body in server.requests] == [5, 3, 1]
    assert len({body["seed"] for body in server.requests}) == 3
    assert found == {"a": ["qa/0", "qa/1", "qa/0", "qa/1", "qa/0"]}
    assert server.paid["qa"] == 5


def test_samples_that_are_there_already_are_not_asked_for_again():
    with Server(numbered) as server:
        list(engine(server).generate([request(samples=(0, 1), temperature=1.0)]))
        asked = request(samples=(0, 1, 2, 5), temperature=1.0)
        assert len(texts(engine(server).generate([asked]))["a"]) == 4
        # with a gap: two lines, one for 2 and one for 5
        assert [body.get("n", 1) for body in server.requests] == [2, 1, 1]
    assert server.paid["qa"] == 4


def test_a_text_cut_at_the_limit_says_so():
    with Server(lambda body, sample: "x" * 100) as server:
        (result,) = engine(server).generate([request(max_new_tokens=3)])
    assert isinstance(result, list)
    assert (result[0].text, result[0].finish_reason) == ("x" * 12, "length")


def test_tokens_used_are_what_the_api_reports():
    with Server(lambda body, sample: "y" * 40) as server:
        used = engine(server)
        (result,) = used.generate([request(text="z" * 20)])
    assert isinstance(result, list)
    assert (result[0].prompt_tokens, result[0].new_tokens) == (5, 10)  # 4 characters a token
    assert (used.usage.replies, used.usage.prompt_tokens, used.usage.new_tokens) == (1, 5, 10)


# ---- S5: nothing is paid twice


def test_s5_what_was_submitted_is_never_submitted_again():
    """S5: a second upload erased the list of batch ids, and everything was paid again."""
    with Server(numbered) as server:
        requests = [request(i) for i in range(6)]
        for _ in range(3):
            engine(server, requests=4).submit(requests)
        assert sizes(server) == [4, 2]
        before = (Path("batches") / RECORD).read_bytes()
        assert texts(engine(server, requests=4).generate(requests)) == right(6)
        assert texts(engine(server, requests=4).generate(requests)) == right(6)
        after = (Path("batches") / RECORD).read_bytes()
    assert sizes(server) == [4, 2] and max(server.paid.values()) == 1
    assert after.startswith(before), "the record is only ever appended to"


def test_s5_only_what_is_new_is_submitted():
    with Server(numbered) as server:
        list(engine(server).generate(map(request, range(3))))
        assert texts(engine(server).generate(map(request, range(5)))) == right(5)
    assert sizes(server) == [3, 2] and max(server.paid.values()) == 1


@pytest.mark.parametrize(
    "other",
    [{"temperature": 0.5}, {"max_new_tokens": 9}, {"text": "another"}],
    ids=str,
)
def test_another_request_under_the_same_id_does_not_get_the_answer_of_this_one(other):
    with Server(lambda body, sample: json.dumps(body, sort_keys=True)) as server:
        (first,) = texts(engine(server).generate([request()])).values()
        (second,) = texts(engine(server).generate([request(**other)])).values()
    assert first != second and sizes(server) == [1, 1]


def test_a_seed_makes_other_samples_but_no_other_greedy_text():
    with Server(numbered) as server:
        for seed in (1, 2):
            list(engine(server).generate([request("greedy", seed=seed)]))
            list(engine(server).generate([request("warm", temperature=1.0, seed=seed)]))
    assert server.paid == {"qgreedy": 1, "qwarm": 2}


def test_answers_that_are_there_need_neither_server_nor_key():
    with Server(numbered) as server:
        list(engine(server).generate(map(request, range(3))))
    assert texts(engine(None).generate(map(request, range(3)))) == right(3)


def test_two_processes_do_not_submit_from_one_folder():
    with Server(numbered) as server:
        first = engine(server).generate(map(request, range(3)))
        next(first)
        with pytest.raises(SystemExit, match="another run is writing it"):
            engine(server).submit([request()])
        first.close()
        engine(server).submit([request()])


# ---- S6: every end of a batch


@pytest.mark.parametrize("silent", [False, True], ids=["error_file", "no_error_file"])
@pytest.mark.parametrize("end", ["expired", "cancelled", "completed"])
def test_s6_finished_rows_of_a_partial_batch_are_kept_and_the_rest_is_submitted_again(end, silent):
    """S6: the loop never ended on `expired` or `cancelled`, and nobody read the error file."""
    partly = BatchFault(end=end, answered=0.6, silent=silent)
    with Server(numbered, batch_fault=faults(partly)) as server:
        assert texts(engine(server).generate(map(request, range(10)))) == right(10)
    assert sizes(server) == [10, 4]
    assert set(server.paid.values()) == {1} and len(server.paid) == 10


def test_s6_after_the_stated_number_of_batches_a_request_is_left_out_by_its_reason():
    def never(call):
        return BatchFault(end="expired", answered=1 / 3 if call.number == 0 else 0)

    with Server(numbered, batch_fault=never) as server:
        found = texts(engine(server, tries=2).generate(map(request, range(3))))
        assert found == {"0": ["q0/0"], "1": "batch_expired", "2": "batch_expired"}
        assert sizes(server) == [3, 2]
        # a later run does not try again either, unless it may
        assert texts(engine(server, tries=2).generate(map(request, range(3)))) == found
        assert sizes(server) == [3, 2]
        server.batches._fault = lambda call: None
        assert texts(engine(server, tries=3).generate(map(request, range(3)))) == right(3)
    assert sizes(server) == [3, 2, 2] and set(server.paid.values()) == {1}


def test_s6_a_line_that_the_server_failed_on_is_sent_again_and_a_bad_one_is_not():
    def fault(call):
        if last_message(call.body) == "q1":
            return Fault(status=500) if call.attempt == 0 else None
        return Fault(status=400, message="no") if last_message(call.body) == "q2" else None

    with Server(numbered, fault=fault) as server:
        found = texts(engine(server).generate(map(request, range(4))))
    assert found == right(4) | {"2": "bad_request"}
    assert sizes(server) == [4, 1]


def test_s6_lines_that_fail_the_validation_are_named_and_the_others_sent_again():
    bad = BatchFault(invalid_lines=(2, 4), message="Invalid type for 'messages'")
    with Server(numbered, batch_fault=faults(bad)) as server:
        found = texts(engine(server).generate(map(request, range(5))))
    assert found == right(5) | {"1": "bad_request", "3": "bad_request"}
    assert sizes(server) == [5, 3]


def test_s6_a_batch_that_fails_as_a_whole_stops_the_run_and_is_submitted_again_by_the_next():
    broke = BatchFault(end="failed", code="billing_hard_limit_reached", message="No money.")
    with Server(numbered, batch_fault=faults(broke)) as server:
        with pytest.raises(
            SystemExit, match=r"billing_hard_limit_reached: No money.*nothing of it"
        ):
            list(engine(server).generate(map(request, range(3))))
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
    assert sizes(server) == [3, 3] and set(server.paid.values()) == {1}


def test_s6_a_full_queue_is_waited_for():
    full = BatchFault(end="failed", code="token_limit_exceeded", message="Enqueued token limit")
    with Server(numbered, batch_fault=faults(BatchFault(), full, full)) as server:
        found = texts(engine(server, requests=2).generate(map(request, range(4))))
    assert found == right(4) and sizes(server) == [2, 2, 2, 2]


def test_s6_a_queue_that_is_always_full_ends_with_a_sentence():
    full = BatchFault(end="failed", code="token_limit_exceeded", message="Enqueued token limit")
    with (
        Server(batch_fault=lambda call: full) as server,
        pytest.raises(SystemExit, match=r"token_limit_exceeded.*lower batch_requests"),
    ):
        list(engine(server, poll_seconds=0.001).generate([request()]))


def test_s6_a_batch_that_someone_cancels_goes_through_cancelling():
    with Server(numbered) as server:
        used = engine(server)
        used.submit(map(request, range(4)))
        batch_id = next(iter(server.batches.batches))
        http(server, "POST", f"/v1/batches/{batch_id}/cancel")
        assert [b.status for b in engine(server).status()] == ["cancelling"]
        assert texts(engine(server).generate(map(request, range(4)))) == right(4)
    assert sizes(server) == [4, 2] and set(server.paid.values()) == {1}


def http(server: Server, method: str, path: str) -> dict[str, Any]:
    import urllib.request

    asked = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method)
    with urllib.request.urlopen(asked) as reply:
        return json.load(reply)


def test_s6_download_says_what_is_not_there_yet_and_gives_what_is():
    """S6: `download` exited 0 having done nothing."""
    with Server(numbered, batch_fault=faults(BatchFault(end="expired", answered=0.5))) as server:
        requests = [request(i) for i in range(4)]
        with pytest.raises(SystemExit, match="4 requests have no answer yet: 4 are in no batch"):
            list(engine(server).download(requests))
        engine(server).submit(requests)
        with pytest.raises(SystemExit, match=r"0 are in no batch.*'in_progress': 1"):
            list(engine(server).download(requests))
        got = []
        with pytest.raises(SystemExit, match="2 requests have no answer yet: 2 are in no batch"):
            for _ in range(3):
                try:
                    for result in engine(server).download(requests):
                        got.append(result)
                except SystemExit as end:
                    if "under way: none" in str(end):
                        raise
        assert texts(got) == {"0": ["q0/0"], "1": ["q1/0"]}
        assert "2 requests submitted now" in engine(server).submit(requests)


# ---- untidy output files


def test_duplicate_lines_and_another_order_change_nothing():
    untidy = BatchFault(duplicate=True, shuffle=True, garbage=6)
    with Server(numbered, batch_fault=lambda call: untidy) as server:
        used = engine(server)
        assert texts(used.generate(map(request, range(20)))) == right(20)
    assert sizes(server) == [20] and used.usage.replies == 20


def test_an_output_that_was_read_garbled_is_read_again():
    broken = BatchFault(lost=2, garbled_reads=1)
    with Server(numbered, batch_fault=lambda call: broken) as server:
        assert texts(engine(server).generate(map(request, range(5)))) == right(5)
    assert sizes(server) == [5] and server.batches.reads["file-out-0"] == 2


def test_a_file_without_a_single_answer_is_read_again_by_the_next_run():
    """A gateway's page in place of the file must not make paid answers unreadable for good."""

    def page(request, number):
        html = Fault(body=b"<html>gateway</html>", content_type="text/html")
        return html if broken and request.path.endswith("/content") else None

    broken = True
    with Server(numbered, api_fault=page) as server:
        with pytest.raises(
            SystemExit, match=r"3 tries; the last.*no line of JSON; nothing is lost"
        ):
            list(engine(server, max_retries=2).generate(map(request, range(3))))
        broken = False
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
    assert sizes(server) == [3]


def test_an_answer_that_was_paid_and_cannot_be_read_is_a_reject_and_not_paid_again():
    with Server(numbered, batch_fault=lambda call: BatchFault(lost=2)) as server:
        found = texts(engine(server).generate(map(request, range(5))))
    assert found == right(5) | {"0": "garbled_reply", "1": "garbled_reply"}
    assert sizes(server) == [5] and set(server.paid.values()) == {1}


def test_a_batch_whose_only_answer_was_lost_is_a_reject_too():
    with Server(numbered, batch_fault=lambda call: BatchFault(lost=1)) as server:
        for _ in range(2):
            assert texts(engine(server).generate([request()])) == {"a": "garbled_reply"}
    assert server.paid == {"qa": 1}


def test_garbage_lines_do_not_make_an_unanswered_request_a_lost_one():
    partly = BatchFault(end="expired", answered=0.5, silent=True, garbage=3)
    with Server(numbered, batch_fault=faults(partly)) as server:
        assert texts(engine(server).generate(map(request, range(6)))) == right(6)
    assert sizes(server) == [6, 3] and set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(None, refusal="I will not."), "refused"),
        (Reply(None, "content_filter"), "content_filter"),
        (Reply("x", "tool_calls"), "garbled_reply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_choice_without_a_text_is_a_failure_with_its_reason(reply, reason):
    with Server(lambda body, sample: reply) as server:
        assert texts(engine(server).generate([request()])) == {"a": reason}


# ---- a bad network


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


# ---- money


def test_the_estimate_counts_what_is_left_and_asks_nobody():
    requests = [request(i, text="x" * 400, max_new_tokens=50) for i in range(10)]
    with Server() as server:
        used = engine(server, model="gpt-4o-mini")
        before = used.estimate(requests)
        list(used.generate(requests[:4]))
    left = engine(None, model="gpt-4o-mini").estimate(requests)
    assert (before.requests, before.prompt_tokens, before.new_tokens) == (10, 1000, 500)
    assert (left.requests, left.submitted, left.prompt_tokens) == (6, 4, 600)
    # half of 0.15 and of 0.60 USD a million
    assert before.usd == pytest.approx((1000 * 0.15 + 500 * 0.60) / 1e6 / 2)
    assert engine(None, model="no-such").estimate(requests).usd is None


def test_max_cost_stops_before_a_batch_that_could_go_beyond_it():
    # a batch of 2: 200 prompt tokens and at most 2,000,000 new ones, 0.600015 USD at half price
    requests = [request(i, text=f"{i}".rjust(400), max_new_tokens=1_000_000) for i in range(6)]
    with Server(lambda body, sample: "short") as server:

        def run(max_cost):
            used = engine(server, model="gpt-4o-mini", requests=2, max_cost=max_cost)
            return texts(used.generate(requests))

        with pytest.raises(SystemExit, match="6 requests not submitted: the next batch of 2"):
            run(0.6)
        assert sizes(server) == []
        with pytest.raises(SystemExit, match=r"4 requests not submitted.*max_cost \(1\.20\)"):
            run(1.2)
        assert sizes(server) == [2]
        # The answers were short: what they really cost leaves room for the next batch.
        with pytest.raises(SystemExit, match="2 requests not submitted"):
            run(1.2)
        assert sizes(server) == [2, 2]
        assert len(run(None)) == 6
    assert sizes(server) == [2, 2, 2] and set(server.paid.values()) == {1}


def test_max_cost_counts_each_batch_of_the_folder_at_the_price_of_its_own_model():
    # 1,000,000 new tokens of gpt-4o cost 5 USD in a batch, of gpt-4o-mini 0.30
    asked = request(max_new_tokens=1_000_000)
    with Server() as server:
        engine(server, model="gpt-4o", max_cost=5.1).submit([asked])
        with pytest.raises(SystemExit, match=r"may cost 0.30 USD, and 5.00 are spent or under way"):
            engine(server, model="gpt-4o-mini", max_cost=5.1).submit([asked])
        engine(server, model="gpt-4o-mini", max_cost=5.4).submit([asked])
    assert sizes(server) == [1, 1]


def test_max_cost_without_a_price_stops_before_anything_is_sent():
    with Server() as server, pytest.raises(SystemExit, match="no price of m in prefpipe/prices"):
        list(engine(server, max_cost=1.0).generate([request()]))
    assert not server.api_calls


# ---- the record


def test_a_line_of_the_record_that_a_kill_has_cut_is_dropped_and_a_wrong_one_is_named():
    with Server(numbered) as server:
        list(engine(server).generate(map(request, range(3))))
        record = Path("batches") / RECORD
        whole = record.read_bytes()
        record.write_bytes(whole[:-5])
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
        assert sizes(server) == [3]
        record.write_bytes(whole.replace(b'{"event": "created"', b'{"event": 7', 1))
        with pytest.raises(DataError, match=r"batches.jsonl:2: no line of a batch record"):
            list(engine(server).generate(map(request, range(3))))


def test_a_missing_file_of_requests_is_told():
    with Server(numbered) as server:
        engine(server).submit([request()])
    (Path("batches") / "requests-000001.jsonl").unlink()
    with pytest.raises(DataError, match=r"requests-000001.jsonl: missing"):
        BatchRecord(Path("batches"))


def test_status_shows_each_batch_as_the_server_has_it_and_writes_nothing():
    with Server(numbered) as server:
        engine(server, requests=2).submit(map(request, range(3)))
        before = {path: path.read_bytes() for path in Path("batches").iterdir()}
        states = [[b.status for b in engine(server).status()] for _ in range(4)]
        assert states[0] == ["in_progress"] * 2 and states[-1] == ["completed"] * 2
        assert {path: path.read_bytes() for path in Path("batches").iterdir()} == before
    assert engine(None, "nothing-here").status() == []


def test_s7_the_key_is_sent_and_nowhere_to_be_read(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    key = SecretStr(KEY)
    with Server(numbered, api_key=KEY) as server:
        used = engine(server, api_key=key)
        list(used.generate(map(request, range(2))))
    with Server(api_key="another") as server, pytest.raises(SystemExit) as end:
        engine(server, "other", api_key=key).submit([request()])
    assert "***" in str(end.value)
    shown = capfd.readouterr()
    written = "".join(path.read_text() for path in Path().rglob("*.jsonl"))
    for text in (caplog.text, shown.out, shown.err, str(end.value), written, repr(vars(used))):
        assert KEY not in text


# ---- the loopback server itself


def test_a_batch_that_takes_its_time_is_not_shown_as_ended_and_outlives_who_looked_at_it():
    """Else a killed client's next run would find it ended without a file, and pay for it again."""
    may_answer = threading.Event()

    async def answer(body, sample) -> str:
        while not may_answer.is_set():
            await asyncio.sleep(0.01)
        return numbered(body, sample)

    with Server(answer) as server:
        engine(server).submit([request(k) for k in range(3)])
        url = f"{server.url}/batches/batch_0"

        def look(seconds: float) -> dict[str, Any]:
            with urllib.request.urlopen(url, timeout=seconds) as reply:
                return json.load(reply)

        for _ in range(3):  # until its states are over and it is at work
            with contextlib.suppress(TimeoutError):
                look(0.3)
        with urllib.request.urlopen(f"{server.url}/batches") as reply:
            [shown] = json.load(reply)["data"]
        assert shown["status"] == "finalizing" and shown["output_file_id"] is None
        may_answer.set()
        ended = look(10)
        assert ended["status"] == "completed" and ended["request_counts"]["completed"] == 3
        assert texts(engine(server).generate([request(k) for k in range(3)])) == right(3)
    assert server.paid == Counter({f"q{k}": 1 for k in range(3)}) and sizes(server) == [3]


def test_a_line_that_the_model_refuses_is_a_line_of_the_error_file_and_stops_no_other():
    async def answer(body, sample) -> str:
        if last_message(body) == "q1":
            raise ApiError(400, "too long", code="context_length_exceeded")
        return numbered(body, sample)

    with Server(answer) as server:
        found = texts(engine(server).generate([request(k) for k in range(3)]))
    assert found == right(3) | {"1": "prompt_too_long"}
