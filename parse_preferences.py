"""Read the ratings, and make preference pairs of them.

Reads   data/synthetic/mix.jsonl                  AnnotationMix rows: the responses
        data/synthetic/annotation_prompts.jsonl   AnnotationPrompt rows: in which order they were shown
        data/synthetic/annotations.jsonl          AnnotationAnswer rows: what the annotator wrote
Writes  data/synthetic/preferences.jsonl          SyntheticPair rows: Preference rows, with ratings and models
        data/synthetic/preferences.rejects.jsonl  Reject rows: prompts of which no pair could be made

    {"id": "p8", "prompt": "2+2?", "responses": ["4", "5"], "models": ["base-t0.5", "base-t1.1"], "on_policy": null, "source": "sums"}
 -> {"id": "p8", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 3.5, "tie": false, "source": "sums", "chosen_model": "base-t0.5", "rejected_model": "base-t1.1", "chosen_rating": 5.0, "rejected_rating": 1.5, "aspects": ["honesty", "truthfulness"], "chosen_ratings": [5.0, 5.0], "rejected_ratings": [2.0, 1.0]}

A response's rating is the mean over the aspects. An annotation that is missing, cut off or unreadable
(prefpipe/verdicts.py: read_ratings) counts for nobody, N/A not for its text; a response with ratings
in fewer than min_aspects aspects is in no pair. Second annotations in swapped order are compared
with the first ones and used for nothing else.

    uv run parse_preferences.py --pairs best-vs-worst --ties drop
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator

import config
from prefpipe import files
from prefpipe.files import DataError
from prefpipe.ranges import Positive
from prefpipe.rows import (
    AnnotationAnswer,
    AnnotationMix,
    AnnotationPrompt,
    Message,
    Reject,
    SyntheticPair,
)
from prefpipe.settings import Stage
from prefpipe.verdicts import Unreadable, read_ratings

Pairs = Literal["best-vs-random", "best-vs-worst", "all"]
_NOTHING = 1e-9  # means of the same ratings may differ in their last bit


class Settings(Stage, env_prefix="PARSE_"):
    input: Path = config.ANNOTATIONS
    """What the annotator wrote."""
    prompts: Path = config.ANNOTATION_PROMPTS
    """What it was asked."""
    mix: Path = config.ANNOTATION_MIX
    """The responses it was asked about."""
    output: Path = config.SYNTHETIC_PREFERENCES
    """A .jsonl file."""
    pairs: Pairs = "best-vs-random"
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


class Pair(NamedTuple):
    """Indices of the mix's responses."""

    chosen: int
    rejected: int
    tie: bool


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one AnnotationPrompt came to."""

    aspect: str
    swapped: bool
    order: list[int]
    ratings: list[float | None] | Unreadable
    """By index of the response; None: N/A."""


def main(s: Settings) -> None:
    inputs = [s.mix, s.prompts, s.input]
    # A wrong line in a file of this pipeline stops the stage: without it the files no longer fit.
    strict = s.model_copy(update={"strict": True})
    with files.open_run(
        strict, inputs=inputs, outputs={s.output: SyntheticPair}, unit="prompts"
    ) as run:
        if run.finished:
            return
        asked = files.Aligned(s.prompts, AnnotationPrompt)
        answered = files.Aligned(s.input, AnnotationAnswer)
        report = Report()
        for mix in run.read(s.mix, AnnotationMix):
            requests = asked.rows_of(mix.id)
            check_requests(mix, requests, s.prompts)
            annotations = read_annotations(requests, answered.rows_of(mix.id), s.input)
            made = build_pairs(mix, annotations, s)
            run.emit(made)
            report.add(mix, annotations, made)
        if s.limit is None:
            asked.check_used_up()
            answered.check_used_up()
        run.summary |= report.summary()
    print("\n".join(report.lines()))


# ---- ratings -------------------------------------------------------------------------------------


def check_requests(mix: AnnotationMix, asked: Sequence[AnnotationPrompt], path: Path) -> None:
    """Raise DataError where the requests are not about these responses."""
    places = list(range(len(mix.responses)))
    if not asked or any(sorted(row.order) != places for row in asked):
        raise DataError(
            f"{path}: id {mix.id!r}: found {'another number of texts' if asked else 'no request'}, "
            f"wanted the {len(places)} of the mix; run create_annotation_mix.py --overwrite"
        )


def read_annotations(
    asked: Sequence[AnnotationPrompt], answered: Sequence[AnnotationAnswer], path: Path
) -> list[Annotation]:
    """One for each request, joined by (id, aspect, swapped); of no answer it is `missing`."""
    answers = {row.key: row for row in answered}
    if len(answers) < len(answered):
        raise DataError(f"{path}: id {answered[0].id!r}: two answers to one request; wanted one")
    made = [
        Annotation(row.aspect, row.swapped, row.order, ratings_of(row, answers.pop(row.key, None)))
        for row in asked
    ]
    if answers:
        row = next(iter(answers.values()))
        raise DataError(f"{path}: id {row.id!r}, {row.aspect}: nobody asked; wanted the same mix")
    return made


def ratings_of(
    asked: AnnotationPrompt, answer: AnnotationAnswer | None
) -> list[float | None] | Unreadable:
    """By index of the response, whatever the order they were shown in."""
    if answer is None:
        return Unreadable("missing")
    if answer.finish_reason == "length":
        return Unreadable("cut_off")  # "Rating: 4" may have been going to be 4.5
    as_shown = read_ratings(answer.text, len(asked.order))
    if isinstance(as_shown, Unreadable):
        return as_shown
    by_index: list[float | None] = [None] * len(as_shown)
    for index, rating in zip(asked.order, as_shown, strict=True):
        by_index[index] = rating
    return by_index


def ratings_by_aspect(
    annotations: Iterable[Annotation], count: int
) -> dict[str, list[float | None]]:
    """Of the first annotations: the count responses' ratings; None where there is none."""
    return {
        a.aspect: [None] * count if isinstance(a.ratings, Unreadable) else a.ratings
        for a in annotations
        if not a.swapped
    }


