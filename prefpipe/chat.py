"""A conversation -> token ids, by the one renderer: sampling, training and scoring all see the same.

The ids of an answer are those of the rendered conversation: tokenized by itself, a text would begin
with a word's start where the template has none (SentencePiece behind a line end), keep white space
that the template trims, or lack the empty thought that it puts first.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prefpipe.rows import Message
from prefpipe.templates import TemplateError

if TYPE_CHECKING:  # transformers is loaded with the first tokenizer
    from transformers import PreTrainedTokenizerBase as Tokenizer

_PROBE = "prefpipe-probe"
"""A text that a template is rendered with, to see where it puts one."""
_HIDDEN = "\ufdd0"
"""Stands around a number for a special token's name: a code point that Unicode keeps out of texts."""
_ASKED: list[Message] = [{"role": "user", "content": "x"}]


class TurnsRefused(TemplateError):
    """A chat template that works does not take these turns: a row's fault, not the run's."""

    reason = "template_refuses_turns"


class _Frame(NamedTuple):
    """What the template puts around an assistant's answer."""

    lead: str
    """The rendered prompt, up to where a model goes on."""
    opening: str
    """What a rendered answer has between the two: white space, or an empty thought."""
    close: str
    """What stands behind it: the end of turn, line ends."""


def render(tokenizer: "Tokenizer", messages: Sequence[Message]) -> str:
    """The chat template's text up to where the assistant goes on.

    A leading system turn moves into the first user turn where the template knows no system role.
    Raises TemplateError where an answer would not stand there (the template lacks a generation
    prompt, or rewrites earlier turns), since then no score would be read at the place that was
    trained; TurnsRefused where it does not take these roles.
    """
    return _frame(tokenizer, messages).lead


def prompt_ids(tokenizer: "Tokenizer", messages: Sequence[Message]) -> list[int]:
    """Token ids of render(): exactly one BOS where the tokenizer wants one, none elsewhere.

    A special token's name inside a turn ("<s>" in the source of a page) stays text: it neither
    starts nor ends anything.
    """
    hidden, names = _hide(tokenizer, messages)
    return _with_bos(tokenizer, _ids(tokenizer, render(tokenizer, hidden), names))


def completion_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids of an assistant's answer behind a prompt, and the token that ends its turn."""
    frame = _known_frame(tokenizer, str(tokenizer.chat_template))
    hidden, names = _hide(tokenizer, [Message(role="assistant", content=text)])
    answer = hidden[0]["content"]
    whole = _apply(tokenizer, [*_ASKED, *hidden])
    # Where the template drops an answer's thoughts, or the model opened them itself, the answer
    # stands as it was written.
    opens_itself = frame.opening.strip() and answer.startswith(frame.opening.split()[0])
    if not whole.startswith(frame.lead) or opens_itself:
        whole = frame.lead + answer + frame.close
    end = end_of_turn_id(tokenizer)
    own = _behind(tokenizer, frame.lead, whole, names)
    if end not in own:  # the template puts none: the model's EOS ends it
        own = [*_behind(tokenizer, frame.lead, whole.removesuffix(frame.close), names), end]
    return own[: own.index(end) + 1]


def _behind(tokenizer: "Tokenizer", lead: str, whole: str, names: Sequence[str]) -> list[int]:
    """Token ids of what stands behind the lead in the whole."""
    start, ids = _ids(tokenizer, lead, []), _ids(tokenizer, whole, names)
    if ids[: len(start)] == start:
        return ids[len(start) :]
    # its first characters would join the lead's last token, which a model has read before them
    return _ids(tokenizer, whole[len(lead) :], names)


def conversation_ids(
    tokenizer: "Tokenizer", messages: Sequence[Message], answer: str, *, bos: bool = False
) -> list[int]:
    """Token ids of the conversation with its answer, to the template's end, as
    tokenizer.apply_chat_template gives them. bos: with one in front where the tokenizer wants one.
    """
    turns = [*messages, Message(role="assistant", content=answer)]
    hidden, names = _hide(tokenizer, turns)
    rendered = _render(tokenizer, hidden)
    ids = _ids(tokenizer, rendered, names)
    return _with_bos(tokenizer, ids) if bos else ids


