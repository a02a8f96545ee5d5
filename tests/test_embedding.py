"""Texts to vectors: the embedding model that comes along, and vectors kept on disk."""

import json
import shutil
from typing import Literal

import numpy as np
import pytest

from prefpipe import files
from prefpipe.files import WHOLE, DataError
from prefpipe.rag import embedding
from prefpipe.rag.documents import content_hash, to_documents
from prefpipe.rag.embedding import (
    DocumentVectors,
    SentenceEmbedder,
    VectorCache,
    check_finite,
    model_folder,
)
from prefpipe.rows import Entry
from tests.rag_helpers import ROWS, WordEmbedder

# ---- vectors on disk


def test_the_cache_gives_back_what_was_put_in_also_after_it_was_closed(tmp_path):
    embedder = WordEmbedder()
    texts = [text for row in ROWS for text in row]
    vectors = embedder.embed(texts, "document")
    hashes = [content_hash(text) for text in texts]
    with VectorCache(tmp_path / "v", embedder) as cache:
        cache.add(hashes[:7], vectors[:7])
        cache.add(hashes[7:], vectors[7:])
    with VectorCache(tmp_path / "v", embedder) as cache:
        order = [11, 0, 6]
        vectors_again = cache.get([bytes.fromhex(hashes[i]) for i in order])
        assert len(cache) == len(texts)
    assert np.array_equal(vectors_again, vectors[order])


def test_a_kill_costs_the_cache_only_the_batch_that_it_hit(tmp_path):
    embedder = WordEmbedder()
    hashes = [content_hash(str(i)) for i in range(10)]
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
        check_finite(vectors, ["first", "second"], "m")


def test_documents_are_embedded_in_batches_without_those_that_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH", 2)
    texts = ["one", "two words", "three", "four " * 60, "five"]
    rows = [to_documents(Entry(id=t, query="", code=t, description="", keywords=[])) for t in texts]
    embedder = WordEmbedder()
    with VectorCache(tmp_path / "v", embedder) as cache:
        cache.add([content_hash("two words")], embedder.embed(["two words"], "document"))
        vectors = DocumentVectors(embedder, cache, WHOLE.owns)
        for row in rows:
            vectors.add(row)
        assert len(cache) == 4  # the last document waits for a second one
        vectors.embed_waiting()
        assert embedder.embedded == ["two words", "one", "three", ("four " * 60).strip(), "five"]
        assert (len(vectors), vectors.cut) == (5, 1)
        (block,) = vectors
    expected = WordEmbedder().embed([row[0].text for row in rows], "document")
    assert np.allclose(block, expected, atol=1e-6)


# ---- the embedding model that comes along


def test_the_default_embedding_model_comes_as_a_package_and_refuses_unknown_names():
    folder = model_folder("all-MiniLM-L6-v2")
    assert folder is not None and (folder / "model.safetensors").is_file()
    assert files.hash_path(folder)
    with pytest.raises(DataError, match="no-such-model: no such folder"):
        SentenceEmbedder("no-such-model")


def test_a_hub_model_is_known_by_its_revision(tmp_path, monkeypatch):
    packaged = model_folder("all-MiniLM-L6-v2")
    assert packaged is not None
    repository, revision = tmp_path / "models--some--model", "0123456789" * 4
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / revision).symlink_to(packaged)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert SentenceEmbedder("some/model").identity == f"some/model@{revision}"


def test_the_default_model_embeds_as_sentence_transformers_does():
    from sentence_transformers import SentenceTransformer

    texts = ["add two numbers", "word " * 300]
    embedder = SentenceEmbedder("all-MiniLM-L6-v2")
    direct = SentenceTransformer(str(model_folder("all-MiniLM-L6-v2")))
    expected = direct.encode(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(embedder.embed(texts, "query"), expected, atol=1e-5)
    assert embedder.dimension == 384
    # 256 tokens are read: 254 and two special ones
    assert [len(parts) for parts in embedder.windows([*texts, "word " * 254])] == [1, 2, 1]
    assert embedder.windows([]) == []  # of queries that were all left out


def test_prompts_stand_before_queries_and_documents(tmp_path):
    """As texts that begin with them: from the settings (E5), else from the model's configuration."""
    plain = SentenceEmbedder("all-MiniLM-L6-v2")
    e5: dict[Literal["query", "document"], str] = {"query": "query: ", "document": "passage: "}
    given = SentenceEmbedder("all-MiniLM-L6-v2", dict(e5.items()))
    folder = tmp_path / "e5"
    shutil.copytree(str(model_folder("all-MiniLM-L6-v2")), folder)
    path = folder / "config_sentence_transformers.json"
    # a model that says "passage", and by the way of a model without a word of its own
    path.write_text(json.dumps({"prompts": {"query": "query: ", "passage": "passage: "}}))
    for embedder in (
        given,
        SentenceEmbedder(str(folder)),
        SentenceEmbedder(str(folder), dict(e5.items())),
    ):
        for kind, prompt in e5.items():
            vector = embedder.embed(["add two numbers"], kind)
            assert np.allclose(vector, plain.embed([prompt + "add two numbers"], kind), atol=1e-5)
        assert len(embedder.windows(["word " * 253])[0]) == 2  # no room beside the prompt
    assert len(plain.windows(["word " * 253])[0]) == 1
    off = SentenceEmbedder(str(folder), {"document": ""})
    assert np.allclose(off.embed(["a"], "document"), plain.embed(["a"], "document"), atol=1e-5)
    assert len({e.identity for e in (plain, given, off)}) == 3  # each has a store of its own


def test_the_windows_of_a_long_text_hold_all_of_it_and_none_is_cut():
    embedder = SentenceEmbedder("all-MiniLM-L6-v2")
    text = " ".join(f"number{k} is written down," for k in range(400))
    (parts,) = embedder.windows([text])
    assert text.startswith(parts[0]) and text.endswith(parts[-1])
    missing = [k for k in range(400) if f"number{k} is" not in " ".join(parts)]
    assert len(missing) < len(parts)  # those that a window's end cuts
    assert all(embedder.windows([part]) == [[part]] for part in parts)
    assert len(parts) == -(-len(embedder._model.tokenizer(text)["input_ids"]) // 252)
