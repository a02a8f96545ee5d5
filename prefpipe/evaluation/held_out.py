"""What is measured: held-out rows of ours and of published benchmarks, as items and as questions."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from prefpipe.files import DataError, Named, Places, Run, data_files, parse_row
from prefpipe.formats import FORMATS
from prefpipe.formats.opening import AUTO, NO_IDS, HowRead, OpenFile, say
from prefpipe.formats.reading import Format, to_question
from prefpipe.formats.turns import Unusable
from prefpipe.judge import build_item
from prefpipe.rows import Item, Preference, Question, Reject, Row

Kind = Literal["judge", "dpo", "reward", "pairwise"]
R = TypeVar("R", bound=Row)
VALIDATION = "validation"


class Measured(NamedTuple):
    """A kind of model on a set of held-out rows."""

    kind: Kind
    name: str
    """`validation` (Item rows), or the benchmark's format; auto: as `how` says."""
    path: Path
    how: HowRead = HowRead()

    @property
    def is_judged(self) -> bool:
        """Both judges write about each item; else a model ranks the responses to each question."""
        return self.kind == "judge" and not (
            self.name in FORMATS and FORMATS[self.name].several_answers
        )


def parse_benchmarks(entries: Iterable[str], setting: str = "--benchmark") -> dict[str, Path]:
    """name=path, each name once. SystemExit, naming the setting, where one is not."""
    paths: dict[str, Path] = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        form = FORMATS.get(name)
        has_pairs = form is not None and not (form.layout and form.layout.only_prompts)
        if not (name == AUTO or has_pairs) or not path:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            which = f"; near: {near[0]}" if near else ", as --help lists them for --format"
            raise SystemExit(f"{setting} {entry}: wanted name=path, name a format{which}")
        if name in paths:
            raise SystemExit(f"{setting} {entry}: {name} is given twice; run the stage for each")
        paths[name] = Path(path)
    return paths


def items(
    measured: Measured, run: Run, *, seed: int, template: str | None
) -> Iterator[Item | Reject]:
    """The items of a set: as they are, or made of a published format's pairs."""
    for _, row in _rows(measured, run):
        if isinstance(row, Preference):
            yield build_item(row, split="validation", seed=seed, template=template)
        elif not isinstance(row, Question):
            yield row


def questions(measured: Measured, run: Run) -> Iterator[Question | Reject]:
    """The rows of a set as questions; what no model can be asked is a Reject."""
    for place, row in _rows(measured, run):
        if isinstance(row, Item):
            yield _question_of(row)
        elif isinstance(row, Reject):
            yield row
        elif reason := row.fault:
            yield Reject(id=row.id, reason=reason, detail=place)
        else:
            yield to_question(row) if isinstance(row, Preference) else row


def _question_of(item: Item) -> Question:
    answers = [item.answer_1, item.answer_2]
    right, wrong = answers if item.better != 2 else answers[::-1]
    return Question(
        id=item.id,
        prompt=item.question,
        right=[right],
        wrong=[wrong],
        tie=item.better is None,
        source=item.source,
    )


def _rows(
    measured: Measured, run: Run
) -> Iterator[tuple[str, Item | Preference | Question | Reject]]:
    """(place, row) of each record, a Reject for one that is no row (with --strict: DataError)."""
    for place, row in rows_of(measured, run.facts.limit, partial(say, run)):
        if not isinstance(row, ValueError):
            yield place, row
        elif run.facts.strict:
            raise DataError(f"{place}: {row}")
        else:
            reason = getattr(row, "reason", "bad_row")
            yield place, Reject(id=place, reason=reason, detail=str(row))


def rows_of(
    measured: Measured, limit: int | None, tell: Callable[[list[str]], Any] = len
) -> Iterator[tuple[str, Item | Preference | Question | ValueError]]:
    """(place, row) of each record, or why it is none. Raises DataError where two have the same id
    that is not made of their content; a copy of a row without one is a reason. tell: gets, once all is read, what a person should know of how a published set was read."""
    places = Places()
    for place, row, has_id in _read(measured, limit, tell):
        if isinstance(row, ValueError):
            yield place, row
        elif has_id:
            places.check(row.id, place, NO_IDS if measured.name == AUTO else "")
            yield place, row
        elif first := places.seen_at(row.id, place):
            yield place, Unusable("duplicate_row", f"equal to {first}")
        else:
            yield place, row


def _read(
    measured: Measured, limit: int | None, tell: Callable[[list[str]], Any]
) -> Iterator[tuple[str, Item | Preference | Question | ValueError, bool]]:
    """The same, and whether the row came with an id."""
    # a file has no splits, though another of the sets may be a folder that has
    part = {} if measured.path.is_file() else {**measured.how.part, "use": "test"}
    own = measured.name == VALIDATION
    if own or FORMATS.get(measured.name, FORMATS["sky"]).several_answers:
        read = partial(parse_row, row_type=Item) if own else FORMATS[measured.name].read
        assert read
        named = [Named(str(f)) for f in data_files(measured.path)] if own else None
        for data in named or [Named(measured.path.as_posix(), **part)]:
            for place, record in data.records(limit):
                try:
                    yield place, _raised(record) or read(record), True
                except ValueError as error:
                    yield place, error, True
        return
    if measured.name == AUTO:
        how = replace(measured.how, part=part)
    else:
        how = HowRead(measured.name, seed=measured.how.seed, part=part)
    file = OpenFile(measured.path.as_posix(), how, limit)
    for place, record in file.records():
        rows = file.pairs(record)
        if isinstance(rows, ValueError):
            yield place, rows, True
        else:
            has_id = file.reader.has_id(record)
            yield from ((place, row, has_id) for row in rows)
    tell(file.lines())


def _raised(record: Any) -> None:
    """Raise what a line that is no JSON comes as."""
    if isinstance(record, ValueError):
        raise record


def prompt_of(row: Item | Preference | Question) -> Any:
    """What is asked."""
    return row.question if isinstance(row, Item) else row.prompt


def published_score(
    name: str, by_source: Mapping[str, float | None], other: Callable[[Format], Any]
) -> Any:
    """A score as the benchmark's own leaderboard takes it; None where it has none.

    by_source: accuracies. other: the score by a format that takes it of something else.
    """
    form = FORMATS.get(name)
    if form and form.published_of_subsets:
        accuracy = {s.partition("/")[2]: share for s, share in by_source.items()}
        return form.published_of_subsets({s: a for s, a in accuracy.items() if a is not None})
    return other(form) if form else None


def counted(run: Run, rows: Iterable[R | Reject]) -> Iterator[R]:
    """The rows that can be used; each counts as read, and what is left out is emitted."""
    for row in rows:
        run.read_count += 1
        if isinstance(row, Reject):
            run.emit(row)
        else:
            yield row
