"""What a translator is given, and what it wrote -> an item in English, or the check that it fails."""

import json
import re
from typing import Any

from prefpipe.foreign_json import read_json, with_whole_backslashes
from prefpipe.judge import judge_prompt
from prefpipe.languages import has_chinese_left, is_foreign, length_in_english
from prefpipe.opinions import is_refusal
from prefpipe.rows import Completion, Item, Reject
from prefpipe.thoughts import without_thoughts
from prefpipe.verdicts import object_schema

FIELDS = ("question", "answer_1", "answer_2")
"""What is translated of an item."""
SCHEMA = object_schema({name: {"type": "string"} for name in FIELDS})
"""JSON schema of a translator's reply."""
ASKED_AGAIN = {
    *("not_json", "wrong_keys", "not_text", "empty_text", "truncated", "json_changed"),
    *("still_chinese", "not_english", "wrong_length", "equal_answers", "refusal", "cut_off"),
    *("garbled_reply", "too_few_choices"),
}
"""Reasons that another sample of the same translation may not have."""

_JSON_START = re.compile(r'\[\s*\{\s*"|\{\s*"')
_DECODER = json.JSONDecoder()
_PLACEHOLDER = re.compile(
    r"\W*(?:(?:the |your )?translat(?:ion|ed text)|n/?a|none|null|todo|tbd|string|text|same as above|"
    r"(?:not |un)translated)?(?: here| goes here)?\W*",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"抱歉|对不起|无法|不能|不会|不可以|没有办法|拒绝|作为|同意|都不|不是|sorry|can't|cannot|unable|As an",
    re.I,
)
"""Words of a source whose translation may sound like a refusal."""
_KEYS = re.compile(r'"[^"\n]*"\s*:')  # of JSON inside a text: they stay as they are
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
    written = without_thoughts(reply.text)
    if written is None:
        return reject("cut_off", "the reply's thoughts did not end")
    written = written.strip()
    if written.startswith("```"):
        written = written.partition("\n")[2].rpartition("```")[0]
    try:
        # not strict: a raw newline inside a text is no reason to ask again
        texts = read_json(with_whole_backslashes(written), strict=False)
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
        if reason := _fault(translated, source):
            return reject(reason, f"{name}: {translated[:60]!r}")
    if _alike(texts["answer_1"], texts["answer_2"]) and not _alike(item.answer_1, item.answer_2):
        return reject("equal_answers", f"both: {texts['answer_1'][:60]!r}")
    prompt = judge_prompt(**texts, language="en", template=template)
    return item.model_copy(update={**texts, "language": "en", "prompt": prompt})


def _fault(translated: str, source: str) -> str:
    """Why the text is no translation of its source, as a reason; empty: nothing speaks against it."""
    if has_chinese_left(_KEYS.sub("", translated)):
        return "still_chinese"
    if is_foreign(translated, source):
        return "not_english"
    expected = length_in_english(source)
    if expected >= 20 and _PLACEHOLDER.fullmatch(translated):
        return "empty_text"
    if len(translated) > 4 * expected + 200 or len(translated) < 0.2 * expected - 8:
        return "wrong_length"
    return "refusal" if is_refusal(translated) and not _REFUSES.search(source) else ""


def _alike(a: str, b: str) -> bool:
    return a.split() == b.split()


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
