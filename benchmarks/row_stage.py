"""What a row stage costs: microseconds a row of 4 kB, and memory at up to a million rows.

    uv run python -m benchmarks.row_stage

Runs the stages themselves, as a user does, each in a process of its own, on rows made here in a
temporary folder (two GB of it at most). A row is one that a stage reads: of post_processing and
construct_dpo_dataset 8 samples, 2 or 3 further judgments and an item a question, of
parse_preferences a mix, and a request and a rating for each of 4 aspects a prompt.

Time: with 1,000 and with 24,000 rows of 4 kB, the difference divided by 23,000, so that starting
Python does not count; parsing, checking, hashing the input, writing and fsync do. The peer is
`datasets` on the largest input file: load_dataset, map with a function that does nothing (a row at
a time, and in batches: the faster counts), to_json; both sizes in one process, which takes the time
itself. It checks nothing and does nothing; ours reads verdicts, renders prompts, looks for
near-duplicates. The sides take turns, medians of 5.
Memory: VmHWM, which each process reads of itself at its end, with rows of 300 bytes. What stays in
memory is two numbers an id, and of preprocess_dataset a sketch of each held-out question (a tenth of
the rows here), which is at most 1.7 kB.
Beginning: preprocess_dataset on 80,000 rows whose prompts share 300 words (one system prompt), a tenth
held out: all near-duplicate candidates of each other by these.
Not measured: distilabel, whose dependencies exclude ours (its no-op step is in DESIGN's table); the
Parquet input of preprocess_dataset; several processes at once, which stages do not use.
Writes benchmarks/results/row_stage.json.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks import machine, make_parser, write_results
from prefpipe.rows import (
    AnnotationAnswer,
    AnnotationMix,
    AnnotationPrompt,
    Item,
    Judgment,
    Preference,
)
from prefpipe.verdicts import render_judgment

ROOT = Path(__file__).parent.parent
SAMPLES = 8
ASPECTS = ("helpfulness", "honesty", "truthfulness", "instruction_following")
TIME_ROWS, TIME_BYTES = (1_000, 24_000), 4_000
MEMORY_ROWS, MEMORY_BYTES = (100_000, 1_000_000), 300
BEGINNING_ROWS = 80_000
REACH_MICROSECONDS, REACH_MEGABYTES, REACH_BEGINNING_SECONDS = 60, 300, 60

_RUN_AND_WRITE_PEAK = """
import atexit, pathlib, runpy, sys
peak, script = sys.argv[1:3]
sys.argv = sys.argv[2:]
sys.path.insert(0, str(pathlib.Path(script).parent))
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path(peak).write_text(status.read_text()))
runpy.run_path(script, run_name="__main__")
"""

_DATASETS = """
import json, shutil, sys, time
import datasets
target, result, how, *sources = sys.argv[1:]
datasets.disable_progress_bars()
costs = []
first = shutil.copy(sources[0], target + ".first.jsonl")  # what is imported on the way does not count
for source in [first, *sources]:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = datasets.load_dataset("json", data_files=source, split="train")
    rows = rows.map(lambda row: row, batched=how == "batched")
    rows.to_json(target)
    costs.append((time.perf_counter() - wall, time.process_time() - cpu))
open(result, "w").write(json.dumps(costs[1:]))
"""


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float
    megabytes: float


def run(folder: Path, script: Path, *options: object) -> Cost:
    """A script in a process of its own: its time, and the most memory it had."""
    peak = folder / "peak.txt"
    command = [sys.executable, "-c", _RUN_AND_WRITE_PEAK, str(peak), str(script)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "PREFPIPE_DATA": str(folder / "data"),
    }
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, *map(str, options)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{script.name} failed: {said.decode()[-2000:]}")
    lines = dict(line.split(":", 1) for line in peak.read_text().splitlines())
    kilobytes = int(lines["VmHWM"].split()[0])
    return Cost(seconds, used.ru_utime + used.ru_stime, kilobytes / 1000)


def fresh(folder: Path) -> Path:
    """The folder, removed: to remove the last round's files is no part of this one."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


# ---- the rows ----------------------------------------------------------------------------------


