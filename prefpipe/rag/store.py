"""A vector store: a folder that is searched for the documents nearest to a query.

index.faiss holds the vectors, documents.parquet the Document rows in the index's order, and
manifest.json says which model embedded them, the metric and the count. Vectors have length 1 and the
metric is their inner product, which is the cosine. Nothing in a store is pickled.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from prefpipe.files import DataError, write_text
from prefpipe.rag.documents import id_lines
from prefpipe.rag.embedding import DocumentVectors, Embedder, VectorCache
from prefpipe.rag.index import IndexFacts
from prefpipe.rows import Document

INDEX, DOCUMENTS, MANIFEST = "index.faiss", "documents.parquet", "manifest.json"
_BLOCK = 8192  # rows of documents.parquet read at once


class Manifest(BaseModel):
    """manifest.json of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    embedding_model: str
    embedding_identity: str
    prompts: dict[str, str] = {}
    """What stood before each query and document, where the model's configuration does not say it."""
    dimension: int
    metric: Literal["inner_product"] = "inner_product"
    normalised: Literal[True] = True
    count: int
    content_hash: str
    """sha256 of the documents' id_lines."""
    index: IndexFacts


FEWEST = 100
"""Documents of which it is said what two have in common."""


class VectorStore:
    """A store opened for searching. Vectors are in memory, documents stay on disk."""

    def __init__(self, folder: Path, index: Any, manifest: Manifest) -> None:
        import pyarrow
        import pyarrow.parquet

        self.folder, self.index, self.manifest = folder, index, manifest
        path = folder / DOCUMENTS
        try:
            self._table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            raise DataError(f"{path}: missing or broken; build the store again") from None
        if lacks := Document.model_fields.keys() - self._table.schema_arrow.names:
            raise DataError(f"{path}: no column {min(lacks)}; build the store again")
        facts = self._table.metadata
        sizes = [facts.row_group(g).num_rows for g in range(facts.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])

    @classmethod
    def open(cls, folder: Path, embedder: Embedder) -> "VectorStore":
        """Raises DataError where the store is incomplete, or made with another embedding model."""
        import faiss

        manifest = read_manifest(folder)
        if manifest.embedding_identity != embedder.identity:
            raise DataError(
                f"{folder / MANIFEST}: the store was built with {manifest.embedding_model} "
                f"({manifest.embedding_identity[:12]}), not with {embedder.name} "
                f"({embedder.identity[:12]}); search with that one, or build the store again"
            )
        try:
            index: Any = faiss.read_index(str(folder / INDEX))
        except RuntimeError as error:
            raise DataError(f"{folder / INDEX}: no FAISS index: {error}") from None
        store = cls(folder, index, manifest)
        summary = hashlib.sha256()
        is_ivf = manifest.index.kind == "ivf"
        for batch in store._table.iter_batches(_BLOCK, columns=["id", "content_hash"]):
            columns = ([*map(str, store._texts(column))] for column in batch.columns)
            summary.update(id_lines(*columns))
        if (
            summary.hexdigest() != manifest.content_hash
            or hasattr(index, "nprobe") != is_ivf
            or index.ntotal != manifest.count
            or index.d != manifest.dimension
        ):
            raise DataError(
                f"{folder}: index, documents and manifest are not of one build; build the store again"
            )
        if is_ivf:
            index.nprobe = manifest.index.probed_lists
            index.make_direct_map()
        return store

    def __len__(self) -> int:
        return self.manifest.count

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), both (N, k) or less wide in a small store; best first. Scores are
        cosines; row -1: the probed lists hold fewer than k."""
        if vectors.shape[1] != self.manifest.dimension:
            raise ValueError(f"{vectors.shape[1]} dimensions, not {self.manifest.dimension}")
        k = min(k, len(self))
        vectors = np.ascontiguousarray(vectors, np.float32)
        scores, rows = self.index.search(vectors, k)
        if not np.isfinite(scores[rows >= 0]).all():
            raise DataError(f"{self.folder / INDEX}: holds NaN or infinity; build the store again")
        if len(nothing := np.flatnonzero(rows[:, 0] < 0)):  # the probed lists are empty
            if not hasattr(self.index, "nprobe"):  # all vectors are searched: they are no numbers
                raise DataError(f"{self.folder / INDEX}: holds NaN; build the store again")
            probed, self.index.nprobe = self.index.nprobe, self.index.nlist
            scores[nothing], rows[nothing] = self.index.search(vectors[nothing], k)
            self.index.nprobe = probed
        return scores, rows

    @cached_property
    def typical_cosine(self) -> float:
        """The mean cosine of two documents, of up to a thousand that lie evenly spread. 0 of fewer than
        FEWEST, which may all be about one thing."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int))
        if (count := len(rows)) < FEWEST:
            return 0.0
        # the square of the sum has each two twice, and each with itself
        total = float(np.square(self.vectors(rows.tolist()).astype(np.float64).sum(0)).sum())
        return round((total - count) / (count * (count - 1)), 4)

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """(N, dimension), as the documents of these rows were embedded."""
        return self.index.reconstruct_batch(np.asarray(rows, dtype=np.int64))

    def documents(self, rows: Iterable[int]) -> dict[int, Document]:
        """The documents of these rows; each row group of the file is read once a call."""
        wanted = np.unique(np.fromiter(rows, np.int64))
        groups = self._starts.searchsorted(wanted, side="right") - 1
        documents: dict[int, Document] = {}
        for group in np.unique(groups).tolist():
            members = wanted[groups == group]
            columns = [*Document.model_fields]
            records = self._table.read_row_group(group, columns).take(members - self._starts[group])
            for row, record in zip(members.tolist(), self._texts(records), strict=True):
                try:
                    documents[row] = Document.model_validate(record)
                except ValidationError as error:
                    field = error.errors(include_url=False)[0]["loc"][0]
                    place = f"{self.folder / DOCUMENTS}:{row + 1}"
                    raise DataError(f"{place}: no text in {field}; build the store again") from None
        return documents

    def _texts(self, values: Any) -> list[Any]:
        """The values of a column or a table of documents.parquet; DataError where a text is none."""
        try:
            return values.to_pylist()
        except UnicodeDecodeError:
            raise DataError(
                f"{self.folder / DOCUMENTS}: holds a text that is no UTF-8; build the store again"
            ) from None

    def hashes(self) -> Iterator[list[str]]:
        """The documents' content hashes, in order, block by block."""
        for batch in self._table.iter_batches(batch_size=_BLOCK, columns=["content_hash"]):
            yield self._texts(batch.column(0))


