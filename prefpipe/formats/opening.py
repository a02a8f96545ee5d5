"""A file of preferences or of prompts: which format its first rows are in, and the reader of all its rows."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from prefpipe.files import DataError, Run
from prefpipe.formats import FORMATS
from prefpipe.formats.guard import Guard
from prefpipe.formats.layout import Layout, margin_of, root, value_at
from prefpipe.formats.pair_reader import PairReader
from prefpipe.formats.reading import Format, read_named
from prefpipe.formats.turns import Unusable, is_empty, is_missing
from prefpipe.rows import Preference, Prompt, Responses, answer_of, as_turns, flatten_turns

AUTO = "auto"
FIRST = 32
"""Rows by which a file's format is recognised."""
UNPAIRED: dict[str, tuple[set[str], ...]] = {
    "one answer and a label a row (as KTO takes)": (
        {"completion", "label"}, {"messages", "label"}, {"conversations", "label"},
        {"messages", "kto_tag"}, {"conversations", "kto_tag"},
    ),
    "steps with labels (as a process reward model takes)": (
        {"completions", "labels"}, {"steps", "labels"}, {"question", "process", "label"},
    ),
    "single answers with ratings": (
        {"response", "helpfulness"}, {"response", "is_safe"}, {"response", "feedback"},
        {"response", "score"}, {"response", "rating"}, {"orig_response", "orig_score"},
    ),
    "a judge's text a row": ({"usrmsg", "target_output"},),
    "a message a row (OpenAssistant)": ({"message_id", "parent_id", "role"},),
}  # fmt: skip
"""Sets that hold no pairs, by the columns that tell them."""
_TEXT_ALONE = {"text", "id", "source", "system"}
_COMPARED = {"prompt", "chosen", "rejected", "answers", "label", "strength", "scores", "candidates"}


class Reader(Protocol):
    """What reads the records of one file."""

    guard: Guard

    def read(self, record: Any) -> list[Preference]: ...
    def question(self, record: Any) -> str: ...
    def prompt(self, record: Any) -> Prompt: ...
    def responses(self, record: Any) -> Responses: ...
    def has_id(self, record: Mapping[str, Any]) -> bool: ...


class RecordReader:
    """Reads by a format's own function."""

    def __init__(self, form: Format) -> None:
        self._read = form.read
        self.guard = Guard(set())

    def read(self, record: Any) -> list[Preference]:
        """One pair a record. Raises ValueError."""
        row = self._read(record) if self._read else None
        if not isinstance(row, Preference):
            raise ValueError("the row: found more than two answers, wanted a pair")
        return [row]

    def question(self, record: Any) -> str:
        """The question that the pair asks."""
        return flatten_turns(self.read(record)[0].prompt)

    def prompt(self, record: Any) -> Prompt:
        """What the answers answer."""
        (row,) = self.read(record)
        return Prompt(id=row.id, prompt=row.prompt, source=row.source)

    def responses(self, record: Any) -> Responses:
        """The prompt with both answers."""
        (row,) = self.read(record)
        answers = [answer_of(row.chosen), answer_of(row.rejected)]
        return Responses(id=row.id, prompt=row.prompt, responses=answers, source=row.source)

    def has_id(self, record: Mapping[str, Any]) -> bool:
        return not is_missing(record.get("id"))


