"""The ledger of a run: what was read, kept and left out, and whatever else a stage counts.

All of it are sums over rows, so the ledgers of shards add up to that of one run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefpipe.files.shards import counter_of_json, counter_to_json


class Ledger:
    """Counts of one run: read = kept + left out by reason."""

    def __init__(self, outputs: Iterable[Path]) -> None:
        self.read_count = self.kept_count = 0
        self.written = Counter({path.name: 0 for path in outputs})
        """Rows by output, in the order in which the stage names them."""
        self.left_out: Counter[str] = Counter()
        self._counters: dict[str, Counter[Any]] = {}

    def counter(self, name: str) -> Counter[Any]:
        """What a stage counts beside: the same counter for the same name. Keys are texts, whole
        numbers, None, or tuples of these; of shards that are put together it begins with their sum."""
        return self._counters.setdefault(name, Counter())

    def add(self, meta: Mapping[str, Any]) -> None:
        """Add what a shard's .meta.json says."""
        counts = meta["counts"]
        self.read_count += counts["read"]
        self.kept_count += counts["kept"]
        self.left_out.update(counts["left_out"])
        self.written.update(counts["written"])
        for name, pairs in meta["shard"]["counters"].items():
            self.counter(name).update(counter_of_json(pairs))

    def add_spent(self, meta: Mapping[str, Any]) -> None:
        """Add what a shard's models took, and nothing else."""
        self.counter("tokens").update(counter_of_json(meta["shard"]["counters"].get("tokens", [])))

    def counts(self) -> dict[str, Any]:
        """For .meta.json."""
        return {
            "read": self.read_count,
            "kept": self.kept_count,
            "left_out": by_number(self.left_out),
            "written": {name: n for name, n in self.written.items() if n},
        }

    def spent(self) -> dict[str, Any]:
        """Tokens and dollars that models took, for .meta.json; nothing where none was asked."""
        used = dict(self.counter("tokens"))
        money = {"usd": used.pop("usd")} if "usd" in used else {}
        return {**({"tokens": used} if used else {}), **money}

    def as_shard(self, rows: int, failures: Mapping[str, Any]) -> dict[str, Any]:
        """What add() takes beside the counts. rows: of the whole input."""
        counters = {name: counter_to_json(counter) for name, counter in self._counters.items()}
        return {"rows": rows, "counters": counters, "failures": failures}

    def reasons(self) -> str:
        """Why rows were left out, with their counts, the most frequent first."""
        return ", ".join(f"{n} {reason}" for reason, n in by_number(self.left_out).items())

    def closing_line(self, folder: Path, unit: str) -> str:
        """read = kept + left out by reason."""
        written = ", ".join(f"{n} in {name}" for name, n in self.written.items() if n)
        return (
            f"{folder}: {self.read_count} {unit} read = {self.kept_count} kept + "
            f"{sum(self.left_out.values())} left out ({self.reasons() or 'none'}); "
            f"written: {written or 'nothing'}"
        )


def by_number(counter: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first, those alike by name: an order that no order of rows changes."""
    return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))
