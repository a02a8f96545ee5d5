"""prefpipe.training.record: the card says what was trained on what; a log as a table and a picture."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from prefpipe.training.record import KINDS, curve_rows, write_card, write_csv, write_curve

SETTINGS = {
    "model": "owner/base-1B",
    "method": "lora",
    "merge_adapter": False,
    "checkpoint": "best",
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_front_matter_is_read_by_the_hub_and_its_text_has_no_gap(tmp_path, kind):
    write_card(
        tmp_path,
        kind,
        {"pairs": "data/dpo", "train pairs": 46, "left out": "2 too_long, 1 tie"},
        {"accuracy": 2 / 3},
        SETTINGS,
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "base_model": "owner/base-1B",
        "library_name": "peft",
        "pipeline_tag": KINDS[kind].task,
        "tags": ["trl", KINDS[kind].tag],
    }
    assert re.match(r"# A .+ on base-1B\n", card.text.lstrip())
    for line in ("- train pairs: 46", "- left out: 2 too_long, 1 tie", "- accuracy: 0.6667"):
        assert f"\n{line}\n" in card.text
    written = card.text.partition("```json\n")[2].partition("```")[0]
    assert json.loads(written) == SETTINGS
    prose = card.text.replace(written, "")
    assert "{" not in prose and "best checkpoint" in prose


def test_a_folder_is_no_base_model_of_the_hub_and_stands_in_the_text(tmp_path):
    settings = SETTINGS | {"model": str(tmp_path), "merge_adapter": True}
    write_card(tmp_path, "dpo", {"left out": "none"}, {}, settings)
    card = ModelCard.load(tmp_path / "README.md")
    facts = card.data.to_dict()
    assert "base_model" not in facts and facts["library_name"] == "transformers"
    assert f"- base model: {tmp_path}\n- left out: none\n" in card.text


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
