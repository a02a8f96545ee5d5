"""Loading from folders that the tests write; nothing is fetched."""

import json
import shutil
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Qwen2ForCausalLM

import inference_all
from prefpipe import chat
from prefpipe.llm import Failure, Request
from prefpipe.llm.local.local_engine import LocalEngine, open_local
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import load_both, load_model, load_tokenizer, max_positions
from prefpipe.rows import Message
from tests.engine_models import make_model, make_tokenizer

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, folder):
    path = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    base = load_model(folder)
    get_peft_model(base, config).save_pretrained(path)
    saved = json.loads((path / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = str(folder)
    (path / "adapter_config.json").write_text(json.dumps(saved))
    return path


IDS = torch.tensor([[1, 20, 30, 40, 50]])


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS.to(model.device)).logits.float()


def test_a_cpu_gets_float32_and_another_dtype_only_when_asked(folder):
    assert load_model(folder, device="cpu").dtype == torch.float32
    assert load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_never_gets_float32_unasked(folder):
    model = load_model(folder)
    assert model.dtype == torch.bfloat16 and model.device.type == "cuda"


def test_a_loaded_model_is_in_eval_mode_and_gives_the_saved_ones_logits(folder):
    model = load_model(folder, device="cpu")
    assert not model.training
    torch.testing.assert_close(logits(model), logits(make_model()))


def test_a_missing_model_is_one_sentence(tmp_path):
    for name in (str(tmp_path / "nothing"), "nobody/no-such-model"):
        for load in (load_model, load_tokenizer):
            with pytest.raises(SystemExit, match=r"no such folder") as caught:
                load(name)
            assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit) as caught:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_pickled_weights_are_not_read(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(make_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="safetensors"):
        load_model(tmp_path, device="cpu")


def test_code_of_a_model_folder_is_not_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise AssertionError('this code was run')")
    with pytest.raises(SystemExit):
        load_model(tmp_path, device="cpu")


def test_training_on_4bit_weights_on_a_cpu_is_refused(folder):
    with pytest.raises(SystemExit, match="4-bit weights cannot be trained on cpu"):
        load_model(folder, device="cpu", load_in_4bit=True, for_training=True)


def test_a_device_that_is_not_there_is_refused(folder):
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(SystemExit, match=f"device {absent}: not on this machine"):
        load_model(folder, device=absent)


def test_an_adapter_folder_is_its_base_model_with_it(folder, adapter):
    by_hand = PeftModel.from_pretrained(load_model(folder, device="cpu"), str(adapter))
    want = logits(by_hand)
    assert (want - logits(make_model())).abs().max() > 0.01
    merged = load_model(adapter, device="cpu")
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged), want, atol=1e-4, rtol=1e-4)
    beside = load_model(adapter, device="cpu", dtype="bfloat16")
    assert isinstance(beside, PeftModel)


def test_an_adapter_for_training_has_its_weights_to_train_and_no_others(adapter):
    model = load_model(adapter, device="cpu", for_training=True)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_an_engine_with_an_adapter_beside_the_weights_gives_the_merged_ones_texts(adapter):
    tokenizer = load_tokenizer(adapter)
    asked = [
        Request(str(i), (Message(role="user", content="hello " * (i + 1)),), max_new_tokens=12)
        for i in range(4)
    ]
    beside = load_model(adapter, device="cpu", for_training=True)
    assert isinstance(beside, PeftModel)
    assert list(LocalEngine(beside, tokenizer).generate(asked)) == list(
        open_local(adapter).generate(asked)
    )


def test_a_folders_tokenizer_splits_text_as_its_own_file_says(folder):
    text = "hello abcd\nyes"
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder)(text)["input_ids"] == own.encode(text).ids
    assert own.decode(own.encode(text).ids) == text


def test_a_pad_token_is_one_the_vocabulary_has(tmp_path, folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token == "<pad>"
    assert len(tokenizer) == len(make_tokenizer())
    without = (folder / "tokenizer.json").read_text().replace("<pad>", "<nothing>")
    (tmp_path / "tokenizer.json").write_text(without)
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = []
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).pad_token == "<|endoftext|>" == config["eos_token"]


def test_a_sequence_classifier_loads_by_the_same_function(folder):
    model = load_model(
        folder,
        device="cpu",
        auto_class=AutoModelForSequenceClassification,
        num_labels=1,
        new_head=True,
    )
    assert isinstance(model.score, torch.nn.Linear) and model.score.out_features == 1


def test_a_narrow_qwen2_7b_in_4bit_gives_generates_greedy_tokens(tmp_path):
    # Qwen2-7B's config but for its width, depth and vocabulary
    model = make_model(
        "qwen2_untied",
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        max_position_embeddings=32768,
    )
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    engine = open_local(tmp_path, load_in_4bit=True)
    assert isinstance(engine.model, Qwen2ForCausalLM) and engine.model.is_loaded_in_4bit
    request = Request("a", (Message(role="user", content="hello you"),), max_new_tokens=10)
    [result] = engine.generate([request])
    assert not isinstance(result, Failure)
    [found] = result
    ids = torch.tensor([chat.prompt_ids(engine.tokenizer, request.messages)])
    ids = ids.to(engine.model.device)
    out = engine.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=sorted(engine.end_ids),
        pad_token_id=4,
    )[0, ids.shape[1] :]
    assert found.text == engine.tokenizer.decode(out, skip_special_tokens=True)