def read_manifest(folder: Path) -> Manifest:
    """Raises DataError where there is no store, an unfinished one, or a pickled one."""
    path = folder / MANIFEST
    if not path.is_file():
        if any(folder.glob("*.pkl")):
            raise DataError(
                f"{folder}: a pickled store; unpickling runs its maker's code. Build one from the "
                "table with build_vector_store.py"
            )
        raise DataError(f"{folder}: no finished vector store; run build_vector_store.py first")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path}: {field}: {problem['msg']}; build the store again") from None


def write_manifest(
    path: Path, embedder: Embedder, vectors: DocumentVectors, facts: IndexFacts
) -> None:
    manifest = Manifest(
        embedding_model=embedder.name,
        embedding_identity=embedder.identity,
        prompts=dict(embedder.prompts),
        dimension=embedder.dimension,
        count=len(vectors),
        content_hash=vectors.content.hexdigest(),
        index=facts,
    )
    write_text(path, manifest.model_dump_json(indent=2) + "\n")


def known_hashes(folder: Path, embedder: Embedder) -> set[str]:
    """The content hashes of what an earlier build of this model embedded."""
    with suppress(DataError):
        return {known for block in VectorStore.open(folder, embedder).hashes() for known in block}
    return set()


def copy_vectors(folder: Path, embedder: Embedder, cache: VectorCache) -> None:
    """Take over what an earlier build embedded; nothing where there is no store of this model."""
    with suppress(DataError):
        store = VectorStore.open(folder, embedder)
        start = 0
        for hashes in store.hashes():
            vectors = store.vectors(range(start, start + len(hashes)))
            start += len(hashes)
            if new := [i for i, content_hash in enumerate(hashes) if content_hash not in cache]:
                cache.add([hashes[i] for i in new], vectors[new])
