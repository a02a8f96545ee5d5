"""What a published format is; and what those share that are read by a function of their own.

Such a function gets one record (a dict) and gives a row, or raises ValueError naming the field, what
was found and what was wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prefpipe.formats.compared import Record, own_id, own_margin, own_tie
from prefpipe.formats.guard import Guard
from prefpipe.formats.layout import Layout, hash_of, source_of
from prefpipe.formats.turns import is_missing, read_turns
from prefpipe.rows import (
    Message,
    Preference,
    Prompt,
    Question,
    Responses,
    ScoredQuestion,
    answer_of,
    flatten_turns,
)

_OWN = Layout()
Verdicts = Sequence[tuple[bool | None, bool | None]]
"""For each item, whether a judge was right with the answers as given, and swapped; None: unreadable."""


@dataclass(frozen=True, slots=True)
class Format:
    """A published format: how a record is read and, where it has one, how its score is published.

    It is read by a function, or by a layout (a table of presets.toml).
    """

    read: Callable[[Record], Preference | Question] | None = None
    """A Preference; with several_answers, a Question. Raises ValueError."""
    layout: Layout | None = None
    about: str = ""
    """What it is, in a few words."""
    needs: tuple[str, ...] = ()
    """Columns by which a file of it is recognised; of a layout, those beside the compared ones."""
    auto: bool = True
    """A file may be recognised as one of it."""
    several_answers: bool = False
    """A prompt may have more than two responses: no judge's item, no pair to train on."""
    ranked_subsets: frozenset[str] = frozenset()
    """Sources of rows whose published score needs a score of each response, not the best one alone."""
    published_of_subsets: Callable[[Mapping[str, float]], dict[str, Any]] | None = None
    """The leaderboard's score, of the accuracy by subset; of a judge or of a model."""
    published_of_verdicts: Callable[[Verdicts], float | None] | None = None
    """The leaderboard's score of a judge."""
    published_of_scores: Callable[[Sequence[ScoredQuestion]], dict[str, Any]] | None = None
    """The leaderboard's score of a model that scores responses."""


class Reader(Protocol):
    """What reads the records of one file."""

    guard: Guard

    def read(self, record: Any) -> list[Preference]: ...
    def question(self, record: Any) -> str: ...
    def prompt(self, record: Any) -> Prompt: ...
    def responses(self, record: Any) -> Responses: ...
    def has_id(self, record: Mapping[str, Any]) -> bool: ...
    def own_id(self, record: Any) -> str | None: ...


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

    def own_id(self, record: Any) -> str | None:
        """The record's id where it has one. Raises ValueError."""
        return own_id(_OWN, record)


def field(record: Record, name: str) -> Any:
    """The value that must be there."""
    if not isinstance(record, Mapping):
        raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
    if (value := record.get(name)) is None:
        raise ValueError(f"{name}: missing; found {', '.join(map(str, record)) or 'nothing'}")
    return value


def text_field(record: Record, name: str) -> str:
    return as_text(field(record, name), name)


def as_text(value: Any, name: str) -> str:
    """The value of that field, which must be a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: found {type(value).__name__}, wanted text")
    return value


def prompt_field(record: Record, name: str = "prompt") -> str | list[Message]:
    """Text as it is, or turns."""
    value = field(record, name)
    return value if isinstance(value, str) else read_turns(value, name)


def to_preference(
    record: Record, prompt: str | list[Message], chosen: str, rejected: str
) -> Preference:
    """id, source, margin and tie are the record's, where it has them."""
    return Preference(
        id=own_id(_OWN, record) or hash_of([prompt, chosen, rejected]),
        source=source_of(record.get("source"), "source"),
        margin=own_margin(_OWN, record),
        tie=own_tie(_OWN, record),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
    )


def to_question(row: Preference) -> Question:
    """A pair as a question with one right and one wrong response."""
    return Question(
        id=row.id,
        prompt=row.prompt,
        right=[answer_of(row.chosen)],
        wrong=[answer_of(row.rejected)],
        tie=row.tie,
        source=row.source or "pairs",
    )
