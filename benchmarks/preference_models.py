"""Reward and pairwise model on the embedded base, over three seeds: accuracy, calibration, best of 8.

    uv run python -m benchmarks.preference_models

Runs the stages themselves, as a user does, in a folder of its own. Each seed trains both models on
the sample pairs, measures them on the held-out sample pairs, samples 8 answers to 500 fresh
questions from the base, and has each model (the reward model by score, the pairwise model by
knockout) choose one. Writes benchmarks/results/preference_models.json. It measures the embedded
world only: that training, calibration and ranking work, not what an 8B model would reach.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, write_results

ROOT = Path(__file__).parent.parent
SEEDS = (1, 2, 3)
AIMS = {"accuracy": 0.80, "ece_scaled": 0.05, "best_of_8_gain": 0.15}


def run(data: Path, *command: str) -> None:
    environment = {**os.environ, "PREFPIPE_DATA": str(data), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def measure(data: Path, seed: str) -> dict[str, Any]:
    answers = data / "responses.jsonl"
    run(data, "train_reward_model.py", "--seed", seed)
    run(data, "train_pairwise_model.py", "--seed", seed)
    run(data, "-m", "embedded.answers", "--seed", seed, "--output", str(answers))
    found: dict[str, Any] = {"seed": int(seed)}
    for kind in ("reward", "pairwise"):
        report = read(data / f"models/{kind}/{kind}_eval.json")
        names = ("n", "accuracy", "interval", "ece", "temperature", "ece_scaled", "spearman")
        found[kind] = {name: report[name] for name in (*names, "longer_is_right")}
        home = data / f"ranking-{kind}"
        run(data, "rank_responses.py", "--by", kind, "--output", str(home))
        ranked = read(home / "rank_responses.meta.json")
        found[kind] |= {
            "best_of_8": ranked["best_is_right"],
            "random": ranked["random_is_right"],
            "best_of_8_gain": ranked["best_is_right"] - ranked["random_is_right"],
            "questions": ranked["counts"]["kept"],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds to run")
    seeds = parser.parse_args().seeds
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        by_seed = [measure(Path(folder) / str(seed), str(seed)) for seed in seeds]
    reached = {
        kind: {
            "accuracy": min(r[kind]["accuracy"] for r in by_seed) >= AIMS["accuracy"],
            "ece_scaled": max(r[kind]["ece_scaled"] for r in by_seed) <= AIMS["ece_scaled"],
            "best_of_8_gain": min(r[kind]["best_of_8_gain"] for r in by_seed)
            >= AIMS["best_of_8_gain"],
        }
        for kind in ("reward", "pairwise")
    }
    write_results(
        "preference_models",
        {
            "aims": AIMS,
            "reached_by_the_worst_seed": reached,
            "by_seed": by_seed,
            "seconds": round(time.monotonic() - started),
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    main()
