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
    "words that introduce it": (f"Here is my verdict in JSON format:\n```json\n{GOOD}\n```\nDone.", 1, "It is."),
    "a sentence before it": (f"My verdict is {GOOD}.", 1, "It is."),
    "the sum's own answer before it": (f"1 + 1 = 2.\nAnswer: 2\n{GOOD}", 1, "It is."),
    "thoughts before it": (f'<think>maybe {{"better_answer": 2}}</think>{GOOD}', 1, "It is."),
    "thoughts without their beginning": (f'maybe {{"better_answer": 2}}\n</think>\n{GOOD}', 1, "It is."),
    "a reason that quotes the end of thoughts": ('{"reason": "</think>{}", "better_answer": 1}', 1, "</think>{}"),
    "the same verdict twice": (f'{GOOD} {{"reason": "s", "better_answer": 1}}', 1, "It is."),
    "the same key twice, agreeing": ('{"reason": "r", "better_answer": 1, "better_answer": "1"}', 1, "r"),
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
        "{}",
        "reason, better_answer",
    ],
    "broken_json": [
        '{"reason": "r", "better_answer": 1 or 2}',  # the instruction, repeated
        '{"reason": "r" "better_answer": 1}',
        '{"reason": "r", "better_answer": 01}',
        '{"reason": "say "it" {"better_answer": 2} ok", "better_answer": 1}',  # holds a whole one
        'function() { "use strict"; } ' + GOOD,
        '{"reason": "r", "better_answer": one}',
    ],
    "no_reason": [
        '{"better_answer": 2}',
        '{"reason": " ", "better_answer": 1}',
        '{"reason": null, "better_answer": 1}',
        'You want {"reason": "why", "better_answer": 1}. I cannot decide.'.replace(
            "want {", "want: {"
        ),
        '格式是：{"原因": "理由", "更好的回答": 1}',
        'Answer 1 is nothing but\n```json\n{"better_answer": 1}\n```\nso I prefer Answer 2.',
    ],
    "quoted_verdict": [
        f"Answer 1 ends with {GOOD}. That is an attempt to talk to the judge. Answer 2 is better.",
        f"You want {GOOD}. I cannot decide; both are equally good.",
        f"回答1以{GOOD}结尾，这是在对评委说话。",
        f"[Answer 1]\n{GOOD}\n\n[Answer 2]\n5",
        f"**Answer 1:**\n```json\n{GOOD}\n```\n**Answer 2:** 5",
        f"It ends with: {GOOD}\nI cannot decide.",
        f"For example {GOOD}",
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
    "not_1_or_2": [f'{{"reason": "r", "better_answer": {value}}}' for value in NOT_1_OR_2],
    "two_verdicts": [
        f'{GOOD} {{"reason": "no, wait", "better_answer": 2}}',
        '{"better_answer": 1, "better_answer": 2}',
        '{"better_answer": 1, "更好的回答": 2}',
        '{"better_answer": 1, "better_answer": "both"}',
        f'{{"better_answer": 2}}\n{GOOD}',
        f'{{"better_answer": 2}}</think>{GOOD}',  # which of them is the answer?
        f"Answer 2 is better. {GOOD}",
        f"```json\n{GOOD}\n```\nSo I prefer Answer 2.",
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


KNOWN = {*UNREADABLE, "contradicts_hint", "refusal"}


def test_the_reasons_are_among_those_that_are_listed():
    assert set(REASONS) >= KNOWN


@pytest.mark.parametrize("language", ["en", "zh"])
@given(reason=TEXT, better=st.sampled_from([1, 2]))
def test_a_rendered_judgment_is_read_as_it_was_whatever_its_reason_holds(language, reason, better):
    reason += "!"
    text = render_judgment(reason, better, language)
    assert parse_verdict(text) == Verdict(better, reason.strip())
    keys = json.loads(text)
    assert list(keys.values()) == [reason, better]


@pytest.mark.parametrize(
    "reason", ["a\nabla", "a\x08b", "a\x0cc", "a\tan b", "\\frac", "A:\nso", "\\n"]
)
def test_a_sign_that_would_be_taken_for_a_command_is_written_so_that_it_is_not(reason):
    assert parse_verdict(render_judgment(reason, 1, "en")) == Verdict(1, reason)


def test_a_usual_reason_is_written_as_json_writes_it():
    for reason in ("a\nb", 'say "x"', "好\t。", "a\\b"):
        expected = json.dumps({"reason": reason, "better_answer": 2}, ensure_ascii=False)
        assert render_judgment(reason, 2, "en") == expected


@pytest.mark.parametrize(
    "reason",
    [
        *(
            r"\frac{1}{2} is right",
            r"2 \times 3 = 6",
            r"\beta and \nabla f",
            r"\text{cm}",
            r"\(x\) it is",
        ),
        *(
            r"\alpha",
            r"x \to y in $f$",
            r"\underline{a}",
            r"\rho \neq \theta",
            r"a \{b\}",
            r"\d+\.\w",
        ),
    ],
)
def test_latex_with_single_backslashes_is_kept(reason):
    assert parse_verdict(f'{{"reason": "{reason}", "better_answer": 1}}') == Verdict(1, reason)


@pytest.mark.parametrize("reason", [r"C:\new\table", r"D:\temp", r"x \ne y", r"a \to b"])
def test_what_may_be_a_command_or_a_line_end_is_unreadable(reason):
    text = f'{{"reason": "{reason}", "better_answer": 1}}'
    assert parse_verdict(text) == Unreadable("broken_json")


def test_a_line_end_before_a_word_stays_one():
    text = r'{"reason": "One.\nThe other\nnot so.\r\nEnd\t!", "better_answer": 1}'
    assert parse_verdict(text) == Verdict(1, "One.\nThe other\nnot so.\r\nEnd\t!")


def test_a_text_cut_at_its_token_limit_is_no_verdict_whatever_it_holds():
    assert parse_verdict(GOOD, finish_reason="length") == Unreadable("cut_off")
    assert parse_verdict("", finish_reason="length") == Unreadable("cut_off")


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

AGAINST = Unreadable("contradicts_hint")
HINTED = {
    "plain text": ("4 is right.", 2, "stop", Verdict(2, "4 is right.")),
    "quotes and newlines": ('It says "4".\nYes.', 1, "stop", Verdict(1, 'It says "4".\nYes.')),
    "a fence around it": ("```\n4 is right.\n```", 2, "stop", Verdict(2, "4 is right.")),
    "a fence with its language": ("```text\n`4` is.\n\n``` \n", 2, "stop", Verdict(2, "`4` is.")),
    "a fence alone": ("``````", 2, "stop", Unreadable("empty")),
    "after thoughts": ("<think>hm</think>\n4 is right.", 2, "stop", Verdict(2, "4 is right.")),
    "braces that are no object": ("f(x) {return 1}", 2, "stop", Verdict(2, "f(x) {return 1}")),
    "its own object, agreeing": (GOOD, 1, "stop", Verdict(1, "It is.")),
    "its own object, agreeing, cut behind": (f"{GOOD} And", 1, "length", Unreadable("cut_off")),
    "an object with the reason alone": ('{"reason": "r"}', 2, "stop", Verdict(2, "r")),
    "its own object, against the hint": (GOOD, 2, "stop", Unreadable("contradicts_hint")),
    "cut at the token limit": ("4 is right, bec", 2, "length", Unreadable("cut_off")),
    "thoughts that did not end": ("<think>4 is right", 2, "stop", Unreadable("cut_off")),
    "nothing": (" \n", 2, "stop", Unreadable("empty")),
    "an empty fence": ("```\n```", 2, "stop", Unreadable("empty")),
    "an object without a reason": ('{"better_answer": 2}', 2, "stop", Unreadable("no_reason")),
    "an object without a reason, against": ('{"better_answer": 2}', 1, "stop", AGAINST),
    "a refusal": ("I'm sorry, but I can't help with that.", 1, "stop", Unreadable("refusal")),
    "a refusal in Chinese": ("抱歉,我无法判断。", 1, "stop", Unreadable("refusal")),
    "Python, agreeing": ("{'reason': 'r', 'better_answer': 1}", 1, "stop", Verdict(1, "r")),
    "YAML, agreeing": ("reason: r\nbetter_answer: 1", 1, "stop", Unreadable("no_json")),
    "tags, agreeing": ("<reason>r</reason>", 1, "stop", Unreadable("no_json")),
    "its own object, the reason against it": (
        '{"reason": "Answer 2 is better.", "better_answer": 1}',
        1,
        "stop",
        AGAINST,
    ),
    "both are praised": (
        "Answer 2 is better written, and clearer. Still the better answer is answer 1.",
        1,
        "stop",
        Verdict(1, "Answer 2 is better written, and clearer. Still the better answer is answer 1."),
    ),
    "a cut object": ('{"reason": "4 is', 2, "length", Unreadable("cut_off")),
    "a broken object": ('{"reason": "a "b""}', 2, "stop", Unreadable("broken_json")),
    "two verdicts": (GOOD + GOOD.replace("1", "2"), 2, "stop", Unreadable("two_verdicts")),
}


OTHER_FORMS = [
    "{'reason': 'Answer 2 is clearer', 'better_answer': 2}",
    '{reason: "Answer 2 is clearer", better_answer: 2}',
    '{"judgment": {"reason": "It is clearer", "better_answer": 2}}',
    '<tool_call>{"name": "judge", "arguments": {"reason": "r", "better_answer": 2}}</tool_call>',
    '"{\\"reason\\": \\"r\\", \\"better_answer\\": 2}"',
    '{"reason": "It is clearer", "better answer": 2}',
    '{"reason": "It is clearer", "Better_Answer": 2}',
    '{"reason": "It is clearer", "betterAnswer": "Answer 2"}',
    '{\u200b"reason": "It is clearer", "better_answer": 2}',
    "{„reason“: „It is clearer“, „better_answer“: 2}",
    "reason: It is clearer\nbetter_answer: 2",
    "<reason>It is clearer</reason><better_answer>2</better_answer>",
    "&lt;better_answer&gt;2&lt;/better_answer&gt;",
    "**Better answer:** Answer 2",
    "| reason | better answer |\n| better answer | 2 |",
    "judge(reason='r', better_answer=2)",
    "Answer 2 is better because it has the date.",
    "I disagree with that: the second answer is better.",
    "I prefer Answer 2.",
    "Answer 1 is worse than answer 2.",
    "Answer 2 > Answer 1",
    "My vote goes to the second answer.",
    "Answer 2 outperforms Answer 1.",
    "Winner - Answer 2",
    "Answer II is better.",
    '{"reason": "It is clearer", "answer": 2}',
    "The first one is wrong.\nAnswer: 2",
    "回答2优于回答1。",
    "My verdict: [[B]]",
    "So it is \\boxed{2}.",
    "2",
    "回答2更好，因为它有日期。",
    "我选择第二个回答。",
    "更好的回答：2",
]


@pytest.mark.parametrize("text", OTHER_FORMS)
def test_a_hinted_text_that_says_the_other_verdict_in_any_form_contradicts_the_hint(text):
    assert read_hinted_reason(text, 1, finish_reason="stop") == AGAINST
    agreeing = read_hinted_reason(text, 2, finish_reason="stop")
    assert agreeing != AGAINST
    # what is a form for a program is no plain reason either, where it agrees
    if text[0] in '{<"&|' or "better_answer:" in text:
        own = ("It is clearer", "Answer 2 is clearer")  # of an object
        assert isinstance(agreeing, Unreadable) or agreeing.reason in own


@pytest.mark.parametrize("name", HINTED)
def test_a_hinted_text_becomes_a_judgment_for_the_hint_or_unreadable(name):
    text, hint, finish_reason, expected = HINTED[name]
    assert read_hinted_reason(text, hint, finish_reason=finish_reason) == expected


OBJECT = '{"reason": "It is right.", "better_answer": 1}'


@pytest.mark.parametrize(
    "text",
    [
        f"**Answer 1**\n\n```json\n{OBJECT}\n```",
        f"Better answer:\nAnswer 1\n\n{OBJECT}",
        f"Here is my judgment {OBJECT}. I hope this helps!",
        f"Answer 2 is more complete, but it contains a factual error.\n{OBJECT}",
        f"Answer 2 is clearer, however Answer 1 answers the question.\n{OBJECT}",
        f"Some would prefer Answer 2, but it is wrong.\n{OBJECT}",
        f"It is not true that Answer 2 is better.\n{OBJECT}",
        f"Answer 1 returns List<Thought> as asked.\n{OBJECT}",
        f"The answer discusses <think> tags.\n{OBJECT}",
    ],
)
def test_what_a_good_judge_writes_around_its_object_is_no_reason_to_refuse_it(text):
    assert parse_verdict(text) == Verdict(1, "It is right.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"Answer 2 ends with {OBJECT}. Answer 2 is better.", "quoted_verdict"),
        (f"Answer 2:\n{OBJECT}\nmore", "quoted_verdict"),
        (f"Answer 2:\n{OBJECT}", "quoted_verdict"),
        (f"Answer 2 is better, but only slightly.\n{OBJECT}", "two_verdicts"),
        (f"Answer 1 is fine but Answer 2 is better.\n{OBJECT}", "two_verdicts"),
        (f"Answer 2 is more accurate.\n{OBJECT}", "two_verdicts"),
    ],
)
def test_what_speaks_against_the_object_still_does(text, reason):
    assert parse_verdict(text) == Unreadable(reason)


def test_a_line_end_behind_an_option_is_no_drive():
    text = '{"reason": "Option A:\\nit is short.", "better_answer": 1}'
    assert parse_verdict(text) == Verdict(1, "Option A:\nit is short.")


def test_a_granted_point_in_a_hinted_text_is_no_contradiction():
    text = "Although Answer 2 is more complete, it has an error, which makes Answer 1 right."
    assert read_hinted_reason(text, 1, finish_reason="stop") == Verdict(1, text)
