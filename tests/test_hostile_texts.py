"""Hostile texts: every parser takes time in proportion to their length."""

import gc

import pytest

from prefpipe.questions import question_key
from tests.slow_texts import PARSERS, TEXTS, seconds

LENGTH = 50_000


@pytest.mark.parametrize("parser", PARSERS)
def test_a_hostile_text_is_read_in_time_that_grows_with_its_length_only(parser):
    gc.freeze()
    for name, make in TEXTS.items():
        text = make(LENGTH)
        # what takes a microsecond a character; twice more, and thrice, since others may be at work
        taken = min(seconds(PARSERS[parser], text, 3) for _ in range(1))
        if taken > 0.05:
            taken = min(seconds(PARSERS[parser], text, 3) for _ in range(2))
        assert taken < 0.2, f"{parser}, {name}: {taken:.2f} s"


def test_accents_in_usual_number_still_make_one_letter_and_a_run_of_them_keeps_its_question():
    assert question_key("cafe\u0301") == question_key("caf\u00e9")
    assert question_key("x" + "\u0301\u0323" * 100) != question_key("y" + "\u0301\u0323" * 100)
