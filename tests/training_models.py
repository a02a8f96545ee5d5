"""Tiny random models and token pairs for the tests of prefpipe.training. Nothing is downloaded."""

import random
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from prefpipe.compare.context import Unscorable
from prefpipe.training.shared_steps import StepSharing
from prefpipe.training.tokenized_pairs import TokenizedPair

T = TypeVar("T")
VOCABULARY = 97

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte-level character; ChatML; pad is not the end of turn."""
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {t: i for i, t in enumerate(special)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", bos_token=None
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = CHATML
    return made


def qwen2(seed: int = 0, vocabulary: int = VOCABULARY, **changes: object) -> PreTrainedModel:
    """A Qwen2 of two layers with grouped-query attention, fp32, SDPA. Large weights: a real spread."""
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**{**shape, **changes})).eval()


class OrderOf(Sampler[int]):
    """For a trainer of TRL, the order in which one of ours takes its training pairs."""

    def __init__(self, trainer: StepSharing) -> None:
        trainer.get_train_dataloader()
        self.batches = trainer.batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches.sampler)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch


def scorable(result: T | Unscorable) -> T:
    assert not isinstance(result, Unscorable), result
    return result


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    """Of all parameters, in one row; each of them has one."""
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.flatten())
    return torch.cat(found)


def pairs(sizes: list[int], seed: int = 0, prompt_tokens: int = 20) -> list[TokenizedPair]:
    """For each size, a prompt with that many pairs, of unequal lengths; some share a completion."""
    rng = random.Random(seed)

    def ids(length: int) -> np.ndarray:
        return np.array([rng.randrange(3, VOCABULARY) for _ in range(length)], dtype=np.int32)

    made = []
    for p, size in enumerate(sizes):
        prompt = ids(prompt_tokens + rng.randrange(9))
        chosen = ids(rng.randrange(3, 9))
        for k in range(size):
            if k % 2 == 0:
                chosen = ids(rng.randrange(3, 9))  # else: the chosen one of the pair before
            made.append(TokenizedPair(f"p{p}-{k}", prompt, chosen, ids(rng.randrange(3, 9))))
    return made
