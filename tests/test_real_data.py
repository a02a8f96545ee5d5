"""The judge path's stages, one behind the other, on real human-labelled preferences.

Real lengths, ties, unicode and code: the embedded model is mostly unreadable there, which is
counted; nothing crashes, no text changes on the way, and every ledger adds up.
"""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import accuracy
import construct_dpo_dataset
import dpo_dataset
import dpo_training
import inference_all
import inference_best_of_n
import post_processing
import preprocess_dataset
import train_reward_model
import translation
from prefpipe.files import WHOLE, read_rows
from prefpipe.files.ledger import Ledger
from prefpipe.files.shards import Shards
from prefpipe.rows import CleanJudgment, Item, Judgment
from prefpipe.training.preferences import why_left_out

ROOT = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("PREFPIPE_REAL_DATA", ROOT.parent / "shared/data"))
FILES = {
    "llmbar": ("llmbar.jsonl", ("output_1", "output_2")),
    "autoj": ("autoj_pairwise.jsonl", ("response 1", "response 2")),
}
LIMIT = 12
"""Items of each split that are judged: the embedded model reads 1,000 of these tokens a second."""

pytestmark = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="real data: set PREFPIPE_REAL_DATA to its folder"
)


@pytest.fixture(scope="module", params=FILES)
def chain(request, tmp_path_factory) -> tuple[str, Path]:
    """All stages run; (name of the data set, the folder of what they wrote)."""
    data = tmp_path_factory.mktemp(request.param)
    items, english, raw, clean = data / "items", data / "english", data / "raw", data / "clean"
    source = str(REAL_DATA / FILES[request.param][0])
    preprocess_dataset.main(
        preprocess_dataset.Settings(
            input=source, validation_input="", format=request.param, output=items
        )
    )
    translation.main(translation.Settings(input=items, output=english, offline=True))
    few: dict[str, Any] = {"limit": LIMIT}
    sampled: dict[str, Any] = {**few, "input": english, "max_new_tokens": 80}
    inference_best_of_n.main(
        inference_best_of_n.Settings(**sampled, output=raw / "best_of_n.jsonl", n=4)
    )
    inference_all.main(inference_all.Settings(**sampled, output=raw))
    post_processing.main(post_processing.Settings(**few, items=english, input=raw, output=clean))
    construct_dpo_dataset.main(
        construct_dpo_dataset.Settings(**few, items=english, input=clean, output=data / "dpo")
    )
    dpo_dataset.main(dpo_dataset.Settings(input=data / "dpo"))
    dpo_training.main(
        dpo_training.Settings(
            input=data / "dpo", output=data / "judge", max_length=3000, reference_cache=data / "c"
        )
    )
    accuracy.main(
        accuracy.Settings(
            **few,
            tuned=str(data / "judge"),
            items=english / "validation.jsonl",
            pairs=data / "dpo/validation.parquet",
            output=data / "accuracy",
            max_new_tokens=80,
        )
    )
    return request.param, data


def test_each_stage_reads_what_the_one_before_wrote_and_its_ledger_adds_up(chain):
    _, data = chain
    metas = {
        path.name.split(".")[0]: json.loads(path.read_text()) for path in data.rglob("*.meta.json")
    }
    assert len(metas) == 8  # of the nine stages, dpo_dataset writes nothing
    for name, meta in metas.items():
        counts = meta["counts"]
        assert counts["read"] == counts["kept"] + sum(counts["left_out"].values()), name


def test_every_row_becomes_an_item_with_its_own_texts_and_label(chain):
    name, data = chain
    file, fields = FILES[name]
    raw = {row["id"]: row for row in map(json.loads, (REAL_DATA / file).open(encoding="utf-8"))}
    rejects = sum(1 for _ in (data / "items/preprocess_dataset.rejects.jsonl").open())
    items = [
        i
        for split in ("train", "validation")
        for i in read_rows(data / f"english/{split}.jsonl", Item)
    ]
    assert len(items) + rejects == len(raw) and rejects < len(raw) / 50
    for item in items:
        row = raw[item.id]
        shown = [item.answer_1, item.answer_2]
        assert sorted(shown) == sorted(row[field] for field in fields)
        if name == "autoj" and row["label"] == 2:
            assert item.better is None
        else:
            best = row[fields[row["label"] - (1 if name == "llmbar" else 0)]]
            assert item.better is not None and shown[item.better - 1] == best


