"""Published formats. `--format` chooses from this list, by these names."""

from typing import TYPE_CHECKING, Literal

from prefpipe.formats.reading import FORMATS, read_preference

__all__ = ["FORMATS", "PairFormat", "read_preference"]

if TYPE_CHECKING:
    PairFormat = str
else:
    PairFormat = Literal[tuple(FORMATS)]
"""Type of a setting that names a format of pairs: --help shows the names."""
