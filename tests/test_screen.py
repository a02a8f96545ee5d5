"""screen: what a person sees of texts that other people or models wrote."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from prefpipe.screen import table_text, visible

ORDERS = "\x1b[2J\x1b[31mHACKED\x1b]0;title\x07 \x9b8m\u202egnp\r"


def test_orders_to_the_terminal_are_blanks_in_texts_and_in_cells():
    assert visible("a\n\tb 好 \x1b[31m") == "a\n\tb 好  [31m"
    for shown in (visible(ORDERS), table_text(["name"], [[ORDERS]])):
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(shown) and "HACKED" in shown


@given(st.text())
def test_no_control_character_is_left_but_line_ends_and_tabs(text):
    shown = visible(text)
    assert len(shown) == len(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in shown)
