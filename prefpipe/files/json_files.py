"""JSON files: one value a line, or one value over many lines that holds the rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from prefpipe.files.lines import DataError, read_lines

_WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "train")
"""Keys under which a JSON object holds the rows of a whole file."""
_OF_A_ROW = ("prompt", "chosen", "rejected", "messages", "question", "instruction", "text", "id")
"""Keys of a row, which may have a list of its own under one of these names."""


def read_json(path: Path) -> Iterator[tuple[str, Any]]:
    """One value a line; or one value over many lines: an array of rows, an object that wraps one."""
    _, first = next(read_lines(path), (0, ""))
    rows = None
    if first.lstrip().startswith("["):
        rows = _rows_of_array(path)
    elif first.lstrip().startswith("{"):
        try:
            value = from_json(first)
            _refuse_columns(path, value)
            if _wraps(value):
                rows = _rows_of_objects(path)
        except DataError:
            raise
        except ValueError as error:
            # cut at the end of the line, so it goes on behind it
            rows = _rows_of_objects(path) if "EOF" in str(error) else None
    if rows is None:
        yield from _read_jsonl(path)
    for number, row in enumerate(rows or (), start=1):
        yield f"{path}:{number}", row


def _rows_of_array(path: Path) -> list[Any]:
    text = "\n".join(line for _, line in read_lines(path))
    try:
        return from_json(text)
    except ValueError as error:
        raise DataError(f"{path}: begins as a JSON array, and is none: {error}") from None


def _rows_of_objects(path: Path) -> list[Any] | None:
    """The objects, each over as many lines as it likes; the rows of a single one that wraps them.
    None: it is nothing of that kind."""
    text = "\n".join(line for _, line in read_lines(path))
    decode, at, rows = json.JSONDecoder().raw_decode, 0, list[Any]()
    while at < len(text):
        try:
            row, at = decode(text, at)
        except (ValueError, RecursionError):
            return None
        rows.append(row)
        at += len(text[at : at + 1 << 12]) - len(text[at : at + 1 << 12].lstrip())
    if len(rows) == 1 and isinstance(rows[0], dict):
        _refuse_columns(path, rows[0])
        inner = [
            rows[0][key]
            for key in _WRAPPERS
            if _wraps(rows[0]) and isinstance(rows[0].get(key), list)
        ]
        if len(inner) == 1 and all(isinstance(row, dict) for row in inner[0]):
            return inner[0]
    return rows


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    name = str(path)  # once, not for every line
    for number, line in read_lines(path):
        try:
            yield f"{name}:{number}", from_json(line)
        except ValueError as error:
            where = str(error).replace("at line 1 column", "at column")
            yield f"{name}:{number}", ValueError(f"not JSON: {where}")


def _wraps(value: Any) -> bool:
    """Whether the rows of a file may be a list in this object, which then is no row itself."""
    has_rows = any(isinstance(value.get(key), list) for key in _WRAPPERS)
    return has_rows and not any(key in value for key in _OF_A_ROW)


def _refuse_columns(path: Path, value: Any) -> None:
    """Raise DataError for an object of columns, {"prompt": {"0": ..., "1": ...}, ...}."""
    columns = value.values() if isinstance(value, dict) else ()
    if columns and all(isinstance(c, dict) and c and all(map(str.isdigit, c)) for c in columns):
        raise DataError(
            f"{path}: found an object of columns, as pandas writes it; "
            'to_json(path, orient="records", lines=True) writes rows'
        )