def mean_rating(ratings: Sequence[float | None], min_aspects: int) -> float | None:
    """Of those that are there; None with fewer than min_aspects of them."""
    given = [rating for rating in ratings if rating is not None]
    return sum(given) / len(given) if len(given) >= min_aspects else None


# ---- pairs ---------------------------------------------------------------------------------------


def build_pairs(
    mix: AnnotationMix, annotations: Sequence[Annotation], s: Settings
) -> list[SyntheticPair] | Reject:
    """The prompt's pairs; drawn from (seed, id) where something is drawn."""
    by_aspect = ratings_by_aspect(annotations, len(mix.responses))
    needed = s.min_aspects or len(by_aspect) // 2 + 1
    columns = zip(*by_aspect.values(), strict=True)
    found = {k: mean_rating(column, needed) for k, column in enumerate(columns)}
    means = {k: mean for k, mean in found.items() if mean is not None}
    if len(means) < 2:
        lost = {a.aspect: a.ratings.reason for a in annotations
                if isinstance(a.ratings, Unreadable) and not a.swapped}  # fmt: skip
        detail = f"{len(means)} responses have ratings in {needed} of {len(by_aspect)} aspects"
        reasons = ", ".join(f"{aspect} is {reason}" for aspect, reason in lost.items())
        detail = f"{detail}; {reasons}" if reasons else detail
        return Reject(id=mix.id, reason="too_few_ratings", detail=detail)
    if mix.on_policy is not None and mix.on_policy not in means:
        detail = f"{mix.models[mix.on_policy]} has ratings in fewer than {needed} aspects"
        return Reject(id=mix.id, reason="no_on_policy_rating", detail=detail)
    rng = random.Random(f"{s.seed}:{mix.id}:pairs")
    pairs = list(choose_pairs(means, s.pairs, s.tie_margin, mix.on_policy, rng))
    if s.ties == "drop":
        pairs = [pair for pair in pairs if not pair.tie]
    if not pairs:
        shown = ", ".join(f"{mean:.2f}" for mean in means.values())
        return Reject(id=mix.id, reason="tie", detail=f"mean ratings {shown}")
    return [to_row(mix, pair, means, by_aspect, s.pairs) for pair in pairs]


