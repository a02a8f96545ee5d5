"""The row types: one class for each kind of line in data/. Field docstrings are the file format.

A join is always by id (a string), never by position. Answers are 1-based, as the judge says them;
`index` and `sample` are 0-based.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

Language = Literal["en", "zh"]
FinishReason = Literal["stop", "length"]
Split = Literal["train", "validation"]
PairType = Literal["best_of_n", "best_of_n_unreadable", "hint"]
Variant = Literal["best_of_n", "guide", "guide_reverse", "output"]
"""How a judge was asked.

best_of_n      without a hint, sampled several times
guide          told that the better answer is better, and asked why
guide_reverse  told that the worse one is, and asked why
output         without a hint, greedily
"""


class Message(TypedDict):
    """One turn of a conversation, as `datasets`, TRL and every chat template take it."""

    role: str
    content: str


def as_turns(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as turns: text alone is one turn of the user's."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def flatten_turns(prompt: str | Sequence[Message]) -> str:
    """A prompt as one question: text or a single user turn as it is, several each behind its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)


def answer_of(response: str | Sequence[Message]) -> str:
    """A response's text: of turns, that of the last one."""
    return response if isinstance(response, str) else response[-1]["content"]


class Row(BaseModel):
    """What every row has. A field that is missing, extra or of another type is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        defer_build=True,  # a stage uses three of them, and --help none
    )
    id: str
    """Stable across stages: the same id is the same question in every file."""

    @property
    def key(self) -> str:
        """What is unique in a file of these rows; the resume log goes by it."""
        return self.id


class Completion(Row):
    """One text that a model wrote to one request, as it gave it; a line of the resume log."""

    sample: int
    """0-based: which of the request's samples."""
    text: str
    finish_reason: FinishReason
    """stop: the model ended its turn; length: cut at the token limit."""
    prompt_tokens: int
    new_tokens: int

    @property
    def key(self) -> str:
        return f"{self.id}\t{self.sample}"

    @property
    def written(self) -> dict[str, Any]:
        """What a row made of it takes over as it is."""
        return self.model_dump(exclude={"id", "sample"})


class Reject(Row):
    """A row that was read and not written."""

    reason: str
    """One of prefpipe.reasons.REASONS; counted in the stage's closing line."""
    detail: str = ""
    """What a person needs to mend the row: path, line, field, what was found."""


class Preference(Row):
    """One prompt, a better and a worse response. What TRL and `datasets` take as it is."""

    prompt: str | list[Message]
    """Plain text, or the turns so far; the last one is the user's."""
    chosen: str | list[Message]
    rejected: str | list[Message]
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How much better chosen is, in the writer's own unit, >= 0; None: not known."""
    tie: bool = False
    """True: annotators saw no difference; chosen and rejected are then in no order."""
    source: str | None = None
    """Where the row comes from: a data set's or a stage's name."""

    @property
    def fault(self) -> str | None:
        """The reason why nobody can use the row, judge or trainer; None where there is none."""
        if not flatten_turns(self.prompt).strip():
            return "empty_question"
        chosen, rejected = answer_of(self.chosen), answer_of(self.rejected)
        if not chosen.strip() or not rejected.strip():
            return "empty_answer"
        return "equal_answers" if _are_equal_but_for_space(chosen, rejected) else None


def _are_equal_but_for_space(first: str, second: str) -> bool:
    if first.split(maxsplit=1)[:1] != second.split(maxsplit=1)[:1]:  # most texts differ early
        return False
    return first.split() == second.split()


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
    finish_reason: FinishReason
    """stop: the model ended its turn; length: cut at the token limit."""
    prompt_tokens: int
    new_tokens: int

    @property
    def key(self) -> str:
        return judgment_key(self.id, self.variant, self.sample)


def judgment_key(id: str, variant: Variant, sample: int) -> str:
    """What a judgment goes by in a resume log."""
    return f"{id}\t{variant}\t{sample}"


class CleanJudgment(Judgment):
    """A judgment that was read: exactly one of verdict and unreadable is set."""

    index: int
    """0-based place of the item in the file of items: the same in all four files."""
    judgment: str | None
    """The judgment as one valid JSON object with the answer keys of its language; of a hinted
    text, re-assembled with the hinted verdict. None: unreadable."""
    verdict: Literal[1, 2] | None
    unreadable: str | None
    """Why no verdict could be read; one of prefpipe.reasons.REASONS."""


class JudgmentPair(Row):
    """Two judgments of one item; TRL's DPOTrainer takes it as it is."""

    item_id: str
    split: Split
    pair_type: PairType
    better: Literal[1, 2]
    """The right verdict: that of chosen."""
    prompt: list[Message] = Field(min_length=1)
    """One user turn: the item's prompt, without a hint."""
    chosen: list[Message] = Field(min_length=1)
    """One assistant turn with the right verdict."""
    rejected: list[Message] = Field(min_length=1)
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
    finish_reason: FinishReason
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


