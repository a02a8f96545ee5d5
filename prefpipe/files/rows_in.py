"""The rows that a run reads: each counted, and a bad one told of."""

from abc import abstractmethod
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from prefpipe.files.ids import Aligned, Places
from prefpipe.files.ledger import Ledger
from prefpipe.files.records import DataError, R, typed_rows
from prefpipe.files.shards import Shards
from prefpipe.files.stage_facts import StageFacts
from prefpipe.rows import Reject


class RowsIn(Ledger):
    """A run's rows on their way in: those that its shard owns, of one of one all."""

    def __init__(self, facts: StageFacts, shards: Shards, outputs: Iterable[Path]) -> None:
        super().__init__(outputs)
        self.facts, self.shards = facts, shards
        self.position = -1
        """Of the row read last, among all rows of the input, other shards' too."""
        self.first_bad = ""
        """Place and fault of the first row that could not be read."""

    @abstractmethod
    def emit(self, result: Any) -> None: ...

    def aligned(
        self, path: Path, row_type: type[R], only: Container[str] | None = None
    ) -> Aligned[R]:
        """The file's rows beside those that this run reads; only: of these ids."""
        if not self.shards.reads:
            return Aligned(None, row_type)
        return Aligned(path, row_type, only, self.shards.owns_some)

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
        if not self.shards.reads:
            return
        places, limit = Places(), limit or self.facts.limit
        rows = typed_rows(path, row_type, limit, self.shards.owns_some)
        # counted by each pass for itself: another one may begin before this one has ended
        for position, (place, row) in enumerate(rows):
            self.position = position
            if row is None:
                continue
            if not isinstance(row, ValueError):
                places.check(row.key, place)
            elif self.facts.strict:
                raise DataError(f"{place}: {row}")
            yield place, row

    def bad_row(self, place: str, error: ValueError, hint: str = "") -> None:
        """A row that could not be read: rejected, or with --strict the end of the run. hint: what a
        person may do about it."""
        if self.facts.strict:
            raise DataError(f"{place}: {error}{hint}")
        reason = getattr(error, "reason", "bad_row")  # of one that says why in a word
        self.first_bad = self.first_bad or f"{place}: {error}{hint}"[:300]
        self.emit(Reject(id=place, reason=reason, detail=str(error)))
