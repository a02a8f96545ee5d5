"""Which column of a published set holds what: a Layout; and the values of its columns as they are meant.

A column is a name, or a path into it: `question.full_text`, `answers[0].text`. What JSON, CSV and
pandas write differently (1, "1", 1.0, true; null, "", NaN) is one value here.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from prefpipe.formats.turns import Unusable, is_missing, not_text, parse_nested
from prefpipe.rated_pairs import HowPaired

TIES = frozenset(
    [
        "tie",
        "ties",
        "tied",
        "draw",
        "equal",
        "same",
        "neither",
        "both",
        "bothbad",
        "both_bad",
        "both_good",
        "tie(bothbad)",
    ]
)
"""Words that say in any set's label that neither answer is better; spaces do not count."""
_YES = {"true": True, "1": True, "yes": True, "tie": True}
_NO = {"false": False, "0": False, "no": False, "swapped": False, "unchanged": False}
_NO_NUMBER = ("nan", "none", "null", "n/a", "na")
_STEP = re.compile(r"[^.\[\]]+")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a set; of several names for one thing the first that a row has counts."""

    prompt: tuple[str, ...] = ("prompt",)
    """Text or turns. Not needed where the answers are turns that begin with the prompt's."""
    input: str | None = None
    """A second text of the prompt, on a line of its own behind it."""
    system: tuple[str, ...] = ("system", "system_prompt")
    chosen: str = "chosen"
    rejected: str = "rejected"
    answers: tuple[str, str] | None = None
    """Two answers in any order, in place of chosen and rejected: label, strength or scores say which
    is better."""
    label: str | None = None
    labels: tuple[str, ...] = ()
    """The label of the first answer, of the second, and more that are ties (TIES need not stand here)."""
    strength: str | None = None
    """A number: below the middle the first answer is better, above it the second; how far is the margin."""
    middle: float = 0.0
    furthest: float | None = None
    """A strength further from the middle is none: some sets have -100 for "nobody could tell"."""
    scores: tuple[tuple[str, str], ...] = ()
    """The scores of both answers. Equal ones are a tie, the difference is the margin."""
    scores_in_any_order: bool = False
    """The scores are those of both answers, but not which is whose."""
    lower_wins: bool = False
    """Scores are ranks."""
    scores_are_margins: bool = True
    """False: scores and strengths say who won only (as 0 and 1 do)."""
    candidates: str | None = None
    """A list of answers, in place of two."""
    text: str = ""
    """In a candidate: its text; empty: it is the text."""
    score: str = ""
    """In a candidate, or in its place in candidate_scores: its score."""
    candidate_scores: str | None = None
    against: str | None = None
    """An answer that each candidate was compared with; strength stands in the candidate then."""
    pairs: HowPaired = "best-vs-worst"
    """Which candidates become a pair."""
    id: str | None = "id"
    source: str | None = "source"
    set_name: str | None = None
    """Sources become set_name/<source>."""
    margin: str | None = "margin"
    tie: str | None = "tie"
    turn: str | None = None
    """How many answers of a conversation were judged; what follows was not."""
    transcripts: bool = False
    """The texts are transcripts; others are no rows of this set."""
    texts: bool = False
    """Prompt and answers are lists of texts, one of each a turn."""
    repeats_prompt: bool = False
    """Both answers begin with the prompt, which is cut off."""
    common_beginning: bool = False
    """What both texts begin with is the prompt: TRL's rule for a pair without one."""
    only_prompts: bool = False
    """A set of prompts or conversations: no two answers are compared."""
    conversation: tuple[str, ...] = ()
    """Of only_prompts: whole conversations; a prompt beside one is among its turns."""

    def compared(self) -> list[str]:
        """The columns without which no two answers and no winner are known."""
        if self.only_prompts:
            return []
        if self.candidates:
            return [self.candidates, *filter(None, (self.candidate_scores, self.against))]
        names = [*(self.answers or (self.chosen, self.rejected))]
        by = self.label or self.strength
        if self.answers:
            names += [by] if by else [*self.scores[0]]
        return names

    def columns(self) -> set[str]:
        """Every column that it reads where there is one."""
        more = (self.input, self.id, self.source, self.margin, self.tie, self.turn)
        names = [
            *self.compared(),
            *self.prompt,
            *self.conversation,
            *self.system,
            *filter(None, more),
        ]
        return {root(name) for name in (*names, *(n for both in self.scores for n in both))}


@lru_cache(maxsize=4096)
def _steps(path: str) -> tuple[str, ...]:
    return tuple(_STEP.findall(path))