# ---- whole or not at all


def changed(folder, path, change):
    """A copy of the folder with other weights; change: of name -> tensor."""
    shutil.copytree(folder, path, dirs_exist_ok=True)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_missing_weights_are_refused_by_name_and_not_drawn_at_random(folder, tmp_path):
    renamed = changed(folder, tmp_path / "a", lambda w: {f"_orig_mod.{k}": v for k, v in w.items()})
    with pytest.raises(SystemExit, match=r"weights .* more are missing.*it has _orig_mod\."):
        load_model(renamed)
    cut = changed(folder, tmp_path / "b", lambda w: {k: v for k, v in w.items() if ".1." not in k})
    with pytest.raises(SystemExit, match=r"model\.layers\.1\..*would be random"):
        load_model(cut)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(folder, tmp_path, value):
    def spoil(weights):
        weights["model.layers.1.mlp.down_proj.weight"][0, 0] = value
        return weights

    with pytest.raises(SystemExit, match=r"layers\.1\.mlp\.down_proj\.weight have values that are"):
        load_model(changed(folder, tmp_path, spoil))


def test_a_tokenizer_with_more_tokens_than_there_are_embeddings_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=r"tokens up to number \d+, the embeddings \d+ rows"):
        load_both(tmp_path)


def test_a_special_token_that_no_conversation_has_may_lie_beyond_the_embeddings(folder, tmp_path):
    """Gemma 3's text models have one for images."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens("<image>", special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    assert load_both(tmp_path)[0].config.vocab_size <= max(tokenizer.get_vocab().values())


DAMAGE = {
    "config.json": ["", "[1]", '{"model_type": "qwen2", "hidden_size": "x"}', "[" * 100_000],
    "model.safetensors": ["", "x", "x" * 500],
    "tokenizer.json": ["", "[1]", '{"model": {"type": "nope"}}'],
    "tokenizer_config.json": ["", "[1]", "{'", "\xe4"],
    "generation_config.json": ["[1]"],
}


@pytest.mark.parametrize(("name", "text"), [(k, v) for k in DAMAGE for v in DAMAGE[k]])
def test_whatever_a_model_folder_holds_is_one_short_sentence(folder, tmp_path, name, text):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit) as caught:
        load_both(tmp_path)
    sentence = str(caught.value)
    assert str(tmp_path) in sentence and "\n" not in sentence
    assert len(sentence.replace(str(tmp_path), "")) < 250


def test_a_folder_without_its_tokenizers_file_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SystemExit):
        load_both(tmp_path)


def test_a_generation_config_that_cannot_be_saved_is_mended(folder, tmp_path):
    """Llama 2's: a temperature without do_sample."""
    shutil.copytree(folder, tmp_path / "in", dirs_exist_ok=True)
    own = {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "eos_token_id": 0}
    (tmp_path / "in" / "generation_config.json").write_text(json.dumps(own))
    model = load_model(tmp_path / "in")
    model.save_pretrained(tmp_path / "out")
    assert load_model(tmp_path / "out").generation_config.temperature == 0.9


def test_of_several_chat_templates_the_default_is_kept(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = make_tokenizer()
    plain = tokenizer.chat_template
    tokenizer.chat_template = {"default": plain, "rag": "{{ messages }}"}
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == plain
    loaded.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").chat_template == plain


def test_a_classifier_with_two_labels_is_no_reward_model(folder, tmp_path):
    config = make_model().config
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="a classifier with 2 labels; a reward model has one"):
        load_classifier(tmp_path, new_head=True)


def test_a_causal_model_without_a_head_is_no_reward_model_but_a_base_to_train(folder):
    with pytest.raises(SystemExit, match=r"score\.weight are missing, and would be random"):
        load_classifier(folder)
    assert load_classifier(folder, new_head=True)[0].config.num_labels == 1


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "longformer", "bloom"])
def test_positions_are_those_that_a_row_can_have(kind):
    shape: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    configs = {
        "roberta": transformers.RobertaConfig(**shape, max_position_embeddings=20, pad_token_id=1),
        "mpnet": transformers.MPNetConfig(**shape, max_position_embeddings=20),
        "longformer": transformers.LongformerConfig(
            **shape, max_position_embeddings=20, pad_token_id=1, attention_window=[4]
        ),
        "bloom": transformers.BloomConfig(vocab_size=60, hidden_size=32, n_layer=1, n_head=2),
    }
    model = AutoModelForSequenceClassification.from_config(configs[kind]).eval()
    limit = max_positions(model)
    if kind == "bloom":  # no table: any length
        assert limit > 100_000
        return
    with torch.no_grad():
        model(torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


def test_a_stage_computes_in_the_numbers_that_it_is_told(tmp_path):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    stages = {
        torch.float32: inference_all.Settings(model=str(folder)),
        torch.bfloat16: inference_all.Settings(model=str(folder), dtype="bfloat16"),
    }
    for wanted, stage in stages.items():
        engine = stage.open_engine(stage.model)
        assert isinstance(engine, LocalEngine) and engine.model.dtype == wanted
        assert stage.where_scored()["weights"]["dtype"] == stage.dtype
