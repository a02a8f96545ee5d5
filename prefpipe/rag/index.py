"""Vectors to an index that is searched: exact, or approximate with its recall measured."""

import heapq
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from prefpipe import draws
from prefpipe.rag.embedding import DocumentVectors
from prefpipe.rows import Entry
from prefpipe.screen import working

EXACT_UP_TO = 200_000
"""Vectors up to which `auto` is exact: a search compares them all within milliseconds."""


class IndexFacts(BaseModel):
    """How the index was made, and how often it finds what an exact one finds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["exact", "ivf"]
    """ivf: vectors in lists around centroids; a search reads the nearest lists only."""
    lists: int | None = None
    probed_lists: int | None = None
    recall_at_1: float = 1.0
    """Share of queries whose first hit is the exact search's."""
    recall_queries: int = 0
    """Number of queries behind recall_at_1."""


def write_index(
    path: Path,
    vectors: DocumentVectors,
    kind: Literal["auto", "exact", "ivf"],
    embed_queries: Callable[[], np.ndarray],
    target_recall: float,
) -> IndexFacts:
    """Index the documents' vectors; an ivf index is tuned on the queries, asked for only then."""
    import faiss

    if kind == "auto":
        kind = "exact" if len(vectors) <= EXACT_UP_TO else "ivf"
    with working(f"{kind} index of {len(vectors):,} documents"):
        index = build_index(vectors, len(vectors), vectors.dimension, kind)
        facts = IndexFacts(kind="exact")
        if kind == "ivf":
            facts = tune_index(index, embed_queries(), target_recall)
        faiss.write_index(index, str(path))
    return facts


def build_index(
    blocks: Iterable[np.ndarray], count: int, dimension: int, kind: Literal["exact", "ivf"]
) -> Any:
    """A FAISS index of the vectors in the order they come; blocks is read twice for ivf.

    ivf: 4 sqrt(count) lists, with at least 39 vectors each on average (what k-means wants), learnt
    from evenly spread vectors, 64 a list.
    """
    import faiss

    if kind == "exact":
        index = faiss.IndexFlatIP(dimension)
    else:
        lists = max(1, min(int(4 * math.sqrt(count)), count // 39))
        quantizer = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIVFFlat(quantizer, dimension, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(every_nth(blocks, max(1, count // (64 * lists))))
    for block in blocks:
        index.add(np.ascontiguousarray(block))
    return index


def every_nth(blocks: Iterable[np.ndarray], n: int) -> np.ndarray:
    """Vectors 0, n, 2n, ... of all blocks together, which are held one at a time."""
    parts, seen = [], 0
    for block in blocks:
        parts.append(block[-seen % n :: n].copy())
        seen += len(block)
    return np.concatenate(parts)


def tune_index(index: Any, queries: np.ndarray, target_recall: float) -> IndexFacts:
    """Have an ivf index probe as many lists (1, 2, 4, ...) as it takes to find what exact search
    does. A hit counts where its score is the best one: of equal documents either may come first."""
    import faiss

    def best_scores(lists: int) -> np.ndarray:
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = lists
        return index.search(queries, 1, params=parameters)[0][:, 0]

    exact, probed = best_scores(index.nlist), 1
    while (share := (best_scores(probed) >= exact - 1e-6).mean()) < target_recall:
        if probed == index.nlist:
            break
        probed = min(2 * probed, index.nlist)
    index.nprobe = probed
    return IndexFacts(
        kind="ivf",
        lists=index.nlist,
        probed_lists=probed,
        recall_at_1=round(float(share), 4),
        recall_queries=len(queries),
    )


def sample_queries(entries: Iterable[Entry], size: int, seed: int) -> list[str]:
    """So many of the rows' queries, those with the largest numbers drawn from (seed, id): each is
    as likely as any other, in whatever order they come."""
    drawn = ((draws.number(seed, row.id), row.query) for row in entries if row.query.strip())
    return [query for _, query in sorted(heapq.nlargest(size, drawn))]
