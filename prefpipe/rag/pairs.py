"""Several answers to a query to a pair: compared, scored, and the best put against the worst."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, Self

import numpy as np

from prefpipe import draws
from prefpipe.files import NOT_ASKED, DataError
from prefpipe.judge import Showing, both_orders, verdict
from prefpipe.languages import detect_language
from prefpipe.llm.replies import Replies
from prefpipe.rag import score
from prefpipe.rag.embedding import Embedder
from prefpipe.rag.planned_embedder import is_planned
from prefpipe.rag.store import VectorStore
from prefpipe.rows import (
    Completion,
    Entry,
    Message,
    RagPair,
    Reject,
    Retrieved,
    ScoredCandidate,
    ScoreParts,
)

Verdicts = list[tuple[int | None, int | None]]
"""For every two candidates (itertools.combinations): in this order, and in the other one. 1: the
first of the two is better; 2: the second; None: unreadable."""


@dataclass(frozen=True)
class AnsweredQuery:
    entry: Entry
    retrieved: Retrieved
    prompt: str
    """The user turn that was answered."""
    candidates: list[Completion]
    """By sample; no two are equal."""
    verdicts: Verdicts | None = None
    """None: no judge was asked."""

    def showings(self) -> Iterator[Showing]:
        """Every two candidates as a judge sees them, in both orders, one behind the other."""
        id, language = self.entry.id, detect_language(self.entry.query)
        for a, b in combinations(self.candidates, 2):
            ids = (f"{id}\t{a.sample}\t{b.sample}", f"{id}\t{b.sample}\t{a.sample}")
            yield from both_orders(ids, self.prompt, a.text, b.text, language=language)

    def judged(self, comparisons: Replies) -> Self | Reject:
        """The same with the judge's verdicts, or why there are none."""
        verdicts: list[int | None] = []
        for showing in self.showings():
            better = verdict(comparisons.of(showing.id, row=self.entry.id), showing)
            if isinstance(better, Reject):
                return better
            verdicts.append(better if isinstance(better, int) else None)
        return replace(self, verdicts=list(zip(verdicts[::2], verdicts[1::2], strict=True)))

    def judge_scores(self) -> list[float] | list[None]:
        """(won - lost) / comparisons of each candidate; an unreadable one is neither. None: no judge."""
        if self.verdicts is None:
            return [None] * len(self.candidates)
        points = [0] * len(self.candidates)
        for (a, b), verdicts in zip(
            combinations(range(len(points)), 2), self.verdicts, strict=True
        ):
            points[a] += (ahead := verdicts.count(1) - verdicts.count(2))
            points[b] -= ahead
        most = max(1, 2 * (len(points) - 1))
        return [round(won / most, 6) for won in points]


def distinct(answers: Sequence[Completion]) -> list[Completion]:
    """The answers that have a text, of equal texts the first; white space does not matter."""
    stripped = [c.model_copy(update={"text": c.text.strip()}) for c in answers]
    first = {" ".join(c.text.split()): c for c in reversed(stripped) if c.text}
    return sorted(first.values(), key=lambda c: c.sample)


@dataclass(frozen=True)
class PairRules(score.ScoreRules):
    """What a pair depends on besides the answers: the stage's settings, which say what each is."""

    answer_threshold: float
    sure_threshold: float
    keywords: Sequence[str]
    max_keywords: int
    min_margin: float
    scorer: Literal["heuristic", "judge", "both"]
    seed: int
    num_candidates: int
    write_candidates: bool

    def __post_init__(self) -> None:
        if self.free_characters >= self.full_characters:
            raise DataError("full_characters must be more than free_characters")
        if self.answer_threshold >= self.sure_threshold:
            raise DataError("sure_threshold must be more than answer_threshold")


def keywords_of(query: AnsweredQuery, rules: PairRules) -> list[str]:
    """The row's own keywords, else those of the settings, else words of query and context."""
    if given := query.entry.keywords or rules.keywords:
        return list(given)
    return score.extract_keywords(query.entry.query, query.retrieved.context, rules.max_keywords)


