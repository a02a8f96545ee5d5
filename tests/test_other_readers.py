"""Preferences as they stand in a folder with a card, read by others: TRL, LLaMA-Factory, OpenRLHF.

TRL is installed and reads them itself. Of the other two the published key names are taken, and what
their converters ask of the values under them (LLaMA-Factory data/converter.py, OpenRLHF
datasets/reward_dataset.py), written down here anew.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from config import BASE_MODEL
from prefpipe.chat import conversation_ids
from prefpipe.files import Run, StageFacts
from prefpipe.models.loading import load_both
from prefpipe.publish.cards import write_data_card
from prefpipe.rows import JudgmentPair, Preference, Row, SyntheticPair
from tests.examples import ROOT, write_jsonl

TEXTS = [(f"What is {n}+{n}?", str(2 * n), f"{2 * n + 1}, I think.") for n in range(8)]


def turns(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def sides(form: str, texts: tuple[str, str, str]) -> dict[str, Any]:
    if form == "text":
        return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    return {
        "prompt": [*turns("system", "Be short."), *turns("user", texts[0])],
        "chosen": turns("assistant", texts[1]),
        "rejected": turns("assistant", texts[2]),
    }


def rows(kind: type[Row], form: str) -> list[Row]:
    more: dict[type[Row], dict[str, Any]] = {
        Preference: {"margin": 1.5, "source": "sums"},
        SyntheticPair: {
            "margin": 2.0, "source": None, "chosen_model": "a", "rejected_model": "b",
            "chosen_rating": 4.0, "rejected_rating": 2.0, "aspects": ["honesty"],
            "chosen_ratings": [4.0], "rejected_ratings": [None],
        },
        JudgmentPair: {
            "item_id": "x", "split": "train", "pair_type": "hint", "better": 1, "chosen_sample": 0,
            "rejected_sample": 0,
        },
    }  # fmt: skip
    return [
        kind.model_validate({"id": str(n), **sides(form, texts), **more[kind]})
        for n, texts in enumerate(TEXTS)
    ]


def published(tmp_path: Path, kind: type[Row], form: str) -> datasets.Dataset:
    """What load_dataset gives of a folder that a run wrote."""
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    ending = "parquet" if kind is JudgmentPair else "jsonl"
    path = tmp_path / "out" / f"train.{ending}"
    facts = StageFacts("parse_preferences", {}, {"seed": 1}, None, True, False)
    with Run(facts, inputs=[source], outputs={path: kind}, card=write_data_card) as run:
        run.read_count += 1
        run.emit(rows(kind, form))
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(path.parent), split="train", cache_dir=cache)
    assert isinstance(loaded, datasets.Dataset) and len(loaded) == len(TEXTS)
    return loaded


KINDS = [
    (Preference, "text"),
    (Preference, "turns"),
    (SyntheticPair, "text"),
    (JudgmentPair, "turns"),
]
each_kind = pytest.mark.parametrize(
    ("kind", "form"), KINDS, ids=lambda v: getattr(v, "__name__", v)
)


@pytest.fixture(scope="module")
def judge():
    return load_both(BASE_MODEL)


@each_kind
def test_trl_trains_dpo_on_them_unchanged(tmp_path, kind, form, judge):
    arguments = DPOConfig(
        output_dir=str(tmp_path / "dpo"), max_steps=1, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model, tokenizer = judge
    trainer = DPOTrainer(model, args=arguments, train_dataset=published(tmp_path, kind, form), processing_class=tokenizer)  # fmt: skip
    assert len(trainer.train_dataset) == len(TEXTS)
    shown = tokenizer.decode(trainer.train_dataset[0]["prompt_ids"])
    assert TEXTS[0][0] in shown
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("form", ["text", "turns"])
def test_trl_trains_a_reward_model_on_them_with_their_margins(tmp_path, form):
    model = AutoModelForSequenceClassification.from_pretrained(BASE_MODEL, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    arguments = RewardConfig(
        output_dir=str(tmp_path / "reward"), max_steps=1, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = RewardTrainer(model, args=arguments, train_dataset=published(tmp_path, Preference, form), processing_class=tokenizer)  # fmt: skip
    assert trainer.train_dataset is not None and trainer.train_dataset[0]["margin"] == 1.5
    assert trainer.train().training_loss > 0


INFO = {
    "ours": {
        "file_name": "train.jsonl",
        "ranking": True,
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    }
}
"""An entry of LLaMA-Factory's dataset_info.json, as data/README.md shows it."""


@pytest.mark.parametrize("kind", [Preference, SyntheticPair])
def test_llama_factory_takes_the_texts_under_the_names_of_its_columns(tmp_path, kind):
    """Its ranking rows of the form alpaca: prompt, chosen and rejected are text, or no ranking."""
    columns = INFO["ours"]["columns"]
    for row, texts in zip(published(tmp_path, kind, "text"), TEXTS, strict=True):
        assert isinstance(row, dict)
        assert tuple(row[columns[name]] for name in ("prompt", "chosen", "rejected")) == texts
    readme = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert json.dumps(INFO["ours"]["columns"]) in readme


@each_kind
def test_openrlhf_takes_them_under_its_keys(tmp_path, kind, form, judge):
    """--prompt_key prompt --chosen_key chosen --rejected_key rejected: texts are joined; turns are
    too, and rendered (--apply_chat_template), the prompt's text being taken off the front."""
    _, tokenizer = judge
    row: Any = None
    for row, texts in zip(published(tmp_path, kind, form), TEXTS, strict=True):
        assert isinstance(row, dict)
        if form == "text":
            assert row["prompt"] + row["chosen"] == texts[0] + texts[1]
            continue
        head = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        for side, text in (("chosen", texts[1]), ("rejected", texts[2])):
            whole = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            assert whole.startswith(head) and whole[len(head) :].startswith(text)
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            assert ids == conversation_ids(tokenizer, row["prompt"], text)
    assert float(row.get("margin") or 0) >= 0  # what its margin loss reads


def test_a_folder_that_was_copied_elsewhere_is_read_the_same(tmp_path):
    first = published(tmp_path, Preference, "turns")
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere/copy")
    again = datasets.load_dataset(
        str(tmp_path / "elsewhere/copy"), split="train", cache_dir=str(tmp_path / "cache2")
    )
    assert [*again] == [*first]
