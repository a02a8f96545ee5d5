"""Sample several answers to each query from its retrieved context; the best and the worst are a pair.

Reads   data/rag/stdlib.csv              Entry rows: their id and query
        data/rag/store/                  the vector store that build_vector_store.py made
Writes  data/rag/pairwise_prefs.jsonl    RagPair rows, in the order of the table; they are
                                         preferences: preprocess_dataset.py and TRL take them
        data/rag/pairwise_prefs.rejects.jsonl   Reject rows
        data/rag/.pairwise_prefs.*.partial.jsonl   Retrieved, Candidate and CandidateComparison rows:
                                         what is done so far; a stopped run goes on

    {"id": "d7", "query": "add two numbers", "code": "", "description": "", "keywords": []}
 -> {"id": "d7", "prompt": [{"role": "user", "content": "[Context]..."}], "chosen": [{"role": "assistant", "content": "Call add(a, b)."}], "rejected": [{"role": "assistant", "content": "I don't know."}], "margin": 0.73, "tie": false, "source": "rag", "question": "add two numbers", "document_ids": ["d7"], "retrieval_scores": [0.62], "is_answerable": true, "keywords": ["add"], "scorer": "heuristic", "chosen_parts": {"score": 0.68, "grounding": 0.54, "keyword_coverage": 1.0, "length_penalty": 0.0, "is_abstention": false, "judge_score": null}, "rejected_parts": {"score": -0.05, "grounding": 0.0, "keyword_coverage": 0.0, "length_penalty": 1.0, "is_abstention": true, "judge_score": null}, "chosen_sample": 2, "rejected_sample": 0, "candidate_seeds": ["2021:d7:0", "2021:d7:1", "2021:d7:2", "2021:d7:3"], "candidates": null}

score = weight_grounding * grounding + weight_keywords * keyword_coverage
        - weight_length * length_penalty

An abstention ("I don't know") may win only where the context does not answer, that is where the
best document's score is under answer_threshold; prefpipe/rag/score.py has the rules. An answer that
was cut at max_new_tokens may be rejected, but never chosen.

    uv run build_pairwise_prefs.py --num-candidates 8 --scorer both
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, islice, permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

import config
from prefpipe import files, judge, languages, llm, templates, verdicts
from prefpipe.evaluation import metrics
from prefpipe.files import DataError
from prefpipe.rag import retrieval, score
from prefpipe.ranges import Positive, TopP
from prefpipe.rows import (
    Candidate,
    CandidateComparison,
    Entry,
    Message,
    RagPair,
    Reject,
    Retrieved,
    ScoredCandidate,
    ScoreParts,
)
from prefpipe.settings import ModelStage, local_folders

T = TypeVar("T")
Weight = Annotated[float, Field(ge=0)]
BLOCK = 128
"""Queries that are embedded and searched, or scored, at once."""


class Settings(ModelStage, env_prefix="PAIRWISE_PREFS_"):
    input: Path = config.RAG_TABLE
    """A CSV, Parquet or JSONL file with the queries."""
    store: Path = config.VECTOR_STORE
    """Folder of the vector store."""
    output: Path = config.PAIRWISE_PREFS
    """A JSONL file."""
    id_column: str | None = None
    """None: `id` where the table has it, else ids are made of the rows' content."""
    query_column: str = "query"
    keywords_column: str | None = None
    """Column of each query's keywords, behind commas or semicolons; None: there is none."""
    embedding_model: str = config.EMBEDDING_MODEL
    """The model that the store was built with."""
    documents_per_query: Positive = 1
    """Documents in a context; one is enough where each stands for itself."""
    max_context_characters: Positive = 6000
    """A longer context is cut at white space; the pair's document_ids still name all documents."""
    template: str = "rag.en"
    """The prompt: a name in prefpipe/templates, or a Jinja file that uses context and question."""
    num_candidates: Annotated[int, Field(ge=2)] = 4
    """Answers sampled for each query, each from a seed of its own."""
    temperature: float = 0.7
    top_p: TopP = 0.9
    """The likeliest tokens that have this share of the probability; 1: all."""
    top_k: int = 0
    """0: all tokens."""
    keywords: list[str] = []
    """Keywords of every query whose row brings none; empty: taken from query and context."""
    max_keywords: Positive = 8
    """Most keywords that are taken from query and context."""
    weight_grounding: Weight = 0.7
    """W_GROUND: of the cosine of answer and context."""
    weight_keywords: Weight = 0.3
    """W_KEYWD: of the share of keywords in the answer."""
    weight_length: Weight = 0.05
    """W_LEN: of the length penalty."""
    free_characters: Positive = 600
    """The length penalty is 0 for answers up to here ..."""
    full_characters: Positive = 1800
    """... and rises evenly to 1 here."""
    answer_threshold: float = 0.35
    """A context whose best document scores less is held not to answer: abstaining is right there."""
    abstentions: list[str] = list(score.ABSTENTIONS)
    """How an answer begins that is an abstention."""
    min_margin: Weight = 0.05
    """A pair is left out where chosen and rejected differ by less."""
    scorer: Literal["heuristic", "judge", "both"] = "heuristic"
    """judge: best and worst by comparing all pairs of answers; both: by the heuristic, where the
    judge, too, has chosen before rejected."""
    judge_model: str | None = None
    """The judge; None: the model that answers."""
    write_candidates: bool = False
    """Write all answers of a query, with their scores, beside its pair."""


