"""Published formats, by the names that `--format` and `--benchmark` choose from.

A new one is a table in presets.toml. One with a score of its own, or that no table can describe, is
a file here, with its reader and its published score, and its line below.
"""

from typing import TYPE_CHECKING, Literal

from prefpipe.formats import (
    judgebench,
    presets,
    responses,
    rewardbench,
    rewardbench2,
    rlhflow_pair,
)
from prefpipe.formats.reading import Format

FORMATS: dict[str, Format] = {
    **presets.load(presets.FILE.read_text(encoding="utf-8")),
    "rlhflow-pair": rlhflow_pair.FORMAT,
    "rewardbench": rewardbench.FORMAT,
    "judgebench": judgebench.FORMAT,
    "rewardbench2": rewardbench2.FORMAT,
    "best_of_n": responses.FORMAT,
}

if TYPE_CHECKING:
    PairFormat = PromptFormat = str
else:
    _prompts = ("auto", *(name for name, form in FORMATS.items() if not form.several_answers))
    _alone = {n for n, form in FORMATS.items() if form.layout and form.layout.only_prompts}
    PromptFormat = Literal[_prompts]
    PairFormat = Literal[tuple(name for name in _prompts if name not in _alone)]
"""Types of a setting that names a format of prompts, or of pairs: --help shows the names."""
