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
exact up to --exact-up-to documents and approximate above, with its measured recall printed.

    uv run build_vector_store.py --input my_documents.csv
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import config
from prefpipe import files, screen
from prefpipe.files import DataError
from prefpipe.rag import retrieval
from prefpipe.ranges import Positive, Share
from prefpipe.rows import Document, Entry, Reject
from prefpipe.settings import Stage

BATCH = 512
"""Documents embedded at once; what a stopped run keeps is whole batches."""
SAMPLED_QUERIES = 1000
"""Queries that recall is measured on."""


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
    chunk_characters: Positive | None = None
    """Cut longer documents into windows of so many characters; None: one document a row."""
    chunk_overlap_characters: int = 200
    """Characters that neighbouring windows share."""
    max_document_characters: Positive = 100_000
    """A row longer than this is left out, unless chunk_characters cuts it."""
    near_duplicate: Share | None = 0.95
    """A document that resembles an earlier one this much is left out; None: only equal ones are."""
    index: Literal["auto", "exact", "ivf"] = "auto"
    """ivf is approximate: lists of vectors around centroids; auto: by exact_up_to."""
    exact_up_to: Positive = 200_000
    """Documents up to which auto is exact."""
    target_recall: Share = 0.99
    """Of an ivf index: lists are probed until this share of queries finds what exact search does."""


def build_documents(entry: Entry, s: Settings, place: str) -> list[Document] | Reject:
    """The row's document, or its chunks; a Reject where it is empty or too long."""
    length = len(retrieval.to_text(entry))
    if not length:
        what = " and ".join(filter(None, (s.description_column, s.code_column)))
        return Reject(id=entry.id, reason="empty_document", detail=f"{place}: {what}: no text")
    if length > s.max_document_characters and s.chunk_characters is None:
        return Reject(
            id=entry.id,
            reason="too_long",
            detail=f"{place}: {length} characters, at most {s.max_document_characters}; cut it with "
            "--chunk-characters",
        )
    return retrieval.to_documents(entry, s.chunk_characters, s.chunk_overlap_characters)


@dataclass
class Embedded:
    """What is left of the documents once they are written and embedded."""

    digests: list[bytes]
    """Content hash of each document, in order."""
    content_hash: str
    cut: int
    """Documents longer than the embedding model reads."""
    duplicate_chunks: int
    """Left out of rows of which other chunks were kept."""


def main(s: Settings, embedder: retrieval.Embedder | None = None) -> None:
    if s.chunk_characters is not None and s.chunk_overlap_characters * 2 > s.chunk_characters:
        raise SystemExit(
            f"build_vector_store: chunk_overlap_characters {s.chunk_overlap_characters} is more than "
            f"half of chunk_characters {s.chunk_characters}"
        )
    documents, index, manifest = (
        s.output / name for name in (retrieval.DOCUMENTS, retrieval.INDEX, retrieval.MANIFEST)
    )
    folder = retrieval.model_folder(s.embedding_model)
    with files.open_run(
        s,
        inputs=[s.input, *([folder] if folder else [])],
        outputs={documents: Document},
        home=s.output,
        made=(index, manifest),
        follows_input=True,
    ) as run:
        if run.finished:
            return
        embedder = embedder or retrieval.SentenceEmbedder(s.embedding_model)
        path = s.output / ".build_vector_store.vectors"
        if s.overwrite:
            path.unlink(missing_ok=True)
        with retrieval.VectorCache(path, embedder) as cache:
            if not s.overwrite:
                retrieval.copy_vectors(s.output, embedder, cache)
            known = len(cache)
            queries = retrieval.QuerySample(SAMPLED_QUERIES, s.seed)
            done = embed_documents(s, run, embedder, cache, queries)
            if not done.digests:
                path.unlink()
                return  # leaving the block says why
            facts = write_index(s, run.temporary(index), embedder, cache, done.digests, queries)
            made = retrieval.Manifest(
                embedding_model=embedder.name,
                embedding_identity=embedder.identity,
                dimension=embedder.dimension,
                count=len(done.digests),
                content_hash=done.content_hash,
                index=facts,
            )
            files.write_text(run.temporary(manifest), made.model_dump_json(indent=2) + "\n")
            run.summary |= {
                "embedded": len(cache) - known,
                "cut_by_the_model": done.cut,
                "duplicate_chunks": done.duplicate_chunks,
                "index": facts.model_dump(),
            }
    path.unlink()
    print(f"embedded {run.summary['embedded']} documents; {known} were known before")
    if done.duplicate_chunks:
        print(f"{done.duplicate_chunks} chunks are like others and were left out of their rows")
    if done.cut:
        print(
            f"{embedder.name} reads the first {embedder.max_tokens} tokens: {done.cut} documents are "
            "longer (--chunk-characters cuts them into several)"
        )
    if facts.kind == "ivf":
        print(
            f"approximate index: {facts.lists} lists, {facts.probed_lists} probed; recall@1 against "
            f"exact search {facts.recall_at_1} on {facts.recall_queries} queries"
        )


