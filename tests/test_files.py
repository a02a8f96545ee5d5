"""files: what survives a kill, what is refused, and that nothing is lost on the way."""

import gc
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefpipe import files
from prefpipe.files import Aligned, DataError, Places, RowLog
from prefpipe.files.meta import read_meta
from prefpipe.rows import Item, JudgmentPair, Preference, Reject, Row
from prefpipe.settings import Stage
from tests.examples import ROOT, judgment, ledger, read_jsonl, write_jsonl

MARK = {"stage": "s", "setting n": "8", "input items.jsonl": "ab"}


class Settings(Stage, env_prefix="TEST_FILES_"):
    n: int = 8
    output: Path = Path("unused")


class Note(Row):
    text: str = ""


def notes(*ids: str) -> list[Note]:
    return [Note(id=id, text=f"text of {id}") for id in ids]


def copy_notes(s: Settings, source: Path, output: Path) -> files.Run:
    """A stage that copies rows; those whose text is empty are left out."""
    with s.open_run(inputs=[source], outputs={output: Note}) as run:
        if not run.finished:
            for row in run.read(source, Note):
                run.emit(row if row.text else Reject(id=row.id, reason="empty"))
    return run


# ---- the resume log


@settings(max_examples=60)
@given(
    st.lists(st.text(st.characters(codec="utf-8")), max_size=5, unique=True), st.integers(0, 400)
)
def test_a_kill_at_any_byte_loses_at_most_the_row_being_written(ids, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = RowLog(path, Note, MARK)
        for row in notes(*ids):
            log.add(row)
        log.close()
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])

        log = RowLog(path, Note, MARK)
        kept = len(log)
        assert [id in log for id in ids] == [True] * kept + [False] * (len(ids) - kept)
        assert kept >= whole[:cut].count(b"\n") - 1  # one line is the fingerprint
        for row in notes(*ids[kept:]):
            log.add(row)
        assert [log.get(row.key) for row in notes(*ids)] == notes(*ids)
        log.close()
        assert path.read_bytes() == whole


def test_a_log_of_other_settings_is_refused_and_the_difference_named(tmp_path):
    log = RowLog(tmp_path / "log", Note, MARK)
    log.add(Note(id="a"))
    log.close()
    other = MARK | {"setting n": "16", "input items.jsonl": "cd"}
    with pytest.raises(DataError) as error:
        RowLog(tmp_path / "log", Note, other)
    assert str(error.value) == (
        f"{tmp_path}/log:1: a stopped run with other settings or input "
        "(setting n 8 -> 16; input items.jsonl); --overwrite starts anew"
    )


def test_a_log_without_a_row_keeps_nobody_from_other_settings(tmp_path):
    RowLog(tmp_path / "log", Note, MARK).close()
    other = MARK | {"setting n": "16"}
    log = RowLog(tmp_path / "log", Note, other)
    log.add(Note(id="a"))
    log.close()
    assert len(RowLog(tmp_path / "log", Note, other)) == 1


def test_a_wrong_line_before_the_last_is_an_error_with_its_number(tmp_path):
    log = RowLog(tmp_path / "log", Note, MARK)
    for row in notes("a", "b"):
        log.add(row)
    log.close()
    lines = (tmp_path / "log").read_text().split("\n")
    lines[1] = "not json"
    (tmp_path / "log").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"log:2: the line: found 'not json"):
        RowLog(tmp_path / "log", Note, MARK)


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path):
    (tmp_path / "log").write_text("my notes\nof today\n")
    with pytest.raises(DataError, match="no resume log"):
        RowLog(tmp_path / "log", Note, MARK)
    assert (tmp_path / "log").read_text() == "my notes\nof today\n"
    (tmp_path / "log").write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match="log:1: no resume log"):
        RowLog(tmp_path / "log", Note, MARK)


def test_a_row_is_logged_once(tmp_path):
    log = RowLog(tmp_path / "log", Note, MARK)
    log.add(Note(id="a"))
    with pytest.raises(ValueError, match="'a' is done already"):
        log.add(Note(id="a"))


def _open_log(path: Path, answers: "multiprocessing.Queue[str]") -> None:
    try:
        RowLog(path, Note, MARK)
        answers.put("opened")
    except SystemExit as end:
        answers.put(str(end))


