"""Conversations that stand in one text: Human: and Assistant:, or the marks of a known chat template."""

import re
from typing import NamedTuple

from prefpipe.formats.turns import ROLES, without_empty_system
from prefpipe.rows import Message


class Markup(NamedTuple):
    """How turns are marked in a text."""

    begins: str
    """A pattern that such a text begins with, white space aside."""
    turn: re.Pattern[str]
    """Where a turn begins; the group is its role. No white space before it: whoever looks for that from
    each blank on takes hours for a million of them, and the texts between are stripped anyway."""
    ends: tuple[str, ...]
    """What stands behind a turn's text and is no part of it."""
    holds: str = ""
    """What else must stand in it: the first mark alone may be a person's own words."""
    lead: str = ""
    """What stands before each turn's mark, but for the first one's."""


_EOS = ("</s>", "<|endoftext|>")


def _transcript(user: str, between: str) -> Markup:
    # its pattern begins with plain text, so that it is found fast
    turn = re.compile(rf"{between}({user}|Assistant):[ ]?")
    return Markup(f"{user}:", turn, _EOS, f"{between}Assistant:", between)


MARKUPS: dict[str, Markup] = {
    "human": _transcript("Human", "\n\n"),
    "human_lines": _transcript("Human", "\n"),
    "user": _transcript("User", "\n\n"),
    "user_lines": _transcript("User", "\n"),
    "hashes": Markup(
        r"### ?(?:Human|User|Instruction|System)\s*:",
        re.compile(r"### ?(Human|User|Instruction|System|Assistant|Response)\s*:\s?"),
        _EOS,
    ),
    "chatml": Markup(
        r"<\|im_start\|>\w+\n",
        re.compile(r"<\|im_start\|>(\w+)\n?"),
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "llama3": Markup(
        r"(?:<\|begin_of_text\|>)?<\|start_header_id\|>\w+<\|end_header_id\|>",
        re.compile(r"(?:<\|begin_of_text\|>\s*)?<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*"),
        ("<|eot_id|>", "<|end_of_text|>"),
    ),
    "zephyr": Markup(
        r"<\|(?:system|user)\|>\s",
        re.compile(r"<\|(system|user|assistant)\|>\s?"),
        ("<|end|>", *_EOS),
    ),
    "gemma": Markup(
        r"(?:<bos>)?<start_of_turn>\w+\n",
        re.compile(r"(?:<bos>\s*)?<start_of_turn>(\w+)\n?"),
        ("<end_of_turn>", "<eos>"),
    ),
    "llama2": Markup(r"(?:<s>\s*)?\[INST\]", re.compile(r"(?:<s>\s*)?(\[/?INST\])\s?"), ("</s>",)),
    "oasst": Markup(r"prompter:", re.compile(r"(?:\A|\s)(prompter|assistant):\s?"), _EOS),
    # of HelpSteer2: the first turn, the user's, has no mark
    "nemo": Markup(
        r"(?!)", re.compile(r"<extra_id_[01]>(User|Assistant|System)\n"), ("<extra_id_1>",)
    ),
    "vicuna": Markup(
        r"USER:", re.compile(r"(?:\A|\s|</s>)(USER|ASSISTANT):\s?"), ("</s>",), " ASSISTANT:"
    ),
}
_ROLES = ROLES | {
    "instruction": "user", "response": "assistant", "[inst]": "user", "[/inst]": "assistant",
}  # fmt: skip
_BEGINS = re.compile(
    r"\s*+(?:" + "|".join(f"(?P<{name}>{m.begins})" for name, m in MARKUPS.items()) + ")"
)
SUSPECT = frozenset("HUp#<[{ \n\t\r")
"""First characters of texts that may be marked, or hold turns; of any other nothing more is asked."""
NEMO = "<extra_id_1>"
"""The one mark that a text need not begin with."""
_LLAMA2_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>(.*)", re.DOTALL)


def markup_of(text: str) -> str | None:
    """The name of the markup that the text begins with; None: it is plain text."""
    if text[:1] in SUSPECT and (found := _BEGINS.match(text)):  # for most texts no pattern is tried
        name = found.lastgroup or ""  # of two that begin alike the first one
        names = (name, f"{name}_lines") if MARKUPS[name].lead else (name,)
        return next((name for name in names if MARKUPS[name].holds in text), None)
    return None


def split_turns(text: str, name: str, where: str) -> list[Message]:
    """The turns of a text in that markup. Raises ValueError."""
    markup = MARKUPS[name]
    if markup.lead:
        text = f"{markup.lead}{text.lstrip()}"
    before, *parts = markup.turn.split(text)
    turns = [Message(role="user", content=before.strip())] if before.strip() else []
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        if role.lower() not in _ROLES:
            raise ValueError(f"{where}: found the role {role!r}, wanted system, user or assistant")
        turns.append(Message(role=_ROLES[role.lower()], content=without_end(content, name)))
    if name == "llama2" and (system := _LLAMA2_SYSTEM.fullmatch(turns[0]["content"])):
        turns[:1] = [
            Message(role="system", content=system[1].strip()),
            Message(role="user", content=system[2].strip()),
        ]
    return without_empty_system(turns)


def prompt_turns(text: str, name: str, where: str) -> list[Message]:
    """The turns of a prompt, which may end with the mark of the answer to come. Raises ValueError."""
    turns = split_turns(text, name, where)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def without_end(text: str, name: str) -> str:
    """The text without the marks of its end, and without white space around it."""
    text = text.strip()
    while ends := [end for end in MARKUPS[name].ends if text.endswith(end)]:
        text = text.removesuffix(ends[0]).rstrip()
    return text
