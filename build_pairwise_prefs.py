"""RAG pairs: sample several answers to each query from its retrieved context, pair best and worst.

Reads   data/rag/stdlib.csv              Entry rows: their id and query
        data/rag/store/                  the vector store that build_vector_store.py made
Writes  data/rag/pairwise_prefs.jsonl    RagPair rows, in the order of the table; they are
                                         preferences: preprocess_dataset.py and TRL take them
        data/rag/pairwise_prefs.rejects.jsonl, README.md   Reject rows; the card: how they were made
        data/rag/.pairwise_prefs.partial.*.jsonl   what is done so far; a stopped run goes on

    {"id": "d7", "query": "add two numbers", "code": "", "description": "", "keywords": []}
 -> {"id": "d7", "prompt": [{"role": "user", "content": "[Context]..."}], "chosen": [{"role": "assistant", "content": "Call add(a, b)."}], "rejected": [{"role": "assistant", "content": "I don't know."}], "margin": 0.73, "tie": false, "source": "rag", "question": "add two numbers", "document_ids": ["d7"], "retrieval_scores": [0.62], "abstention_worth": 0.3, "is_answerable": true, "keywords": ["add"], "scorer": "heuristic", "chosen_parts": {"score": 0.68, "grounding": 0.54, "keyword_coverage": 1.0, "length_penalty": 0.0, "is_abstention": false, "judge_score": null}, "rejected_parts": {"score": -0.05, "grounding": 0.0, "keyword_coverage": 0.0, "length_penalty": 1.0, "is_abstention": true, "judge_score": null}, "chosen_sample": 2, "rejected_sample": 0, "candidate_seeds": ["2021:d7:0", "2021:d7:1", "2021:d7:2", "2021:d7:3"], "candidates": null}

The score of an answer: prefpipe/rag/score.py has its formula and its rules. An abstention ("I don't
know") is worth as much as the context is likely not to answer (prefpipe/rag/pairs.py). An answer that was
cut, or is less grounded than a random document, may be rejected, but never chosen.

    uv run build_pairwise_prefs.py --num-candidates 8 --scorer both
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Literal

import config
from prefpipe import files, llm, templates
from prefpipe.judge import Showing
from prefpipe.llm.replies import Replies
from prefpipe.publish.cards import write_data_card
from prefpipe.questions import in_blocks
from prefpipe.rag import table
from prefpipe.rag.embedding import Embedder
from prefpipe.rag.pairs import AnsweredQuery, PairRules, build_pair, distinct, score_block
from prefpipe.rag.planned_embedder import open_embedder
from prefpipe.rag.rag_report import RagReport
from prefpipe.rag.retrieve import BLOCK, build_prompt, retrieve
from prefpipe.rag.store import MANIFEST, VectorStore, read_manifest
from prefpipe.rag.table import Columns
from prefpipe.ranges import AtLeastTwo, Positive, Temperature, TopK, TopP, Weight
from prefpipe.rows import Entry, RagPair, Reject, Retrieved
from prefpipe.settings import ModelStage, local_folders


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
    num_candidates: AtLeastTwo = 4
    """Answers sampled for each query."""
    temperature: Temperature = 0.7
    top_p: TopP = 0.9
    top_k: TopK = 0
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
    answer_threshold: float = 0.2
    """An abstention is worth most up to this share of the way from two documents' mean cosine to 1 ..."""
    sure_threshold: float = 0.8
    """... and nothing from this share on: the context is held to answer."""
    abstentions: list[str] = []
    """How else an answer begins that is an abstention; prefpipe/rag/abstention.py has what is known."""
    min_margin: Weight = 0.05
    """A pair is left out where chosen and rejected differ by less."""
    scorer: Literal["heuristic", "judge", "both"] = "heuristic"
    """judge: best and worst by comparing all pairs of answers; both: by the heuristic, where the
    judge, too, has chosen before rejected."""
    judge_model: str | None = None
    """The judge; None: the model that answers."""
    write_candidates: bool = False
    """Write all answers of a query, with their scores, beside its pair."""


def read_queries(s: Settings) -> Iterator[Entry | Reject]:
    columns = Columns(query=s.query_column, keywords=s.keywords_column, id=s.id_column)
    return table.read_queries(s.input, columns, s.limit, strict=s.strict)


def entries_of(s: Settings) -> Iterator[Entry]:
    return (row for row in read_queries(s) if isinstance(row, Entry))


