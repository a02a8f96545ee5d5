"""prefpipe.training.card: the hub reads it, and its text says what was trained on what."""

import json
from collections import Counter

import pytest
from huggingface_hub import ModelCard

from prefpipe.training.card import KINDS, in_words, write_card

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
        {"pairs": "data/dpo", "train pairs": 46},
        Counter({"tie": 1, "too_long": 2}),
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
    assert card.text.lstrip().startswith(f"# {KINDS[kind].title.format(model='base-1B')}\n")
    for line in ("- train pairs: 46", "- left out: 2 too_long, 1 tie", "- accuracy: 0.6667"):
        assert f"\n{line}\n" in card.text
    written = card.text.partition("```json\n")[2].partition("```")[0]
    assert json.loads(written) == SETTINGS
    prose = card.text.replace(written, "")
    assert "{" not in prose and "best checkpoint" in prose


def test_a_folder_is_no_base_model_of_the_hub_and_stands_in_the_text(tmp_path):
    settings = SETTINGS | {"model": str(tmp_path), "merge_adapter": True}
    write_card(tmp_path, "dpo", {}, Counter(), {}, settings)
    card = ModelCard.load(tmp_path / "README.md")
    facts = card.data.to_dict()
    assert "base_model" not in facts and facts["library_name"] == "transformers"
    assert f"- base model: {tmp_path}\n- left out: none\n" in card.text


def test_reasons_are_told_the_most_frequent_first():
    assert in_words(Counter({"tie": 1, "bad_row": 3})) == "3 bad_row, 1 tie"
    assert in_words(Counter()) == ""
