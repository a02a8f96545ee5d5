"""dpo_dataset: what a person should see before training on pairs."""

import json

import pytest

from dpo_dataset import problems_of, summarise
from prefpipe import chat
from prefpipe.files import write_rows
from prefpipe.rows import JudgmentPair
from tests.examples import item, run_stage, says, sentence
from tests.tokenizers_of_chats import tokenizer_of


def pair(id: str, number: int = 0, *, split: str = "train", **changes) -> JudgmentPair:
    made = item(id, better=1, split="train", **changes.pop("of_item", {}))
    row = {
        "id": f"{id}:hint:{number}",
        "item_id": id,
        "split": split,
        "pair_type": "hint",
        "better": 1,
        "prompt": [{"role": "user", "content": made.prompt}],
        "chosen": says(1),
        "rejected": says(2),
        "chosen_sample": 0,
        "rejected_sample": 0,
        **changes,
    }
    for side in ("chosen", "rejected"):
        row[side] = [{"role": "assistant", "content": row[side]}]
    return JudgmentPair.model_validate(row)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of("qwen2")


GOOD = [
    pair("a", 0),
    pair("a", 1, pair_type="best_of_n", rejected="I can't say."),
    pair("b", 0, better=2, chosen=says(2), rejected=says(1)),
    pair("c", 0, split="validation"),
]


def test_the_counts_are_those_of_a_hand_count(tokenizer):
    summary = summarise(GOOD, tokenizer, samples=1)
    assert summary["pairs"] == {"train": 3, "validation": 1}
    assert summary["questions"] == {"train": 2, "validation": 1}
    assert summary["pair_types"] == {
        "train": {"best_of_n": 1, "hint": 2},
        "validation": {"hint": 1},
    }
    assert summary["better"] == {"train": {"1": 2, "2": 1}, "validation": {"1": 1, "2": 0}}
    assert summary["problems"] == {} and summary["problem_rows"] == []
    assert [row["id"] for rows in summary["samples"].values() for row in rows] == [
        "a:hint:0",
        "a:hint:1",
    ]


def test_lengths_are_those_of_what_is_trained_on(tokenizer):
    """The prompt with its chat template; a completion with its end of turn. One token a character."""
    tokens = summarise(GOOD[:2], tokenizer, samples=0)["tokens"]
    prompt = len(chat.prompt_ids(tokenizer, GOOD[0].prompt))
    assert tokens["prompt"] == {"min": prompt, "median": prompt, "p95": prompt, "max": prompt}
    assert tokens["chosen"]["max"] == len(says(1)) + 1
    assert tokens["rejected"]["min"] == len("I can't say.") + 1
    assert tokens["rejected"]["median"] == (len("I can't say.") + len(says(2)) + 2) / 2


PROBLEMS = {
    "chosen_is_rejected": {"rejected": says(1)},
    "chosen_unreadable": {"chosen": "The first."},
    "chosen_has_the_wrong_verdict": {"chosen": says(2, "x")},
    "rejected_has_the_right_verdict": {"rejected": says(1, "x")},
    "prompt_does_not_end_with_the_user": {"prompt": [{"role": "assistant", "content": "x"}]},
}


@pytest.mark.parametrize("reason", PROBLEMS)
def test_what_would_spoil_the_training_is_found(tokenizer, reason):
    found = [problem.reason for problem in problems_of(pair("a", **PROBLEMS[reason]))]
    assert reason in found
    assert not [problem for made in GOOD for problem in problems_of(made)]
    assert set(found) <= {reason, "rejected_has_the_right_verdict"}


def test_leaks_between_the_splits_and_repeated_ids_are_found(tokenizer):
    leaks = {
        "item_in_train_and_validation": pair(
            "a", 5, split="validation", of_item={"question": "Q?"}
        ),
        "question_in_train_and_validation": pair(
            "d", split="validation", of_item={"question": "question  OF a", "answer_2": "another"}
        ),
        "id_stands_twice": pair("a", 0),
    }
    for reason, made in leaks.items():
        assert summarise([*GOOD, made], tokenizer, samples=0)["problems"] == {reason: 1}


def test_the_command_shows_a_table_or_json_and_fails_on_a_problem(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    train = [made for made in GOOD if made.split == "train"]
    write_rows(tmp_path / "dpo/train.parquet", train, JudgmentPair)
    write_rows(tmp_path / "dpo/validation.parquet", GOOD[3:], JudgmentPair)
    options = ["--input", "dpo", "--model", "tokenizer"]
    shown = run_stage("dpo_dataset", *options, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "train" in shown.stdout and "3 pairs of 2 questions: 1 best_of_n, 2 hint" in shown.stdout
    assert says(1) in shown.stdout and shown.stdout.endswith("\nproblems: none\n")

    bad = pair("e", chosen="The first.")
    write_rows(tmp_path / "dpo/train.parquet", [*train, bad], JudgmentPair)
    shown = run_stage("dpo_dataset", *options, "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["problems"] == {"chosen_unreadable": 1}
    assert sentence(shown) == "dpo: 1 problems, see above"


def test_no_pairs_is_a_sentence(tmp_path):
    result = run_stage("dpo_dataset", "--input", "none", "--model", "none", cwd=tmp_path)
    assert result.returncode and "Traceback" not in result.stderr
