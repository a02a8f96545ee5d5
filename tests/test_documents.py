"""Rows to documents: what text they have, how they are cut, which are left out."""

from hypothesis import given
from hypothesis import strategies as st

from prefpipe.near_duplicates import EarlierDocuments
from prefpipe.rag.documents import to_documents, to_text, without_duplicates
from prefpipe.rows import Entry, Reject


def entry(code="", description="", id="d1") -> Entry:
    return Entry(id=id, query="q", code=code, description=description, keywords=[])


def test_the_description_is_not_said_twice():
    code = 'def f():\n    """Do\n    it."""'
    assert to_text(entry(code, "Do it.")) == code
    assert to_text(entry(code, "Another.")) == f"Another.\n\n{code}"
    assert to_text(entry("", " Alone. ")) == "Alone."


@given(st.text(st.sampled_from("ab \n"), max_size=200), st.integers(5, 50), st.data())
def test_chunks_put_together_are_the_document(text, chunk, data):
    overlap = data.draw(st.integers(0, chunk // 2))
    whole = to_text(entry(text))
    chunks = to_documents(entry(text), chunk, overlap)
    rebuilt = ""
    for part in chunks:
        assert part.text == whole[part.start : part.start + len(part.text)]
        assert len(part.text) <= chunk
        assert part.start <= len(rebuilt)  # nothing is skipped
        rebuilt = rebuilt[: part.start] + part.text
    assert rebuilt == whole
    assert len({part.id for part in chunks}) == len(chunks)


def test_neighbouring_chunks_share_the_overlap():
    chunks = to_documents(entry("x" * 100), 40, 10)
    assert [(c.id, c.start, len(c.text)) for c in chunks] == [
        ("d1#0", 0, 40),
        ("d1#1", 30, 40),
        ("d1#2", 60, 40),
    ]


def test_a_row_keeps_the_chunks_that_no_earlier_row_has():
    earlier = EarlierDocuments(near=None)
    first, second = to_documents(entry("x" * 40 + "y" * 40), 40), to_documents(entry("x" * 80), 40)
    assert without_duplicates(entry(id="a"), first, earlier, "t:1") == first
    gone = without_duplicates(entry(id="b"), second, earlier, "t:2")
    assert gone == Reject(id="b", reason="equal_document", detail="t:2: like d1#0")
    third = to_documents(entry("y" * 40 + "z" * 40), 40)
    assert without_duplicates(entry(id="c"), third, earlier, "t:3") == third[1:]
