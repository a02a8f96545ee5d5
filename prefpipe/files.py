"""The pipeline's files: JSONL and Parquet, streamed, whole or not at all; the resume log; the ledger.

A stage opens one Run. It refuses to mix outputs of other settings, gives rows to read, takes one
result for each of them (rows, or a Reject), and at its end renames the outputs into place, checks
that nothing was lost, and writes `.meta.json` last. A stage that talks to a model also keeps a
RowLog, from which a killed run goes on.
"""

import csv
import fcntl
import glob
import hashlib
import importlib.metadata
import io
import json
import os
import sys
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    IO,
    Any,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json
from typing_extensions import is_typeddict

from prefpipe.rows import Reject, Row

R = TypeVar("R", bound=Row)

SPLITS = ("train", "validation")
ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".csv")
META_VERSION = 1
_BUFFER = 1 << 18  # bytes; Python's own 8 kB is two rows
_LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "sentence-transformers",
    "faiss-cpu",
)


class DataError(ValueError):
    """A file's content is not what its reader takes. The message starts with path:line."""


class StageLike(Protocol):
    """What a Run needs to know of a stage's settings (Stage has it)."""

    limit: int | None
    overwrite: bool
    strict: bool

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...
    def rows_depend_on(self) -> dict[str, Any]: ...
    @classmethod
    def stage_name(cls) -> str: ...


# ---- reading ---------------------------------------------------------------------------------


def data_files(path: Path) -> list[Path]:
    """The file itself; of a folder, its train and validation files (JSONL or Parquet), in order.

    Raises DataError where there is neither.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path}: no such file; run the stage that writes it, or set the input")
    found = [
        file
        for split in SPLITS
        for ending in (".jsonl", ".parquet")
        if (file := path / (split + ending)).is_file()
    ]
    if not found:
        raise DataError(f"{path}: the folder holds no train or validation .jsonl or .parquet")
    return found


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
    with open(path, "rb", buffering=_BUFFER) as file:
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
    for place, row in _typed_rows(path, row_type, limit):
        if isinstance(row, ValueError):
            raise DataError(f"{place}: {row}")
        yield row


def _typed_rows(
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


class Aligned(Generic[R]):
    """The rows of one file, item by item, for a caller who walks the items in that file's order.

    Joined by id: an item the file lacks gives no rows, and the file waits for the next one. only:
    the ids of the items that the caller will ask for, where these are not all; others are skipped.
    """

    def __init__(self, path: Path, row_type: type[R], only: Container[str] | None = None) -> None:
        self._path = path
        rows = read_rows(path, row_type)
        self._rows = rows if only is None else (row for row in rows if row.id in only)
        self._next = next(self._rows, None)
        self._passed: set[int] = set()

    def rows_of(self, id: str) -> list[R]:
        self._passed.add(hash(id))
        rows = []
        while self._next is not None and self._next.id == id:
            rows.append(self._next)
            self._next = next(self._rows, None)
        return rows

    def check_used_up(self) -> None:
        """Raise DataError where rows are left: of an unknown item, or in another order."""
        if self._next is None:
            return
        id = self._next.id
        passed = hash(id) in self._passed
        what = "stands twice or out of the items' order" if passed else "is no item's id"
        raise DataError(f"{self._path}: id {id!r} {what}; make the file again from these items")


# ---- writing ---------------------------------------------------------------------------------


def open_alone(path: Path) -> IO[bytes]:
    """Opened for appending, by one process at a time. SystemExit where another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass  # or the other one has ended just now, and renamed or removed it
    file.close()
    raise SystemExit(f"{path}: another run is writing it; wait for its end")


class _Writer(Protocol):
    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class _JsonlWriter:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=_BUFFER)  # noqa: SIM115

    def write(self, row: Row) -> None:
        self._file.write(row.__pydantic_serializer__.to_json(row))
        self._file.write(b"\n")

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class _ParquetWriter:
    """Row groups of 1,000 rows; the columns' types come from the row class, not from the values."""

    def __init__(self, path: Path, row_type: type[Row]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._schema = pyarrow.schema(
            [(name, _arrow_type(f.annotation)) for name, f in row_type.model_fields.items()]
        )
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Row) -> None:
        self._rows.append(row.model_dump())
        if len(self._rows) == 1000:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


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


