"""Which format a file is in, by the columns of its first rows and by how each format reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefpipe.formats.compared import side_of
from prefpipe.formats.layout import number, root, value_at
from prefpipe.formats.pair_reader import PairReader
from prefpipe.formats.reading import Format, Reader, RecordReader
from prefpipe.formats.turns import Unusable, is_empty, is_missing
from prefpipe.rows import as_turns

Rows = Sequence[Mapping[str, Any]]
UNPAIRED: dict[str, tuple[set[str], ...]] = {
    "one answer and a label a row (as KTO takes)": (
        {"completion", "label"}, {"messages", "label"}, {"conversations", "label"},
        {"messages", "kto_tag"}, {"conversations", "kto_tag"},
    ),
    "steps with labels a row (as a process reward model, PRM, takes)": (
        {"completions", "labels"}, {"steps", "labels"}, {"question", "process", "label"},
    ),
    "one answer with ratings a row": (
        {"response", "helpfulness"}, {"response", "is_safe"}, {"response", "feedback"},
        {"response", "score"}, {"response", "rating"}, {"orig_response", "orig_score"},
    ),
    "a judge's text a row": ({"usrmsg", "target_output"},),
    "a message a row (OpenAssistant)": ({"message_id", "parent_id", "role"},),
}  # fmt: skip
"""Sets that hold no pairs, by the columns that tell them."""
_ASKED = (
    "prompt",
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "question",
    "turns",
)
_TEXT_ALONE = {"text", "id", "source", "system"}


class Chosen(NamedTuple):
    """A file's format."""

    name: str
    form: Format
    why: str = ""


@dataclass(frozen=True)
class _Fit:
    """How a format reads a file's first rows."""

    fitting: int
    """Rows that it can read, or knows by name why not."""
    columns: set[str]
    """Columns that it reads and that hold something."""
    outcomes: list[Any]
    has_pairs: bool


def reader_of(form: Format, seed: int) -> Reader:
    """A reader that has met no record yet."""
    return PairReader(form.layout, seed) if form.layout else RecordReader(form)


def recognise(named: Mapping[str, Format], rows: Rows, prompts: bool) -> Chosen:
    """The one of these formats that the rows are in. Raises ValueError where none is, or where two
    read them otherwise."""
    there = {name: form for name, form in named.items() if form.auto and _is_there(form, rows)}
    found = {name: _fit(form, rows, prompts) for name, form in there.items()}
    fits = {name: fit for name, fit in found.items() if fit.fitting}
    if not fits:
        # where columns tell the format its rows then say what is wrong with them
        known = (name for name, form in there.items() if not _is_unlike(form, rows))
        telling = next((name for name in known if _is_telling(there[name])), None)
        name = "skywork" if not rows or _has_a_side(rows) else telling
        if name and not any(map(unpaired, rows[:1])):
            return Chosen(name, named[name])
        raise ValueError(_why_none(named, rows, prompts))
    best = _best(fits)
    columns = {name: ", ".join(sorted(fits[name].columns)) for name in best}
    if len(best) > 1:
        shown = "; ".join(f"{name} ({columns[name]})" for name in best[:4])
        raise ValueError(f"fits more than one format: {shown}; choose with --format")
    return Chosen(best[0], named[best[0]], f", by its columns {columns[best[0]]}")


def fitting(named: Mapping[str, Format], record: Mapping[str, Any], prompts: bool) -> list[str]:
    """The names of the formats that read a record, also of those that are never recognised."""
    asks = not is_empty(record.get("prompt"))
    there = (
        name
        for name, form in named.items()
        if _is_there(form, [record]) and not (asks and form.layout and form.layout.common_beginning)
    )
    return [name for name in there if _fit(named[name], [record], prompts).fitting]


def unpaired(record: Mapping[str, Any]) -> str | None:
    """What a set is called that holds no pairs, by the columns of a record; None: it may hold some."""
    chosen = record.get("chosen")
    if isinstance(chosen, list) and chosen and all(isinstance(text, str) for text in chosen):
        return "several right and wrong answers a row (a benchmark: RewardBench 2, RM-Bench)"
    for named, signs in UNPAIRED.items():
        if any(sign <= record.keys() for sign in signs):
            return named
    return None


def margin_in(form: Format, rows: Rows) -> str | None:
    """The column of margins; None where it is a number in no row ("much better"), so that it is not
    read, which is said."""
    name = form.layout.margin if form.layout else None
    found = [row[name] for row in rows if name and not is_missing(row.get(name))]
    return name if not found or any(map(_is_number, found)) else None


def _is_number(value: Any) -> bool:
    try:
        return number(value, "margin") is not None
    except ValueError:
        return False


