"""Read the ratings, and make preference pairs of them.

Reads   data/synthetic/mix.jsonl                  AnnotationMix rows: the responses
        data/synthetic/annotation_prompts.jsonl   AnnotationPrompt rows: in which order they were shown
        data/synthetic/annotations.jsonl          AnnotationAnswer rows: what the annotator wrote
Writes  data/synthetic/preferences.jsonl          SyntheticPair rows: Preference rows, with ratings and models
        data/synthetic/preferences.rejects.jsonl  Reject rows: prompts of which no pair could be made
        data/synthetic/README.md                  the card: how the rows were made

    {"id": "p8", "prompt": "2+2?", "responses": ["4", "5"], "models": ["base-t0.5", "base-t1.1"], "on_policy": null, "source": "sums"}
 -> {"id": "p8", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 3.5, "tie": false, "source": "sums", "chosen_model": "base-t0.5", "rejected_model": "base-t1.1", "chosen_rating": 5.0, "rejected_rating": 1.5, "aspects": ["honesty", "truthfulness"], "chosen_ratings": [5.0, 5.0], "rejected_ratings": [2.0, 1.0]}

A response's rating is the mean over the aspects. An annotation that is missing, cut off or unreadable
(prefpipe/ratings.py: read_ratings) counts for nobody, N/A not for its text; a response with ratings
in fewer than min_aspects aspects is in no pair. Second annotations in swapped order are compared
with the first ones and used for nothing else.

    uv run parse_preferences.py --pairs best-vs-worst --ties drop
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

import config
from prefpipe import draws, rated_pairs, ratings
from prefpipe.files import DataError
from prefpipe.publish.cards import write_data_card
from prefpipe.ranges import Positive
from prefpipe.ratings_report import Report
from prefpipe.rows import (
    AnnotationAnswer,
    AnnotationMix,
    AnnotationPrompt,
    Message,
    Reject,
    SyntheticPair,
)
from prefpipe.screen import show_table
from prefpipe.settings import Stage
from prefpipe.verdicts import Unreadable


class Settings(Stage, env_prefix="PARSE_"):
    input: Path = config.ANNOTATIONS
    """What the annotator wrote."""
    prompts: Path = config.ANNOTATION_PROMPTS
    """What it was asked."""
    mix: Path = config.ANNOTATION_MIX
    """The responses it was asked about."""
    output: Path = config.SYNTHETIC_PREFERENCES
    """A .jsonl file."""
    pairs: rated_pairs.HowPaired = "best-vs-random"
    """Which responses of a prompt become a pair: the best one and one that is rated lower, drawn
    (as UltraFeedback and Tulu 3) or the worst; or any two, a pair each."""
    min_aspects: Positive | None = None
    """Aspects in which a response must have a rating; None: more than half of those asked about."""
    tie_margin: Annotated[float, Field(ge=0)] = 0.0
    """Mean ratings that differ by this or less are a tie, in points of the scale from 1 to 5."""
    ties: Literal["keep", "drop"] = "keep"
    """Ties are written with tie = true, or left out; TRL's own trainers know no ties: drop."""

    @field_validator("output")
    @classmethod
    def _is_jsonl(cls, output: Path) -> Path:
        if output.suffix != ".jsonl":  # a Parquet column holds text or turns, not either
            raise ValueError("wanted a file name that ends in .jsonl")
        return output


def main(s: Settings) -> None:
    inputs = [s.mix, s.prompts, s.input]
    # A wrong line in a file of this pipeline stops the stage: without it the files no longer fit.
    strict = s.model_copy(update={"strict": True})
    with strict.open_run(
        inputs=inputs, outputs={s.output: SyntheticPair}, unit="prompts", card=write_data_card
    ) as run:
        if run.finished:
            return
        asked = run.aligned(s.prompts, AnnotationPrompt)
        answered = run.aligned(s.input, AnnotationAnswer)
        report = Report(run.counter("ratings"))
        for mix in run.read(s.mix, AnnotationMix):
            requests = asked.rows_of(mix.id)
            check_requests(mix, requests, s.prompts)
            # a request without an answer is an aspect less, no reason to lose the prompt
            annotations = join_answers(requests, answered.rows_of(mix.id), s.input)
            pairs = build_pairs(mix, annotations, s)
            run.emit(pairs)
            report.add(mix, annotations, [] if isinstance(pairs, Reject) else pairs)
        if s.limit is None:
            asked.check_used_up()
            answered.check_used_up()
        run.summary |= report.summary()
    show_table(*report.table())
    print("\n".join(report.lines()))