def choose_pairs(
    means: dict[int, float],
    how: Pairs,
    tie_margin: float,
    on_policy: int | None,
    rng: random.Random,
) -> Iterator[Pair]:
    """Which two (or all pairs of two) of the rated responses; at least two are rated.

    With on_policy, it is on one side of each pair: `all` gives its pairs only; else it is set
    against the best, or, being the best itself, against another one as without it.
    """

    def pair(a: int, b: int) -> Pair:
        """The better one first; of a tie in the order given."""
        tie = abs(means[a] - means[b]) <= tie_margin + _NOTHING
        return Pair(b, a, False) if not tie and means[b] > means[a] else Pair(a, b, tie)

    if how == "all":
        for a, b in combinations(means, 2):
            if on_policy in (None, a, b):
                yield pair(a, b)
        return
    highest = max(means.values())
    top = [k for k, mean in means.items() if highest - mean <= _NOTHING]
    best = on_policy if on_policy in top else rng.choice(top)
    assert best is not None
    others = [k for k in means if k != best]
    if on_policy is not None and best != on_policy:
        others = [on_policy]
    elif how == "best-vs-worst":
        lowest = min(means[k] for k in others)
        others = [k for k in others if means[k] - lowest <= _NOTHING]
    else:
        others = [k for k in others if not pair(best, k).tie] or others
    yield pair(best, rng.choice(others))


def to_row(
    mix: AnnotationMix,
    pair: Pair,
    means: dict[int, float],
    by_aspect: dict[str, list[float | None]],
    how: Pairs,
) -> SyntheticPair:
    def as_response(text: str) -> str | list[Message]:
        if isinstance(mix.prompt, str):
            return text
        return [Message(role="assistant", content=text)]

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
        chosen_ratings=[ratings[chosen] for ratings in by_aspect.values()],
        rejected_ratings=[ratings[rejected] for ratings in by_aspect.values()],
    )


# ---- what the ratings look like ------------------------------------------------------------------


