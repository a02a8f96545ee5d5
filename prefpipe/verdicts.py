"""What a judge wrote -> a verdict, or Unreadable with its reason; and the way back.

Strict where a wrong reading would poison data: two different verdicts, another number than 1 or 2,
a cut-off or broken object are unreadable. Tolerant where a model is only untidy: code fences, text
around the object, full-width digits and quotes, "2" for 2, a raw newline in the reason. One parser
serves post-processing, evaluation and ranking.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from prefpipe.rows import Language

# Keys of the judge's JSON object: (why, which answer). Published judges were trained on these.
ANSWER_KEYS: dict[Language, tuple[str, str]] = {
    "en": ("reason", "better_answer"),
    "zh": ("原因", "更好的回答"),
}

REASONS = (
    "empty",  # nothing but white space
    "no_json",  # no object at all
    "broken_json",  # an object begins and is not valid
    "cut_off",  # an object begins and does not end; a hinted reason hit the token limit
    "no_verdict",  # an object without the answer key
    "not_1_or_2",  # the answer key holds something else
    "two_verdicts",  # answer keys that differ
    "contradicts_hint",  # a hinted text whose own object says the other answer
)
RATING_REASONS = (
    "empty",  # nothing but white space
    "cut_off",  # thoughts, or an object, that did not end
    "broken_json",  # an object begins and is not valid
    "no_rating",  # a text got none
    "two_ratings",  # a text got ratings that differ
    "unknown_text",  # a rating of a text that was not shown, or of no text at all
    "out_of_scale",  # a number that is not from 1 to 5, or of another scale (8/10)
    "not_a_rating",  # neither a number nor N/A
)


@dataclass(frozen=True, slots=True)
class Verdict:
    better: Literal[1, 2]
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str
    """One of REASONS; of ratings, of RATING_REASONS."""


_REASON_KEYS = [reason for reason, _ in ANSWER_KEYS.values()]
_VERDICT_KEYS = [verdict for _, verdict in ANSWER_KEYS.values()]

# What an input method leaves in place of JSON's own signs. Tried only where the text as it is holds
# no object, since these signs are ordinary characters inside a reason.
_FULL_WIDTH = str.maketrans(
    {
        "“": '"',
        "”": '"',
        "＂": '"',
        "「": '"',
        "」": '"',
        "：": ":",
        "，": ",",
        "｛": "{",
        "｝": "}",
    }
    | {chr(0xFF10 + d): str(d) for d in range(10)}
)
_FULL_WIDTH_DIGITS = {0xFF10 + d: str(d) for d in range(10)} | {ord("／"): "/", ord("．"): "."}
_DIGITS: dict[str, Literal[1, 2]] = {"1": 1, "2": 2, "１": 1, "２": 2}
_OBJECT_START = re.compile(r"\{(?=\s*\")")
_STARTS_WITH_OBJECT = re.compile(r"\s*(?:```\w*\s*)?\{")
_FENCE_START = re.compile(r"```\w*")


def parse_verdict(text: str) -> Verdict | Unreadable:
    """Which answer the text calls better; never raises.

    The text answers prefpipe/templates/judge.*.jinja, as judge.judge_prompt renders it.
    parse_verdict(render_judgment(reason, better, language)) gives both back, the reason stripped.
    """
    answer = _without_draft(text)
    if answer is None:
        return Unreadable("cut_off")
    if not answer.strip():
        return Unreadable("empty")
    result = _read_verdict(_objects(answer))
    if isinstance(result, Unreadable) and result.reason in ("no_json", "broken_json", "cut_off"):
        again = _read_verdict(_objects(answer.translate(_FULL_WIDTH)))
        if isinstance(again, Verdict):
            return again
    return result


def _without_draft(text: str) -> str | None:
    """What a reasoning model wrote after its thoughts; None where they did not end.

    A text that begins with its object has no draft, whatever the object's reason quotes.
    """
    draft, end, answer = text.partition("</think>")
    if end and not _STARTS_WITH_OBJECT.match(text):
        return answer
    return None if draft.lstrip().startswith("<think>") else text


def _objects(text: str) -> "list[_Pairs] | Unreadable":
    """The JSON objects in the text, outermost ones only."""
    found: list[_Pairs] = []
    position = 0
    while start := _OBJECT_START.search(text, position):
        try:
            pairs, position = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            # What stands inside a broken object may be a quoted one: nothing after it is trusted.
            at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
            return Unreadable("cut_off" if at_end else "broken_json")
        except RecursionError:
            return Unreadable("broken_json")
        found.append(pairs)
    return found or Unreadable("no_json")


def _read_verdict(objects: "list[_Pairs] | Unreadable") -> Verdict | Unreadable:
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


def _reason(objects: "list[_Pairs]") -> str:
    """The first one that an object gives."""
    return next((_as_text(v) for pairs in objects for k, v in pairs if k in _REASON_KEYS), "")


class _Pairs(list[tuple[str, Any]]):
    """An object as its pairs: a repeated key stays visible, where a dict would keep the last."""


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < 10 else None  # int() refuses 4,300 digits


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_Pairs, parse_int=_integer)


def _one_or_two(value: Any) -> Literal[1, 2] | None:
    if type(value) is int:  # neither true nor 1.0
        value = str(value)
    return _DIGITS.get(value.strip()) if isinstance(value, str) else None


def _as_text(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    except RecursionError:
        return ""
    return (
        text.strip().encode("utf-8", "replace").decode()
    )  # half of an escaped surrogate pair is no text


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def render_judgment(reason: str, better: int, language: Language) -> str:
    """The judgment as one JSON object in the answer keys of its language; quotes are escaped."""
    reason_key, verdict_key = ANSWER_KEYS[language]
    # json.dumps of the whole gives the same in six times the time
    return f'{{"{reason_key}": {to_json(reason).decode()}, "{verdict_key}": {better}}}'


def read_hinted_reason(text: str, hint: int, *, finish_reason: str) -> Verdict | Unreadable:
    """A hinted text as a verdict for the hinted answer: its reason, plain or from its own object.

    Unreadable where the reason was cut at the token limit, or where the text's own object names
    the other answer.
    """
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
    answer = _without_draft(text) or ""
    objects = _objects(answer)
    # An object with a reason alone: the hint was taken for granted.
    reason = "" if isinstance(objects, Unreadable) else _reason(objects)
    reason = reason or _without_fence(answer)
    return Verdict(better, reason) if reason else Unreadable("empty")


def _without_fence(text: str) -> str:
    text = text.strip()
    start = _FENCE_START.match(text)
    return text[start.end() if start else 0 :].removesuffix("```").strip()


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


# ---- ratings -------------------------------------------------------------------------------------

RATING_SCALE = (1.0, 5.0)

# A line of nothing but `Text 2`, `Rating: 4`, or both, in any markdown. A line of a reason that goes
# on ("Text 2 says more") is neither.
_RATING_LINE = re.compile(
    r"[^\w\n]*(?:(?:output\s+for\s+)?text\s*#?\s*(?P<number>\d{1,4})\b[^\w\n]*)?"
    r"(?:(?:rating|score)\b[*_`\s]*(?:\([^)\n]*\)[*_`\s]*)?(?:[:：=][*_`\s]*(?P<value>.*)|(?P<bare>\d.*)))?",
    re.IGNORECASE,
)
# 4, 4.5, 4/5, "4 out of 5", and a remark behind it that begins with no digit: "4 (good)", "4 - good".
_RATING = re.compile(
    r"\[?(?P<rating>-?\d{1,9}(?:\.\d{1,9})?)\]?"
    r"(?:\s*(?:/|out\s+of)\s*(?P<scale>\d{1,9})\b)?"
    r"(?:[\s*_`.,;:]*|\s*[.,;:]\s+[^\d\s].*|\s*[-–—(（*_]+\s*[^\d\s].*)",
)
_NOT_APPLICABLE = re.compile(r"\[?(?:n\s*/\s*a|not applicable)\b(?!\s*/).*", re.IGNORECASE)


def read_ratings(text: str, count: int) -> list[float | None] | Unreadable:
    """The ratings of texts 1 to count, from 1 to 5, each by its number; None is N/A. Never raises.

    A rating stands on a line of its own below its `Text <number>` line, or behind it. Reasons,
    markdown, blank lines and CRLF between them are fine. One text without a rating, or with two
    that differ, makes all of it Unreadable: which text a rating belongs to is never guessed. An
    answer that begins with an object is read as that of ratings_schema.
    """
    answer = _without_draft(text)
    if answer is None:
        return Unreadable("cut_off")
    if not answer.strip():
        return Unreadable("empty")
    is_object = _STARTS_WITH_OBJECT.match(answer)
    stated = _ratings_of_object(answer) if is_object else _ratings_of_lines(answer)
    found: dict[int, float | None] = {}
    for number, value in stated:
        if isinstance(value, Unreadable):
            return value
        rating = _read_rating(value)
        if isinstance(rating, Unreadable):
            return rating
        if number is None or not 1 <= number <= count:
            return Unreadable("unknown_text")
        if number in found and found[number] != rating:
            return Unreadable("two_ratings")
        found[number] = rating
    if len(found) < count:
        return Unreadable("no_rating")
    return [found[k] for k in range(1, count + 1)]


_Stated = Iterator[tuple[int | None, str | Unreadable]]
"""The number of a text, and what stands there as its rating."""


def _ratings_of_lines(answer: str) -> _Stated:
    number, is_waiting = None, False
    for line in answer.split("\n"):
        if is_waiting:  # "Rating:" with its number on the next line
            value = line.strip()
            if not value:
                continue
        elif not (match := _RATING_LINE.fullmatch(line.strip())):
            continue
        else:
            number = int(match["number"]) if match["number"] else number
            value = match["value"] if match["value"] is not None else match["bare"]
            if value is None:
                continue
            if not value.strip("*_` "):
                is_waiting = True
                continue
        is_waiting = False
        yield number, value


_TEXT_KEY = re.compile(r"text[_ ]?(\d{1,4})", re.IGNORECASE)


def ratings_schema(count: int) -> dict[str, Any]:
    """JSON schema of {"text_1": {"reason": ..., "rating": "4"}, ...} for that many texts."""
    values = [*(str(k) for k in range(int(RATING_SCALE[0]), int(RATING_SCALE[1]) + 1)), "N/A"]
    rated = object_schema(
        {"reason": {"type": "string"}, "rating": {"type": "string", "enum": values}}
    )
    return object_schema({f"text_{k}": rated for k in range(1, count + 1)})


def _ratings_of_object(answer: str) -> _Stated:
    objects = _objects(answer)
    if isinstance(objects, Unreadable):
        yield None, Unreadable("cut_off" if objects.reason == "cut_off" else "broken_json")
        return
    for key, rated in (pair for pairs in objects for pair in pairs):
        if name := _TEXT_KEY.fullmatch(key):
            values = (
                [v for k, v in rated if k == "rating"] if isinstance(rated, _Pairs) else [rated]
            )
            for value in values:
                # 4 and 4.0 as "4"; neither true nor null nor another object is a rating
                is_plain = type(value) in (int, float, str)
                yield int(name[1]), str(value) if is_plain else Unreadable("not_a_rating")


def _read_rating(value: str) -> float | Unreadable | None:
    value = value.translate(_FULL_WIDTH_DIGITS).strip()
    if _NOT_APPLICABLE.fullmatch(value):
        return None
    match = _RATING.fullmatch(value)
    if not match:
        return Unreadable("not_a_rating")
    low, high = RATING_SCALE
    if not low <= float(match["rating"]) <= high or match["scale"] not in (None, f"{high:.0f}"):
        return Unreadable("out_of_scale")
    return float(match["rating"])
