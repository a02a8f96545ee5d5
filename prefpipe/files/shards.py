"""Shards: a run cut into parts that run anywhere and in any order, and put together to the bytes of one run.

A row is of the shard that the hash of its id says; nothing else of the row, and no other row, has a
say. Every random draw is made of (seed, id), so a row becomes in its shard what it becomes in one run.
A shard is a run of its own, with outputs, rejects, ledger and resume log in a hidden folder beside the
whole run's outputs. Beside each output it notes which row of the input each of its rows was made of:
by these places the shards are woven together, in the order of the input.
"""

import hashlib
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from prefpipe.files.fingerprint import difference
from prefpipe.files.lines import BUFFER, DataError
from prefpipe.files.meta import read_meta
from prefpipe.files.outputs import ROW_GROUP, arrow_schema
from prefpipe.rows import Row

_AT_ONCE = 1 << 20
"""Places of the input whose rows are put in order at a time."""
_LINES = 1 << 13
"""Rows that are held while they are copied."""


@dataclass(frozen=True)
class Shard:
    """Which part of the rows a run has; one of one is all of them."""

    number: int | None = 1
    """1-based; None: the shards are put together."""
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """`3/16` or `all/16`. Raises ValueError."""
        number, _, count = text.partition("/")
        if count.isdecimal() and int(count) > 1:
            if number == "all":
                return cls(None, int(count))
            if number.isdecimal() and 1 <= int(number) <= int(count):
                return cls(int(number), int(count))
        raise ValueError(
            "wanted 3/16, the third of sixteen shards, or all/16, which puts them together"
        )

    @property
    def is_part(self) -> bool:
        """Whether the run has some of the rows only."""
        return self.number is not None and self.count > 1

    @property
    def puts_together(self) -> bool:
        return self.number is None

    def owns(self, id: str) -> bool:
        """Whether a row of that id is this shard's."""
        if self.count == 1:
            return True
        digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) % self.count + 1 == self.number

    def parts(self) -> list["Shard"]:
        return [Shard(number, self.count) for number in range(1, self.count + 1)]

    def __str__(self) -> str:
        return f"{self.number or 'all'}/{self.count}"


class Shards:
    """Where the shards of one run are, and what this run has to do with them."""

    def __init__(self, shard: Shard, base: Path, *, by_logs: bool) -> None:
        """base: what the whole run's outputs begin with, `data/x`; by_logs: as of Run."""
        self.shard, self._base = shard, base
        self.reads = by_logs or not shard.puts_together
        """Whether the run reads rows."""
        self.keeps_logs = by_logs and shard.is_part
        self.meta_path = base.with_name(base.name + ".meta.json")
        """Of the whole run."""
        self._home = base.with_name(f".{base.name}.shards")

    def owns(self, id: str) -> bool:
        """Whether a row of that id is read by this run."""
        return self.shard.owns(id) if self.shard.is_part else self.reads

    def owns_row(self, row: Row) -> bool:
        return self.owns(row.id)

    @property
    def owns_some(self) -> Callable[[str], bool] | None:
        """The same as a question; None: all are, and nobody needs to ask."""
        return self.shard.owns if self.shard.is_part else None

    def at(self, path: Path) -> Path:
        """Where this run has what the whole run has at path."""
        return self._of(self.shard, path) if self.shard.is_part else path

    def at_each(self, path: Path) -> list[Path]:
        """Where each shard has it."""
        return [self._of(part, path) for part in self.shard.parts()]

    def to_take(self, log: Path) -> list[Path]:
        """The shards' logs of which this run makes its rows; none where it does no such thing."""
        takes = self.shard.puts_together and self.reads
        return [path for path in self.at_each(log) if path.exists()] if takes else []

    def _of(self, part: Shard, path: Path) -> Path:
        if path.is_relative_to(self._home):
            return path
        inner = (
            path.relative_to(self._base.parent)
            if path.is_relative_to(self._base.parent)
            else path.name
        )
        return self._home / f"{part.number}-of-{part.count}" / inner

    def is_put_together(self, mark: Mapping[str, str]) -> bool:
        """Whether this is a shard of a run that is whole already."""
        meta = read_meta(self.meta_path) if self.shard.is_part else None
        if meta is None or meta["fingerprint"] != mark:
            return False
        print(f"{self.meta_path}: the shards are put together already; --overwrite starts anew")
        return True

    def read_metas(self, mark: Mapping[str, str]) -> list[dict[str, Any]]:
        """The .meta.json of each. Raises DataError where one is not there, or of another run."""
        found: list[dict[str, Any]] = []
        missing: list[int | None] = []
        for part, path in zip(self.shard.parts(), self.at_each(self.meta_path), strict=True):
            if (meta := read_meta(path)) is None:
                missing.append(part.number)
            elif (was := meta["fingerprint"]) != mark:
                raise DataError(
                    f"{path}: made with other settings or input ({difference(was, dict(mark))}); run "
                    f"--shard {part} again with --overwrite"
                )
            else:
                found.append(meta)
        if missing:
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise DataError(
                f"{self._home}: {len(missing)} of {self.shard.count} shards are not finished: {shown}; "
                f"run --shard {missing[0]}/{self.shard.count}"
            )
        if len(sizes := {meta["shard"]["rows"] for meta in found}) > 1:
            raise DataError(
                f"{self._home}: the shards read inputs of {sorted(sizes)} rows; wanted one"
            )
        return found

    def weave(self, path: Path, target: Path, row_type: type[Row]) -> None:
        """Write to target what all shards have at path, in the order of the input that it was made of.

        Raises DataError where a file has not as many rows as places were noted.
        """
        parts = self.at_each(path)
        if gone := [part for part in parts if not part.exists() or not _places_path(part).exists()]:
            raise _damaged(gone[0])
        if path.suffix == ".parquet":
            _weave_parquet(parts, target, row_type)
        else:
            _weave_lines(parts, target)

    def delete(self) -> None:
        """Take the shards away, which are put together now."""
        if self.shard.puts_together:
            shutil.rmtree(self._home, ignore_errors=True)


