"""Queries to contexts: what the store has nearest to each, as the prompt shows it."""

from collections.abc import Iterable, Sequence

from prefpipe.files import RowLog
from prefpipe.questions import in_blocks
from prefpipe.rag.embedding import Embedder
from prefpipe.rag.store import VectorStore
from prefpipe.rows import Entry, Retrieved
from prefpipe.screen import progress
from prefpipe.templates import escape_markers, load_template

BLOCK = 128
"""Queries that are embedded and searched at once."""


def retrieve(
    entries: Iterable[Entry],
    store: VectorStore,
    embedder: Embedder,
    log: RowLog[Retrieved],
    *,
    documents: int,
    characters: int,
) -> None:
    """Search the contexts that the log lacks, each of so many documents and characters at most."""
    for block in in_blocks(progress(entries, None, "contexts"), BLOCK):
        if all(entry.id in log for entry in block):
            continue
        # a block that a kill hit is embedded whole again: another batch gives other last digits
        vectors = embedder.embed([entry.query for entry in block], "query")
        scores, rows = store.search(vectors, documents)
        documents_at = store.documents(rows[rows >= 0])
        for entry, own_scores, own_rows in zip(block, scores, rows, strict=True):
            if entry.id in log:
                continue
            nearest = [int(row) for row in own_rows if row >= 0]
            shown = [documents_at[row] for row in nearest]
            context, is_cut = build_context([document.text for document in shown], characters)
            row = Retrieved(
                id=entry.id,
                document_ids=[document.id for document in shown],
                store_rows=nearest,
                scores=[round(float(score), 4) for score in own_scores[: len(nearest)]],
                context=context,
                is_cut=is_cut,
            )
            log.add(row)


def build_context(texts: Sequence[str], most: int) -> tuple[str, bool]:
    """The documents with a blank line between them, and whether they had to be cut."""
    context = "\n\n".join(texts)
    if len(context) <= most:
        return context, False
    last_space = max(context.rfind(" ", 0, most + 1), context.rfind("\n", 0, most + 1))
    return context[: last_space if last_space > 0 else most].rstrip(), True


def build_prompt(context: str, question: str, template: str) -> str:
    """The user turn: context, question, instruction, each behind its tag."""
    values = {"context": escape_markers(context), "question": escape_markers(question)}
    return load_template(template, frozenset(values)).render(**values)
