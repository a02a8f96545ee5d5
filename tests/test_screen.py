"""screen: what a person sees of texts that other people or models wrote."""

import os
import re
import subprocess
import sys
import threading
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe import screen
from prefpipe.screen import progress, short_sentence, table_text, visible, working
from tests.examples import ROOT

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


def test_a_step_of_unknown_length_says_how_long_it_takes_and_what_it_has_read(monkeypatch, capsys):
    monkeypatch.setattr(screen, "LINE_SECONDS", 0.1)
    monkeypatch.setattr(screen, "SILENT_SECONDS", 0.3)
    read = 0
    with working("stage", lambda: read):
        time.sleep(0.15)
        read = 1200
        time.sleep(0.3)  # it has moved: a line at the next moment, and none for a while
        with working("loading a model"):
            time.sleep(0.6)
        read = 1300
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "stage: 1,200 rows in 0:00:00"
    assert set(lines[1:-1]) <= {
        "loading a model: 0:00:00 so far",
        "loading a model: 0:00:01 so far",
    }
    assert 1 <= len(lines[1:-1]) <= 2 and lines[-1] == "stage: 1,300 rows in 0:00:01"
    time.sleep(0.15)
    assert "_LogLines" not in str([vars(thread) for thread in threading.enumerate()])


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals on this system")
def test_on_a_terminal_bars_stand_inside_others_and_output_to_a_file_stays_there(tmp_path):
    code = (
        "import time\nfrom prefpipe.screen import progress, working\n"
        "with working('the stage', lambda: 1234):\n"
        "    for k in progress(range(3), 3, 'inside'):\n        print('row', k)\n        time.sleep(0.2)\n"
    )
    screen_end, terminal = os.openpty()
    with open(tmp_path / "out", "w") as out:
        made = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=out,
            stderr=terminal,
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm"},
        )
        shown = b""
        os.close(terminal)
        while part := read_or_nothing(screen_end):
            shown += part
    assert made.wait() == 0 and (tmp_path / "out").read_text() == "row 0\nrow 1\nrow 2\n"
    assert (
        b"the stage" in shown and b"1,234 rows" in shown and b"inside" in shown and b"3/3" in shown
    )
    os.close(screen_end)


def read_or_nothing(handle: int) -> bytes:
    try:
        return os.read(handle, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_sentence_stays_as_it_is_unless_it_is_too_long():
    said = "stage: data/x.jsonl:2: found 3, wanted a row; run it again"
    assert short_sentence(said) == said
    path = "/".join(["folder"] * 20)  # a path of 139 characters is shown whole
    assert short_sentence(f"{path}/x.jsonl: no row") == f"{path}/x.jsonl: no row"


def test_of_a_sentence_that_is_too_long_place_and_way_out_are_left():
    long = short_sentence(f"stage: {'9' * 5000}: no number")
    assert long.startswith("stage: 999") and long.endswith("999: no number") and len(long) < 180
    names = ", ".join(f"c{k}" for k in range(99_999))
    columns = short_sentence(f"x.csv:2: no column q; there are: {names}; name yours with --query")
    assert columns.startswith("x.csv:2: no column q; there are: c0, c1")
    assert columns.endswith("name yours with --query") and len(columns) <= 300
