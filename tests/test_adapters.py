"""prefpipe.models.adapters: an adapter is put on its base whole, or refused; what it must save."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
)

from prefpipe.models.adapters import check_savable, check_targets, new_modules
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import load_both, load_model
from tests.engine_models import make_model, make_tokenizer

IDS = torch.tensor([[1, 20, 30, 40, 50]])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder, model, config, tokenizer=None, **changes):
    """A folder with an adapter of random weights on the model."""
    torch.manual_seed(1)
    get_peft_model(model, config).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def lora(**options):
    return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False} | options)  # fmt: skip


def test_an_adapter_with_new_tokens_gets_a_base_of_their_size(base, tmp_path):
    model, tokenizer = load_both(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "</tool>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = lora(modules_to_save=["embed_tokens", "lm_head"])
    want = get_peft_model(model, config).eval()
    folder = adapter(tmp_path, load_model(base), config, tokenizer)
    want.save_pretrained(folder)
    loaded, _ = load_both(folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, want(IDS).logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_lacks_a_weight_is_refused(base, tmp_path):
    folder = adapter(tmp_path, load_model(base), lora())
    weights = load_file(folder / "adapter_model.safetensors")
    lost = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "adapter_model.safetensors")
    with pytest.raises(SystemExit, match="of its weights are missing"):
        load_model(folder)


def test_an_adapter_that_puts_tokens_before_a_text_is_refused(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(SystemExit, match="kind PROMPT_TUNING puts tokens of its own"):
        load_model(adapter(tmp_path, load_model(base), config))


def test_a_base_that_is_not_there_is_named_as_the_adapters(base, tmp_path):
    moved = {"base_model_name_or_path": "/home/someone/models/llama"}
    folder = adapter(tmp_path, load_model(base), lora(), **moved)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(SystemExit, match=r"its base /home/someone.*set base_model_name_or_path"):
        load_both(folder)


def test_the_bases_revision_is_asked_for(base, tmp_path):
    folder = adapter(tmp_path, load_model(base), lora(), revision="v2.0", base_model_name_or_path=str(base))  # fmt: skip
    from transformers import AutoModelForCausalLM

    asked = []

    class Auto:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append(options.pop("revision", None))
            return AutoModelForCausalLM.from_pretrained(name, **options)

    load_model(folder, auto_class=Auto)
    assert asked == ["v2.0"]


def test_an_adapter_without_a_head_is_no_reward_model(base, tmp_path):
    model = load_classifier(base, new_head=True)[0]
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    whole = adapter(tmp_path / "whole", model, lora(**config), base_model_name_or_path=str(base))
    assert load_classifier(whole)[0].config.num_labels == 1
    model = load_classifier(base, new_head=True)[0]
    part = adapter(
        tmp_path / "part", model, lora(task_type=None), base_model_name_or_path=str(base)
    )
    with pytest.raises(SystemExit, match=r"score\.weight are missing, and would be random"):
        load_classifier(part)


SHAPE: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "modules"),
    [
        (DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=2, hidden_dim=32), ["pre_classifier", "classifier"]),
        (DebertaV2Config(**SHAPE), ["pooler", "classifier"]),
        (BertConfig(**SHAPE), ["classifier", "pooler"]),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)  # fmt: skip
def test_all_of_a_new_head_is_saved_with_an_adapter(config, modules):
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    assert new_modules(model) == modules
    saved = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=modules)
    check_savable(get_peft_model(model, saved))


def test_a_trained_weight_that_would_not_be_saved_is_found_before_the_training(base):
    model: Any = get_peft_model(load_model(base), lora())
    model.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(SystemExit, match="would be trained and not saved"):
        check_savable(model)


def test_targets_that_the_model_has_not_or_that_are_tied_are_refused():
    tied, untied = make_model(), make_model("qwen2_untied")
    check_targets(tied, ["q_proj", "v_proj"])
    check_targets(untied, ["lm_head"])
    with pytest.raises(SystemExit, match=r"no 'query'; its linear layers are down_proj"):
        check_targets(tied, ["query"])
    with pytest.raises(SystemExit, match="has its weights in common"):
        check_targets(tied, ["lm_head"])
