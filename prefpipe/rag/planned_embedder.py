"""What stands in for an embedding model in a dry run: no weights are loaded, texts are only counted."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from prefpipe.files import Plan
from prefpipe.rag.embedding import (
    BATCH,
    Embedder,
    SentenceEmbedder,
    identity_of,
    model_folder,
    not_loaded,
)
from prefpipe.rows import Document


class PlannedEmbedder:
    """The model's name, identity and tokenizer. The vectors are drawn from the texts: what a query
    finds with one is any document, which is as long as documents are."""

    def __init__(
        self,
        name: str,
        prompts: Mapping[str, str | None] | None = None,
        dimension: int | None = None,
    ) -> None:
        """dimension: of a store's vectors; None: as the model's configuration says."""
        from transformers import AutoConfig, AutoTokenizer

        folder = model_folder(name)
        try:
            config = AutoConfig.from_pretrained(str(folder or name), trust_remote_code=False)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder or name))
        except Exception as error:  # of each library that reads one of the folder's files
            raise not_loaded(name, folder, error) from None
        self.name = name
        self.prompts: Mapping[str, str] = {
            k: v for k, v in (prompts or {}).items() if v is not None
        }
        revision = getattr(config, "_commit_hash", None)
        self.identity = identity_of(name, folder, revision, self.prompts)
        self.dimension = dimension or int(config.hidden_size)
        self.max_tokens: int | None = None

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"]) -> np.ndarray:
        seeds = (hashlib.sha256(text.encode()).digest()[:8] for text in texts)
        drawn = [
            np.random.default_rng(int.from_bytes(seed)).normal(size=self.dimension)
            for seed in seeds
        ]
        vectors = np.array(drawn, np.float32).reshape(len(texts), self.dimension)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def count_cut(self, texts: Sequence[str]) -> int:
        return 0

    def windows(self, texts: Sequence[str]) -> list[list[str]]:
        return [[text] for text in texts]

    def count_tokens(self, texts: Sequence[str]) -> int:
        ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return sum(map(len, ids)) if texts else 0


class PlannedVectors:
    """DocumentVectors of a dry run: counts what would be embedded."""

    def __init__(self, embedder: PlannedEmbedder, known: Any) -> None:
        """known: has the content hashes of what was embedded before."""
        self._embedder, self._known = embedder, known
        self.documents = self.new = self.tokens = 0
        self._waiting: dict[str, str] = {}
        self._seen: set[bytes] = set()

    def add(self, documents: Iterable[Document]) -> None:
        for document in documents:
            self.documents += 1
            digest = bytes.fromhex(document.content_hash)
            if document.content_hash not in self._known and digest not in self._seen:
                self._seen.add(digest)
                self._waiting[document.content_hash] = document.text
        if len(self._waiting) >= BATCH:
            self.embed_waiting()

    def embed_waiting(self) -> None:
        self.new += len(self._waiting)
        self.tokens += self._embedder.count_tokens([*self._waiting.values()])
        self._waiting.clear()

    def put(self, plan: Plan) -> None:
        """Add the counts to a plan."""
        known = self.documents - self.new
        line = (
            f"{self.new:,} of {self.documents:,} documents, {known:,} are known from before; tokens: "
            f"{self.tokens:,} (by the tokenizer of {self._embedder.name})"
        )
        numbers: dict[str, Any] = {"model": self._embedder.name, "documents": self.documents}
        plan.put("to embed", [line], **numbers, to_embed=self.new, tokens=self.tokens)


def open_embedder(
    name: str, prompts: Mapping[str, str], dimension: int, *, plan: Plan | None
) -> Embedder:
    """The model that a store was made with; for a plan what stands in for it."""
    return PlannedEmbedder(name, prompts, dimension) if plan else SentenceEmbedder(name, prompts)


def is_planned(embedder: Embedder) -> bool:
    """Whether its vectors say nothing."""
    return isinstance(embedder, PlannedEmbedder)