# ---- preference models: responses, rankings, held-out questions ----------------------------------


class Responses(Row):
    """One prompt and several responses to it."""

    prompt: str | list[Message]
    responses: list[str]
    """In any order; copies and empty ones are allowed, see prefpipe.compare.tournament."""
    right: list[bool] | None = None
    """Whether each response is right, where something other than a model can tell."""
    source: str | None = None


class Comparison(TypedDict):
    """A match of a tournament: two responses by their index."""

    first: int
    second: int
    p: float | None
    """P(first is better), the mean of both orders; None: it could not be told."""


class Ranking(Row):
    """The responses of one prompt, in order."""

    by: Literal["reward", "pairwise", "judge"]
    tournament: Literal["knockout", "round-robin"] | None
    """None: ranked by a score each."""
    ranking: list[int]
    """Indices of the responses, best first; of copies the first one; no empty ones."""
    copies: list[list[int]]
    """For each place of ranking, the indices of all copies of that text."""
    scores: list[float] | None
    """For each place of ranking: the reward, or the Bradley-Terry log-strength; None: knockout."""
    margins: list[float | None]
    """For each place but the last: by how much it is ahead of the next one: difference of the
    scores; of a knockout the log-odds of their match, None where they did not meet."""
    best: int
    """Index of the best response."""
    worst: int
    comparisons: list[Comparison]
    cycle: list[int] | None
    """Indices of responses that beat each other in a circle; None: there is no circle."""
    best_is_right: bool | None
    """Of Responses.right; None: not known."""
    right_share: float | None
    """Share of right ones among all responses: what a random pick would score."""
    outside: float | None = None
    """A pairwise model's mean probability on neither A nor B; None: another one ranks."""


class Question(Row):
    """A held-out prompt with right and wrong responses; a pair has one of each."""

    prompt: str | list[Message]
    right: list[str]
    wrong: list[str]
    tie: bool = False
    """One of each, in no order: annotators saw no difference."""
    source: str
    """The benchmark, and its subset where it has one, as `name` or `name/subset`."""

    @property
    def fault(self) -> str | None:
        """The reason why no model can be asked; None where there is none."""
        if not flatten_turns(self.prompt).strip():
            return "empty_question"
        return "fewer_than_two_responses" if len(self.right) + len(self.wrong) < 2 else None


class ScoredQuestion(Row):
    """What one model made of one held-out question."""

    benchmark: str
    kind: Literal["dpo", "reward", "pairwise", "judge"]
    right_scores: list[float]
    """Higher is better: rewards, implicit rewards, log-odds (of a pair, the other side has 0) or
    Bradley-Terry log-strengths; of a knockout 1 for the winner and 0 for all others."""
    wrong_scores: list[float]

    @property
    def key(self) -> str:
        return f"{self.id}\t{self.benchmark}\t{self.kind}"


# ---- synthetic preferences: prompts, responses, the mix ------------------------------------------


class Prompt(Row):
    """What the models are asked: `text` or `prompt` of a user's JSONL row."""

    id: str
    """The row's own; where it has none, a hash of the prompt."""
    prompt: str | list[Message]
    """Plain text, or the turns so far; the last one is the user's."""
    source: str | None = None


class ModelResponse(Row):
    """What one model answered to one prompt."""

    prompt: str | list[Message]
    model: str
    """The model's name in the settings, which is also its folder's."""
    text: str
    finish_reason: FinishReason
    """stop: the model ended its turn; length: cut at the token limit."""
    prompt_tokens: int
    new_tokens: int


class AnnotationMix(Row):
    """The responses to one prompt that are rated against each other, each of another model."""

    prompt: str | list[Message]
    responses: list[str]
    """All different. Places in this list are what `order` of an AnnotationPrompt holds."""
    models: list[str]
    """Who wrote each response."""
    on_policy: int | None = None
    """Index of the response that must be in each pair; None: any two may be a pair."""
    source: str | None = None

    @model_validator(mode="after")
    def _all_of_one_length(self) -> Self:
        count = len(self.responses)
        if len(self.models) != count:
            raise ValueError(f"{len(self.models)} models for {count} responses")
        if self.on_policy is not None and not 0 <= self.on_policy < count:
            raise ValueError(
                f"on_policy is {self.on_policy}, wanted a place among {count} responses"
            )
        return self


class SyntheticPair(Preference):
    """A Preference made of ratings, and who wrote its sides."""

    chosen_model: str
    rejected_model: str
    chosen_rating: float
    """Mean over the aspects, 1 to 5; margin is the difference of the two."""
    rejected_rating: float
    aspects: list[str]
    """What was rated."""
    chosen_ratings: list[float | None]
    """One an aspect; None: N/A, unreadable or missing."""
    rejected_ratings: list[float | None]


