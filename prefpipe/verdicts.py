"""What a judge wrote -> a verdict, or Unreadable with its reason; and the way back.

Strict where a wrong reading would poison data: two different verdicts, another number than 1 or 2,
a cut-off, broken or quoted object, one without a reason are unreadable. Tolerant where a model is
only untidy: code fences, text around the object, full-width digits and quotes, "2" for 2, a raw
newline, LaTeX or quotes in the reason, an object as Python writes it. One parser serves all stages.
What a text says without an object: prefpipe/opinions.py. (Ratings are read in prefpipe/ratings.py.)
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from prefpipe.foreign_json import well_formed, with_whole_backslashes
from prefpipe.opinions import is_form, is_refusal, opinions
from prefpipe.rows import Completion, FinishReason, Language
from prefpipe.thoughts import without_thoughts
from prefpipe.untidy_json import with_json_quotes

# Keys of the judge's JSON object: (why, which answer). Published judges were trained on these.
ANSWER_KEYS: dict[Language, tuple[str, str]] = {
    "en": ("reason", "better_answer"),
    "zh": ("原因", "更好的回答"),
}

REASON_CHARACTERS: dict[Language, tuple[int, int]] = {"en": (20, 400), "zh": (8, 200)}
"""The least and the most of a reason that is held to judgment_schema."""


@dataclass(frozen=True, slots=True)
class Verdict:
    better: Literal[1, 2]
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str
    """One of prefpipe.reasons.REASONS."""


_REASON_KEYS, _VERDICT_KEYS = zip(*ANSWER_KEYS.values(), strict=True)

# What an input method leaves in place of JSON's own signs, and what nobody sees. Tried only where the
# text as it is holds no object, since these signs are ordinary characters inside a reason.
_FULL_WIDTH = str.maketrans(
    "“”„‟＂「」：，｛｝０１２３４５６７８９",
    '""""""":,{}0123456789',
    "\u200b\u200c\u200d\u2060\ufeff",
)
_DIGITS: dict[str, Literal[1, 2]] = {"1": 1, "2": 2, "１": 1, "２": 2}
_OBJECT_START = re.compile(r"\{(?=\s*\")")
_FENCES = re.compile(r"^```\w*|```\Z")
_BROKEN = ("no_json", "broken_json", "cut_off")
_LETTERS = re.compile(r"(?<!`)\b[^\W\d_]")  # not of the language behind a fence
# "Answer 1:" on a line of its own begins a copy of the answer; so do words that announce one.
_INTRODUCES_QUOTE = re.compile(
    r"(?:(?:^|\n)\W*(?:the\s+)?(?:answer|response|回答)\s*[12]"
    r"|\b(?:for example|example|e\.g|such as|ends with|begins with|contains|says|writes|claims)"
    r"|例如|比如|结尾|写道)[\]*:：,，\s]{0,20}(?:```\w*\s*)?[\"'`“]?\Z",
    re.IGNORECASE,
)
# What is no quote: a heading that names the answer, and a sentence that announces the judge's own.
_HEADING = re.compile(
    r"\W*(?:(?:the )?(?:better|best|preferred|final)\W+)?(?:(?:answer|response|回答)\W+){1,2}(?P<number>[12])\W*"
    r"(?:```\w*\W*)?",
    re.IGNORECASE,
)
_ANNOUNCES = re.compile(
    r"\b(?:(?:here|this) is (?:my|the)|my|final|following)(?: \w+){0,2} ?(?:judge?ment|verdict|decision|"
    r"evaluation|assessment|conclusion|output|result|json|object)\W*(?:as json|in json|is|below|follows)?\W*\Z",
    re.IGNORECASE,
)
_SHORT_ESCAPE = re.compile(r"\\(?:([bfnrt])|.)")
_NO_REASON = ("", "...", "null")
_FORM_REASONS = ("why", "reason", "your reason", "理由", "原因")
"""What stands for a reason in the form that is asked for. Beside other words the form is repeated."""


def parse_verdict(text: str, *, finish_reason: FinishReason = "stop") -> Verdict | Unreadable:
    """Which answer the text calls better; never raises. A text that was cut at its token limit says
    nothing, whatever stands in it.

    parse_verdict(render_judgment(reason, better, language)) gives both back, the reason stripped.
    """
    answer = without_thoughts(text)
    if answer is None or finish_reason == "length":
        return Unreadable("cut_off")
    if not answer.strip():
        return Unreadable("empty")
    result = _read_verdict(answer)
    if isinstance(result, Unreadable) and result.reason in _BROKEN:
        plain = answer.translate(_FULL_WIDTH)
        quoted = (with_json_quotes(x, _REASON_KEYS, _VERDICT_KEYS) for x in (answer, plain))
        again = (_read_verdict(text) for text in (plain, *quoted) if text and text != answer)
        return next((found for found in again if isinstance(found, Verdict)), result)
    return result


def fault_of_verdict(reply: Completion) -> str:
    """Why a judge's reply says nothing that can be used; empty: it does."""
    found = parse_verdict(reply.text, finish_reason=reply.finish_reason)
    return found.reason if isinstance(found, Unreadable) else ""