class Report:
    """Counts only: memory does not grow with the rows."""

    def __init__(self) -> None:
        self.ratings: dict[str, Counter[int]] = defaultdict(Counter)
        """Aspect -> ratings from k to under k + 1 -> how many."""
        self.sums: Counter[str] = Counter()
        """Aspect -> sum of its ratings. A Counter holds fractions as well as whole numbers."""
        self.not_applicable: Counter[str] = Counter()
        self.unreadable: dict[str, Counter[str]] = defaultdict(Counter)
        """Aspect -> reason -> annotations."""
        self.by_place: dict[int, list[float]] = defaultdict(lambda: [0, 0.0])
        """Number of the text as shown -> ratings, and their sum."""
        self.agreement: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        """Aspect -> pairs of texts that it orders as the mean of the others does, and all pairs."""
        self.twice = Counter[str]()
        self.models: dict[str, Counter[str]] = defaultdict(Counter)
        self.pairs = self.ties = 0

    def add(
        self,
        mix: AnnotationMix,
        annotations: Sequence[Annotation],
        made: Sequence[SyntheticPair] | Reject,
    ) -> None:
        for a in annotations:
            if isinstance(a.ratings, Unreadable):
                self.unreadable[a.aspect][a.ratings.reason] += 1
                continue
            for place, index in enumerate(a.order, start=1):
                rating = a.ratings[index]
                if rating is None:
                    self.not_applicable[a.aspect] += 1
                    continue
                self.ratings[a.aspect][int(rating)] += 1
                self.sums[a.aspect] += rating  # pyright: ignore[reportArgumentType]
                self.by_place[place][0] += 1
                self.by_place[place][1] += rating
        by_aspect = ratings_by_aspect(annotations, len(mix.responses))
        self._add_agreement(by_aspect)
        self._add_self_agreement(annotations)
        if not isinstance(made, Reject):
            for pair in made:
                self.pairs += 1
                self.ties += pair.tie
                if not pair.tie:
                    self.models[pair.chosen_model]["chosen"] += 1
                    self.models[pair.rejected_model]["rejected"] += 1

    def _add_agreement(self, by_aspect: dict[str, list[float | None]]) -> None:
        for aspect, ratings in by_aspect.items():
            rest = [other for name, other in by_aspect.items() if name != aspect]
            means = [mean_rating(column, 1) for column in zip(*rest, strict=True)]
            if not means:
                continue
            for a, b in combinations(range(len(ratings)), 2):
                here, there = order_of(ratings, a, b), order_of(means, a, b)
                if here and there:
                    self.agreement[aspect][0] += here == there
                    self.agreement[aspect][1] += 1

    def _add_self_agreement(self, annotations: Sequence[Annotation]) -> None:
        first = {a.aspect: a.ratings for a in annotations if not a.swapped}
        for second in annotations:
            one, two = first.get(second.aspect), second.ratings
            if not second.swapped or not isinstance(one, list) or not isinstance(two, list):
                continue
            for a, b in zip(one, two, strict=True):
                if a is not None and b is not None:
                    self.twice["ratings"] += 1
                    self.twice["equal"] += a == b
            for a, b in combinations(range(len(one)), 2):
                before, after = order_of(one, a, b), order_of(two, a, b)
                if before is not None and after is not None:
                    self.twice["pairs"] += 1
                    self.twice["same_order"] += before == after
                    self.twice["reversed"] += before * after < 0

    def summary(self) -> dict[str, object]:
        """For .meta.json: the same numbers as in lines()."""
        return {
            "pairs": self.pairs,
            "ties": self.ties,
            "ratings": {
                aspect: {
                    "histogram": {str(k): counts[k] for k in range(1, 6)},
                    "not_applicable": self.not_applicable[aspect],
                    "unreadable": dict(self.unreadable[aspect]),
                    "mean": self._mean(aspect),
                    "agreement": share(*self.agreement[aspect]),
                }
                for aspect, counts in self._by_aspect()
            },
            "mean_rating_by_place": [n and total / n for _, (n, total) in self._places()],
            "self_agreement": dict(self.twice),
            "models": {name: dict(counts) for name, counts in sorted(self.models.items())},
        }

    def lines(self) -> list[str]:
        """The table of the ratings, then one line each: places, self-agreement, models, ties."""
        heads = [*map(str, range(1, 6)), "N/A", "unreadable", "mean", "agrees"]
        lines = ["ratings                 " + "".join(f"{head:>11}" for head in heads)]
        for aspect, counts in self._by_aspect():
            numbers = [counts[k] for k in range(1, 6)]
            numbers += [self.not_applicable[aspect], sum(self.unreadable[aspect].values())]
            shares = [self._mean(aspect), share(*self.agreement[aspect])]
            shown = [str(number) for number in numbers] + [as_text(value) for value in shares]
            lines.append(f"  {aspect:22}" + "".join(f"{value:>11}" for value in shown))
        lines.append(
            "  agrees: pairs of texts that the aspect orders as the mean of the other aspects does, "
            "of those that neither rates alike"
        )
        reasons = sum(self.unreadable.values(), Counter())
        if reasons:
            shown = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
            lines.append(f"unreadable annotations: {shown}")
        places = ", ".join(f"{place}: {total / n:.2f}" for place, (n, total) in self._places())
        lines.append(f"mean rating by place of the text: {places or 'none'}")
        if self.twice["pairs"]:
            equal = share(self.twice["equal"], self.twice["ratings"])
            same = share(self.twice["same_order"], self.twice["pairs"])
            against = share(self.twice["reversed"], self.twice["pairs"])
            lines.append(
                f"asked again in swapped order: the same rating for {as_text(equal)} of "
                f"{self.twice['ratings']} texts; of {self.twice['pairs']} pairs of texts the same "
                f"order for {as_text(same)}, the opposite for {as_text(against)}"
            )
        for name, counts in sorted(self.models.items()):
            lines.append(f"{name}: chosen {counts['chosen']}, rejected {counts['rejected']} times")
        lines.append(f"{self.pairs} pairs, {self.ties} of them ties")
        return lines

    def _by_aspect(self) -> list[tuple[str, Counter[int]]]:
        names = dict.fromkeys([*self.ratings, *self.unreadable, *self.not_applicable])
        return [(name, self.ratings[name]) for name in names]

    def _places(self) -> list[tuple[int, list[float]]]:
        return sorted(self.by_place.items())

    def _mean(self, aspect: str) -> float | None:
        return share(self.sums[aspect], sum(self.ratings[aspect].values()))


def order_of(ratings: Sequence[float | None], a: int, b: int) -> int | None:
    """1 where a is rated higher, -1 where b is, 0 where they are alike; None: one has no rating."""
    first, second = ratings[a], ratings[b]
    if first is None or second is None:
        return None
    difference = first - second
    return 0 if abs(difference) <= _NOTHING else 1 if difference > 0 else -1


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def as_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    Settings.run(main)
