"""Hostile texts: every parser takes time in proportion to their length."""

import time

import pytest

from prefpipe.compare.ab_prompt import escape
from prefpipe.questions import question_key
from prefpipe.rag.abstention import is_abstention
from prefpipe.ratings import read_ratings
from prefpipe.translations import embedded_json
from prefpipe.verdicts import parse_verdict
from prefpipe.words import split_words

LENGTH = 200_000
PARSERS = {
    "ratings": lambda text: read_ratings(text, 2),
    "escape": escape,
    "question": question_key,
    "words": split_words,
    "json": embedded_json,
    "abstention": is_abstention,
    "verdict": parse_verdict,
}
PIECES = {
    "blanks": ("Text", " ", "x"),
    "dashes": ("Rating: 4", "-", "\r5"),
    "backslashes": ("", "\\", "x"),
    "accents": ("a", "\u0301\u0323", "b"),
    "half-width marks": ("a", "\uff9e\u0301", "b"),
    "nested starts": ("", '{"a":', ""),
    "lists of starts": ("", '[{"', ""),
    "starts": ("", '{"a":x', ""),
    "buts": ("", "but ", "no"),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("parser", PARSERS)
def test_a_long_hostile_text_is_read_in_a_second(parser, piece):
    before, middle, behind = PIECES[piece]
    text = before + middle * (LENGTH // len(middle)) + behind
    began = time.process_time()
    PARSERS[parser](text)
    assert time.process_time() - began < 1


def test_accents_in_usual_number_still_make_one_letter_and_a_run_of_them_keeps_its_question():
    assert question_key("cafe\u0301") == question_key("caf\u00e9")
    assert question_key("x" + "\u0301\u0323" * 100) != question_key("y" + "\u0301\u0323" * 100)