def root(path: str) -> str:
    """The column that a path begins in."""
    return _steps(path)[0] if _steps(path) else path


def value_at(record: Any, path: str) -> Any:
    """The value at that path; None: there is none. A text on the way is read as JSON."""
    if type(record) is dict and path in record:  # most are plain names; a name may have a dot, too
        return record[path]
    value = record
    for step in _steps(path):
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            value = parse_nested(value, path)
        if isinstance(value, Mapping):
            value = value.get(step)
            if value is None:
                return None
        elif isinstance(value, list | tuple) and step.lstrip("-").isdigit():
            value = value[int(step)] if -len(value) <= int(step) < len(value) else None
        else:
            return None
    return value


def first_at(record: Any, paths: Sequence[str]) -> tuple[str, Any]:
    """The first of these paths at which something stands, and that; None: nothing does."""
    name, value = (paths[0] if paths else ""), None
    for path in paths:
        if not is_missing(found := value_at(record, path)):
            return path, found
        if value is None and found is not None:
            name, value = path, found
    return name, value


def missing(record: Mapping[str, Any], paths: Sequence[str], setting: str) -> ValueError:
    """The error of a record that has nothing at any of these paths."""
    if null := next((path for path in paths if path in record), None):
        return not_text(null, "null")
    return ValueError(f"{paths[0]}: missing; found {_shown(record)}; name yours with {setting}")


def _shown(record: Mapping[str, Any]) -> str:
    """Its columns, as far as a sentence has room for them."""
    there = ", ".join(map(str, record)) or "nothing"
    return there if len(there) <= 80 else f"{there[:77]}..."


def must(record: Mapping[str, Any], path: str, setting: str) -> Any:
    """The value that must stand at that path; setting: what names another one."""
    value = value_at(record, path)
    if value is None or value != value:
        raise missing(record, (path,), setting)
    return value


def winner_at(record: Mapping[str, Any], path: str, setting: str) -> Any:
    """What says which answer is better; Unusable where the row has the column and nothing in it."""
    value = value_at(record, path)
    if is_missing(value) and path in record:
        raise Unusable("unlabelled", f"{path}: found nothing: which answer is better is not said")
    return must(record, path, setting)


def number(value: Any, where: str) -> float | None:
    """A number, also as a text; None where it is missing. Raises ValueError."""
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() in _NO_NUMBER):
        return None
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(found := float(value)):
            return found
    raise ValueError(f"{where}: found {str(value)[:60]!r}, wanted a number")


def margin_of(value: Any, where: str) -> float | None:
    """How much better chosen is; None where it is not known. Raises ValueError."""
    if value is None:
        return None
    with suppress(ValueError):
        found = None if isinstance(value, bool) else number(value, where)
        if not isinstance(value, bool) and (found is None or found >= 0):
            return found
    raise ValueError(
        f"{where}: found {str(value)[:60]!r}, wanted a number >= 0 (--margin-column None: no margins)"
    )


def word_of(value: Any) -> str:
    """A label as a text in lower case: 1, 1.0, true and "1" are one label."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    word = str(value).strip().lower()
    return word[:-2] if re.fullmatch(r"-?\d+\.0", word) else word


def is_tie(value: Any, where: str) -> bool:
    """Raises ValueError where it is no word for yes or no."""
    if value is None or value is False or is_missing(value):
        return False
    word = word_of(value) if isinstance(value, bool | int | float | str) else ""
    word = "tie" if word in TIES else word
    if word in _YES or word in _NO:
        return word in _YES
    raise ValueError(f"{where}: found {str(value)[:60]!r}, wanted true or false")


def id_of(value: Any, where: str) -> str | None:
    """An id as a text: of a whole number (1, or 1.0 as pandas has it beside a gap) its digits; None
    where there is none. Raises ValueError."""
    if type(value) is str and value:
        return value
    if is_missing(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and abs(value) < 2**53 and value == int(value):
        return str(int(value))
    raise ValueError(
        f"{where}: found {str(value)[:60]!r}, wanted a text (--id-column names another)"
    )


def source_of(value: Any, where: str) -> str | None:
    """Where a row comes from: a text, or several. Raises ValueError."""
    if type(value) is str and value:
        return value
    if is_missing(value):
        return None
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return ", ".join(value) or None
    if isinstance(value, int | float):
        return word_of(value)
    raise ValueError(
        f"{where}: found {str(value)[:60]!r}, wanted a text (--source-column None: none)"
    )


def hash_of(content: Any) -> str:
    """An id for what has none: the same in every run and every order."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]
