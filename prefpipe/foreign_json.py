"""JSON that a server or a model wrote."""

import json
from typing import Any


def read_json(text: str | bytes, *, strict: bool = True) -> Any:
    """Its value, well formed. Raises ValueError where there is none, or one nested too deep."""
    try:
        return well_formed(json.loads(text, strict=strict))
    except RecursionError:
        raise ValueError("nested too deep") from None


def well_formed(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair (`\\ud83d`, of an emoji that was cut):
    no file holds such a text."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {well_formed(key): well_formed(inner) for key, inner in value.items()}
    return type(value)(map(well_formed, value)) if isinstance(value, list | tuple) else value
