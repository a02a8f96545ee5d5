"""What every stage takes that reads prompts or preferences of others: the format, and which column is what."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from prefpipe.files import Named
from prefpipe.formats import FORMATS, PairFormat, PromptFormat
from prefpipe.formats.layout import word_of
from prefpipe.formats.opening import HowRead
from prefpipe.formats.reading import Format
from prefpipe.rated_pairs import HowPaired
from prefpipe.settings.stage import Stage

OWN = "auto"
"""Of a column: the one that the format says. None: none is read."""


class PromptColumns(Stage):
    """What every stage takes that reads prompts. A column is a name or a path: `answers[0].text`."""

    format: PromptFormat = "auto"
    """How a row is read; auto: recognised by the columns of the first rows, and said."""
    prompt_column: str | None = OWN
    """Text or turns."""
    system_column: str | None = OWN
    """The system prompt."""
    id_column: str | None = OWN
    """None: ids are made of the content, which is the way out where they repeat."""
    source_column: str | None = OWN
    """Where a row comes from."""
    split: str | None = None
    """Of data with several splits; None: the one for training."""
    config: str | None = None
    """Of data with several sets under one name."""
    revision: str | None = None
    """Of data on the hub."""

    def rows_depend_on(self) -> dict[str, Any]:
        """With the names of data on the hub, which no file's hash stands for."""
        names = [
            str(getattr(self, field)) for field in ("input", "prompts") if hasattr(self, field)
        ]
        of_hub = [name for name in names if Named(name).may_be_of_the_hub()]
        return super().rows_depend_on() | ({"data": of_hub} if of_hub else {})

    def how_read(self, *, prompts: bool = False) -> HowRead:
        """How the rows of its files are read. SystemExit where columns contradict each other."""
        given = {
            name: value for name, value in self._columns().items() if value not in (OWN, [], False)
        }
        columns = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        form = None if self.format == OWN else FORMATS[self.format]
        if problem := _contradiction(columns) if form is None else _not_of(form, columns):
            raise SystemExit(f"{self.stage_name()}: {problem}")
        part = {"split": self.split, "config": self.config, "revision": self.revision}
        return HowRead(self.format, columns, self.seed, prompts, part)

    def _columns(self) -> dict[str, Any]:
        """The fields of Layout that these settings fill."""
        return {
            "prompt": _several(self.prompt_column),
            "system": _several(self.system_column),
            "id": self.id_column,
            "source": self.source_column,
        }


class PairColumns(PromptColumns):
    """What every stage takes that reads preferences: what is compared, and what says which is better."""

    format: PairFormat = "auto"
    """How a row is read; auto: recognised by the columns of the first rows, and said."""
    chosen_column: str = OWN
    """The better answer."""
    rejected_column: str = OWN
    """The worse answer."""
    answer_columns: list[str] = Field(default=[], max_length=2)
    """Two answers in any order, in place of chosen and rejected; say which is better with one of
    label_column, strength_column and score_columns."""
    label_column: str = OWN
    """What says which of answer_columns is better."""
    labels: list[str] = []
    """Its values: where the first answer is better, where the second is, then those of ties."""
    strength_column: str = OWN
    """A number: below 0 the first of answer_columns is better, above it the second; how far, the margin."""
    score_columns: list[str] = Field(default=[], max_length=2)
    """Scores of both answers, in their order: equal ones are a tie, the difference is the margin."""
    lower_wins: bool = False
    """Scores are ranks."""
    candidates_column: str = OWN
    """A list of answers, in place of two."""
    candidate_text: str = OWN
    """In each of candidates_column: the answer's text."""
    candidate_score: str = OWN
    """In each of candidates_column: its score, or with lower_wins its rank."""
    candidate_pairs: HowPaired = "best-vs-worst"
    """Which candidates become a pair: the best one and the worst or a lower one that is drawn; or
    any two, a pair each."""
    margin_column: str | None = OWN
    """How much better chosen is. None: no margins, of scores and strengths neither."""
    tie_column: str | None = OWN
    """Whether neither is better."""

    def _columns(self) -> dict[str, Any]:
        is_said = self.label_column != OWN or self.strength_column != OWN
        scores = (tuple(self.score_columns),) if self.score_columns else () if is_said else OWN
        return super()._columns() | {
            "chosen": self.chosen_column,
            "rejected": self.rejected_column,
            "answers": self.answer_columns,
            "label": self.label_column,
            "labels": [word_of(label) for label in self.labels],
            "strength": self.strength_column,
            "scores": scores,
            "lower_wins": self.lower_wins,
            "candidates": self.candidates_column,
            "text": self.candidate_text,
            "score": self.candidate_score,
            "pairs": OWN if self.candidate_pairs == "best-vs-worst" else self.candidate_pairs,
            "margin": self.margin_column,
            "tie": self.tie_column,
            "scores_are_margins": OWN if self.margin_column else None,
        }


def _several(column: str | None) -> Any:
    """A field of Layout that takes several names."""
    return column if column == OWN else (column,) if column else ()


def _not_of(form: Format, columns: Mapping[str, Any]) -> str | None:
    """What of the named columns the format that is named does not read."""
    if not columns:
        return None
    if form.layout is None:
        return f"--format of a set that is read as it is published takes no columns: {min(columns)}"
    has_answers = columns.get("answers") or form.layout.answers or form.layout.candidates
    if columns.keys() & {"label", "strength"} and not has_answers:
        return (
            "label_column, strength_column: the format has chosen and rejected; name answer_columns"
        )
    return None


def _contradiction(columns: Mapping[str, Any]) -> str | None:
    """What is missing among columns that a person has named, where no format adds to them."""
    answers = columns.get("answers")
    by = columns.keys() & {"label", "strength"} or columns.get("scores")
    if answers and (len(answers) != 2 or not by):
        return (
            "answer_columns: wanted two, and label_column, strength_column or score_columns to say "
            "which is better"
        )
    if columns.keys() & {"label", "strength"} and not answers:
        return (
            "label_column, strength_column: say which of two answers is better: name answer_columns"
        )
    if "label" in columns and len(columns.get("labels", ())) < 2:
        return "label_column: say with --labels what it holds where the first is better, where the second"
    return None
