"""What stages take that read published preferences: where they are, and which are held out."""

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import model_validator

import config
from prefpipe.files import Named
from prefpipe.ranges import Share
from prefpipe.settings.columns import PairColumns
from prefpipe.training.preferences import RawPreferences


class PreferenceStage(PairColumns):
    """What every stage takes that reads published preferences: where they are, which are held out."""

    input: str = config.RAW_TRAIN
    """Preferences: a Parquet, JSONL or CSV file, a folder saved by `datasets`, or a name on the hub."""
    validation_input: str = config.RAW_VALIDATION
    """The same for held-out rows. Empty, or only input given: the input's split for validation where
    it has one, else a share of its questions."""
    validation_split: str | None = None
    """Of validation_input, as split is of input."""
    validation_share: Share = 0.1
    """Share of the questions of input that is held out where there are no rows for it."""
    near_duplicate: Share = 0.8
    """A train question this similar to a held-out one (Jaccard of five-word shingles) is left out."""
    not_in: list[str] = []
    """Benchmarks, each as name=path: train rows that share eight words in a row with one of its
    questions are left out."""

    @model_validator(mode="before")
    @classmethod
    def _no_held_out_rows_of_another_input(cls, given: Any) -> Any:
        if isinstance(given, dict) and "input" in given:
            return {"validation_input": "", **given}
        return given

    def raw_preferences(self) -> RawPreferences:
        names = {field.name for field in dataclasses.fields(RawPreferences)} - {"how", "not_in"}
        return RawPreferences(
            **self.model_dump(include=names), how=self.how_read(), not_in=tuple(self.not_in)
        )

    def raw_files(self) -> list[Path]:
        """What the run depends on, where it is a file or folder here."""
        sets = (entry.partition("=")[2] for entry in self.not_in)
        names = filter(None, (self.input, self.validation_input, *sets))
        return [path for name in names for path in Named(name).paths()]
