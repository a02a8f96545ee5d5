"""RAG pairs of a real model for reading: does a careful reader agree with which answer was chosen?

    uv sync --group real; S=../shared/data/cosqa_dev.csv
    uv run build_vector_store.py --input $S --output /tmp/rag/store
    uv run build_pairwise_prefs.py --input /tmp/rag/some.csv --store /tmp/rag/store --output /tmp/rag/pairs.jsonl \\
        --model SmolLM2-135M-Instruct --max-new-tokens 96 --min-margin 0.3    # some.csv: rows of $S
    uv run python -m benchmarks.real_rag /tmp/rag/pairs.jsonl > blind.txt      # A and B, in an order drawn by id
    uv run python -m benchmarks.real_rag /tmp/rag/pairs.jsonl --labels marks.csv --reader "who read"

marks.csv: a line `id,A`, `id,B` or `id,T` (neither is better) for each pair, made of blind.txt alone.
Writes benchmarks/results/real_rag.json and, for reading, real_rag.md. Pairs without a mark are left
out and counted. Not measured: whether the retrieved function answers (benchmarks.retrieval).
"""

import argparse
import csv
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, machine, write_results
from prefpipe import draws
from prefpipe.evaluation.metrics import wilson
from prefpipe.files import read_rows, write_text
from prefpipe.rows import RagPair, answer_of, flatten_turns


def sides(pair: RagPair) -> dict[str, str]:
    """A and B; which of them is the chosen one is drawn from the id."""
    texts = answer_of(pair.chosen), answer_of(pair.rejected)
    return dict(zip("AB", texts if chosen_side(pair) == "A" else texts[::-1], strict=True))


def chosen_side(pair: RagPair) -> str:
    return "A" if draws.coin(7, pair.id) else "B"


def context_of(pair: RagPair) -> str:
    return flatten_turns(pair.prompt).partition("\n[Question]")[0].removeprefix("[Context]").strip()


def blind(pairs: list[RagPair]) -> str:
    """What the reader gets."""
    shown = []
    for pair in pairs:
        texts = "\n".join(f"{name}: {text}" for name, text in sides(pair).items())
        shown.append(f"=== {pair.id}: {pair.question}\n{context_of(pair)[:600]}\n--\n{texts}\n")
    return "\n".join(shown)


def result(pairs: list[RagPair], marks: dict[str, str]) -> dict[str, Any]:
    """How often the reader's mark is the chosen side."""
    found = Counter(
        "neither" if mark == "T" else "agrees" if mark == chosen_side(pair) else "disagrees"
        for pair in pairs
        if (mark := marks.get(pair.id))
    )
    decided = found["agrees"] + found["disagrees"]
    share, whole = (wilson(found["agrees"], count) for count in (decided, found.total()))
    return {
        "pairs": len(pairs),
        "marked": found.total(),
        **{name: found[name] for name in ("agrees", "disagrees", "neither")},
        "agreement_of_decided": share.value,
        "interval_95": [share.low, share.high],
        "agreement_of_all": whole.value,
        "interval_95_of_all": [whole.low, whole.high],
    }


def page(pairs: list[RagPair], marks: dict[str, str], numbers: dict[str, Any]) -> str:
    """The pairs as Markdown."""

    def quoted(text: str) -> str:
        return "\n".join(f"> {line}" for line in text.strip()[:500].splitlines())

    head = (
        f"# RAG pairs of a real model\n\n{numbers['model']} on CoSQA, {numbers['queries']} queries, "
        f"{numbers['pairs']} pairs kept. Read blind by {numbers['reader']}: of {numbers['marked']} marked pairs "
        f"the chosen answer was found better in {numbers['agrees']}, the rejected one in "
        f"{numbers['disagrees']}, neither in {numbers['neither']}.\n"
    )
    words = {"T": "neither", "A": "", "B": ""}
    parts = [head]
    for pair in pairs:
        mark = marks.get(pair.id, "")
        said = words.get(mark, "") or ("chosen" if mark == chosen_side(pair) else "rejected")
        parts.append(
            f"## {pair.question}\n\n{pair.id}, margin {pair.margin:.2f}; the reader: {said if mark else 'not read'}\n\n"
            f"Context\n\n{quoted(context_of(pair))}\n\nChosen\n\n{quoted(answer_of(pair.chosen))}\n\n"
            f"Rejected\n\n{quoted(answer_of(pair.rejected))}\n"
        )
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--reader", default="a reader")
    parser.add_argument("--queries", type=int, default=0, help="that were asked")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    a = parser.parse_args()
    pairs = list(read_rows(a.pairs, RagPair))
    if not a.labels:
        print(blind(pairs))
        return
    with open(a.labels, encoding="utf-8", newline="") as file:
        marks = {id: mark.strip() for id, mark in csv.reader(file)}
    numbers = {"model": a.model, "queries": a.queries, "reader": a.reader, **result(pairs, marks)}
    write_results("real_rag", {"machine": machine(), **numbers, "marks": marks})
    write_text(RESULTS / "real_rag.md", page(pairs, marks, numbers))


if __name__ == "__main__":
    main()
