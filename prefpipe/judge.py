"""What a judge is shown: a preference as a question with two answers, and the prompt that asks about it.

Everything here is a pure function of its rows and of (seed, id). What the judge wrote is read by
prefpipe/verdicts.py.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prefpipe import draws
from prefpipe.files import DataError
from prefpipe.languages import detect_language
from prefpipe.rows import (
    Item,
    Language,
    Preference,
    Reject,
    Split,
    answer_of,
    flatten_turns,
)

if TYPE_CHECKING:
    pass
from prefpipe.templates import escape_markers, load_template

# Where a judge prompt's question ends. A line of the question's own that says so is escaped.
_FIRST_ANSWER = re.compile(r"^\[(?:Answer 1|回答1)\]$", re.MULTILINE)


def judge_prompt(
    question: str,
    answer_1: str,
    answer_2: str,
    *,
    language: Language,
    hint: int | None = None,
    template: str | Path | None = None,
) -> str:
    """The judge's user turn; with a hint (1 or 2), the turn that asks why that answer is better.

    template: a name or file to use instead of `judge.<language>` (or `guide.<language>`); it gets
    question, answer_1, answer_2 and, for a hinted prompt, hint.
    """
    kind = "judge" if hint is None else "guide"
    values = {
        "question": escape_markers(question),
        "answer_1": escape_markers(answer_1),
        "answer_2": escape_markers(answer_2),
    }
    if hint is not None:
        values["hint"] = str(hint)
    name = template or f"{kind}.{language}"
    return load_template(name, frozenset(values)).render(**values)


def question_of(prompt: str) -> str:
    """The part of a judge prompt before its first answer; all of it where the template is another."""
    return _FIRST_ANSWER.split(prompt, maxsplit=1)[0]


def build_item(
    row: Preference, *, split: Split, seed: int, template: str | None = None
) -> Item | Reject:
    """The better answer stands first or second by a coin drawn from (seed, row.id).

    A tie stays a tie (better None) and is placed by the same coin. Left out: an empty question or
    answer, and answers that are equal but for white space.
    """
    question = flatten_turns(row.prompt)
    chosen, rejected = answer_of(row.chosen), answer_of(row.rejected)
    if not question.strip():
        return Reject(id=row.id, reason="empty_question")
    if not chosen.strip() or not rejected.strip():
        return Reject(id=row.id, reason="empty_answer")
    if _is_equal_but_for_space(chosen, rejected):
        return Reject(id=row.id, reason="equal_answers")
    better = 1 if draws.coin(seed, row.id) else 2
    answer_1, answer_2 = (chosen, rejected) if better == 1 else (rejected, chosen)
    language = detect_language(question)
    return Item(
        id=row.id,
        source=row.source or "unknown",
        split=split,
        language=language,
        question=question,
        answer_1=answer_1,
        answer_2=answer_2,
        better=None if row.tie else better,
        prompt=judge_prompt(question, answer_1, answer_2, language=language, template=template),
    )


def _is_equal_but_for_space(first: str, second: str) -> bool:
    if first.split(maxsplit=8)[:8] != second.split(maxsplit=8)[:8]:  # most texts differ early
        return False
    return first.split() == second.split()


def swap(item: Item, *, template: str | None = None) -> Item:
    """The same item with its answers the other way round, and the verdict with them.

    template: the one its prompt was made with. DataError where that gives another prompt.
    """

    def prompt(answer_1: str, answer_2: str) -> str:
        language = item.language
        return judge_prompt(item.question, answer_1, answer_2, language=language, template=template)

    if prompt(item.answer_1, item.answer_2) != item.prompt:
        raise DataError(
            f"item {item.id!r}: its prompt is not the template's; give --template as it was given "
            "to preprocess_dataset.py"
        )
    return item.model_copy(
        update={
            "answer_1": item.answer_2,
            "answer_2": item.answer_1,
            "better": None if item.better is None else 3 - item.better,
            "prompt": prompt(item.answer_2, item.answer_1),
        }
    )
