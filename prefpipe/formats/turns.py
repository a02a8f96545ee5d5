"""One reader of turns: whatever a published set calls roles and texts, they become role and content.

What cannot be shown as text alone (an image, a call of a tool, thinking kept apart, null) is no
turn: what was compared was more than its text, so the row is left out by that name.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefpipe.foreign_json import read_json
from prefpipe.rows import Message, as_turns, flatten_turns

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "ai", "bing", "bard", "claude"),
        "assistant",
    ),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}
"""A role of any published set, in lower case -> ours."""

_ROLE_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "value", "text")
_PLAIN = {"role", "content"}
_BESIDE = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call"), "a call of a tool"),
    **dict.fromkeys(("thinking", "reasoning_content", "reasoning"), "thinking kept apart"),
    **dict.fromkeys(("images", "image", "image_url"), "an image"),
    **dict.fromkeys(("videos", "video", "audios", "audio"), "sound or video"),
}
"""Keys of a turn that say: what was compared is more than its text."""
_TURNS_IN_TEXT = re.compile(
    r"\s*(?:\[\s*)?\{\s*['\"](?:role|from|speaker|content|value|text)['\"]\s*:"
)

_ARRAY = re.compile(r"\}\s+\{(?=['\"](?:role|from|speaker|content|value|text)['\"]:)")


class Unusable(ValueError):
    """Why a row that could be read is no pair: a word of prefpipe.reasons, and the details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def not_text(where: str, found: str) -> Unusable:
    return Unusable("not_text", f"{where}: found {found}, which cannot be shown as text")


def is_missing(value: Any) -> bool:
    """None, "" and NaN: how JSON, CSV and pandas say that there is nothing."""
    return value is None or value == "" or value != value


def is_none(value: Any) -> bool:
    """None, NaN, or no turns: [], also as CSV has it."""
    if isinstance(value, list | tuple):
        return not value
    return value is None or value == "[]" or value != value


def is_empty(value: Any) -> bool:
    """Missing, or a list, a dict without anything in it; nothing can be lost with it."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return is_missing(value) or (isinstance(value, list | tuple) and all(map(is_empty, value)))


def parse_nested(text: str, where: str) -> Any:
    """The value of a text that holds turns or texts as JSON, or as Python writes them (pandas does,
    in CSV). Raises ValueError: a person would take what is left for an answer."""
    try:
        return read_json(text)
    except ValueError:
        pass
    try:
        # numpy, whose arrays pandas writes, has white space in place of a comma
        return ast.literal_eval(_ARRAY.sub("}, {", text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{where}: found {text[:60]!r}, turns as text that are no JSON") from None


def holds_turns(text: str) -> bool:
    """The text is a list of turns, or one, written as JSON or Python."""
    return text[:1] in "[{ \n" and _TURNS_IN_TEXT.match(text) is not None


def read_turns(value: Any, where: str) -> list[Message]:
    """The turns of that field: a list, one alone, a dict of lists (as `datasets` keeps a list of
    dicts), or any of these as JSON in a text. Raises ValueError; Unusable where there is more."""
    if type(value) is str:
        value = parse_nested(value, where)
    if isinstance(value, Mapping):
        parts = list(value.values())
        if len({len(part) for part in parts if isinstance(part, list | tuple)}) > 1:
            raise ValueError(
                f"{where}: found lists of different lengths, wanted one entry a turn in each"
            )
        if parts and all(isinstance(part, list | tuple) for part in parts) and _role_key(value):
            value = [dict(zip(value, turn, strict=True)) for turn in zip(*parts, strict=True)]
        else:
            value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: found {type(value).__name__}, wanted text or a list of turns")
    if not value:
        raise ValueError(f"{where}: found an empty list, wanted at least one turn")
    return without_empty_system(
        [
            turn if _is_plain(turn) else _read_turn(turn, f"{where}[{number}]")
            for number, turn in enumerate(value)
        ]
    )


def without_empty_system(turns: list[Message]) -> list[Message]:
    """The turns without a system turn that says nothing: some sets have one in each row."""
    if len(turns) > 1 and turns[0]["role"] == "system" and not turns[0]["content"].strip():
        return turns[1:]
    return turns


def _is_plain(turn: Any) -> bool:
    """It is a turn as we have it: most are, and this is all that they cost."""
    return (
        type(turn) is dict
        and turn.keys() == _PLAIN
        and type(turn["content"]) is str
        and turn["role"] in ("user", "assistant", "system", "tool")
    )


def _role_key(turn: Mapping[str, Any]) -> str | None:
    return next((key for key in _ROLE_KEYS if not is_missing(turn.get(key))), None)


def _read_turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: found {str(turn)[:60]!r}, wanted role and content as text")
    for key, what in _BESIDE.items():
        if not is_empty(turn.get(key)):
            raise not_text(f"{where}.{key}", what)
    key = _role_key(turn)
    role = turn[key] if key else None
    if str(role).lower() == "function_call":  # LLaMA-Factory's word for an assistant's call
        raise not_text(f"{where}.{key}", "a call of a tool")
    if not isinstance(role, str) or role.lower() not in ROLES:
        found = str(role)[:40]
        raise ValueError(
            f"{where}.{key or 'role'}: found {found!r}, wanted system, user, assistant, tool, or what "
            "others call them"
        )
    name = next((name for name in _TEXT_KEYS if turn.get(name) is not None), None)
    if name is None:
        if any(key in turn for key in _TEXT_KEYS):
            raise not_text(where, "null")
        raise ValueError(f"{where}: found {str(turn)[:60]!r}, wanted role and content as text")
    return Message(role=ROLES[role.lower()], content=read_text(turn[name], f"{where}.{name}"))


def read_text(value: Any, where: str) -> str:
    """A text, or the parts of one ({"type": "text", "text": ...}). Unusable where a part is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: found {type(value).__name__}, wanted text")
    texts = []
    for number, part in enumerate(value):
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in (None, "text", "input_text", "output_text"):
            raise not_text(f"{where}[{number}]", f"a part of type {kind}")
        if any(not is_empty(part.get(key)) for key in _BESIDE):
            raise not_text(f"{where}[{number}]", "more than text")
        if not isinstance(part.get("text"), str):
            raise not_text(f"{where}[{number}]", repr(part)[:60])
        texts.append(part["text"])
    return "".join(texts)


