"""Rows in: of JSON, Parquet, CSV and Arrow files, streamed, each row with its place."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from prefpipe.files.columnar import read_arrow, read_csv, read_parquet
from prefpipe.files.json_files import read_json
from prefpipe.files.lines import OPENERS, DataError, read_lines
from prefpipe.rows import Row

R = TypeVar("R", bound=Row)
SPLITS = ("train", "validation")
JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
_ID = '{"id":"'
"""How a line that a stage wrote begins."""
ENDINGS = (*JSON_ENDINGS, ".csv", ".tsv", ".parquet", ".arrow")


def data_files(path: Path) -> list[Path]:
    """The file itself; of a folder, its train and validation files (JSONL or Parquet), in order.

    Raises DataError where there is neither.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path}: no such file; run the stage that writes it, or set the input")
    if files := split_files(path):
        return files
    raise DataError(f"{path}: the folder holds no train or validation .jsonl or .parquet")


def split_files(folder: Path) -> list[Path]:
    """The train and validation files in it, in this order."""
    paths = [folder / (split + ending) for split in SPLITS for ending in (".jsonl", ".parquet")]
    return [path for path in paths if path.is_file()]


def read_records(path: Path, limit: int | None = None) -> Iterator[tuple[str, Any]]:
    """(place, record) for each row of a file of one of ENDINGS, compressed or not.

    place is `path:line` (arrays, Parquet and Arrow: `path:row`, 1-based). The record is whatever
    the row holds: a JSON line that is no JSON comes as its ValueError, so that the caller may go on.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in OPENERS else ""
    ending = suffixes[-1] if suffixes else ""
    readers = {".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet, ".arrow": read_arrow}
    readers |= dict.fromkeys(JSON_ENDINGS, read_json)
    if ending not in readers or (packed and ending in (".parquet", ".arrow")):
        raise DataError(
            f"{path}: found ending {''.join(suffixes[-1:]) + packed!r}, wanted {', '.join(ENDINGS)}; "
            f"text also with {', '.join(OPENERS)}"
        )
    return islice(readers[ending](path), limit)


def parse_row(record: Any, row_type: type[R]) -> R:
    """The record (a dict, or a JSON line) as a row. Raises ValueError: `field: found X, wanted Y`."""
    try:
        if isinstance(record, str):
            return row_type.model_validate_json(record)
        return row_type.model_validate(record)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "the line"
        found = repr(problem["input"])
        found = found if len(found) <= 60 else found[:57] + "..."
        message = f"{field}: found {found}, wanted a {row_type.__name__} row: {problem['msg']}"
        raise ValueError(message) from None


def read_rows(
    path: Path,
    row_type: type[R],
    limit: int | None = None,
    owns: Callable[[str], bool] | None = None,
) -> Iterator[R]:
    """Each row of a file, or of a folder's train and validation files; streams. owns: of an id,
    whether its rows are wanted; None: all are.

    Raises DataError, naming path, line and field, at the first line that is no row_type.
    """
    for place, row in typed_rows(path, row_type, limit, owns):
        if isinstance(row, ValueError):
            raise DataError(f"{place}: {row}")
        if row is not None:
            yield row


def typed_rows(
    path: Path, row_type: type[R], limit: int | None, owns: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, R | ValueError | None]]:
    """(place, row) of each; what is wrong with it, where it is none; None: it is not owned. What has
    no id is owned by its place."""
    for file in data_files(path):
        records = (
            ((f"{file}:{n}", line) for n, line in read_lines(file))
            if file.suffix == ".jsonl"
            else read_records(file)
        )
        for place, record in islice(records, limit):
            # a row that another shard owns is not even parsed, where its id is seen at once
            id = id_of(record) if owns else None
            if owns and id is not None and not owns(id):
                yield place, None
                continue
            row = record if isinstance(record, ValueError) else _parsed(record, row_type)
            if owns and id is None and not owns(place if isinstance(row, ValueError) else row.id):
                row = None
            yield place, row


def _parsed(record: Any, row_type: type[R]) -> R | ValueError:
    try:
        return parse_row(record, row_type)
    except ValueError as error:
        return error


def id_of(record: Any) -> str | None:
    """The id of a record or of a line, read no further than that; None: it is not seen at once."""
    if isinstance(record, str):
        if not record.startswith(_ID):
            return None
        id = record[len(_ID) : record.find('"', len(_ID))]
        return None if "\\" in id else id
    id = record.get("id") if isinstance(record, dict) else None
    return id if isinstance(id, str) else None
