"""What a folder of outputs holds: the runs that ended there, and files of rows, by what stands in them.

A file's kind is told by its first row, never by its name: --output may have put it anywhere.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prefpipe import rows
from prefpipe.files.meta import read_meta
from prefpipe.files.records import DataError, R, parse_row, read_records, typed_rows
from prefpipe.rows import Row

_NOT_DATA = {"checkpoints", "cache", "batches", "errors", "runs"}
_LOOKED_AT = 20  # rows, of which one must be whole
_WORKED_ON = ("a line of the resume log",)
_KINDS: list[type[Row]] = [
    kind
    for kind in vars(rows).values()
    if isinstance(kind, type)
    and issubclass(kind, Row)
    and kind is not Row
    and not any(words in (kind.__doc__ or "") for words in _WORKED_ON)
]
STAGES = [
    "preprocess_dataset",
    "translation",
    "inference_best_of_n",
    "inference_all",
    "post_processing",
    "construct_dpo_dataset",
    "dpo_dataset",
    "dpo_training",
    "accuracy",
    "train_reward_model",
    "train_pairwise_model",
    "rank_responses",
    "build_vector_store",
    "build_pairwise_prefs",
    "generate_responses",
    "create_annotation_mix",
    "annotate_preferences",
    "parse_preferences",
]
"""In the order in which they are shown; of the four paths, see README.md."""


@dataclass(frozen=True)
class StageRun:
    """One finished run of a stage, as its .meta.json tells it."""

    stage: str
    place: str
    """Its folder, within the folder of the report."""
    meta: dict[str, Any]
    rejects: Path

    @property
    def name(self) -> str:
        """Stage and place: a stage may have run in several folders."""
        return f"{self.stage} ({self.place})"

    @property
    def counts(self) -> dict[str, Any]:
        """How many rows were read, kept, and left out by reason."""
        return {"read": 0, "kept": 0, "left_out": {}} | self.meta.get("counts", {})

    @property
    def settings(self) -> dict[str, Any]:
        return self.meta.get("settings", {})


@dataclass
class RowFile:
    """A file of rows of one kind."""

    path: Path
    name: str
    """Its path within the folder of the report."""
    kind: type[Row]
    limit: int | None
    strict: bool
    bad: list[str] = field(default_factory=list)
    """Place and fault of the first rows that could not be read, and in bad_count how many."""
    bad_count: int = 0

    def read(self, kind: type[R]) -> Iterator[R]:
        """Its rows, each once. A bad one is counted, or with strict raises DataError; where the file
        is broken (no UTF-8, cut) what stands behind is not read, and counts as one."""
        self.bad, self.bad_count = [], 0
        try:
            for place, row in typed_rows(self.path, kind, self.limit):
                if isinstance(row, ValueError):
                    if self.strict:
                        raise DataError(f"{place}: {row}")
                    self._count(f"{place}: {row}")
                elif row:
                    yield row
        except DataError as error:
            if self.strict:
                raise
            self._count(str(error))

    def _count(self, fault: str) -> None:
        self.bad_count += 1
        self.bad = [*self.bad, fault][:3]


@dataclass
class Folder:
    """All that one report shows."""

    root: Path
    limit: int | None = None
    strict: bool = False

    @cached_property
    def paths(self) -> list[Path]:
        """Every file that a stage may have left here, in order."""
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _NOT_DATA)
            found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        return found

    def within(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @cached_property
    def runs(self) -> list[StageRun]:
        """The finished runs, in the order of the paths."""
        found = []
        for path in self.paths:
            if path.name.endswith(".meta.json") and (meta := read_meta(path)):
                if not _has_numbers(meta):
                    raise DataError(
                        f"{path}: is damaged: found other than numbers as its counts or seconds; "
                        "run the stage again with --overwrite"
                    )
                base = path.name.removesuffix(".meta.json")
                rejects = path.with_name(f"{base}.rejects.jsonl")
                place = self.within(path.parent)
                found.append(StageRun(str(meta.get("stage", base)), place, meta, rejects))
        order = {stage: k for k, stage in enumerate(STAGES)}
        return sorted(found, key=lambda run: (order.get(run.stage, len(order)), run.place))

    @cached_property
    def row_files(self) -> list[RowFile]:
        """The files of rows, of whichever kind."""
        found = []
        for path in self.paths:
            is_rows = path.suffix in (".jsonl", ".parquet") and ".rejects." not in path.name
            if is_rows and path.stat().st_size and (kind := kind_of(path)):
                found.append(RowFile(path, self.within(path), kind, self.limit, self.strict))
        return found

    def of(self, kind: type[Row]) -> list[RowFile]:
        """The files of rows of this kind, or of one derived from it."""
        return [file for file in self.row_files if issubclass(file.kind, kind)]

    def named(self, *endings: str) -> list[Path]:
        """The files whose names end like this."""
        return [path for path in self.paths if path.name.endswith(endings)]


def _has_numbers(meta: dict[str, Any]) -> bool:
    """Whether the ledger and the times of a run are such."""
    counts, tokens = meta.get("counts", {}), meta.get("tokens", {})
    if not isinstance(counts, dict) or not isinstance(tokens, dict):
        return False
    left_out = counts.get("left_out", {})
    if not isinstance(left_out, dict) or not isinstance(meta.get("settings", {}), dict):
        return False
    numbers = [meta.get("seconds", 0), counts.get("read", 0), counts.get("kept", 0)]
    return all(isinstance(n, int | float) for n in (*numbers, *left_out.values(), *tokens.values()))


def kind_of(path: Path) -> type[Row] | None:
    """The row type of the first row that can be read; None: no stage wrote it."""
    records: list[Any] = []
    with suppress(DataError):  # broken: what came before tells its kind
        records.extend(record for _, record in read_records(path, _LOOKED_AT))
    for record in records:
        fits = [k for k in _KINDS if isinstance(record, dict) and _has_fields(record, k)]
        for kind in sorted(fits, key=lambda kind: -len(kind.model_fields)):
            with suppress(ValueError):
                parse_row(record, kind)
                return kind
    return None


def _has_fields(record: dict[str, Any], kind: type[Row]) -> bool:
    fields = kind.model_fields
    needed = {name for name, field in fields.items() if field.is_required()}
    return needed <= record.keys() <= fields.keys()


def read_report(path: Path) -> dict[str, Any]:
    """A report in JSON that a stage wrote; empty where it is none any more."""
    with suppress(ValueError):
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict):
            return report
    return {}
