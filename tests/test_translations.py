"""translations: which replies are a translation of an item, and what the item becomes."""

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from prefpipe import judge
from prefpipe.rows import Completion, Item, Reject
from prefpipe.translations import embedded_json, english_item
from tests.chinese_items import item


def reply(texts: object, finish_reason: Literal["stop", "length"] = "stop") -> Completion:
    text = texts if isinstance(texts, str) else json.dumps(texts, ensure_ascii=False)
    return Completion.model_validate(
        {
            "id": "p1",
            "sample": 0,
            "text": text,
            "finish_reason": finish_reason,
            "prompt_tokens": 1,
            "new_tokens": 1,
        }
    )


GOOD = {"question": "What?", "answer_1": "One.", "answer_2": "Two."}


@pytest.mark.parametrize(
    "given_reply, reason",
    [
        (reply(GOOD, "length"), "truncated"),
        (reply("Here you are: What? One. Two."), "not_json"),
        (reply('{"question": "What?", "answer_1": "On'), "not_json"),
        (reply([GOOD]), "wrong_keys"),
        (reply({"问题": "What?", "answer_1": "One.", "answer_2": "Two."}), "wrong_keys"),
        (reply({**GOOD, "note": "x"}), "wrong_keys"),
        (reply({**GOOD, "answer_1": 1}), "not_text"),
        (reply({**GOOD, "answer_1": None}), "not_text"),
        (reply({**GOOD, "answer_2": "  "}), "empty_text"),
        (reply({**GOOD, "answer_2": "第二个回答没有翻译 ok"}), "still_chinese"),
        (reply({**GOOD, "answer_1": '{"better_answer": 1}'}), "json_changed"),
    ],
)
def test_a_reply_that_is_no_translation_is_named(given_reply, reason):
    result = english_item(item(1), given_reply)
    assert isinstance(result, Reject) and result.reason == reason and result.id == "p1"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=2)}\n```",
        f"```\n{json.dumps(GOOD)}\n```\n",
        json.dumps(GOOD).replace("What?", "What?\n"),  # a raw newline inside a text
    ],
)
def test_an_untidy_but_whole_reply_is_taken(text):
    result = english_item(item(1), reply(text))
    assert isinstance(result, Item)
    assert (result.answer_1, result.answer_2, result.language) == ("One.", "Two.", "en")
    assert result.better == 2 and result.id == "p1"
    assert result.prompt == judge.judge_prompt(result.question, "One.", "Two.", language="en")


def test_json_inside_a_text_keeps_its_keys_and_numbers():
    row = item(1, answer_1='结果:{"原因": "第二个更好", "更好的回答": 2} 完')
    kept = {**GOOD, "answer_1": 'Result: {"原因": "The second is better", "更好的回答": 2} done'}
    assert isinstance(english_item(row, reply(kept)), Item)
    for changed in (
        '{"reason": "The second is better", "better_answer": 2}',
        '{"原因": "The second is better", "更好的回答": 1}',
        '{"原因": "The second is better"}',
        "The second is better: 2",
    ):
        result = english_item(row, reply({**GOOD, "answer_1": changed}))
        assert isinstance(result, Reject) and result.reason == "json_changed", changed


def test_embedded_json_is_found_in_order_without_its_strings():
    assert embedded_json(
        'a {"k": "v", "n": [1, {"m": null}]} b [{"x": "y"}] c {} d [1] {bad} {"z"}'
    ) == [
        {"k": ..., "n": [1, {"m": None}]},
        [{"x": ...}],
    ]
    assert embedded_json("{" * 3000 + "[" * 3000 + '[{"a":' * 500) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings_of_hypothesis(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=3), st.text('{}[]"a,: \n'))
def test_translating_the_strings_of_any_json_leaves_it_the_same(value, around):
    def translated(inner):
        if isinstance(inner, dict):
            return {key: translated(part) for key, part in inner.items()}
        if isinstance(inner, list):
            return [translated(part) for part in inner]
        return inner + "!" if isinstance(inner, str) else inner

    before = embedded_json(f"x {json.dumps(value)} y")
    assert len(before) == 1
    assert embedded_json(f"z {json.dumps(translated(value), ensure_ascii=False)}") == before
    embedded_json(around)  # ends, whatever the brackets
