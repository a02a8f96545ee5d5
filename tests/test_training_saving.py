"""prefpipe.training.saving: what is written can be read again, and is checked."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefpipe.models.loading import bare_model, load_model
from prefpipe.training.collator import run_packed
from prefpipe.training.saving import (
    check_scores,
    mean_logp,
    save_and_reload,
    save_model,
    score_alone,
    skeleton,
    weight_dtype,
    whole_model,
)
from tests.training_models import pairs, qwen2, tokenizer


class Trained:
    """What save_and_reload takes of a trainer: its model and tokenizer, until it lets go of them."""

    def __init__(self, model, skeleton=None):
        self.model, self.processing_class = model, tokenizer()
        self.model_wrapped, self.skeleton = model, skeleton
        self.accelerator = SimpleNamespace(
            unwrap_model=lambda model, **_: model,
            get_state_dict=lambda model: {k: v.clone() for k, v in model.state_dict().items()},
            device="cpu",
        )

    def release(self):
        self.model = None


def logps(model, rows):
    return score_alone(model, rows, mean_logp)


def test_a_model_is_loaded_again_with_the_scores_of_the_trained_one(tmp_path):
    rows, trainer = pairs([2]), Trained(qwen2())
    expected = logps(qwen2(), rows)
    loaded, difference = save_and_reload(
        trainer, tmp_path, merge=False, score=lambda model: logps(model, rows)
    )
    assert trainer.model is None and difference == 0
    assert logps(loaded, rows) == expected and len(expected) == 4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_gathered_weights_make_the_model_that_was_trained(tied, method):
    """Where ranks share them; the one that was trained runs packs by then, this one plain rows."""
    model = qwen2(tie_word_embeddings=tied)
    if method == "lora":
        adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, adapter)
    run_packed(bare_model(model))
    empty, rows = skeleton(model), pairs([2])
    assert all(weight.is_meta for weight in empty.parameters())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    trained = Trained(model, empty)
    expected = logps(model, rows)
    whole = whole_model(trained)
    assert trained.model is None and logps(whole, rows) == pytest.approx(expected, abs=1e-5)
    ends = whole.get_input_embeddings(), whole.get_output_embeddings()
    assert (ends[0].weight is ends[1].weight) is tied
    assert not [m for m in whole.modules() if "forward" in vars(m)]


def test_weights_that_were_not_gathered_are_named():
    model = qwen2()
    trained = Trained(model, skeleton(model))
    trained.accelerator.get_state_dict = lambda model: {}
    with pytest.raises(RuntimeError, match="were not gathered"):
        whole_model(trained)


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_is_loaded_again_alone_or_merged(tmp_path, merge):
    base = tmp_path / "base"
    save_model(qwen2(), tokenizer(), base)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_model(base, device="cpu"), adapter)
    rows = pairs([2])
    expected = logps(model, rows)
    loaded, difference = save_and_reload(
        Trained(model), tmp_path / "out", merge=merge, score=lambda model: logps(model, rows)
    )
    assert difference <= 1e-4 and logps(loaded, rows) == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "out/adapter_config.json").exists() is not merge
    assert max(abs(a - b) for a, b in zip(logps(qwen2(), rows), expected, strict=True)) > 0.1


def test_a_model_that_was_not_saved_whole_is_noticed(tmp_path):
    rows = pairs([2])

    def broken(folder, **options):
        model = load_model(folder, **options)
        with torch.no_grad():
            model.lm_head.weight[int(rows[0].chosen_ids[0])] += 0.05
        return model

    with pytest.raises(RuntimeError, match="was not saved whole"):
        save_and_reload(
            Trained(qwen2()), tmp_path, merge=False, score=lambda m: logps(m, rows), load=broken
        )


def test_how_much_is_rounding_depends_on_the_weights_type(tmp_path):
    assert check_scores([1.0], [1.05], "bfloat16", tmp_path) == pytest.approx(0.05)
    with pytest.raises(RuntimeError, match=r"differ by up to 0.05 .*at most 0.0001 is rounding"):
        check_scores([1.0], [1.05], "float32", tmp_path)
    with pytest.raises(RuntimeError, match="nan"):
        check_scores([1.0], [float("nan")], "bfloat16", tmp_path)


def test_a_loaded_model_does_not_change_with_its_file(tmp_path):
    """safetensors maps the file; one that is written anew, as `cp` does it, showed through."""
    save_model(qwen2(), tokenizer(), tmp_path)
    model = load_model(tmp_path, device="cpu")
    before = {name: p.clone() for name, p in model.named_parameters()}
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:4000] + bytes(len(content) - 4000))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_mean_logps_are_those_of_the_models_own_loss():
    """Cross-entropy with everything but the completion masked, as transformers computes it."""
    (pair,) = pairs([1])
    model = qwen2()
    for completion, mean in zip((pair.chosen_ids, pair.rejected_ids), logps(model, [pair]), strict=True):  # fmt: skip
        ids = torch.tensor([[*pair.prompt_ids, *completion]], dtype=torch.long)
        labels = ids.clone()
        labels[0, : len(pair.prompt_ids)] = -100
        with torch.no_grad():
            assert mean == pytest.approx(-model(ids, labels=labels).loss.item(), abs=1e-5)


def test_saving_takes_the_earlier_model_away(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_text("old")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "loss_curve.csv").write_text("kept")
    names = save_model(qwen2(), tokenizer(), tmp_path)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(names)
    assert {p.name for p in tmp_path.iterdir()} == {*names, "loss_curve.csv"}


def test_the_type_of_the_weights_is_that_of_the_base():
    model = qwen2().bfloat16()
    assert weight_dtype(model) == "bfloat16"
