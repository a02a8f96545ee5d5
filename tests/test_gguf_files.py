"""prefpipe.models.gguf_files: the embedded model, written as llama.cpp would, is the embedded model."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.numpy import load_file

import config
from prefpipe import chat
from prefpipe.models import gguf_files
from prefpipe.models.loading import load_both
from prefpipe.rows import Message
from prefpipe.settings import local_folders

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EMBEDDED = Path(config.BASE_MODEL)


def write_gguf(path: Path) -> Path:
    """The embedded model by the format's own library: its names, its metadata."""
    own = json.loads((EMBEDDED / "config.json").read_text())
    words = json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(own["max_position_embeddings"])
    writer.add_embedding_length(own["hidden_size"])
    writer.add_block_count(own["num_hidden_layers"])
    writer.add_feed_forward_length(own["intermediate_size"])
    writer.add_head_count(own["num_attention_heads"])
    writer.add_head_count_kv(own["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(own["rms_norm_eps"])
    writer.add_rope_freq_base(own["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = sorted(words["vocab"], key=words["vocab"].get)
    writer.add_token_list(tokens)
    control, plain = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if t.startswith("<|") else plain for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_eos_token_id(own["eos_token_id"])
    writer.add_pad_token_id(own["pad_token_id"])
    writer.add_chat_template((EMBEDDED / "chat_template.jinja").read_text())
    for name, weight in load_file(EMBEDDED / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, block, inner = stem.split(".", 3)
            writer.add_tensor(f"blk.{block}.{NAMES[inner]}.{kind}", weight)
        else:
            writer.add_tensor(f"{NAMES[stem]}.{kind}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(gguf_files, "cache", tmp_path / "cache")
    return write_gguf(tmp_path / "embedded.gguf")


def test_a_gguf_file_is_the_model_it_was_made_of(file, capsys):
    model, tokenizer = load_both(str(file))
    want, own = load_both(EMBEDDED)
    turns = [Message(role="user", content="Tell me the month of Fay, 12 + 30?  是的\n")]
    ids = chat.prompt_ids(tokenizer, turns)
    assert ids == chat.prompt_ids(own, turns)
    assert chat.completion_ids(tokenizer, "May.") == chat.completion_ids(own, "May.")
    batch = torch.tensor([ids])
    with torch.no_grad():
        assert torch.equal(model(batch).logits, want(batch).logits)
    assert "embedded.gguf: unpacked to" in capsys.readouterr().err
    # once: a folder that holds nothing else is the same, and so is a second load
    load_both(str(file.parent))
    assert not capsys.readouterr().err
    assert local_folders(str(file)) == [file]


def test_what_is_no_model_in_a_gguf_file_is_a_sentence(file, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(
        SystemExit, match=r"cannot read this GGUF file .*; serve it with llama\.cpp"
    ):
        load_both(str(broken))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SystemExit, match=r"cannot read this GGUF file"):
        load_both(str(cut))
    with pytest.raises(
        SystemExit, match=r"several GGUF files \(broken.gguf, cut.gguf, embedded.gguf"
    ):
        load_both(str(tmp_path))
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name[0] != "."]


def test_a_model_of_a_package_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(gguf_files.PACKAGED, "Some-1B", "no_such_package")
    with pytest.raises(SystemExit, match="model Some-1B: its package is missing; run `uv sync"):
        load_both("Some-1B")