def test_what_cannot_be_read_is_counted_and_never_a_verdict(chain):
    _, data = chain
    asked = [
        i.id
        for s in ("train", "validation")
        for i in list(read_rows(data / f"english/{s}.jsonl", Item))[:LIMIT]
    ]
    raw = list(read_rows(data / "raw/best_of_n.jsonl", Judgment))
    failed = {json.loads(line)["id"] for line in (data / "raw/best_of_n.rejects.jsonl").open()}
    assert [(r.id, r.sample) for r in raw] == [
        (i, k) for i in asked if i not in failed for k in range(4)
    ]
    clean = list(read_rows(data / "clean/best_of_n.jsonl", CleanJudgment))
    assert all(
        (row.verdict is None) == (row.judgment is None) == (row.unreadable is not None)
        for row in clean
    )
    report = json.loads((data / "accuracy/accuracy.json").read_text())["judging"]["validation"][
        "base"
    ]
    rows = [json.loads(line) for line in (data / "accuracy/judgments.jsonl").open()]
    base = [row for row in rows if row["judge"] == "base"]
    assert report["readable"] == pytest.approx(
        sum(row["verdict"] is not None for row in base) / len(base), abs=1e-6
    )


def test_a_tie_is_in_no_pair_and_left_out_by_name(chain):
    name, data = chain
    ties = {
        i.id
        for s in ("train", "validation")
        for i in list(read_rows(data / f"english/{s}.jsonl", Item))[:LIMIT]
        if i.better is None
    }
    rejects = [
        json.loads(line) for line in (data / "dpo/construct_dpo_dataset.rejects.jsonl").open()
    ]
    assert {row["id"] for row in rejects if row["reason"] == "tie"} == ties
    assert bool(ties) == (name == "autoj")


UNPACKED = {
    # file -> (read as, kept, left out by reason): people's transcripts, a judge's soft preferences
    "hh_harmless.jsonl.gz": ("hh-rlhf", 1369, {"empty_answer": 4, "turns_differ": 2}),
    "alpacaeval_judged.jsonl.gz": (
        "alpacaeval-judged",
        6010,
        {"equal_answers": 19, "empty_answer": 1},
    ),
}


@pytest.mark.parametrize("name", UNPACKED)
def test_published_sets_are_read_with_no_option_by_preprocess_and_the_trainers(
    name, tmp_path, capsys
):
    read_as, kept, left_out = UNPACKED[name]
    path = tmp_path / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress((REAL_DATA / name).read_bytes()))
    preprocess_dataset.main(preprocess_dataset.Settings(input=str(path), output=tmp_path / "items"))
    meta = json.loads((tmp_path / "items/preprocess_dataset.meta.json").read_text())
    assert (meta["counts"]["kept"], meta["counts"]["left_out"]) == (kept, left_out)
    assert f"read as {read_as}, by its columns" in capsys.readouterr().out

    class Counted(Ledger):
        """What the trainers' reader needs of a run."""

        shards = Shards(WHOLE, Path("x"), by_logs=False)
        summary, faults = {}, []

        def bad_row(self, place, error, hint=""):
            self.faults.append(error.reason)

    run: Any = Counted([])
    placed = list(train_reward_model.Settings(input=str(path)).raw_preferences().read(run, "train"))
    faults = [reject.reason for p in placed if (reject := why_left_out(p, drop_ties=False))]
    assert Counter([*run.faults, *faults]) == left_out
    assert run.read_count == kept + sum(left_out.values())
