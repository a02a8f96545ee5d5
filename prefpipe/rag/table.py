"""A user's table (CSV, Parquet or JSONL) as Entry rows, whatever its columns are called."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.rows import Entry, Reject


@dataclass(frozen=True)
class Columns:
    """Which column of a table is which; None: not read."""

    query: str | None = None
    code: str | None = None
    description: str | None = None
    keywords: str | None = None
    id: str | None = None
    """None: `id` where the table has it, else a hash of the row."""


def read_entries(
    path: Path, columns: Columns, limit: int | None = None
) -> Iterator[tuple[str, Entry | ValueError]]:
    """(place, row) for each row of a CSV, Parquet or JSONL table; a bad row as its ValueError.

    Raises DataError where there is no row, where a column is missing or stands there twice, where
    CSV quoting is broken, where the text is not UTF-8, and where two rows have one id.
    """
    places = files.Places()
    is_first = is_empty = True
    for place, record in files.Named(str(path)).records(limit):
        is_empty = False
        try:
            row = _to_entry(record, columns)
        except KeyError as missing:
            row = ValueError(
                f"column {missing} is missing; the columns are: {', '.join(map(str, record))}; name "
                "yours with --query-column and its like, and None for one that the table lacks"
            )
            if is_first:
                raise DataError(f"{place}: {row}") from None
        except ValueError as error:
            row = error
        if isinstance(row, Entry):
            is_first = False
            if (columns.id or "id") in record:
                places.check(row.id, place)
            elif first := places.seen_at(row.id, place):
                row = ValueError(f"the same row as {first}")
        yield place, row
    if is_empty:
        raise DataError(f"{path}: no row to read")


def read_queries(
    path: Path, columns: Columns, limit: int | None = None, *, strict: bool = False
) -> Iterator[Entry | Reject]:
    """The rows of a table that ask something; a Reject for each that does not or cannot be read.
    Raises DataError as read_entries does; strict: at a row that cannot be read, too."""
    for place, entry in read_entries(path, columns, limit):
        if isinstance(entry, ValueError):
            if strict:
                raise DataError(f"{place}: {entry}")
            yield Reject(id=place, reason="bad_row", detail=str(entry))
        elif not entry.query.strip():
            detail = f"{place}: {columns.query}: empty or NaN"
            yield Reject(id=entry.id, reason="empty_question", detail=detail)
        else:
            yield entry


def _to_entry(record: Any, columns: Columns) -> Entry:
    if isinstance(record, ValueError):  # a line that is no JSON, as read_records gives it
        raise record
    if not isinstance(record, Mapping):
        raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
    for name in vars(columns).values():
        if name and name not in record:
            raise KeyError(name)
    given = record.get(id_column := columns.id or "id")
    if given is None and id_column in record:
        raise ValueError(f"{id_column}: found null, wanted an id")
    if isinstance(given, bool | float) or (isinstance(given, str) and not given.strip()):
        raise ValueError(f"{id_column}: found {given!r}, wanted an id")
    fields = {
        "id": str(given) if given is not None else _hash(record),
        "query": _text(record, columns.query),
        "code": _text(record, columns.code),
        "description": _text(record, columns.description),
        "keywords": _keywords(record, columns.keywords),
    }
    return files.parse_row(fields, Entry)


def _hash(record: Mapping[str, Any]) -> str:
    """An id that the row's content alone gives: the same in any table, at any place."""
    content = json.dumps(record, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _text(record: Mapping[str, Any], column: str | None) -> str:
    """The column's text; null and NaN, also as pandas writes it out, are empty."""
    value = record.get(column) if column else None
    if value in (None, "nan", "NaN") or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column}: found {str(value)[:60]!r}, wanted text")
    return value


def _keywords(record: Mapping[str, Any], column: str | None) -> list[str]:
    """A list as it is, or a text with the keywords behind commas or semicolons."""
    value: Any = record.get(column) if column else None
    is_list = isinstance(value, list) and all(isinstance(word, str) for word in value)
    words = value if is_list else _text(record, column).replace(";", ",").split(",")
    return [word.strip() for word in words if word.strip()]