def only_text(value: Any, where: str) -> Any:
    """The value; of a list of one text, also as JSON, that text. Raises ValueError where they are
    several: which of them is meant is not known."""
    texts: Any = value
    if isinstance(value, str) and value[:2] == '["':
        try:
            texts = read_json(value)
        except ValueError:
            return value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    if len(texts) > 1:
        raise ValueError(f"{where}: found {len(texts)} texts, wanted one, or turns")
    return next(iter(texts), value)


def interleaved(asked: Sequence[Any], value: Any, where: str) -> list[Message]:
    """Turns, of a list of the user's texts and the list of the answers to them. Raises ValueError."""
    answers = parse_nested(value, where) if isinstance(value, str) else value
    if not isinstance(answers, list | tuple) or len(answers) != len(asked):
        raise ValueError(f"{where}: found {str(value)[:60]!r}, wanted {len(asked)} texts")
    turns: list[Message] = []
    for k, both in enumerate(zip(asked, answers, strict=True)):
        for role, text in zip(("user", "assistant"), both, strict=True):
            if not isinstance(text, str):
                raise not_text(f"{where}[{k}]", "null" if text is None else repr(text)[:60])
            turns.append(Message(role=role, content=text))
    return turns


# ---- the turns before an answer ------------------------------------------------------------------


def earlier_turns(
    prompt: str | list[Message] | None,
    first: Sequence[Message],
    second: Sequence[Message],
    names: tuple[str, str],
) -> list[Message] | None:
    """The turns before the answer, of the prompt's own column and of those before either answer.

    Where both are there, the one is among the other: the fuller one counts, for it has a system turn
    or earlier turns that the other lacks.
    """
    inner = list(first or second)
    if first and second and first != second and _bare(first) != _bare(second):
        raise Unusable(
            "turns_differ", f"{names[1]}: its earlier turns differ from those of {names[0]}"
        )
    if not prompt:
        if not inner:
            raise ValueError(
                f"{names[0]}: found one turn, wanted the prompt's turns before the answer"
            )
        return inner
    own = as_turns(prompt)
    if not inner or own == inner:
        return own
    if inner[0]["role"] == "assistant":  # what follows the prompt, up to the compared answers
        return [*own, *inner]
    if _is_among(own, inner):
        return inner
    if _is_among(inner, own):
        return own
    shown = [flatten_turns(turns)[:60] for turns in (inner, own)]
    raise ValueError(
        f"{names[0]}: its earlier turns are not the prompt's: {shown[0]!r} against {shown[1]!r}"
    )


def asked_turns(turns: str | list[Message], where: str) -> list[Message]:
    """The turns up to the user's last one. Raises ValueError, also for a text, which has no turns."""
    if isinstance(turns, str):
        raise ValueError(f"{where}: found {turns[:60]!r}, wanted turns")
    users = [k for k, turn in enumerate(turns) if turn["role"] == "user"]
    if not users:
        raise ValueError(f"{where}: found no turn of the user's")
    return turns[: users[-1] + 1]


def have_a_question_in_common(first: Sequence[Message], second: Sequence[Message]) -> bool:
    """Whether a turn of the user's stands in both; a prompt without any has nothing to say."""
    own, other = ({text for role, text in _bare(t) if role == "user"} for t in (first, second))
    return bool(own & other) or not any(own)


def _bare(turns: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in turns]


def _is_among(few: Sequence[Message], many: Sequence[Message]) -> bool:
    """All turns of the one stand in the other, in this order, white space around them aside."""
    rest = iter(_bare(many))
    return all(turn in rest for turn in _bare(few))
