"""The tables of presets.toml as formats. `python -m prefpipe.formats` prints README's table."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefpipe.formats.layout import Layout
from prefpipe.formats.reading import Format

FILE = Path(__file__).with_name("presets.toml")
_FIELDS = {field.name for field in dataclasses.fields(Layout)}


def load(text: str) -> dict[str, Format]:
    """A format a table, by its name and its other names. Raises ValueError for a field that is none."""
    formats: dict[str, Format] = {}
    for name, table in tomllib.loads(text).items():
        about, also = table.pop("about"), table.pop("also", [])
        needs, auto = tuple(table.pop("needs", ())), table.pop("auto", True)
        if unknown := table.keys() - _FIELDS:
            raise ValueError(f"{FILE.name}: [{name}]: {', '.join(unknown)} is no field of Layout")
        layout = Layout(**{field: _frozen(value) for field, value in table.items()})
        form = Format(layout=layout, about=about, needs=needs, auto=auto)
        formats |= dict.fromkeys((name, *also), form)
    return formats


def _frozen(value: Any) -> Any:
    """Lists as tuples; "" as None: TOML has no word for nothing."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return None if value == "" else value


def table(formats: Mapping[str, Format]) -> str:
    """The table of these formats in Markdown, a line a format; other names of it behind the first."""
    names: dict[int, list[str]] = {}
    for name, form in formats.items():
        names.setdefault(id(form), []).append(name)
    lines = ["| --format | set |", "|---|---|"]
    for several in names.values():
        first, *also = (f"`{name}`" for name in several)
        shown = f"{first} ({', '.join(also)})" if also else first
        lines.append(f"| {shown} | {formats[several[0]].about} |")
    return "\n".join(lines)
