"""What the ratings look like: histograms, how far aspects agree, places, models, ties."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from prefpipe.rated_pairs import higher_rated
from prefpipe.rating_prompts import SCALE
from prefpipe.ratings import Annotation, Ratings, mean_rating, ratings_by_aspect
from prefpipe.rows import AnnotationMix, SyntheticPair
from prefpipe.verdicts import Unreadable

_WHOLE = range(SCALE[0], SCALE[1] + 1)


class Report:
    """Counts only: memory does not grow with the rows."""

    def __init__(self) -> None:
        self.ratings: dict[str, Counter[int]] = defaultdict(Counter)
        """Aspect -> ratings from k to under k + 1 -> how many."""
        self.sums: dict[str, float] = defaultdict(float)
        """Aspect -> sum of its ratings."""
        self.not_applicable = Counter[str]()
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
        self, mix: AnnotationMix, annotations: Sequence[Annotation], pairs: Sequence[SyntheticPair]
    ) -> None:
        """One prompt's annotations, and the pairs that were made of them."""
        for a in annotations:
            if isinstance(a.ratings, Unreadable):
                self.unreadable[a.aspect][a.ratings.reason] += 1
                continue
            for place, index in enumerate(a.order, start=1):
                if (rating := a.ratings[index]) is None:
                    self.not_applicable[a.aspect] += 1
                    continue
                self.ratings[a.aspect][int(rating)] += 1
                self.sums[a.aspect] += rating
                self.by_place[place][0] += 1
                self.by_place[place][1] += rating
        self._add_agreement(ratings_by_aspect(annotations, len(mix.responses)))
        self._add_self_agreement(annotations)
        self.pairs += len(pairs)
        for pair in pairs:
            self.ties += pair.tie
            if not pair.tie:
                self.models[pair.chosen_model]["chosen"] += 1
                self.models[pair.rejected_model]["rejected"] += 1

    def _add_agreement(self, by_aspect: dict[str, Ratings]) -> None:
        # An aspect against the mean of the others, not of all: it would agree with itself.
        for aspect, ratings in by_aspect.items():
            rest = [other for name, other in by_aspect.items() if name != aspect]
            means = [mean_rating(column, 1) for column in zip(*rest, strict=True)]
            for here, there in orders(ratings, means):
                if here and there:
                    self.agreement[aspect][0] += here == there
                    self.agreement[aspect][1] += 1

    def _add_self_agreement(self, annotations: Sequence[Annotation]) -> None:
        first = {a.aspect: a.ratings for a in annotations if not a.swapped}
        for second in annotations:
            one, two = first.get(second.aspect), second.ratings
            if not second.swapped or not isinstance(one, list) or not isinstance(two, list):
                continue
            for a, b in rated_by_both(one, two):
                self.twice["ratings"] += 1
                self.twice["equal"] += a == b
            for before, after in orders(one, two):
                self.twice["pairs"] += 1
                self.twice["same_order"] += before == after
                self.twice["reversed"] += before * after < 0

    def summary(self) -> dict[str, object]:
        """The same numbers, for .meta.json."""
        return {
            "pairs": self.pairs,
            "ties": self.ties,
            "ratings": {
                aspect: {
                    "histogram": {str(k): counts[k] for k in _WHOLE},
                    "not_applicable": self.not_applicable[aspect],
                    "unreadable": dict(self.unreadable[aspect]),
                    "mean": self._mean(aspect),
                    "agreement": share(*self.agreement[aspect]),
                }
                for aspect, counts in self._by_aspect()
            },
            "mean_rating_by_place": [
                n and total / n for _, (n, total) in sorted(self.by_place.items())
            ],
            "self_agreement": dict(self.twice),
            "models": {name: dict(counts) for name, counts in sorted(self.models.items())},
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: a histogram of the ratings, an aspect a row."""
        rows = []
        for aspect, counts in self._by_aspect():
            numbers = [counts[k] for k in _WHOLE]
            numbers += [self.not_applicable[aspect], sum(self.unreadable[aspect].values())]
            shares = [self._mean(aspect), share(*self.agreement[aspect])]
            rows.append([aspect, *map(str, numbers), *map(as_text, shares)])
        return ["ratings", *map(str, _WHOLE), "N/A", "unreadable", "mean", "agrees"], rows

    def lines(self) -> list[str]:
        """What the table's last column means, then a line each: places, self-agreement, models, ties."""
        lines = [
            "agrees: pairs of texts that the aspect orders as the mean of the other aspects does, "
            "of those that neither rates alike"
        ]
        if reasons := sum(self.unreadable.values(), Counter()):
            shown = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
            lines.append(f"unreadable annotations: {shown}")
        places = ", ".join(
            f"{place}: {total / n:.2f}" for place, (n, total) in sorted(self.by_place.items())
        )
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

    def _mean(self, aspect: str) -> float | None:
        return share(self.sums[aspect], sum(self.ratings[aspect].values()))


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
