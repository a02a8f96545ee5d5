"""A conversation -> token ids, by the one renderer: sampling, training and scoring all see the same."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from prefpipe.rows import Message
from prefpipe.templates import TemplateError

if TYPE_CHECKING:  # transformers is loaded with the first tokenizer
    from transformers import PreTrainedTokenizerBase as Tokenizer

_PROBE = "prefpipe-probe"
"""A text that a template is rendered with, to see where it puts one."""
_HIDDEN = "\ufdd0"
"""Stands around a number for a special token's name: a code point that Unicode keeps out of texts."""


def render(tokenizer: "Tokenizer", messages: Sequence[Message]) -> str:
    """The chat template's text up to where the assistant's answer begins.

    A leading system turn moves into the first user turn where the template knows no system role.
    Raises TemplateError where an answer would not stand right behind the text (the template lacks
    a generation prompt, or rewrites earlier turns), since then no score would be read at the place
    that was trained; or where it does not take these roles.
    """
    if not tokenizer.chat_template:
        raise TemplateError(f"{tokenizer.name_or_path}: the tokenizer has no chat template")
    turns = [dict(m) for m in messages]
    if turns[0]["role"] == "system" and not _takes_system(tokenizer):
        first, second, *rest = turns
        turns = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest]
    try:
        text = _apply(tokenizer, turns, add_generation_prompt=True)
        answered = _apply(tokenizer, [*turns, {"role": "assistant", "content": _PROBE}])
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template refuses turns of {roles}: {error}"
        ) from None
    behind = answered[len(text) :].lstrip() if answered.startswith(text) else ""
    if not behind.startswith(_PROBE):
        raise TemplateError(
            f"{tokenizer.name_or_path}: the chat template's generation prompt does not lead to the "
            f"assistant's answer: ...{text[-40:]!r} against ...{answered[-60:]!r}"
        )
    return text


def prompt_ids(tokenizer: "Tokenizer", messages: Sequence[Message]) -> list[int]:
    """Token ids of render(): exactly one BOS where the tokenizer wants one, none elsewhere.

    A special token's name inside a turn ("<s>" in the source of a page) stays text: it neither
    starts nor ends anything.
    """
    specials = _special_tokens(tokenizer)
    if specials and any(specials.search(m["content"]) for m in messages):
        ids = _ids_with_names_as_text(tokenizer, messages, specials)
    else:
        ids = _token_ids(tokenizer, render(tokenizer, messages))
    bos = tokenizer.bos_token_id
    if bos is not None and _wants_bos(tokenizer):
        while ids[:1] == [bos]:
            ids = ids[1:]
        ids = [bos, *ids]
    return ids


def completion_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids of an assistant's answer and the token that ends its turn."""
    return [*encode(tokenizer, text), end_of_turn_id(tokenizer)]


def encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids of a text that a person or a model wrote: no special token is among them."""
    return _token_ids(tokenizer, text, split_special_tokens=True)


def _token_ids(tokenizer: "Tokenizer", text: str, **options: Any) -> list[int]:
    """Token ids of a chat template's text: the names of special tokens in it are the tokens."""
    # verbose would warn of texts that are longer than the model takes: callers leave them out by name
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]  # pyright: ignore[reportReturnType]


def _ids_with_names_as_text(
    tokenizer: "Tokenizer", messages: Sequence[Message], specials: re.Pattern[str]
) -> list[int]:
    # 1) Render with a number in each name's place, so that the template sees no special token.
    names: list[str] = []

    def hide(name: re.Match[str]) -> str:
        names.append(name[0])
        return f"{_HIDDEN}{len(names) - 1}{_HIDDEN}"

    hidden = [Message(role=m["role"], content=specials.sub(hide, m["content"])) for m in messages]
    parts = re.split(f"{_HIDDEN}(\\d+){_HIDDEN}", render(tokenizer, hidden))
    # 2) Every second part is such a number: its name is read as text, the others as the template's.
    ids: list[int] = []
    for index, part in enumerate(parts):
        if index % 2:
            ids += encode(tokenizer, names[int(part)])
        elif part:
            ids += _token_ids(tokenizer, part)
    return ids


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: "Tokenizer") -> re.Pattern[str] | None:
    """Finds the names of the tokenizer's special tokens."""
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, [*names, _HIDDEN]))) if names else None


def end_of_turn_id(tokenizer: "Tokenizer") -> int:
    """The token that the chat template puts behind an assistant's answer."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    text = _apply(tokenizer, turns)
    behind = _token_ids(tokenizer, text[text.rindex(_PROBE) + len(_PROBE) :].strip())
    if behind:
        return behind[0]
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise TemplateError(f"{tokenizer.name_or_path}: no token ends the assistant's turn")


def _apply(tokenizer: "Tokenizer", turns: Sequence[Mapping[str, Any]], **options: Any) -> str:
    messages = [dict(turn) for turn in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _takes_system(tokenizer: "Tokenizer") -> bool:
    turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}]
    try:
        return _PROBE in _apply(tokenizer, turns)
    except jinja2.TemplateError:
        return False


def _wants_bos(tokenizer: "Tokenizer") -> bool:
    """Whether its template or its own post-processor puts a BOS first."""
    plain: Any = tokenizer("x")["input_ids"]
    text = _apply(tokenizer, [{"role": "user", "content": "x"}])
    bos = str(tokenizer.bos_token or "")
    return plain[:1] == [tokenizer.bos_token_id] or (bos != "" and text.startswith(bos))