def test_the_second_of_two_processes_on_one_log_is_refused(tmp_path):
    path = tmp_path / "log"
    log = RowLog(path, Note, MARK)
    answers: multiprocessing.Queue[str] = multiprocessing.get_context("fork").Queue()
    for expected in (f"{path}: another run is writing it; wait for its end", "opened"):
        process = multiprocessing.get_context("fork").Process(
            target=_open_log, args=(path, answers)
        )
        process.start()
        assert answers.get(timeout=60) == expected
        process.join()
        log.close()


# ---- a run: whole or absent


def test_an_output_is_whole_or_absent(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [row.model_dump() for row in notes("a", "b")])
    out = tmp_path / "out.jsonl"
    with (
        pytest.raises(RuntimeError),
        Settings().open_run(inputs=[source], outputs={out: Note}) as run,
    ):
        for row in run.read(source, Note):
            run.emit(row)
            raise RuntimeError("killed")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]

    copy_notes(Settings(), source, out)
    assert read_jsonl(out) == read_jsonl(source)
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.jsonl", "out.jsonl", "out.rejects.jsonl", "out.meta.json"
    }  # fmt: skip


def test_a_kill_between_the_renames_and_the_meta_file_is_no_finished_run(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", [row.model_dump() for row in notes("a", "b")])
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(
        "prefpipe.files.run.write_meta", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        copy_notes(Settings(), source, out)
    assert not (tmp_path / "out.meta.json").exists()
    monkeypatch.undo()
    assert not copy_notes(Settings(), source, out).finished
    assert ledger(tmp_path / "out.meta.json")["kept"] == 2


def test_a_killed_overwrite_leaves_the_output_as_it_was_but_no_finished_run(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [row.model_dump() for row in notes("a", "b")])
    out = tmp_path / "out.jsonl"
    copy_notes(Settings(), source, out)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    anew = Settings(overwrite=True)
    with (
        pytest.raises(RuntimeError),
        anew.open_run(inputs=[source], outputs={out: Note}) as run,
    ):
        next(iter(run.read(source, Note)))
        raise RuntimeError("killed")
    del before[tmp_path / "out.meta.json"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not copy_notes(Settings(), source, out).finished


def test_the_second_run_says_finished_and_rewrites_nothing(tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", [row.model_dump() for row in notes("a", "b")])
    out = tmp_path / "out.jsonl"
    copy_notes(Settings(), source, out)
    first = capsys.readouterr().out
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert copy_notes(Settings(), source, out).finished
    assert {
        path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()
    } == before
    assert capsys.readouterr().out == (
        f"test_files: finished before: {first.strip()}; --overwrite starts anew\n"
    )
    out.unlink()
    assert not copy_notes(Settings(), source, out).finished and out.exists()


def test_changed_settings_or_input_are_refused_until_overwrite(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [row.model_dump() for row in notes("a", "b")])
    out = tmp_path / "out.jsonl"
    copy_notes(Settings(), source, out)
    with pytest.raises(SystemExit, match=r"out\.meta\.json: made with other .*setting n 8 -> 9\)"):
        copy_notes(Settings(n=9), source, out)
    with pytest.raises(SystemExit, match=r"setting limit null -> 1"):
        copy_notes(Settings(limit=1), source, out)
    copy_notes(Settings(strict=True), source, out)  # changes no row
    write_jsonl(source, [row.model_dump() for row in notes("c")])
    with pytest.raises(SystemExit, match=r"input in\.jsonl\)"):
        copy_notes(Settings(), source, out)
    copy_notes(Settings(overwrite=True), source, out)
    assert [row["id"] for row in read_jsonl(out)] == ["c"]


def test_two_inputs_of_one_name_both_count(tmp_path):
    for folder in "ab":
        write_jsonl(tmp_path / folder / "train.jsonl", [{"id": folder}])
    inputs = [tmp_path / "a/train.jsonl", tmp_path / "b/train.jsonl"]
    before = files.fingerprint("s", {}, inputs)
    write_jsonl(inputs[0], [{"id": "c"}])
    assert files.difference(before, files.fingerprint("s", {}, inputs)) == "input train.jsonl"
    write_jsonl(inputs[0], [{"id": "a"}])
    write_jsonl(inputs[1], [{"id": "c"}])
    assert files.difference(before, files.fingerprint("s", {}, inputs)) == "input train.jsonl 2"


def test_an_output_that_is_the_input_is_refused(tmp_path):
    source = write_jsonl(tmp_path / "train.jsonl", [{"id": "a", "text": "t"}])
    for given_as in (source, tmp_path):  # a file, and the folder it is in
        with pytest.raises(DataError, match=r"train\.jsonl: is the input; choose another output"):
            Settings().open_run(inputs=[given_as], outputs={source: Note})
    assert source.read_text() == '{"id": "a", "text": "t"}\n'


def test_the_second_of_two_runs_at_once_is_refused(tmp_path):
    """Also where a stage keeps no log: two writers of one file would mix their rows."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    out = tmp_path / "out.jsonl"
    with Settings().open_run(inputs=[source], outputs={out: Note}) as run:
        for row in run.read(source, Note):
            run.emit(row)
        with pytest.raises(SystemExit, match="another run is writing it"):
            copy_notes(Settings(), source, out)
    assert read_jsonl(out) == read_jsonl(source)


def test_overwrite_deletes_the_log_of_its_own_output_and_no_other(tmp_path):
    """An output x.judge.jsonl beside x.jsonl, and a name that a glob would read as a pattern."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    for name in ("x", "x.judge", "x[1]"):
        with (
            pytest.raises(KeyboardInterrupt),
            Settings().open_run(inputs=[source], outputs={tmp_path / f"{name}.jsonl": Note}) as run,
        ):
            run.open_log(Note).add(Note(id="a", text=name))
            raise KeyboardInterrupt
    for name, left in (("x", 0), ("x.judge", 1), ("x[1]", 0)):
        settings = Settings(overwrite=name != "x.judge")
        with (
            pytest.raises(KeyboardInterrupt),
            settings.open_run(inputs=[source], outputs={tmp_path / f"{name}.jsonl": Note}) as run,
        ):
            assert len(run.open_log(Note)) == left
            raise KeyboardInterrupt


def test_a_refused_run_leaves_no_empty_folder(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    out = tmp_path / "models/judge/out.jsonl"
    with pytest.raises(SystemExit), Settings().open_run(inputs=[source], outputs={out: Note}):
        raise SystemExit("the settings do not fit together")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("name", [".out.partial.jsonl", ".out.tries.partial.jsonl"])
def test_a_log_under_an_older_versions_name_is_refused_not_passed_over(tmp_path, name):
    """What it holds is paid for: it must not be asked again without a word."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    (tmp_path / name).write_text("{}\n")
    with (
        pytest.raises(DataError, match="another version of prefpipe"),
        Settings().open_run(inputs=[source], outputs={tmp_path / "out.jsonl": Note}) as run,
    ):
        run.open_log(Note, "tries")


def test_a_finished_run_takes_a_log_away_that_a_kill_left_behind(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    out = tmp_path / "out.jsonl"
    copy_notes(Settings(), source, out)
    (tmp_path / ".out.partial.jsonl").write_text("{}\n")
    assert copy_notes(Settings(), source, out).finished
    assert not list(tmp_path.glob(".*"))


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".out.tmp.jsonl").symlink_to(tmp_path / "elsewhere")
    copy_notes(Settings(), source, tmp_path / "out.jsonl")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert read_jsonl(tmp_path / "out.jsonl") == read_jsonl(source)


def test_a_log_of_other_row_types_is_refused_as_another_versions(tmp_path):
    path = tmp_path / ".log.jsonl"
    log = RowLog(path, Note, {"stage": "s"})
    log.add(Note(id="a", text="t"))
    log.close()
    with pytest.raises(DataError, match="another version of prefpipe"):
        RowLog(path, Reject, {"stage": "s"})


# ---- a run: the ledger


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["row", "empty", "broken"]), min_size=1, max_size=12))
def test_the_ledger_adds_up(kinds):
    lines = {
        "row": '{"id": "%d", "text": "t"}\n',
        "empty": '{"id": "%d", "text": ""}\n',
        "broken": '{"id": "%d", "txt": ""}\n',
    }
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_text("".join(lines[kind] % k for k, kind in enumerate(kinds)))
        if "row" not in kinds:
            with pytest.raises(SystemExit, match=f"not one of {len(kinds)} rows could be used"):
                copy_notes(Settings(), source, out)
            assert not out.exists() and not (Path(folder) / "out.meta.json").exists()
        else:
            copy_notes(Settings(), source, out)
            counts = ledger(Path(folder) / "out.meta.json")
            assert counts["read"] == len(kinds)
            assert counts["kept"] == kinds.count("row") == len(read_jsonl(out))
            reasons = {"empty": kinds.count("empty"), "bad_row": kinds.count("broken")}
            assert counts["left_out"] == {k: n for k, n in reasons.items() if n}
        rejects = read_jsonl(Path(folder) / "out.rejects.jsonl")
        assert len(rejects) == len(kinds) - kinds.count("row")


def test_a_lost_row_ends_the_run_without_output(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [row.model_dump() for row in notes("a", "b")])
    out = tmp_path / "out.jsonl"
    with (
        pytest.raises(AssertionError, match="1 of 2 rows unaccounted for"),
        Settings().open_run(inputs=[source], outputs={out: Note}) as run,
    ):
        for row in run.read(source, Note):
            if row.id == "a":
                run.emit(row)
    assert not out.exists()


def test_a_reject_names_path_line_field_and_what_was_found(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "text": "t"}\n\n{"id": "b", "text": 7}\n')
    copy_notes(Settings(), source, tmp_path / "out.jsonl")
    (reject,) = read_jsonl(tmp_path / "out.rejects.jsonl")
    assert reject == {
        "id": f"{source}:3",
        "reason": "bad_row",
        "detail": "text: found 7, wanted a Note row: Input should be a valid string",
    }


def test_strict_stops_at_the_first_bad_row_also_in_the_first_pass(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "text": "t"}\n{"id": 3, "text": "t"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: id: found 3, wanted a Note row"):
        copy_notes(Settings(strict=True), source, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out*"))
    run = Settings(strict=True).open_run(inputs=[source], outputs={tmp_path / "o.jsonl": Note})
    with pytest.raises(DataError, match=r"in\.jsonl:2: "):
        list(run.peek(source, Note))


def test_duplicate_ids_are_an_error_with_both_places(tmp_path):
    """S11. Of a folder, across its files; and before any work, in the first pass."""
    write_jsonl(tmp_path / "in/train.jsonl", [row.model_dump() for row in notes("a", "b")])
    write_jsonl(tmp_path / "in/validation.jsonl", [row.model_dump() for row in notes("c", "b")])
    run = Settings().open_run(inputs=[], outputs={tmp_path / "out.jsonl": Note})
    for pass_over in (run.peek, run.read):
        with pytest.raises(DataError) as error:
            list(pass_over(tmp_path / "in", Note))
        assert str(error.value) == (
            f"{tmp_path}/in/validation.jsonl:2: id 'b' stands at {tmp_path}/in/train.jsonl:2 "
            "already; ids must be unique"
        )


def test_an_empty_input_is_an_error(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("")
    with pytest.raises(DataError, match=r"in\.jsonl: no row to read"):
        copy_notes(Settings(), source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_limit_counts_the_rows_of_each_file(tmp_path):
    for split in files.SPLITS:
        rows = [Note(id=f"{split}{k}", text="t").model_dump() for k in range(4)]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    run = Settings(limit=2).open_run(inputs=[], outputs={tmp_path / "out.jsonl": Note})
    ids = [row.id for row in run.read(tmp_path, Note)]
    assert ids == ["train0", "train1", "validation0", "validation1"] and run.read_count == 4


def test_the_meta_file_says_what_was_done_and_with_what(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    copy_notes(Settings(n=3), source, tmp_path / "out.jsonl")
    meta = json.loads((tmp_path / "out.meta.json").read_text())
    assert meta["stage"] == "test_files" and meta["settings"]["n"] == 3
    assert meta["counts"]["written"] == {"out.jsonl": 1}
    assert meta["fingerprint"]["input in.jsonl"] == files.hash_path(source)
    assert {"python", "torch", "transformers", "trl"} <= set(meta["libraries"])


# ---- reading


def records(path: Path) -> list:
    return [record for _, record in files.read_records(path)]


def test_every_format_gives_the_same_records(tmp_path):
    """E8, S11: ids and texts are what they are; no reader guesses a type."""
    import datasets

    ids = ["00123", "12e45", "a_b", "1.0", "True", "NaN", "null", "Ünïcode 中"]
    rows = [{"id": id, "text": 'a "quoted",\nmany\u2028lined text \U0001f600'} for id in ids]
    write_jsonl(tmp_path / "x.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    quoted = [[f'"{v}"' for v in (r["id"], r["text"].replace('"', '""'))] for r in rows]
    lines = ["id,text\r\n", *(",".join(fields) + "\r\n" for fields in quoted)]
    (tmp_path / "x.csv").write_bytes("".join(lines).encode("utf-8-sig"))
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("x.jsonl", "x.parquet", "x.csv", "saved"):
        named = files.Named(str(tmp_path / name))
        assert [record for _, record in named.records()] == rows, name
        assert len(list(named.records(3))) == 3


def test_a_jsonl_file_may_have_a_bom_blank_lines_crlf_and_no_last_newline(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes('\ufeff{"id": "a"}\r\n\n  \n{"id": "b\u2028\u0085c"}'.encode())
    assert list(files.read_records(path)) == [
        (f"{path}:1", {"id": "a"}),
        (f"{path}:4", {"id": "b\u2028\u0085c"}),  # these end no line
    ]


def test_a_line_of_a_few_hundred_thousand_characters_is_a_row(tmp_path):
    long = "长" * 300_000
    write_jsonl(tmp_path / "x.jsonl", [{"id": "a", "text": long}])
    assert [row.text for row in files.read_rows(tmp_path / "x.jsonl", Note)] == [long]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "not JSON: EOF while parsing an object"),
        ("nothing", "not JSON: expected ident at column 2"),
        ('{"a": "\\ud800"}', "not JSON: unexpected end of hex escape"),
        ("[" * 100_000, "not JSON: recursion limit exceeded"),
    ],
)
def test_a_line_that_is_no_json_is_an_error_of_its_own(tmp_path, line, error):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}\n' + line + '\n{"id": "b"}\n')
    first, bad, last = records(path)
    assert (first, last) == ({"id": "a"}, {"id": "b"})
    assert isinstance(bad, ValueError) and str(bad).startswith(error)


def test_both_halves_of_a_surrogate_pair_are_one_character(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "\\ud83d\\ude00"}\n')
    assert records(tmp_path / "x.jsonl") == [{"id": "😀"}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"id\n" * 5000 + "ä\n".encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}:5001: byte 0 is not UTF-8; save"):
        records(tmp_path / name)


def test_a_csv_row_knows_its_line_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('id,text\na,"two\n\nlines"\n\nb\nc,1,2\nd,last\n')
    rows = list(files.read_records(path))
    assert [place.rpartition(":")[2] for place, _ in rows] == ["2", "6", "7", "8"]
    assert [str(record) for _, record in rows[1:3]] == [
        "too few fields: text missing",
        "1 fields too many",
    ]
    assert rows[0][1] == {"id": "a", "text": "two\n\nlines"}


def test_a_csv_column_that_stands_there_twice_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_text("id,text,text\na,b,c\n")
    with pytest.raises(DataError, match=r"x\.csv:1: column 'text' stands there twice"):
        records(tmp_path / "x.csv")


def test_broken_quoting_in_a_csv_file_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_text('id,text\na,"b"c\nd,e\n')
    with pytest.raises(DataError, match=r"x\.csv:2: broken CSV"):
        records(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text('id,text\na,b\nc,"never closed\nd,e\n')
    with pytest.raises(DataError, match=r"x\.csv:3: broken CSV from here on"):
        records(tmp_path / "x.csv")


@pytest.mark.parametrize("size", [0, 3, 60, -20])
def test_a_broken_parquet_file_is_a_sentence(tmp_path, size):
    path = tmp_path / "x.parquet"
    table = pyarrow.Table.from_pylist([{"id": str(k)} for k in range(100)])
    pyarrow.parquet.write_table(table, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"x\.parquet: no Parquet file, or a broken one"):
        records(path)


def test_a_parquet_file_with_damaged_pages_is_a_sentence(tmp_path):
    path = tmp_path / "x.parquet"
    table = pyarrow.Table.from_pylist([{"id": f"{k}" * 9} for k in range(1000)])
    pyarrow.parquet.write_table(table, path)
    content = path.read_bytes()
    path.write_bytes(content[:10] + b"\xff" * 200 + content[210:])
    with pytest.raises(DataError, match=r"x\.parquet: no Parquet file, or a broken one"):
        records(path)


def test_what_is_not_there_or_of_another_kind_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        records(tmp_path / "none.jsonl")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(
        DataError, match=r"x\.txt: found ending '\.txt', wanted \.jsonl, .*also with \.gz"
    ):
        records(tmp_path / "x.txt")
    with pytest.raises(DataError, match="the folder holds no train or validation"):
        files.data_files(tmp_path)


def test_rows_survive_parquet_and_jsonl_in_both_directions(tmp_path):
    turns = [{"role": "user", "content": "a\u2028\U0001f600"}]
    rows = [
        JudgmentPair.model_validate(
            {
                "id": id, "item_id": id, "split": "train", "pair_type": "hint", "better": 2,
                "prompt": turns, "chosen": turns, "rejected": turns,
                "chosen_sample": 0, "rejected_sample": 1,
            }
        )
        for id in ("00123", "12e45", "1.0")
    ]  # fmt: skip
    for ending in (".parquet", ".jsonl"):
        path = tmp_path / f"x{ending}"
        files.write_rows(path, rows, JudgmentPair)
        assert list(files.read_rows(path, JudgmentPair)) == rows
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert loaded["train"]["id"] == ["00123", "12e45", "1.0"]


def test_parquet_columns_have_the_types_of_the_row_class_also_when_all_are_null(tmp_path):
    class Wide(Row):
        number: float | None
        label: Literal[1, 2] | None
        is_it: bool | None

    row = Wide.model_validate({"id": "a", "number": None, "label": None, "is_it": None})
    files.write_rows(tmp_path / "x.parquet", [row], Wide)
    schema = pyarrow.parquet.read_schema(tmp_path / "x.parquet")
    assert [str(kind) for kind in schema.types] == ["string", "double", "int64", "bool"]
    assert list(files.read_rows(tmp_path / "x.parquet", Wide)) == [row]


def test_a_preference_takes_no_negative_or_infinite_margin():
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="margin: found"):
            files.parse_row(
                {"id": "a", "prompt": "p", "chosen": "c", "rejected": "r", "margin": margin},
                Preference,
            )


# ---- rows of several files, side by side


def test_rows_are_joined_by_id_and_a_missing_one_shifts_nothing(tmp_path):
    """S1, J8: the next item gets its own rows, not those of the missing one."""
    rows = [judgment(id, k, f"{id}{k}") for id in ("a", "c", "d") for k in range(2)]
    files.write_rows(tmp_path / "x.jsonl", rows, type(rows[0]))
    reader = Aligned(tmp_path / "x.jsonl", type(rows[0]))
    found = {id: [row.text for row in reader.rows_of(id)] for id in ("a", "b", "c", "d", "e")}
    assert found == {"a": ["a0", "a1"], "b": [], "c": ["c0", "c1"], "d": ["d0", "d1"], "e": []}
    reader.check_used_up()


def test_rows_of_no_item_and_rows_out_of_order_are_an_error(tmp_path):
    rows = [judgment(id) for id in ("a", "b", "c")]
    files.write_rows(tmp_path / "x.jsonl", rows, type(rows[0]))
    for ids, what in [("ac", "'b' is no item's id"), ("bac", "'b' stands twice or out of")]:
        reader = Aligned(tmp_path / "x.jsonl", type(rows[0]))
        for id in ids:
            reader.rows_of(id)
        with pytest.raises(DataError, match=rf"x\.jsonl: id {what}"):
            reader.check_used_up()


def test_with_a_limit_the_rows_of_other_items_are_passed_over(tmp_path):
    rows = [judgment(id) for id in ("t0", "t1", "t2", "v0", "v1")]
    files.write_rows(tmp_path / "x.jsonl", rows, type(rows[0]))
    reader = Aligned(tmp_path / "x.jsonl", type(rows[0]), {"t0", "v0"})
    assert [len(reader.rows_of(id)) for id in ("t0", "v0")] == [1, 1]
    reader.check_used_up()


def test_places_tell_the_first_of_two(tmp_path):
    places = Places()
    assert places.seen_at("a", "x/train.jsonl:3") is None
    assert places.seen_at("b", "x/validation.jsonl:3") is None
    assert places.seen_at("a", "x/validation.jsonl:900000") == "x/train.jsonl:3"


def test_places_in_more_files_than_a_thousand(tmp_path):
    places = Places()
    for number in range(3000):
        assert places.seen_at(f"id {number}", f"part-{number}.jsonl:{number % 7 + 1}") is None
    assert places.seen_at("id 1", "more.jsonl:1") == "part-1.jsonl:2"
    assert places.seen_at("id 2999", "more.jsonl:2") == "part-2999.jsonl:4"


def test_places_of_many_ids_are_those_of_a_plain_dict(monkeypatch):
    """Most of them are in the sorted arrays by then, some in the dict of the recent ones."""
    monkeypatch.setattr(Places, "_RECENT", 7)
    rng, places, first = random.Random(0), Places(), {}
    for line in range(1, 400):
        id, place = f"id {rng.randrange(150)}", f"{rng.choice('xy')}.jsonl:{line}"
        assert places.seen_at(id, place) == first.get(id)
        first.setdefault(id, place)
    assert len(places._hashes) > 100 and places._recent


# ---- memory


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    """200,000 rows through a run, the ids' check included: under 300 MB at 1,000,000."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from prefpipe import files
from prefpipe.rows import Reject
from prefpipe.settings import Stage
class Settings(Stage, env_prefix="MEMORY_"):
    pass
Settings.stage_name = classmethod(lambda cls: "memory")
source, output = Path("in.jsonl"), Path("out.jsonl")
with source.open("w") as file:
    for k in range(200_000):
        file.write('{{"id":"row %d","reason":"r","detail":"%s"}}\\n' % (k, "x" * 200))
def most_kb():  # ru_maxrss would count the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
start = most_kb()
with Settings().open_run(inputs=[source], outputs={{output: Reject}}) as run:
    for row in run.read(source, Reject):
        run.keep((output, row))
print(start, most_kb())
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    start, end = map(int, result.stdout.split("\n")[-2].split())  # kB
    assert (end - start) * 5 + start < 300_000, (start, end)


def test_a_log_holds_offsets_and_no_rows(tmp_path):
    log = RowLog(tmp_path / "log", Note, MARK)
    gc.collect()
    tracemalloc.start()
    for k in range(2000):
        log.add(Note(id=str(k), text="x" * 1000))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    log.close()
    assert used < 2000 * 250, used  # bytes; the texts alone are 2,000,000


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"closing_line": 1}',
        "[" * 9999,
        '{"closing_line": "", "fingerprint": {"stage": ["x"]}}',
        '{"closing_line": "", "fingerprint": 1}',
    ],
)
def test_a_damaged_meta_file_is_a_sentence_until_overwritten(tmp_path, damage):
    facts = files.StageFacts("s", {}, {}, limit=None, overwrite=False, strict=False)
    (tmp_path / "x.meta.json").write_text(damage)
    with pytest.raises(
        DataError, match=r"x\.meta\.json: is damaged, .*--overwrite makes them anew"
    ):
        files.Run(facts, inputs=[], outputs={tmp_path / "x.jsonl": Item})
    again = replace(facts, overwrite=True)
    assert not files.Run(again, inputs=[], outputs={tmp_path / "x.jsonl": Item}).finished


def test_an_output_without_a_name_is_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"output: found '\.', wanted the name of a file"):
        Settings().open_run(inputs=[tmp_path / "in.jsonl"], outputs={Path(""): Note})


def test_a_folder_in_the_place_of_a_meta_file_is_none(tmp_path):
    """As a damaged model's folder may have it: what reads it for a card goes on without."""
    (tmp_path / "x.meta.json").mkdir()
    assert read_meta(tmp_path / "x.meta.json") is None


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "x.md", "half of a pair: \ud800")
    assert not list(tmp_path.iterdir())
