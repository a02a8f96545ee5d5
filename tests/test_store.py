"""A store opened: what it finds, reads, and refuses."""

import json

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.rag.index import IndexFacts
from prefpipe.rag.store import DOCUMENTS, Manifest, VectorStore, read_manifest
from prefpipe.rows import Document
from tests.rag_helpers import WordEmbedder, build_store


def test_a_query_whose_probed_lists_are_empty_still_finds_its_document(tmp_path):
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(2), 2, 2, faiss.METRIC_INNER_PRODUCT)
    quantizer = faiss.downcast_index(index.quantizer)
    quantizer.add(np.array([[1, 0], [0, 1]], dtype=np.float32))
    index.is_trained = True
    index.add(np.array([[0, 1]], dtype=np.float32))
    store = object.__new__(VectorStore)
    facts = IndexFacts(kind="ivf", lists=2, probed_lists=1)
    store.index = index
    store.manifest = Manifest(
        embedding_model="m",
        embedding_identity="m",
        dimension=2,
        count=1,
        content_hash="",
        index=facts,
    )
    assert store.search(np.array([[1, 0]], dtype=np.float32), 1)[1].tolist() == [[0]]
    assert index.nprobe == 1


def test_documents_are_read_by_their_row_wherever_it_stands_in_the_file(tmp_path):
    """Row groups are of 1,000 rows; asked for in any order, some of them twice."""
    rows = [
        Document(id=f"d{n}", row_id=f"d{n}", start=0, text=str(n), content_hash="00")
        for n in range(2500)
    ]
    files.write_rows(tmp_path / DOCUMENTS, rows, Document)
    facts = IndexFacts(kind="exact")
    manifest = Manifest(
        embedding_model="m",
        embedding_identity="m",
        dimension=2,
        count=2500,
        content_hash="",
        index=facts,
    )
    store = VectorStore(tmp_path, None, manifest)
    asked = np.array([2499, 0, 1000, 999, 0, 1999])
    assert store.documents(asked) == {int(row): rows[row] for row in asked}
    assert store.documents([]) == {}


def test_an_index_file_with_a_pickle_in_it_is_no_index(tmp_path):
    import pickle

    (tmp_path / "index.faiss").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RuntimeError):
        faiss.read_index(str(tmp_path / "index.faiss"))
    (tmp_path / "index.pkl").write_bytes(b"x")
    with pytest.raises(DataError, match="pickled store"):
        read_manifest(tmp_path)


# ---- stores that are damaged


def _rewrite(path, change):
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(change(table), path)


def _column(name, values):
    def change(table):
        index = table.schema.get_field_index(name)
        return table.set_column(index, name, pyarrow.array(values(table.num_rows)))

    return change


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "text": lambda path: path.write_text("text"),
    "no id": lambda path: _rewrite(path, lambda table: table.drop_columns(["id"])),
    "no text": lambda path: _rewrite(path, lambda table: table.drop_columns(["text"])),
    "no hash": lambda path: _rewrite(path, lambda table: table.drop_columns(["content_hash"])),
    "hash null": lambda path: _rewrite(path, _column("content_hash", lambda n: [None] * n)),
    "text null": lambda path: _rewrite(path, _column("text", lambda n: [None] * n)),
    "text number": lambda path: _rewrite(path, _column("text", range)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_documents_are_a_sentence_with_their_file(tmp_path, damage):
    folder = build_store(tmp_path)
    DAMAGES[damage](folder / "documents.parquet")
    with pytest.raises(DataError, match="build the store again") as error:
        VectorStore.open(folder, WordEmbedder()).documents([0, 1])
    assert str(folder) in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("column", ["id", "text"])
def test_a_text_that_is_no_utf_8_is_a_sentence(tmp_path, column):
    folder = build_store(tmp_path)

    def spoil(table):
        wrong = pyarrow.array([b"\xe4"] * table.num_rows).view("string")
        return table.set_column(table.schema.get_field_index(column), column, wrong)

    _rewrite(folder / "documents.parquet", spoil)
    with pytest.raises(DataError, match=r"documents\.parquet: .* no UTF-8; build the store again"):
        VectorStore.open(folder, WordEmbedder()).documents([0, 1])


def test_a_column_more_than_wanted_is_left_alone(tmp_path):
    folder = build_store(tmp_path)
    path = folder / "documents.parquet"
    _rewrite(path, lambda table: table.append_column("more", pyarrow.array(range(table.num_rows))))
    assert len(VectorStore.open(folder, WordEmbedder()).documents([0, 1])) == 2


def test_an_index_of_another_kind_or_without_numbers_is_a_sentence(tmp_path):
    folder = build_store(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    other = manifest | {"index": manifest["index"] | {"kind": "ivf", "lists": 2, "probed_lists": 1}}
    (folder / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="build the store again"):
        VectorStore.open(folder, WordEmbedder())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    index = faiss.IndexFlatIP(64)
    index.add(np.full((manifest["count"], 64), np.nan, np.float32))
    faiss.write_index(index, str(next(folder.glob("*.faiss"))))
    store = VectorStore.open(folder, WordEmbedder())
    with pytest.raises(DataError, match=r"holds NaN.*build the store again"):
        store.search(np.ones((1, 64), np.float32), 2)