def build_prompt(context: str, question: str, template: str) -> str:
    """The user turn: context, question, instruction, each behind its tag."""
    values = {
        "context": templates.escape_markers(context),
        "question": templates.escape_markers(question),
    }
    return templates.load_template(template, frozenset(values)).render(**values)


def build_context(texts: Sequence[str], most: int) -> tuple[str, bool]:
    """The documents with a blank line between them, and whether they had to be cut."""
    context = "\n\n".join(texts)
    if len(context) <= most:
        return context, False
    last_space = max(context.rfind(" ", 0, most + 1), context.rfind("\n", 0, most + 1))
    return context[: last_space if last_space > 0 else most].rstrip(), True


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that have a text, of equal texts the first; white space does not matter."""
    first = {" ".join(c.text.split()): c for c in reversed(candidates) if c.text.strip()}
    return sorted(first.values(), key=lambda c: c.sample)


def score_candidates(
    entry: Entry,
    found: Retrieved,
    candidates: Sequence[Candidate],
    cosines: Sequence[float],
    s: Settings,
) -> list[score.Score]:
    """The heuristic score of each candidate; cosines: of each candidate and the context."""
    keywords = keywords_of(entry, found.context, s)
    rules = score.Rules(
        s.weight_grounding,
        s.weight_keywords,
        s.weight_length,
        s.free_characters,
        s.full_characters,
    )
    return [
        score.score_answer(
            candidate.text,
            cosine,
            keywords,
            rules,
            is_answerable=context_answers(found, s),
            abstentions=s.abstentions,
        )
        for candidate, cosine in zip(candidates, cosines, strict=True)
    ]


def context_answers(found: Retrieved, s: Settings) -> bool:
    """Whether the context is held to answer the query."""
    return found.scores[0] >= s.answer_threshold


def keywords_of(entry: Entry, context: str, s: Settings) -> list[str]:
    """The row's own keywords, else those of the settings, else words of query and context."""
    given = entry.keywords or s.keywords
    return given or score.extract_keywords(entry.query, context, s.max_keywords)


