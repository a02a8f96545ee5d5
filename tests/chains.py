"""The chains of pipeline.sh, whole and killed, and whether two of them gave the same.

    python -m tests.chains run  /tmp/a --paths judge rag --limit 120
    python -m tests.chains run  /tmp/b --paths judge rag --limit 120 --kills 20
    python -m tests.chains compare /tmp/a /tmp/b

`--checkout DIR` runs the pipeline.sh of another checkout, an older commit's for example: so a change
that is to change nothing is shown to change nothing. With --kills each path is killed (SIGKILL, the
whole process group) at moments drawn by the seed, and started again until it comes through.

Compared is every file: rows of JSONL and Parquet, of a .meta.json its counts, of all other files the
bytes. Left out are hidden files (logs, locks) and what no two runs share: checkpoints' optimizer
states, pictures, cards, which name their folder, and the page, which names seconds.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LEFT_OUT = {".png", ".pt", ".pth", ".bin", ".faiss", ".html"}


def run_path(name: str, data: Path, checkout: Path, limit: int, kills: int, seed: int) -> int:
    """Run one path to its end; the number of kills."""
    rng = random.Random(f"{seed}:{name}")
    environment = os.environ | {"PREFPIPE_DATA": str(data.resolve())}
    command = ["bash", "pipeline.sh", name, "--limit", str(limit)]
    done = 0
    while True:
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, start_new_session=True, stdout=sys.stderr
        )
        try:
            process.wait(rng.uniform(3, 30) if done < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            time.sleep(0.5)  # a child of the killed group may hold a lock for a moment
            continue
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        return done


def content(path: Path) -> Any:
    """What must be the same in another run of the same chain."""
    if path.name.endswith(".meta.json"):
        return json.loads(path.read_text(encoding="utf-8"))["counts"]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    return path.read_bytes()


def files_of(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in LEFT_OUT
        and path.name != "README.md"
        and not any(part.startswith(".") or part == "checkpoints" for part in path.parts)
    }


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for each file that is not in both folders, or not the same in both."""
    a, b = files_of(one), files_of(other)
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            yield f"{name}: only in {one if name in a else other}"
        elif (x := content(a[name])) != (y := content(b[name])):
            yield f"{name}: {describe(x, y)}"


def describe(x: Any, y: Any) -> str:
    if isinstance(x, bytes):
        pairs = list(zip(x.split(b"\n"), y.split(b"\n"), strict=False))
        line = next((k for k, (p, q) in enumerate(pairs) if p != q), len(pairs))
        shown = [text[line][:150] for text in zip(*pairs, strict=True)] if line < len(pairs) else []
        return f"{len(x)} and {len(y)} bytes, from line {line + 1} on {shown}"
    if isinstance(x, dict):
        return f"{x} and {y}"
    rows = [k for k, (p, q) in enumerate(zip(x, y, strict=False)) if p != q]
    return f"{len(x)} and {len(y)} rows, first different: {rows[:1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("folder", type=Path)
    run.add_argument("--checkout", type=Path, default=ROOT)
    run.add_argument("--paths", nargs="+", default=["judge", "rag", "models", "synthetic"])
    run.add_argument("--limit", type=int, default=120)
    run.add_argument("--kills", type=int, default=0, help="of each path, at most")
    run.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    compare = commands.add_parser("compare")
    compare.add_argument("one", type=Path)
    compare.add_argument("other", type=Path)
    a = parser.parse_args()
    if a.command == "compare":
        lines = list(differences(a.one, a.other))
        print("\n".join(lines) or f"{len(files_of(a.one))} files, all the same")
        raise SystemExit(bool(lines))
    for name in a.paths:
        kills = run_path(name, a.folder, a.checkout, a.limit, a.kills, a.seed)
        print(f"{name}: through, after {kills} kills", flush=True)


if __name__ == "__main__":
    main()