def embed_documents(
    s: Settings,
    run: files.Run,
    embedder: retrieval.Embedder,
    cache: retrieval.VectorCache,
    queries: retrieval.QuerySample,
) -> Embedded:
    """Write the documents, and embed those that the cache lacks."""
    duplicates = retrieval.Duplicates(s.near_duplicate)
    content = retrieval.ContentHash()
    done = Embedded([], "", 0, 0)
    waiting: list[Document] = []

    def embed_waiting() -> None:
        if new := [document for document in waiting if document.content_hash not in cache]:
            vectors = embedder.embed([document.text for document in new], "document")
            cache.add([document.content_hash for document in new], vectors)
        done.cut += embedder.count_cut([document.text for document in waiting])
        waiting.clear()

    columns = retrieval.Columns(
        query=s.query_column, code=s.code_column, description=s.description_column, id=s.id_column
    )
    entries = retrieval.read_entries(s.input, columns, s.limit)
    for place, entry in screen.progress(entries, None, "documents"):
        run.read_count += 1
        if isinstance(entry, ValueError):
            run.bad_row(place, entry)
            continue
        if entry.query.strip():
            queries.add(entry.id, entry.query)
        found = build_documents(entry, s, place)
        if not isinstance(found, Reject):
            found, alike = without_duplicates(entry, found, duplicates, place)
            done.duplicate_chunks += alike
        run.emit(found)
        if isinstance(found, Reject):
            continue
        content.add([d.id for d in found], [d.content_hash for d in found])
        done.digests += [bytes.fromhex(document.content_hash) for document in found]
        waiting += found
        if len(waiting) >= BATCH:
            embed_waiting()
    if waiting:
        embed_waiting()
    done.content_hash = content.hexdigest()
    return done


def without_duplicates(
    entry: Entry, found: list[Document], duplicates: retrieval.Duplicates, place: str
) -> tuple[list[Document] | Reject, int]:
    """The row's documents that are like no earlier one, and how many of its others are left out."""
    like = [(document, duplicates.find(document)) for document in found]
    if kept := [document for document, same in like if same is None]:
        return kept, len(found) - len(kept)
    kind, other = like[0][1] or ("equal", "")
    detail = f"{place}: like {other}"
    return Reject(id=entry.id, reason=f"{kind}_document", detail=detail), 0


def write_index(
    s: Settings,
    path: Path,
    embedder: retrieval.Embedder,
    cache: retrieval.VectorCache,
    digests: list[bytes],
    queries: retrieval.QuerySample,
) -> retrieval.IndexFacts:
    """Index the documents' vectors; an approximate index is tuned on a sample of the queries."""
    import faiss

    kind = s.index
    if kind == "auto":
        kind = "exact" if len(digests) <= s.exact_up_to else "ivf"
    index = retrieval.build_index(
        retrieval.Blocks(cache, digests), len(digests), embedder.dimension, kind
    )
    facts = retrieval.IndexFacts(kind="exact")
    if kind == "ivf":
        if not (texts := queries.texts()):
            raise DataError(
                f"{s.input}: no query to measure an ivf index with; name a --query-column, or take "
                "--index exact"
            )
        facts = retrieval.tune_index(index, embedder.embed(texts, "query"), s.target_recall)
    faiss.write_index(index, str(path))
    return facts


if __name__ == "__main__":
    Settings.run(main)
