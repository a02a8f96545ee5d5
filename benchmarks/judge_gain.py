"""How much the judge path gains on the embedded model, over three seeds; and what each pair type gives.

    uv run python -m benchmarks.judge_gain

Runs the stages themselves, as a user does, in a folder of its own: sampling, hints, pairs, DPO and
evaluation for each seed; then, for the first seed, DPO on best-of-n pairs only and on hint pairs
only. Writes benchmarks/results/judge_gain.json. About 25 minutes on two cores. It measures the
embedded world only: that the recipe and its implementation work, not what a 7B model would gain.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, write_results

ROOT = Path(__file__).parent.parent
SEEDS = (1, 2, 3)
ABLATION = {
    "best_of_n_only": ["--max-hint", "0"],
    "hint_only": ["--max-best-of-n", "0", "--max-unreadable", "0"],
}


def run(data: Path, stage: str, *options: str) -> None:
    environment = {**os.environ, "PREFPIPE_DATA": str(data), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, f"{stage}.py", *options], cwd=ROOT, env=environment, check=True)


def train_and_judge(data: Path, seed: str, *construct_options: str) -> dict[str, float]:
    run(data, "construct_dpo_dataset", "--seed", seed, *construct_options)
    run(data, "dpo_training", "--seed", seed)
    run(data, "accuracy", "--seed", seed)
    report = json.loads((data / "accuracy/accuracy.json").read_text())["judging"]["validation"]
    counts = json.loads((data / "dpo/construct_dpo_dataset.meta.json").read_text())
    return {
        "base": report["base"]["accuracy"],
        "tuned": report["tuned"]["accuracy"],
        "interval": report["tuned"]["interval"],
        "n": report["base"]["n"],
        "readable_tuned": report["tuned"]["readable"],
        "pairs": counts["pair_types"],
    }


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        by_seed, ablation = [], {}
        for seed in map(str, SEEDS):
            data = Path(folder) / seed
            for stage in ("preprocess_dataset", "translation"):
                run(
                    data, stage
                )  # the split and the order of the answers are the same for all seeds
            for stage in ("inference_best_of_n", "inference_all", "post_processing"):
                run(data, stage, "--seed", seed)
            by_seed.append(train_and_judge(data, seed))
            if seed == str(SEEDS[0]):
                for name, options in ABLATION.items():
                    other = Path(folder) / name
                    shutil.copytree(
                        data, other, ignore=shutil.ignore_patterns("dpo", "models", "accuracy")
                    )
                    ablation[name] = train_and_judge(other, seed, *options)
                ablation["both"] = by_seed[0]
    write_results(
        "judge_gain",
        {
            "base": by_seed[0]["base"],
            "tuned": [result["tuned"] for result in by_seed],
            "n": by_seed[0]["n"],
            "seconds": round(time.monotonic() - started),
            "ablation": {name: result["tuned"] for name, result in ablation.items()},
            "seeds": list(SEEDS),
            "by_seed": by_seed,
            "ablation_detail": ablation,
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    main()