def abstention_worth(score: float, typical: float, rules: PairRules) -> float:
    """How likely it is that a context does not answer, 0 to 1. score: its best document's cosine with
    the query; typical: of two documents of the store. Embedding models have scales of their own, so
    what counts is how far of the way from typical to 1 the score is: up to answer_threshold the
    worth is 1, from sure_threshold on 0, between a straight line.

    On 604 queries of CoSQA (MiniLM; benchmarks/retrieval.py) people held the document to answer in
    0.23 of those at up to 0.4 of the way, 0.35 up to 0.5, 0.48 and 0.59 up to 0.63, 0.74 up to 0.69,
    0.83 and 0.94 beyond."""
    way = (score - typical) / (1 - typical) if typical < 1 else 0.0
    over = (way - rules.answer_threshold) / (rules.sure_threshold - rules.answer_threshold)
    return round(1 - min(max(over, 0.0), 1.0), 4)


@dataclass(frozen=True)
class ScoredQuery:
    query: AnsweredQuery
    parts: list[ScoreParts]
    """The score of each candidate, and what it is made of."""
    worth: float
    """Of an abstention."""
    random_cosine: float | None
    """Of the context and a document that was not retrieved; None: there is none."""
    windows: int
    """In which the context was embedded; 1: the embedding model reads it whole."""


def score_block(
    block: Sequence[AnsweredQuery | Reject],
    store: VectorStore,
    embedder: Embedder,
    rules: PairRules,
) -> Iterator[ScoredQuery | Reject]:
    """The queries with their candidates' scores; a Reject as it is."""
    if is_planned(embedder):  # nothing can be said of an answer that is there, either
        no_score = (
            b if isinstance(b, Reject) else Reject(id=b.entry.id, reason=NOT_ASKED) for b in block
        )
        yield from no_score
        return
    answered = [query for query in block if isinstance(query, AnsweredQuery)]
    cosines = iter(measure_cosines(answered, store, embedder, seed=rules.seed))
    for query in block:
        if isinstance(query, AnsweredQuery):
            own, other, windows = next(cosines)
            worth = abstention_worth(query.retrieved.scores[0], store.typical_cosine, rules)
            parts = score_candidates(query, own, rules, worth)
            yield ScoredQuery(query, parts, worth, other, windows)
        else:
            yield query


def measure_cosines(
    queries: Sequence[AnsweredQuery], store: VectorStore, embedder: Embedder, *, seed: int
) -> list[tuple[list[float], float | None, int]]:
    """Cosines of each query's context with its candidates, and with a document that it did not get,
    drawn from the seed (None: there is none); the context's windows. All texts are embedded in one call; what is longer than
    the embedder reads is so in windows, and each of an answer's counts with the nearest of the
    context's: an answer may be about the last of several documents."""
    retrieved = [query.retrieved for query in queries]
    texts = [row.context for row in retrieved]
    texts += [candidate.text for query in queries for candidate in query.candidates]
    windows = dict(zip(texts, embedder.windows(texts), strict=True))
    # 1) a context that is one whole document has its vector in the store; all else is embedded
    whole = {
        r.context: r.store_rows[0]
        for r in retrieved
        if len(r.store_rows) == len(windows[r.context]) == 1 and not r.is_cut
    }
    vectors = dict(zip(whole, store.vectors([*whole.values()]), strict=True)) if whole else {}
    parts = dict.fromkeys(part for of_text in windows.values() for part in of_text)
    if new := [part for part in parts if part not in vectors]:
        vectors |= dict(zip(new, embedder.embed(new, "document"), strict=True))
    # 2) beside it, a document that the query did not get
    others = [draw_other(len(store), row.store_rows, draws.rng(seed, row.id)) for row in retrieved]
    drawn = [other for other in others if other is not None]
    vector_of = dict(zip(drawn, store.vectors(drawn), strict=True)) if drawn else {}
    # 3) vectors have length 1, so that their inner product is the cosine
    cosines = []
    for query, other in zip(queries, others, strict=True):
        context = np.stack([vectors[part] for part in windows[query.retrieved.context]])
        own = [
            float(np.mean([(context @ vectors[part]).max() for part in windows[candidate.text]]))
            for candidate in query.candidates
        ]
        random_cosine = None if other is None else float((context @ vector_of[other]).max())
        cosines.append((own, random_cosine, len(context)))
    return cosines


