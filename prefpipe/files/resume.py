"""The resume log: what a stopped run has done, so that the next one goes on from there."""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Generic

from prefpipe.files.fingerprint import difference
from prefpipe.files.outputs import open_alone
from prefpipe.files.records import DataError, R, parse_row


def windows_left(
    rows: Sequence[R], size: int, is_done: Callable[[R], bool], owns: Callable[[str], bool]
) -> list[Sequence[R]]:
    """Rows that are computed together, so many at a time; windows of which all are done are left out.

    What a model computes beside a row shows in the last digits of its score. So windows are cut by
    the input and not by what a stopped run has left, and one that was begun is computed again whole.
    For the same reason a shard computes the windows whose first row it owns.
    """
    windows = (rows[start : start + size] for start in range(0, len(rows), size))
    return [w for w in windows if owns(w[0].id) and not all(map(is_done, w))]


class RowLog(Generic[R]):
    """Rows done so far, one line each, so that a stopped run goes on where it stood.

    The first line is the fingerprint of what makes rows comparable: a log with rows of another one
    is refused, never mixed in. A last line cut short by a kill is dropped; any other wrong line
    raises DataError. Failures are not logged, so the next run tries them again. In memory is one
    offset a row; the rows stay on disk. Two processes on one log: the second is refused.
    """

    def __init__(self, path: Path, row_type: type[R], mark: dict[str, str]) -> None:
        self.path, self._type, self._mark = path, row_type, mark
        self._offsets: dict[str, int] = {}
        self._file = self._open(path)
        mark = mark | {"rows": row_type.__name__}
        header = json.dumps(mark, ensure_ascii=False).encode() + b"\n"
        self._file.seek(0)
        first = self._file.readline()
        if first == header:
            self._load(len(first))
            return
        if first.endswith(b"\n"):
            was = _parse_mark(first, path)
            if self._file.read(1):
                if was.get("rows") != mark["rows"]:
                    raise DataError(
                        f"{path}:1: a stopped run of another version of prefpipe; finish it with "
                        "that one, or start anew with --overwrite"
                    )
                raise DataError(
                    f"{path}:1: a stopped run with other settings or input "
                    f"({difference(was, mark)}); --overwrite starts anew"
                )
        # new, or killed in its very first write, or of other settings and without a row
        self._cut(0)
        self._append(header)

    def _open(self, path: Path) -> IO[bytes]:
        return open_alone(path)

    def _cut(self, offset: int) -> None:
        self._file.truncate(offset)

    def _load(self, offset: int) -> None:
        self._file.seek(offset)
        for number, line in enumerate(self._file, start=2):
            if not line.endswith(b"\n"):
                break
            try:
                row = parse_row(line.decode("utf-8"), self._type)
            except ValueError as error:
                raise DataError(f"{self.path}:{number}: {error}") from None
            self._offsets[row.key] = offset
            offset += len(line)
        self._cut(offset)

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

    def take(self, path: Path) -> None:
        """Add what the log of a shard has and this one lacks. Raises DataError as opening it does."""
        shard = RowLog(path, self._type, self._mark)
        for key in shard._offsets:
            if key not in self:
                self.add(shard.get(key))
        shard.close()

    def get(self, key: str) -> R:
        self._file.seek(self._offsets[key])
        return self._type.model_validate_json(self._file.readline())

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()


class ReadLog(RowLog[R]):
    """The log of a stopped run as a dry one sees it: what is added is kept in memory only."""

    def __init__(
        self, path: Path, row_type: type[R], mark: dict[str, str], *, is_new: bool
    ) -> None:
        """is_new: what is there would be deleted first."""
        self._added: dict[str, R] = {}
        self._is_new = is_new
        super().__init__(path, row_type, mark)

    def _open(self, path: Path) -> IO[bytes]:
        return io.BytesIO() if self._is_new or not path.exists() else open(path, "rb")

    def _cut(self, offset: int) -> None: ...

    def _append(self, data: bytes) -> None: ...

    def __contains__(self, key: str) -> bool:
        return key in self._added or super().__contains__(key)

    def add(self, row: R) -> None:
        self._added[row.key] = row

    def get(self, key: str) -> R:
        return self._added[key] if key in self._added else super().get(key)

    def delete(self) -> None:
        self.close()


def _parse_mark(line: bytes, path: Path) -> dict[str, str]:
    with suppress(ValueError, RecursionError):
        if isinstance(mark := json.loads(line), dict):
            return mark
    raise DataError(f"{path}:1: no resume log of a stage; delete it or name another output")
