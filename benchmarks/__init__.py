"""Scripts behind each number in the documents. What they share: how they measure, where results go."""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from prefpipe.files import library_versions, write_json

RESULTS = Path(__file__).parent / "results"

_LOAD_BEFORE = os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code.

    load_before: processes that wanted to run when the script started, this one not yet among them.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_before": round(_LOAD_BEFORE, 2),
        "libraries": library_versions(),
    }


def write_results(name: str, results: dict[str, Any], folder: Path = RESULTS) -> None:
    """<folder>/<name>.json, with the date."""
    write_json(folder / f"{name}.json", {"date": datetime.date.today().isoformat(), **results})
    print(f"{folder.name}/{name}.json written")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every script that measures two sides: --rounds, --tiny, --results."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each side")
    parser.add_argument(
        "--tiny", action="store_true", help="shapes of a few tokens: shows that it runs, no number"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    return parser


def alternate(
    sides: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    ways: Collection[str] = (),
    finish: Callable[[], Any] = lambda: None,
    warm_up: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Seconds of each side, the sides taking turns, after a round of each that does not count.

    ways: sides that are several ways of one peer. One whose best round took over 1.2 times the best
    of the fastest is not run again: its ratio could only flatter. finish: waits for a device.
    warm_up: what each side does before, in place of a whole round. Returns seconds and cpu_seconds
    (lists of rounds), median_seconds and median_cpu_seconds, and dropped (the best round's seconds
    of what was not run again).
    """
    for name in sides:
        _timed((warm_up or sides)[name], finish)
    dropped: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in seconds:
            wall, cpu = _timed(sides[name], finish)
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
        fastest = min((min(seconds[name]) for name in ways if name in seconds), default=0.0)
        for name in ways:
            if name in seconds and min(seconds[name]) > 1.2 * fastest:
                dropped[name] = min(seconds.pop(name))
                del cpu_seconds[name]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "median_cpu_seconds": {
            name: statistics.median(times) for name, times in cpu_seconds.items()
        },
        "dropped": dropped,
    }


def _timed(side: Callable[[], Any], finish: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    side()
    finish()
    return time.perf_counter() - wall, time.process_time() - cpu


def ratios(measured: dict[str, Any], ours: str, ways: Collection[str]) -> dict[str, float]:
    """ratio, of median wall times: the fastest of the peer's ways / ours; cpu_ratio, of CPU times."""
    found = {}
    for name, medians in (("ratio", "median_seconds"), ("cpu_ratio", "median_cpu_seconds")):
        values = measured[medians]
        found[name] = min(values[way] for way in ways if way in values) / values[ours]
    return found


def line_of(name: str, measured: dict[str, Any], found: dict[str, float]) -> str:
    """One line for a person: the medians, what was dropped, the ratio."""
    medians = [f"{side} {s:.3f} s" for side, s in measured["median_seconds"].items()]
    medians += [f"({side} {s:.3f} s at best)" for side, s in measured["dropped"].items()]
    return f"{name:18s} {found['ratio']:5.2f}x (CPU time {found['cpu_ratio']:.2f}x)  " + "  ".join(
        medians
    )
