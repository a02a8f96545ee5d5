"""construct_dpo_dataset: pairs of judgments in the Parquet files that TRL takes as they are."""

import json

import datasets
import pytest

from construct_dpo_dataset import Settings, main
from post_processing import clean
from prefpipe.files import DataError, read_rows, write_rows
from prefpipe.rows import CleanJudgment, Item, JudgmentPair
from prefpipe.verdicts import parse_verdict
from tests.examples import item, judgment, ledger, read_jsonl, run_stage, says, sentence

META = "construct_dpo_dataset.meta.json"
ITEMS = [
    item(f"i{k}", better=1 + k % 2, split="train" if k < 6 else "validation") for k in range(9)
]


def judgments_of(made: Item, index: int) -> dict[str, list[CleanJudgment]]:
    """Two right samples, two wrong ones, one that nobody can read, both hinted texts."""
    right = made.better or 1
    texts = [says(v, f"{made.id} {k}") for k, v in enumerate([right, right, 3 - right, 3 - right])]
    rows = {
        "best_of_n": [judgment(made.id, k, text) for k, text in enumerate([*texts, "Hm."])],
        "guide": [judgment(made.id, 0, "It is.", variant="guide", hint=right)],
        "guide_reverse": [judgment(made.id, 0, "It is.", variant="guide_reverse", hint=3 - right)],
    }
    return {v: [clean(row, index=index, language="en") for row in r] for v, r in rows.items()}


def write(folder, items: list[Item] = ITEMS, judged: list[Item] | None = None) -> Settings:
    for split in ("train", "validation"):
        write_rows(folder / f"items/{split}.jsonl", [i for i in items if i.split == split], Item)
    of_items = [judgments_of(made, k) for k, made in enumerate(items if judged is None else judged)]
    for variant in ("best_of_n", "guide", "guide_reverse"):
        rows = [row for of_item in of_items for row in of_item[variant]]
        write_rows(folder / f"clean/{variant}.jsonl", rows, CleanJudgment)
    return Settings(items=folder / "items", input=folder / "clean", output=folder / "dpo")


def pairs(s: Settings, split: str) -> list[JudgmentPair]:
    return list(read_rows(s.output / f"{split}.parquet", JudgmentPair))


def test_the_command_makes_pairs_of_each_type_and_counts_them(tmp_path):
    write(tmp_path)
    result = run_stage(
        "construct_dpo_dataset", "--items", "items", "--input", "clean", "--output", "dpo",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "pairs: 12 train best_of_n, 6 train best_of_n_unreadable, 6 train hint, "
        "6 validation best_of_n, 3 validation best_of_n_unreadable, 3 validation hint\n"
        "dpo: 9 items read = 9 kept + 0 left out (none); "
        "written: 24 in train.parquet, 12 in validation.parquet\n"
    )
    meta = json.loads((tmp_path / "dpo" / META).read_text())
    assert meta["pair_types"]["train best_of_n"] == 12
    ledger(tmp_path / "dpo" / META)


def test_chosen_is_right_and_rejected_is_not_and_the_prompt_has_no_hint(tmp_path):
    s = write(tmp_path)
    main(s)
    by_id = {made.id: made for made in ITEMS}
    for split in ("train", "validation"):
        for pair in pairs(s, split):
            made = by_id[pair.item_id]
            assert pair.split == made.split == split
            assert [turn["content"] for turn in pair.prompt] == [made.prompt]
            chosen, rejected = (
                parse_verdict(t[0]["content"]) for t in (pair.chosen, pair.rejected)
            )
            assert getattr(chosen, "better", None) == made.better == pair.better
            assert getattr(rejected, "better", None) != made.better


def test_train_and_validation_share_no_item(tmp_path):
    s = write(tmp_path)
    main(s)
    ids = {split: {pair.item_id for pair in pairs(s, split)} for split in ("train", "validation")}
    assert ids == {"train": {f"i{k}" for k in range(6)}, "validation": {"i6", "i7", "i8"}}


def test_trl_and_datasets_take_the_files_as_they_are(tmp_path):
    s = write(tmp_path)
    main(s)
    from trl.data_utils import is_conversational

    loaded = datasets.load_dataset(
        "parquet",
        data_files={k: str(s.output / f"{k}.parquet") for k in ("train", "validation")},
        cache_dir=str(tmp_path / "cache"),
    )
    row = loaded["train"][0]
    assert is_conversational(row)
    assert row["prompt"][0]["role"] == "user" and row["chosen"][0]["role"] == "assistant"
    assert loaded["validation"].num_rows == 12


def test_the_pairs_of_an_item_do_not_depend_on_the_others(tmp_path):
    whole = write(tmp_path / "whole")
    main(whole)
    half = write(tmp_path / "half", [made for made in ITEMS if made.id in ("i1", "i4", "i7")])
    main(half)
    for split in ("train", "validation"):
        wanted = [pair for pair in pairs(whole, split) if pair.item_id in ("i1", "i4", "i7")]
        assert pairs(half, split) == wanted
    limited = whole.model_copy(update={"limit": 2, "output": tmp_path / "limited"})
    main(limited)
    ids = [pair.item_id for split in ("train", "validation") for pair in pairs(limited, split)]
    assert sorted(set(ids)) == ["i0", "i1", "i6", "i7"]


def test_the_limits_of_each_type_reach_the_pairs(tmp_path):
    s = write(tmp_path)
    main(s.model_copy(update={"max_best_of_n": 1, "max_unreadable": 0, "max_hint": 0}))
    assert {pair.pair_type for pair in pairs(s, "train")} == {"best_of_n"}
    assert len(pairs(s, "train")) == 6


def test_a_missing_item_is_left_out_by_reason(tmp_path):
    s = write(tmp_path, [*ITEMS, item("tie", better=None)], [m for m in ITEMS if m.id != "i2"])
    main(s)
    rejects = read_jsonl(s.output / "construct_dpo_dataset.rejects.jsonl")
    assert {row["id"]: row["reason"] for row in rejects} == {"i2": "no_judgments", "tie": "tie"}
    assert "i2" not in {pair.item_id for pair in pairs(s, "train")}


def test_no_train_pair_is_a_sentence_that_says_what_to_do(tmp_path):
    write(tmp_path, judged=[made for made in ITEMS if made.split == "validation"])
    result = run_stage(
        "construct_dpo_dataset", "--items", "items", "--input", "clean", "--output", "dpo",
        cwd=tmp_path,
    )  # fmt: skip
    said = sentence(result)
    assert "no train pair could be made of 9 items ({'no_judgments': 6})" in said
    assert said.endswith("sample more, or warmer, judgments")
    assert not list((tmp_path / "dpo").glob("*.parquet"))


def test_judgments_out_of_the_items_order_are_an_error(tmp_path):
    s = write(tmp_path, judged=[*ITEMS[1:], ITEMS[0]])
    with pytest.raises(DataError, match=r"id 'i\d' (stands twice or out of|is no item)"):
        main(s)
