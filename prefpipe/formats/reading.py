"""What the readers of published formats share: where records are, their fields, the rows made of them.

A reader gets one record (a dict) and gives a row, or raises ValueError naming the field, what was
found and what was wanted.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prefpipe.rows import Message, Preference, Question, ScoredQuestion, answer_of

ROLES = ("system", "user", "assistant", "tool")
Record = Mapping[str, Any]
Verdicts = Sequence[tuple[bool | None, bool | None]]
"""For each item, whether a judge was right with the answers as given, and swapped; None: unreadable."""


@dataclass(frozen=True, slots=True)
class Format:
    """A published format: how a record is read and, where it has one, how its score is published."""

    read: Callable[[Record], Preference | Question]
    """A Preference; with several_answers, a Question. Raises ValueError."""
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


def read_turns(value: Any, name: str) -> list[Message]:
    """The value of that field, which must be a list of {role, content}; what else is in them is dropped."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name}: found {type(value).__name__}, wanted a list of turns")
    turns = []
    for number, turn in enumerate(value):
        where = f"{name}[{number}]"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise ValueError(f"{where}: found {str(turn)[:60]!r}, wanted role and content as text")
        if turn.get("role") not in ROLES:
            raise ValueError(f"{where}.role: found {turn.get('role')!r}, wanted one of {ROLES}")
        turns.append(Message(role=turn["role"], content=turn["content"]))
    return turns


def id_field(record: Record, content: Any) -> str:
    """The record's id, a whole number as its digits; where it has none, a hash of the content: the
    same in every run and every order."""
    id = record.get("id")
    if id is None or id == "":  # "" is how a CSV file says that there is none
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise ValueError(f"id: found {id!r}, wanted a text")
    return str(id)


def source_field(record: Record) -> str | None:
    """Where the record says that it comes from; None: it does not say."""
    if isinstance(source := record.get("source"), str | None):
        return source or None
    raise ValueError(f"source: found {source!r}, wanted a text")


def _margin(value: Any) -> float | None:
    if value in (None, ""):
        return None
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and 0 <= float(value) < math.inf:
            return float(value)
    raise ValueError(f"margin: found {value!r}, wanted a number >= 0")


def _tie(value: Any) -> bool:
    word = value.lower() if isinstance(value, str) else value  # CSV has it as a word
    if word in ("true", "false", "") or isinstance(word, bool | None):
        return word in (True, "true")
    raise ValueError(f"tie: found {value!r}, wanted true or false")


def to_preference(
    record: Record, prompt: str | list[Message], chosen: str, rejected: str
) -> Preference:
    """id, source, margin and tie are the record's, where it has them."""
    return Preference(
        id=id_field(record, [prompt, chosen, rejected]),
        source=source_field(record),
        margin=_margin(record.get("margin")),
        tie=_tie(record.get("tie")),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
    )


def to_labelled_preference(
    record: Record,
    name: str,
    *,
    prompt: str,
    answers: tuple[str, str],
    better: Mapping[int, int | None],
    subset: str,
) -> Preference:
    """A pair in any order, whose `label` says which answer is better.

    prompt, answers, subset: the names of the fields; source becomes name/<subset>. better: label ->
    the answer's index; None: a tie.
    """
    texts = [text_field(record, answer) for answer in answers]
    label = field(record, "label")
    if type(label) is not int or label not in better:
        raise ValueError(f"label: found {label!r}, wanted one of {sorted(better)}")
    index = better[label]
    chosen, rejected = texts if index != 1 else texts[::-1]
    source = f"{name}/{record[subset]}" if record.get(subset) else name
    named = {**record, "source": source, "tie": index is None}
    return to_preference(named, prompt_field(record, prompt), chosen, rejected)


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
