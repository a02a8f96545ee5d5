"""prefpipe.training.record: the card says what was trained on what; a log as a table and a picture."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from config import BASE_MODEL
from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.ab_prompt import PairwiseFormat
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.judge import judge_prompt
from prefpipe.llm import Request
from prefpipe.llm.local.local_engine import open_local
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import load_both
from prefpipe.rows import Message
from prefpipe.training import saving
from prefpipe.training.record import KINDS, curve_rows, write_card, write_csv, write_curve

ABOUT = {
    "seed": "7",
    "versions": "python 3",
    "steps": "| step |",
    "ledger": "3 read",
    "settings": "{}",
}
SETTINGS = {
    "model": "owner/base-1B",
    "method": "lora",
    "merge_adapter": False,
    "checkpoint": "best",
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_front_matter_is_read_by_the_hub_and_its_text_has_no_gap(tmp_path, kind):
    data = {"pairs": "data/dpo", "train pairs": 46, "left out": "2 too_long, 1 tie"}
    write_card(tmp_path, kind, data, {"accuracy": 2 / 3, "ece": math.nan}, SETTINGS, ABOUT)
    card = ModelCard.load(tmp_path / "README.md")
    facts = card.data.to_dict()
    (result,) = facts.pop("model-index")[0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.666667}]
    assert facts == {
        "base_model": "owner/base-1B",
        "library_name": "peft",
        "pipeline_tag": KINDS[kind].task,
        "tags": ["trl", KINDS[kind].tag, "prefpipe"],
    }
    assert re.match(r"# A .+ on base-1B\n", card.text.lstrip())
    for line in ("- train pairs: 46", "- left out: 2 too_long, 1 tie", "- accuracy: 0.6667"):
        assert f"\n{line}\n" in card.text
    assert all(value in card.text for value in ABOUT.values())
    prose = re.sub(r"```.*?```", "", card.text, flags=re.S)
    assert "{" not in prose and "best checkpoint" in prose


def test_a_folder_is_no_base_model_of_the_hub_and_stands_in_the_text(tmp_path):
    settings = SETTINGS | {"model": str(tmp_path), "merge_adapter": True}
    write_card(tmp_path, "dpo", {"left out": "none"}, {}, settings, ABOUT)
    card = ModelCard.load(tmp_path / "README.md")
    facts = card.data.to_dict()
    assert "base_model" not in facts and facts["library_name"] == "transformers"
    assert f"- base model: {tmp_path}\n- left out: none\n" in card.text


def test_the_licence_is_the_one_that_the_base_models_card_states(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/README.md").write_text("---\nlicense: llama3\n---\n# A model\n")
    settings = SETTINGS | {"model": str(tmp_path / "base")}
    write_card(tmp_path, "reward", {}, {}, settings, ABOUT)
    assert ModelCard.load(tmp_path / "README.md").data.to_dict()["license"] == "llama3"


def printed_by_the_code(card: Path, capsys) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", card.read_text(), re.M | re.S)
    assert len([line for line in code.split("\n") if line]) <= 6
    capsys.readouterr()
    exec(code, {})
    return capsys.readouterr().out


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_code_of_a_reward_models_card_gives_the_score_that_the_run_gives(
    tmp_path, capsys, method
):
    torch.manual_seed(3)
    model: Any = AutoModelForSequenceClassification.from_pretrained(BASE_MODEL, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    model.config.pad_token_id = tokenizer.pad_token_id
    if method == "lora":
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear", init_lora_weights=False, modules_to_save=["score"])  # fmt: skip
        model = get_peft_model(model, lora)
    saving.save_model(model, tokenizer, tmp_path)
    write_card(tmp_path, "reward", {}, {}, SETTINGS | {"method": method}, ABOUT)
    loaded, tokenizer, is_causal, _ = load_classifier(tmp_path)
    how = RewardFormat(1024, True, read_at="template_end")
    scorer = RewardModel(loaded, tokenizer, how, is_causal)
    scores: Any = list(scorer.score([("2+2?", ["4"])]))
    ((score,),) = scores
    assert float(printed_by_the_code(tmp_path / "README.md", capsys)) == pytest.approx(
        score, abs=1e-4
    )


def test_the_code_of_a_pairwise_models_card_gives_the_probabilities_that_the_run_gives(
    tmp_path, capsys
):
    shutil.copytree(BASE_MODEL, tmp_path / "model")
    write_card(tmp_path / "model", "pairwise", {}, {}, SETTINGS, ABOUT)
    model, tokenizer = load_both(tmp_path / "model")
    scorer = PairwiseModel(model, tokenizer, PairwiseFormat(1024))
    compared: Any = list(scorer.compare([("2+2?", ["4", "5"], [(0, 1)])]))
    ((preferred,),) = compared
    first = float(
        printed_by_the_code(tmp_path / "model/README.md", capsys).split("[")[1].split(",")[0]
    )
    assert first == pytest.approx(preferred.p_given, abs=2e-4)


def test_the_code_of_a_judges_card_gives_the_text_that_the_run_gives(tmp_path, capsys):
    shutil.copytree(BASE_MODEL, tmp_path / "model")
    write_card(tmp_path / "model", "dpo", {}, {}, SETTINGS, ABOUT)
    prompt = judge_prompt("2+2?", "4", "5", language="en")
    request = Request("q", (Message(role="user", content=prompt),), max_new_tokens=200)
    results: Any = list(open_local(tmp_path / "model").generate([request]))
    ((completion,),) = results
    printed = printed_by_the_code(tmp_path / "model/README.md", capsys)
    assert printed.strip() == completion.text.strip()


def test_a_curve_has_one_row_a_step_and_no_times(tmp_path):
    log = [
        {"loss": 0.7, "learning_rate": 1e-4, "rewards/margins": 0.0, "epoch": 0.5, "step": 1},
        {"loss": 0.6, "learning_rate": 5e-5, "rewards/margins": 0.1, "epoch": 1.0, "step": 2},
        {"eval_loss": 0.65, "eval_runtime": 1.5, "eval_samples_per_second": 9, "epoch": 1.0, "step": 2},
        {"train_runtime": 3.0, "train_loss": 0.65, "total_flos": 0.0, "epoch": 1.0, "step": 2},
    ]  # fmt: skip
    rows = curve_rows(log)
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["eval_loss"] == 0.65
    write_csv(tmp_path / "curve.csv", log)
    assert (tmp_path / "curve.csv").read_text() == (
        "step,epoch,loss,eval_loss,learning_rate,rewards/margins\n"
        "1,0.5,0.7,,0.0001,0.0\n"
        "2,1.0,0.6,0.65,5e-05,0.1\n"
    )


def test_the_picture_stands_beside_the_table_also_where_a_curve_has_no_point(tmp_path):
    log = [{"loss": 0.7, "epoch": 1.0, "step": 1}, {"loss": 0.6, "epoch": 2.0, "step": 2}]
    panels = {"loss": "loss", "margin": "margin"}
    assert write_curve(tmp_path, log, panels, "a title") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"loss_curve.csv", "loss_curve.png"}
    assert (tmp_path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