def check_requests(mix: AnnotationMix, asked: Sequence[AnnotationPrompt], path: Path) -> None:
    """Raise DataError where the requests are not about these responses."""
    indices = list(range(len(mix.responses)))
    if not asked or any(sorted(row.order) != indices for row in asked):
        raise DataError(
            f"{path}: id {mix.id!r}: found {'another number of texts' if asked else 'no request'}, "
            f"wanted the {len(indices)} of the mix; run create_annotation_mix.py --overwrite"
        )


def join_answers(
    asked: Sequence[AnnotationPrompt], answered: Sequence[AnnotationAnswer], path: Path
) -> list[ratings.Annotation]:
    """One Annotation for each request, joined by (id, aspect, swapped)."""
    answers = {row.key: row for row in answered}
    if len(answers) < len(answered):
        raise DataError(f"{path}: id {answered[0].id!r}: two answers to one request; wanted one")
    annotations = [ratings.read_annotation(row, answers.pop(row.key, None)) for row in asked]
    if answers:
        row = next(iter(answers.values()))
        raise DataError(f"{path}: id {row.id!r}, {row.aspect}: nobody asked; wanted the same mix")
    return annotations


def build_pairs(
    mix: AnnotationMix, annotations: Sequence[ratings.Annotation], s: Settings
) -> list[SyntheticPair] | Reject:
    """The prompt's pairs; drawn from (seed, id) where something is drawn."""
    by_aspect = ratings.ratings_by_aspect(annotations, len(mix.responses))
    # a mean over one aspect is no mean: a response needs more than half of them
    needed = s.min_aspects or len(by_aspect) // 2 + 1
    means = ratings.mean_ratings(by_aspect, needed)
    if len(means) < 2:
        detail = f"{len(means)} responses have ratings in {needed} of {len(by_aspect)} aspects"
        lost = [f"{a.aspect} is {a.ratings.reason}" for a in annotations
                if isinstance(a.ratings, Unreadable) and not a.swapped]  # fmt: skip
        detail = f"{detail}; {', '.join(lost)}" if lost else detail
        return Reject(id=mix.id, reason="too_few_ratings", detail=detail)
    if mix.on_policy is not None and mix.on_policy not in means:
        detail = f"{mix.models[mix.on_policy]} has ratings in fewer than {needed} aspects"
        return Reject(id=mix.id, reason="no_on_policy_rating", detail=detail)
    # of (seed, id) alone: what is left out before it changes no other prompt's pairs
    rng = draws.rng(s.seed, mix.id, "pairs")
    pairs = list(rated_pairs.choose_pairs(means, s.pairs, s.tie_margin, mix.on_policy, rng))
    if s.ties == "drop":
        pairs = [pair for pair in pairs if not pair.tie]
    if not pairs:
        shown = ", ".join(f"{mean:.2f}" for mean in means.values())
        return Reject(id=mix.id, reason="tie", detail=f"mean ratings {shown}")
    return [to_row(mix, pair, means, by_aspect, s.pairs) for pair in pairs]


def to_row(
    mix: AnnotationMix,
    pair: rated_pairs.Pair,
    means: dict[int, float],
    by_aspect: dict[str, ratings.Ratings],
    how: rated_pairs.HowPaired,
) -> SyntheticPair:
    """The pair as a row. With `all` a prompt has several: each id names its two responses."""

    def as_response(text: str) -> str | list[Message]:
        is_text = isinstance(mix.prompt, str)
        return text if is_text else [Message(role="assistant", content=text)]

    chosen, rejected, tie = pair
    first, second = sorted((chosen, rejected))
    return SyntheticPair(
        id=f"{mix.id}:{first}-{second}" if how == "all" else mix.id,
        prompt=mix.prompt,
        chosen=as_response(mix.responses[chosen]),
        rejected=as_response(mix.responses[rejected]),
        margin=abs(means[chosen] - means[rejected]),
        tie=tie,
        source=mix.source or "synthetic",
        chosen_model=mix.models[chosen],
        rejected_model=mix.models[rejected],
        chosen_rating=means[chosen],
        rejected_rating=means[rejected],
        aspects=list(by_aspect),
        chosen_ratings=[rated[chosen] for rated in by_aspect.values()],
        rejected_ratings=[rated[rejected] for rated in by_aspect.values()],
    )


if __name__ == "__main__":
    Settings.run(main)
