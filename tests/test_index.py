"""The index against a matrix product, and the queries that it is measured with."""

import numpy as np
import pytest

from prefpipe.rag.index import build_index, every_nth, sample_queries, tune_index
from prefpipe.rows import Entry


def clustered(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(40, 16))
    vectors = centres[rng.integers(0, 40, count)] + 0.5 * rng.normal(size=(count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def in_blocks(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[i : i + 300] for i in range(0, len(vectors), 300)]


def test_the_exact_index_finds_what_a_matrix_product_finds():
    vectors, queries = clustered(1000), clustered(50, seed=1)
    index = build_index(in_blocks(vectors), 1000, 16, "exact")
    scores, rows = index.search(queries, 5)
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :5]
    assert np.array_equal(rows, expected)
    assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, expected, 1), atol=1e-5)


def test_an_approximate_index_is_tuned_to_the_recall_that_it_states():
    vectors, queries = clustered(4000), clustered(200, seed=1)
    index = build_index(in_blocks(vectors), 4000, 16, "ivf")
    facts = tune_index(index, queries, 0.97)
    best = np.argmax(queries @ vectors.T, axis=1)
    recall = (index.search(queries, 1)[1][:, 0] == best).mean()
    assert facts.recall_at_1 == pytest.approx(recall, abs=0.005)
    assert recall >= 0.97
    assert facts.lists == 102  # 4000 // 39, less than 4 sqrt(4000) = 252
    assert facts.probed_lists is not None and 1 < facts.probed_lists < 102
    index.nprobe = facts.probed_lists // 2
    assert (index.search(queries, 1)[1][:, 0] == best).mean() < 0.97  # no more than it takes


def entry(id: str, query: str) -> Entry:
    return Entry(id=id, query=query, code="", description="", keywords=[])


def test_every_nth_vector_is_every_nth_whatever_the_blocks():
    vectors = np.arange(1000, dtype=np.float32)[:, None]
    assert np.array_equal(every_nth(in_blocks(vectors), 7), vectors[::7])


def test_the_query_sample_is_the_same_in_any_order():
    def sample(ids):
        return sample_queries((entry(str(i), f"text {i}") for i in ids), 5, seed=3)

    assert sample(range(100)) == sample(reversed(range(100)))
    assert len(sample(range(100))) == 5
