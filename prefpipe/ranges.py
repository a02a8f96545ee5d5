"""The types of settings that have bounds: what is out of them is refused with a sentence."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, 0 to 1; never a percentage."""
PartialShare = Annotated[float, Field(gt=0, lt=1)]
"""A part of a whole that is neither nothing nor all of it."""
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Weight = Annotated[float, Field(ge=0)]
"""How much something counts; 0: not at all."""
AboveZero = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=0)]
TopP = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="The likeliest tokens that have this share of the probability; 1: all.",
    ),
]
TopK = Annotated[int, Field(ge=0, description="The likeliest tokens; 0: all.")]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]
