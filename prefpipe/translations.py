"""What a translator is given, and what it wrote -> an item in English, or the check that it fails."""

import json
import re
from typing import Any

from prefpipe.foreign_json import read_json
from prefpipe.judge import judge_prompt
from prefpipe.languages import is_mostly_chinese
from prefpipe.rows import Completion, Item, Reject
from prefpipe.verdicts import object_schema

FIELDS = ("question", "answer_1", "answer_2")
"""What is translated of an item."""
SCHEMA = object_schema({name: {"type": "string"} for name in FIELDS})
"""JSON schema of a translator's reply."""
ASKED_AGAIN = {
    *("not_json", "wrong_keys", "not_text", "empty_text", "truncated", "json_changed"),
    *("still_chinese", "garbled_reply", "too_few_choices"),
}
"""Reasons that another sample of the same translation may not have."""

_JSON_START = re.compile(r'\[\s*\{\s*"|\{\s*"')
_DECODER = json.JSONDecoder()
_MOST_IN_VAIN = 3_000_000  # characters of broken objects, each start read to its fault


def texts_as_json(item: Item) -> str:
    """The item's three texts as the object that the reply is to be."""
    return json.dumps({name: getattr(item, name) for name in FIELDS}, ensure_ascii=False)


def english_item(item: Item, reply: Completion, *, template: str | None = None) -> Item | Reject:
    """The item with the reply's texts, or the first check that the reply fails."""

    def reject(reason: str, detail: str) -> Reject:
        return Reject(id=item.id, reason=reason, detail=detail)

    if reply.finish_reason == "length":
        return reject("truncated", f"the reply was cut after {reply.new_tokens} tokens")
    written = reply.text.strip()
    if written.startswith("```"):
        written = written.partition("\n")[2].rpartition("```")[0]
    try:
        # not strict: a raw newline inside a text is no reason to ask again
        texts = read_json(written, strict=False)
    except ValueError as error:
        return reject("not_json", f"{error}: {written[:100]!r}")
    if not isinstance(texts, dict) or set(texts) != set(FIELDS):
        keys = sorted(texts) if isinstance(texts, dict) else type(texts).__name__
        return reject("wrong_keys", f"found {keys}, wanted {sorted(FIELDS)}")
    for name in FIELDS:
        source, translated = getattr(item, name), texts[name]
        if not isinstance(translated, str):
            return reject("not_text", f"{name}: found {translated!r}, wanted a text")
        if source.strip() and not translated.strip():
            return reject("empty_text", name)
        if embedded_json(translated) != embedded_json(source):
            return reject("json_changed", f"{name}: the JSON inside has other keys or values")
        if is_mostly_chinese(translated):
            return reject("still_chinese", f"{name}: {translated[:60]!r}")
    prompt = judge_prompt(**texts, language="en", template=template)
    return item.model_copy(update={**texts, "language": "en", "prompt": prompt})


def embedded_json(text: str) -> list[Any]:
    """The JSON objects (and lists of them) inside a text, in order, with `...` for each string:
    what a translation must keep."""
    values, at, in_vain = [], 0, 0
    while start := _JSON_START.search(text, at):
        try:
            value, at = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            at = start.start() + 1
            in_vain += error.pos - at + error.pos // 100  # which its line number costs
            if in_vain > _MOST_IN_VAIN:
                break
        except (ValueError, RecursionError):  # a number, or a depth, that nobody translates
            break
        else:
            values.append(_without_strings(value))
    return values


def _without_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_strings(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(_without_strings, value))
    return ... if isinstance(value, str) else value
