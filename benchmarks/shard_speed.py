"""What shards bring: rows a second of one process and of two on two cores, and what a shard costs.

    uv run python -m benchmarks.shard_speed
    uv run python -m benchmarks.shard_speed --rows 10000000       # row stages at size: time, memory, disk

Sides, in turns, medians of --rounds, a thread a process: the stage whole; two shards at once, then put
together; the same by on_ray.py, whose difference to the shards is what Ray and its tasks cost. Beside them
what the machine gives at most: the whole run twice at the same time, since two cores that share one
core's parts do not do twice the work. Two row stages (post_processing and preprocess_dataset, 120,000 rows
of 4 kB; each shard of the second reads all questions for near-duplicates) and a sampling stage
(inference_best_of_n on the embedded model, 640 items).
With --rows the four row stages run in two shards on rows of 300 bytes: seconds, memory of the largest
process, bytes read and written. A file is compared with one run's in tests/test_shards.py, not here.
Writes benchmarks/results/shards_speed.json, or rows_at_size.json.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import machine, make_parser, write_results
from benchmarks.row_stage import READS, ROOT, SOURCES, STAGES, Cost, run

ROWS, ROW_BYTES, ITEMS = 120_000, 4_000, 640
BYTES_AT_SIZE = 300
REACH_RATIO = 1.7

Command = list[Any]


def commands(folder: Path) -> dict[str, tuple[Command, Path]]:
    """Script and options of each stage, and the folder that it writes."""
    items, clean = folder / "items.jsonl", folder / "clean"
    answers = ["--prompts", folder / "prompts.jsonl", "--input", folder / "annotations.jsonl"]
    made: dict[str, tuple[list[Any], Path]] = {
        "preprocess_dataset": (
            ["--input", folder / "preferences.jsonl", "--validation-input", ""],
            folder / "made",
        ),
        "post_processing": (["--items", items, "--input", folder / "raw"], clean),
        "construct_dpo_dataset": (["--items", items, "--input", clean], folder / "dpo"),
        "parse_preferences": (["--mix", folder / "mix.jsonl", *answers], folder / "parsed"),
        "inference_best_of_n": (["--limit", ITEMS // 2], folder / "judged"),
    }
    files = {"parse_preferences": "parsed.jsonl", "inference_best_of_n": "best_of_n.jsonl"}
    return {
        name: ([f"{name}.py", *options, "--output", out / files.get(name, "")], out)
        for name, (options, out) in made.items()
    }


def at_once(folder: Path, each: Sequence[Command]) -> list[Cost]:
    """Run them at the same time, each in a folder of its own for what it says of itself."""

    def one(number: int) -> Cost:
        own = folder / f"process-{number}"
        own.mkdir(exist_ok=True)
        script, *options = each[number]
        return run(own, ROOT / script, *options)

    with ThreadPoolExecutor(len(each)) as pool:
        return list(pool.map(one, range(len(each))))


def timed(out: Path, work: Callable[[], Any]) -> float:
    """Seconds of it, on an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_shards(folder: Path, command: Command) -> None:
    at_once(folder, [[*command, "--shard", f"{k}/2"] for k in (1, 2)])
    at_once(folder, [[*command, "--shard", "all/2"]])


def on_ray(folder: Path, command: Command) -> None:
    script, *options = command
    run(folder, ROOT / "on_ray.py", script, "--shards", 2, "--", *options)


def twice(folder: Path, command: Command, out: Path) -> None:
    other = [str(part).replace(str(out), f"{out}-2") for part in command]
    shutil.rmtree(f"{out}-2", ignore_errors=True)
    at_once(folder, [command, other])


def compare(folder: Path, stage: str, rows: int, rounds: int) -> dict[str, Any]:
    command, out = commands(folder)[stage]
    sides: dict[str, Callable[[], Any]] = {
        "whole": lambda: at_once(folder, [command]),
        "two_shards": lambda: in_shards(folder, command),
        "together": lambda: at_once(folder, [[*command, "--shard", "all/2"]]),
        "twice_at_once": lambda: twice(folder, command, out),
        "on_ray": lambda: on_ray(folder, command),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides if name != "together"}
    together = 0.0
    for number in range(rounds):
        for name in seconds:
            seconds[name].append(timed(out, sides[name]))
            print(f"{stage}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
        if number == 0:  # how long the putting together takes is shown of one round
            shutil.rmtree(out, ignore_errors=True)
            at_once(folder, [[*command, "--shard", f"{k}/2"] for k in (1, 2)])
            started = time.perf_counter()
            sides["together"]()
            together = time.perf_counter() - started
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "rows": rows,
        "rounds": seconds,
        "seconds": median,
        "put_together_seconds": together,
        "rows_a_second": {name: rows / s for name, s in median.items() if name != "twice_at_once"},
        "ratio": median["whole"] / median["two_shards"],
        "ratio_on_ray": median["whole"] / median["on_ray"],
        "ratio_at_most": 2 * median["whole"] / median["twice_at_once"],
    }


def size_of(*paths: Path) -> int:
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    return sum(f.stat().st_size for f in files if f.is_file())


def at_size(folder: Path, rows: int) -> dict[str, Any]:
    """The four row stages in two shards, one after the other."""
    found: dict[str, Any] = {}
    for source in SOURCES:
        largest = source(folder, rows, BYTES_AT_SIZE)
        for stage in (name for name, (of, _) in STAGES.items() if of is source):
            command, out = commands(folder)[stage]
            started = time.perf_counter()
            costs = at_once(folder, [[*command, "--shard", f"{k}/2"] for k in (1, 2)])
            shards_seconds = time.perf_counter() - started
            costs += at_once(folder, [[*command, "--shard", "all/2"]])
            read = [folder / name for name in READS[stage] if (folder / name).exists()]
            found[stage] = {
                "rows": rows,
                "seconds": time.perf_counter() - started,
                "put_together_seconds": time.perf_counter() - started - shards_seconds,
                "megabytes": max(cost.megabytes for cost in costs),
                "bytes_read": size_of(*read),
                "bytes_written": size_of(out),
            }
            print(f"{stage}: {found[stage]} ({largest.name})", file=sys.stderr)
        for path in folder.iterdir():  # the next source's files take their place
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # else one process would have both cores
    parser = make_parser(__doc__)
    parser.add_argument(
        "--rows", type=int, help="run the row stages on so many rows, and nothing else"
    )
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if a.rows:
            write_results("rows_at_size", {"machine": machine(), "stages": at_size(folder, a.rows)})
            return
        rows, found = 200 if a.tiny else ROWS, {}
        for stage in ("post_processing", "preprocess_dataset"):
            STAGES[stage][0](folder, rows, ROW_BYTES)
            found[stage] = compare(folder, stage, rows, a.rounds)
        # what inference_best_of_n reads: items of the embedded sample, in the data folder of `run`
        for own in ("process-0", "process-1", "."):
            run(folder / own, ROOT / "preprocess_dataset.py", "--limit", ITEMS // 2)
            run(folder / own, ROOT / "translation.py", "--offline")
        found["inference_best_of_n"] = compare(folder, "inference_best_of_n", ITEMS, a.rounds)
    results = {"machine": machine(), "reach_ratio": REACH_RATIO, "stages": found}
    write_results("shards_speed", results, a.results)


if __name__ == "__main__":
    main()
