"""Entry rows to documents: what is embedded, found, and shown to the model as context."""

import hashlib
from collections.abc import Iterable

from prefpipe.near_duplicates import EarlierDocuments
from prefpipe.rows import Document, Entry, Reject


def to_text(entry: Entry) -> str:
    """The description, then the code; the code alone where it holds the description already."""
    description, code = entry.description.strip(), entry.code.strip()
    if not description or " ".join(description.split()) in " ".join(code.split()):
        return code
    return f"{description}\n\n{code}".strip()


def to_documents(entry: Entry, chunk: int | None = None, overlap: int = 0) -> list[Document]:
    """The row as one document; with chunk, as windows of so many characters that overlap. A window
    ends at the last white space of its second half, where there is one."""
    text = to_text(entry)
    if chunk is None or len(text) <= chunk:
        return [_document(entry.id, entry.id, 0, text)]
    documents, start, end = [], 0, 0
    while end < len(text):
        end = start + chunk
        if end < len(text):
            second_half = range(end, start + chunk // 2, -1)
            end = next((k for k in second_half if text[k].isspace()), end)
        id = f"{entry.id}#{len(documents)}"
        documents.append(_document(id, entry.id, start, text[start:end]))
        start = max(end - overlap, start + 1)
    return documents


def _document(id: str, row_id: str, start: int, text: str) -> Document:
    return Document(id=id, row_id=row_id, start=start, text=text, content_hash=content_hash(text))


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


def id_lines(ids: Iterable[str], content_hashes: Iterable[str]) -> bytes:
    """What a store's content_hash is the sha256 of: a line for each of its documents, in order."""
    return "".join(map("{}\t{}\n".format, ids, content_hashes)).encode()
