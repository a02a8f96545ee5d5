"""Rows out: JSONL and Parquet, written to a hidden file beside the output and renamed when whole."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import IO, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import filelock
from typing_extensions import is_typeddict

from prefpipe.files.lines import BUFFER, DataError
from prefpipe.files.records import R
from prefpipe.rows import Row


def open_alone(path: Path) -> IO[bytes]:
    """Opened for appending, by one process at a time. SystemExit where another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")  # noqa: SIM115
    try:
        # the other one may have ended just now, and renamed or removed what was opened here
        if filelock.lock_descriptor(file.fileno(), blocking=False) and os.path.samestat(
            os.fstat(file.fileno()), os.stat(path)
        ):
            return file
    except FileNotFoundError:
        pass
    file.close()
    raise _second(path)


def refuse_a_second(path: Path) -> None:
    """SystemExit where another process has it, as open_alone; the file is left as it is."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        if not filelock.lock_descriptor(file.fileno(), blocking=False):
            raise _second(path)


def _second(path: Path) -> SystemExit:
    return SystemExit(f"{path}: another run is writing it; wait for its end")


class Writer(Protocol):
    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class _JsonlWriter:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=BUFFER)  # noqa: SIM115

    def write(self, row: Row) -> None:
        self._file.write(row.__pydantic_serializer__.to_json(row))
        self._file.write(b"\n")

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


ROW_GROUP = 1000
"""Rows of a Parquet file that are written together."""


class _ParquetWriter:
    """The columns' types come from the row class, not from the values."""

    def __init__(self, path: Path, row_type: type[Row]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._schema = arrow_schema(row_type)
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Row) -> None:
        self._rows.append(row.model_dump())
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def arrow_schema(row_type: type[Row]) -> Any:
    """A Parquet file's columns."""
    import pyarrow

    fields = row_type.model_fields.items()
    return pyarrow.schema([(name, _arrow_type(field.annotation)) for name, field in fields])


def _arrow_type(annotation: Any) -> Any:
    import pyarrow

    plain = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    plain[bool] = pyarrow.bool_()
    if annotation in plain:
        return plain[annotation]
    if is_typeddict(annotation):
        fields = get_type_hints(annotation)
        return pyarrow.struct([(name, _arrow_type(field)) for name, field in fields.items()])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list:
        return pyarrow.list_(_arrow_type(inner[0]))
    if origin is Literal:
        return _arrow_type(type(inner[0]))
    if origin in (Union, UnionType) and NoneType in inner and len(inner) == 2:
        return _arrow_type(next(t for t in inner if t is not NoneType))
    raise TypeError(f"no Parquet column type for {annotation}")


def open_writer(path: Path, row_type: type[Row]) -> Writer:
    return _ParquetWriter(path, row_type) if path.suffix == ".parquet" else _JsonlWriter(path)


@contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    """A temporary file beside path, which gets its name when it is whole: nobody sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, ".tmp")
    try:
        yield temporary
    except BaseException:
        with suppress(OSError):  # Windows takes none away that is open
            temporary.unlink()
        raise
    os.replace(temporary, path)


def write_rows(path: Path, rows: Iterable[R], row_type: type[R]) -> None:
    """Rows as JSONL or Parquet, by the name: whole or absent."""
    with _in_place(path) as temporary:
        writer = open_writer(temporary, row_type)
        for row in rows:
            writer.write(row)
        writer.close()


def write_text(path: Path, text: str) -> None:
    """The same for a text: whole or absent."""
    with _in_place(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """An indented JSON file: whole or absent. NaN and infinity are refused (ValueError)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def without_ending(path: Path) -> Path:
    """data/x.jsonl -> data/x: under this name stands what belongs to an output. Raises DataError."""
    if not path.name:
        raise DataError(f"output: found {str(path)!r}, wanted the name of a file")
    return path.with_suffix("")


def beside(path: Path, ending: str) -> Path:
    """data/x.jsonl -> data/.x.tmp.jsonl: hidden, same folder (rename must not cross disks)."""
    return path.with_name(f".{path.stem}{ending}{path.suffix}")