@dataclass(frozen=True)
class HowRead:
    """How rows are read: a format's name, or auto; and the columns that a person has named."""

    format: str = AUTO
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Layout, in place of the format's own."""
    seed: int = 0
    prompts: bool = False
    """Prompts are read, so that sets without pairs will do."""

    def choose(self, file: str, records: Sequence[Any]) -> "Chosen":
        """The format of a file, of which these are the first records. Raises DataError where none
        fits, or more than one."""
        if self.format != AUTO:
            return Chosen(self.format, self._with_columns(FORMATS[self.format]))
        if _COMPARED & self.columns.keys():
            plain = FORMATS["prompt" if self.prompts else "skywork"]
            layout = Layout(only_prompts=self.prompts)
            form = self._with_columns(dataclasses.replace(plain, layout=layout))
            return Chosen("the columns that are named", form)
        rows = [record for record in records if isinstance(record, Mapping)]
        named = {
            name: _with(form, margin=_margin_in(form, rows))
            for name, form in (
                (name, self._with_columns(form)) for name, form in self._known().items()
            )
        }
        there = {name: form for name, form in named.items() if form.auto and _is_there(form, rows)}
        fits = {name: fit for name, form in there.items() if (fit := self._fit(form, rows)).fitting}
        if not fits:
            # its rows then say what is wrong with them; one column is too little to tell by
            known = (n for n, form in there.items() if _is_telling(form))
            name = "skywork" if not rows or _has_a_side(rows) else next(known, None)
            if name and not any(map(_unpaired, rows[:1])):
                return Chosen(name, named[name])
            raise DataError(f"{file}: {self._why_none(rows)}")
        best = _best(fits)
        if len(best) > 1:
            shown = "; ".join(
                f"{name} ({', '.join(sorted(fits[name].columns))})" for name in best[:4]
            )
            raise DataError(f"{file}: fits more than one format: {shown}; choose with --format")
        # from here on a plain text among transcripts is no fault
        columns = ", ".join(sorted(fits[best[0]].columns))
        return Chosen(
            best[0], _with(named[best[0]], transcripts=False), f", by its columns {columns}"
        )

    def reader(self, form: Format) -> Reader:
        """A reader that has met no record yet."""
        return PairReader(form.layout, self.seed) if form.layout else RecordReader(form)

    def hint(self, record: Any) -> str:
        """What a person may do about a record that could not be read; empty where nothing is known."""
        if not isinstance(record, Mapping):
            return ""
        if named := _unpaired(record):
            return f"; it is no pair but {named}"
        fitting = [
            name
            for name, form in self._known().items()
            if name != self.format
            and _is_there(form, [record])
            and self._fit(form, [record]).fitting
        ]
        return f"; --format {' or '.join(fitting[:3])} reads it" if fitting else ""

    def _known(self) -> dict[str, Format]:
        """Formats of what is read, each under its first name."""
        once: dict[int, tuple[str, Format]] = {}
        for name, form in FORMATS.items():
            if form.several_answers or (is_only_prompts(form) and not self.prompts):
                continue
            once.setdefault(id(form), (name, form))
        return dict(once.values())

    def _with_columns(self, form: Format) -> Format:
        return _with(form, **self.columns)

    def _fit(self, form: Format, rows: Sequence[Mapping[str, Any]]) -> "_Fit":
        if (
            form.layout and "text" in form.layout.prompt
        ):  # beside other columns it may be a document
            rows = [row for row in rows if "prompt" in row or _TEXT_ALONE.issuperset(row)]
        reader = self.reader(form)
        read = [self._outcome(reader, row) for row in rows]
        fitting = sum(outcome is not None for outcome in read)
        columns = form.layout.columns() if form.layout else set(form.needs)
        filled = {name for row in rows for name, value in row.items() if not is_empty(value)}
        return _Fit(fitting, columns & filled, read)

    def _outcome(self, reader: Reader, row: Mapping[str, Any]) -> Any:
        """What a row is read as; None: it cannot be, by this format."""
        try:
            if self.prompts:
                return as_turns(reader.prompt(row).prompt)
            return [
                (as_turns(pair.prompt), pair.chosen, pair.rejected, pair.tie, pair.margin)
                for pair in reader.read(row)
            ]
        except Unusable as error:
            return error.reason
        except ValueError:
            return None

    def _why_none(self, rows: Sequence[Mapping[str, Any]]) -> str:
        columns = {name: None for row in rows for name in row}
        shown = ", ".join(columns)[:120] or "none"
        if rows and (named := _unpaired(rows[0])) and not self.prompts:
            return f"no pairs but {named}; pairs are needed: two answers to a prompt, the better one known"
        if self.prompts:
            return (
                f"no known format has the columns {shown}; name the prompt's with --prompt-column"
            )
        alone = dataclasses.replace(self, prompts=True)
        if rows and any(alone._fit(form, rows[:1]).fitting for form in alone._known().values()):
            return f"no pairs but prompts or conversations alone: found the columns {shown}"
        return (
            f"no known format has the columns {shown}; name --prompt-column, --chosen-column and "
            "--rejected-column, or --answer-columns and --label-column, or choose a --format"
        )


class Chosen(NamedTuple):
    """A file's format."""

    name: str
    form: Format
    why: str = ""


@dataclass(frozen=True)
class _Fit:
    """How a format reads a file's first rows."""

    fitting: int
    columns: set[str]
    outcomes: list[Any]


def is_only_prompts(form: Format) -> bool:
    """Nothing is compared in such a set."""
    return form.layout is not None and form.layout.only_prompts


