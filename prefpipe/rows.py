"""The row types: one class for each kind of line in data/. Field docstrings are the file format.

A join is always by id (a string), never by position. Answers are 1-based, as the judge says them;
`index` and `sample` are 0-based.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

Language = Literal["en", "zh"]
Split = Literal["train", "validation"]
PairType = Literal["best_of_n", "best_of_n_unreadable", "hint"]
Variant = Literal["best_of_n", "guide", "guide_reverse", "output"]


class Message(TypedDict):
    """One turn of a conversation, as `datasets`, TRL and every chat template take it."""

    role: str
    content: str


class Row(BaseModel):
    """What every row has. A field that is missing, extra or of another type is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )
    id: str
    """Stable across stages: the same id is the same question in every file."""

    @property
    def key(self) -> str:
        """What is unique in a file of these rows; the resume log goes by it."""
        return self.id


class Reject(Row):
    """A row that was read and not written."""

    reason: str
    """snake_case, one of a stage's closed set; counted in the stage's closing line."""
    detail: str = ""
    """What a person needs to mend the row: path, line, field, what was found."""


class Preference(Row):
    """One prompt, a better and a worse response. What TRL and `datasets` take as it is."""

    prompt: str | list[Message]
    """Plain text, or the turns so far; the last one is the user's."""
    chosen: str | list[Message]
    rejected: str | list[Message]
    margin: float | None = None
    """How much better chosen is, in the writer's own unit, >= 0; None: not known."""
    tie: bool = False
    """True: annotators saw no difference; chosen and rejected are then in no order."""
    source: str | None = None
    """Where the row comes from: a data set's or a stage's name."""


class Item(Row):
    """A question with two answers in random order, for a judge."""

    source: str
    """The data set, and its subset where it has one, as `name` or `name/subset`."""
    split: Split
    language: Language
    """Which template the prompt is rendered with."""
    question: str
    """The user's question; of a conversation, all turns up to it, each behind its role."""
    answer_1: str
    answer_2: str
    better: Literal[1, 2] | None
    """Which answer the annotator preferred; None is a tie."""
    prompt: str
    """The judge's user turn: question, both answers, instruction. No hint is ever in here."""


class Judgment(Row):
    """One text a judge wrote about one item, as the model gave it."""

    sample: int
    """0-based number of the sample; (id, variant, sample) is unique."""
    variant: Variant
    hint: Literal[1, 2] | None
    """The answer that the prompt called better; None: the prompt had no hint."""
    text: str
    finish_reason: Literal["stop", "length"]
    """stop: the model ended its turn; length: cut at the token limit."""
    prompt_tokens: int
    new_tokens: int

    @property
    def key(self) -> str:
        return f"{self.id}\t{self.variant}\t{self.sample}"


class CleanJudgment(Judgment):
    """A judgment that was read: exactly one of verdict and unreadable is set."""

    index: int
    """0-based place of the item among those that the four files share."""
    judgment: str | None
    """The judgment as one valid JSON object with the answer keys of its language; of a hinted
    text, re-assembled with the hinted verdict. None: unreadable."""
    verdict: Literal[1, 2] | None
    unreadable: str | None
    """Why no verdict could be read; one of prefpipe.verdicts.REASONS."""


class JudgmentPair(Row):
    """Two judgments of one item; TRL's DPOTrainer takes it as it is."""

    item_id: str
    split: Split
    pair_type: PairType
    better: Literal[1, 2]
    """The right verdict: that of chosen."""
    prompt: list[Message]
    """One user turn: the item's prompt, without a hint."""
    chosen: list[Message]
    """One assistant turn with the right verdict."""
    rejected: list[Message]
    """One assistant turn with the wrong verdict, or (best_of_n_unreadable) with none."""
    chosen_sample: int
    rejected_sample: int


class EvaluatedJudgment(Row):
    """What one judge said of one held-out item, in one of the two orders of its answers."""

    judge: Literal["base", "tuned"]
    benchmark: str
    """`validation`, or the name of a benchmark given on the command line."""
    order: Literal["given", "swapped"]
    better: Literal[1, 2] | None
    """The item's better answer; None is a tie."""
    verdict: Literal[1, 2] | None
    """As the item's own answer number, whatever the order; None: unreadable."""
    unreadable: str | None
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    new_tokens: int

    @property
    def key(self) -> str:
        return f"{self.id}\t{self.benchmark}\t{self.judge}\t{self.order}"


class PairScore(Row):
    """Log-probabilities of one judgment pair under one judge."""

    judge: Literal["base", "tuned"]
    chosen_logp: float
    """Natural log, summed over the completion's tokens and its end of turn."""
    rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def key(self) -> str:
        return f"{self.id}\t{self.judge}"