def _fit(form: Format, rows: Rows, prompts: bool) -> _Fit:
    rows = _rows_of(form, rows)
    if _is_unlike(form, rows):
        rows = []
    reader = reader_of(form, 0)
    outcomes = [_outcome(reader, row, prompts) for row in rows]
    columns = form.layout.columns() if form.layout else set(form.needs)
    filled = {name for row in rows for name, value in row.items() if not is_empty(value)}
    has_pairs = not (form.layout and form.layout.only_prompts)
    fitting = sum(found is not None for found in outcomes)
    return _Fit(fitting, columns & filled, outcomes, has_pairs)


def _is_unlike(form: Format, rows: Rows) -> bool:
    """Some label is none of the format's: of another set with the same columns all may mean another."""
    if form.layout is None or not form.layout.label:
        return False
    found = (_at(row, form.layout.label) for row in rows)
    return any(not is_missing(label) and side_of(form.layout, label) is None for label in found)


def _outcome(reader: Reader, row: Mapping[str, Any], prompts: bool) -> Any:
    """What a row is read as; None: it cannot be, by this format."""
    try:
        if prompts:
            return as_turns(reader.prompt(row).prompt)
        return [
            (as_turns(pair.prompt), pair.chosen, pair.rejected, pair.tie, pair.margin)
            for pair in reader.read(row)
        ]
    except Unusable as error:
        return error.reason
    except ValueError:
        return None


def _rows_of(form: Format, rows: Rows) -> Rows:
    """The rows but for those in which `text` may be a document, for all that other columns say."""
    if form.layout is None or "text" not in form.layout.prompt:
        return rows
    return [row for row in rows if "prompt" in row or _TEXT_ALONE.issuperset(row)]


def _is_there(form: Format, rows: Rows) -> bool:
    """Some row has each column without which a file is none of this format."""
    rows = _rows_of(form, rows)
    if not rows or not all(any(name in row for row in rows) for name in form.needs):
        return False
    if (layout := form.layout) is None:
        return True
    if layout.scores and layout.compared() == ["chosen", "rejected"]:  # nothing else tells it
        scores = {root(name) for both in layout.scores for name in both}
        if not any(scores & row.keys() for row in rows):
            return False
    needed: list[tuple[str, ...]] = [(name,) for name in layout.compared()]
    if layout.only_prompts or layout.answers or layout.candidates:
        needed.append(layout.conversation or layout.prompt)
    return all(
        any(_at(row, path) is not None for row in rows for path in paths)
        for paths in filter(None, needed)
    )


def _at(row: Mapping[str, Any], path: str) -> Any:
    """The value at that path; where a text on the way is broken JSON, that there is no such value."""
    try:
        return value_at(row, path)
    except ValueError:
        return None


def _is_telling(form: Format) -> bool:
    """Its columns alone tell it, whatever stands in them; one column is too little."""
    return not form.layout.transcripts if form.layout else len(form.needs) > 1


def _has_a_side(rows: Rows) -> bool:
    """Pairs are meant, of which something is missing."""
    return any("chosen" in row or "rejected" in row for row in rows)


def _best(fits: Mapping[str, _Fit]) -> list[str]:
    """The names of those that no other one is better than: that reads more columns, or `prompt` in
    place of another column, or more rows; of those that read every row alike the first one stands
    for all."""

    def is_better(one: _Fit, other: _Fit) -> bool:
        asks = "prompt" in one.columns and "prompt" not in other.columns
        asks = asks and one.has_pairs == other.has_pairs
        return (other.columns < one.columns or asks) and 2 * one.fitting >= other.fitting

    names = [n for n, fit in fits.items() if not any(is_better(one, fit) for one in fits.values())]
    most = max(fits[name].fitting for name in names)
    names = [name for name in names if fits[name].fitting == most]
    first = fits[names[0]]
    return names[:1] if all(fits[name].outcomes == first.outcomes for name in names) else names


def _why_none(named: Mapping[str, Format], rows: Rows, prompts: bool) -> str:
    shown = ", ".join({name: None for row in rows for name in row})[:120]
    if prompts:
        return f"no known format has the columns {shown}; name the prompt's with --prompt-column"
    if found := unpaired(rows[0]):
        return f"unpaired: {found}; needed are two answers to a prompt, and which one is better"
    if any(name in row for row in rows for name in _ASKED):
        return f"no pairs but prompts or conversations alone: found the columns {shown}"
    return (
        f"no known format has the columns {shown}; name --prompt-column, --chosen-column and "
        "--rejected-column, or --answer-columns and --label-column, or choose a --format"
    )
