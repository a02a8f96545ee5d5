"""What a run has on disk until it ends: its lock, rows on their way, resume logs; or nothing at all."""

import glob
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefpipe.files.outputs import Writer, beside, open_alone, open_writer, refuse_a_second
from prefpipe.files.records import DataError, R
from prefpipe.files.resume import ReadLog, RowLog
from prefpipe.rows import Row


class RunFiles:
    """Hidden files beside the outputs; base: the outputs' common beginning, `data/x`."""

    def __init__(self, base: Path, mark: dict[str, str], at: Callable[[Path], Path]) -> None:
        """at: where this run, which may be a shard, has what the whole one has at a path. Raises
        SystemExit where another run writes there."""
        self._base, self._mark, self._at = base, mark, at
        self._writers: dict[Path, Writer] = {}
        self.logs: list[RowLog[Any]] = []
        self._lock_path = base.with_name(f".{base.name}.lock")
        # a run that is refused later leaves no empty folder: the next stage would take it for an output
        self._new_folders = [path for path in self._lock_path.parents if not path.exists()]
        self._lock = open_alone(self._lock_path)

    def delete(self, meta_path: Path) -> None:
        """Take away what says that a run was finished, and its logs."""
        # some stages replace their files one by one: killed there, it is no finished run any more
        meta_path.unlink(missing_ok=True)
        self.delete_logs()

    def delete_logs(self) -> None:
        name = glob.escape(f".{self._base.name}.partial")
        for log in self._base.parent.glob(f"{name}*.jsonl"):
            log.unlink()

    def open_log(self, row_type: type[R], name: str) -> RowLog[R]:
        """A resume log. Raises DataError where an older version left one under another name."""
        base = self._base
        # the name behind "partial": an output called x.judge.jsonl has a log of its own beside x.jsonl's
        path = base.with_name(f".{base.name}.partial{'.' if name else ''}{name}.jsonl")
        names = (f".{base.name}.{name}.partial.jsonl", f".{base.name}.partial.jsonl")
        for old in {base.with_name(n) for n in names if name} - {log.path for log in self.logs}:
            if old.exists():
                raise DataError(
                    f"{old}: a stopped run of another version of prefpipe; finish it "
                    "with that one, or delete the file and start anew"
                )
        log = self._log(path, row_type)
        self.logs.append(log)
        return log

    def _log(self, path: Path, row_type: type[R]) -> RowLog[R]:
        return RowLog(path, row_type, self._mark)

    def writer(self, path: Path, row_type: type[Row]) -> Writer:
        """What writes rows beside path, until they are put in place."""
        if path not in self._writers:
            temporary = self.temporary(path)
            temporary.unlink(missing_ok=True)  # a killed run's; or a link that leads elsewhere
            self._writers[path] = open_writer(temporary, row_type)
        return self._writers[path]

    def temporary(self, path: Path) -> Path:
        path = self._at(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return beside(path, ".tmp")

    def put_in_place(self, *paths: Path) -> None:
        """Rename the rows that were written beside these paths; none: all of them."""
        paths = paths or tuple(self._writers)
        for path in paths:
            self._writers[path].close()
        for path in paths:
            self.rename(path)
            del self._writers[path]

    def rename(self, path: Path) -> None:
        """Give its name to what stands beside path."""
        os.replace(self.temporary(path), self._at(path))

    def end(self, *made: Path) -> None:
        """Leave nothing but outputs, and the logs that have rows. made: what a stage writes itself."""
        for writer in self._writers.values():
            with suppress(OSError, ValueError):  # a full disk has been told of already
                writer.close()
        for path in (*self._writers, *made):
            beside(self._at(path), ".tmp").unlink(missing_ok=True)
        for log in self.logs:
            log.close() if len(log) else log.delete()
        self._lock_path.unlink(missing_ok=True)  # while it is held: open_alone looks for that
        self._lock.close()
        for folder in self._new_folders:  # the innermost first
            with suppress(OSError):  # not empty
                folder.rmdir()


class NoFiles(RunFiles):
    """A dry run's, or those of a rank that another one writes for: what is there is looked at and left
    as it is, what would be written goes nowhere."""

    def __init__(
        self, base: Path, mark: dict[str, str], *, starts_anew: bool, is_alone: bool
    ) -> None:
        """starts_anew: the logs that are there would be deleted. is_alone: no other may write there."""
        self._base, self._mark, self._starts_anew = base, mark, starts_anew
        self.logs = []
        if is_alone:
            refuse_a_second(base.with_name(f".{base.name}.lock"))

    def delete(self, meta_path: Path) -> None: ...

    def delete_logs(self) -> None: ...

    def _log(self, path: Path, row_type: type[R]) -> RowLog[R]:
        return ReadLog(path, row_type, self._mark, is_new=self._starts_anew)

    def writer(self, path: Path, row_type: type[Row]) -> Writer:
        return _Nowhere()

    def temporary(self, path: Path) -> Path:
        raise AssertionError(f"{path}: a dry run ends before it is written")

    def put_in_place(self, *paths: Path) -> None: ...

    def rename(self, path: Path) -> None: ...

    def end(self, *made: Path) -> None:
        for log in self.logs:
            log.close()


class _Nowhere:
    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...
