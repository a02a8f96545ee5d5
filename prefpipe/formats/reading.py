"""Published formats -> Preference or Question rows. One small function a format, all pure.

A mapping gets one record (a dict) and gives a row, or raises ValueError naming the field,
what was found and what was wanted. Ids that a format lacks are made from the content, so that they
are the same in every run and every order.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefpipe.files import ENDINGS, DataError, Places, Run, parse_row, read_records
from prefpipe.rows import Message, Preference, Prompt, Question, Reject, Responses, Row

R = TypeVar("R", bound=Row)

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


def rewardbench(record: Mapping[str, Any]) -> Preference:
    """RewardBench (Lambert et al. 2024): prompt, chosen, rejected as text, subset, id (a number).

    The numbers start anew in some releases' subsets, so the subset is part of the id.
    """
    subset = _text(_field(record, "subset"), "subset")
    texts = [_text(_field(record, name), name) for name in ("chosen", "rejected")]
    made = {"id": f"{subset}:{_field(record, 'id')}", "source": f"rewardbench/{subset}"}
    return _preference(made, _prompt(_field(record, "prompt")), *texts)


def judgebench(record: Mapping[str, Any]) -> Preference:
    """JudgeBench (Tan et al. 2024): question, response_A, response_B, label A>B or B>A, pair_id.

    source becomes judgebench/<knowledge, reasoning, math or coding>.
    """
    answers = [_text(_field(record, f"response_{k}"), f"response_{k}") for k in "AB"]
    label = _field(record, "label")
    if label not in ("A>B", "B>A"):
        raise ValueError(f"label: found {label!r}, wanted 'A>B' or 'B>A'")
    chosen, rejected = answers if label == "A>B" else answers[::-1]
    kind = _judgebench_kind(_text(_field(record, "source"), "source"))
    made = {"id": _field(record, "pair_id"), "source": f"judgebench/{kind}"}
    return _preference(made, _prompt(_field(record, "question")), chosen, rejected)


def _judgebench_kind(source: str) -> str:
    kinds = {
        "mmlu-pro": "knowledge",
        "livebench-reasoning": "reasoning",
        "livebench-math": "math",
        "livecodebench": "coding",
    }
    for start, kind in kinds.items():
        if source.startswith(start):
            return kind
    raise ValueError(f"source: found {source!r}, wanted one that starts with {', '.join(kinds)}")


FORMATS: dict[str, Callable[[Mapping[str, Any]], Preference]] = {
    "sky": Sky,
    "llmbar": llmbar,
    "autoj": autoj,
    "rewardbench": rewardbench,
    "judgebench": judgebench,
}


def rewardbench2(record: Mapping[str, Any]) -> Question:
    """RewardBench 2 (Malik et al. 2025): prompt, chosen and rejected (lists of texts), subset, id."""
    subset = _text(_field(record, "subset"), "subset")
    sides = []
    for name in ("chosen", "rejected"):
        texts = _field(record, name)
        if not isinstance(texts, list | tuple) or not texts:
            raise ValueError(f"{name}: found {type(texts).__name__}, wanted a list of texts")
        sides.append([_text(text, f"{name}[{k}]") for k, text in enumerate(texts)])
    id = str(_field(record, "id"))
    if subset.lower() == "ties" and id.partition(":")[0] not in ("ref", "tied"):
        raise ValueError(f"id: found {id!r}, wanted ref:<number> or tied:<number>")
    return Question(
        id=f"{subset}:{id}",
        prompt=_prompt(_field(record, "prompt")),
        right=sides[0],
        wrong=sides[1],
        source=f"rewardbench2/{subset}",
    )


def best_of_n(record: Mapping[str, Any]) -> Question:
    """This pipeline's Responses rows with `right`. A row with only right or only wrong ones stays."""
    row = parse_row(dict(record), Responses)
    if row.right is None or len(row.right) != len(row.responses):
        raise ValueError("right: wanted true or false for each response")
    answers = list(zip(row.responses, row.right, strict=True))
    return Question(
        id=row.id,
        prompt=row.prompt,
        right=[text for text, right in answers if right],
        wrong=[text for text, right in answers if not right],
        source=row.source or "best_of_n",
    )


def to_question(row: Preference) -> Question:
    """A pair as a question with one right and one wrong response."""
    chosen, rejected = (
        response if isinstance(response, str) else response[-1]["content"]
        for response in (row.chosen, row.rejected)
    )
    return Question(
        id=row.id,
        prompt=row.prompt,
        right=[chosen],
        wrong=[rejected],
        tie=row.tie,
        source=row.source or "pairs",
    )


QUESTIONS: dict[str, Callable[[Mapping[str, Any]], Question]] = {
    "rewardbench2": rewardbench2,
    "best_of_n": best_of_n,
}
"""Formats with more than two responses to a prompt."""


def _labelled(
    record: Mapping[str, Any],
    prompt: Any,
    answers: list[str],
    labels: dict[int, int | None],
    name: str,
    subset: Any,
) -> Preference:
    label = _field(record, "label")
    if type(label) is not int or label not in labels:
        raise ValueError(f"label: found {label!r}, wanted one of {sorted(labels)}")
    place = labels[label]
    chosen, rejected = answers if place != 1 else answers[::-1]
    made = {**record, "source": f"{name}/{subset}" if subset else name, "tie": place is None}
    return _preference(made, _prompt(prompt), chosen, rejected)


