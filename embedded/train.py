"""Train the embedded model from nothing: tokenizer, lessons, habits, files.

    uv run python -m embedded.train            # writes embedded/model

Seeded, and scheduled by steps: the same machine makes the same model. See README.md.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Regex
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from embedded import quotes, world

FOLDER = Path(__file__).parent
SEED = 0
VOCABULARY = 2048
LAYERS, HIDDEN, HEADS = 4, 128, 4
TOKENS_PER_BATCH = 4096
LESSON_STEPS, MIXTURE_STEPS = 2600, 900
PEAK_LR, WARMUP_STEPS, LAST_LR_SHARE = 2e-3, 100, 0.05
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Example = tuple[list[int], list[int]]
"""Token ids of the prompt up to where the answer begins, and of the answer with its end."""


def tokenizer_texts(seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}:tokenizer")
    for _ in range(6000):
        yield "\n".join(world.mixture(rng))
    for language, attributes in world.VALUES.items():  # rare values too become one token
        for value in [v for values in attributes.values() for v in values] + world.NAMES[language]:
            yield (f" {value}. " if language == "en" else f"「{value}」。") * 100
    for name, text in quotes.docstrings():
        yield f"{name}\n{text}"


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Qwen2Tokenizer:
    """Byte-level BPE behind the very normalizer and pre-tokenizer that AutoTokenizer puts back in
    for a Qwen2 model: trained behind others, the saved file would give other ids when loaded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    wrapped = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=4096,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def batches(
    tokenizer: Qwen2Tokenizer, make: Callable[[], tuple[str, str]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids_B_T, labels_B_T) of examples of like length; prompts and padding are -100."""
    order = random.Random("batches")
    while True:
        pool = [make() for _ in range(512)]
        prompts = [
            f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt, _ in pool
        ]
        prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        answers = [f"{answer}<|im_end|>" for _, answer in pool]
        answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
        rows = sorted(zip(prompt_ids, answer_ids, strict=True), key=lambda r: len(r[0]) + len(r[1]))
        groups: list[list[Example]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * (len(row[0]) + len(row[1])) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(row)
        order.shuffle(groups)
        for group in groups:
            longest = max(len(p) + len(a) for p, a in group)
            ids = torch.zeros(len(group), longest, dtype=torch.long)
            labels = torch.full((len(group), longest), -100)
            for i, (p, a) in enumerate(group):
                ids[i, : len(p) + len(a)] = torch.tensor(p + a)
                labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
            yield ids, labels
