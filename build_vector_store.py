"""Embed the documents of a table and index them, so that a query finds its context.

Reads   data/rag/stdlib.csv              Entry rows under any column names (CSV, Parquet or JSONL)
Writes  data/rag/store/documents.parquet Document rows, in the order of the table
        data/rag/store/index.faiss       their vectors, searched by cosine
        data/rag/store/manifest.json     embedding model, dimension, metric, count, content hash
        data/rag/store/build_vector_store.rejects.jsonl   Reject rows

    {"id": "d7", "query": "add two numbers", "code": "def add(a, b):\\n    return a + b", "description": "The sum of two.", "keywords": []}
 -> {"id": "d7", "row_id": "d7", "start": 0, "text": "The sum of two.\\n\\ndef add(a, b):\\n    return a + b", "content_hash": "de62b9d130a4e62d971139f6afb4a0dc"}

A row is one document: description and code are what is embedded, the query is not. A table that has
changed is no reason for --overwrite: the run embeds its new and changed rows only. The index is
exact up to 200,000 documents and approximate above, with its measured recall printed.

    uv run build_vector_store.py --input my_documents.csv
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import config
from prefpipe import files, screen
from prefpipe.files import DataError
from prefpipe.near_duplicates import EarlierDocuments
from prefpipe.rag import embedding, store, table
from prefpipe.rag.documents import to_documents, to_text, without_duplicates
from prefpipe.rag.embedding import DocumentVectors, Embedder, VectorCache
from prefpipe.rag.index import sample_queries, write_index
from prefpipe.rag.planned_embedder import PlannedEmbedder, PlannedVectors
from prefpipe.rag.rag_report import store_lines
from prefpipe.ranges import Positive, Share
from prefpipe.rows import Document, Entry, Reject
from prefpipe.settings import Stage

SAMPLED_QUERIES = 1000
"""Queries that recall is measured on."""
VECTORS = ".build_vector_store.vectors"
"""What a stopped run has embedded."""


class Settings(Stage, env_prefix="VECTOR_STORE_"):
    input: Path = config.RAG_TABLE
    """A CSV, Parquet or JSONL file."""
    output: Path = config.VECTOR_STORE
    """Folder of the store."""
    id_column: str | None = None
    """None: `id` where the table has it, else ids are made of the rows' content."""
    query_column: str | None = "query"
    """Read for measuring the recall of an ivf index only; None: there is none."""
    code_column: str | None = "code"
    """None: there is none."""
    description_column: str | None = "description"
    """None: there is none."""
    embedding_model: str = config.EMBEDDING_MODEL
    """A sentence-transformers model: a folder or a hub name."""
    query_prompt: str | None = None
    """Put before each query, "query: " for E5; None: what the model's configuration says."""
    document_prompt: str | None = None
    """Put before each document, "passage: " for E5."""
    chunk_characters: Positive | None = None
    """Cut longer documents into windows of so many characters; None: one document a row."""
    chunk_overlap_characters: int = 200
    """Characters that neighbouring windows share."""
    max_document_characters: Positive = 100_000
    """A row longer than this is left out, unless chunk_characters cuts it."""
    near_duplicate: Share | None = 0.95
    """A document that resembles an earlier one this much is left out; None: only equal ones are."""
    index: Literal["auto", "exact", "ivf"] = "auto"
    """ivf is approximate: lists of vectors around centroids; auto: ivf for more than 200,000."""
    target_recall: Share = 0.99
    """Of an ivf index: lists are probed until this share of queries finds what exact search does."""

    def prompts(self) -> dict[str, str | None]:
        return {"query": self.query_prompt, "document": self.document_prompt}


def build_documents(entry: Entry, s: Settings, place: str) -> list[Document] | Reject:
    """The row's document, or its chunks; a Reject where it is empty or too long."""
    length = len(to_text(entry))
    if not length:
        what = " and ".join(filter(None, (s.description_column, s.code_column)))
        return Reject(id=entry.id, reason="empty_document", detail=f"{place}: {what}: no text")
    if length > s.max_document_characters and s.chunk_characters is None:
        detail = (
            f"{place}: {length} characters, at most {s.max_document_characters}; cut it with "
            "--chunk-characters"
        )
        return Reject(id=entry.id, reason="too_long", detail=detail)
    return to_documents(entry, s.chunk_characters, s.chunk_overlap_characters)


def read_table(s: Settings) -> Iterator[tuple[str, Entry | ValueError]]:
    columns = table.Columns(s.query_column, s.code_column, s.description_column, id=s.id_column)
    return table.read_entries(s.input, columns, s.limit)