# ---- synthetic preferences: annotations ----------------------------------------------------------


class AnnotationPrompt(Row):
    """One request to the annotator: the texts of one prompt, under one aspect. id: the prompt's."""

    aspect: str = Field(pattern=r"^[\w.-]+$")
    """A key of prefpipe/templates/criteria.toml."""
    swapped: bool = False
    """True: a second request about the same texts, in another order, to see if the ratings hold."""
    prompt: str
    """The annotator's user turn, rendered."""
    order: list[int]
    """For each numbered text, as shown: its 0-based index among the responses of the mix's row."""
    texts: int
    """How many texts are shown, and so how many ratings are asked for: the length of order."""

    @property
    def key(self) -> str:
        return annotation_key(self.id, self.aspect, self.swapped)


class AnnotationAnswer(Row):
    """What the annotator wrote to one AnnotationPrompt, as the model gave it."""

    aspect: str = Field(pattern=r"^[\w.-]+$")
    swapped: bool = False
    text: str
    finish_reason: FinishReason
    """stop: the model ended its turn; length: cut at the token limit."""
    model: str
    """Who rated."""
    prompt_tokens: int
    new_tokens: int

    @property
    def key(self) -> str:
        return annotation_key(self.id, self.aspect, self.swapped)


def annotation_key(id: str, aspect: str, swapped: bool) -> str:
    """What an annotation goes by in a resume log, and as a request's id."""
    return f"{id}\t{aspect}\t{'swapped' if swapped else 'given'}"


# ---- RAG pairs -------------------------------------------------------------------------------


class Entry(Row):
    """A row of the user's table (CSV, Parquet or JSONL); settings say which column is which."""

    id: str
    """Of the id column; where there is none, a hash of the row's content."""
    query: str
    """What is asked. Empty, null and NaN are all empty."""
    code: str
    description: str
    keywords: list[str]
    """What a good answer mentions; empty where the table has no such column."""


class Document(Row):
    """What is embedded, found, and shown to the model as context: a row, or a chunk of one."""

    id: str
    """The row's id; of a chunk, with `#` and its 0-based number behind."""
    row_id: str
    start: int
    """Where a chunk begins in the row's document, in characters; 0 of a whole one."""
    text: str
    """The description, then the code; the code alone where it holds the description."""
    content_hash: str
    """First 32 hex digits of the text's sha256: a text that was embedded once is not again."""


class Retrieved(Row):
    """What was found for a query; a line of the resume log."""

    document_ids: list[str]
    """Best first."""
    store_rows: list[int]
    """Their 0-based places in the store."""
    scores: list[float]
    """Cosine of the query and each document, -1 to 1."""
    context: str
    """The documents' texts, as the prompt shows them."""
    is_cut: bool
    """The documents were longer than max_context_characters."""


class ScoreParts(TypedDict):
    """A candidate's score and what it is made of; prefpipe/rag/score.py says how."""

    score: float
    grounding: float
    """Cosine of candidate and context, 0 to 1."""
    keyword_coverage: float
    """Share of the keywords that the candidate mentions."""
    length_penalty: float
    """0 (short enough) to 1 (far too long)."""
    is_abstention: bool
    """It says that it does not know."""
    judge_score: float | None
    """(comparisons won - lost) / comparisons, -1 to 1; None: no judge was asked."""


class ScoredCandidate(TypedDict):
    """One candidate beside the others of its query."""

    sample: int
    text: str
    finish_reason: str
    parts: ScoreParts


class RagPair(Preference):
    """A Preference made of the best and the worst of several answers to one query."""

    question: str
    """The query, as the table has it."""
    document_ids: list[str]
    """The documents of the context, best first."""
    retrieval_scores: list[float]
    abstention_worth: float
    """How likely it is held to be that the context does not answer, 0 to 1."""
    is_answerable: bool
    """That is under 0.5: the context rather answers."""
    keywords: list[str]
    """What coverage was counted over."""
    scorer: Literal["heuristic", "judge", "both"]
    """Whose score margin is in: the heuristic's, or (judge) the judge's."""
    chosen_parts: ScoreParts
    rejected_parts: ScoreParts
    chosen_sample: int
    rejected_sample: int
    candidate_seeds: list[str]
    """`seed:id:sample` of each candidate: what its random numbers were drawn from."""
    candidates: list[ScoredCandidate] | None
    """All of them, by sample; None unless asked for with --write-candidates."""


class Disagreement(Row):
    """A held-out pair that a model is wrong about, the worst first; for reading."""

    margin: float
    """Log-odds that chosen is better, as the model sees it: below 0."""
    chosen_score: float | None
    rejected_score: float | None
    """Rewards; None: the model compares and has no score for one response."""
    prompt: str
    chosen: str
    rejected: str
    source: str | None
