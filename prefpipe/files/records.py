"""Rows in: JSONL, Parquet and CSV files, or a folder saved by `datasets`, streamed, each row with its place."""

import csv
import glob
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from prefpipe.rows import Row

R = TypeVar("R", bound=Row)
SPLITS = ("train", "validation")
ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".csv")
BUFFER = 1 << 18  # bytes; Python's own 8 kB is two rows


class DataError(ValueError):
    """A file's content is not what its reader takes. The message starts with path:line."""


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


def matching(pattern: str) -> list[Path]:
    """The file of that name, or the files that a glob (`prompts/*.jsonl`) matches, in order.

    Raises DataError where there is none.
    """
    if Path(pattern).exists():
        return [Path(pattern)]
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not found:
        raise DataError(f"{pattern}: no such file; name a file, or files by a glob in quotes")
    return found


def read_records(path: Path, limit: int | None = None) -> Iterator[tuple[str, Any]]:
    """(place, record) for each row of a JSONL, Parquet or CSV file, or of a saved `datasets` folder.

    place is `path:line` (Parquet and datasets: `path:row`, 1-based). The record is whatever the row
    holds: a JSON line that is no JSON comes as its ValueError, so that the caller may go on.
    """
    if path.is_dir():
        records = _read_dataset_folder(path)
    elif not path.exists():
        raise DataError(f"{path}: no such file")
    elif path.suffix == ".parquet":
        records = _read_parquet(path)
    elif path.suffix == ".csv":
        records = _read_csv(path)
    elif path.suffix in ENDINGS:
        records = _read_jsonl(path)
    else:
        raise DataError(f"{path}: found ending {path.suffix!r}, wanted .jsonl, .parquet or .csv")
    return islice(records, limit)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    name = str(path)  # once, not for every line
    for number, line in _lines(path):
        if number == 1 and line.startswith("["):
            raise DataError(
                f"{path}:1: found a JSON array, wanted one object a line; jq -c '.[]' makes them"
            )
        try:
            yield f"{name}:{number}", from_json(line)
        except ValueError as error:
            where = str(error).replace("at line 1 column", "at column")
            yield f"{name}:{number}", ValueError(f"not JSON: {where}")


def _lines(path: Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """1-based number and text of each line, blank ones only if asked for; only \\n ends a line."""
    with open(path, "rb", buffering=BUFFER) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: byte {error.start} is not UTF-8; save the file as UTF-8"
                ) from None
            if blank or (text and not text.isspace()):
                yield number, text


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}:{row}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no Parquet file, or a broken one: {error}") from None


def _read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader((text for _, text in _lines(path, blank=True)), strict=True)
    end = 1  # the last line of the row before; of the header, to begin with
    try:
        names = Counter(reader.fieldnames or [])
        if twice := [name for name, count in names.items() if count > 1]:
            raise DataError(f"{path}:1: column {twice[0]!r} stands there twice; rename one of them")
        for record in reader:
            end = reader.line_num
            fields = [*record.values(), *record.get(None, [])]
            inside = sum(value.count("\n") for value in fields if isinstance(value, str))
            place = f"{path}:{end - inside}"
            if None in record:
                yield place, ValueError(f"{len(record[None])} fields too many")
            elif missing := [name for name, value in record.items() if value is None]:
                yield place, ValueError(f"too few fields: {', '.join(missing)} missing")
            else:
                yield place, dict(record)
    except csv.Error as error:
        raise DataError(f"{path}:{end + 1}: broken CSV from here on: {error}") from None


def _read_dataset_folder(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: the folder is no saved `datasets` data set") from None
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    for name, part in parts.items():
        for row, record in enumerate(part, start=1):
            yield f"{path / str(name)}:{row}", record


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
            ((f"{file}:{n}", line) for n, line in _lines(file))
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
