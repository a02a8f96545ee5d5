"""Published formats. A new one is a file here, with its reader and its published score, and its line below.

`--format` and `--benchmark` choose from this list, by these names.
"""

from typing import TYPE_CHECKING, Any, Literal

from prefpipe.formats import (
    autoj,
    judgebench,
    llmbar,
    responses,
    rewardbench,
    rewardbench2,
    skywork,
)
from prefpipe.formats.reading import Format
from prefpipe.rows import Preference

FORMATS: dict[str, Format] = {
    "sky": skywork.FORMAT,
    "llmbar": llmbar.FORMAT,
    "autoj": autoj.FORMAT,
    "rewardbench": rewardbench.FORMAT,
    "judgebench": judgebench.FORMAT,
    "rewardbench2": rewardbench2.FORMAT,
    "best_of_n": responses.FORMAT,
}

if TYPE_CHECKING:
    PairFormat = str
else:
    PairFormat = Literal[tuple(n for n, form in FORMATS.items() if not form.several_answers)]
"""Type of a setting that names a format of pairs: --help shows the names."""


def read_preference(record: Any, name: str) -> Preference | ValueError:
    """The record in the format of that name, which is one of pairs, or what is wrong with it."""
    try:
        if isinstance(record, ValueError):  # a line that is no JSON, as read_records gives it
            raise record
        row = FORMATS[name].read(record)
    except ValueError as error:
        return error
    assert isinstance(row, Preference), name
    return row