def holds_verdict(text: str, better: int) -> bool:
    """Whether what the text's objects say is this verdict alone, also where nothing is to be read of
    the text as a whole: set against a right judgment it would teach that the right one is wrong."""
    objects = json_objects(text)
    pairs = [] if isinstance(objects, Unreadable) else [pair for one in objects for pair in one]
    return {_one_or_two(value) for key, value in pairs if key in _VERDICT_KEYS} == {better}


def json_objects(text: str) -> "list[KeyValues] | Unreadable":
    """The JSON objects in the text, outermost ones only."""
    try:
        found = _located_objects(with_whole_backslashes(text))
    except ValueError:
        return Unreadable("broken_json")
    return found if isinstance(found, Unreadable) else [pairs for _, _, pairs in found]


def _located_objects(text: str) -> "list[tuple[int, int, KeyValues]] | Unreadable":
    """The same with where each begins and ends."""
    found: list[tuple[int, int, KeyValues]] = []
    position = 0
    while start := _OBJECT_START.search(text, position):
        try:
            pairs, position = _DECODER.raw_decode(text, start.start())
            found.append((start.start(), position, well_formed(pairs)))
        except json.JSONDecodeError as error:
            # What stands inside a broken object may be a quoted one: nothing after it is trusted.
            at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
            return Unreadable("cut_off" if at_end else "broken_json")
        except RecursionError:
            return Unreadable("broken_json")
    return found or Unreadable("no_json")


def _is_quoted(text: str, start: int, end: int) -> bool:
    """Whether what stands there is a part of a sentence: `it ends with {...}. That ...`."""
    if not start and end == len(text):
        return False
    if _ANNOUNCES.search(text[max(0, start - 200) : start]):
        return False
    before = text[text.rfind("\n", 0, start) + 1 : start].rstrip(" `\"'“")
    behind, _, later = text[end:].lstrip(" `\"'”").partition("\n")
    goes_on = any(map(str.isalnum, behind)) or (behind[:1] in (*".,;",) and later.strip())
    if _INTRODUCES_QUOTE.search(text[max(0, start - 200) : start]):
        return True
    return before[-1:].isalnum() and bool(goes_on)


