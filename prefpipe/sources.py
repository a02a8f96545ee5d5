"""Published preference formats -> Preference rows. One small function a format, all pure.

A mapping gets one record (a dict) and gives a Preference, or raises ValueError naming the field,
what was found and what was wanted. Ids that a format lacks are made from the content, so that they
are the same in every run and every order.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from prefpipe.rows import Message, Preference

ROLES = ("system", "user", "assistant", "tool")


def Sky(record: Mapping[str, Any]) -> Preference:
    """Skywork-Reward-Preference-80K, and what TRL and this pipeline write.

    `chosen` and `rejected` are lists of {role, content} with the prompt's turns in front, or with a
    `prompt` beside them (text or turns); or all three are plain text. `id`, `source`, `margin` and
    `tie` are kept where they are.
    """
    chosen, rejected = _field(record, "chosen"), _field(record, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("rejected: found another form than chosen; wanted both text or both turns")
    if isinstance(chosen, str):
        prompt = _prompt(_field(record, "prompt"))
        return _preference(record, prompt, chosen, _text(rejected, "rejected"))
    better, worse = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    if record.get("prompt") is not None:
        prompt = _prompt(record["prompt"])
        before = prompt if isinstance(prompt, list) else [Message(role="user", content=prompt)]
        if better[:-1] not in ([], before) or worse[:-1] not in ([], before):
            raise ValueError("chosen: its earlier turns are not the prompt's")
    else:
        before = better[:-1]
        if before != worse[:-1]:
            raise ValueError("rejected: its earlier turns differ from those of chosen")
    if not before:
        raise ValueError("chosen: found one turn, wanted the prompt's turns before the answer")
    if before[-1]["role"] != "user":
        raise ValueError(f"chosen: found a {before[-1]['role']} turn last before the answer")
    for name, turn in (("chosen", better[-1]), ("rejected", worse[-1])):
        if turn["role"] != "assistant":
            raise ValueError(f"{name}: found a {turn['role']} turn last, wanted the assistant's")
    return _preference(record, before, better[-1]["content"], worse[-1]["content"])


def llmbar(record: Mapping[str, Any]) -> Preference:
    """LLMBar: input, output_1, output_2, label (1 or 2, which is better), subset."""
    answers = [_text(_field(record, f"output_{k}"), f"output_{k}") for k in (1, 2)]
    return _labelled(
        record, _field(record, "input"), answers, {1: 0, 2: 1}, "llmbar", record.get("subset")
    )


def autoj(record: Mapping[str, Any]) -> Preference:
    """Auto-J's pairwise test set: prompt, response 1, response 2, label (0, 1; 2 is a tie)."""
    answers = [_text(_field(record, f"response {k}"), f"response {k}") for k in (1, 2)]
    labels = {0: 0, 1: 1, 2: None}
    return _labelled(
        record, _field(record, "prompt"), answers, labels, "autoj", record.get("scenario")
    )


FORMATS: dict[str, Callable[[Mapping[str, Any]], Preference]] = {
    "sky": Sky,
    "llmbar": llmbar,
    "autoj": autoj,
}


def _labelled(
    record: Mapping[str, Any],
    prompt: Any,
    answers: list[str],
    labels: dict[int, int | None],
    name: str,
    subset: Any,
) -> Preference:
    label = _field(record, "label")
    if isinstance(label, bool) or label not in labels:
        raise ValueError(f"label: found {label!r}, wanted one of {sorted(labels)}")
    place = labels[label]
    chosen, rejected = answers if place != 1 else answers[::-1]
    made = {**record, "source": f"{name}/{subset}" if subset else name, "tie": place is None}
    return _preference(made, _prompt(prompt), chosen, rejected)


def _preference(
    record: Mapping[str, Any], prompt: str | list[Message], chosen: str, rejected: str
) -> Preference:
    tie, margin = record.get("tie") or False, record.get("margin")
    if not isinstance(tie, bool):
        raise ValueError(f"tie: found {tie!r}, wanted true or false")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise ValueError(f"margin: found {margin!r}, wanted a number")
    source, given = record.get("source"), record.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        raise ValueError(f"id: found {given!r}, wanted a text")
    made = json.dumps([prompt, chosen, rejected], ensure_ascii=False).encode()
    return Preference(
        id=str(given) if given is not None else hashlib.sha256(made).hexdigest()[:16],
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=None if margin is None else float(margin),
        tie=tie,
        source=None if source is None else str(source),
    )


def _field(record: Mapping[str, Any], name: str) -> Any:
    if not isinstance(record, Mapping):
        raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
    value = record.get(name)
    if value is None:
        raise ValueError(f"{name}: missing; found {', '.join(map(str, record)) or 'nothing'}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: found {type(value).__name__}, wanted text")
    return value


def _prompt(value: Any) -> str | list[Message]:
    return value if isinstance(value, str) else _turns(value, "prompt")


def _turns(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name}: found {type(value).__name__}, wanted a list of turns")
    turns = []
    for number, turn in enumerate(value):
        where = f"{name}[{number}]"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise ValueError(f"{where}: found {str(turn)[:60]!r}, wanted role and content as text")
        if turn.get("role") not in ROLES:
            raise ValueError(f"{where}.role: found {turn.get('role')!r}, wanted one of {ROLES}")
        turns.append(Message(role=turn["role"], content=turn["content"]))
    return turns
