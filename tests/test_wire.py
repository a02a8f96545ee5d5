"""prefpipe.llm.wire: what is asked of a server, byte by byte, and what its replies are read as."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefpipe.llm import Failure, Request
from prefpipe.llm.wire import (
    ChatCompletion,
    ServedModel,
    completions_of,
    read_reply,
    request_body,
    share_out,
)

SERVED = ServedModel(["http://127.0.0.1:9/v1"], "m", SecretStr("sk-secret"))
ASKED = Request("7", ({"role": "user", "content": "问"},), (2, 3), 9, temperature=0.5, top_k=5)


def reply(*choices: Any, **rest: Any) -> Any:
    return {"choices": list(choices), **rest}


def choice(content: Any, finish_reason: Any = "stop", **rest: Any) -> dict[str, Any]:
    return {"message": {"content": content}, "finish_reason": finish_reason, **rest}


def test_a_request_is_these_bytes():
    body = request_body(SERVED, ASKED, (2, 3), "max_tokens")
    assert json.dumps(body, ensure_ascii=False) == (
        '{"model": "m", "messages": [{"role": "user", "content": "问"}], "max_tokens": 9, '
        '"temperature": 0.5, "top_p": 1.0, "top_k": 5, "seed": 1827193670, "n": 2}'
    )


def test_extra_fields_go_before_all_others():
    served = ServedModel([], "m", extra_body={"seed": 1, "min_p": 0.1})
    body = request_body(served, ASKED, (0,), "max_tokens")
    assert (body["seed"], body["min_p"]) == (1, 0.1)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=8))
def test_shares_add_up_and_are_within_one_of_the_exact_ones(total, weights):
    shares = share_out(total, weights)
    assert sum(shares) == total and len(shares) == len(weights)
    whole = sum(weights)
    if whole:
        assert all(abs(s - total * w / whole) < 1 for s, w in zip(shares, weights, strict=True))


def test_shares_by_hand():
    assert share_out(10, [1, 1, 2]) == [2, 3, 5]
    assert share_out(7, [0, 0]) == [3, 4]
    assert share_out(5, [0, 9]) == [0, 5]


def test_choices_go_by_their_index_and_fewer_than_asked_are_the_first_samples():
    read = read_reply(reply(choice("b", index=1), choice("a", index=0), usage={"prompt_tokens": 4}))
    assert isinstance(read, ChatCompletion) and (read.prompt_tokens, read.new_tokens) == (4, 0)
    found = completions_of(read, "7", (5, 6, 7), SERVED)
    assert isinstance(found, list)
    assert [(c.sample, c.text) for c in found] == [(5, "a"), (6, "b")]


@pytest.mark.parametrize(
    "data",
    [None, [], 3, "text", {}, {"choices": 3}, {"choices": [{}]}, {"choices": [{"message": "x"}]},
     {"choices": [None, 3]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_chat_completion_is_none(data):
    assert read_reply(data) is None


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ([], "too_few_choices"),
        ([choice(None)], "garbled_reply"),
        ([choice(["a"])], "garbled_reply"),
        ([choice("a", ["stop"])], "garbled_reply"),
        ([choice(None, refusal=3)], "garbled_reply"),
        ([{"message": {"content": None, "refusal": {"why": "sk-secret"}}}], "refused"),
        ([{"message": {"content": None, "refusal": True}}], "refused"),
        ([choice(None, "content_filter")], "content_filter"),
        ([choice("half", "content_filter")], "content_filter"),
        ([{"message": {"content": None, "refusal": "no sk-secret"}}], "refused"),
        ([choice("a", "tool_calls")], "garbled_reply"),
    ],
    ids=str,
)
def test_a_reply_without_all_of_its_texts_is_a_failure(choices, reason):
    read = read_reply(reply(*choices))
    assert isinstance(read, ChatCompletion)
    found = completions_of(read, "7", (0, 1), SERVED)
    assert isinstance(found, Failure) and found.reason == reason
    assert "sk-secret" not in found.detail


@pytest.mark.parametrize(
    "usage",
    ["1e999", "-5", "NaN", '"12"', "null", "[1]", "true", "9" * 400],
    ids=lambda text: text[:5],
)
def test_a_count_that_is_none_is_zero_and_the_text_is_kept(usage):
    text = json.dumps(reply(choice("a"), usage={"prompt_tokens": "X", "completion_tokens": 3}))
    read = read_reply(json.loads(text.replace('"X"', usage)))
    assert isinstance(read, ChatCompletion) and (read.prompt_tokens, read.new_tokens) == (0, 3)
    read = read_reply(
        json.loads(text.replace('{"prompt_tokens": "X", "completion_tokens": 3}', usage))
    )
    assert isinstance(read, ChatCompletion) and (read.prompt_tokens, read.new_tokens) == (0, 0)


def test_choices_of_other_types_are_passed_over_and_indices_of_other_types_keep_the_order():
    read = read_reply(reply(None, choice("a", index="0"), {"message": 3}, choice("b", index=1)))
    assert isinstance(read, ChatCompletion)
    assert [c["message"]["content"] for c in read.choices] == ["a", "b"]


def test_a_reasoning_model_that_spent_its_tokens_before_the_answer_has_an_empty_text():
    read = read_reply(reply(choice(None, "length")))
    assert isinstance(read, ChatCompletion)
    found = completions_of(read, "7", (0,), SERVED)
    assert isinstance(found, list) and (found[0].text, found[0].finish_reason) == ("", "length")


@pytest.mark.parametrize("around", ["", "\n", " ", "\r\n"], ids=repr)
@pytest.mark.parametrize("key", ["sk-secret", "'sk-secret'", '"sk-secret"', "sk\\secret"])
def test_the_key_is_not_shown_in_any_form(key, around):
    served = ServedModel([], "m", SecretStr(key + around))
    sent = key.strip()
    for said in (sent, f"{sent!r}", json.dumps({"key": sent}), key + around, {"key": sent}, [sent]):
        assert "secret" not in served.printable(said), said


def test_what_is_printed_has_no_control_characters_and_no_half_characters():
    assert SERVED.printable("\x1b[31mred\x07 \x9b2J\u202egnp\ud83d 好") == "[31mred 2J gnp\ufffd 好"


def test_what_is_printed_is_one_short_line_without_a_password():
    assert SERVED.printable("a\n  sk-secret b") == "a *** b"
    assert len(SERVED.printable("x" * 999)) == 300


def test_pauses_double_up_to_a_minute_and_differ():
    served = ServedModel([], "m", first_backoff_seconds=1.0)
    for failures, longest in ((0, 1.0), (3, 8.0), (9, 60.0), (5000, 60.0)):
        pauses = {served.backoff_seconds(failures) for _ in range(20)}
        assert len(pauses) > 1 and all(longest / 2 <= pause <= longest for pause in pauses)
