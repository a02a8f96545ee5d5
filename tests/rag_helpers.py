"""What the tests of the RAG path share: an embedder that needs no model, and tables."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import build_vector_store
from prefpipe.words import split_words


class WordEmbedder:
    """A text's words, each a random direction, added up: shared words make a high cosine."""

    name = "words"
    identity = "words-64"
    prompts: Mapping[str, str] = {}
    dimension = 64
    max_tokens: int | None = 50

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        self.embedded += texts
        vectors = np.stack([sum_of_words(text) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def count_cut(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) > 50 for text in texts)

    def windows(self, texts: Sequence[str]) -> list[list[str]]:
        parts = [text.split() for text in texts]
        return [
            [text]
            if len(words) <= 50
            else [" ".join(words[k : k + 50]) for k in range(0, len(words), 50)]
            for text, words in zip(texts, parts, strict=True)
        ]


def sum_of_words(text: str) -> np.ndarray:
    directions = [direction(word) for word in split_words(text)] or [direction("")]
    return np.sum(directions, axis=0).astype(np.float32)


def direction(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
    return np.random.default_rng(seed).normal(size=64)


ROWS = [
    ("add", "add two numbers", "def add(a, b):\n    return a + b", "The sum of two numbers."),
    (
        "cut",
        "cut a text into lines",
        "def cut(text):\n    return text.split()",
        "Lines of a text as a list.",
    ),
    ("max", "find the largest", "def largest(xs):\n    return max(xs)", "The largest item of all."),
    (
        "rev",
        "turn a list around",
        "def turn(xs):\n    return xs[::-1]",
        "The list, last one first.",
    ),
    (
        "low",
        "write in small letters",
        "def low(s):\n    return s.lower()",
        "Small letters, capitals lowered.",
    ),
]
COLUMNS = ("id", "query", "code", "description")


def write_table(path: Path, rows=ROWS, columns=COLUMNS) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def build_store(folder: Path) -> Path:
    """The store of ROWS in the folder, beside their table t.csv."""
    s = build_vector_store.Settings(input=write_table(folder / "t.csv"), output=folder / "store")
    build_vector_store.main(s, WordEmbedder())
    return s.output
