"""Ids: each occurs once in a file, and files read side by side are joined by them."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Container
from pathlib import Path
from typing import Generic

from prefpipe.files.records import DataError, R, read_rows


class Aligned(Generic[R]):
    """The rows of one file, item by item, for a caller who walks the items in that file's order.

    Joined by id: an item the file lacks gives no rows, and the file waits for the next one.
    """

    def __init__(
        self,
        path: Path | None,
        row_type: type[R],
        only: Container[str] | None = None,
        owns: Callable[[str], bool] | None = None,
    ) -> None:
        """only: the ids of the items that the caller will ask for, where these are not all; owns: the
        same as a question. Other rows are skipped. path None: there are no rows."""
        self._path = path
        rows = read_rows(path, row_type, owns=owns) if path else iter(())
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


_FILE_BITS = 24  # of a place; the other 39 of a signed 64-bit number are its line


class Places:
    """Where each id was seen first. In memory are 16 bytes an id.

    Two sorted arrays of 64-bit hashes and places, searched by bisection, and a small dict of the
    newest ids, which is merged into them when it is full (a log-structured merge tree of one level).
    """

    _RECENT = 1 << 16

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._recent: dict[int, int] = {}
        # of the others, in order of the hash: a dict of them would take 100 bytes each
        self._hashes, self._firsts = array("q"), array("q")

    def seen_at(self, id: str, place: str) -> str | None:
        """The earlier place (`path:line`) of the id; None: this is the first."""
        path, _, line = place.rpartition(":")
        here = int(line) << _FILE_BITS | self._files.setdefault(path, len(self._files))
        key = hash(id)
        at = bisect_left(self._hashes, key)
        if at < len(self._hashes) and self._hashes[at] == key:
            first = self._firsts[at]
        else:
            first = self._recent.setdefault(key, here)
            if len(self._recent) == self._RECENT:
                self._sort_in()
        if first == here:
            return None
        return f"{list(self._files)[first & (1 << _FILE_BITS) - 1]}:{first >> _FILE_BITS}"

    def _sort_in(self) -> None:
        import numpy as np  # here: it takes a third of the time in which --help answers

        self._hashes.extend(self._recent)
        self._firsts.extend(self._recent.values())
        self._recent.clear()
        order = np.argsort(self._hashes)
        for numbers in (self._hashes, self._firsts):
            view = np.frombuffer(numbers, dtype=np.int64)
            view[:] = view[order]

    def check(self, id: str, place: str, way_out: str = "") -> None:
        """Raise DataError, with both places and a way out, where the id was seen before."""
        if first := self.seen_at(id, place):
            raise DataError(
                f"{place}: id {id!r} stands at {first} already; ids must be unique{way_out}"
            )
