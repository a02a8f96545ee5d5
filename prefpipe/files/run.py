"""One run of one stage: what it reads, emits and leaves out, and the ledger that must add up."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefpipe.files.fingerprint import difference, fingerprint, input_files
from prefpipe.files.ids import Places
from prefpipe.files.meta import read_meta, write_meta
from prefpipe.files.outputs import beside, json_text, without_ending, write_text
from prefpipe.files.plan import NOT_ASKED, DryRunEnd, Plan, seconds_as_before
from prefpipe.files.records import DataError, R, typed_rows
from prefpipe.files.resume import RowLog
from prefpipe.files.run_files import NoFiles, RunFiles
from prefpipe.rows import Reject, Row


@dataclass(frozen=True)
class StageFacts:
    """What a Run needs to know of the stage and its settings (Stage.open_run fills it in)."""

    stage: str
    depends_on: dict[str, Any]
    """The settings that change rows."""
    settings: dict[str, Any]
    """All settings, for .meta.json."""
    limit: int | None
    overwrite: bool
    strict: bool
    leave_out_failing: bool = False
    """Rows that a server fails on are left out (of stages that ask one)."""
    dry_run: bool = False
    """Nothing is written: Run.plan says what would be done."""
    is_other_rank: bool = False
    """One of several processes that do the same, of which another one writes."""


class Run(AbstractContextManager["Run"]):
    """One run of one stage.

        with s.open_run(inputs=[s.input], outputs={s.output: Item}) as run:
            if run.finished: return
            for row in run.read(s.input, Preference):
                run.emit(build_item(row), to=s.output)

    Every row read gets exactly one emit: a row, several rows, or a Reject. Leaving the block
    renames the outputs into place and prints the closing line; an exception leaves them absent.
    """

    def __init__(
        self,
        facts: StageFacts,
        *,
        inputs: Sequence[Path],
        outputs: Mapping[Path, type[Row]],
        home: Path | None = None,
        unit: str = "rows",
        made: Sequence[Path] = (),
        follows_input: bool = False,
        card: Callable[["Run"], None] | None = None,
    ) -> None:
        """Check, before any work, that the run may be made: inputs are there, outputs not another's.
        `.meta.json` and `.rejects.jsonl` stand beside the output, under its name; for several outputs
        in one folder give that as home, and they stand in it under the stage's name. unit: what the
        closing line calls the rows read. made: files that the stage itself writes, to
        run.temporary(path). follows_input: outputs of another input are no reason to stop; they are
        replaced. card: writes the card of the outputs, once they are in place and all is counted.
        """
        self.facts, self.outputs, self._unit = facts, outputs, unit
        self._inputs, self._made, self._card = inputs, made, card
        self._follows_input = follows_input
        self.stage = facts.stage
        base = home / self.stage if home else without_ending(next(iter(outputs)))
        self.meta_path = base.with_name(base.name + ".meta.json")
        self.rejects_path = base.with_name(base.name + ".rejects.jsonl")
        self._log_base = base
        self.mark = fingerprint(self.stage, facts.depends_on, inputs)
        self.summary: dict[str, Any] = {}
        """What else goes into .meta.json."""
        self.read_count = self.kept_count = 0
        self.first_bad = ""
        """Place and fault of the first row that could not be read."""
        self.written: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.went_on = False
        """From what a stopped run had done."""
        read = {path.resolve() for path in input_files(inputs)}
        for path in read.intersection(path.resolve() for path in outputs):
            raise DataError(f"{path}: is the input; choose another output")
        self._started = time.monotonic()
        shown = [*outputs, *made] or [base.parent]
        self.plan = Plan(self.stage, unit, inputs, shown) if facts.dry_run else None
        """None: it is no dry run."""
        # from here on, so that the second of two runs has done nothing when it is refused
        self._files = (
            NoFiles(base, self.mark, starts_anew=facts.overwrite, is_alone=not facts.is_other_rank)
            if facts.dry_run or facts.is_other_rank
            else RunFiles(base, self.mark)
        )
        self.finished = self._is_finished()
        if facts.overwrite:
            self._files.delete(self.meta_path)

    def _is_finished(self) -> bool:
        if self.facts.overwrite or (meta := read_meta(self.meta_path)) is None:
            return False
        if (was := meta["fingerprint"]) != self.mark:
            changes = {name for name, _ in was.items() ^ self.mark.items()}
            if self._follows_input and all(name.startswith("input ") for name in changes):
                return False
            changed = difference(was, self.mark)
            raise SystemExit(
                f"{self.meta_path}: made with other settings or input ({changed}); "
                "--overwrite replaces it, or choose another --output"
            )
        if not all(path.exists() for path in (*self.outputs, *self._made)):
            return False
        print(f"{self.stage}: finished before: {meta['closing_line']}; --overwrite starts anew")
        if self.plan:
            self.plan.before = meta["closing_line"]
        self._files.delete_logs()  # of a run that was killed between its last two steps
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
        for place, row in typed_rows(path, row_type, limit or self.facts.limit):
            if not isinstance(row, ValueError):
                places.check(row.key, place)
            elif self.facts.strict:
                raise DataError(f"{place}: {row}")
            yield place, row

    def bad_row(self, place: str, error: ValueError) -> None:
        """A row that could not be read: rejected, or with --strict the end of the run."""
        if self.facts.strict:
            raise DataError(f"{place}: {error}")
        reason = getattr(error, "reason", "bad_row")  # of one that says why in a word
        self.first_bad = self.first_bad or f"{place}: {error}"[:300]
        self.emit(Reject(id=place, reason=reason, detail=str(error)))

    # -- rows out

    def emit(
        self, result: Row | Sequence[Row], to: Path | Callable[[Any], Path] | None = None
    ) -> None:
        """What became of one row read: a Reject, or rows; to: their output, or each one's."""
        if isinstance(result, Reject):
            self.left_out[result.reason] += 1
            self._files.writer(self.rejects_path, Reject).write(result)
            return
        rows = [result] if isinstance(result, Row) else result
        path = to or next(iter(self.outputs))
        self.keep(*((path(row) if callable(path) else path, row) for row in rows))

    def keep(self, *rows: tuple[Path, Row]) -> None:
        """One row read became these (output, row)."""
        self.kept_count += 1
        for path, row in rows:
            self._files.writer(path, self.outputs[path]).write(row)
            self.written[path.name] += 1

    def temporary(self, path: Path) -> Path:
        """Where the stage itself writes a file of `made`; it is renamed with the outputs."""
        return self._files.temporary(path)

    def write_text(self, path: Path, text: str) -> None:
        """A file of `made`; a dry run writes none."""
        if not self.plan:
            write_text(self.temporary(path), text)

    def write_json(self, path: Path, value: Any) -> None:
        """The same, of an indented JSON file."""
        self.write_text(path, json_text(value))

    def open_log(self, row_type: type[R], name: str = "") -> RowLog[R]:
        """The run's resume log; deleted once the outputs are in place."""
        log = self._files.open_log(row_type, name)
        if len(log):
            self.went_on = True
            print(f"{self.stage}: going on from {len(log)} done before", file=sys.stderr)
        return log

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind in (None, DryRunEnd) and not self.finished:
                self._check_rows()
                self._finish() if self.plan is None else self._finish_dry(self.plan)
        finally:
            self._files.end(*self._made)
        if self.plan and kind is None:
            raise DryRunEnd  # what stands behind the block tells of outputs, which are not there

    def _check_rows(self) -> None:
        """Raise where there is no result: not one row, or not one that could be used."""
        lost = self.read_count - self.kept_count - sum(self.left_out.values())
        if lost:
            raise AssertionError(f"{self.stage}: {lost} of {self.read_count} rows unaccounted for")
        if not self.read_count:
            read = [str(path) for path in self._inputs if path.suffix not in (".jinja", ".toml")]
            raise DataError(f"{', '.join(read)}: no row to read")
        if not self.kept_count and not self.left_out[NOT_ASKED]:
            self.keep_rejects()
            first = f"; first: {self.first_bad}" if self.first_bad else ""
            raise SystemExit(
                f"{self.stage}: not one of {self.read_count} {self._unit} could be used "
                f"({dict(self.left_out.most_common())}){first}; each with its reason in "
                f"{self.rejects_path}"
            )

    def _finish_dry(self, plan: Plan) -> None:
        left_out = dict(self.left_out.most_common())
        waiting = left_out.pop(NOT_ASKED, 0)
        counts = {"read": self.read_count, "kept": self.kept_count, "left_out": left_out}
        plan.counts = counts | {"waiting": waiting, "written": dict(self.written)}
        plan.logged.update({str(log.path): len(log) for log in self._files.logs if len(log)})
        plan.read_as = self.summary.get("inputs", ())
        plan.seconds = seconds_as_before(self.meta_path, self.mark, self.read_count)

    def _finish(self) -> None:
        for path, row_type in [*self.outputs.items(), (self.rejects_path, Reject)]:
            self._files.writer(path, row_type)
        self.meta_path.unlink(missing_ok=True)  # until all is in place, the run is not finished
        self._files.put_in_place()
        for path in self._made:
            os.replace(beside(path, ".tmp"), path)
        if self._card:
            self._card(self)
        line = self.closing_line()
        meta = {
            "stage": self.stage,
            "closing_line": line,
            "counts": {
                "read": self.read_count,
                "kept": self.kept_count,
                "left_out": dict(self.left_out.most_common()),
                "written": dict(self.written),
            },
            **self.summary,
            **({"went_on": True} if self.went_on else {}),
            "seconds": round(time.monotonic() - self._started, 3),
            "settings": self.facts.settings,
            "fingerprint": self.mark,
        }
        write_meta(self.meta_path, meta)
        for log in self._files.logs:
            log.delete()
        print(line)

    def keep_rejects(self) -> None:
        """Put the rejects in place, of a run that ends here without an output."""
        self._files.writer(self.rejects_path, Reject)
        self._files.put_in_place(self.rejects_path)

    def reasons(self) -> str:
        """Why rows were left out, with their counts, the most frequent first."""
        return ", ".join(f"{n} {reason}" for reason, n in self.left_out.most_common())

    def closing_line(self) -> str:
        """read = kept + left out by reason."""
        written = ", ".join(f"{n} in {name}" for name, n in self.written.items())
        return (
            f"{self.meta_path.parent}: {self.read_count} {self._unit} read = {self.kept_count} kept + "
            f"{sum(self.left_out.values())} left out ({self.reasons() or 'none'}); "
            f"written: {written or 'nothing'}"
        )
