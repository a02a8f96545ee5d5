"""Recall of our store on real queries, beside sentence-transformers' own semantic_search.

    uv run python -m benchmarks.retrieval [cosqa_dev.csv]

CoSQA's development set: queries that people typed, functions, and whether the function answers the
query (label 1). All functions are indexed; the queries of label 1 are searched. A hit is the
query's own function, or a copy of its text. Writes benchmarks/results/retrieval.json, and fails
where the exact index is not equal to semantic_search, or the approximate one is off by more than a
point. It says how good this embedding model's search is on 604 functions, and what an index loses; beside it
words (BM25, by bm25s), and both together by reciprocal rank fusion, which the stages do not do
because it is worse here.
"""

import csv
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from sklearn.metrics import roc_auc_score

import build_vector_store
from benchmarks import machine, write_results
from prefpipe.rag.documents import content_hash, to_text
from prefpipe.rag.embedding import SentenceEmbedder, model_folder
from prefpipe.rag.score import split_names, stop_words
from prefpipe.rag.store import VectorStore, read_manifest
from prefpipe.rag.table import Columns, read_entries
from prefpipe.rows import Entry

DEFAULT = Path(os.environ.get("PREFPIPE_REAL_DATA", "../shared/data")) / "cosqa_dev.csv"
DEEP = 10
"""Hits looked at."""
MOST_LOST = 0.01
"""Of each share, by the approximate index."""


def measure(hits: Sequence[Sequence[str]], wanted: Sequence[str]) -> dict[str, float]:
    """Recall at 1 and 5 and the mean reciprocal rank within 10; hits and wanted: content hashes."""
    ranks = [
        next((rank for rank, hit in enumerate(row, start=1) if hit == own), None)
        for row, own in zip(hits, wanted, strict=True)
    ]
    return {
        "recall_at_1": round(float(np.mean([rank == 1 for rank in ranks])), 4),
        "recall_at_5": round(float(np.mean([rank is not None and rank <= 5 for rank in ranks])), 4),
        "mrr_at_10": round(float(np.mean([1 / rank if rank else 0.0 for rank in ranks])), 4),
    }


def search_store(
    folder: Path, queries: Sequence[str], embedder: SentenceEmbedder
) -> list[list[str]]:
    store = VectorStore.open(folder, embedder)
    _, rows = store.search(embedder.embed(queries, "query"), DEEP)
    documents = store.documents(rows[rows >= 0])
    return [[documents[int(row)].content_hash for row in own if row >= 0] for own in rows]


def search_with_sentence_transformers(
    texts: Sequence[str], queries: Sequence[str]
) -> list[list[str]]:
    """As its documentation says, on the same texts."""
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(model_folder("all-MiniLM-L6-v2")))
    corpus = model.encode(list(texts), convert_to_tensor=True)
    hits = util.semantic_search(
        model.encode(list(queries), convert_to_tensor=True), corpus, top_k=DEEP
    )
    hashes = [content_hash(text) for text in texts]
    return [[hashes[int(hit["corpus_id"])] for hit in row] for row in hits]


def by_words(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """BM25 scores (queries, texts) of the words that keywords are taken from."""

    def tokens(text: str) -> list[str]:
        return [word for word in split_names(text) if word not in stop_words()]

    index = bm25s.BM25()
    index.index([tokens(text) for text in texts], show_progress=False)
    return np.stack([index.get_scores(tokens(query)) for query in queries])


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """From 1, a row a query; equal scores in the texts' order."""
    best_first = np.argsort(-scores, axis=1, kind="stable")
    return np.argsort(best_first, axis=1, kind="stable") + 1


def hybrid(
    texts: Sequence[str], queries: Sequence[str], wanted: Sequence[str], embedder: SentenceEmbedder
) -> dict[str, dict[str, float]]:
    """Words alone, and fused with vectors: 1 / (60 + rank) of each added up, words counting so much."""
    vectors = embedder.embed(queries, "query") @ embedder.embed(list(texts), "document").T
    words, hashes = by_words(texts, queries), [content_hash(text) for text in texts]
    both = {
        weight: 1 / (60 + ranks_of(vectors)) + weight / (60 + ranks_of(words))
        for weight in (1.0, 0.3, 0.1)
    }
    found = {"words": words} | {f"fused_{weight:g}": scores for weight, scores in both.items()}
    best = {
        name: np.argsort(-scores, axis=1, kind="stable")[:, :DEEP] for name, scores in found.items()
    }
    return {
        name: measure([[hashes[i] for i in row] for row in rows], wanted)
        for name, rows in best.items()
    }


BINS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 1.0)
"""Of cosines of a query and its own function."""


