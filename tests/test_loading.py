"""Loading from folders that the tests write; nothing is fetched."""

import json

import pytest
import tokenizers
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, Qwen2ForCausalLM

from prefpipe import chat
from prefpipe.llm import Failure, Request
from prefpipe.llm.local.local_engine import LocalEngine, open_local
from prefpipe.models.loading import load_model, load_tokenizer
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
        folder, device="cpu", auto_class=AutoModelForSequenceClassification, num_labels=1
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
