"""Tables, documents, vectors and the index, each against a slower way or by hand."""

import json
import tracemalloc
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefpipe.rag.retrieval import Columns, Duplicates, VectorCache

from benchmarks.retrieval import measure
from prefpipe import files
from prefpipe.files import DataError
from prefpipe.rag import retrieval
from prefpipe.rows import Document, Entry
from tests.rag_helpers import ROWS, WordEmbedder, write_table

COLUMNS = Columns(query="query", code="code", description="description")


def entry(code="", description="", id="d1") -> Entry:
    return Entry(id=id, query="q", code=code, description=description, keywords=[])


def document(text: str, id: str = "d") -> Document:
    return retrieval.to_documents(entry(text, id=id))[0]


def read(path, columns=COLUMNS) -> list[Any]:
    return [row for _, row in retrieval.read_entries(path, columns)]


# ---- tables


def test_csv_parquet_and_jsonl_give_the_same_rows(tmp_path):
    path = write_table(tmp_path / "t.csv")
    table = pd.read_csv(path, dtype=str)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    rows = read(path)
    assert rows == read(tmp_path / "t.parquet") == read(tmp_path / "t.jsonl")
    assert [(r.id, r.query, r.code, r.description) for r in rows] == ROWS


def test_columns_go_by_the_names_in_the_settings(tmp_path):
    rows = [("7", "q", "a; b ,c")]
    path = write_table(tmp_path / "t.csv", rows, ("nr", "Frage", "Wörter"))
    (row,) = read(path, Columns(id="nr", query="Frage", keywords="Wörter"))
    assert (row.id, row.query, row.keywords) == ("7", "q", ["a", "b", "c"])


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = write_table(tmp_path / "t.csv", [("1", "x")], ("id", "question"))
    with pytest.raises(DataError, match=r"t\.csv:2: column 'query' is missing.*id, question"):
        read(path)


@pytest.mark.parametrize("text", ["", "\n\n", "id,query,code,description\n"])
def test_a_table_without_a_row_is_named(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"t\.csv: no row to read"):
        read(tmp_path / "t.csv")


def test_duplicate_ids_stop_with_both_lines(tmp_path):
    path = write_table(tmp_path / "t.csv", [ROWS[0], ROWS[1], ROWS[0]])
    with pytest.raises(DataError, match=r"t\.csv:6.*'add'.*t\.csv:2"):
        read(path)


def test_rows_without_an_id_get_one_of_their_content_and_copies_are_left_out(tmp_path):
    rows = [r[1:] for r in (ROWS[0], ROWS[1], ROWS[0])]
    found = read(write_table(tmp_path / "t.csv", rows, ("query", "code", "description")))
    assert found[0].id != found[1].id
    assert len(found[0].id) == 16
    assert isinstance(found[2], ValueError)
    again = read(write_table(tmp_path / "u.csv", rows[::-1], ("query", "code", "description")))
    assert again[0].id == found[0].id  # whatever stands around it