def build_pair(
    entry: Entry,
    found: Retrieved,
    candidates: Sequence[Candidate],
    scored: Sequence[score.Score],
    judge_scores: Sequence[float] | None,
    s: Settings,
) -> RagPair | Reject:
    """The best and the worst of a query's distinct candidates, or the reason why there is no pair.

    scored, judge_scores: of each candidate; the judge's are -1 to 1.
    """
    if len(candidates) < 2:
        return Reject(id=entry.id, reason="equal_texts", detail="no two answers differ")
    is_answerable = context_answers(found, s)
    values = [score.score for score in scored]
    if s.scorer == "judge" and judge_scores is not None:
        values = list(judge_scores)
    may_win = [
        candidate.finish_reason == "stop" and not (is_answerable and score.is_abstention)
        for candidate, score in zip(candidates, scored, strict=True)
    ]
    extremes = score.pick_extremes(values, [c.text for c in candidates], may_win)
    if extremes is None:
        return Reject(id=entry.id, reason="no_winner", detail="all abstain or are cut")
    best, worst = extremes
    margin = round(values[best] - values[worst], 6)
    if margin < s.min_margin:
        return Reject(
            id=entry.id, reason="small_margin", detail=f"{margin}, wanted {s.min_margin} or more"
        )
    if s.scorer == "both" and judge_scores and judge_scores[best] <= judge_scores[worst]:
        return Reject(id=entry.id, reason="judge_disagrees")
    parts = [
        ScoreParts(**asdict(score), judge_score=judge_scores[place] if judge_scores else None)
        for place, score in enumerate(scored)
    ]
    everything = [
        ScoredCandidate(sample=c.sample, text=c.text, finish_reason=c.finish_reason, parts=part)
        for c, part in zip(candidates, parts, strict=True)
    ]
    prompt = build_prompt(found.context, entry.query, s.template)
    return RagPair(
        id=entry.id,
        prompt=[Message(role="user", content=prompt)],
        chosen=[Message(role="assistant", content=candidates[best].text)],
        rejected=[Message(role="assistant", content=candidates[worst].text)],
        margin=margin,
        source="rag",
        question=entry.query,
        document_ids=found.document_ids,
        retrieval_scores=found.scores,
        is_answerable=is_answerable,
        keywords=keywords_of(entry, found.context, s),
        scorer=s.scorer,
        chosen_parts=parts[best],
        rejected_parts=parts[worst],
        chosen_sample=candidates[best].sample,
        rejected_sample=candidates[worst].sample,
        candidate_seeds=[f"{s.seed}:{entry.id}:{k}" for k in range(s.num_candidates)],
        candidates=everything if s.write_candidates else None,
    )


def main(
    s: Settings, engine: llm.Engine | None = None, embedder: retrieval.Embedder | None = None
) -> None:
    if s.free_characters >= s.full_characters:
        raise SystemExit("build_pairwise_prefs: full_characters must be more than free_characters")
    templates.load_template(s.template, frozenset({"context", "question"}))
    manifest = s.store / retrieval.MANIFEST
    retrieval.read_manifest(s.store)
    template = [Path(s.template)] if Path(s.template).is_file() else []
    models = local_folders(s.model, s.judge_model or s.model)
    inputs = [s.input, manifest, *template, *models]
    with files.open_run(s, inputs=inputs, outputs={s.output: RagPair}, unit="queries") as run:
        if run.finished:
            return
        retrieved = run.open_log(Retrieved, "retrieved")
        sampled = run.open_log(Candidate, "candidates")
        embedder = embedder or retrieval.SentenceEmbedder(s.embedding_model)
        store = retrieval.Store.open(s.store, embedder)
        queries = retrieve(s, store, embedder, retrieved)
        engine = engine or s.open_engine(s.model)
        failures = llm.complete(
            engine,
            candidate_requests(s, retrieved, sampled),
            sampled,
            to_candidate,
            total=queries,
            what="queries",
        )
        judge = None
        if s.scorer != "heuristic":
            if s.judge_model not in (None, s.model):
                engine = None  # the two need not fit into memory together
                engine = s.open_engine(s.judge_model)
            log = run.open_log(CandidateComparison, "judge")
            judge = Judge(s, engine, log, retrieved, sampled)
            failures |= judge.compare(failures)
        report = Report()
        for block in _blocks(read_queries(s), BLOCK):
            usable = [
                entry for _, entry in block if isinstance(entry, Entry) and entry.id not in failures
            ]
            measured = iter(measure_block(s, usable, retrieved, sampled, store, embedder))
            for place, entry in block:
                run.read_count += 1
                if isinstance(entry, ValueError):
                    run.bad_row(place, entry)
                elif isinstance(entry, Reject):
                    run.emit(entry)
                elif failure := failures.get(entry.id):
                    run.emit(Reject(id=entry.id, reason=failure.reason, detail=failure.detail))
                else:
                    candidates, cosines, random_cosine = next(measured)
                    found = retrieved.get(entry.id)
                    scored = score_candidates(entry, found, candidates, cosines, s)
                    judge_scores = judge.scores(entry.id, candidates) if judge else None
                    pair = build_pair(entry, found, candidates, scored, judge_scores, s)
                    report.add(pair, found, random_cosine)
                    if judge:
                        report.judged += judge.judged(entry.id, candidates, scored)
                    run.emit(pair)
        run.summary |= report.summary()
    print(report)


