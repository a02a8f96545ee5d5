"""A file of preferences or of prompts, read as often as it takes, in the format that it is in."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prefpipe.files import DataError, Named, Run
from prefpipe.formats import FORMATS
from prefpipe.formats.guard import lines_of
from prefpipe.formats.layout import Layout, root
from prefpipe.formats.reading import Format, Reader
from prefpipe.formats.recognise import Chosen, fitting, margin_in, reader_of, recognise, unpaired
from prefpipe.formats.turns import Unusable
from prefpipe.rows import Preference

AUTO = "auto"
FIRST = 32
"""Rows by which a file's format is recognised."""
NO_IDS = " (--id-column None makes them of the content)"
"""The way out where the ids of a published set repeat."""
_COLUMNS = (
    "prompt", "system", "id", "source", "chosen", "rejected", "answers", "label", "strength", "scores",
    "candidates", "margin", "tie",
)  # fmt: skip
"""Fields of Layout that are names of columns."""
_COMPARED = {"prompt", "chosen", "rejected", "answers", "label", "strength", "scores", "candidates"}


@dataclass(frozen=True)
class HowRead:
    """How rows are read: a format's name, or auto; and the columns that a person has named."""

    format: str = AUTO
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Layout, in place of the format's own."""
    seed: int = 0
    prompts: bool = False
    """Prompts are read, so that sets without pairs will do."""
    part: Mapping[str, str | None] = field(default_factory=dict)
    """Which split, config and revision, of data that have several: fields of files.Named."""

    def choose(self, file: str, records: Sequence[Any]) -> Chosen:
        """The format of a file, of which these are the first records. Raises DataError where none
        fits, or more than one, or where no record has a column that is named."""
        rows = [record for record in records if isinstance(record, Mapping)]
        if rows and (missing := _in_none_of(rows, self.columns)):
            there = ", ".join(dict.fromkeys(str(name) for row in rows for name in row))
            raise DataError(f"{file}: no row has the column {missing!r}; the columns are {there}")
        if self.format != AUTO:
            return Chosen(self.format, _with(FORMATS[self.format], **self.columns))
        if _COMPARED & self.columns.keys():
            plain = Format(layout=Layout(only_prompts=self.prompts))
            return Chosen("the columns that are named", _with(plain, **self.columns))
        named = {name: _with(form, **self.columns) for name, form in self._known().items()}
        named = {name: _with(form, margin=margin_in(form, rows)) for name, form in named.items()}
        try:
            chosen = recognise(named, rows, self.prompts)
        except ValueError as error:
            raise DataError(f"{file}: {error}") from None
        # from here on a plain text among transcripts is no fault
        return chosen._replace(form=_with(chosen.form, transcripts=False))

    def reader(self, form: Format) -> Reader:
        """A reader that has met no record yet."""
        return reader_of(form, self.seed)

    def hint(self, record: Any) -> str:
        """What a person may do about a record that could not be read; empty where nothing is known."""
        if not isinstance(record, Mapping):
            return ""
        if named := unpaired(record):
            return f"; it is unpaired: {named}"
        others = {name: form for name, form in self._known().items() if name != self.format}
        names = fitting(others, record, self.prompts)
        return f"; --format {' or '.join(names[:3])} reads it" if names else ""

    def _known(self) -> dict[str, Format]:
        """Formats of what is read, each under its first name."""
        once: dict[int, tuple[str, Format]] = {}
        for name, form in FORMATS.items():
            alone = form.layout is not None and form.layout.only_prompts
            if not form.several_answers and (self.prompts or not alone):
                once.setdefault(id(form), (name, form))
        return dict(once.values())


def _in_none_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> str | None:
    """A column that is named and in none of the rows; what stands inside a candidate is no column."""
    fields = (value for name, value in columns.items() if name in _COLUMNS)
    paths = (path for field in fields for path in _flat(field))
    return next((p for p in paths if not any(p in row or root(p) in row for row in rows)), None)


def _flat(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    for name in names if isinstance(names, tuple) else ():
        yield from _flat(name)


def _with(form: Format, **fields: Any) -> Format:
    """The format with these fields of its layout; one that is read by a function stays as it is."""
    if form.layout is None:
        return form
    return dataclasses.replace(form, layout=dataclasses.replace(form.layout, **fields))


class OpenFile:
    """A file, a folder or a name on the hub, read as often as it takes, always in the same format."""

    def __init__(self, name: str, how: HowRead, limit: int | None) -> None:
        self.how, self._limit = how, limit
        self._data = Named(name, **how.part)
        self.name = f"{name}[{self._data.split}]" if self._data.split else name
        self.chosen: Chosen | None = None
        self.reader: Reader
        """Of the pass under way; it has met the records that came so far."""

    def records(self) -> Iterator[tuple[str, Any]]:
        """(place, record) of each; a pass with a reader of its own. Raises DataError."""
        records = self._data.records(self._limit)
        first = list(itertools.islice(records, 0 if self.chosen else FIRST))
        chosen = self.chosen or self.how.choose(self.name, [record for _, record in first])
        self.chosen, self.reader = chosen, self.how.reader(chosen.form)
        yield from itertools.chain(first, records)

    def pairs(self, record: Any) -> list[Preference] | ValueError:
        """The pairs of one of its records, or what is wrong with it."""
        if isinstance(record, ValueError):  # a line that is no JSON, as read_records gives it
            return record
        try:
            return self.reader.read(record)
        except ValueError as error:
            return error

    def owned(
        self, place: str, record: Any, owns: Callable[[str], bool]
    ) -> list[Preference] | ValueError | None:
        """The same; None where another shard owns the record. One that has an id is not read for that;
        else it is its first pair's, which is made of its content."""
        id = None
        with suppress(ValueError):
            id = None if isinstance(record, ValueError) else self.reader.own_id(record)
        if id is not None and not owns(id):
            return None
        met = self.reader.guard.state() if id is None else None
        rows = self.pairs(record)
        if id is None:
            id = place if isinstance(rows, ValueError) else rows[0].id
        if owns(id):
            return rows
        if met:
            self.reader.guard.restore(met)
        return None

    def hint(self, record: Any, error: ValueError) -> str:
        """What a person may do about what is wrong with one of its records."""
        return "" if isinstance(error, Unusable) else self.how.hint(record)

    def lines(self, counts: Counter[Any] | None = None) -> list[str]:
        """How it was read, and what a person should know of it, once all of it is. counts: of its
        guards in all shards."""
        assert self.chosen
        counts = self.reader.guard.counts() if counts is None else counts
        return [
            f"{self.name}: read as {self.chosen.name}{self.chosen.why}",
            *(f"{self.name}: {line}" for line in lines_of(counts)),
        ]


def say_counts(run: Run, files: Sequence[OpenFile]) -> None:
    """say of files of which a shard reads its own rows only, so that what was met adds up."""
    lines = []
    for number, file in enumerate(files):
        counts = run.counter(f"guard {number}")
        if run.shards.reads:
            counts.clear()  # of an earlier pass
            counts.update(file.reader.guard.counts())
        else:
            next(file.records(), None)  # so that its format is known
            run.summary.pop("inputs", None)  # one shard's
        lines += file.lines(counts)
    say(run, lines)


def say(run: Run, lines: Sequence[str]) -> None:
    """Print once how files were read, and what a person should know; it stands in .meta.json, too."""
    said = run.summary.setdefault("inputs", [])
    new = [line for line in lines if line not in said]
    said += new
    if new:
        print("\n".join(new))
