"""The second table of docs/reliability.md, of what the commands for bad inputs, hostile replies and slow texts wrote.

    python -m tests.bad_inputs --models --cases 5200 --results benchmarks/results/bad_inputs.json
    python -m tests.hostile_replies --results benchmarks/results/hostile_replies.json
    python -m tests.slow_texts --results benchmarks/results/slow_texts.json
    python -m tests.reliability_page

The first table is tests/campaign.py's.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.bad_inputs import KINDS
from tests.campaign import PAGE, ROOT

BEGIN, END = (
    "<!-- made by tests/reliability_page.py -->\n",
    "<!-- end of tests/reliability_page.py -->",
)
RESULTS = ROOT / "benchmarks/results"


def source(results: Mapping[str, Any]) -> str:
    return f"Commit {results['commit']}, {results['date']}, {results['machine']['processor']}."


def of_runs(results: Mapping[str, Any]) -> str:
    """When and of which commits the bad inputs were, and what they found."""
    commits = ", ".join(dict.fromkeys(run["commit"] for run in results["runs"]))
    mended = len(results["mended"])
    found = f" {mended} failures were found, and mended or (one) the check was wrong; the table has what the same cases end in now." if mended else ""  # fmt: skip
    return f"Commits {commits}, {results['date']}, {results['machine']['processor']}.{found}"


def bad_inputs_table(results: Mapping[str, Any]) -> str:
    """How the stages answered damaged files and odd settings."""
    lines = [f"| bad inputs of | cases | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    total: Counter[str] = Counter()
    for stage, counts in results["stages"].items():
        total.update(counts)
        cells = [sum(counts.values()), *(counts[kind] for kind in KINDS)]
        lines.append(f"| {stage} | {' | '.join(map(str, cells))} |")
    cells = [total.total(), *(total[kind] for kind in KINDS)]
    return "\n".join([*lines, f"| all | {' | '.join(map(str, cells))} |"])


def hostile_table(results: Mapping[str, Any]) -> str:
    """How the stages that ask a server answered its hostile replies."""
    lines = ["| hostile replies to | modes | failures |", "|---|---|---|"]
    for stage, counts in results["stages"].items():
        lines.append(f"| {stage} | {counts['modes']} | {counts['failures']} |")
    modes = sum(counts["modes"] for counts in results["stages"].values())
    return "\n".join([*lines, f"| all | {modes} | {len(results['failures'])} |"])


def slow_words(results: Mapping[str, Any]) -> str:
    """How long parsers took."""
    name, worst = max(results["slowest"].items(), key=lambda one: one[1]["seconds"])
    return (
        f"Slow texts: {results['parsers']} parsers, each with {results['texts']} texts of up to "
        f"{results['bytes']:,} bytes: {len(results['slow'])} took more than a second for a million "
        f"(the longest: {name}, {worst['seconds']:.2f} s of CPU, for {worst['text']})."
    )


def page(text: str, made: str) -> str:
    """The page with that between the marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{made}{END}{tail}"


def main() -> None:
    read = {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bad_inputs", "hostile_replies", "slow_texts")
    }
    parts = [
        of_runs(read["bad_inputs"]), bad_inputs_table(read["bad_inputs"]), source(read["hostile_replies"]),
        hostile_table(read["hostile_replies"]), source(read["slow_texts"]), slow_words(read["slow_texts"]),
    ]  # fmt: skip
    made = "\n\n".join(parts) + "\n"
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