def texts(count: int, length: int) -> Iterator[str]:
    """Texts of `length` characters, of random words: no two have a sentence in common."""
    rng = random.Random(0)
    words = [f"{rng.choice('bcdfghjklm')}{rng.choice('aeiou')}{k:04d}" for k in range(10_000)]
    for _ in range(count):
        yield " ".join(rng.choices(words, k=length // 7 + 1))[:length]


def write(path: Path, rows: Iterator[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")


def write_preferences(folder: Path, rows: int, row_bytes: int) -> Path:
    part = texts(3 * rows, max(8, (row_bytes - 100) // 3))
    write(
        folder / "preferences.jsonl",
        (
            Preference(id=f"q{k}", prompt=next(part), chosen=next(part), rejected=next(part))
            for k in range(rows)
        ),
    )
    return folder / "preferences.jsonl"


def write_judgments(folder: Path, rows: int, row_bytes: int) -> Path:
    """Items, and the four files of judgments; `rows` of all together. Returns the largest file."""
    items = max(1, rows // (SAMPLES + 4))
    part = texts(2 * items, max(8, (row_bytes - 300) // 4))

    def item(k: int) -> Item:
        question, answer = next(part), next(part)
        return Item(
            id=f"q{k}", source="benchmark", split="train" if k % 10 else "validation",
            language="en", question=question, answer_1=answer, answer_2=answer[::-1], better=1,
            prompt=f"{question}\n{answer}\n",
        )  # fmt: skip

    write(folder / "items.jsonl", (item(k) for k in range(items)))
    reasons = texts((SAMPLES + 3) * items, max(8, row_bytes - 200))

    def judgment(k: int, variant: Any, sample: int, hint: Any) -> Judgment:
        reason = next(reasons)
        text = reason if hint else render_judgment(reason, 1 if sample % 2 else 2, "en")
        return Judgment(
            id=f"q{k}", sample=sample, variant=variant, hint=hint, text=text,
            finish_reason="stop", prompt_tokens=500, new_tokens=200,
        )  # fmt: skip

    for variant, samples, hint in (
        ("best_of_n", SAMPLES, None),
        ("guide", 1, 1),
        ("guide_reverse", 1, 2),
        ("output", 1, None),
    ):
        write(
            folder / "raw" / f"{variant}.jsonl",
            (judgment(k, variant, s, hint) for k in range(items) for s in range(samples)),
        )
    return folder / "raw/best_of_n.jsonl"


def write_ratings(folder: Path, rows: int, row_bytes: int) -> Path:
    """Mixes of 4 responses, and the requests and answers about them; `rows` of all together."""
    prompts = max(1, rows // (1 + 2 * len(ASPECTS)))
    part = texts(5 * prompts, max(8, (row_bytes - 200) // 5))
    write(
        folder / "mix.jsonl",
        (
            AnnotationMix(
                id=f"q{k}",
                prompt=next(part),
                responses=[next(part) for _ in range(4)],
                models=["a", "b", "c", "d"],
            )
            for k in range(prompts)
        ),
    )
    asked = texts(prompts * len(ASPECTS), max(8, row_bytes - 150))
    write(
        folder / "prompts.jsonl",
        (
            AnnotationPrompt(
                id=f"q{k}", aspect=aspect, prompt=next(asked), order=[3, 1, 0, 2], texts=4
            )
            for k in range(prompts)
            for aspect in ASPECTS
        ),
    )
    reasons = texts(4 * prompts * len(ASPECTS), max(8, (row_bytes - 350) // 4))

    def answer(k: int) -> str:
        return "\n\n".join(
            f"Text {n}\nRating: {1 + (k + n) % 5}\nReason: {next(reasons)}" for n in range(1, 5)
        )

    write(
        folder / "annotations.jsonl",
        (
            AnnotationAnswer(
                id=f"q{k}", aspect=aspect, text=answer(k), finish_reason="stop", model="judge",
                prompt_tokens=900, new_tokens=600,
            )
            for k in range(prompts)
            for aspect in ASPECTS
        ),
    )  # fmt: skip
    return folder / "annotations.jsonl"


# ---- the stages --------------------------------------------------------------------------------


def preprocess_dataset(folder: Path) -> Cost:
    options = ["--input", folder / "preferences.jsonl", "--validation-input", ""]
    options += ["--output", fresh(folder / "items")]
    return run(folder, ROOT / "preprocess_dataset.py", *options)


def post_processing(folder: Path) -> Cost:
    options = ["--items", folder / "items.jsonl", "--input", folder / "raw"]
    options += ["--output", fresh(folder / "clean")]
    return run(folder, ROOT / "post_processing.py", *options)


def construct_dpo_dataset(folder: Path) -> Cost:
    """On what post_processing wrote."""
    options = ["--items", folder / "items.jsonl", "--input", folder / "clean"]
    options += ["--output", fresh(folder / "dpo")]
    return run(folder, ROOT / "construct_dpo_dataset.py", *options)


def parse_preferences(folder: Path) -> Cost:
    options = ["--mix", folder / "mix.jsonl", "--prompts", folder / "prompts.jsonl"]
    options += ["--input", folder / "annotations.jsonl"]
    options += ["--output", fresh(folder / "parsed") / "parsed.jsonl"]
    return run(folder, ROOT / "parse_preferences.py", *options)


Source = Callable[[Path, int, int], Path]
STAGES: dict[str, tuple[Source, Callable[[Path], Cost]]] = {
    "preprocess_dataset": (write_preferences, preprocess_dataset),
    "post_processing": (write_judgments, post_processing),
    "construct_dpo_dataset": (write_judgments, construct_dpo_dataset),
    "parse_preferences": (write_ratings, parse_preferences),
}
_JUDGMENTS = ["items.jsonl", *(f"raw/{v}.jsonl" for v in ("best_of_n", "guide", "guide_reverse"))]
READS = {
    "preprocess_dataset": ["preferences.jsonl"],
    "post_processing": [*_JUDGMENTS, "raw/output.jsonl"],
    "construct_dpo_dataset": _JUDGMENTS,
    "parse_preferences": ["mix.jsonl", "prompts.jsonl", "annotations.jsonl"],
    "kept": ["train.jsonl", "validation.jsonl"],
}
HOWS = ("rows", "batched")
"""Of `datasets.map`."""
SOURCES = list(dict.fromkeys(source for source, _ in STAGES.values()))


def rows_read(folder: Path, stage: str) -> int:
    """Rows of all files that the stage reads; construct_dpo_dataset's are as many as the raw ones."""
    return sum(_lines(folder / name) for name in READS[stage])


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def datasets_map(folder: Path, sources: Sequence[Path], how: str) -> list[Cost]:
    script, result = folder / "datasets_map.py", folder / "seconds.json"
    script.write_text(_DATASETS)
    shutil.rmtree(folder / "hf", ignore_errors=True)  # else it reads the last round's result
    run(folder, script, folder / "mapped.jsonl", result, how, *sources)
    return [Cost(wall, cpu, 0) for wall, cpu in json.loads(result.read_text())]


def measure_time(rounds: int, sizes: tuple[int, int], row_bytes: int) -> dict[str, Any]:
    """Microseconds a row of each stage and of the peer on each stage's largest input file."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        places: dict[tuple[str, int], tuple[Path, Path]] = {}
        for size in sizes:
            for source in SOURCES:
                folder = Path(name) / f"{source.__name__}_{size}"
                places[source.__name__, size] = folder, source(folder, size, row_bytes)
        taken: dict[str, list[list[Cost]]] = {}
        hows = dict.fromkeys((source.__name__, how) for source in SOURCES for how in HOWS)
        for round_number in range(rounds):
            for stage, (source, start) in STAGES.items():
                folders = [places[source.__name__, size][0] for size in sizes]
                taken.setdefault(stage, []).append([start(folder) for folder in folders])
            for name, how in list(hows):
                files = [places[name, size][1] for size in sizes]
                costs = datasets_map(places[name, sizes[1]][0], files, how)
                taken.setdefault(f"{name} {how}", []).append(costs)
            if round_number == 0:  # the slower way is not run again: both are near each other
                for source in SOURCES:
                    large = {how: taken[f"{source.__name__} {how}"][0][1].seconds for how in HOWS}
                    del hows[source.__name__, max(HOWS, key=large.__getitem__)]
        for stage, (source, _) in STAGES.items():
            of_sizes = [places[source.__name__, size] for size in sizes]
            rows = [rows_read(folder, stage) for folder, _ in of_sizes]
            lines = [_lines(path) for _, path in of_sizes]
            sizes_read = of_sizes[1][1].stat().st_size / lines[1]
            ours = _a_row(taken[stage], rows)
            peer = {how: _a_row(taken[f"{source.__name__} {how}"], lines) for how in HOWS}
            fastest = min(side["microseconds_a_row"] for side in peer.values())
            results[stage] = {
                "rows": rows,
                "bytes_a_row": round(sizes_read),
                **ours,
                "datasets_map": peer,
                "ratio": fastest / ours["microseconds_a_row"],
            }
            print(
                f"{stage:22s} {ours['microseconds_a_row']:6.1f} us a row (CPU "
                f"{ours['cpu_microseconds_a_row']:.1f})   datasets.map {fastest:6.1f} us",
                flush=True,
            )
    return results


def _a_row(rounds: list[list[Cost]], rows: list[int]) -> dict[str, Any]:
    """Microseconds a row: the difference of the two sizes, over the difference of their rows."""
    more = rows[1] - rows[0]
    wall = [1e6 * (large.seconds - small.seconds) / more for small, large in rounds]
    cpu = [1e6 * (large.cpu_seconds - small.cpu_seconds) / more for small, large in rounds]
    return {
        "microseconds_a_row": statistics.median(wall),
        "cpu_microseconds_a_row": statistics.median(cpu),
        "rounds": wall,
        "start_seconds": statistics.median(small.seconds for small, _ in rounds),
    }


def measure_memory(sizes: tuple[int, ...], row_bytes: int) -> dict[str, Any]:
    """Megabytes (10^6 bytes) that each stage had at most, for each number of rows."""
    results: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
    # two at a time: what a process has at most does not depend on how fast it runs
    with ProcessPoolExecutor(max_workers=2) as pool:
        for found in pool.map(_memory_of, SOURCES, repeat(sizes), repeat(row_bytes)):
            for stage, size, megabytes in found:
                results[stage][str(size)] = megabytes
                print(f"{stage:22s} {size:9,d} rows {megabytes:6.0f} MB", flush=True)
    return results


def _memory_of(source: Source, sizes: tuple[int, ...], row_bytes: int) -> list[tuple]:
    """(stage, rows, megabytes) of each stage that reads this source's rows, for each size."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            source(Path(name), size, row_bytes)
            for stage, (wanted, start) in STAGES.items():
                if wanted is source:
                    found.append((stage, size, round(start(Path(name)).megabytes, 1)))
    return found


def measure_beginning(rows: int) -> dict[str, Any]:
    """Seconds of preprocess_dataset where all prompts begin with the same 300 words."""
    (beginning,), rng = texts(1, 2100), random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(
            folder / "preferences.jsonl",
            (
                Preference(
                    id=f"q{k}",
                    prompt=f"{beginning} {own[: rng.randrange(40, 800)]}",
                    chosen="a",
                    rejected="b",
                )
                for k, own in enumerate(texts(rows, 800))
            ),
        )
        seconds = preprocess_dataset(folder).seconds
        kept = rows_read(folder / "items", "kept")
    print(f"preprocess_dataset {rows:,d} rows of one beginning: {seconds:.1f} s, {kept:,d} kept")
    return {"rows": rows, "words": 300, "seconds": seconds, "kept": kept}


def main() -> None:
    args = make_parser(__doc__).parse_args()
    time_rows, memory_rows = ((24, 240), (24, 240)) if args.tiny else (TIME_ROWS, MEMORY_ROWS)
    write_results(
        "row_stage",
        {
            "machine": machine(),
            "rounds": args.rounds,
            "reach": {
                "microseconds_a_row": REACH_MICROSECONDS,
                "megabytes": REACH_MEGABYTES,
                "beginning_seconds": REACH_BEGINNING_SECONDS,
            },
            "time": measure_time(args.rounds, time_rows, TIME_BYTES),
            "beginning": measure_beginning(400 if args.tiny else BEGINNING_ROWS),
            "memory": {
                "bytes_a_row": MEMORY_BYTES,
                "megabytes": measure_memory(memory_rows, MEMORY_BYTES),
            },
        },
        args.results,
    )


if __name__ == "__main__":
    main()