def write_documents(s: Settings, run: files.Run, vectors: DocumentVectors | PlannedVectors) -> int:
    """Write the documents and embed them; the number of chunks left out of rows that were kept."""
    earlier, duplicate_chunks = EarlierDocuments(s.near_duplicate), 0
    for place, entry in screen.progress(read_table(s), None, "documents"):
        run.read_count += 1
        if isinstance(entry, ValueError):
            run.bad_row(place, entry)
            continue
        row = build_documents(entry, s, place)
        kept = row if isinstance(row, Reject) else without_duplicates(entry, row, earlier, place)
        run.emit(kept)
        if not isinstance(row, Reject) and not isinstance(kept, Reject):
            # a row is kept or left out as a whole: chunks that are gone are no rows of the ledger
            duplicate_chunks += len(row) - len(kept)
            vectors.add(kept)
    vectors.embed_waiting()
    return duplicate_chunks


def embed_queries(s: Settings, embedder: Embedder) -> np.ndarray:
    """What the recall of an approximate index is measured with."""
    entries = (entry for _, entry in read_table(s) if isinstance(entry, Entry))
    if not (texts := sample_queries(entries, SAMPLED_QUERIES, s.seed)):
        raise DataError(
            f"{s.input}: no query to measure an ivf index with; name a --query-column, or take "
            "--index exact"
        )
    return embedder.embed(texts, "query")


def write_store(
    s: Settings, run: files.Run, embedder: Embedder, cache: VectorCache
) -> dict[str, Any]:
    """Documents, index and manifest; what .meta.json says of them. No index where no row was kept."""
    for path in run.shards.to_take(s.output / VECTORS):
        cache.take(path, embedder)
    known, vectors = len(cache), DocumentVectors(embedder, cache, run.shards.owns)
    duplicate_chunks = write_documents(s, run, vectors)
    if not vectors or run.shards.keeps_logs:
        return {}
    queries = partial(embed_queries, s, embedder)
    path = run.temporary(s.output / store.INDEX)
    facts = write_index(path, vectors, s.index, queries, s.target_recall)
    store.write_manifest(run.temporary(s.output / store.MANIFEST), embedder, vectors, facts)
    return {
        "embedded": len(cache) - known,
        "cut_by_the_model": vectors.cut,
        "duplicate_chunks": duplicate_chunks,
        "index": facts.model_dump(),
    }


def plan_documents(s: Settings, run: files.Run, plan: files.Plan) -> None:
    """What a dry run says of the documents: how many are new to the store, or to a stopped run."""
    embedder = PlannedEmbedder(s.embedding_model, s.prompts())
    with VectorCache(s.output / VECTORS, embedder, looks_only=True) as cache:
        known = set() if s.overwrite else cache.keys() | store.known_hashes(s.output, embedder)
    vectors = PlannedVectors(embedder, known)
    write_documents(s, run, vectors)
    vectors.put(plan)


def main(s: Settings, embedder: Embedder | None = None) -> None:
    if s.chunk_characters is not None and s.chunk_overlap_characters * 2 > s.chunk_characters:
        half = f"half of chunk_characters {s.chunk_characters}"
        overlap = f"chunk_overlap_characters {s.chunk_overlap_characters}"
        raise SystemExit(f"build_vector_store: {overlap} is more than {half}")
    model = embedding.model_folder(s.embedding_model)
    inputs, outputs = filter(None, (s.input, model)), {s.output / store.DOCUMENTS: Document}
    made = (s.output / store.INDEX, s.output / store.MANIFEST)
    about = {"home": s.output, "made": made, "follows_input": True, "by_logs": True}
    with s.open_run(inputs=[*inputs], outputs=outputs, **about) as run:
        if run.finished:
            return
        if run.plan:
            return plan_documents(s, run, run.plan)
        embedder = embedder or embedding.SentenceEmbedder(s.embedding_model, s.prompts())
        path = run.shards.at(s.output / VECTORS)
        if s.overwrite:
            path.unlink(missing_ok=True)
        with VectorCache(path, embedder) as cache:
            # by the hash of its text: a table that changed costs its new rows only
            if not s.overwrite:
                store.copy_vectors(s.output, embedder, cache)
            known = len(cache)
            run.went_on = known > 0
            run.summary |= write_store(s, run, embedder, cache)
        run.end_shard()
        if not run.kept_count:
            path.unlink()
            return  # leaving the block says why
    path.unlink()  # only now: until all is in place, a killed run goes on with these vectors
    print(*store_lines(run.summary, known, embedder), sep="\n")


if __name__ == "__main__":
    Settings.run(main)
