"""RLHFlow's pair_preference_model_dataset: one user turn with context and two responses, answered A or B."""

import re

from prefpipe.formats.reading import Format, Record, field, to_preference
from prefpipe.formats.turns import read_turns
from prefpipe.rows import Message, Preference

_PAIR = re.compile(
    r"\s*\[CONTEXT\](?P<context>.*?)(?<!\\)\[RESPONSE A\](?P<a>.*?)(?<!\\)\[RESPONSE B\](?P<b>.*)",
    re.DOTALL,
)
_TURN = re.compile(r"\s*(?<!\\)<turn> (user|assistant)\n ?")
_ESCAPED = re.compile(r"\\(?=\\*(?:\[CONTEXT\]|\[RESPONSE [AB]\]|<turn> (?:user|assistant)))")


def read(record: Record) -> Preference:
    """`messages`: the turn that train_pairwise_model.py's models are shown, and its label."""
    turns = read_turns(field(record, "messages"), "messages")
    found = _PAIR.fullmatch(turns[0]["content"])
    label = turns[-1]["content"].strip()
    if not found or len(turns) != 2 or label not in ("A", "B"):
        raise ValueError(
            "messages: wanted a turn of [CONTEXT] [RESPONSE A] [RESPONSE B], then one of A or B"
        )
    first, second = (_plain(found[name]) for name in ("a", "b"))
    chosen, rejected = (first, second) if label == "A" else (second, first)
    before, *parts = _TURN.split(found["context"])
    prompt: str | list[Message] = before.strip()
    if parts:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        prompt = [Message(role=role, content=_plain(text)) for role, text in pairs]
    return to_preference(record, prompt, chosen, rejected)


def _plain(text: str) -> str:
    return _ESCAPED.sub("", text).strip()


FORMAT = Format(
    read,
    about="RLHFlow's pair_preference_model_dataset: [CONTEXT] [RESPONSE A] [RESPONSE B] in one turn",
    needs=("messages",),
)
