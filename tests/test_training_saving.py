"""prefpipe.training.saving and .curve: what is written can be read again, and is checked."""

import pytest
import torch

from prefpipe.models.loading import load_model
from prefpipe.training.curve import curve_rows, write_csv
from prefpipe.training.saving import check_reloaded, mean_logps, save_model, weight_dtype
from tests.training_models import pairs, qwen2, tokenizer


def test_a_model_that_was_not_saved_whole_is_noticed(tmp_path):
    rows = pairs([2])
    model = qwen2()
    expected = mean_logps(model, rows)
    assert check_reloaded(expected, qwen2(), rows, tmp_path) == 0
    broken = qwen2()
    with torch.no_grad():
        broken.lm_head.weight[int(rows[0].chosen_ids[0])] += 0.05
    with pytest.raises(RuntimeError, match="was not saved whole"):
        check_reloaded(expected, broken, rows, tmp_path)


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
    for completion, mean in zip((pair.chosen_ids, pair.rejected_ids), mean_logps(model, [pair]), strict=True):  # fmt: skip
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
