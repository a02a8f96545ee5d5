"""Rows in: of JSON, Parquet, CSV and Arrow files, streamed, each row with its place."""

from collections.abc import Iterator
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


def read_rows(path: Path, row_type: type[R], limit: int | None = None) -> Iterator[R]:
    """Each row of a file, or of a folder's train and validation files; streams.

    Raises DataError, naming path, line and field, at the first line that is no row_type.
    """
    for place, row in typed_rows(path, row_type, limit):
        if isinstance(row, ValueError):
            raise DataError(f"{place}: {row}")
        yield row


def typed_rows(
    path: Path, row_type: type[R], limit: int | None
) -> Iterator[tuple[str, R | ValueError]]:
    for file in data_files(path):
        records = (
            ((f"{file}:{n}", line) for n, line in read_lines(file))
            if file.suffix == ".jsonl"
            else read_records(file)
        )
        for place, record in islice(records, limit):
            if isinstance(record, ValueError):
                yield place, record
                continue
            try:
                yield place, parse_row(record, row_type)
            except ValueError as error:
                yield place, error