def rendered_ids(tokenizer: "Tokenizer", text: str, *, bos: bool) -> list[int]:
    """Token ids of a conversation that somebody has rendered with this template, to its end. What stands
    behind the last answer (an end of turn, padding, nothing) becomes what the template puts there.
    """
    close = _known_frame(tokenizer, str(tokenizer.chat_template)).close
    if specials := _special_tokens(tokenizer):
        text = re.sub(rf"(?:(?:{specials.pattern})\s*)+\Z", "", text)
    text = text.removesuffix(close)
    before = close[: len(close) - len(close.lstrip())]  # a space in front of the end of turn, say
    ids = _token_ids(tokenizer, text.removesuffix(before) + close)
    return _with_bos(tokenizer, ids) if bos else ids


def encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids of a text that a person or a model wrote: no special token is among them."""
    return _token_ids(tokenizer, text, split_special_tokens=True)


def end_of_turn_id(tokenizer: "Tokenizer") -> int:
    """The token that the chat template puts behind an assistant's answer.

    Raises TemplateError where what it puts there is no token but text: its first piece, "<" say,
    would end answers wherever it stands in one.
    """
    close = _known_frame(tokenizer, str(tokenizer.chat_template)).close.strip()
    behind = _token_ids(tokenizer, close)
    if behind:
        known = behind[0] in tokenizer.added_tokens_decoder
        if known or str(tokenizer.decode(behind[:1])).strip() == close:
            return behind[0]
        pieces = tokenizer.convert_ids_to_tokens(behind)
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template ends a turn with {close[:40]!r}, which is "
            f"no token of the vocabulary but {len(pieces)} ({pieces[0]!r}, ...): take a template "
            "whose end of turn is a token, or a tokenizer that has it"
        )
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise TemplateError(f"{tokenizer.name_or_path}: no token ends the assistant's turn")


def last_id(tokenizer: "Tokenizer") -> int:
    """The last token of a rendered conversation: where other tools read a reward."""
    return conversation_ids(tokenizer, _ASKED, _PROBE)[-1]


# ---- rendering -----------------------------------------------------------------------------------


def _frame(tokenizer: "Tokenizer", messages: Sequence[Message]) -> _Frame:
    lead = _render(tokenizer, messages, add_generation_prompt=True)
    answered = _render(tokenizer, [*messages, Message(role="assistant", content=_PROBE)])
    before, found, close = answered.rpartition(_PROBE)
    if found and before.rstrip() == lead.rstrip():
        return _Frame(lead, before[len(lead) :], close)
    # A thinking template: its answers open with an empty thought, or its prompt opens one.
    longer, shorter = (before, lead) if len(before) > len(lead) else (lead, before)
    more = longer[len(shorter) :]
    has_prompt = lead != _render(tokenizer, messages)
    if found and has_prompt and longer.startswith(shorter) and more.lstrip()[:1] in tuple("<[◁"):
        return _Frame(lead, more if longer is before else "", close)
    raise TemplateError(
        f"{tokenizer.name_or_path}: the chat template's generation prompt does not lead to the "
        f"assistant's answer: ...{lead[-40:]!r} against ...{answered[-60:]!r}"
    )


@functools.lru_cache(maxsize=8)
def _known_frame(tokenizer: "Tokenizer", template: str) -> _Frame:
    """The frame of an answer to any prompt; template: since a tokenizer may get another one."""
    return _frame(tokenizer, _ASKED)


def _render(tokenizer: "Tokenizer", messages: Sequence[Message], **options: Any) -> str:
    """The template's text of these turns, the system's where it has a place."""
    turns: list[Message] = list(messages)
    if (
        turns[0]["role"] == "system"
        and len(turns) > 1
        and not _takes_system(tokenizer, str(tokenizer.chat_template))
    ):
        first, second, *rest = turns
        content = f"{first['content']}\n\n{second['content']}"
        turns = [Message(role=second["role"], content=content), *rest]
    try:
        return _apply(tokenizer, turns, **options)
    except TemplateError as error:
        try:
            _apply(tokenizer, _ASKED, add_generation_prompt=True)
        except TemplateError:
            raise error from None
        roles = ", ".join(turn["role"] for turn in turns)
        why = str(error).rpartition("Error: ")[2]
        raise TurnsRefused(
            f"{tokenizer.name_or_path}: the chat template refuses turns of {roles[:80]}: {why[:120]}"
        ) from None


def _apply(tokenizer: "Tokenizer", turns: Sequence[Mapping[str, Any]], **options: Any) -> str:
    if not tokenizer.chat_template:
        raise TemplateError(f"{tokenizer.name_or_path}: the tokenizer has no chat template")
    messages = [dict(turn) for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template is a program of someone else's
        words = " ".join(str(error).split())[:150]
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template fails: {type(error).__name__}: {words}"
        ) from None


@functools.lru_cache(maxsize=8)
def _takes_system(tokenizer: "Tokenizer", template: str) -> bool:
    turns = [{"role": "system", "content": _PROBE}, *_ASKED]
    try:
        return _PROBE in _apply(tokenizer, turns)
    except TemplateError:
        return False


# ---- ids -----------------------------------------------------------------------------------------


def _hide(
    tokenizer: "Tokenizer", messages: Sequence[Message]
) -> tuple[Sequence[Message], list[str]]:
    """The turns with a number in place of each special token's name, and the names.

    So the template sees no special token, and its own ones are told from those of a text.
    """
    specials = _special_tokens(tokenizer)
    names: list[str] = []

    def hide(name: re.Match[str]) -> str:
        names.append(name[0])
        return f"{_HIDDEN}{len(names) - 1}{_HIDDEN}"

    if not specials or not any(specials.search(m["content"]) for m in messages):
        return messages, names
    hidden = [Message(role=m["role"], content=specials.sub(hide, m["content"])) for m in messages]
    return hidden, names


def _ids(tokenizer: "Tokenizer", rendered: str, names: Sequence[str]) -> list[int]:
    """Token ids of a rendered text, the numbers of `_hide` read as the names they stand for."""
    if not names:
        return _token_ids(tokenizer, rendered)
    ids: list[int] = []
    for index, part in enumerate(re.split(f"{_HIDDEN}(\\d+){_HIDDEN}", rendered)):
        if index % 2:
            ids += encode(tokenizer, names[int(part)])
        elif part:
            ids += _token_ids(tokenizer, part)
    return ids


def _token_ids(tokenizer: "Tokenizer", text: str, **options: Any) -> list[int]:
    """Token ids of a chat template's text: the names of special tokens in it are the tokens."""
    # verbose would warn of texts that are longer than the model takes: callers leave them out by name
    found: Any = tokenizer(text, add_special_tokens=False, verbose=False, **options)
    return found["input_ids"]


def _with_bos(tokenizer: "Tokenizer", ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is not None and _wants_bos(tokenizer, str(tokenizer.chat_template)):
        while ids[:1] == [bos]:
            ids = ids[1:]
        return [int(bos), *ids]  # pyright: ignore[reportArgumentType]
    return ids


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: "Tokenizer") -> re.Pattern[str] | None:
    """Finds the names of the tokenizer's special tokens."""
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, [*names, _HIDDEN]))) if names else None


@functools.lru_cache(maxsize=8)
def _wants_bos(tokenizer: "Tokenizer", template: str) -> bool:
    """Whether its template or its own post-processor puts a BOS first."""
    plain: Any = tokenizer("x")["input_ids"]
    text = _apply(tokenizer, _ASKED)
    bos = str(tokenizer.bos_token or "")
    return plain[:1] == [tokenizer.bos_token_id] or (bos != "" and text.startswith(bos))