def _preference(
    record: Mapping[str, Any], prompt: str | list[Message], chosen: str, rejected: str
) -> Preference:
    given, source = record.get("id"), record.get("source")
    if given is None or given == "":  # "" is how a CSV file says that there is none
        made = json.dumps([prompt, chosen, rejected], ensure_ascii=False).encode()
        given = hashlib.sha256(made).hexdigest()[:16]
    elif not isinstance(given, str):
        if isinstance(given, bool) or not isinstance(given, int):
            raise ValueError(f"id: found {given!r}, wanted a text")
        given = str(given)
    if source is not None and not isinstance(source, str):
        raise ValueError(f"source: found {source!r}, wanted a text")
    return Preference(
        id=given,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=_margin(record.get("margin")),
        tie=_tie(record.get("tie")),
        source=source or None,
    )


def _margin(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        if not isinstance(value, bool) and 0 <= float(value) < math.inf:
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"margin: found {value!r}, wanted a number >= 0")


def _tie(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value or False
    word = value.lower() if isinstance(value, str) else None  # CSV has it as a word
    if word not in ("true", "false", ""):
        raise ValueError(f"tie: found {value!r}, wanted true or false")
    return word == "true"


def _field(record: Mapping[str, Any], name: str) -> Any:
    try:
        value = record.get(name)
    except AttributeError:
        found = type(record).__name__
        raise ValueError(f"the row: found {found}, wanted an object") from None
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


# ---- prompts ---------------------------------------------------------------------------------


def read_prompt(record: Any) -> Prompt:
    """A row of `prompt` or `text`, with `id` and `source` where it has them; the rest is left alone.

    The prompt is text, or turns of which the last one is the user's. Raises ValueError.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
    given = {name: record[name] for name in ("prompt", "text") if record.get(name) is not None}
    if len(given) != 1:
        found = "both prompt and text" if given else ", ".join(map(str, record)) or "nothing"
        raise ValueError(f"prompt: found {found}, wanted one of prompt and text")
    ((name, value),) = given.items()
    prompt = value if isinstance(value, str) else _turns(value, name)
    last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if not last.strip():
        raise ValueError(f"{name}: found no text in it")
    if not isinstance(prompt, str) and prompt[-1]["role"] != "user":
        raise ValueError(f"{name}: found a {prompt[-1]['role']} turn last, wanted the user's")
    id, source = record.get("id"), record.get("source")
    if id in (None, ""):  # "" is how a CSV file says that there is none
        id = hashlib.sha256(json.dumps(prompt, ensure_ascii=False).encode()).hexdigest()[:16]
    elif isinstance(id, bool) or not isinstance(id, str | int):
        raise ValueError(f"id: found {id!r}, wanted a text")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"source: found {source!r}, wanted a text")
    return Prompt(id=str(id), prompt=prompt, source=source or None)


def read_prompts(
    paths: Iterable[Path], limit: int | None = None
) -> Iterator[tuple[str, Prompt | Reject | ValueError]]:
    """(place, row) of each record of these files; a Reject for a second copy of a row without id.

    Raises DataError, with both places, where two rows have the same id.
    """
    places = Places()
    for path in paths:
        for place, record in read_records(path, limit):
            try:
                row = read_prompt(record) if not isinstance(record, ValueError) else record
            except ValueError as error:
                row = error
            if isinstance(row, Prompt):
                if isinstance(record, Mapping) and record.get("id") not in (None, ""):
                    places.check(row.id, place)
                elif first := places.seen_at(row.id, place):
                    row = Reject(id=row.id, reason="duplicate_row", detail=f"{place}: as {first}")
            yield place, row


def accepted(run: Run, rows: Iterable[tuple[str, R | Reject | ValueError]]) -> Iterator[R]:
    """The rows among these that a run works on; it counts them all, and rejects the others."""
    for place, row in rows:
        run.read_count += 1
        if isinstance(row, ValueError):
            run.bad_row(place, row)
        elif isinstance(row, Reject):
            run.emit(row)
        else:
            yield row


def select_names(names: Iterable[str], include: str | None, ignore: str | None) -> list[str]:
    """The names in which include (None: any) is found and ignore (None: none) is not.

    Raises SystemExit where none is left.
    """
    names = list(names)
    left = [
        name
        for name in names
        if (include is None or re.search(include, name))
        and not (ignore is not None and re.search(ignore, name))
    ]
    if not left:
        raise SystemExit(
            f"no model is left by include_model {include!r} and ignore_model {ignore!r}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    return left


# ---- where records are -----------------------------------------------------------------------


def read_named(name: str, limit: int | None = None) -> Iterator[tuple[str, Any]]:
    """(place, record) of a file, of a folder saved by `datasets`, or of a data set on the hub."""
    path = Path(name)
    if path.exists():
        yield from read_records(path, limit)
        return
    if path.suffix in ENDINGS or name.startswith((".", "/")) or name.count("/") > 1:
        raise DataError(f"{name}: no such file")
    import datasets

    try:
        loaded = datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: no such file here, and the hub gave no data set of that name: {error}"
        ) from None
    for row, record in enumerate(loaded if limit is None else loaded.take(limit), start=1):
        yield f"{name}:{row}", record


def read_preference(record: Any, form: str) -> Preference | ValueError:
    """The record in that format (a key of FORMATS), or what is wrong with it."""
    if isinstance(record, ValueError):
        return record
    try:
        return FORMATS[form](record)
    except ValueError as error:
        return error