def test_null_and_nan_are_empty_and_other_types_are_named(tmp_path):
    lines = [
        {"id": "a", "query": None, "code": "x", "description": float("nan")},
        {"id": "b", "query": "nan", "code": 3, "description": ""},
        {"id": "c", "query": "q", "code": "x"},
        {"id": None, "query": "q", "code": "x", "description": ""},
        ["no", "object"],
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    first, *bad = read(path)
    assert (first.query, first.description) == ("", "")
    messages = [str(error) for error in bad]
    assert "code: found '3', wanted text" in messages[0]
    assert "id: found null" in messages[2]
    assert "found list" in messages[3]
    assert "not JSON" in messages[4]


def test_broken_quoting_and_a_wrong_encoding_name_the_line(tmp_path):
    path = write_table(tmp_path / "t.csv")
    path.write_text(path.read_text() + 'x,"never closed\n')
    with pytest.raises(DataError, match=r"t\.csv:\d+: broken CSV"):
        read(path)
    path.write_bytes("id,query,code,description\n1,Größe,x,y\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv:2: byte 4 is not UTF-8"):
        read(path)


# ---- documents


def test_the_description_is_not_said_twice():
    code = 'def f():\n    """Do\n    it."""'
    assert retrieval.to_text(entry(code, "Do it.")) == code
    assert retrieval.to_text(entry(code, "Another.")) == f"Another.\n\n{code}"
    assert retrieval.to_text(entry("", " Alone. ")) == "Alone."


@given(st.text(st.sampled_from("ab \n"), max_size=200), st.integers(5, 50), st.data())
def test_chunks_put_together_are_the_document(text, chunk, data):
    overlap = data.draw(st.integers(0, chunk // 2))
    whole = retrieval.to_text(entry(text))
    chunks = retrieval.to_documents(entry(text), chunk, overlap)
    rebuilt = ""
    for part in chunks:
        assert part.text == whole[part.start : part.start + len(part.text)]
        assert len(part.text) <= chunk
        assert part.start <= len(rebuilt)  # nothing is skipped
        rebuilt = rebuilt[: part.start] + part.text
    assert rebuilt == whole
    assert len({part.id for part in chunks}) == len(chunks)


def test_neighbouring_chunks_share_the_overlap():
    chunks = retrieval.to_documents(entry("x" * 100), 40, 10)
    assert [(c.id, c.start, len(c.text)) for c in chunks] == [
        ("d1#0", 0, 40),
        ("d1#1", 30, 40),
        ("d1#2", 60, 40),
    ]


def test_equal_and_nearly_equal_documents_are_found_and_different_ones_are_not():
    words = " ".join(f"word{i}" for i in range(300))
    seen = Duplicates(near=0.9)
    assert seen.find(document(words, "a")) is None
    assert seen.find(document(words, "b")) == ("equal", "a")
    assert seen.find(document(words.replace("word7 ", "WORD-7,  "), "c")) == ("nearly_equal", "a")
    assert seen.find(document(words.replace("word150 ", "other "), "d")) == ("nearly_equal", "a")
    half = " ".join(f"word{i}" for i in range(150)) + " and ".join(str(i) for i in range(150))
    assert seen.find(document(half, "e")) is None
    only_equal = Duplicates(near=None)
    assert only_equal.find(document(words, "a")) is None
    assert only_equal.find(document(words.upper(), "b")) is None


def test_a_header_that_many_share_hides_no_near_duplicate():
    header = " ".join(f"licence{i}" for i in range(60))
    texts = [header + "".join(f" d{n}word{i}" for i in range(60)) for n in range(40)]
    seen = Duplicates(near=0.9)
    assert [seen.find(document(text, str(n))) for n, text in enumerate(texts)] == [None] * 40
    for n in (0, 7, 20, 39):
        near = document(texts[n] + "!", f"near {n}")
        assert seen.find(near) == ("nearly_equal", str(n))


def test_a_document_costs_little_memory_however_long_it_is():
    texts = [" ".join(f"d{n}word{i}" for i in range(600)) for n in range(400)]
    seen = Duplicates(near=0.95)
    seen.find(document("what is imported and cached at the first call " * 400))
    tracemalloc.start()
    for n, text in enumerate(texts):
        seen.find(document(text, str(n)))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown / len(texts) < 1500  # bytes; 32 hashes are 256 of them


# ---- vectors


def test_the_cache_gives_back_what_was_put_in_also_after_it_was_closed(tmp_path):
    embedder = WordEmbedder()
    texts = [text for row in ROWS for text in row]
    vectors = embedder.embed(texts, "document")
    hashes = [retrieval.content_hash(text) for text in texts]
    with VectorCache(tmp_path / "v", embedder) as cache:
        cache.add(hashes[:7], vectors[:7])
        cache.add(hashes[7:], vectors[7:])
    with VectorCache(tmp_path / "v", embedder) as cache:
        order = [11, 0, 6]
        found = cache.get([bytes.fromhex(hashes[i]) for i in order])
        assert len(cache) == len(texts)
    assert np.array_equal(found, vectors[order])


def test_a_kill_costs_the_cache_only_the_batch_that_it_hit(tmp_path):
    embedder = WordEmbedder()
    hashes = [retrieval.content_hash(str(i)) for i in range(10)]
    vectors = np.arange(640, dtype=np.float32).reshape(10, 64)
    with VectorCache(tmp_path / "v", embedder) as cache:
        cache.add(hashes[:4], vectors[:4])
        whole = (tmp_path / "v").stat().st_size
        cache.add(hashes[4:], vectors[4:])
    data = (tmp_path / "v").read_bytes()
    for end in (whole + 5, whole + 700, len(data) - 1):
        (tmp_path / "v").write_bytes(data[:end])
        with VectorCache(tmp_path / "v", embedder) as cache:
            assert len(cache) == 4
            assert hashes[4] not in cache
            cache.add(hashes[4:], vectors[4:])
        assert (tmp_path / "v").read_bytes() == data


def test_vectors_of_another_model_are_not_mixed_in(tmp_path):
    embedder = WordEmbedder()
    with VectorCache(tmp_path / "v", embedder):
        pass
    embedder.identity = "another"
    with pytest.raises(DataError, match="another embedding model"):
        VectorCache(tmp_path / "v", embedder)


def test_a_vector_that_is_not_finite_is_refused_with_its_text():
    vectors = np.ones((2, 3), dtype=np.float32)
    vectors[1, 2] = np.nan
    with pytest.raises(DataError, match="NaN or infinity for 'second'"):
        retrieval.check_finite(vectors, ["first", "second"], "m")


# ---- the index


def clustered(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(40, 16))
    vectors = centres[rng.integers(0, 40, count)] + 0.5 * rng.normal(size=(count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def in_blocks(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[i : i + 300] for i in range(0, len(vectors), 300)]


def test_the_exact_index_finds_what_a_matrix_product_finds():
    vectors, queries = clustered(1000), clustered(50, seed=1)
    index = retrieval.build_index(in_blocks(vectors), 1000, 16, "exact")
    scores, rows = index.search(queries, 5)
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :5]
    assert np.array_equal(rows, expected)
    assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, expected, 1), atol=1e-5)


def test_an_approximate_index_is_tuned_to_the_recall_that_it_states():
    vectors, queries = clustered(4000), clustered(200, seed=1)
    index = retrieval.build_index(in_blocks(vectors), 4000, 16, "ivf")
    facts = retrieval.tune_index(index, queries, 0.97)
    best = np.argmax(queries @ vectors.T, axis=1)
    recall = (index.search(queries, 1)[1][:, 0] == best).mean()
    assert facts.recall_at_1 == pytest.approx(recall, abs=0.005)
    assert recall >= 0.97
    assert facts.lists == 102  # 4000 // 39, less than 4 sqrt(4000) = 252
    assert facts.probed_lists is not None and 1 < facts.probed_lists < 102
    index.nprobe = facts.probed_lists // 2
    assert (index.search(queries, 1)[1][:, 0] == best).mean() < 0.97  # no more than it takes


def test_a_query_whose_probed_lists_are_empty_still_finds_its_document(tmp_path):
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(2), 2, 2, faiss.METRIC_INNER_PRODUCT)
    quantizer = faiss.downcast_index(index.quantizer)
    quantizer.add(np.array([[1, 0], [0, 1]], dtype=np.float32))
    index.is_trained = True
    index.add(np.array([[0, 1]], dtype=np.float32))
    store = object.__new__(retrieval.Store)
    facts = retrieval.IndexFacts(kind="ivf", lists=2, probed_lists=1)
    store.index = index
    store.manifest = retrieval.Manifest(
        embedding_model="m",
        embedding_identity="m",
        dimension=2,
        count=1,
        content_hash="",
        index=facts,
    )
    assert store.search(np.array([[1, 0]], dtype=np.float32), 1)[1].tolist() == [[0]]
    assert index.nprobe == 1


def test_every_nth_vector_is_every_nth_whatever_the_blocks():
    vectors = np.arange(1000, dtype=np.float32)[:, None]
    assert np.array_equal(retrieval._every_nth(in_blocks(vectors), 7), vectors[::7])


def test_the_query_sample_is_the_same_in_any_order():
    def sample(ids):
        queries = retrieval.QuerySample(5, seed=3)
        for i in ids:
            queries.add(str(i), f"text {i}")
        return queries.texts()

    assert sample(range(100)) == sample(reversed(range(100)))
    assert len(sample(range(100))) == 5


def test_recall_and_reciprocal_rank_by_hand():
    hits = [["a", "b", "c"], ["x", "b", "c"], ["x", "y", "c"], ["x", "y", "z"]]
    assert measure(hits, ["a", "b", "c", "d"]) == {
        "recall_at_1": 1 / 4,
        "recall_at_5": 3 / 4,
        "mrr_at_10": round((1 + 1 / 2 + 1 / 3 + 0) / 4, 4),
    }


# ---- the embedding model that comes along


def test_the_default_embedding_model_comes_as_a_package_and_refuses_unknown_names():
    folder = retrieval.model_folder("all-MiniLM-L6-v2")
    assert folder is not None and (folder / "model.safetensors").is_file()
    assert files.hash_path(folder)
    with pytest.raises(DataError, match="no-such-model: no such folder"):
        retrieval.SentenceEmbedder("no-such-model")


def test_a_hub_model_is_known_by_its_revision(tmp_path, monkeypatch):
    packaged = retrieval.model_folder("all-MiniLM-L6-v2")
    assert packaged is not None
    repository, revision = tmp_path / "models--some--model", "0123456789" * 4
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / revision).symlink_to(packaged)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert retrieval.SentenceEmbedder("some/model").identity == f"some/model@{revision}"


def test_the_default_model_embeds_as_sentence_transformers_does():
    from sentence_transformers import SentenceTransformer

    texts = ["add two numbers", "word " * 300]
    embedder = retrieval.SentenceEmbedder("all-MiniLM-L6-v2")
    direct = SentenceTransformer(str(retrieval.model_folder("all-MiniLM-L6-v2")))
    expected = direct.encode(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(embedder.embed(texts, "query"), expected, atol=1e-5)
    assert embedder.dimension == 384
    assert embedder.count_cut(texts) == 1  # 256 tokens are read


def test_e10_an_index_file_with_a_pickle_in_it_is_no_index(tmp_path):
    import pickle

    (tmp_path / "index.faiss").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RuntimeError):
        faiss.read_index(str(tmp_path / "index.faiss"))
    (tmp_path / "index.pkl").write_bytes(b"x")
    with pytest.raises(DataError, match="pickled store"):
        retrieval.read_manifest(tmp_path)