def _open_writer(path: Path, row_type: type[Row]) -> _Writer:
    return _ParquetWriter(path, row_type) if path.suffix == ".parquet" else _JsonlWriter(path)


def write_rows(path: Path, rows: Iterable[R], row_type: type[R]) -> None:
    """Write a temporary file beside path, then rename it: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    writer = _open_writer(temporary, row_type)
    for row in rows:
        writer.write(row)
    writer.close()
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """The same for a text: whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """An indented JSON file: whole or absent. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _beside(path: Path, ending: str) -> Path:
    """data/x.jsonl -> data/.x.tmp.jsonl: hidden, same folder (rename must not cross disks)."""
    return path.with_name(f".{path.stem}{ending}{path.suffix}")


# ---- fingerprints ----------------------------------------------------------------------------


def hash_path(path: Path) -> str:
    """sha256 of a file's bytes; of a folder, of the names and hashes of its files (no hidden ones).

    Of a file of weights over 64 MiB only its size and first and last MiB are read: reading 15 GB
    before each run costs more than it protects.
    """
    if path.is_dir():
        names = sorted(
            str(p.relative_to(path))
            for p in path.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
        parts = "".join(f"{name}\0{hash_path(path / name)}\n" for name in names)
        return hashlib.sha256(parts.encode()).hexdigest()
    with open(path, "rb") as file:
        size = path.stat().st_size
        if path.suffix not in (".safetensors", ".bin", ".pt") or size <= 1 << 26:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = file.read(1 << 20)
        file.seek(-(1 << 20), io.SEEK_END)
        return hashlib.sha256(b"%d" % size + head + file.read()).hexdigest()


def fingerprint(stage: str, depends_on: dict[str, Any], inputs: Sequence[Path]) -> dict[str, str]:
    """What makes rows comparable, as flat `name: value` so that a difference can be named."""
    values = {f"setting {k}": json.dumps(v, default=str) for k, v in depends_on.items()}
    for file in _input_files(inputs):
        if not file.exists():
            raise DataError(f"{file}: no such file; run the stage that writes it first")
        alike = sum(name.startswith(f"input {file.name}") for name in values)
        values[f"input {file.name}{f' {alike + 1}' if alike else ''}"] = hash_path(file)
    return {"stage": stage, **values}


def _input_files(inputs: Sequence[Path]) -> list[Path]:
    """A folder of train and validation files as these; any other folder as a whole."""
    return [
        file for path in inputs for file in (data_files(path) if _is_split_folder(path) else [path])
    ]


def _is_split_folder(path: Path) -> bool:
    return any((path / (s + e)).is_file() for s in SPLITS for e in (".jsonl", ".parquet"))


def _without_inputs(mark: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in mark.items() if not name.startswith("input ")}


def difference(old: dict[str, str], new: dict[str, str]) -> str:
    """What changed from one fingerprint to another, in words."""
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    shown = [
        k if k.startswith("input") else f"{k} {old.get(k, 'not set')} -> {new.get(k, 'not set')}"
        for k in changed[:4]
    ]
    return "; ".join(shown) + ("; ..." if len(changed) > 4 else "")


# ---- the resume log --------------------------------------------------------------------------


class RowLog(Generic[R]):
    """Rows done so far, one line each, so that a stopped run goes on where it stood.

    The first line is the fingerprint of what makes rows comparable: a log with rows of another one
    is refused, never mixed in. A last line cut short by a kill is dropped; any other wrong line
    raises DataError. Failures are not logged, so the next run tries them again. In memory is one
    offset a row; the rows stay on disk. Two processes on one log: the second is refused.
    """

    def __init__(self, path: Path, row_type: type[R], mark: dict[str, str]) -> None:
        self.path, self._type = path, row_type
        self._offsets: dict[str, int] = {}
        self._file = open_alone(path)
        header = json.dumps(mark, ensure_ascii=False).encode() + b"\n"
        self._file.seek(0)
        first = self._file.readline()
        if first == header:
            self._load(len(first))
            return
        if first.endswith(b"\n"):
            was = _parse_mark(first, path)
            if self._file.read(1):
                changed = difference(was, mark)
                raise DataError(
                    f"{path}:1: a stopped run with other settings or input ({changed}); "
                    "--overwrite starts anew"
                )
        # new, or killed in its very first write, or of other settings and without a row
        self._file.truncate(0)
        self._append(header)

    def _load(self, start: int) -> None:
        self._file.seek(start)
        offset = start
        for number, line in enumerate(self._file, start=2):
            if not line.endswith(b"\n"):
                break
            try:
                row = parse_row(line.decode("utf-8"), self._type)
            except ValueError as error:
                raise DataError(f"{self.path}:{number}: {error}") from None
            self._offsets[row.key] = offset
            offset += len(line)
        self._file.truncate(offset)

    def _append(self, data: bytes) -> None:
        self._file.seek(0, io.SEEK_END)
        self._file.write(data)
        self._file.flush()

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, row: R) -> None:
        """Safe against a kill once this returns."""
        if row.key in self._offsets:
            raise ValueError(f"{self.path}: {row.key!r} is done already")
        self._file.seek(0, io.SEEK_END)
        self._offsets[row.key] = self._file.tell()
        self._append(row.model_dump_json().encode() + b"\n")

    def get(self, key: str) -> R:
        self._file.seek(self._offsets[key])
        return self._type.model_validate_json(self._file.readline())

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()


def _parse_mark(line: bytes, path: Path) -> dict[str, str]:
    try:
        mark = json.loads(line)
    except ValueError:
        mark = None
    if not isinstance(mark, dict):
        raise DataError(f"{path}:1: no resume log of a stage; delete it or name another output")
    return mark


class Places:
    """Where each id was seen first. In memory are 16 bytes an id."""

    _RECENT = 1 << 16

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._recent: dict[int, int] = {}
        # of the others, in order of the hash: a dict of them would take 100 bytes each
        self._hashes, self._firsts = array("q"), array("q")

    def seen_at(self, id: str, place: str) -> str | None:
        """The earlier place (`path:line`) of the id; None: this is the first."""
        path, _, line = place.rpartition(":")
        here = int(line) << 10 | self._files.setdefault(path, len(self._files))
        key = hash(id)
        at = bisect_left(self._hashes, key)
        if at < len(self._hashes) and self._hashes[at] == key:
            first = self._firsts[at]
        else:
            first = self._recent.setdefault(key, here)
            if len(self._recent) == self._RECENT:
                self._sort_in()
        return None if first == here else f"{list(self._files)[first & 1023]}:{first >> 10}"

    def _sort_in(self) -> None:
        self._hashes.extend(self._recent)
        self._firsts.extend(self._recent.values())
        self._recent.clear()
        order = np.argsort(self._hashes)
        for numbers in (self._hashes, self._firsts):
            view = np.frombuffer(numbers, dtype=np.int64)
            view[:] = view[order]

    def check(self, id: str, place: str) -> None:
        """Raise DataError, with both places, where the id was seen before."""
        if first := self.seen_at(id, place):
            raise DataError(f"{place}: id {id!r} stands at {first} already; ids must be unique")


# ---- a run -----------------------------------------------------------------------------------


class Run(AbstractContextManager["Run"]):
    """One run of one stage.

        with files.open_run(s, inputs=[s.input], outputs={s.output: Item}) as run:
            if run.finished: return
            for row in run.read(s.input, Preference):
                run.emit(build_item(row), to=s.output)

    Every row read gets exactly one emit: a row, several rows, or a Reject. Leaving the block
    renames the outputs into place and prints the closing line; an exception leaves them absent.
    """

    def __init__(
        self,
        settings: StageLike,
        inputs: Sequence[Path],
        outputs: Mapping[Path, type[Row]],
        home: Path | None,
        unit: str,
        made: Sequence[Path],
        follows_input: bool,
    ) -> None:
        self.settings, self.outputs, self._unit = settings, outputs, unit
        self._made, self._follows_input = made, follows_input
        self.stage = settings.stage_name()
        base = home / self.stage if home else next(iter(outputs)).with_suffix("")
        self.meta_path = base.with_name(base.name + ".meta.json")
        self.rejects_path = base.with_name(base.name + ".rejects.jsonl")
        self._log_base = base
        self.mark = fingerprint(self.stage, settings.rows_depend_on(), inputs)
        self.summary: dict[str, Any] = {}
        """What else goes into .meta.json."""
        self.read_count = 0
        self.kept_count = 0
        self.written: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._inputs = inputs
        self._writers: dict[Path, _Writer] = {}
        self._logs: list[RowLog[Any]] = []
        self._locks: list[IO[bytes]] = []
        for path in {path.resolve() for path in _input_files(inputs)} & {
            path.resolve() for path in outputs
        }:
            raise DataError(f"{path}: is the input; choose another output")
        self._started = time.monotonic()
        self.finished = self._is_finished()
        if settings.overwrite:
            for log in base.parent.glob(f".{base.name}.*partial.jsonl"):
                log.unlink()

    def _is_finished(self) -> bool:
        if self.settings.overwrite or not self.meta_path.exists():
            return False  # without a meta file, a run was killed before its end
        meta = json.loads(self.meta_path.read_text(encoding="utf-8"))
        if (was := meta.get("fingerprint", {})) != self.mark:
            if self._follows_input and _without_inputs(was) == _without_inputs(self.mark):
                return False
            changed = difference(was, self.mark)
            raise SystemExit(
                f"{self.meta_path}: made with other settings or input ({changed}); "
                "--overwrite replaces it, or choose another --output"
            )
        if not all(path.exists() for path in (*self.outputs, *self._made)):
            return False
        print(f"{self.stage}: finished before: {meta['closing_line']}; --overwrite starts anew")
        return True

    # -- rows in

    def read(self, path: Path, row_type: type[R], limit: int | None = None) -> Iterator[R]:
        """Rows of a file or folder; a bad line becomes a Reject (with --strict: DataError).

        Raises DataError, with both places, where two rows have the same key.
        """
        for place, row in self._checked(path, row_type, limit):
            self.read_count += 1
            if isinstance(row, ValueError):
                self.bad_row(place, row)
            else:
                yield row

    def peek(self, path: Path, row_type: type[R], limit: int | None = None) -> Iterator[R]:
        """The rows that read() will give, without counting them: for a pass before the last."""
        for _, row in self._checked(path, row_type, limit):
            if not isinstance(row, ValueError):
                yield row

    def _checked(
        self, path: Path, row_type: type[R], limit: int | None
    ) -> Iterator[tuple[str, R | ValueError]]:
        places = Places()
        for place, row in _typed_rows(path, row_type, limit or self.settings.limit):
            if not isinstance(row, ValueError):
                places.check(row.key, place)
            elif self.settings.strict:
                raise DataError(f"{place}: {row}")
            yield place, row

    def bad_row(self, place: str, error: ValueError) -> None:
        """A row that could not be read: rejected, or with --strict the end of the run."""
        if self.settings.strict:
            raise DataError(f"{place}: {error}")
        self.emit(Reject(id=place, reason="bad_row", detail=str(error)))

    # -- rows out

    def emit(
        self, result: Row | Sequence[Row], to: Path | Callable[[Any], Path] | None = None
    ) -> None:
        """What became of one row read: a Reject, or rows; to: their output, or each one's."""
        if isinstance(result, Reject):
            self.left_out[result.reason] += 1
            self._writer(self.rejects_path, Reject).write(result)
            return
        rows = [result] if isinstance(result, Row) else result
        path = to or next(iter(self.outputs))
        self.keep(*((path(row) if callable(path) else path, row) for row in rows))

    def keep(self, *rows: tuple[Path, Row]) -> None:
        """One row read became these (output, row)."""
        self.kept_count += 1
        for path, row in rows:
            self._writer(path, self.outputs[path]).write(row)
            self.written[path.name] += 1

    def _writer(self, path: Path, row_type: type[Row]) -> _Writer:
        if path not in self._writers:
            temporary = _beside(path, ".tmp")
            self._locks.append(open_alone(temporary))
            self._writers[path] = _open_writer(temporary, row_type)
        return self._writers[path]

    def temporary(self, path: Path) -> Path:
        """Where the stage itself writes a file of `made`; it is renamed with the outputs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return _beside(path, ".tmp")

    def open_log(self, row_type: type[R], name: str = "") -> RowLog[R]:
        """The run's resume log; deleted once the outputs are in place."""
        base = self._log_base
        path = base.with_name(f".{base.name}.{name}{'.' if name else ''}partial.jsonl")
        log = RowLog(path, row_type, self.mark)
        self._logs.append(log)
        if len(log):
            print(f"{self.stage}: going on from {len(log)} done before", file=sys.stderr)
        return log

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None and not self.finished:
                self._finish()
        finally:
            for path, writer in self._writers.items():
                with suppress(OSError, ValueError):  # a full disk has been told of already
                    writer.close()
                _beside(path, ".tmp").unlink(missing_ok=True)
            for path in self._made:
                _beside(path, ".tmp").unlink(missing_ok=True)
            for file in (*self._logs, *self._locks):
                file.close()

    def _finish(self) -> None:
        lost = self.read_count - self.kept_count - sum(self.left_out.values())
        if lost:
            raise AssertionError(f"{self.stage}: {lost} of {self.read_count} rows unaccounted for")
        if not self.read_count:
            raise DataError(f"{', '.join(map(str, self._inputs))}: no row to read")
        if not self.kept_count:
            self._rename(self.rejects_path)
            raise SystemExit(
                f"{self.stage}: not one of {self.read_count} {self._unit} could be used "
                f"({dict(self.left_out.most_common())}); each with its reason in {self.rejects_path}"
            )
        for path, row_type in [*self.outputs.items(), (self.rejects_path, Reject)]:
            self._writer(path, row_type)
        self.meta_path.unlink(missing_ok=True)  # until all is in place, the run is not finished
        self._rename(*self._writers)
        for path in self._made:
            os.replace(_beside(path, ".tmp"), path)
        line = self.closing_line()
        meta = {
            "version": META_VERSION,
            "stage": self.stage,
            "closing_line": line,
            "counts": {
                "read": self.read_count,
                "kept": self.kept_count,
                "left_out": dict(self.left_out.most_common()),
                "written": dict(self.written),
            },
            **self.summary,
            "seconds": round(time.monotonic() - self._started, 3),
            "settings": self.settings.model_dump(mode="json"),
            "fingerprint": self.mark,
            "libraries": library_versions(),
        }
        write_json(self.meta_path, meta)
        for log in self._logs:
            log.delete()
        print(line)

    def _rename(self, *paths: Path) -> None:
        for path in paths:
            self._writers[path].close()
        for path in paths:
            os.replace(_beside(path, ".tmp"), path)
            del self._writers[path]

    def closing_line(self) -> str:
        """read = kept + left out by reason."""
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.left_out.most_common())
        written = ", ".join(f"{n} in {name}" for name, n in self.written.items())
        home = self.meta_path.parent
        return (
            f"{home}: {self.read_count} {self._unit} read = {self.kept_count} kept + "
            f"{sum(self.left_out.values())} left out ({reasons or 'none'}); "
            f"written: {written or 'nothing'}"
        )


def open_run(
    settings: StageLike,
    *,
    inputs: Sequence[Path],
    outputs: Mapping[Path, type[Row]],
    home: Path | None = None,
    unit: str = "rows",
    made: Sequence[Path] = (),
    follows_input: bool = False,
) -> Run:
    """Check, before any work, that the run may be made: inputs are there, outputs not another's.

    `.meta.json` and `.rejects.jsonl` stand beside the output, under its name; for several outputs
    in one folder give that as home, and they stand in it under the stage's name. made: files that
    the stage itself writes, to run.temporary(path). follows_input: outputs of another input are no
    reason to stop; they are replaced.
    """
    return Run(settings, inputs, outputs, home, unit, made, follows_input)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    versions = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
