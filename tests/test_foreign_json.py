"""prefpipe.foreign_json: what it makes of texts that no file can hold."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.foreign_json import read_json, well_formed
from prefpipe.verdicts import KeyValues

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def test_half_of_a_pair_is_one_sign_and_a_whole_pair_is_its_character():
    assert read_json(r'["a\ud83d", "\ude00b", "\ud83d\ud83d\ude00", "\\ud83d"]') == [
        "a\ufffd",
        "\ufffdb",
        "\ufffd😀",
        "\\ud83d",
    ]
    assert read_json(rb'{"\ud800": {"x": ["\udfff", 1.5, null]}}') == {
        "\ufffd": {"x": ["\ufffd", 1.5, None]}
    }


@given(ANY_TEXT)
def test_every_text_can_be_written_and_a_good_one_stays(text):
    found = read_json(json.dumps(text))
    found.encode()
    by_hand = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    if not any("\ud800" <= c <= "\udbff" for c in text):  # else two halves may make a pair
        assert found == by_hand


def test_pairs_of_an_object_stay_pairs():
    pairs = well_formed(KeyValues([("a", "\ud800"), ("a", KeyValues([("b", 1)]))]))
    assert pairs == [("a", "\ufffd"), ("a", [("b", 1)])] and type(pairs[1][1]) is KeyValues


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 20_000, "9" * 5000], ids=range(5))
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        read_json(text)
