"""Prompts that models are asked: JSONL, Parquet or CSV rows of `prompt` or `text`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefpipe.files import Named, Places, Run
from prefpipe.formats.reading import id_field, read_turns, source_field
from prefpipe.rows import Prompt, Reject


def read_prompt(record: Any) -> Prompt:
    """A row of `prompt` or `text` (text, or turns of which the last one is the user's), with `id`
    and `source` where it has them; the rest is left alone. Raises ValueError."""
    if isinstance(record, ValueError):  # a line that is no JSON, as read_records gives it
        raise record
    if not isinstance(record, Mapping):
        raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
    given = {name: record[name] for name in ("prompt", "text") if record.get(name) is not None}
    if len(given) != 1:
        found = "both prompt and text" if given else ", ".join(map(str, record)) or "nothing"
        raise ValueError(f"prompt: found {found}, wanted one of prompt and text")
    ((name, value),) = given.items()
    prompt = value if isinstance(value, str) else read_turns(value, name)
    last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if not last.strip():
        raise ValueError(f"{name}: found no text in it")
    if not isinstance(prompt, str) and prompt[-1]["role"] != "user":
        raise ValueError(f"{name}: found a {prompt[-1]['role']} turn last, wanted the user's")
    return Prompt(id=id_field(record, prompt), prompt=prompt, source=source_field(record))


def read_prompts(
    paths: Iterable[Path], limit: int | None = None
) -> Iterator[tuple[str, Prompt | Reject | ValueError]]:
    """(place, row) of each record of these files; a Reject for a second copy of a row without id.
    Raises DataError, with both places, where two rows have the same id."""
    places = Places()
    for path in paths:
        for place, record in Named(str(path)).records(limit):
            try:
                row = read_prompt(record)
            except ValueError as error:
                row = error
            if isinstance(row, Prompt):
                if record.get("id") not in (None, ""):
                    places.check(row.id, place)
                elif first := places.seen_at(row.id, place):
                    row = Reject(id=row.id, reason="duplicate_row", detail=f"{place}: as {first}")
            yield place, row


def accepted(
    run: Run, rows: Iterable[tuple[str, Prompt | Reject | ValueError]]
) -> Iterator[Prompt]:
    """The prompts among these rows of read_prompts; the run counts all, and rejects the others."""
    for place, row in rows:
        run.read_count += 1
        if isinstance(row, ValueError):
            run.bad_row(place, row)
        elif isinstance(row, Reject):
            run.emit(row)
        else:
            yield row


def select_names(names: Iterable[str], include: str | None, ignore: str | None) -> list[str]:
    """The names in which include (None: any) is found and ignore (None: none) is not; SystemExit
    where none is left."""
    names = list(names)
    left = [name for name in names if include is None or re.search(include, name)]
    if left := [name for name in left if ignore is None or not re.search(ignore, name)]:
        return left
    raise SystemExit(
        f"no model is left by include_model {include!r} and ignore_model {ignore!r}; "
        f"there are: {', '.join(names) or 'none'}"
    )