def _read_verdict(text: str) -> Verdict | Unreadable:
    try:
        text = with_whole_backslashes(text)
    except ValueError:
        return Unreadable("broken_json")
    located = _located_objects(text)
    if isinstance(located, Unreadable):
        return located
    stated = [(one, value) for one in located for key, value in one[2] if key in _VERDICT_KEYS]
    numbers: set[Literal[1, 2] | None] = {_one_or_two(value) for _, value in stated}
    if not numbers:
        return Unreadable("no_verdict")
    if len(numbers) > 1:
        return Unreadable("two_verdicts")
    if (number := numbers.pop()) is None:
        return Unreadable("not_1_or_2")
    outside = _outside(text, located)
    heading = _HEADING.fullmatch(outside)
    is_heading = heading is not None and heading["number"] == str(number)
    if not is_heading and all(_is_quoted(text, start, end) for (start, end, _), _ in stated):
        return Unreadable("quoted_verdict")
    said = (reason := _reason([pairs for (_, _, pairs), _ in stated])).strip(" <>[]…").lower()
    if said in _NO_REASON or (said in _FORM_REASONS and _LETTERS.search(outside)):
        return Unreadable("no_reason")
    if not outside.isspace() and opinions(outside) == {3 - number}:
        return Unreadable("two_verdicts")
    return Verdict(number, reason)


def _outside(text: str, located: "list[tuple[int, int, KeyValues]]") -> str:
    """The text without its objects."""
    if len(located) == 1:
        ((start, end, _),) = located
        return f"{text[:start]}\n{text[end:]}"
    ends = [0, *(end for _, end, _ in located)]
    starts = [*(start for start, _, _ in located), len(text)]
    return "\n".join(text[end:start] for end, start in zip(ends, starts, strict=True))


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
    return f'{{"{reason_key}": {_escaped(reason)}, "{verdict_key}": {better}}}'


def _escaped(text: str) -> str:
    """The text as JSON that is read back as itself: a line end before `abla` is no \\nabla."""
    json_text = to_json(text).decode()
    with suppress(ValueError):
        if with_whole_backslashes(json_text) == json_text:
            return json_text
    codes = {
        letter: f"\\u{ord(sign):04x}" for letter, sign in zip("bfnrt", "\b\f\n\r\t", strict=True)
    }
    return _SHORT_ESCAPE.sub(lambda escape: codes.get(escape[1], escape[0]), json_text)


def read_hinted_reason(
    text: str, hint: int, *, finish_reason: FinishReason
) -> Verdict | Unreadable:
    """A hinted text as a verdict for the hinted answer: its reason, plain or from its own object.
    Unreadable where it was cut at the token limit, names the other answer in whatever form, or is a
    form that nobody reads."""
    better: Literal[1, 2] = 1 if hint == 1 else 2
    parsed = parse_verdict(text, finish_reason=finish_reason)
    if isinstance(parsed, Verdict):
        contradicts = parsed.better != hint or opinions(parsed.reason) == {3 - better}
        return Unreadable("contradicts_hint") if contradicts else parsed
    if parsed.reason in ("cut_off", "empty"):
        return parsed
    answer = without_thoughts(text) or ""
    if opinions(answer, loosely=True) == {3 - better}:
        return Unreadable("contradicts_hint")
    if parsed.reason not in ("no_json", "no_verdict"):
        return parsed
    objects = json_objects(answer)
    # An object with a reason alone: the hint was taken for granted.
    reason = "" if isinstance(objects, Unreadable) else _reason(objects)
    if not reason:
        if is_form(answer):
            return Unreadable(parsed.reason)
        reason = answer.strip()
        reason = _FENCES.sub("", reason).strip() if "```" in reason else reason
    if is_refusal(reason):
        return Unreadable("refusal")
    if reason.strip(" <>[]…").lower() in _NO_REASON:
        return Unreadable("no_reason" if reason else "empty")
    return Verdict(better, reason)


def judgment_schema(language: Language) -> dict[str, Any]:
    """JSON schema of render_judgment's object, with a reason that says something and ends."""
    reason_key, verdict_key = ANSWER_KEYS[language]
    least, most = REASON_CHARACTERS[language]
    reason = {"type": "string", "minLength": least, "maxLength": most}
    return object_schema({reason_key: reason, verdict_key: {"type": "integer", "enum": [1, 2]}})


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with all of these and nothing else: what strict servers want."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