@dataclass
class Report:
    """What is said at the end: how far grounding separates chosen from rejected."""

    pairs: int = 0
    contexts_cut: int = 0
    grounding: dict[str, float] = field(
        default_factory=lambda: {"chosen": 0.0, "rejected": 0.0, "random_document": 0.0}
    )
    """Sums over the pairs' texts that are no abstentions: these have no grounding of their own."""
    measured: Counter[str] = field(default_factory=Counter)
    """How many texts are in these sums."""
    abstentions: Counter[str] = field(default_factory=Counter)
    judged: list[metrics.BothOrders] = field(default_factory=list)
    """Every two candidates of a query; better: by the heuristic."""

    def add(self, pair: RagPair | Reject, found: Retrieved, random_cosine: float | None) -> None:
        self.contexts_cut += found.is_cut
        if isinstance(pair, Reject):
            return
        self.pairs += 1
        sides = {"chosen": pair.chosen_parts, "rejected": pair.rejected_parts}
        for side, parts in sides.items():
            self.abstentions[side] += parts["is_abstention"]
            if not parts["is_abstention"]:
                self._measure(side, parts["grounding"])
        if random_cosine is not None:
            self._measure("random_document", max(random_cosine, 0.0))

    def _measure(self, name: str, grounding: float) -> None:
        self.grounding[name] += grounding
        self.measured[name] += 1

    def summary(self) -> dict[str, Any]:
        means = {
            name: round(total / self.measured[name], 4) if self.measured[name] else None
            for name, total in self.grounding.items()
        }
        judge = (
            {"judge_against_heuristic": metrics.judge_report(self.judged)} if self.judged else {}
        )
        return {
            "mean_grounding": means,
            "abstentions": dict(self.abstentions),
            "contexts_cut": self.contexts_cut,
            **judge,
        }

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


# ---- the parts of a run ----------------------------------------------------------------------


def read_queries(s: Settings) -> Iterator[tuple[str, Entry | Reject | ValueError]]:
    """(place, query) of each row of the table; a Reject where it asks nothing."""
    columns = retrieval.Columns(query=s.query_column, keywords=s.keywords_column, id=s.id_column)
    for place, entry in retrieval.read_entries(s.input, columns, s.limit):
        if s.strict and isinstance(entry, ValueError):
            raise DataError(f"{place}: {entry}")
        if isinstance(entry, Entry) and not entry.query.strip():
            detail = f"{place}: {s.query_column}: empty or NaN"
            yield place, Reject(id=entry.id, reason="empty_query", detail=detail)
        else:
            yield place, entry


def entries_of(s: Settings) -> Iterator[Entry]:
    return (entry for _, entry in read_queries(s) if isinstance(entry, Entry))


