"""build_vector_store as a user runs it, with an embedder that needs no model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import build_vector_store
from build_vector_store import Settings
from prefpipe.files import DataError
from prefpipe.rag import embedding
from prefpipe.rag import index as rag_index
from prefpipe.rag.store import DOCUMENTS, INDEX, MANIFEST, VectorStore
from tests.rag_helpers import ROWS, WordEmbedder, sum_of_words, write_table

ROOT = Path(__file__).parent.parent


def settings(tmp_path, **other) -> Settings:
    return Settings(input=tmp_path / "t.csv", output=tmp_path / "store", **other)


def build(s: Settings) -> WordEmbedder:
    embedder = WordEmbedder()
    build_vector_store.main(s, embedder)
    return embedder


def contents(folder):
    names = (INDEX, DOCUMENTS, MANIFEST)
    return [(folder / name).read_bytes() for name in names]


def rejects(s):
    lines = (s.output / "build_vector_store.rejects.jsonl").read_text().splitlines()
    return {(row := json.loads(line))["id"]: row["reason"] for line in lines}


def test_each_query_finds_the_document_of_its_row(tmp_path, capsys):
    write_table(tmp_path / "t.csv")
    s = settings(tmp_path)
    embedder = build(s)
    store = VectorStore.open(s.output, embedder)
    scores, rows = store.search(embedder.embed([r[1] for r in ROWS], "query"), 2)
    found = store.documents(rows.ravel())
    assert [found[row].id for row in rows[:, 0]] == [r[0] for r in ROWS]
    text = found[0].text
    assert text == "The sum of two numbers.\n\ndef add(a, b):\n    return a + b"
    query, by_hand = sum_of_words(ROWS[0][1]), sum_of_words(text)
    cosine = query @ by_hand / np.linalg.norm(query) / np.linalg.norm(by_hand)
    assert scores[0, 0] == pytest.approx(cosine, abs=1e-5)
    assert "5 rows read = 5 kept + 0 left out" in capsys.readouterr().out


def test_the_manifest_says_what_the_store_is(tmp_path):
    write_table(tmp_path / "t.csv")
    s = settings(tmp_path)
    build(s)
    manifest = json.loads((s.output / "manifest.json").read_text())
    assert manifest | {"content_hash": ""} == {
        "version": 1,
        "embedding_model": "words",
        "embedding_identity": "words-64",
        "prompts": {},
        "dimension": 64,
        "metric": "inner_product",
        "normalised": True,
        "count": 5,
        "content_hash": "",
        "index": {
            "kind": "exact",
            "lists": None,
            "probed_lists": None,
            "recall_at_1": 1.0,
            "recall_queries": 0,
        },
    }
    assert sorted(p.name for p in s.output.iterdir() if not p.name.startswith(".")) == [
        "build_vector_store.meta.json",
        "build_vector_store.rejects.jsonl",
        "documents.parquet",
        "index.faiss",
        "manifest.json",
    ]


def test_a_second_run_embeds_only_new_and_changed_rows(tmp_path):
    write_table(tmp_path / "t.csv")
    s = settings(tmp_path)
    assert len(build(s).embedded) == 5
    assert build(s).embedded == []  # nothing changed
    changed = ("add", "add two numbers", "def add(a, b):\n    return b + a", "The sum, turned.")
    new = ("new", "something new", "pass", "Nothing is done.")
    write_table(tmp_path / "t.csv", [changed, *ROWS[2:], new])
    assert build(s).embedded == ["The sum, turned.\n\n" + changed[2], "Nothing is done.\n\npass"]
    incremental = contents(s.output)
    assert len(build(s.model_copy(update={"overwrite": True})).embedded) == 5
    assert contents(s.output) == incremental


def test_a_run_stopped_half_way_ends_in_the_same_bytes_and_embeds_nothing_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "BATCH", 2)
    write_table(tmp_path / "t.csv")
    whole = settings(tmp_path)
    build(whole)
    stopped = whole.model_copy(update={"output": tmp_path / "stopped"})

    class Dying(WordEmbedder):
        def embed(self, texts, kind):
            if len(self.embedded) >= 4:
                raise KeyboardInterrupt
            return super().embed(texts, kind)

    first = Dying()
    with pytest.raises(KeyboardInterrupt):
        build_vector_store.main(stopped, first)
    with pytest.raises(DataError, match="no finished vector store"):
        VectorStore.open(stopped.output, first)
    second = build(stopped)
    assert contents(stopped.output) == contents(whole.output)
    assert len(first.embedded) + len(second.embedded) == 5
    assert not list(stopped.output.glob(".*"))


def test_a_build_killed_at_every_step_ends_in_the_same_bytes_and_embeds_nothing_twice(tmp_path):
    write_table(tmp_path / "t.csv")
    command = [sys.executable, "-m", "tests.killed_runs", "build_vector_store", str(tmp_path)]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # three batches, and the renaming of documents, rejects, index, manifest and meta
    assert int(shown.split()[-2]) >= 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    done = [(tmp_path / f"{name}.done.txt").read_text() for name in ("killed", "whole")]
    assert sorted(done[0].splitlines()) == sorted(done[1].splitlines())
    assert len(done[1].splitlines()) == 5
    assert not list(tmp_path.glob("*/.*"))


def test_documents_without_queries_make_a_store(tmp_path):
    rows = [(id, code, description) for id, _, code, description in ROWS]
    write_table(tmp_path / "t.csv", rows, ("id", "code", "description"))
    with pytest.raises(DataError, match=r"'query' is missing.*None for one that the table lacks"):
        build(settings(tmp_path))
    s = settings(tmp_path, query_column=None)
    assert len(build(s).embedded) == 5
    with pytest.raises(DataError, match=r"no query to measure an ivf index with.*--index exact"):
        build(settings(tmp_path, query_column=None, index="ivf", overwrite=True))


def test_an_approximate_index_states_its_recall_against_exact_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rag_index, "EXACT_UP_TO", 399)
    rows = [(str(i), f"word{i} other{i % 7}", f"word{i} more{i}", f"text{i}") for i in range(400)]
    write_table(tmp_path / "t.csv", rows)
    s = settings(tmp_path, near_duplicate=None, target_recall=0.9)
    embedder = build(s)
    store = VectorStore.open(s.output, embedder)
    facts = store.manifest.index
    assert (facts.kind, facts.lists, facts.recall_queries) == ("ivf", 10, 400)
    vectors = store.vectors(range(400))
    queries = embedder.embed([row[1] for row in rows], "query")
    best = (queries @ vectors.T).max(axis=1)
    recall = (store.search(queries, 1)[0][:, 0] >= best - 1e-5).mean()
    assert recall == pytest.approx(facts.recall_at_1, abs=0.003)
    assert recall >= 0.9
    assert f"recall@1 against exact search {facts.recall_at_1}" in capsys.readouterr().out


def test_what_is_left_out_is_told_by_reason(tmp_path, capsys):
    long = " ".join(f"w{i}" for i in range(40_000))
    assert len(long) > 200_000
    rows = [
        *ROWS,
        ("same", "q", ROWS[0][2], ROWS[0][3]),
        ("near", "q", ROWS[0][2], ROWS[0][3].upper()),
        ("none", "q", "", "nan"),
        ("long", "q", long, ""),
    ]
    write_table(tmp_path / "t.csv", rows)
    s = settings(tmp_path)
    build(s)
    assert rejects(s) == {
        "same": "equal_document",
        "near": "nearly_equal_document",
        "none": "empty_document",
        "long": "too_long",
    }
    assert "9 rows read = 5 kept + 4 left out" in capsys.readouterr().out


def test_a_long_document_is_found_by_its_chunk(tmp_path):
    filler = "nothing to see here. " * 5000
    long = f"{filler}The quick zebra jumps. {filler}"
    assert len(long) > 200_000
    write_table(tmp_path / "t.csv", [*ROWS, ("long", "q", long, "")])
    s = settings(tmp_path, chunk_characters=100, chunk_overlap_characters=40, near_duplicate=None)
    embedder = build(s)
    store = VectorStore.open(s.output, embedder)
    _, rows = store.search(embedder.embed(["quick zebra jumps"], "query"), 1)
    found = store.documents(rows[0])[int(rows[0, 0])]
    assert found.row_id == "long" and "quick zebra jumps" in found.text
    assert found.text == long[found.start :][: len(found.text)]


def test_documents_that_the_model_reads_in_part_are_counted(tmp_path, capsys):
    write_table(tmp_path / "t.csv", [*ROWS, ("x", "q", "many words " * 30, "")])
    build(settings(tmp_path))
    assert "reads the first 50 tokens: 1 documents are longer" in capsys.readouterr().out


def test_a_store_is_not_searched_with_another_model(tmp_path):
    write_table(tmp_path / "t.csv")
    s = settings(tmp_path)
    embedder = build(s)
    embedder.identity, embedder.name = "other-64", "other"
    with pytest.raises(DataError, match=r"was built with words .*, not with other"):
        VectorStore.open(s.output, embedder)


def test_files_of_two_builds_are_not_taken_for_one_store(tmp_path):
    write_table(tmp_path / "t.csv")
    s = settings(tmp_path)
    embedder = build(s)
    table = pq.read_table(s.output / "documents.parquet")
    pq.write_table(table.take([1, 0, 2, 3, 4]), s.output / "documents.parquet")
    with pytest.raises(DataError, match="not of one build"):
        VectorStore.open(s.output, embedder)


def test_an_empty_table_is_refused_and_leaves_no_store(tmp_path):
    write_table(tmp_path / "t.csv", [])
    with pytest.raises(DataError, match=r"t\.csv.*no row"):
        build(settings(tmp_path))
    write_table(tmp_path / "t.csv", [("a", "q", "", "")])
    with pytest.raises(SystemExit, match="not one of 1"):
        build(settings(tmp_path))
    with pytest.raises(DataError, match="run build_vector_store"):
        VectorStore.open(tmp_path / "store", WordEmbedder())


def test_other_settings_are_refused_without_overwrite(tmp_path):
    write_table(tmp_path / "t.csv")
    build(settings(tmp_path))
    with pytest.raises(SystemExit, match="near_duplicate"):
        build(settings(tmp_path, near_duplicate=None))


def test_an_overlap_of_more_than_half_a_chunk_is_refused(tmp_path):
    write_table(tmp_path / "t.csv")
    with pytest.raises(SystemExit, match="more than half"):
        build(settings(tmp_path, chunk_characters=100, chunk_overlap_characters=51))


def test_nothing_in_a_store_is_pickled_and_no_foreign_code_is_trusted(tmp_path):
    write_table(tmp_path / "t.csv")
    s = settings(tmp_path)
    build(s)
    starts = {path.name: path.read_bytes()[:4] for path in s.output.iterdir()}
    assert starts["index.faiss"] == b"IxFI"  # FAISS's own format: a flat inner-product index
    assert starts["documents.parquet"] == b"PAR1"
    assert not any(start[:1] == b"\x80" for start in starts.values())  # how a pickle begins
