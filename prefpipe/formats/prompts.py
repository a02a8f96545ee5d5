"""Prompts that models are asked, and prompts with several responses, of any format that has them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from prefpipe.files import Named, Places, Run, parse_row
from prefpipe.files.records import split_files
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
        file = OpenFile(path.as_posix(), how, limit)
        for place, record in file.records():
            yield place, _row(record, place, file, places, file.reader.prompt)
        tell(file.lines())


def read_responses(
    path: Path, limit: int | None, how: HowRead, tell: Tell = len
) -> Iterator[tuple[str, Responses | Reject | ValueError]]:
    """(place, row) of each prompt with its responses: our own Responses rows, or a published format.
    tell: gets how that was read."""
    data = [Named(str(file)) for file in split_files(path)]
    data = data or [Named(path.as_posix(), **how.part)]
    first = next(data[0].records(1), ("", None))[1]
    if (
        how.format == AUTO
        and isinstance(first, Mapping)
        and {"prompt", "responses"} <= first.keys()
    ):
        places = Places()
        for place, record in chain.from_iterable(each.records(limit) for each in data):
            try:
                row = parse_row(_raised(record), Responses)
            except ValueError as error:
                yield place, error
            else:
                places.check(row.id, place)
                yield place, row
        return
    file, places = OpenFile(path.as_posix(), how, limit), Places()
    for place, record in file.records():
        yield place, _row(record, place, file, places, file.reader.responses)
    tell(file.lines())


def _raised(record: Any) -> Any:
    """The record; raises what a line that is no JSON comes as."""
    if isinstance(record, ValueError):
        raise record
    return record


def _row(
    record: Any, place: str, file: OpenFile, places: Places, read: Callable[[Any], P]
) -> P | Reject | ValueError:
    """One of the file's records as `read` reads it, what is wrong with it, or that it is a copy."""
    try:
        row = read(_raised(record))
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
    for position, (place, row) in enumerate(rows if run.shards.reads else ()):
        run.position = position
        if not run.shards.owns(place if isinstance(row, ValueError) else row.id):
            continue
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
