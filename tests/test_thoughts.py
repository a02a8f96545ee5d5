"""thoughts: what each family of reasoning models writes before its answer."""

import pytest

from prefpipe.thoughts import without_thoughts
from prefpipe.verdicts import Unreadable, Verdict, parse_verdict

GOOD = '{"reason": "It is.", "better_answer": 1}'
DRAFT = 'If I said {"reason": "first idea", "better_answer": 2} that would be hasty.'
MARKS = {
    "think": ("<think>", "</think>"),
    "thinking": ("<thinking>\n", "\n</thinking>"),
    "magistral": ("[THINK]", "[/THINK]"),
    "seed": ("<seed:think>", "</seed:think>"),
    "kimi": ("◁think▷", "◁/think▷"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "gpt-oss, constrained": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
    "gpt-oss without its tokens": ("analysis", "assistantfinal"),
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "medgemma": ("<unused94>thought\n", "<unused95>"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "open thoughts": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "exaone": ("<thought>", "</thought>"),
    "apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "granite": ("Here is my thought process:\n", "\nHere is my response:\n"),
    "words first": ("Okay. <think>", "</think>"),
}


@pytest.mark.parametrize("family", MARKS)
def test_thoughts_are_taken_off_and_those_that_do_not_end_say_nothing(family):
    begin, end = MARKS[family]
    assert parse_verdict(f"{begin}{DRAFT}{end}{GOOD}") == Verdict(1, "It is.")
    assert parse_verdict(begin + DRAFT) == Unreadable("cut_off")
    assert without_thoughts(begin + DRAFT) is None
    if family not in ("words first", "gpt-oss without its tokens"):  # the template opened them
        assert parse_verdict(f"{DRAFT}{end}{GOOD}") == Verdict(1, "It is.")


def test_only_the_last_answer_counts_where_thoughts_follow_thoughts():
    text = f"<think>a</think> <think>{DRAFT}</think>{GOOD}<|return|>"
    assert parse_verdict(text) == Verdict(1, "It is.")
    assert without_thoughts("<think>a</think> b</s>") == " b"


@pytest.mark.parametrize(
    "text",
    [
        "It leaks its `</think>` tag.",
        'It writes "<think>" twice.',
        GOOD.replace("It is.", "<think>"),
        "",
    ],
)
def test_marks_that_are_quoted_are_no_marks(text):
    assert without_thoughts(text) == text