def _rows_of(form: Format, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows but for those in which `text` may be a document, for all that other columns say."""
    if form.layout is None or "text" not in form.layout.prompt:
        return rows
    return [row for row in rows if "prompt" in row or _TEXT_ALONE.issuperset(row)]


def _has_a_side(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Pairs are meant, of which something is missing."""
    return any("chosen" in row or "rejected" in row for row in rows)


def _is_there(form: Format, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Some row has each column without which a file is none of this format."""
    rows = _rows_of(form, rows)
    if not rows or not all(any(name in row for row in rows) for name in form.needs):
        return False
    needed: list[str] = []
    if layout := form.layout:
        needed += layout.compared()
        if layout.only_prompts or layout.answers or layout.candidates:
            paths = layout.conversation or layout.prompt
            if paths and not any(value_at(row, path) is not None for row in rows for path in paths):
                return False
        if layout.scores and not layout.answers:
            names = {root(name) for both in layout.scores for name in both}
            if not any(names & row.keys() for row in rows):
                return False
    return all(any(value_at(row, path) is not None for row in rows) for path in needed)


def _is_telling(form: Format) -> bool:
    """Its columns alone tell it, whatever stands in them."""
    return not form.layout.transcripts if form.layout else len(form.needs) > 1


def _with(form: Format, **fields: Any) -> Format:
    """The format with these fields of its layout; one that is read by a function stays as it is."""
    if form.layout is None:
        return form
    return dataclasses.replace(form, layout=dataclasses.replace(form.layout, **fields))


def _margin_in(form: Format, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The column of margins; None where it is a number in no row ("much better"), so that it is not
    read, which is said."""
    name = form.layout.margin if form.layout else None
    found = [row[name] for row in rows if name and not is_missing(row.get(name))]
    return name if not found or any(map(_is_number, found)) else None


def _is_number(value: Any) -> bool:
    try:
        return margin_of(value, "margin") is not None
    except ValueError:
        return False


def _best(fits: Mapping[str, _Fit]) -> list[str]:
    """The names of those that no other one is better than: that reads more columns, or more rows;
    of those that read every row alike the first one stands for all."""
    names = [
        name
        for name, fit in fits.items()
        if not any(fit.columns < other.columns and 2 * other.fitting >= fit.fitting for other in fits.values())
    ]  # fmt: skip
    most = max(fits[name].fitting for name in names)
    names = [name for name in names if fits[name].fitting == most]
    first = fits[names[0]]
    return names[:1] if all(fits[name].outcomes == first.outcomes for name in names) else names


def _unpaired(record: Mapping[str, Any]) -> str | None:
    chosen = record.get("chosen")
    if isinstance(chosen, list) and chosen and all(isinstance(text, str) for text in chosen):
        return "several right and wrong answers a row (a benchmark: RewardBench 2, RM-Bench)"
    for named, signs in UNPAIRED.items():
        if any(sign <= record.keys() for sign in signs):
            return named
    return None


class OpenFile:
    """A file, a folder or a name on the hub, read as often as it takes, always in the same format."""

    def __init__(self, name: str, how: HowRead, limit: int | None) -> None:
        self.name, self.how, self._limit = name, how, limit
        self.chosen: Chosen | None = None
        self.reader: Reader
        """Of the pass under way; it has met the records that came so far."""

    def records(self) -> Iterator[tuple[str, Any]]:
        """(place, record) of each; a pass with a reader of its own. Raises DataError."""
        records = read_named(self.name, self._limit)
        if self.chosen is None:
            first = list(itertools.islice(records, FIRST))
            self.chosen = self.how.choose(self.name, [record for _, record in first])
            records = itertools.chain(first, records)
        self.reader = self.how.reader(self.chosen.form)
        yield from records

    def pairs(self, record: Any) -> list[Preference] | ValueError:
        """The pairs of one of its records, or what is wrong with it."""
        if isinstance(record, ValueError):  # a line that is no JSON, as read_records gives it
            return record
        try:
            return self.reader.read(record)
        except ValueError as error:
            return error

    def with_hint(self, record: Any, error: ValueError) -> ValueError:
        """The error of one of its records, with what a person may do about it."""
        if isinstance(error, Unusable):
            return error
        return ValueError(f"{error}{self.how.hint(record)}")

    def lines(self) -> list[str]:
        """How it was read, and what a person should know of it, once all of it is."""
        assert self.chosen
        return [
            f"{self.name}: read as {self.chosen.name}{self.chosen.why}",
            *(f"{self.name}: {line}" for line in self.reader.guard.lines()),
        ]


def say(run: Run, files: Sequence[OpenFile]) -> None:
    """Print how these files were read, and what a person should know; it stands in .meta.json, too."""
    lines = [line for file in files for line in file.lines()]
    run.summary["inputs"] = lines
    print("\n".join(lines))
