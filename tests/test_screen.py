"""screen: what a person sees of texts that other people or models wrote."""

import re
import time
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from prefpipe import screen
from prefpipe.screen import progress, table_text, visible

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


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    """Not one for a run that ends before the first is due."""
    monkeypatch.setattr(screen, "LINE_SECONDS", 0.2)
    monkeypatch.setattr(screen, "SILENT_SECONDS", 3600)
    assert list(progress(range(5), 5, "quick")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    rows = progress(range(1, 9), 8, "slow")
    for row in rows:
        time.sleep(0.1)
        rows.note(f"${row}")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5
    assert all(re.fullmatch(r"slow: \d of 8 in 0:00:0\d, 0:00:0\d left; \$\d", x) for x in lines), (
        lines
    )
    list(progress(iter(range(3)), None, "unknown"))


def test_a_log_file_gets_a_line_while_nothing_moves(monkeypatch, capsys):
    monkeypatch.setattr(screen, "LINE_SECONDS", 0.1)
    monkeypatch.setattr(screen, "SILENT_SECONDS", 0.3)
    for _ in progress(range(2), 2, "steps"):
        time.sleep(0.8)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("steps: 0 of 2 in ") for line in lines) and len(lines) <= 6
