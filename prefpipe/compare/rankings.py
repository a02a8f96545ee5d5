"""What came of a contest, as a Ranking row; and what a person wants to know of many."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from prefpipe.compare.tournament import Standing, Tournament, competitors
from prefpipe.rows import Comparison, Ranking, Responses

By = Literal["reward", "pairwise", "judge"]


def to_ranking(row: Responses, standing: Standing, by: By, how: Tournament | None) -> Ranking:
    """how: the tournament; None: each response was scored."""
    copies = competitors(row.responses)
    order, scores = standing.order, standing.strengths
    if scores is not None:
        margins: list[float | None] = [a - b for a, b in pairwise(scores)]
    else:
        margins = [standing.lead(*neighbours) for neighbours in pairwise(order)]
    return Ranking(
        id=row.id,
        by=by,
        tournament=how,
        ranking=order,
        copies=[copies[k] for k in order],
        scores=scores,
        margins=margins,
        best=order[0],
        worst=order[-1],
        comparisons=[Comparison(first=m.first, second=m.second, p=m.p) for m in standing.played],
        cycle=standing.cycle,
        best_is_right=None if row.right is None else row.right[order[0]],
        right_share=None if row.right is None else sum(row.right) / len(row.right),
        outside=standing.outside,
    )


@dataclass
class Totals:
    """Counts over the rankings of a run."""

    prompts: int = 0
    comparisons: int = 0
    undecided: int = 0
    cycles: int = 0
    known: int = 0
    """Prompts of which it is known which responses are right."""
    best_is_right: int = 0
    right_shares: float = 0.0
    """Their sum: what a random pick would score."""
    outside: float = 0.0
    """Sum over the prompts of a pairwise model's probability on neither A nor B."""

    def add(self, ranking: Ranking) -> None:
        self.prompts += 1
        self.comparisons += len(ranking.comparisons)
        self.undecided += sum(match["p"] in (None, 0.5) for match in ranking.comparisons)
        self.cycles += ranking.cycle is not None
        self.outside += ranking.outside or 0.0
        if ranking.best_is_right is not None and ranking.right_share is not None:
            self.known += 1
            self.best_is_right += ranking.best_is_right
            self.right_shares += ranking.right_share

    def summary(self) -> dict[str, float | int]:
        counts: dict[str, float | int] = {
            "comparisons": self.comparisons,
            "undecided_comparisons": self.undecided,
            "prompts_with_a_circle": self.cycles,
        }
        if self.outside:
            counts["outside_mean"] = self.outside / self.prompts
        if self.known:
            counts["best_is_right"] = self.best_is_right / self.known
            counts["random_is_right"] = self.right_shares / self.known
        return counts

    def lines(self, by: By) -> list[str]:
        lines = []
        if self.comparisons:
            lines.append(
                f"{self.comparisons} comparisons, {self.undecided} undecided; responses that beat "
                f"each other in a circle: {self.cycles} of {self.prompts} prompts"
            )
        if self.outside:
            share = self.outside / self.prompts
            lines.append(f"probability on neither A nor B: {share:.2%} on average")
        if self.known:
            best, random = self.best_is_right / self.known, self.right_shares / self.known
            lines.append(
                f"the best response by {by} is right: {best:.3f}; a random one: {random:.3f} "
                f"(n = {self.known})"
            )
        return lines