def retrieve(
    s: Settings,
    store: retrieval.Store,
    embedder: retrieval.Embedder,
    log: files.RowLog[Retrieved],
) -> int:
    """Search the contexts that the log lacks, block by block; the number of queries."""
    count = 0
    for block in _blocks(entries_of(s), BLOCK):
        count += len(block)
        if all(entry.id in log for entry in block):
            continue
        # a block that a kill hit is embedded whole again: another batch gives other last digits
        vectors = embedder.embed([entry.query for entry in block], "query")
        scores, rows = store.search(vectors, s.documents_per_query)
        documents = store.documents(rows[rows >= 0])
        for place, entry in enumerate(block):
            if entry.id in log:
                continue
            found = [int(row) for row in rows[place] if row >= 0]
            context, is_cut = build_context(
                [documents[row].text for row in found], s.max_context_characters
            )
            log.add(
                Retrieved(
                    id=entry.id,
                    document_ids=[documents[row].id for row in found],
                    store_rows=found,
                    scores=[round(float(score), 4) for score in scores[place, : len(found)]],
                    context=context,
                    is_cut=is_cut,
                )
            )
    return count


def candidate_requests(
    s: Settings, retrieved: files.RowLog[Retrieved], sampled: files.RowLog[Candidate]
) -> Iterator[llm.Request]:
    """One request for all answers to a query that no earlier run has sampled."""
    for entry in entries_of(s):
        lacking = tuple(k for k in range(s.num_candidates) if f"{entry.id}\t{k}" not in sampled)
        if lacking:
            prompt = build_prompt(retrieved.get(entry.id).context, entry.query, s.template)
            yield llm.Request(
                id=entry.id,
                messages=(Message(role="user", content=prompt),),
                samples=lacking,
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                top_p=s.top_p,
                top_k=s.top_k,
                seed=s.seed,
            )


def to_candidate(c: llm.Completion) -> Candidate:
    return Candidate(
        id=c.id,
        sample=c.sample,
        text=c.text.strip(),
        finish_reason=c.finish_reason,
        prompt_tokens=c.prompt_tokens,
        new_tokens=c.new_tokens,
    )


def candidates_of(s: Settings, id: str, sampled: files.RowLog[Candidate]) -> list[Candidate]:
    return distinct([sampled.get(f"{id}\t{k}") for k in range(s.num_candidates)])


def measure_block(
    s: Settings,
    entries: Sequence[Entry],
    retrieved: files.RowLog[Retrieved],
    sampled: files.RowLog[Candidate],
    store: retrieval.Store,
    embedder: retrieval.Embedder,
) -> list[tuple[list[Candidate], list[float], float | None]]:
    """For each query its distinct candidates, the cosine of each with the context, and that of a
    random other document with it (None: there is none). All texts are embedded in one call; a context that is one whole
    document has its vector in the store.
    """
    if not entries:
        return []
    found = [retrieved.get(entry.id) for entry in entries]
    contexts = [row.context for row in found]
    whole = {row.context: row.store_rows[0] for row in found if is_one_document(row)}
    vectors = dict(zip(whole, store.vectors([*whole.values()]), strict=True)) if whole else {}
    candidates = [candidates_of(s, entry.id, sampled) for entry in entries]
    sampled_texts = [c.text for row in candidates for c in row]
    if texts := list(
        dict.fromkeys(text for text in [*contexts, *sampled_texts] if text not in vectors)
    ):
        vectors |= dict(zip(texts, embedder.embed(texts, "document"), strict=True))
    others = [
        draw_other(len(store), row.store_rows, random.Random(f"{s.seed}:{row.id}")) for row in found
    ]
    drawn = [other for other in others if other is not None]
    vector_of = dict(zip(drawn, store.vectors(drawn), strict=True)) if drawn else {}
    return [
        (
            row,
            [float(vectors[c.text] @ vectors[context]) for c in row],
            None if other is None else float(vector_of[other] @ vectors[context]),
        )
        for context, row, other in zip(contexts, candidates, others, strict=True)
    ]


