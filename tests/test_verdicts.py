"""verdicts: strict where a wrong reading would poison data, tolerant where a model is only untidy."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefpipe.reasons import REASONS
from prefpipe.verdicts import (
    Unreadable,
    Verdict,
    parse_verdict,
    read_hinted_reason,
    render_judgment,
)

GOOD = '{"reason": "It is.", "better_answer": 1}'
TEXT = st.text(st.characters(codec="utf-8"))

READ = {
    "as asked": (GOOD, 1, "It is."),
    "the other one": ('{"reason": "r", "better_answer": 2}', 2, "r"),
    "verdict first": ('{"better_answer": 2, "reason": "r"}', 2, "r"),
    "more keys": ('{"score": 3, "reason": "r", "better_answer": 2}', 2, "r"),
    "no reason": ('{"better_answer": 2}', 2, ""),
    "text around it": (f"Let me see. {GOOD}\nI hope this helps.", 1, "It is."),
    "a code fence": (f"```json\n{GOOD}\n```", 1, "It is."),
    "a code fence of no language, cut": (f"```\n{GOOD}", 1, "It is."),
    "over several lines": ('{\n  "reason": "r",\n  "better_answer": 1\n}', 1, "r"),
    "a raw newline in the reason": ('{"reason": "a\nb\tc", "better_answer": 1}', 1, "a\nb\tc"),
    "the number as text": ('{"reason": "r", "better_answer": "2"}', 2, "r"),
    "the number as text with spaces": ('{"reason": "r", "better_answer": " 2 "}', 2, "r"),
    "Chinese keys": ('{"原因": "好", "更好的回答": 2}', 2, "好"),
    "keys of both languages": ('{"reason": "r", "更好的回答": 2}', 2, "r"),
    "a full-width digit as text": ('{"原因": "好", "更好的回答": "２"}', 2, "好"),
    "a full-width digit": ('{"原因": "好", "更好的回答": ２}', 2, "好"),
    "full-width signs": ("｛“原因”：“好”，“更好的回答”：１｝", 1, "好"),
    "some full-width signs": ('{"原因"："好"，"更好的回答"：1}', 1, "好"),
    "full-width quotes in the reason": ('{"reason": "“1” is not “2”", "better_answer": 1}', 1, "“1” is not “2”"),
    "thoughts before it": (f'<think>maybe {{"better_answer": 2}}</think>{GOOD}', 1, "It is."),
    "thoughts without their beginning": (f'maybe {{"better_answer": 2}}\n</think>\n{GOOD}', 1, "It is."),
    "a reason that quotes the end of thoughts": ('{"reason": "</think>{}", "better_answer": 1}', 1, "</think>{}"),
    "the same verdict twice": (f'{GOOD} {{"reason": "s", "better_answer": 1}}', 1, "It is."),
    "the same key twice, agreeing": ('{"better_answer": 1, "better_answer": "1"}', 1, ""),
    "an object without a verdict beside it": (f'{{"a": 1}} {GOOD}', 1, "It is."),
    "a list around it": (f"[{GOOD}]", 1, "It is."),
    "a reason as a list": ('{"reason": ["a", "b"], "better_answer": 1}', 1, '["a", "b"]'),
    "a reason as an object": ('{"reason": {"1": "好"}, "better_answer": 1}', 1, '{"1": "好"}'),
    "half of a surrogate pair": ('{"reason": "a\\ud83d", "better_answer": 1}', 1, "a\ufffd"),
    "a pair of surrogates": ('{"reason": "\\ud83d\\ude00", "better_answer": 1}', 1, "😀"),
    "J3: a reason that quotes the key": (
        '{"reason": "It says \\"better_answer\\": 1, wrongly.", "better_answer": 2}',
        2,
        'It says "better_answer": 1, wrongly.',
    ),
    "J3: a reason that quotes a whole object": (
        '{"reason": "{\\"better_answer\\": 1}", "better_answer": 2}', 2, '{"better_answer": 1}'
    ),
    "J4: digits after the word answer": (
        '{"reason": "answer 1 is wrong ... answer 2 is better", "better_answer": 2}',
        2,
        "answer 1 is wrong ... answer 2 is better",
    ),
}  # fmt: skip

NOT_1_OR_2 = [
    *("0", "3", "-1", "12", "1" * 5000, "1.0", "2.5", "1e0", "true", "false", "null", "NaN"),
    *('"1 or 2"', '"Answer 1"', '"one"', '"tie"', '""', "[1]", '{"1": 1}'),
]

UNREADABLE = {
    "empty": ["", " \n\t", "<think>so</think>  \n"],
    "no_json": [
        "The first.",
        "answer 1 is wrong ... answer 2 is better",  # J4
        "better_answer: 2",
        "2",
        "{'reason': 'r', 'better_answer': 1}",  # Python, not JSON
        "{}",
        "reason, better_answer",
    ],
    "broken_json": [
        '{"reason": "say "hi" now", "better_answer": 1}',  # J3: glued together without escaping
        '{"reason": "r", "better_answer": 1 or 2}',  # the instruction, repeated
        '{"reason": "r" "better_answer": 1}',
        '{"reason": "r", "better_answer": 01}',
        '{"reason": "r", "better_answer": 1,}',
        '{"reason": "say "it" {"better_answer": 2} ok", "better_answer": 1}',  # holds a whole one
        'function() { "use strict"; } ' + GOOD,
        '{"reason": "r", "better_answer": one}',
    ],
    "cut_off": [
        '{"reason": "It is, becau',
        '{"reason": "r"',
        '{"reason": "r", "better_answer":',
        '{"reason": "r", "better_answer": 1',
        f'{GOOD} {{"reason": "and',
        '<think>maybe {"reason": "r", "better_answer": 1}',  # the thoughts did not end
    ],
    "no_verdict": [
        '{"reason": "r"}',
        '{"answer": 1}',
        '{"Better_Answer": 1}',
        '{"result": {"reason": "r", "better_answer": 1}}',
    ],
    "not_1_or_2": [f'{{"better_answer": {value}}}' for value in NOT_1_OR_2],
    "two_verdicts": [
        f'{GOOD} {{"reason": "no, wait", "better_answer": 2}}',
        '{"better_answer": 1, "better_answer": 2}',
        '{"better_answer": 1, "更好的回答": 2}',
        '{"better_answer": 1, "better_answer": "both"}',
        f'{{"better_answer": 2}}\n{GOOD}',
        f'{{"better_answer": 2}}</think>{GOOD}',  # which of them is the answer?
    ],
}


@pytest.mark.parametrize("name", READ)
def test_an_untidy_judgment_is_read(name):
    text, better, reason = READ[name]
    assert parse_verdict(text) == Verdict(better, reason)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in UNREADABLE.items() for text in texts]
)
def test_what_cannot_be_read_is_no_verdict_and_says_why(reason, text):
    assert parse_verdict(text) == Unreadable(reason)


KNOWN = {*UNREADABLE, "contradicts_hint"}


def test_the_reasons_are_among_those_that_are_listed():
    assert set(REASONS) >= KNOWN


@pytest.mark.parametrize("language", ["en", "zh"])
@given(reason=TEXT, better=st.sampled_from([1, 2]))
def test_a_rendered_judgment_is_read_as_it_was_whatever_its_reason_holds(language, reason, better):
    text = render_judgment(reason, better, language)
    assert parse_verdict(text) == Verdict(better, reason.strip())
    keys = json.loads(text)
    assert list(keys.values()) == [reason, better]
    assert text == json.dumps(dict(zip(keys, (reason, better), strict=True)), ensure_ascii=False)


PIECES = st.sampled_from(
    [
        *('{"', '"}', '"reason": ', '"better_answer": ', "1", "2", "}", "{", '"', ",", ":", "\\"),
        *("```", "</think>", "<think>", "“", "”", "：", "１", "｛", "｝", "[", "]", "\n"),
        *("\\ud800", "更好的回答"),
    ]
)


@settings(max_examples=400)
@given(st.lists(PIECES | st.text(max_size=3), max_size=25).map("".join))
def test_no_text_raises(text):
    for verdict in (parse_verdict(text), read_hinted_reason(text, 1, finish_reason="stop")):
        if isinstance(verdict, Verdict):
            assert verdict.better in (1, 2)
            verdict.reason.encode()
        else:
            assert verdict.reason in KNOWN


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        '{"reason": ' + "[" * 900 + "]" * 900 + ', "better_answer": 1}',
        '{"better_answer": ' + "[" * 100_000,
        '{"' * 200_000,
        "“" * 200_000,
        '{"reason": "' + "a" * 1_000_000,
        "\x00\ud800",
    ],
)
def test_no_monstrous_text_raises(text):
    verdict = parse_verdict(text)
    assert isinstance(verdict, Verdict | Unreadable)


def test_spaces_inside_a_hinted_text_are_looked_at_once():
    """A fence looked for by a pattern takes time with the square of them: here half a day."""
    text = "so" + " " * 1_000_000 + "it is"
    assert read_hinted_reason(text, 1, finish_reason="stop") == Verdict(1, text)


@given(TEXT, st.sampled_from([1, 2]), st.integers(0, 100))
def test_a_cut_judgment_is_never_a_verdict(reason, better, keep):
    """J9: at whatever character the token limit cut it."""
    text = render_judgment(reason, better, "en")
    cut = text[: len(text) * keep // 101]
    assert isinstance(parse_verdict(cut), Unreadable)


# ---- hinted texts

HINTED = {
    "plain text": ("4 is right.", 2, "stop", Verdict(2, "4 is right.")),
    "quotes and newlines": ('It says "4".\nYes.', 1, "stop", Verdict(1, 'It says "4".\nYes.')),
    "a fence around it": ("```\n4 is right.\n```", 2, "stop", Verdict(2, "4 is right.")),
    "a fence with its language": ("```text\n`4` is.\n\n``` \n", 2, "stop", Verdict(2, "`4` is.")),
    "a fence alone": ("``````", 2, "stop", Unreadable("empty")),
    "after thoughts": ("<think>hm</think>\n4 is right.", 2, "stop", Verdict(2, "4 is right.")),
    "braces that are no object": ("f(x) {return 1}", 2, "stop", Verdict(2, "f(x) {return 1}")),
    "its own object, agreeing": (GOOD, 1, "stop", Verdict(1, "It is.")),
    "its own object, agreeing, cut behind": (f"{GOOD} And", 1, "length", Verdict(1, "It is.")),
    "an object with the reason alone": ('{"reason": "r"}', 2, "stop", Verdict(2, "r")),
    "its own object, against the hint": (GOOD, 2, "stop", Unreadable("contradicts_hint")),
    "cut at the token limit": ("4 is right, bec", 2, "length", Unreadable("cut_off")),
    "thoughts that did not end": ("<think>4 is right", 2, "stop", Unreadable("cut_off")),
    "nothing": (" \n", 2, "stop", Unreadable("empty")),
    "an empty fence": ("```\n```", 2, "stop", Unreadable("empty")),
    "an object without a reason": ('{"better_answer": 2}', 2, "stop", Unreadable("empty")),
    "a cut object": ('{"reason": "4 is', 2, "length", Unreadable("cut_off")),
    "a broken object": ('{"reason": "a "b""}', 2, "stop", Unreadable("broken_json")),
    "two verdicts": (GOOD + GOOD.replace("1", "2"), 2, "stop", Unreadable("two_verdicts")),
}


@pytest.mark.parametrize("name", HINTED)
def test_a_hinted_text_becomes_a_judgment_for_the_hint_or_unreadable(name):
    text, hint, finish_reason, expected = HINTED[name]
    assert read_hinted_reason(text, hint, finish_reason=finish_reason) == expected
