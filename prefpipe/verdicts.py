"""What a judge wrote -> a verdict, or Unreadable with its reason; and the way back.

Strict where a wrong reading would poison data: two different verdicts, another number than 1 or 2,
a cut-off or broken object are unreadable. Tolerant where a model is only untidy: code fences, text
around the object, full-width digits and quotes, "2" for 2, a raw newline in the reason. One parser
serves post-processing, evaluation and ranking. (Ratings are read in prefpipe/ratings.py.)
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from prefpipe.foreign_json import well_formed
from prefpipe.rows import Language

# Keys of the judge's JSON object: (why, which answer). Published judges were trained on these.
ANSWER_KEYS: dict[Language, tuple[str, str]] = {
    "en": ("reason", "better_answer"),
    "zh": ("原因", "更好的回答"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    better: Literal[1, 2]
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str
    """One of prefpipe.reasons.REASONS."""


_REASON_KEYS, _VERDICT_KEYS = zip(*ANSWER_KEYS.values(), strict=True)

# What an input method leaves in place of JSON's own signs. Tried only where the text as it is holds
# no object, since these signs are ordinary characters inside a reason.
_FULL_WIDTH = str.maketrans("“”＂「」：，｛｝０１２３４５６７８９", '""""":,{}0123456789')
_DIGITS: dict[str, Literal[1, 2]] = {"1": 1, "2": 2, "１": 1, "２": 2}
_OBJECT_START = re.compile(r"\{(?=\s*\")")
_STARTS_WITH_OBJECT = re.compile(r"\s*(?:```\w*\s*)?\{")
_FENCES = re.compile(r"^```\w*|```\Z")


def parse_verdict(text: str) -> Verdict | Unreadable:
    """Which answer the text calls better; never raises.

    The text answers prefpipe/templates/judge.*.jinja, as judge.judge_prompt renders it.
    parse_verdict(render_judgment(reason, better, language)) gives both back, the reason stripped.
    """
    answer = without_draft(text)
    if answer is None:
        return Unreadable("cut_off")
    if not answer.strip():
        return Unreadable("empty")
    result = _read_verdict(json_objects(answer))
    if isinstance(result, Unreadable) and result.reason in ("no_json", "broken_json", "cut_off"):
        again = _read_verdict(json_objects(answer.translate(_FULL_WIDTH)))
        if isinstance(again, Verdict):
            return again
    return result


def without_draft(text: str) -> str | None:
    """What a reasoning model wrote after its thoughts; None where they did not end. A text that
    begins with its object has no draft, whatever the object's reason quotes."""
    draft, end, answer = text.partition("</think>")
    if end and not begins_with_object(text):
        return answer
    return None if draft.lstrip().startswith("<think>") else text


def begins_with_object(text: str) -> bool:
    return bool(_STARTS_WITH_OBJECT.match(text))


def json_objects(text: str) -> "list[KeyValues] | Unreadable":
    """The JSON objects in the text, outermost ones only."""
    found: list[KeyValues] = []
    position = 0
    while start := _OBJECT_START.search(text, position):
        try:
            pairs, position = _DECODER.raw_decode(text, start.start())
            found.append(well_formed(pairs))
        except json.JSONDecodeError as error:
            # What stands inside a broken object may be a quoted one: nothing after it is trusted.
            at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
            return Unreadable("cut_off" if at_end else "broken_json")
        except RecursionError:
            return Unreadable("broken_json")
    return found or Unreadable("no_json")


def _read_verdict(objects: "list[KeyValues] | Unreadable") -> Verdict | Unreadable:
    if isinstance(objects, Unreadable):
        return objects
    objects = [pairs for pairs in objects if any(key in _VERDICT_KEYS for key, _ in pairs)]
    numbers: set[Literal[1, 2] | None] = {
        _one_or_two(v) for pairs in objects for k, v in pairs if k in _VERDICT_KEYS
    }
    if not numbers:
        return Unreadable("no_verdict")
    if len(numbers) > 1:
        return Unreadable("two_verdicts")
    number = numbers.pop()
    return Unreadable("not_1_or_2") if number is None else Verdict(number, _reason(objects))


def _reason(objects: "list[KeyValues]") -> str:
    """The first one that an object gives."""
    return next((_as_text(v) for pairs in objects for k, v in pairs if k in _REASON_KEYS), "")


class KeyValues(list[tuple[str, Any]]):
    """An object as its pairs: a repeated key stays visible, where a dict would keep the last."""


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < 10 else None  # int() refuses 4,300 digits


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=KeyValues, parse_int=_integer)


def _one_or_two(value: Any) -> Literal[1, 2] | None:
    if type(value) is int:  # neither true nor 1.0
        value = str(value)
    return _DIGITS.get(value.strip()) if isinstance(value, str) else None


def _as_text(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
        return text.strip()
    except RecursionError:
        return ""


def _plain(value: Any) -> Any:
    if isinstance(value, KeyValues):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def render_judgment(reason: str, better: int, language: Language) -> str:
    """The judgment as one JSON object in the answer keys of its language; quotes are escaped."""
    reason_key, verdict_key = ANSWER_KEYS[language]
    # json.dumps of the whole gives the same in six times the time
    return f'{{"{reason_key}": {to_json(reason).decode()}, "{verdict_key}": {better}}}'


def read_hinted_reason(text: str, hint: int, *, finish_reason: str) -> Verdict | Unreadable:
    """A hinted text as a verdict for the hinted answer: its reason, plain or from its own object.
    Unreadable where it was cut at the token limit, or where its own object names the other
    answer."""
    better: Literal[1, 2] = 1 if hint == 1 else 2
    parsed = parse_verdict(text)
    if isinstance(parsed, Verdict):
        if parsed.better != hint:
            return Unreadable("contradicts_hint")
        return parsed if parsed.reason else Unreadable("empty")
    if parsed.reason not in ("no_json", "no_verdict"):
        return parsed
    if finish_reason == "length":
        return Unreadable("cut_off")
    objects = json_objects(answer := without_draft(text) or "")
    # An object with a reason alone: the hint was taken for granted.
    reason = "" if isinstance(objects, Unreadable) else _reason(objects)
    reason = reason or _FENCES.sub("", answer.strip()).strip()
    return Verdict(better, reason) if reason else Unreadable("empty")


def judgment_schema(language: Language) -> dict[str, Any]:
    """JSON schema of render_judgment's object."""
    reason_key, verdict_key = ANSWER_KEYS[language]
    return object_schema(
        {reason_key: {"type": "string"}, verdict_key: {"type": "integer", "enum": [1, 2]}}
    )


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with all of these and nothing else: what strict servers want."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
