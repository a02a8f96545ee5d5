"""Skywork-Reward-Preference-80K, and what TRL and this pipeline write: --format sky."""

from prefpipe.formats.reading import (
    Format,
    Record,
    as_text,
    field,
    prompt_field,
    read_turns,
    to_preference,
)
from prefpipe.rows import Preference, as_turns


def read(record: Record) -> Preference:
    """`chosen` and `rejected` are lists of {role, content} with the prompt's turns in front, or with
    a `prompt` beside them (text or turns); or all three are plain text.
    """
    chosen, rejected = field(record, "chosen"), field(record, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("rejected: found another form than chosen; wanted both text or both turns")
    if isinstance(chosen, str):
        return to_preference(record, prompt_field(record), chosen, as_text(rejected, "rejected"))
    better, worse = read_turns(chosen, "chosen"), read_turns(rejected, "rejected")
    before = better[:-1]
    if record.get("prompt") is not None:
        before = as_turns(prompt_field(record))
        if better[:-1] not in ([], before) or worse[:-1] not in ([], before):
            raise ValueError("chosen: its earlier turns are not the prompt's")
    elif before != worse[:-1]:
        raise ValueError("rejected: its earlier turns differ from those of chosen")
    if not before:
        raise ValueError("chosen: found one turn, wanted the prompt's turns before the answer")
    if before[-1]["role"] != "user":
        raise ValueError(f"chosen: found a {before[-1]['role']} turn last before the answer")
    for name, turn in (("chosen", better[-1]), ("rejected", worse[-1])):
        if turn["role"] != "assistant":
            raise ValueError(f"{name}: found a {turn['role']} turn last, wanted the assistant's")
    return to_preference(record, before, better[-1]["content"], worse[-1]["content"])


FORMAT = Format(read)
