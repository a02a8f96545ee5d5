"""Prompts that models are asked, and prompts with several responses, of any format that has them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefpipe.files import Named, Places, Run
from prefpipe.files.records import split_files, typed_rows
from prefpipe.formats.opening import AUTO, NO_IDS, HowRead, OpenFile
from prefpipe.rows import Prompt, Reject, Responses, as_turns

P = TypeVar("P", Prompt, Responses)

Tell = Callable[[list[str]], Any]
ANY = HowRead(prompts=True)
"""Prompts of whatever format is recognised."""


def read_prompts(
    paths: Iterable[Path], limit: int | None = None, how: HowRead = ANY, tell: Tell = len
) -> Iterator[tuple[str, Prompt | Reject | ValueError]]:
    """(place, row) of each record of these files; a Reject for a second copy of a row without id.
    Raises DataError, with both places, where two rows have the same id. tell: gets, of each file once
    it is read, how it was."""
    places = Places()
    for path in paths:
        file = OpenFile(str(path), how, limit)
        for place, record in file.records():
            yield place, _row(record, place, file, places, file.reader.prompt)
        tell(file.lines())


def read_responses(
    path: Path, limit: int | None, how: HowRead, tell: Tell = len
) -> Iterator[tuple[str, Responses | Reject | ValueError]]:
    """(place, row) of each prompt with its responses: our own Responses rows, or a published format.
    tell: gets how that was read."""
    own = path if path.is_file() else next(iter(split_files(path)), None)
    first = next(Named(str(own)).records(1), ("", None))[1] if own else None
    if (
        how.format == AUTO
        and isinstance(first, Mapping)
        and {"prompt", "responses"} <= first.keys()
    ):
        places = Places()
        for place, row in typed_rows(path, Responses, limit):
            if isinstance(row, Responses):
                places.check(row.id, place)
            yield place, row
        return
    file, places = OpenFile(str(path), how, limit), Places()
    for place, record in file.records():
        yield place, _row(record, place, file, places, file.reader.responses)
    tell(file.lines())


def _row(
    record: Any, place: str, file: OpenFile, places: Places, read: Callable[[Any], P]
) -> P | Reject | ValueError:
    """One of the file's records as `read` reads it, what is wrong with it, or that it is a copy."""
    if isinstance(record, ValueError):  # a line that is no JSON, as read_records gives it
        return record
    try:
        row = read(record)
        if not as_turns(row.prompt)[-1]["content"].strip():
            raise ValueError("prompt: found no text in it")
    except ValueError as error:
        return error
    if file.reader.has_id(record):
        places.check(row.id, place, NO_IDS)
    elif first := places.seen_at(row.id, place):
        return Reject(id=row.id, reason="duplicate_row", detail=f"{place}: as {first}")
    return row


def accepted(run: Run, rows: Iterable[tuple[str, P | Reject | ValueError]]) -> Iterator[P]:
    """The rows among these of read_prompts or read_responses that can be used; the run counts all, and rejects the others."""
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
