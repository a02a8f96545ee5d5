"""One run of one stage: what it reads, emits and leaves out, and the ledger that must add up."""

import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefpipe.files.fingerprint import fingerprint, input_files
from prefpipe.files.ledger import by_number
from prefpipe.files.meta import is_of_another_run, read_meta, write_meta
from prefpipe.files.outputs import json_text, without_ending, write_text
from prefpipe.files.plan import NOT_ASKED, DryRunEnd, Plan, seconds_as_before
from prefpipe.files.records import DataError, R
from prefpipe.files.resume import RowLog
from prefpipe.files.rows_in import RowsIn
from prefpipe.files.run_files import NoFiles, RunFiles
from prefpipe.files.shards import Shards, write_places
from prefpipe.files.stage_facts import StageFacts
from prefpipe.rows import Reject, Row


class ShardEnd(SystemExit):
    """A shard that keeps logs has come as far as it goes; no error."""


class Run(RowsIn, AbstractContextManager["Run"]):
    """One run of one stage.

        with s.open_run(inputs=[s.input], outputs={s.output: Item}) as run:
            if run.finished: return
            for row in run.read(s.input, Preference):
                run.emit(build_item(row), to=s.output)

    Every row read gets exactly one emit: a row, several rows, or a Reject. Leaving the block
    renames the outputs into place and prints the closing line; an exception leaves them absent.

    A run may be one shard of several: it then reads the rows that it owns, and writes in a folder of
    its own. The run that puts the shards together reads no row; it begins with what they counted.
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
        by_logs: bool = False,
    ) -> None:
        """Check, before any work, that the run may be made: inputs are there, outputs not another's.
        `.meta.json` and `.rejects.jsonl` stand beside the output, under its name; for several outputs
        in one folder give that as home, and they stand in it under the stage's name. unit: what the
        closing line calls the rows read. made: files that the stage itself writes, to
        run.temporary(path). follows_input: outputs of another input are no reason to stop; they are
        replaced. card: writes the card of the outputs, once they are in place and all is counted.
        by_logs: what becomes of a row hangs on the others (a table), so that of shards their logs are
        put together, and the rows are made of these as one run makes them.
        """
        base = home / facts.stage if home else without_ending(next(iter(outputs)))
        super().__init__(facts, Shards(facts.shard, base, by_logs=by_logs), [*outputs])
        self.outputs, self._unit = outputs, unit
        self._inputs, self._made, self._card = inputs, made, card
        self._follows_input = follows_input
        self.stage = facts.stage
        base = self.shards.at(base)
        self.meta_path = base.with_name(base.name + ".meta.json")
        self.rejects_path = base.with_name(base.name + ".rejects.jsonl")
        self.mark = fingerprint(self.stage, facts.depends_on, inputs)
        self.summary: dict[str, Any] = {}
        """What else goes into .meta.json."""
        self._types: dict[Path, type[Row]] = {**outputs, self.rejects_path: Reject}
        self._places: dict[Path, array[int]] = defaultdict(lambda: array("q"))
        self._failures: dict[str, dict[str, Any]] = {}
        self.went_on = False
        """From what a stopped run had done."""
        read = {path.resolve() for path in input_files(inputs)}
        for path in read.intersection(path.resolve() for path in outputs):
            raise DataError(f"{path}: is the input; choose another output")
        self._started = time.monotonic()
        shown = [self.shards.at(path) for path in (*outputs, *made)] or [base.parent]
        self.plan = Plan(self.stage, unit, inputs, shown) if facts.dry_run else None
        """None: it is no dry run."""
        # from here on, so that the second of two runs has done nothing when it is refused
        self._files = (
            NoFiles(base, self.mark, starts_anew=facts.overwrite, is_alone=not facts.is_other_rank)
            if facts.dry_run or facts.is_other_rank
            else RunFiles(base, self.mark, self.shards.at)
        )
        try:
            self.finished = self._is_finished()
            if facts.overwrite:
                self._files.delete(self.meta_path)
            if facts.shard.puts_together and not self.finished:
                self._begin_with_shards()
        except BaseException:
            self._files.end()
            raise

    def failures(self, log: str) -> dict[str, Any]:
        """What could not be asked, by its id: [reason, detail]; kept by shards that keep logs."""
        return self._failures.setdefault(log, {})

    def _begin_with_shards(self) -> None:
        for meta in self.shards.read_metas(self.mark):
            for log, failures in meta["shard"]["failures"].items():
                self.failures(log).update(failures)
            if self.shards.reads:
                self.add_spent(meta)
            else:
                self.add(meta)
                self.summary |= {name: meta[name] for name in ["inputs"] if name in meta}

    def _is_finished(self) -> bool:
        meta = None if self.facts.overwrite else read_meta(self.meta_path)
        if meta is None:
            return self.shards.is_put_together(self.mark) and not self.facts.overwrite
        if is_of_another_run(meta, self.meta_path, self.mark, follows_input=self._follows_input):
            return False
        paths = () if self.shards.keeps_logs else (*self.outputs, *self._made)
        if not all(self.shards.at(path).exists() for path in paths):
            return False
        print(f"{self.stage}: finished before: {meta['closing_line']}; --overwrite starts anew")
        if self.plan:
            self.plan.before = meta["closing_line"]
        if not self.shards.keeps_logs:  # of a run that was killed between its last steps
            self._files.delete_logs()
        self.shards.delete()
        return True

    # -- rows out

    def emit(
        self, result: Row | Sequence[Row], to: Path | Callable[[Any], Path] | None = None
    ) -> None:
        """What became of one row read: a Reject, or rows; to: their output, or each one's."""
        if self.shards.keeps_logs:  # what becomes of it is found where the shards are put together
            return
        if isinstance(result, Reject):
            self.left_out[result.reason] += 1
            self._write(self.rejects_path, result)
            return
        rows = [result] if isinstance(result, Row) else result
        path = to or next(iter(self.outputs))
        self.keep(*((path(row) if callable(path) else path, row) for row in rows))

    def keep(self, *rows: tuple[Path, Row]) -> None:
        """One row read became these (output, row)."""
        self.kept_count += 1
        for path, row in rows:
            self._write(path, row)
            self.written[path.name] += 1

    def _write(self, path: Path, row: Row) -> None:
        self._files.writer(path, self._types[path]).write(row)
        if self.facts.shard.is_part:
            self._places[path].append(self.position)

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
        for path in self.shards.to_take(log.path):
            log.take(path)
        if len(log) and not self.facts.shard.puts_together:
            self.went_on = True
            print(f"{self.stage}: going on from {len(log)} done before", file=sys.stderr)
        return log

    def end_shard(self) -> None:
        """End the run here where it is a shard whose logs are all that it makes."""
        if self.shards.keeps_logs:
            raise ShardEnd(0)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind in (None, DryRunEnd, ShardEnd) and not self.finished:
                self._check_rows()
                self._finish() if self.plan is None else self._finish_dry(self.plan)
        finally:
            self._files.end(*self._types, *self._made)
        if self.plan and kind is None:
            raise DryRunEnd  # what stands behind the block tells of outputs, which are not there

    def _check_rows(self) -> None:
        """Raise where there is no result: not one row, or not one that could be used."""
        if self.shards.keeps_logs:
            return
        lost = self.read_count - self.kept_count - sum(self.left_out.values())
        if lost:
            raise AssertionError(f"{self.stage}: {lost} of {self.read_count} rows unaccounted for")
        if self.facts.shard.is_part:  # what one shard has not, another may have
            return
        if not self.read_count:
            read = [str(path) for path in self._inputs if path.suffix not in (".jinja", ".toml")]
            raise DataError(f"{', '.join(read)}: no row to read")
        if not self.kept_count and not self.left_out[NOT_ASKED]:
            self.keep_rejects()
            first = f"; first: {self.first_bad}" if self.first_bad else ""
            raise SystemExit(
                f"{self.stage}: not one of {self.read_count} {self._unit} could be used "
                f"({by_number(self.left_out)}){first}; each with its reason in "
                f"{self.rejects_path}"
            )

    def _finish_dry(self, plan: Plan) -> None:
        counts = self.counts()
        plan.counts = counts | {"waiting": counts["left_out"].pop(NOT_ASKED, 0)}
        plan.logged.update({str(log.path): len(log) for log in self._files.logs if len(log)})
        plan.read_as = self.summary.get("inputs", ())
        plan.seconds = seconds_as_before(self.meta_path, self.mark, self.read_count)

    def _finish(self) -> None:
        shard, woven = self.facts.shard, [] if self.shards.reads else [*self._types]
        for path, row_type in self._types.items():
            if path in woven:
                self.shards.weave(path, self._files.temporary(path), row_type)
            else:
                self._files.writer(path, row_type)
        self.meta_path.unlink(missing_ok=True)  # until all is in place, the run is not finished
        self._files.put_in_place()
        for path in (*woven, *(() if self.shards.keeps_logs else self._made)):
            self._files.rename(path)
        if shard.is_part:
            for path in self._types:
                write_places(self.shards.at(path), self._places[path])
        elif self._card:
            self._card(self)
        line = self.closing_line(self.meta_path.parent, self._unit)
        if self.shards.keeps_logs:
            done = ", ".join(f"{len(log)} in {log.path.name}" for log in self._files.logs)
            line = f"{self.meta_path.parent}: shard {shard}: {done or 'done'}"
        meta = {
            "stage": self.stage,
            "closing_line": line,
            "counts": self.counts(),
            **self.spent(),
            **self.summary,
            **({"went_on": True} if self.went_on else {}),
            **(
                {"shard": self.as_shard(self.position + 1, self._failures)} if shard.is_part else {}
            ),
            "seconds": round(time.monotonic() - self._started, 3),
            "settings": self.facts.settings,
            "fingerprint": self.mark,
        }
        write_meta(self.meta_path, meta)
        for log in self._files.logs:
            log.close() if self.shards.keeps_logs else log.delete()
        self.shards.delete()
        print(line)

    def keep_rejects(self) -> None:
        """Put the rejects in place, of a run that ends here without an output."""
        self._files.writer(self.rejects_path, Reject)
        self._files.put_in_place(self.rejects_path)
