"""What the ratings look like: histograms, how far aspects agree, places, models, ties."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from prefpipe.files import by_number
from prefpipe.rated_pairs import higher_rated
from prefpipe.rating_prompts import SCALE
from prefpipe.ratings import Annotation, Ratings, mean_rating, ratings_by_aspect
from prefpipe.rows import AnnotationMix, SyntheticPair
from prefpipe.verdicts import Unreadable

_WHOLE = range(SCALE[0], SCALE[1] + 1)


_MILLION = 1_000_000  # sums of ratings are whole numbers of millionths: exact in any order


class Report:
    """Counts only: memory does not grow with the rows."""

    def __init__(self, counts: Counter[tuple[Any, ...]]) -> None:
        """counts: where they are kept, by what is counted and of what."""
        self._counts = counts

    def add(
        self, mix: AnnotationMix, annotations: Sequence[Annotation], pairs: Sequence[SyntheticPair]
    ) -> None:
        """One prompt's annotations, and the pairs that were made of them."""
        counts = self._counts
        for a in annotations:
            if isinstance(a.ratings, Unreadable):
                counts["unreadable", a.aspect, a.ratings.reason] += 1
                continue
            for place, index in enumerate(a.order, start=1):
                if (rating := a.ratings[index]) is None:
                    counts["not_applicable", a.aspect] += 1
                    continue
                millionths = round(rating * _MILLION)
                counts["rating", a.aspect, int(rating)] += 1
                counts["sum", a.aspect] += millionths
                counts["place", place] += 1
                counts["place_sum", place] += millionths
        self._add_agreement(ratings_by_aspect(annotations, len(mix.responses)))
        self._add_self_agreement(annotations)
        counts["pairs",] += len(pairs)
        for pair in pairs:
            counts["ties",] += pair.tie
            if not pair.tie:
                counts["model", pair.chosen_model, "chosen"] += 1
                counts["model", pair.rejected_model, "rejected"] += 1

    def _add_agreement(self, by_aspect: dict[str, Ratings]) -> None:
        # An aspect against the mean of the others, not of all: it would agree with itself.
        for aspect, ratings in by_aspect.items():
            rest = [other for name, other in by_aspect.items() if name != aspect]
            means = [mean_rating(column, 1) for column in zip(*rest, strict=True)]
            for here, there in orders(ratings, means):
                if here and there:
                    self._counts["agrees", aspect] += here == there
                    self._counts["compared", aspect] += 1

    def _add_self_agreement(self, annotations: Sequence[Annotation]) -> None:
        first = {a.aspect: a.ratings for a in annotations if not a.swapped}
        for second in annotations:
            one, two = first.get(second.aspect), second.ratings
            if not second.swapped or not isinstance(one, list) or not isinstance(two, list):
                continue
            for a, b in rated_by_both(one, two):
                self._counts["twice", "ratings"] += 1
                self._counts["twice", "equal"] += a == b
            for before, after in orders(one, two):
                self._counts["twice", "pairs"] += 1
                self._counts["twice", "same_order"] += before == after
                self._counts["twice", "reversed"] += before * after < 0

    def _of(self, *what: Any) -> dict[Any, int]:
        """The counts under these first parts of a key, by the next one, sorted."""
        n = len(what)
        found = Counter[Any]()
        for key, count in self._counts.items():
            if key[:n] == what and len(key) > n:
                found[key[n]] += count
        return dict(sorted(found.items()))

    def summary(self) -> dict[str, object]:
        """The same numbers, for .meta.json."""
        return {
            "pairs": self._counts["pairs",],
            "ties": self._counts["ties",],
            "ratings": {
                aspect: {
                    "histogram": {str(k): self._counts["rating", aspect, k] for k in _WHOLE},
                    "not_applicable": self._counts["not_applicable", aspect],
                    "unreadable": self._of("unreadable", aspect),
                    "mean": self._mean(aspect),
                    "agreement": self._agreement(aspect),
                }
                for aspect in self._aspects()
            },
            "mean_rating_by_place": [*self._by_place().values()],
            "self_agreement": self._of("twice"),
            "models": {name: self._of("model", name) for name in self._of("model")},
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: a histogram of the ratings, an aspect a row."""
        rows = []
        for aspect in self._aspects():
            numbers = [self._counts["rating", aspect, k] for k in _WHOLE]
            unreadable = sum(self._of("unreadable", aspect).values())
            numbers += [self._counts["not_applicable", aspect], unreadable]
            shares = [self._mean(aspect), self._agreement(aspect)]
            rows.append([aspect, *map(str, numbers), *map(as_text, shares)])
        return ["ratings", *map(str, _WHOLE), "N/A", "unreadable", "mean", "agrees"], rows

    def lines(self) -> list[str]:
        """What the table's last column means, then a line each: places, self-agreement, models, ties."""
        lines = [
            "agrees: pairs of texts that the aspect orders as the mean of the other aspects does, "
            "of those that neither rates alike"
        ]
        unreadable = sum((Counter(self._of("unreadable", a)) for a in self._aspects()), Counter())
        if unreadable:
            shown = ", ".join(f"{n} {reason}" for reason, n in by_number(unreadable).items())
            lines.append(f"unreadable annotations: {shown}")
        places = ", ".join(f"{place}: {mean:.2f}" for place, mean in self._by_place().items())
        lines.append(f"mean rating by place of the text: {places or 'none'}")
        twice = Counter(self._of("twice"))
        if twice["pairs"]:
            equal = share(twice["equal"], twice["ratings"])
            same = share(twice["same_order"], twice["pairs"])
            against = share(twice["reversed"], twice["pairs"])
            lines.append(
                f"asked again in swapped order: the same rating for {as_text(equal)} of "
                f"{twice['ratings']} texts; of {twice['pairs']} pairs of texts the same "
                f"order for {as_text(same)}, the opposite for {as_text(against)}"
            )
        for name in self._of("model"):
            chosen, rejected = (
                self._counts["model", name, side] for side in ("chosen", "rejected")
            )
            lines.append(f"{name}: chosen {chosen}, rejected {rejected} times")
        lines.append(f"{self._counts['pairs',]} pairs, {self._counts['ties',]} of them ties")
        return lines

    def _aspects(self) -> list[str]:
        found = (self._of(what) for what in ("rating", "unreadable", "not_applicable"))
        return sorted({aspect for aspects in found for aspect in aspects})

    def _by_place(self) -> dict[int, float]:
        """Mean rating by the number of the text as shown."""
        sums = self._of("place_sum")
        return {place: sums[place] / _MILLION / n for place, n in self._of("place").items()}

    def _mean(self, aspect: str) -> float | None:
        rated = sum(self._of("rating", aspect).values())
        return share(self._counts["sum", aspect] / _MILLION, rated)

    def _agreement(self, aspect: str) -> float | None:
        return share(self._counts["agrees", aspect], self._counts["compared", aspect])


def rated_by_both(one: Ratings, two: Ratings) -> list[tuple[float, float]]:
    """The two ratings of each text that has both."""
    return [(a, b) for a, b in zip(one, two, strict=False) if a is not None and b is not None]


def orders(one: Ratings, two: Ratings) -> Iterator[tuple[int, int]]:
    """Which of any two texts is the higher one, by the first ratings and by the second."""
    for (a, also_a), (b, also_b) in combinations(rated_by_both(one, two), 2):
        yield higher_rated(a, b), higher_rated(also_a, also_b)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def as_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
