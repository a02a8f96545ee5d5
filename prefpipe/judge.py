"""What a judge is shown: a preference as a question with two answers, and the prompt that asks about it.

A judge is asked in both orders of the answers (both_orders), since many prefer what stands first.
Everything here is a pure function of its rows and of (seed, id).
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefpipe import draws
from prefpipe.files import DataError
from prefpipe.languages import detect_language
from prefpipe.rows import (
    Completion,
    Item,
    Language,
    Preference,
    Reject,
    Split,
    answer_of,
    flatten_turns,
)
from prefpipe.templates import escape_markers, load_template
from prefpipe.verdicts import Unreadable, judgment_schema, parse_verdict

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

    What is written to it is read by verdicts.parse_verdict, or with a hint by read_hinted_reason.
    template: a name or file to use instead of `judge.<language>` (or `guide.<language>`); it gets
    question, answer_1, answer_2 and, for a hinted prompt, hint.
    """
    texts = {"question": question, "answer_1": answer_1, "answer_2": answer_2}
    values = {name: escape_markers(text) for name, text in texts.items()}
    if hint is not None:
        values["hint"] = str(hint)
    name = template or f"{'judge' if hint is None else 'guide'}.{language}"
    return load_template(name, frozenset(values)).render(**values)


def question_of(prompt: str) -> str:
    """The part of a judge prompt before its first answer; all of it where the template is another."""
    return _FIRST_ANSWER.split(prompt, maxsplit=1)[0]


def build_item(
    row: Preference, *, split: Split, seed: int, template: str | None = None
) -> Item | Reject:
    """The better answer stands first or second by a coin drawn from (seed, row.id); a tie stays a
    tie (better None) and is placed by the same coin. Left out is what Preference.fault names."""
    if reason := row.fault:
        return Reject(id=row.id, reason=reason)
    question = flatten_turns(row.prompt)
    chosen, rejected = answer_of(row.chosen), answer_of(row.rejected)
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


class Showing(NamedTuple):
    """Two answers, a and b, to a question as a judge sees them."""

    id: str
    """The request's: the caller's name for this order of the answers."""
    prompt: str
    language: Language
    swapped: bool
    """b stands first."""

    @property
    def reply_schema(self) -> dict[str, Any]:
        return judgment_schema(self.language)


def both_orders(
    ids: tuple[str, str],
    question: str,
    a: str,
    b: str,
    *,
    language: Language,
    template: str | None = None,
) -> tuple[Showing, Showing]:
    """(a, b) as given, and swapped, under these two ids of requests: who is asked in both orders
    has no say by position alone."""

    prompt = partial(judge_prompt, question, language=language, template=template)
    given, swapped = ids
    return (
        Showing(given, prompt(a, b), language, swapped=False),
        Showing(swapped, prompt(b, a), language, swapped=True),
    )


def item_in_both_orders(
    item: Item, ids: tuple[str, str], *, template: str | None = None, place: Path | str = "items"
) -> tuple[Showing, Showing]:
    """The item's two answers; the given order is its own prompt, made with this template: DataError
    where that gives another prompt. place: where the item stands, for that."""
    answers = (item.question, item.answer_1, item.answer_2)
    given, swapped = both_orders(ids, *answers, language=item.language, template=template)
    if given.prompt != item.prompt:
        raise DataError(
            f"{place}: item {item.id!r}: its prompt is not the template's; give --template as it was given "
            "to preprocess_dataset.py"
        )
    return given, swapped


def verdict(reply: list[Completion] | Reject, showing: Showing) -> int | Unreadable | Reject:
    """1: a is better, 2: b is, whichever stood first; or why that is not known, from what
    Replies.of gave. A text that cannot be read is no verdict, and not half a win."""
    if isinstance(reply, Reject):
        return reply
    parsed = parse_verdict(reply[0].text, finish_reason=reply[0].finish_reason)
    if isinstance(parsed, Unreadable):
        return parsed
    return 3 - parsed.better if showing.swapped else parsed.better
