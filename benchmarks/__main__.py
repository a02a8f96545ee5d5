"""All measurements that need no GPU, one after the other, and their tables.

    uv run python -m benchmarks                  # the tables; 24 minutes on two cores
    uv run python -m benchmarks --curves         # the curves over n, pairs and prompt; 12 minutes

Each script runs in a process of its own, so that none finds another's memory or threads. Where one
fails the others run; the exit status then is 1. Close other programs first: a number taken beside
them is none (load_before in the JSON tells).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import RESULTS

ROOT = Path(__file__).parent.parent
SCRIPTS = ("sampling", "generate_batch", "dpo_step", "reward_step", "ab_scoring", "row_stage")
WITH_CURVES = ("sampling", "dpo_step")
WITHOUT_BARS = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def commands(
    scripts: Sequence[str], *, curves: bool, rounds: int, tiny: bool, results: Path
) -> dict[str, list[str]]:
    """Script -> the command that runs it."""
    common = ["--rounds", str(rounds), "--results", str(results), *(["--tiny"] if tiny else [])]
    made = {}
    for script in [script for script in scripts if script in WITH_CURVES or not curves]:
        options = ["--curves"] if curves else []
        made[script] = [sys.executable, "-m", f"benchmarks.{script}", *options, *common]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each side")
    parser.add_argument(
        "--curves", action="store_true", help="over n, pairs and prompts, and nothing else"
    )
    parser.add_argument("--tiny", action="store_true", help="shows that all run; no number")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    results = args.results.resolve()
    if args.tiny and results == RESULTS:
        raise SystemExit("--tiny measures nothing: give --results another folder")
    made = commands(
        args.only, curves=args.curves, rounds=args.rounds, tiny=args.tiny, results=results
    )
    if not made:
        parser.error(f"only {', '.join(WITH_CURVES)} have curves")
    failed = []
    for script, command in made.items():
        print(f"---- {script}", flush=True)
        started = time.monotonic()
        if subprocess.run(command, cwd=ROOT, env=os.environ | WITHOUT_BARS).returncode:
            failed.append(script)
        print(f"---- {script}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    summary = [sys.executable, "-m", "benchmarks.summary"]
    folder = [] if results == RESULTS else ["--results", str(results)]
    subprocess.run([*summary, *folder], cwd=ROOT, check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
