"""The judge path on the embedded model, small: the stages as a user runs them, and what comes out.

The full measurement is benchmarks/judge_gain.py; here a few hundred questions show that the tuned
judge is better than its base, that a second run does nothing, and that the ledgers add up.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = (
    "preprocess_dataset",
    "translation",
    "inference_best_of_n",
    "inference_all",
    "post_processing",
    "construct_dpo_dataset",
    "dpo_training",
    "accuracy",
)
OPTIONS = {"preprocess_dataset": ["--limit", "300"], "translation": ["--offline"]}


def run(data: Path, stage: str, *options: str) -> str:
    environment = {**os.environ, "PREFPIPE_DATA": str(data), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, f"{stage}.py", *OPTIONS.get(stage, []), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{stage}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    data = tmp_path_factory.mktemp("chain")
    return data, {stage: run(data, stage) for stage in STAGES}


def test_the_tuned_judge_is_better_than_its_base_on_held_out_questions(chain):
    data, _ = chain
    report = json.loads((data / "accuracy/accuracy.json").read_text())["judging"]["validation"]
    assert report["base"]["n"] == 300
    assert 0.5 < report["base"]["accuracy"] < 0.75, "the base is mediocre on purpose"
    assert report["tuned"]["accuracy"] > report["base"]["accuracy"] + 0.08
    assert report["tuned"]["interval"][0] > report["base"]["interval"][1], "beyond both intervals"
    assert report["mcnemar_p"] < 0.01
    # the accuracy again, from the rows that it was made of
    rows = [
        json.loads(line) for line in (data / "accuracy/judgments.jsonl").read_text().splitlines()
    ]
    tuned = [row["verdict"] == row["better"] for row in rows if row["judge"] == "tuned"]
    assert len(tuned) == 600
    assert sum(tuned) / 600 == pytest.approx(report["tuned"]["accuracy"])


def test_the_last_stage_prints_both_judges_and_where_the_files_are(chain):
    _, printed = chain
    for words in ("base judge", "tuned judge", "readable share", "first-position rate"):
        assert words in printed["accuracy"]
    assert "accuracy.json" in printed["accuracy"]


def test_a_second_run_finds_every_stage_finished(chain):
    data, _ = chain
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file()}
    for stage in STAGES:
        assert "finished before" in run(data, stage)
    assert before == {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file()}


def test_every_ledger_adds_up(chain):
    data, _ = chain
    metas = list(data.rglob("*.meta.json"))
    assert len(metas) == len(STAGES)
    for path in metas:
        counts = json.loads(path.read_text())["counts"]
        assert counts["read"] == counts["kept"] + sum(counts["left_out"].values()), path


def test_no_hint_and_no_held_out_question_is_trained_on(chain):
    import pyarrow.parquet

    data, _ = chain
    train, held_out = (
        pyarrow.parquet.read_table(data / f"dpo/{split}.parquet").to_pylist()
        for split in ("train", "validation")
    )
    assert {row["pair_type"] for row in train} == {"best_of_n", "best_of_n_unreadable", "hint"}
    assert not {r["item_id"] for r in train} & {r["item_id"] for r in held_out}
    prompts = {row["prompt"][0]["content"] for row in train}
    assert not prompts & {row["prompt"][0]["content"] for row in held_out}
    assert not any("is better. Say why" in prompt for prompt in prompts)