def draw_other(count: int, retrieved: Sequence[int], rng: random.Random) -> int | None:
    """A row of the store's count that was not retrieved; None where all were."""
    if len(retrieved) >= count:
        return None
    row = rng.randrange(count - len(retrieved))
    for taken in sorted(retrieved):
        row += taken <= row
    return row


def is_one_document(found: Retrieved) -> bool:
    return len(found.store_rows) == 1 and not found.is_cut


class Judge:
    """A model that compares every two answers of a query, in both orders."""

    def __init__(
        self,
        s: Settings,
        engine: llm.Engine,
        log: files.RowLog[CandidateComparison],
        retrieved: files.RowLog[Retrieved],
        sampled: files.RowLog[Candidate],
    ) -> None:
        self._s, self._engine, self._log = s, engine, log
        self._retrieved, self._sampled = retrieved, sampled

    def compare(self, without: Iterable[str]) -> dict[str, llm.Failure]:
        """Ask for all comparisons that the log lacks; the failures by the query's id."""
        failed = llm.complete(
            self._engine,
            self._requests(set(without)),
            self._log,
            _to_comparison,
            what="comparisons",
        )
        return {id.rsplit("\t", 2)[0]: failure for id, failure in failed.items()}

    def _requests(self, without: set[str]) -> Iterator[llm.Request]:
        for entry in entries_of(self._s):
            if entry.id in without:
                continue
            question = build_prompt(
                self._retrieved.get(entry.id).context, entry.query, self._s.template
            )
            language = languages.detect_language(entry.query)
            for a, b in permutations(candidates_of(self._s, entry.id, self._sampled), 2):
                id = f"{entry.id}\t{a.sample}\t{b.sample}"
                if id not in self._log:
                    text = judge.judge_prompt(question, a.text, b.text, language=language)
                    yield llm.Request(
                        id=id,
                        messages=(Message(role="user", content=text),),
                        max_new_tokens=self._s.max_new_tokens,
                        seed=self._s.seed,
                        reply_schema=verdicts.judgment_schema(language),
                    )

    def winner(self, id: str, first: int, second: int) -> int | None:
        """The sample that the judge called better of the two, shown in this order; None: unreadable."""
        found = verdicts.parse_verdict(self._log.get(f"{id}\t{first}\t{second}").text)
        if isinstance(found, verdicts.Unreadable):
            return None
        return first if found.better == 1 else second

    def scores(self, id: str, candidates: Sequence[Candidate]) -> list[float]:
        """(won - lost) / comparisons of each candidate; an unreadable one is neither."""
        points = Counter[int]()
        for a, b in permutations([c.sample for c in candidates], 2):
            if (won := self.winner(id, a, b)) is not None:
                points[won] += 1
                points[a + b - won] -= 1
        most = max(1, 2 * (len(candidates) - 1))
        return [round(points[c.sample] / most, 6) for c in candidates]

    def judged(
        self, id: str, candidates: Sequence[Candidate], scored: Sequence[score.Score]
    ) -> list[metrics.BothOrders]:
        """Its verdicts beside the heuristic's, for each two candidates."""
        rows = []
        for (a, a_score), (b, b_score) in combinations(zip(candidates, scored, strict=True), 2):
            winners = self.winner(id, a.sample, b.sample), self.winner(id, b.sample, a.sample)
            given, swapped = (None if w is None else 1 if w == a.sample else 2 for w in winners)
            apart = a_score.score - b_score.score
            better = None if apart == 0 else 1 if apart > 0 else 2
            lengths = len(a.text), len(b.text)
            name = f"{id}\t{a.sample}\t{b.sample}"
            rows.append(metrics.BothOrders(name, better, given, swapped, lengths))
        return rows


def _to_comparison(c: llm.Completion) -> CandidateComparison:
    id, first, second = c.id.rsplit("\t", 2)
    return CandidateComparison(id=id, first=int(first), second=int(second), text=c.text)


def _blocks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(rows)
    while block := list(islice(iterator, size)):
        yield block


if __name__ == "__main__":
    Settings.run(main)
