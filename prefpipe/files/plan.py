"""What a dry run finds out: what a run with these settings would read, do and write.

A dry run is the run itself, up to where a model would be loaded or asked: it reads every row and
decides on each what can be decided without a model. So what it counts is what the run will count.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefpipe.files.meta import read_meta
from prefpipe.files.records import JSON_ENDINGS, DataError, read_records, split_files

NOT_ASKED = "not_asked"
"""Reason of a row that hangs on what a model would say. Nothing of a dry run is written, this neither."""
_NOT_ROWS = (".jinja", ".toml", ".gguf")


class DryRunEnd(Exception):
    """A dry run has come as far as it goes; no error."""


@dataclass
class Plan:
    """What is known of one run."""

    stage: str
    unit: str
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    before: str = ""
    """The closing line of the finished run that stands there: nothing would be done."""
    counts: dict[str, Any] = field(default_factory=dict)
    """As in .meta.json, and `waiting`: rows that a model has a say in."""
    logged: Counter[str] = field(default_factory=Counter)
    """Rows that a stopped run has done, by its log."""
    read_as: Sequence[str] = ()
    """How data of others was read."""
    seconds: float | None = None
    """None: nothing is known to estimate them by."""
    _parts: dict[tuple[str, str], tuple[list[str], dict[str, Any]]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether the dry run came to its end."""
        return bool(self.before or self.counts)

    def put(self, what: str, lines: Sequence[str], *, log: str = "", **numbers: Any) -> None:
        """What would be asked, scored, embedded or trained; lines: the numbers for a person. log: of
        several that are called alike, whose it is. Put again it takes the place of the one before."""
        self._parts[what, log] = [*lines], numbers

    def summary(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return {
            "stage": self.stage,
            "dry_run": True,
            "finished_before": self.before or None,
            "inputs": [{"path": str(p), "rows": rows_of(p)} for p in _each(self.inputs)],
            "outputs": [{"path": str(p), "is_there": p.exists()} for p in self.outputs],
            "read_as": [*self.read_as],
            "counts": self.counts,
            "done_before": dict(self.logged),
            "work": [
                {"what": what, **({"log": log} if log else {}), **numbers}
                for (what, log), (_, numbers) in self._parts.items()
            ],
            "seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """The plan for a person."""
        rows = [(f"{self.stage}: dry run", "nothing is written, sent or loaded")]
        for path in _each(self.inputs):
            n = rows_of(path)
            rows.append(
                ("input", str(path) if n is None else f"{path}: {n:,} row{'' if n == 1 else 's'}")
            )
        rows += [("", line) for line in self.read_as]
        rows += [("output", f"{path}: {self._fate(path)}") for path in self.outputs]
        if self.before:
            rows.append(("rows", f"nothing to do, finished before: {self.before}"))
            return _aligned(rows)
        rows.append(("rows", self._ledger()))
        rows += [
            ("done before", f"{n:,} of a stopped run in {log}") for log, n in self.logged.items()
        ]
        for (what, _), (lines, _) in self._parts.items():
            rows += [("" if k else what, line) for k, line in enumerate(lines)]
        if self.seconds is not None:
            rows.append(
                ("time", f"about {_duration(self.seconds)}, as fast as the run that stands there")
            )
        return _aligned(rows)

    def _fate(self, path: Path) -> str:
        if not path.exists():
            return "new"
        return "stands there and is kept" if self.before else "stands there and would be replaced"

    def _ledger(self) -> str:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.counts["left_out"].items())
        left_out = sum(self.counts["left_out"].values())
        written = ", ".join(f"{n:,} in {name}" for name, n in self.counts["written"].items())
        waiting = self.counts["waiting"]
        return (
            f"{self.counts['read']:,} {self.unit} read = {self.counts['kept']:,} kept + "
            + (f"{waiting:,} that a model decides on + " if waiting else "")
            + f"{left_out:,} left out ({reasons or 'none'})"
            + (f"; would be written: {written}" if written and not waiting else "")
        )


def seconds_as_before(meta_path: Path, mark: Mapping[str, str], read: int) -> float | None:
    """How long so many rows take, by the finished run of the same settings whose .meta.json stands
    there. None: there is none, or it went on from a stopped one, so that nobody knows its whole time,
    or it had so few rows that loading was most of it."""
    with suppress(DataError, KeyError, TypeError, ValueError, ZeroDivisionError):
        meta = read_meta(meta_path) or {}
        was = meta["fingerprint"]
        names = {name for name, _ in was.items() ^ mark.items()} - {"setting limit", "setting seed"}
        before, is_known = meta["counts"]["read"], not meta.get("went_on")
        is_alike = all(name.startswith("input ") for name in names) and 4 * before >= read
        if is_known and is_alike:
            return round(meta["seconds"] / before * read, 1)
    return None


def rows_of(path: Path) -> int | None:
    """Rows of a file of rows; None: it is none, or cannot be read."""
    if path.is_dir() or path.suffix in _NOT_ROWS or not path.exists():
        return None
    with suppress(Exception):  # what is wrong with it has been said, where it is wrong for the run
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_metadata(path).num_rows
        if path.suffix in JSON_ENDINGS[::2]:  # a line is a row
            with open(path, "rb") as file:
                return sum(1 for line in file if line.strip())
        return sum(1 for _ in read_records(path))
    return None


def _each(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(file for path in paths for file in split_files(path) or [path]))


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows[1:])
    first = f"{rows[0][0]}; {rows[0][1]}"
    return [first, *(f"  {name:<{width}}  {words}" for name, words in rows[1:])]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 1:
        return "a second"
    return f"{seconds:.0f} seconds" if minutes < 2 else f"{minutes} minutes {rest} seconds"
