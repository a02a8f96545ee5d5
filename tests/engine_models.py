"""Small random models and a tokenizer for the tests of the local engine and of loading."""

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

END, EOS = 2, 0
LETTERS = [chr(97 + i) for i in range(26)] + [" "]
PAIRS = [a + b for a in "abcdefgh" for b in "abcdefgh"]
VOCAB = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "\n", "<pad>", *LETTERS, *PAIRS]

SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2_tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2_untied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "qwen2_some_layers_windowed": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1},
    ),
    "llama_no_gqa": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4}),
    "llama_head_dim": (LlamaConfig, LlamaForCausalLM, {"head_dim": 8, "num_key_value_heads": 1}),
    "mistral_windowed": (MistralConfig, MistralForCausalLM, {"sliding_window": 40}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    """Letters, pairs of a to h, newline: every text of these has one token sequence."""
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(VOCAB)}, unk_token="<|endoftext|>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-h][a-h]|.|\n"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<pad>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_config(shape: str, **changes):
    config, _, options = SHAPES[shape]
    values: dict[str, Any] = {
        "vocab_size": len(VOCAB),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": EOS,
        "bos_token_id": None,
        "pad_token_id": 4,
        # large: a random model with small weights hardly depends on its input
        "initializer_range": 0.3,
    }
    return config(**values | options | changes)


def make_model(shape: str = "qwen2_tied", seed: int = 0, **changes):
    torch.manual_seed(seed)
    return SHAPES[shape][1](make_config(shape, **changes)).eval()