def to_request(entry: Entry, retrieved: Retrieved, s: Settings) -> llm.Request:
    """All answers to the query, asked for at once."""
    prompt = build_prompt(retrieved.context, entry.query, s.template)
    return s.request(entry.id, prompt, samples=tuple(range(s.num_candidates)))


def to_query(
    entry: Entry, retrieved: Retrieved, answers: Replies, s: Settings
) -> AnsweredQuery | Reject:
    """The query with its answers that differ, or why it has none."""
    reply = answers.of(entry.id, s.num_candidates)
    if isinstance(reply, Reject):
        return reply
    # the prompt is made again: kept in a log it would be the file's largest part
    prompt = build_prompt(retrieved.context, entry.query, s.template)
    return AnsweredQuery(entry, retrieved, prompt, distinct(reply))


def to_comparison(showing: Showing, s: Settings) -> llm.Request:
    """Two answers for the judge, which is greedy whatever the answers were sampled with."""
    request = s.request(showing.id, showing.prompt, reply_schema=showing.reply_schema)
    return replace(request, temperature=0.0, top_p=1.0, top_k=0)


def ask_models(
    s: Settings, run: files.Run, contexts: files.RowLog[Retrieved], engine: llm.Engine | None
) -> Iterator[AnsweredQuery | Reject]:
    """Sample the answers, and have a judge compare every two; the queries, in the table's order."""

    def requests() -> Iterator[llm.Request]:
        return (
            to_request(e, contexts.get(e.id), s) for e in filter(run.shards.owns_row, entries_of(s))
        )

    def queries() -> Iterator[AnsweredQuery | Reject]:
        for row in filter(run.shards.owns_row, read_queries(s)):
            is_query = isinstance(row, Entry)
            yield to_query(row, contexts.get(row.id), answers, s) if is_query else row

    def comparisons() -> Iterator[llm.Request]:
        for query in queries():
            if isinstance(query, AnsweredQuery):
                yield from (to_comparison(showing, s) for showing in query.showings())

    open_engine = cache(s.open_engine)  # one load where the judge is the model that answers
    answers = Replies(run, requests, "candidates")
    answers.ask(lambda: engine or open_engine(s.model), "queries")
    if s.scorer == "heuristic":
        return queries()
    judge_model = s.judge_model or s.model
    if judge_model != s.model:
        engine = None  # the two need not fit into memory together
        open_engine.cache_clear()
    judge = Replies(run, comparisons, "judge")
    judge.ask(lambda: engine or open_engine(judge_model), "comparisons")
    return (row if isinstance(row, Reject) else row.judged(judge) for row in queries())


def main(s: Settings, engine: llm.Engine | None = None, embedder: Embedder | None = None) -> None:
    rules = PairRules(**{field.name: getattr(s, field.name) for field in fields(PairRules)})
    templates.load_template(s.template, frozenset({"context", "question"}))
    manifest = read_manifest(s.store)
    inputs = [s.input, s.store / MANIFEST, *templates.template_files(s.template, "rag")]
    inputs += [] if s.scorer == "heuristic" else templates.template_files(None, "judge")
    inputs += local_folders(s.model, s.judge_model or s.model)
    about = {"inputs": inputs, "unit": "queries", "card": write_data_card, "by_logs": True}
    with s.open_run(outputs={s.output: RagPair}, **about) as run:
        if run.finished:
            return
        made_with = (s.embedding_model, manifest.prompts, manifest.dimension)
        embedder = embedder or open_embedder(*made_with, plan=run.plan)
        store = VectorStore.open(s.store, embedder)
        contexts = run.open_log(Retrieved, "retrieved")
        limits = {"documents": s.documents_per_query, "characters": s.max_context_characters}
        retrieve(entries_of(s), store, embedder, contexts, **limits)
        queries = ask_models(s, run, contexts, engine)
        run.end_shard()
        report = RagReport()
        # in blocks: an embedding model takes several texts in about the time of one
        for block in in_blocks(queries, BLOCK):
            for row in score_block(block, store, embedder, rules):
                run.read_count += 1
                pair = row if isinstance(row, Reject) else build_pair(row, rules)
                report.add(row, pair)
                run.emit(pair)
        run.summary |= report.summary()
    print(report)


if __name__ == "__main__":
    Settings.run(main)
