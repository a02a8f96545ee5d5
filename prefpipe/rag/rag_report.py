"""What the RAG stages say at their end: what the store holds; whether scores separate chosen from rejected."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from prefpipe.evaluation import metrics
from prefpipe.rag.embedding import Embedder
from prefpipe.rag.index import IndexFacts
from prefpipe.rag.pairs import ScoredQuery
from prefpipe.rows import RagPair, Reject


@dataclass
class RagReport:
    pairs: int = 0
    contexts_cut: int = 0
    contexts_in_windows: int = 0
    """Longer than the embedding model reads."""
    grounding: dict[str, list[float]] = field(
        default_factory=lambda: {"chosen": [], "rejected": [], "random_document": []}
    )
    """Of the pairs' texts that are no abstentions: these have no grounding of their own."""
    abstentions: Counter[str] = field(default_factory=Counter)
    judged: list[metrics.BothOrders] = field(default_factory=list)
    """Every two candidates of a query; better: by the heuristic."""

    def add(self, scored: ScoredQuery | Reject, pair: RagPair | Reject) -> None:
        """What became of a query."""
        if isinstance(scored, Reject):
            return
        self.contexts_cut += scored.query.retrieved.is_cut
        self.contexts_in_windows += scored.windows > 1
        self.judged += judged_pairs(scored)
        if isinstance(pair, Reject):
            return
        self.pairs += 1
        for side, own in (("chosen", pair.chosen_parts), ("rejected", pair.rejected_parts)):
            self.abstentions[side] += own["is_abstention"]
            if not own["is_abstention"]:
                self.grounding[side].append(own["grounding"])
        if scored.random_cosine is not None:
            self.grounding["random_document"].append(max(scored.random_cosine, 0.0))

    def summary(self) -> dict[str, Any]:
        """What .meta.json has of it."""
        means = {
            name: round(sum(values) / len(values), 4) if values else None
            for name, values in self.grounding.items()
        }
        abstentions, cut = dict(self.abstentions), self.contexts_cut
        summary = {"mean_grounding": means, "abstentions": abstentions, "contexts_cut": cut}
        summary["contexts_in_windows"] = self.contexts_in_windows
        if self.judged:
            summary["judge_against_heuristic"] = metrics.judge_report(self.judged)
        return summary

    def __str__(self) -> str:
        facts = self.summary()
        means = ", ".join(
            f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'}"
            for name, value in facts["mean_grounding"].items()
        )
        lines = [f"mean grounding, {self.pairs} pairs: {means}"]
        if total := self.abstentions.total():
            lines.append(
                f"{total} abstentions are in no mean: {self.abstentions['chosen']} chosen, "
                f"{self.abstentions['rejected']} rejected"
            )
        if self.contexts_cut:
            lines.append(f"{self.contexts_cut} contexts were cut at --max-context-characters")
        if self.contexts_in_windows:
            lines.append(
                f"{self.contexts_in_windows} contexts are longer than the embedding model reads: "
                "compared window by window"
            )
        if judge := facts.get("judge_against_heuristic"):
            lines.append(
                f"judge: agrees with the heuristic in {_percent(judge['accuracy'])} of both orders of "
                f"{judge['n'] - judge['ties']} pairs of answers, with itself in "
                f"{_percent(judge['agreement'])}; readable {_percent(judge['readable'])}, for the "
                f"first {_percent(judge['first_position'])}"
            )
        return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def judged_pairs(scored: ScoredQuery) -> list[metrics.BothOrders]:
    """A judge's verdicts on every two candidates, beside what their scores say; without one, none."""
    rows = []
    twos = combinations(zip(scored.query.candidates, scored.parts, strict=True), 2)
    for two, verdicts in zip(twos, scored.query.verdicts or (), strict=False):
        (a, a_parts), (b, b_parts) = two
        ahead = a_parts["score"] - b_parts["score"]
        better = None if ahead == 0 else 1 if ahead > 0 else 2
        name = f"{scored.query.entry.id}\t{a.sample}\t{b.sample}"
        rows.append(metrics.BothOrders(name, better, *verdicts, (len(a.text), len(b.text))))
    return rows


def store_lines(summary: dict[str, Any], known: int, embedder: Embedder) -> Iterator[str]:
    """What a user should know of the store; known: vectors that were there before."""
    yield f"embedded {summary['embedded']} documents; {known} were known before"
    if chunks := summary["duplicate_chunks"]:
        yield f"{chunks} chunks are like others and were left out of their rows"
    if cut := summary["cut_by_the_model"]:
        yield (
            f"{embedder.name} reads the first {embedder.max_tokens} tokens: {cut} documents are "
            "longer (--chunk-characters cuts them into several)"
        )
    if (facts := IndexFacts(**summary["index"])).kind == "ivf":
        yield (
            f"approximate index: {facts.lists} lists, {facts.probed_lists} probed; recall@1 against "
            f"exact search {facts.recall_at_1} on {facts.recall_queries} queries"
        )