WHOLE = Shard()


# ---- what a shard leaves for the one who puts them together ------------------------------------------


def write_places(path: Path, places: "array[int]") -> None:
    """Note for the output at path which row of the input (0-based) each of its rows was made of."""
    _places_path(path).write_bytes(places.tobytes())


def _places_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.places")


def counter_to_json(counter: Mapping[Hashable, float]) -> list[tuple[Any, float]]:
    """[key, number] of each; a tuple is a list."""
    return [(list(key) if isinstance(key, tuple) else key, n) for key, n in counter.items()]


def counter_of_json(pairs: Sequence[Any]) -> Counter[Any]:
    return Counter({tuple(key) if isinstance(key, list) else key: n for key, n in pairs})


# ---- putting together -------------------------------------------------------------------------------


def _weave_lines(parts: Sequence[Path], target: Path) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb", buffering=BUFFER)) for path in parts]
        out = stack.enter_context(open(target, "wb", buffering=BUFFER))
        read = [file.readline for file in files]
        for turns in _turns(parts):
            lines = [read[k]() for k in turns]
            if not all(lines):
                raise _damaged(parts[turns[lines.index(b"")]])
            out.writelines(lines)
        _check_ends(parts, [not file.read(1) for file in files])
        out.flush()
        os.fsync(out.fileno())


def _weave_parquet(parts: Sequence[Path], target: Path, row_type: type[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    with ExitStack() as stack:
        files = [stack.enter_context(pyarrow.parquet.ParquetFile(path)) for path in parts]
        schema = arrow_schema(row_type)
        out = stack.enter_context(pyarrow.parquet.ParquetWriter(target, schema, compression="zstd"))
        rows = [_rows(file) for file in files]
        done = [0] * len(files)

        def in_order() -> Iterator[Any]:
            for turns in _turns(parts):
                for k in turns:
                    done[k] += 1
                    if (row := next(rows[k], None)) is None:
                        raise _damaged(parts[k])
                    yield row

        # in groups of as many rows as one run writes, so that the bytes are its bytes
        ordered = in_order()
        while group := list(islice(ordered, ROW_GROUP)):
            out.write_table(pyarrow.Table.from_pylist(group, schema=schema))
        lengths = [file.metadata.num_rows for file in files]
        _check_ends(parts, [n == length for n, length in zip(done, lengths, strict=True)])


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(ROW_GROUP):
        yield from batch.to_pylist()


def _turns(parts: Sequence[Path]) -> Iterator[list[int]]:
    """Whose row comes next, as numbers of parts, some at once."""
    import numpy as np

    places = [np.fromfile(_places_path(path), np.int64) for path in parts]
    end = 1 + max((int(p[-1]) for p in places if len(p)), default=-1)
    for start in range(0, end, _AT_ONCE):
        bounds = [p.searchsorted([start, start + _AT_ONCE]) for p in places]
        window = [p[a:b] for p, (a, b) in zip(places, bounds, strict=True)]
        owners = np.repeat(np.arange(len(parts)), [len(w) for w in window])
        # stable: the rows made of one row of the input stand together, and in their order
        turns = owners[np.argsort(np.concatenate(window), kind="stable")]
        # a row of the input may become many: what is yielded at once is held at once
        yield from (turns[at : at + _LINES].tolist() for at in range(0, len(turns), _LINES))


def _check_ends(parts: Sequence[Path], ended: Sequence[bool]) -> None:
    for path, is_at_end in zip(parts, ended, strict=True):
        if not is_at_end:
            raise _damaged(path)


def _damaged(path: Path) -> DataError:
    return DataError(
        f"{path}: has not the rows that its shard wrote; run that shard again with --overwrite"
    )