def draw_other(count: int, retrieved: Sequence[int], rng: random.Random) -> int | None:
    """A row of the store's count that was not retrieved; None where all were."""
    if len(retrieved) >= count:
        return None
    # the k-th of the others: each retrieved row up to it moves it one further
    row = rng.randrange(count - len(retrieved))
    for taken in sorted(retrieved):
        row += taken <= row
    return row


def score_candidates(
    query: AnsweredQuery, cosines: Sequence[float], rules: PairRules, worth: float
) -> list[ScoreParts]:
    """The score of each candidate; cosines: of each with the context; worth: of an abstention."""
    keywords = keywords_of(query, rules)
    rows = zip(query.candidates, cosines, query.judge_scores(), strict=True)
    return [
        score.score_answer(c.text, cosine, keywords, rules, worth=worth, judge_score=own)
        for c, cosine, own in rows
    ]


_SURELY_ANSWERS = 0.25
"""Worth of an abstention up to which it may be rejected: about three of four such contexts answer."""


def sides(scored: ScoredQuery, rules: PairRules) -> tuple[list[bool], list[bool]]:
    """Which candidates may be chosen, and which rejected. An abstention may be chosen only where the
    context rather does not answer (worth of 0.5 or more), and rejected only where it most likely does
    (0.25 or less); between them nobody knows.
    An answer may be chosen that came to its end, is nearer to the context than a document that was
    not retrieved, is scored higher than an abstention, and says more than the question does."""
    query = scored.query
    answerable, nothing = scored.worth < 0.5, max(scored.random_cosine or 0.0, 0.0)
    abstaining = score.score_abstention(rules, scored.worth)
    may_win = [
        candidate.finish_reason == "stop"
        and (
            not answerable
            if part["is_abstention"]
            else part["grounding"] > nothing
            and part["score"] > abstaining
            and score.says_more(candidate.text, query.entry.query, query.retrieved.context)
        )
        for candidate, part in zip(query.candidates, scored.parts, strict=True)
    ]
    surely = scored.worth <= _SURELY_ANSWERS
    may_lose = [surely or not part["is_abstention"] for part in scored.parts]
    return may_win, may_lose


def build_pair(scored: ScoredQuery, rules: PairRules) -> RagPair | Reject:
    """The best and the worst of a query's candidates, or the reason why there is no pair."""
    query, parts = scored.query, scored.parts
    id, candidates = query.entry.id, query.candidates
    if len(candidates) < 2:
        return Reject(id=id, reason="equal_answers", detail="no two answers differ")
    judge_scores = [part["judge_score"] or 0.0 for part in parts]
    scores = judge_scores if rules.scorer == "judge" else [part["score"] for part in parts]
    extremes = score.pick_extremes(scores, [c.text for c in candidates], *sides(scored, rules))
    if extremes is None:
        detail = "none may be chosen, or none of the others rejected"
        return Reject(id=id, reason="no_winner", detail=detail)
    best, worst = extremes
    margin = round(scores[best] - scores[worst], 6)
    if margin < rules.min_margin:
        detail = f"{margin}, wanted {rules.min_margin} or more"
        return Reject(id=id, reason="small_margin", detail=detail)
    if rules.scorer == "both" and judge_scores[best] <= judge_scores[worst]:
        return Reject(id=id, reason="judge_disagrees")
    everything = [
        ScoredCandidate(sample=c.sample, text=c.text, finish_reason=c.finish_reason, parts=part)
        for c, part in zip(candidates, parts, strict=True)
    ]
    return RagPair(
        id=id,
        prompt=[Message(role="user", content=query.prompt)],
        chosen=[Message(role="assistant", content=candidates[best].text)],
        rejected=[Message(role="assistant", content=candidates[worst].text)],
        margin=margin,
        source="rag",
        question=query.entry.query,
        document_ids=query.retrieved.document_ids,
        retrieval_scores=query.retrieved.scores,
        abstention_worth=scored.worth,
        is_answerable=scored.worth < 0.5,
        keywords=keywords_of(query, rules),
        scorer=rules.scorer,
        chosen_parts=parts[best],
        rejected_parts=parts[worst],
        chosen_sample=candidates[best].sample,
        rejected_sample=candidates[worst].sample,
        candidate_seeds=[f"{rules.seed}:{id}:{k}" for k in range(rules.num_candidates)],
        candidates=everything if rules.write_candidates else None,
    )
