"""prefpipe.llm.batch_api.batch_session: every end of a batch, and untidy files of answers."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from embedded.server import BatchFault, Fault, Reply, Server, last_message
from prefpipe.llm import Failure
from prefpipe.llm.batch_api.batch_http import answered
from prefpipe.llm.batch_api.batch_record import BatchRecord
from prefpipe.llm.costs import Price, estimate_prompt_tokens
from tests.batch_helpers import engine, faults, numbered, request, right, sizes, texts

pytestmark = pytest.mark.usefixtures("no_account")


# ---- every end of a batch


@pytest.mark.parametrize("silent", [False, True], ids=["error_file", "no_error_file"])
@pytest.mark.parametrize("end", ["expired", "cancelled", "completed"])
def test_finished_rows_of_a_partial_batch_are_kept_and_the_rest_is_submitted_again(end, silent):
    """S6: the loop never ended on `expired` or `cancelled`, and nobody read the error file."""
    partly = BatchFault(end=end, answered=0.6, silent=silent)
    with Server(numbered, batch_fault=faults(partly)) as server:
        assert texts(engine(server).generate(map(request, range(10)))) == right(10)
    assert sizes(server) == [10, 4]
    assert set(server.paid.values()) == {1} and len(server.paid) == 10


def test_after_the_stated_number_of_batches_a_request_is_left_out_by_its_reason():
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


def test_a_line_that_the_server_failed_on_is_sent_again_and_a_bad_one_is_not():
    def fault(call):
        if last_message(call.body) == "q1":
            return Fault(status=500) if call.attempt == 0 else None
        return Fault(status=400, message="no") if last_message(call.body) == "q2" else None

    with Server(numbered, fault=fault) as server:
        found = texts(engine(server).generate(map(request, range(4))))
    assert found == right(4) | {"2": "bad_request"}
    assert sizes(server) == [4, 1]


def test_lines_that_fail_the_validation_are_named_and_the_others_sent_again():
    bad = BatchFault(invalid_lines=(2, 4), message="Invalid type for 'messages'")
    with Server(numbered, batch_fault=faults(bad)) as server:
        found = texts(engine(server).generate(map(request, range(5))))
    assert found == right(5) | {"1": "bad_request", "3": "bad_request"}
    assert sizes(server) == [5, 3]


def test_a_batch_that_fails_as_a_whole_stops_the_run_and_is_submitted_again_by_the_next():
    broke = BatchFault(end="failed", code="billing_hard_limit_reached", message="No money.")
    with Server(numbered, batch_fault=faults(broke)) as server:
        with pytest.raises(
            SystemExit, match=r"billing_hard_limit_reached: No money.*nothing of it"
        ):
            list(engine(server).generate(map(request, range(3))))
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
    assert sizes(server) == [3, 3] and set(server.paid.values()) == {1}


def test_a_full_queue_is_waited_for():
    full = BatchFault(end="failed", code="token_limit_exceeded", message="Enqueued token limit")
    with Server(numbered, batch_fault=faults(BatchFault(), full, full)) as server:
        found = texts(engine(server, requests=2).generate(map(request, range(4))))
    assert found == right(4) and sizes(server) == [2, 2, 2, 2]


def test_a_queue_that_is_always_full_ends_with_a_sentence():
    full = BatchFault(end="failed", code="token_limit_exceeded", message="Enqueued token limit")
    with (
        Server(batch_fault=lambda call: full) as server,
        pytest.raises(SystemExit, match=r"token_limit_exceeded.*lower batch_requests"),
    ):
        list(engine(server, poll_seconds=0.001).generate([request()]))


def test_a_batch_that_someone_cancels_goes_through_cancelling():
    with Server(numbered) as server:
        used = engine(server)
        used.submit(map(request, range(4)))
        batch_id = next(iter(server.batches.batches))
        http(server, "POST", f"/v1/batches/{batch_id}/cancel")
        assert [b.status for b in engine(server).status()] == ["cancelling"]
        assert texts(engine(server).generate(map(request, range(4)))) == right(4)
    assert sizes(server) == [4, 2] and set(server.paid.values()) == {1}


def http(server: Server, method: str, path: str) -> dict[str, Any]:

    asked = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method)
    with urllib.request.urlopen(asked) as reply:
        return json.load(reply)


def test_download_says_what_is_not_there_yet_and_gives_what_is():
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
        found = list(engine(server, max_retries=2).generate(map(request, range(3))))
        assert texts(found) == dict.fromkeys("012", "batch_unreadable")
        assert isinstance(found[0], Failure) and "no line of JSON" in found[0].detail
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


@pytest.mark.parametrize(
    "counts", [{"completed": "many"}, {"completed": -5}, [1], "x", None], ids=str
)
def test_a_number_of_answers_that_is_none_is_zero(counts):
    assert answered({"request_counts": counts}) == 0
    assert answered({"request_counts": {"completed": 7}}) == 7


@pytest.mark.parametrize(
    "errors",
    [
        [1],
        {"data": "abc"},
        {"data": [1]},
        {"data": [{"line": "1", "code": [], "message": "\ud800"}]},
    ],
    ids=ascii,
)
def test_a_failed_batch_with_errors_of_other_types_stops_with_a_sentence(errors):
    shown = {"id": "batch_0", "status": "failed", "errors": errors, "request_counts": [1]}
    fault = Fault(body=json.dumps(shown).encode())
    reads = re.compile("/v1/batches/.+")
    with (
        Server(api_fault=lambda call, _: fault if reads.fullmatch(call.path) else None) as server,
        pytest.raises(SystemExit, match=r"batch batch_0 failed: .*submits it again"),
    ):
        list(engine(server).generate([request()]))


def answered_by(body: str) -> tuple[dict, float]:
    """Texts, and USD that the record counts, of a folder with that answer to the request a."""
    price = Price(((-1, 1e6, 1e6),), "by hand: 1 USD a token")
    answers = engine(None)
    used = request(max_new_tokens=50)
    with Server(numbered) as server:
        list(engine(server).generate([used]))
    output = Path("batches/output-000001.jsonl")
    line = json.loads(output.read_text())
    line["response"]["body"] = "BODY"
    output.write_text(json.dumps(line).replace('"BODY"', body) + "\n")
    cost = BatchRecord(Path("batches")).cost(price)
    return texts(answers.download([used])), cost


CHOICE = '"choices": [{"message": {"content": "x\\ud800"}, "finish_reason": "stop"}]'


@pytest.mark.parametrize("count", ["1e999", "-500", '"12"', "null", "[1]", "9" * 400], ids=range(6))
def test_an_answer_without_its_tokens_is_counted_as_long_as_it_may_be(count):
    usage = f'"usage": {{"prompt_tokens": {count}, "completion_tokens": 3}}'
    found, cost = answered_by(f"{{{CHOICE}, {usage}}}")
    assert found == {"a": ["x\ufffd"]}
    assert cost == pytest.approx(50 + estimate_prompt_tokens(request().messages))


def test_an_error_in_an_answer_with_status_200_costs_nothing_and_has_its_reason():
    found, cost = answered_by('{"error": {"code": 400, "message": "no"}}')
    assert (found, cost) == ({"a": "bad_request"}, 0)


def test_the_good_choices_of_an_answer_are_kept_and_the_others_sent_again():
    def answer(body, sample):
        return Reply(None) if body.get("n") == 3 and sample == 0 else f"{body.get('n', 1)}/{sample}"

    with Server(answer) as server:
        found = texts(engine(server).generate([request(samples=(0, 1, 2), temperature=1.0)]))
    assert found == {"a": ["3/1", "3/2", "1/0"]} and sizes(server) == [1, 1]


# ---- batches that cannot be had


def only(path: str, reply: Fault, times: int = 10**9):
    """An api_fault: that reply in place of the first ones to calls whose path ends so."""
    left = [reply] * min(times, 1000)
    return lambda request, number: left.pop() if request.path.endswith(path) and left else None


def test_a_file_that_is_gone_costs_its_own_batch_only_and_nothing_is_paid_again(capsys):
    with Server(numbered) as server:
        used = engine(server, requests=2)
        used.submit(map(request, range(6)))
        for _ in range(4):
            used.status()
        gone = server.batches.files.pop("file-out-0")
        for _ in range(2):
            found = texts(engine(server, requests=2).generate(map(request, range(6))))
            assert found == right(6) | dict.fromkeys("01", "batch_unreadable")
        assert "file-out-0 is there no more; it is looked at 5 times" in capsys.readouterr().err
        server.batches.files["file-out-0"] = gone  # it is looked at again by each run
        assert texts(engine(server, requests=2).generate(map(request, range(6)))) == right(6)
    assert sizes(server) == [2, 2, 2] and set(server.paid.values()) == {1}


@pytest.mark.parametrize("state", ["canceled", "COMPLETED", "ended", "paused"])
def test_a_state_that_nobody_knows_is_told_and_given_up_after_a_number_of_looks(state, capsys):
    shown = Fault(body=json.dumps({"id": "batch_0", "status": state}).encode())
    with Server(numbered, api_fault=only("/batches/batch_0", shown)) as server:
        found = texts(engine(server, requests=2).generate(map(request, range(4))))
    assert found == right(4) | dict.fromkeys("01", "batch_unreadable")
    assert (
        f"state '{state}', which nobody knows; it is looked at 20 times" in capsys.readouterr().err
    )


def test_what_a_batch_is_called_gives_no_orders_to_the_terminal(capsys):
    shown = Fault(body=json.dumps({"id": "batch_0", "status": "completed", "output_file_id": "\x1b[31mred"}).encode())  # fmt: skip
    with Server(numbered, api_fault=only("/batches/batch_0", shown)) as server:
        texts(engine(server, requests=2).generate(map(request, range(2))))
    said = capsys.readouterr().err
    assert "red" in said and "\x1b" not in said


@pytest.mark.parametrize("name", ["x" * 1_000_000, "a b", "é", "a\nb"])
@pytest.mark.parametrize("kind", ["output", "error"])
def test_a_file_of_a_name_that_no_file_has_costs_its_own_batch_only(kind, name, capsys):
    named = {"output_file_id": "file-out-0", f"{kind}_file_id": name}
    shown = json.dumps({"id": "batch_0", "status": "completed", **named}).encode()
    with Server(numbered, api_fault=only("/batches/batch_0", Fault(body=shown))) as server:
        used = engine(server, requests=2)
        used.submit(map(request, range(4)))
        server.batches.files["file-out-0"] = b'{"custom_id": "nobody"}\n'
        found = texts(engine(server, requests=2).generate(map(request, range(4))))
    assert {id: found[id] for id in "23"} == {id: right(4)[id] for id in "23"}
    said = capsys.readouterr().err
    assert "which is no id" in said and len(said) < 3000


def test_a_batch_that_names_no_file_yet_and_one_whose_file_comes_late_are_looked_at_again():
    unnamed = {"id": "batch_0", "status": "completed", "request_counts": {"completed": 3}}
    late = Fault(body=json.dumps(unnamed).encode())
    for fault in (
        only("/batches/batch_0", late, 3),
        only("/content", Fault(status=404), 3),
        only("/content", Fault(body=b""), 3),
    ):
        with Server(numbered, api_fault=fault) as server:
            folder = f"late-{id(fault)}"
            used = engine(server, folder, max_retries=1)
            assert texts(used.generate(map(request, range(3)))) == right(3)
        assert set(server.paid.values()) == {1}


def test_a_file_longer_than_all_answers_can_be_is_not_read_on(monkeypatch):
    monkeypatch.setattr("prefpipe.llm.batch_api.batch_session._FILE_BYTES", 100)
    endless = Fault(body=b'{"custom_id": "x"}\n' * 100_000)
    with Server(numbered, api_fault=only("/content", endless)) as server:
        (failure,) = engine(server).generate([request()])
    assert isinstance(failure, Failure) and failure.reason == "batch_unreadable"
    assert "more than" in failure.detail and not list(Path("batches").glob("output*"))


def test_a_key_that_the_server_sends_back_is_in_no_file():
    key = "sk-SECRET-0123456789"
    with Server(lambda body, sample: f"I was given {key}", api_key=key) as server:
        used = engine(server, api_key=SecretStr(key))
        assert texts(used.generate([request()])) == {"a": ["I was given ***"]}
    assert not [path for path in Path("batches").iterdir() if key in path.read_text()]
    failed = {"id": "batch_0", "status": "failed",
              "errors": {"data": [{"code": "x", "message": f"key {key}", "line": None}]}}  # fmt: skip
    shown = Fault(body=json.dumps(failed).encode())
    with (
        Server(numbered, api_key=key, api_fault=only("/batches/batch_0", shown)) as server,
        pytest.raises(SystemExit, match=r"failed: x: key \*\*\*"),
    ):
        list(engine(server, "failed", api_key=SecretStr(key)).generate([request()]))
    assert not [path for path in Path("failed").iterdir() if key in path.read_text()]


def test_where_n_is_refused_each_sample_is_a_line_of_its_own():
    asked = request(samples=(0, 1, 2), temperature=1.0)
    refused = lambda call: (  # noqa: E731
        Fault(status=400, message="'n' is not supported") if "n" in call.body else None
    )
    with Server(numbered, fault=refused) as server:
        with pytest.raises(SystemExit, match="refuses n"):
            list(engine(server).generate([asked]))
        found = texts(engine(server, unsent=["n"]).generate([asked]))
    assert found == {"a": ["qa/0"] * 3} and sizes(server) == [1, 3]
