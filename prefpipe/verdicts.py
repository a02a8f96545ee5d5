"""What a judge wrote -> a verdict, or Unreadable with its reason; and the way back.

Strict where a wrong reading would poison data: two different verdicts, another number than 1 or 2,
a cut-off or broken object are unreadable. Tolerant where a model is only untidy: code fences, text
around the object, full-width digits and quotes, "2" for 2, a raw newline in the reason. One parser
serves post-processing, evaluation and ranking.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from prefpipe.prompts import ANSWER_KEYS
from prefpipe.rows import Language

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


@dataclass(frozen=True, slots=True)
class Verdict:
    better: Literal[1, 2]
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str
    """One of REASONS."""


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
_OBJECT_START = re.compile(r"\{(?=\s*\")")
_FENCE = re.compile(r"^\s*```\w*\s*\n?|\n?\s*```\s*$")


def parse_verdict(text: str) -> Verdict | Unreadable:
    """Which answer the text calls better. parse_verdict(render_judgment(r, b, ...)) gives b and r."""
    text = text.rpartition("</think>")[2]  # a reasoning model's draft is not its answer
    if not text.strip():
        return Unreadable("empty")
    result = _read_objects(text)
    if isinstance(result, Unreadable):
        again = _read_objects(text.translate(_FULL_WIDTH))
        if isinstance(again, Verdict):
            return again
    return result


def _read_objects(text: str) -> Verdict | Unreadable:
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_Pairs)
    found: list[tuple[int, str]] = []
    seen_object = False
    position = 0
    while start := _OBJECT_START.search(text, position):
        try:
            pairs, position = decoder.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            # What stands inside a broken object may be a quoted one: nothing after it is trusted.
            at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
            return Unreadable("cut_off" if at_end else "broken_json")
        except RecursionError:
            return Unreadable("broken_json")
        seen_object = True
        verdicts = [value for key, value in pairs if key in _VERDICT_KEYS]
        if not verdicts:
            continue
        numbers = {_one_or_two(value) for value in verdicts}
        if len(numbers) > 1:
            return Unreadable("two_verdicts")
        number = numbers.pop()
        if number is None:
            return Unreadable("not_1_or_2")
        reasons = [value for key, value in pairs if key in _REASON_KEYS]
        found.append((number, _as_text(reasons[0]) if reasons else ""))
    if not found:
        return Unreadable("no_verdict" if seen_object else "no_json")
    if len({number for number, _ in found}) > 1:
        return Unreadable("two_verdicts")
    number, reason = found[0]
    return Verdict(1 if number == 1 else 2, reason)


class _Pairs(list[tuple[str, Any]]):
    """An object as its pairs: a repeated key stays visible, where a dict would keep the last."""


def _one_or_two(value: Any) -> int | None:
    if isinstance(value, str):
        value = value.strip().translate(_FULL_WIDTH)
        return int(value) if value in ("1", "2") else None
    return value if type(value) is int and value in (1, 2) else None


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def render_judgment(reason: str, better: int, language: Language) -> str:
    """The judgment as one JSON object in the answer keys of its language; quotes are escaped."""
    reason_key, verdict_key = ANSWER_KEYS[language]
    return json.dumps({reason_key: reason, verdict_key: better}, ensure_ascii=False)


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
    if parsed.reason in ("empty", "broken_json", "cut_off", "two_verdicts", "not_1_or_2"):
        return parsed
    if finish_reason == "length":
        return Unreadable("cut_off")
    reason = _FENCE.sub("", text.rpartition("</think>")[2]).strip()
    return Verdict(better, reason) if reason else Unreadable("empty")
