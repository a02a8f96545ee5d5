"""Load: each stage that asks a server, with thousands of requests of which more than half of the replies fail.

    python -m tests.campaign_load --rows 3000 --results benchmarks/results/load.json
    python -m tests.campaign_load --table                     # docs/reliability.md of the results

Each stage of tests.campaign that asks a server runs on so many rows three times: no reply fails; more
than half of them do; the same, and the client is killed twice on its way. The outputs must be the same
bytes, the exit code 0, and no reply may arrive twice but those that were in flight at a kill.
"""

import argparse
import json
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedded.server import Fault, last_message
from tests.campaign import (
    ITEMS,
    ROOT,
    STAGES,
    Faults,
    Killed,
    Runner,
    facts,
    kill,
    make_page,
    said,
    serving,
    snapshot,
)  # fmt: skip

RESULTS = ROOT / "benchmarks" / "results" / "load.json"
MARK = "tests/campaign_load.py"
SERVED = [name for name in STAGES if name.endswith("_server")]
SHARE = 0.7
IN_FLIGHT = 512
IN_A_ROW = 3
"""Failures of one request, at most: the pauses between its tries double, and a load is no test of patience."""
KILLS = 2


def write_inputs(data: Path, rows: int) -> None:
    """What the stages read, so many rows of it, no two of which ask the same."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for k in range(rows):
        item = {
            "id": f"item-{k}", "source": "load", "split": "train", "language": "en", "question": f"What is {k} + 2?",
            "answer_1": f"It is {k + 2}.", "answer_2": f"It is {k + 3}.", "better": 1, "prompt": f"Which answer to {k} + 2?",
        }  # fmt: skip
        chinese = {
            "language": "zh", "question": f"{k}加2等于几?", "answer_1": f"等于{k + 2}。", "answer_2": f"等于{k + 3}。"
        }  # fmt: skip
        rated = f"[Text 1]\n{k}\n\n[Text 2]\n{k + 2}\n\n[Text 3]\n{k + 3}"
        for name, row in (
            (f"{ITEMS}/train.jsonl", item | chinese),
            (f"{ITEMS}_english/train.jsonl", item),
            ("synthetic/prompts.jsonl", {"id": f"p-{k}", "prompt": f"{k} + 2?", "source": "load"}),
            ("synthetic/annotation_prompts.jsonl", {"id": f"p-{k}", "aspect": "honesty", "swapped": False, "prompt": rated, "order": [0, 1, 2], "texts": 3}),
            ("responses.jsonl", {"id": f"p-{k}", "prompt": f"{k} + 2?", "responses": [str(k), str(k + 2), str(k + 3)], "right": None, "source": "load"}),
        ):  # fmt: skip
            tables.setdefault(name, []).append(row)
    for name in (f"{ITEMS}/validation.jsonl", f"{ITEMS}_english/validation.jsonl"):
        tables[name] = []
    for name, table in tables.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        (data / name).write_text(text, encoding="utf-8")


def unlimited(stage: Killed) -> Killed:
    """The stage on all rows, with more requests in flight."""
    command = [*stage.command]
    if "--limit" in command:
        at = command.index("--limit")
        del command[at : at + 2]
    command[command.index("--requests-in-flight") + 1] = str(IN_FLIGHT)
    if "translation.py" in command:
        command += ["--max-rows", "None"]
    return replace(stage, command=command)


class Load(Faults):
    """Faults of most replies, few of one request in a row; requests by kind of what they got."""

    def __init__(self, seed: int, share: float) -> None:
        super().__init__(seed, share)
        self._in_a_row: Counter[str] = Counter()

    def of_reply(self, call: Any) -> Fault | None:
        text = last_message(call.body)
        fault = None
        if self._in_a_row[text] < IN_A_ROW:
            fault = super().of_reply(call)
        else:
            self.delivered[text] += 1
        self._in_a_row[text] = self._in_a_row[text] + 1 if fault else 0
        return fault


def run(
    stage: Killed, data: Path, runner: Runner, faults: Load, kills: int = 0, expected: int = 0
) -> dict[str, Any]:
    """The stage from nothing to its end, killed so many times on its way to the expected replies."""
    for path in (p for out in stage.outputs for p in data.glob(out)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    started = time.monotonic()
    done = 0
    with serving(stage, faults) as env:
        while True:
            process = runner.start(stage.command, data, env)
            while done < kills and process.is_alive():
                if len(faults.delivered) > expected * (done + 1) / (kills + 1):
                    kill(process, signal.SIGKILL)
                    done += 1
                    break
                time.sleep(0.002)
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
    found = {
        "seconds": round(time.monotonic() - started, 1),
        "requests": faults.count + faults.delivered.total(),
        "faults": faults.count,
        "kills": done,
        "peak_mb": int((data.parent / "peak").read_text()) // 1024,
    }
    return found | {"exit_code": process.exitcode}


def load(name: str, work: Path, rows: int, runner: Runner) -> dict[str, Any]:
    """The three runs of one stage; what was wrong under `problems`."""
    stage, home = unlimited(STAGES[name]), work / name
    shutil.rmtree(home, ignore_errors=True)
    write_inputs(home / "data", rows)
    problems: list[str] = []
    runs: dict[str, Any] = {}
    whole, expected = {}, Counter[str]()
    for what, share, kills in (("whole", 0.0, 0), ("faults", SHARE, 0), ("kills", SHARE, KILLS)):
        faults = Load(rows, share)
        one = run(stage, home / "data", runner, faults, kills, len(expected))
        outputs = snapshot(stage, home / "data")
        if one["exit_code"]:
            problems.append(f"{what}: exit code {one['exit_code']}: {said(home)[-300:]}")
        if one["kills"] != kills:
            problems.append(f"{what}: {one['kills']} kills")
        if not share:
            whole, expected = outputs, faults.delivered
        one["again"] = (faults.delivered - expected).total()
        if one["again"] > kills * IN_FLIGHT:
            problems.append(f"{what}: {one['again']} replies arrived twice")
        if lost := [p.name for p in (home / "data").rglob("*.rejects.jsonl") if p.stat().st_size]:
            problems.append(f"{what}: rows in {', '.join(lost)}")
        differing = [n for n in {*whole, *outputs} if whole.get(n) != outputs.get(n)]
        if differing:
            problems.append(f"{what}: not the same: {', '.join(sorted(differing)[:4])}")
        runs[what] = one
        print(f"{name}, {what}: {json.dumps(one)}", flush=True)
    return {"runs": runs, "problems": problems}


def table(results: dict[str, Any]) -> str:
    """A line a stage: the run without faults, the one with them, the one that was killed as well."""
    header = "| stage | requests | rows/s | MB | + faults | rows/s | MB | + two kills: faults | asked again | same bytes |"
    lines = [header, "|---" * header.count("| ") + "|"]
    rows = results["rows"]
    for name, one in results["stages"].items():
        whole, faults, kills = (one["runs"][what] for what in ("whole", "faults", "kills"))
        row = [
            name, whole["requests"], round(rows / whole["seconds"]), whole["peak_mb"], faults["faults"],
            round(rows / faults["seconds"]), faults["peak_mb"], kills["faults"], kills["again"],
            "no" if one["problems"] else "yes",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def words(results: dict[str, Any]) -> str:
    runs = [run for one in results["stages"].values() for run in one["runs"].values()]
    faults, requests = (sum(run[what] for run in runs) for what in ("faults", "requests"))
    return (
        f"Commit {results['commit']}, {results['date']}, {results['machine']['processor']}: {results['rows']:,} rows "
        f"a stage, {results['in_flight']} requests in flight, {requests:,} requests, {faults:,} faults."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=SERVED, default=SERVED)
    parser.add_argument("--rows", type=int, default=3000, help="of each stage's input")
    parser.add_argument("--work", type=Path, default=Path("/tmp/prefpipe-load"))
    parser.add_argument("--results", type=Path, help="JSON to write")
    parser.add_argument("--table", action="store_true", help="docs/reliability.md of the results")
    a = parser.parse_args()
    if a.table:
        results = json.loads((a.results or RESULTS).read_text(encoding="utf-8"))
        make_page(MARK, f"{words(results)}\n\n{table(results)}\n")
        return
    # what the stages need, and no more: the memory is theirs then
    runner = Runner(libraries=["aiohttp", "openai"])
    stages = {name: load(name, a.work, a.rows, runner) for name in a.stages}
    results = {**facts(), "rows": a.rows, "in_flight": IN_FLIGHT, "stages": stages}
    if a.results:
        a.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    problems = [f"{name}, {p}" for name, one in stages.items() for p in one["problems"]]
    print("\n".join([words(results), *problems]))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
