"""opinions: which answer a text calls better in words; what is no opinion, no form and no refusal."""

import pytest

from prefpipe.opinions import is_form, is_refusal, opinions

SAID = {
    "Answer 1 is better.": {1},
    "Answer two is clearly the better one, and answer one is worse": {2},
    "I would choose the first, since it is short.": {1},
    "Answer 1 is not better than answer 2.": {2},
    "Answer B wins. Still, Answer A is better.": {1, 2},
    "“更好的回答”：1": {1},
    "我倾向于回答2，因为回答1较差。": {2},
    "＊Answer ２ is better＊": {2},
}
NOT_SAID = [
    "Answer 2 is better at sums.",
    "Answer 2 is better written.",
    "I do not prefer Answer 2.",
    "Choose the first element of the list.",
    "better_answer: 1 or 2",
    "Answer 1 is longer; answer 2 says more.",
    "It is 2.",
    "Answer 1: 4. Answer 2: 5.",
    "哪个回答更好？",
    "",
]


@pytest.mark.parametrize("text", SAID)
def test_what_a_text_calls_better_is_found(text):
    assert opinions(text) == SAID[text]


@pytest.mark.parametrize("text", NOT_SAID)
def test_what_says_less_is_no_opinion(text):
    assert opinions(text) == set()


def test_a_loose_key_is_an_opinion_only_where_it_is_asked_for():
    assert opinions("1 + 1 = 2\nAnswer: 2") == set()
    assert opinions("1 + 1 = 2\nAnswer: 2", loosely=True) == {2}
    assert opinions("Result: 2 apples", loosely=True) == set()


def test_an_opinion_at_either_end_of_a_monstrous_text_is_found():
    assert opinions("Answer 1 is better. " + "so " * 300_000 + "Answer 2 is better.") == {1, 2}


@pytest.mark.parametrize(
    "text", ["{a: 1}", '```json\n["a"', "<reason>r</reason>", "so\nbetter_answer: 1"]
)
def test_a_form_is_known_by_its_beginning_or_its_key(text):
    assert is_form(text)


@pytest.mark.parametrize(
    "text", ["[Answer 1] is short.", "f(x) {return 1}", "a < b", "The better answer is 1"]
)
def test_plain_words_are_no_form(text):
    assert not is_form(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "I’m sorry, but I can’t help with that.",
            "Sorry, I cannot judge this.",
            "As an AI model, I",
        ),
        *(
            "I am unable to decide.",
            "I won't be able to say.",
            "Unfortunately, I can't compare them.",
        ),
        *(
            "Neither answer is better.",
            "I disagree.",
            "抱歉，我不能",
            "作为一个人工智能，",
            "无法判断。",
        ),
    ],
)
def test_a_refusal_is_known_by_its_beginning(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        *("I'm sorry for the loss of the author, says answer 1.", "Answer 1 says it cannot help."),
        *(
            "I can't believe how short Answer 1 is.",
            "The second one says sorry.",
            "不知道的人会选回答1。",
        ),
    ],
)
def test_a_reason_that_speaks_of_refusals_is_none(text):
    assert not is_refusal(text)
