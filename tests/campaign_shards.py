"""Shards: each stage is cut into parts, which are killed, run twice and in any order, and put together.

    python -m tests.campaign_shards --minutes 20 --results benchmarks/results/shards.json
    python -m tests.campaign_shards --stages preprocess_dataset rank_by_reward --chains 3
    python -m tests.campaign_shards --table            # docs/reliability.md of the results

A chain draws a number of shards, 2 to 5, and runs them in a drawn order: half are killed on their way
(SIGKILL, at a moment or at a file operation) and run again, some are run again after they have ended.
Where a server is asked, a third of its replies fail. Then `--shard all/N` puts them together; every
third time it is killed, too. Its outputs, rejects, ledger, and what .meta.json says beside times must
be those of one whole run, and no shard may be left on the disk.
"""

import argparse
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tests.campaign import (
    ROOT,
    SHORT,
    STAGES,
    Campaign,
    Faults,
    Runner,
    facts,
    kill,
    make_base,
    make_page,
    said,
    serving,
    snapshot,
)  # fmt: skip

RESULTS = ROOT / "benchmarks" / "results" / "shards.json"
CUT = [name for name, stage in STAGES.items() if not stage.is_training]
_TIMES = ("seconds", "libraries", "settings", "version", "went_on", "usage_of_last_run", "embedded")
_SPENT = ("tokens", "usd")
"""What a stopped run had spent stands in no .meta.json, so that it is compared without kills only."""


def summaries(data: Path, with_spent: bool) -> dict[str, Any]:
    """What each .meta.json says, but for times."""
    left_out = _TIMES if with_spent else _TIMES + _SPENT

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: kept(v) for k, v in value.items() if k not in left_out}
        return value

    paths = (path for path in data.rglob("*.meta.json") if ".shards" not in str(path))
    return {str(path.relative_to(data)): kept(json.loads(path.read_text())) for path in paths}


class Sharded(Campaign):
    """Chains of one stage."""

    def __init__(self, name: str, base: Path, work: Path, runner: Runner) -> None:
        super().__init__(name, base, work, runner)
        self.shards = self.together = 0
        self.said = said(self.home)
        self.summaries = [summaries(self.data, spent) for spent in (False, True)]

    def chain(self, seed: int) -> None:
        rng = random.Random(f"{self.name} {seed}")
        self._prepare()
        count, is_calm = rng.randrange(2, 6), seed % 3 == 0
        order = [
            *range(1, count + 1),
            *(rng.randrange(1, count + 1) for _ in range(rng.randrange(2))),
        ]
        rng.shuffle(order)
        problems: list[str] = []
        faults = Faults(seed, share=0.0 if is_calm else 0.33) if self.stage.answer else None
        with serving(self.stage, faults) as env:
            for number in [*order, None]:
                options = ["--shard", f"{number or 'all'}/{count}"]
                if not is_calm and rng.random() < 0.5:
                    self._kill_one(rng, options, env, count)
                if code := self._last_run(options, env):
                    problems.append(f"{options[1]}: exit code {code}: {said(self.home)[-400:]}")
                    break
                self.shards += number is not None
                self.together += number is None
        if not problems:
            if differing := self._differing(snapshot(self.stage, self.data)):
                problems.append(f"not the same: {', '.join(differing[:4])}")
            if summaries(self.data, is_calm) != self.summaries[is_calm]:
                problems.append("other numbers in .meta.json")
            if left := [path for path in self.data.rglob(".*.shards")]:
                problems.append(f"left on the disk: {left[0]}")
            if is_calm and self._last_lines(said(self.home)) != self._last_lines(self.said):
                problems.append("other last lines")
        self.totals.chains += 1
        self.totals.faults += faults.count if faults else 0
        self.totals.equal += not problems
        self.totals.problems += [f"seed {seed}: {problem}" for problem in problems]

    @staticmethod
    def _last_lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if " written: " in line]

    def _kill_one(
        self, rng: random.Random, options: list[str], env: dict[str, str], count: int
    ) -> None:
        at = rng.randrange(1, max(2, self.operations)) if rng.random() < 0.5 else 0
        command = [*self.stage.command, *options]
        process = self.runner.start(command, self.data, env, kill_at=at)
        process.join(None if at else rng.uniform(0.05, self.seconds / count + 0.1))
        if process.exitcode is None:
            kill(process, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            self.totals.kills["ops" if at else "SIGKILL"] += 1
        elif process.exitcode:
            self.totals.problems.append(f"before a kill: {said(self.home)[-300:]}")


def table(results: dict[str, Any]) -> str:
    header = "| stage | chains | shards run | kills | faults | equal |"
    lines = [header, "|---" * header.count("| ") + "|"]
    columns = ("chains", "shards", "kills", "faults", "equal")
    for name, one in results["stages"].items():
        lines.append("| " + " | ".join(map(str, [name, *(one[c] for c in columns)])) + " |")
    total = [sum(one[c] for one in results["stages"].values()) for c in columns]
    lines.append("| " + " | ".join(map(str, ["all", *total])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=CUT, default=CUT)
    parser.add_argument("--short", action="store_true", help="the stages that need no chain before")
    parser.add_argument("--minutes", type=float, help="end the first chain behind this")
    parser.add_argument("--chains", type=int, default=1000, help="of each stage, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first chain")
    parser.add_argument("--work", type=Path, default=Path("/tmp/prefpipe-campaign"))
    parser.add_argument("--results", type=Path, help="JSON to write")
    parser.add_argument("--table", action="store_true", help="docs/reliability.md of the results")
    a = parser.parse_args()
    if a.table:
        results = json.loads((a.results or RESULTS).read_text())
        source = (
            f"Commit {results['commit']}, {results['date']}, {results['machine']['processor']}."
        )
        make_page("tests/campaign_shards.py", f"{source}\n\n{table(results)}\n")
        return
    stages = [name for name in a.stages if name in SHORT or not a.short]
    base, runner, begun = make_base(a.work, a.short), Runner(), time.monotonic()
    sharded: dict[str, Sharded] = {}
    problems: list[str] = []
    for number in range(a.chains):
        for name in stages:
            if a.minutes and time.monotonic() - begun > 60 * a.minutes:
                break
            if name not in sharded:
                sharded[name] = Sharded(name, base, a.work / "shards", runner)
            one = sharded[name]
            one.chain(a.seed + number)
            print(f"{name}: {one.totals.chains} chains, {one.totals.equal} equal", flush=True)
            for problem in one.totals.problems[len([p for p in problems if p.startswith(name)]) :]:
                problems.append(f"{name}: {problem}")
                print(f"  {problem}", flush=True)
        else:
            continue
        break
    found = {
        name: {
            "chains": one.totals.chains, "shards": one.shards, "kills": sum(one.totals.kills.values()),
            "faults": one.totals.faults, "equal": one.totals.equal, "problems": one.totals.problems,
        }
        for name, one in sharded.items()
    }  # fmt: skip
    if a.results:
        a.results.write_text(json.dumps({**facts(), "stages": found}, indent=1) + "\n")
    shutil.rmtree(a.work / "shards", ignore_errors=True)
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
