"""Files with columns: Parquet, Arrow, CSV."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefpipe.files.lines import DataError, read_lines


def read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """(`path:row`, record) of each row, 1-based. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _records_of(path, file.iter_batches(batch_size=256))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no Parquet file, or a broken one: {error}") from None


def read_arrow(path: Path) -> Iterator[tuple[str, Any]]:
    """The same of an Arrow stream, as `datasets` caches them, or an Arrow file."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                batches = iter(pyarrow.ipc.open_stream(file))
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(k) for k in range(reader.num_record_batches))
            yield from _records_of(path, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Arrow file, or a broken one: {error}") from None


def _records_of(path: Path, batches: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    row = 0
    for batch in batches:
        for record in _records_of_batch(batch):
            row += 1
            yield f"{path}:{row}", record


def _records_of_batch(batch: Any) -> list[dict[str, Any]]:
    try:
        batch.validate(full=True)  # a damaged file's lengths lead out of the memory it has
        return batch.to_pylist()
    except Exception:  # of many kinds: a date in the year 20000, a time zone that is not known here
        columns = [_values(column) for column in batch.columns]
        return [
            dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)
        ]


def _values(column: Any) -> list[Any]:
    """A column's values; where Python has no such values, what there is of them as text, and None
    for what is not readable at all. The column may be one that nobody asks for."""
    for as_text in (lambda: column, lambda: column.cast("string"), lambda: column.view("int64")):
        try:
            values = as_text()
            values.validate(full=True)
            return values.to_pylist()
        except Exception:
            continue
    try:
        texts = column.cast("binary")
        texts.validate(full=True)
        return [_decoded(text) for text in texts.to_pylist()]
    except Exception:
        return [None] * len(column)


def _decoded(text: bytes | None) -> str | None:
    with suppress(UnicodeDecodeError):
        return None if text is None else text.decode()
    return None


def read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    """(`path:line`, record) of each row, a ValueError for one with too many fields or too few."""
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    lines = (text for _, text in read_lines(path, blank=True))
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
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