def answered_by_score(
    entries: Sequence[Entry], labels: dict[str, str], embedder: SentenceEmbedder, store: VectorStore
) -> dict[str, Any]:
    """How often people say that a query's own function answers it, by their cosine: what an
    abstention's worth goes by (rag.pairs.abstention_worth)."""
    asked = embedder.embed([entry.query for entry in entries], "query")
    own = embedder.embed([to_text(entry) for entry in entries], "document")
    cosines = (asked * own).sum(1)
    is_answer = np.array([labels[entry.id] == "1" for entry in entries])
    places = np.clip(np.digitize(cosines, BINS) - 1, 0, len(BINS) - 2)
    by_bin = [
        {"from": BINS[k], "queries": int((places == k).sum()), "answered": round(float(is_answer[places == k].mean()), 3)}
        for k in range(len(BINS) - 1)
        if (places == k).any()
    ]  # fmt: skip
    return {
        "typical_cosine": store.typical_cosine,
        "auc": round(float(roc_auc_score(is_answer, cosines)), 3),
        "by_cosine": by_bin,
    }


def main() -> None:
    table = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    if not table.is_file():
        raise SystemExit(f"{table}: not there; give the path of cosqa_dev.csv")
    with open(table, encoding="utf-8", newline="") as file:
        labels = {row["id"]: row["label"] for row in csv.DictReader(file)}
    columns = Columns(query="query", code="code", description="description")
    entries = [e for _, e in read_entries(table, columns) if not isinstance(e, ValueError)]
    asked = [entry for entry in entries if labels[entry.id] == "1"]
    queries = [entry.query for entry in asked]
    wanted = [content_hash(to_text(entry)) for entry in asked]

    embedder = SentenceEmbedder("all-MiniLM-L6-v2")
    texts = list(dict.fromkeys(to_text(entry) for entry in entries))
    peer = search_with_sentence_transformers(texts, queries)
    peer_shares = measure(peer, wanted)
    results: dict[str, Any] = {"semantic_search": peer_shares}
    results |= hybrid(texts, queries, wanted, embedder)
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("exact", "ivf"):
            s = build_vector_store.Settings(
                input=table, output=Path(folder) / kind, index=kind, near_duplicate=None
            )
            build_vector_store.main(s, embedder)
            if kind == "exact":
                made = VectorStore.open(s.output, embedder)
                results["answered"] = answered_by_score(entries, labels, embedder, made)
            hits = search_store(s.output, queries, embedder)
            shares = measure(hits, wanted)
            differences[kind] = max(abs(shares[name] - peer_shares[name]) for name in shares)
            results[kind] = shares | {
                "largest_difference": round(differences[kind], 4),
                "queries_with_the_same_10_hits": sum(map(list.__eq__, hits, peer)),
                "index": read_manifest(s.output).index.model_dump(),
            }
    write_results(
        "retrieval",
        {
            "machine": machine(),
            "embedding_model": "all-MiniLM-L6-v2",
            "documents": len(texts),
            "queries": len(queries),
            **results,
        },
    )
    if differences["exact"] or differences["ivf"] > MOST_LOST:
        raise SystemExit(
            f"the difference from semantic_search is more than it may be: {differences}"
        )


if __name__ == "__main__":
    main()
