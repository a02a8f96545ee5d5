"""A store of a million documents: time, memory, and recall of its approximate index.

    uv run python -m benchmarks.scale_store [--documents N] [--queries N]    # a quarter of an hour

The table is synthetic text and the vectors are made from it (embedding a million texts for real
would take hours on a CPU, and says nothing about the store): 384 dimensions of which they fill 64,
as embeddings of texts fill few of theirs; documents around 20,000 topics, topics around 500
subjects, a query near the document that it asks for. The build is the
stage build_vector_store itself, reading a CSV; building, searching and the exact search that recall
is counted against run in a process each, whose peak memory is read from the operating system. Writes
benchmarks/results/scale_store.json, and fails where building or searching takes 4 GB or more. Memory
and recall do not depend on what else the machine does; the seconds do (machine.load_before).
"""

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import build_vector_store
from benchmarks import RESULTS, machine, write_results
from prefpipe.rag.store import VectorStore, read_manifest

DIMENSION, FILLED, TOPICS, SUBJECTS = 384, 64, 20_000, 500
SEARCHED_AT_ONCE = 500
MOST_MEMORY_GB = 4.0


class SyntheticEmbedder:
    """A text "t<topic> i<item> ..." -> its topic's direction and as much noise of the item's own.

    A query "q t<topic> i<item>" is the item's vector and noise of 0.8 its length.
    """

    name = "synthetic"
    identity = "synthetic-1"
    prompts: Mapping[str, str] = {}
    dimension = DIMENSION
    max_tokens: int | None = None

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        subjects = _unit(rng.normal(size=(SUBJECTS, FILLED)))
        noise = _unit(rng.normal(size=(TOPICS, FILLED)))
        self._topics = _unit(subjects[np.arange(TOPICS) % SUBJECTS] + noise)
        self._into = np.linalg.qr(rng.normal(size=(DIMENSION, FILLED)))[0].T.astype(np.float32)

    def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        items, topics, noise = [], [], []
        for text in texts:
            topic, item = text.removeprefix("q ").split(maxsplit=2)[:2]
            topics.append(int(topic[1:]))
            items.append(_noise(int(item[1:]), 3))
            if kind == "query":
                noise.append(_noise(int(item[1:]), 4))
        vectors = _unit(self._topics[topics] + _unit(np.stack(items)))
        if kind == "query":
            vectors = _unit(vectors + 0.8 * _unit(np.stack(noise)))
        return vectors.astype(np.float32) @ self._into

    def count_cut(self, texts: Sequence[str]) -> int:
        return 0

    def windows(self, texts: Sequence[str]) -> list[list[str]]:
        return [[text] for text in texts]


def _noise(item: int, kind: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[item, kind])).standard_normal(
        FILLED, dtype=np.float32
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def name_of(item: int) -> str:
    return f"t{item * 7919 % TOPICS} i{item}"


def write_table(path: Path, documents: int) -> None:
    rng = random.Random(0)
    words = [f"w{number}" for number in range(5000)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "query", "code", "description"])
        for item in range(documents):
            text = " ".join(rng.choices(words, k=60))
            writer.writerow([item, f"q {name_of(item)}", text, name_of(item)])


def settings(folder: Path) -> build_vector_store.Settings:
    return build_vector_store.Settings(input=folder / "table.csv", output=folder / "store")


def build(folder: Path, queries: int) -> dict[str, Any]:
    build_vector_store.main(settings(folder), SyntheticEmbedder())
    return {"index": read_manifest(folder / "store").index.model_dump()}


def asked_items(documents: int, queries: int) -> list[int]:
    return random.Random(5).sample(range(documents), queries)


def search(folder: Path, queries: int) -> dict[str, Any]:
    embedder = SyntheticEmbedder()
    store = VectorStore.open(folder / "store", embedder)
    asked = asked_items(len(store), queries)
    rows, seconds = [], 0.0
    for start in range(0, queries, SEARCHED_AT_ONCE):
        texts = [f"q {name_of(item)}" for item in asked[start : start + SEARCHED_AT_ONCE]]
        vectors = embedder.embed(texts, "query")
        started = time.monotonic()
        rows.append(store.search(vectors, 1)[1][:, 0])
        seconds += time.monotonic() - started
    np.save(folder / "approximate.npy", np.concatenate(rows))
    return {"queries_a_second": round(queries / seconds, 1)}


def search_exactly(folder: Path, queries: int) -> dict[str, Any]:
    """A matrix product with every vector; the share of queries with the same best document."""
    embedder = SyntheticEmbedder()
    store = VectorStore.open(folder / "store", embedder)
    asked = asked_items(len(store), queries)
    vectors = embedder.embed([f"q {name_of(item)}" for item in asked], "query")
    best = np.full(queries, -2, dtype=np.float32)
    rows = np.zeros(queries, dtype=np.int64)
    for start in range(0, len(store), 4096):
        scores = vectors @ store.vectors(range(start, min(start + 4096, len(store)))).T
        nearest = scores.argmax(axis=1)
        score = scores[np.arange(queries), nearest]
        rows = np.where(score > best, nearest + start, rows)
        best = np.maximum(score, best)
    approximate = np.load(folder / "approximate.npy")
    return {
        "recall_at_1_against_exact": round(float((rows == approximate).mean()), 4),
        "exact_search_finds_the_asked_document": round(float((rows == np.array(asked)).mean()), 4),
    }


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "build": build,
    "search": search,
    "exact": search_exactly,
}


def run_step(step: str, folder: Path, queries: int) -> dict[str, Any]:
    """The step in a process of its own, with its time and peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale_store", "--step", step]
    command += ["--folder", str(folder), "--queries", str(queries)]
    subprocess.run(command, check=True)
    return json.loads((folder / f"{step}.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        started = time.monotonic()
        result = STEPS[arguments.step](arguments.folder, arguments.queries)
        used = resource.getrusage(resource.RUSAGE_SELF)
        result |= {
            "seconds": round(time.monotonic() - started, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_memory_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
        }
        (arguments.folder / f"{arguments.step}.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table.csv", arguments.documents)
        results = {step: run_step(step, folder, arguments.queries) for step in STEPS}
    write_results(
        "scale_store",
        {
            "machine": machine(),
            "documents": arguments.documents,
            "queries": arguments.queries,
            "dimension": DIMENSION,
            **results,
        },
        arguments.results,
    )
    for step in ("build", "search"):
        if (peak := results[step]["peak_memory_gb"]) >= MOST_MEMORY_GB:
            raise SystemExit(f"{step}: {peak} GB, wanted less than {MOST_MEMORY_GB}")


if __name__ == "__main__":
    main()
