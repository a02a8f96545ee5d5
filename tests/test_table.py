"""A user's table as rows: columns, ids, empty values, and what is wrong with it by line."""

import json
from typing import Any

import pandas as pd
import pytest

from prefpipe.files import DataError
from prefpipe.rag.table import Columns, read_entries, read_queries
from prefpipe.rows import Entry, Reject
from tests.rag_helpers import ROWS, write_table

COLUMNS = Columns(query="query", code="code", description="description")


def read(path, columns=COLUMNS) -> list[Any]:
    return [row for _, row in read_entries(path, columns)]


def test_csv_parquet_and_jsonl_give_the_same_rows(tmp_path):
    path = write_table(tmp_path / "t.csv")
    table = pd.read_csv(path, dtype=str)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    rows = read(path)
    assert rows == read(tmp_path / "t.parquet") == read(tmp_path / "t.jsonl")
    assert [(r.id, r.query, r.code, r.description) for r in rows] == ROWS


def test_columns_go_by_the_names_in_the_settings(tmp_path):
    rows = [("7", "q", "a; b ,c")]
    path = write_table(tmp_path / "t.csv", rows, ("nr", "Frage", "Wörter"))
    (row,) = read(path, Columns(id="nr", query="Frage", keywords="Wörter"))
    assert (row.id, row.query, row.keywords) == ("7", "q", ["a", "b", "c"])


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = write_table(tmp_path / "t.csv", [("1", "x")], ("id", "question"))
    with pytest.raises(DataError, match=r"t\.csv:2: column 'query' is missing.*id, question"):
        read(path)


@pytest.mark.parametrize("text", ["", "\n\n", "id,query,code,description\n"])
def test_a_table_without_a_row_is_named(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"t\.csv: no row to read"):
        read(tmp_path / "t.csv")


def test_duplicate_ids_stop_with_both_lines(tmp_path):
    path = write_table(tmp_path / "t.csv", [ROWS[0], ROWS[1], ROWS[0]])
    with pytest.raises(DataError, match=r"t\.csv:6.*'add'.*t\.csv:2"):
        read(path)


def test_rows_without_an_id_get_one_of_their_content_and_copies_are_left_out(tmp_path):
    rows = [r[1:] for r in (ROWS[0], ROWS[1], ROWS[0])]
    entries = read(write_table(tmp_path / "t.csv", rows, ("query", "code", "description")))
    assert entries[0].id != entries[1].id
    assert len(entries[0].id) == 16
    assert isinstance(entries[2], ValueError)
    again = read(write_table(tmp_path / "u.csv", rows[::-1], ("query", "code", "description")))
    assert again[0].id == entries[0].id  # whatever stands around it


def test_null_and_nan_are_empty_and_other_types_are_named(tmp_path):
    lines = [
        {"id": "a", "query": None, "code": "x", "description": float("nan")},
        {"id": "b", "query": "nan", "code": 3, "description": ""},
        {"id": "c", "query": "q", "code": "x"},
        {"id": None, "query": "q", "code": "x", "description": ""},
        ["no", "object"],
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    first, *bad = read(path)
    assert (first.query, first.description) == ("", "")
    messages = [str(error) for error in bad]
    assert "code: found '3', wanted text" in messages[0]
    assert "id: found null" in messages[2]
    assert "found list" in messages[3]
    assert "not JSON" in messages[4]


def test_broken_quoting_and_a_wrong_encoding_name_the_line(tmp_path):
    path = write_table(tmp_path / "t.csv")
    path.write_text(path.read_text() + 'x,"never closed\n')
    with pytest.raises(DataError, match=r"t\.csv:\d+: broken CSV"):
        read(path)
    path.write_bytes("id,query,code,description\n1,Größe,x,y\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv:2: byte 4 is not UTF-8"):
        read(path)


def test_a_query_that_asks_nothing_and_a_row_that_cannot_be_read_are_rejects_in_their_place(
    tmp_path,
):
    lines = ['{"id": "a", "query": "q"}', "no json", '{"id": "b", "query": " "}']
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines) + "\n")
    first, second, third = read_queries(path, Columns(query="query"))
    assert isinstance(first, Entry) and first.query == "q"
    assert isinstance(second, Reject) and (second.id, second.reason) == (f"{path}:2", "bad_row")
    assert isinstance(third, Reject) and (third.id, third.reason) == ("b", "empty_question")
    assert third.detail == f"{path}:3: query: empty or NaN"
    with pytest.raises(DataError, match=r"t\.jsonl:2: not JSON"):
        list(read_queries(path, Columns(query="query"), strict=True))
