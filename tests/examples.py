"""Rows that the tests of several stages use, and the way they run a stage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefpipe.judge import judge_prompt
from prefpipe.rows import Item, Judgment, Language, Split, Variant
from prefpipe.verdicts import render_judgment

ROOT = Path(__file__).parent.parent


def item(
    id: str, *, better: int | None = 1, split: Split = "train", language: Language = "en", **other
) -> Item:
    """A question with answers `<id> good` and `<id> bad`, the good one where better says."""
    answers = [f"{id} good", f"{id} bad"] if better != 2 else [f"{id} bad", f"{id} good"]
    question = other.pop("question", f"Question of {id}?" if language == "en" else f"{id}怎么样?")
    made = {
        "id": id,
        "source": "test",
        "split": split,
        "language": language,
        "question": question,
        "answer_1": answers[0],
        "answer_2": answers[1],
        "better": better,
        **other,
    }
    made["prompt"] = judge_prompt(
        question, made["answer_1"], made["answer_2"], language=made["language"]
    )
    return Item.model_validate(made)


def judgment(
    id: str, sample: int = 0, text: str = "", *, variant: Variant = "best_of_n", hint=None, **other
) -> Judgment:
    made = {"id": id, "sample": sample, "variant": variant, "hint": hint, "text": text}
    more = {"finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 1}
    return Judgment.model_validate(made | more | other)


def says(better: int, reason: str = "It is.", language: Language = "en") -> str:
    return render_judgment(reason, better, language)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def ledger(path: Path) -> dict[str, Any]:
    """The counts of a .meta.json, after checking that they add up."""
    counts = json.loads(path.read_text(encoding="utf-8"))["counts"]
    assert counts["read"] == counts["kept"] + sum(counts["left_out"].values())
    return counts


def run_stage(
    stage: str, *options: object, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The stage as a user runs it. cwd: a folder without .env; relative paths are relative to it."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"{stage}.py"), *map(str, options)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """What a failed run says; it must be one line, and no traceback."""
    assert result.returncode not in (0, None), result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    lines = result.stderr.strip().split("\n")
    assert len(lines) == 1, result.stderr
    return lines[0]
