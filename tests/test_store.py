"""A store opened: what it finds, reads, and refuses."""

import faiss
import numpy as np
import pytest

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.rag.index import IndexFacts
from prefpipe.rag.store import DOCUMENTS, Manifest, VectorStore, read_manifest
from prefpipe.rows import Document


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
