"""prefpipe.llm.batch_api.batch_engine against a real HTTP server: what is sent, and what is paid."""

import json
from collections import Counter
from pathlib import Path

import pytest

from embedded.server import Fault, Server
from prefpipe.llm.batch_api.batch_record import RECORD
from tests.batch_helpers import engine, numbered, request, right, sizes, texts

pytestmark = pytest.mark.usefixtures("no_account")


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


def test_an_id_may_have_anything_in_it():
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


def test_the_settings_that_were_asked_for_reach_the_api():
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


def test_missing_choices_are_asked_for_in_another_batch_and_none_is_paid_twice():
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


# ---- nothing is paid twice


def test_what_was_submitted_is_never_submitted_again():
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


def test_only_what_is_new_is_submitted():
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
