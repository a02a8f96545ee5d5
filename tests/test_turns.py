"""prefpipe.formats.turns: every published spelling of a turn, and what cannot be shown as text."""

import json

import numpy as np
import pytest

from prefpipe.formats.turns import Unusable, holds_turns, read_turns

WANTED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    "value",
    [
        WANTED,
        tuple(WANTED),
        [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
        [{"speaker": "User", "text": "Q"}, {"speaker": "BOT", "text": "A"}],
        [{"role": "prompter", "content": "Q"}, {"role": "model", "content": [{"type": "text", "text": "A"}]}],
        [{"role": "user", "content": ["Q"]}, {"role": "assistant", "content": {"type": "text", "text": "A"}}],
        [{"role": "user", "content": "Q", "tool_calls": [], "name": "x"},
         {"role": "assistant", "content": "A", "tool_calls": None, "thinking": ""}],
        {"role": ["user", "assistant"], "content": ["Q", "A"]},
        {"content": ["Q", "A"], "role": ["user", "assistant"]},
        json.dumps(WANTED),
        str(WANTED),
        f"\n {json.dumps(WANTED, indent=1)}",
        str(np.array(WANTED)),
    ],
)  # fmt: skip
def test_every_spelling_of_a_turn_is_read_as_role_and_content(value):
    assert read_turns(value, "chosen") == WANTED


@pytest.mark.parametrize(
    ("role", "ours"),
    [("developer", "system"), ("human", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"),
     ("function", "tool"), ("observation", "tool"), ("ipython", "tool"), ("System", "system")],
)  # fmt: skip
def test_every_known_role_is_one_of_four(role, ours):
    assert read_turns([{"role": role, "content": "x"}], "x")[0]["role"] == ours


def test_one_turn_alone_is_a_list_of_it():
    assert read_turns({"from": "gpt", "value": "A"}, "chosen") == WANTED[1:]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"content": None}, r"x\[0\]: found null"),
        ({"content": "a", "tool_calls": [{"function": {}}, {"name": "f"}]}, "a call of a tool"),
        ({"content": "a", "thinking": "hm"}, "thinking kept apart"),
        ({"content": "a", "reasoning_content": "hm"}, "thinking kept apart"),
        ({"content": [{"type": "image", "text": None}]}, "a part of type image"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}]},
         "a part of type image_url"),
        ({"content": [{"type": "text", "text": "a", "image": "b64"}]}, "more than text"),
        ({"content": [{"type": "text", "text": None}]}, "which cannot be shown as text"),
        ({"role": "function_call", "content": "{}"}, "a call of a tool"),
    ],
)  # fmt: skip
def test_what_is_more_than_its_text_has_a_reason_of_its_own(turn, said):
    with pytest.raises(Unusable, match=said) as error:
        read_turns([{"role": "assistant", **turn}], "x")
    assert error.value.reason == "not_text"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (4, "x: found int, wanted text or a list of turns"),
        ([], "x: found an empty list, wanted at least one turn"),
        (["a"], r"x\[0\]: found 'a', wanted role and content as text"),
        ([{"content": "a"}], r"x\[0\]\.role: found 'None', wanted system, user, assistant, tool"),
        ([{"role": "narrator", "content": "a"}], r"x\[0\]\.role: found 'narrator'"),
        ([{"role": "user"}], r"x\[0\]: found .* wanted role and content as text"),
        ([{"role": "user", "content": 4}], r"x\[0\]\.content: found int, wanted text"),
        (
            '[{"role": "user", "content": "cut o',
            r"x: found '\[{\"role\".* turns as text that are no JSON",
        ),
    ],
)
def test_what_is_no_turn_is_named(value, said):
    with pytest.raises(ValueError, match=said) as error:
        read_turns(value, "x")
    assert not isinstance(error.value, Unusable)


def test_a_text_is_turns_only_where_it_begins_like_them():
    assert holds_turns('[{"from": "human", "value": "Q"}]') and holds_turns("{'role': 'user', ")
    for text in ("[1, 2]", "{x}", "", " ", '{"answer": 4}', "role: user", '["a"]'):
        assert not holds_turns(text)
