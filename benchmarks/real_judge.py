"""The judge's recipe on a real model: what its own contrastive judgments teach SmolLM2-135M-Instruct.

    uv run --group real python -m benchmarks.real_judge               # an hour and more on two cores
    uv run --group real python -m benchmarks.real_judge --ablate --seeds 1 2 3

The stages as a user runs them under PROFILE=smollm2-135m, on --items pairs each of LLMBar, Auto-J and
hh_harmless (people's verdicts, of ../shared/data or PREFPIPE_REAL_DATA) whose texts are short, half of
the questions held out. Base and tuned judge on the held-out pairs, greedy, both orders, held to the
schema and free; --ablate: DPO on best-of-n pairs only and on hint pairs only, too, for the first seed.
Writes benchmarks/results/real_judge.json after each seed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, machine, write_results
from benchmarks.judge_gain import ABLATION
from benchmarks.real_models import read_pairs, real_data
from prefpipe.rows import Preference, answer_of, flatten_turns

ROOT = Path(__file__).parent.parent
SOURCES = ("llmbar.jsonl", "autoj_pairwise.jsonl", "hh_harmless.jsonl.gz")
MOST_CHARACTERS = 1600
"""Of question and answers together: some 400 tokens."""


def short_pairs(name: str, count: int) -> list[Preference]:
    def length(row: Preference) -> int:
        return sum(
            map(len, (flatten_turns(row.prompt), answer_of(row.chosen), answer_of(row.rejected)))
        )

    rows = [
        row for row in read_pairs(real_data(name)) if not row.tie and length(row) < MOST_CHARACTERS
    ]
    return [row.model_copy(update={"source": name.split(".")[0]}) for row in rows[:count]]


def run(data: Path, stage: str, *options: object) -> None:
    environment = {
        **os.environ, "PREFPIPE_DATA": str(data), "HF_HUB_OFFLINE": "1", "PROFILE": "smollm2-135m",
    }  # fmt: skip
    command = [sys.executable, f"{stage}.py", *map(str, options)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def judged(data: Path, *options: str) -> dict[str, Any]:
    """accuracy.py's report of base and tuned judge."""
    folder = data / "judged"
    run(data, "accuracy", "--output", folder, "--overwrite", *options)
    report = json.loads((folder / "accuracy.json").read_text())["judging"]["validation"]
    names = ("n", "accuracy", "interval", "readable", "agreement", "first_position")
    return {
        judge: {key: value for key, value in report[judge].items() if key in names}
        for judge in ("base", "tuned")
    }


def train_and_judge(data: Path, seed: int, *construct_options: str) -> dict[str, Any]:
    run(data, "construct_dpo_dataset", "--seed", seed, *construct_options)
    run(data, "dpo_training", "--seed", seed)
    counts = json.loads((data / "dpo/construct_dpo_dataset.meta.json").read_text())
    return {
        "pairs": counts["pair_types"],
        "structured": judged(data),
        "free": judged(data, "--no-structured-output"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=60, help="pairs of each source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    facts = {"machine": machine(), "items": args.items, "sources": list(SOURCES)}
    found: dict[str, Any] = {"by_seed": {}, "ablation": {}}
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        rows = [row for name in SOURCES for row in short_pairs(name, args.items)]
        pairs.write_text("".join(f"{row.model_dump_json()}\n" for row in rows), encoding="utf-8")
        for seed in args.seeds:
            begin = time.monotonic()
            data = Path(folder) / str(seed)
            data.mkdir()
            (data / "cache").symlink_to(ROOT / "data/cache")
            given = ("--input", pairs, "--validation-input", "", "--validation-share", 0.5)
            run(data, "preprocess_dataset", *given, "--limit", len(rows))
            run(data, "translation", "--offline")
            for stage in ("inference_best_of_n", "inference_all", "post_processing"):
                run(data, stage, "--seed", seed)
            found["by_seed"][seed] = train_and_judge(data, seed)
            found["by_seed"][seed]["seconds"] = round(time.monotonic() - begin)
            write_results("real_judge", {**facts, **found}, args.results)
            if args.ablate and seed == args.seeds[0]:
                for name, options in ABLATION.items():
                    other = Path(folder) / name
                    left = shutil.ignore_patterns("dpo", "models", "judged")
                    shutil.copytree(data, other, ignore=left, symlinks=True)
                    found["ablation"][name] = train_and_judge(other, seed, *options)
                    write_results("real_judge", {**facts, **found}, args.results)


if __name__ == "__main__":
    main()
