"""Entry rows to documents: what is embedded, found, and shown to the model as context."""

import hashlib
from collections.abc import Sequence

from prefpipe.near_duplicates import EarlierDocuments
from prefpipe.rows import Document, Entry, Reject


def to_text(entry: Entry) -> str:
    """The description, then the code; the code alone where it holds the description already."""
    description, code = entry.description.strip(), entry.code.strip()
    if not description or " ".join(description.split()) in " ".join(code.split()):
        return code
    return f"{description}\n\n{code}".strip()


def to_documents(entry: Entry, chunk: int | None = None, overlap: int = 0) -> list[Document]:
    """The row as one document; with chunk, as windows of so many characters that overlap.

    A window ends at the last white space of its second half, where there is one.
    """
    text = to_text(entry)
    if chunk is None or len(text) <= chunk:
        return [_document(entry.id, entry.id, 0, text)]
    documents, start = [], 0
    while True:
        end = start + chunk
        if end < len(text):
            end = _last_space(text, start + chunk // 2, end)
        documents.append(
            _document(f"{entry.id}#{len(documents)}", entry.id, start, text[start:end])
        )
        if end >= len(text):
            return documents
        start = max(end - overlap, start + 1)


def _document(id: str, row_id: str, start: int, text: str) -> Document:
    return Document(id=id, row_id=row_id, start=start, text=text, content_hash=content_hash(text))


def _last_space(text: str, start: int, end: int) -> int:
    """Where the last white space up to end is; end itself where there is none behind start."""
    spaces = (position for position in range(end, start, -1) if text[position].isspace())
    return next(spaces, end)


def content_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def without_duplicates(
    entry: Entry, documents: list[Document], earlier: EarlierDocuments, place: str
) -> list[Document] | Reject:
    """The row's documents that are like no earlier one; a Reject where all are like one."""
    like = [(document, earlier.find(document)) for document in documents]
    if kept := [document for document, same in like if same is None]:
        return kept
    kind, other = like[0][1] or ("equal", "")
    return Reject(id=entry.id, reason=f"{kind}_document", detail=f"{place}: like {other}")


class ContentHash:
    """sha256 of the documents' ids and content hashes, in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, ids: Sequence[str], content_hashes: Sequence[str]) -> None:
        for pair in zip(ids, content_hashes, strict=True):
            self._hash.update("\t".join(pair).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
