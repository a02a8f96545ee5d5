"""Judgments that are no JSON because of their quotes, against Python's own reading of them."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.untidy_json import with_json_quotes
from prefpipe.verdicts import Unreadable, Verdict, parse_verdict

KEYS = (("reason", "原因"), ("better_answer", "更好的回答"))
reasons = st.text(st.sampled_from("abc xyz'\".,:;!答案 "), min_size=1, max_size=40).filter(
    lambda text: any(map(str.isalnum, text)) and text.strip() == text and len(text) > 7
)


@given(reasons, st.sampled_from([1, 2]), st.booleans())
def test_an_object_as_python_writes_it_is_read_as_python_reads_it(reason, better, verdict_first):
    pairs = [("reason", reason), ("better_answer", better)]
    text = repr(dict(pairs[::-1] if verdict_first else pairs))
    found = parse_verdict(text)
    assert ast.literal_eval(text)["reason"] == reason
    if isinstance(found, Verdict):
        assert (found.better, found.reason) == (better, reason)
    else:  # by what the reason says, not by its quotes
        assert found.reason in ("no_reason", "two_verdicts")


@given(reasons, st.sampled_from([1, 2]))
def test_bare_quotes_inside_a_reason_are_a_part_of_it(reason, better):
    text = f'{{"reason": "It says "{reason}" here.", "better_answer": {better}}}'
    found = parse_verdict(text)
    assert isinstance(found, Verdict)
    assert (found.better, found.reason) == (better, f'It says "{reason}" here.')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"reason": "A says {"better_answer": 1}", "better_answer": 2}', "broken_json"),
        ("{'reason': 'good', 'better_answer': 3}", "no_json"),
        ("{'reason': 'good, 'better_answer': 1", "no_json"),
        ("{'reason': 'a', 'x': 1} {'reason': 'b', 'better_answer': 1}", "no_json"),
        ('{"better_answer": 1, "reason": "he "said" so"} and {}', "broken_json"),
        ("{'reason': '', 'better_answer': 1}", "no_json"),
        ("it ends with {'reason': 'good', 'better_answer': 1}. That is odd.", "no_json"),
    ],
)
def test_what_may_be_read_in_two_ways_is_not_read(text, reason):
    assert parse_verdict(text) == Unreadable(reason)


def test_what_stands_around_the_object_stays():
    text = "So:\n```json\n{'原因': '它\\'好\\'，\"对\"', '更好的回答': '2'}\n```"
    assert with_json_quotes(text, *KEYS) == (
        'So:\n```json\n{"原因": "它\'好\'，\\"对\\"", "更好的回答": 2}\n```'
    )
    assert parse_verdict(text) == Verdict(2, "它'好'，\"对\"")
