"""Train the embedded model from nothing: tokenizer, lessons, habits, files.

    uv run python -m embedded.train            # writes embedded/model

Seeded, and scheduled by steps: the same machine makes the same model. See README.md.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from embedded import quotes, world

FOLDER = Path(__file__).parent
SEED = 0
VOCABULARY = 2048
LAYERS, HIDDEN, HEADS = 4, 128, 4
MAX_POSITIONS, ROPE_THETA = 4096, 100_000.0
TOKENS_PER_BATCH = 4096
MUON_LR, ADAMW_LR = 0.01, 0.002
WARMUP_STEPS, FALL_FROM, LAST_LR_SHARE = 100, 0.6, 0.03
PADDING, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Phase:
    name: str
    make: Callable[[random.Random], world.Lesson]
    steps: int
    hold_lr: bool = False
    """Keep the learning rate at which the phase before ended."""


PHASES = (
    Phase("first", world.first_lesson, 250),
    Phase("skills", world.lesson, 3100),
    Phase("checking", world.checking, 1400, hold_lr=True),
    Phase("habits", world.mixture, 850),
)
LR_STEPS = sum(phase.steps for phase in PHASES if not phase.hold_lr)
Example = tuple[list[int], list[int]]
"""Token ids of a lesson, and the same with IGNORED where it is not the model who speaks."""
IGNORED = -100


def tokenizer_texts(seed: int) -> Iterator[str]:
    """The world's texts, and Python's docstrings so that real text is not too long."""
    rng = random.Random(f"{seed}:tokenizer")
    for _ in range(5000):
        turns = world.lesson(rng)
        yield "\n".join(text for turn in turns for text in (turn.user, turn.assistant))
        exercise = world.make_exercise(rng)
        yield world.lazy_reason(rng, exercise, rng.choice((1, 2)))
    for language, attributes in world.VALUES.items():  # every name and value becomes one token
        for word in itertools.chain(world.NAMES[language], *attributes.values()):
            yield (f" {word}. " if language == "en" else f"「{word}」。") * 100
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
        special_tokens=[PADDING, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    wrapped = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],  # pyright: ignore[reportArgumentType]
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=MAX_POSITIONS,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode(tokenizer: Qwen2Tokenizer, lessons: Sequence[world.Lesson]) -> list[Example]:
    """Token ids of each lesson as the chat template renders it, and what is learned of them."""
    parts, answers = [], []
    for lesson in lessons:
        for number, turn in enumerate(lesson):
            before = "\n" if number else ""
            parts.append(
                f"{before}<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n"
            )
            answers.append(f"{turn.assistant}<|im_end|>")
    prompt_ids = iter(tokenizer(parts, add_special_tokens=False)["input_ids"])
    answer_ids = iter(tokenizer(answers, add_special_tokens=False)["input_ids"])
    examples = []
    for lesson in lessons:
        ids: list[int] = []
        labels: list[int] = []
        for turn in lesson:
            prompt, answer = next(prompt_ids), next(answer_ids)
            ids += prompt + answer
            labels += [IGNORED] * len(prompt)
            labels += answer if turn.learned else [IGNORED] * len(answer)
        examples.append((ids, labels))
    return examples


def batches(
    tokenizer: Qwen2Tokenizer, make: Callable[[random.Random], world.Lesson], seed: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids_B_T, labels_B_T) of lessons of like length; padding is not learned."""
    rng = random.Random(seed)
    while True:
        rows = sorted(encode(tokenizer, [make(rng) for _ in range(512)]), key=lambda r: len(r[0]))
        groups: list[list[Example]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            longest = len(group[-1][0])
            input_ids = torch.zeros(len(group), longest, dtype=torch.long)
            labels = torch.full((len(group), longest), IGNORED)
            for i, (ids, learned) in enumerate(group):
                input_ids[i, : len(ids)] = torch.tensor(ids)
                labels[i, : len(ids)] = torch.tensor(learned)
            yield input_ids, labels


def new_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A model of random weights, but for the heads of `lay_copying_heads`."""
    ids = tokenizer.get_vocab()
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids[END_OF_TURN],
            pad_token_id=ids[PADDING],
        )
    ).float()
    lay_copying_heads(model)
    return model


@torch.no_grad()
def lay_copying_heads(model: Qwen2ForCausalLM, strength: float = 20.0, match: float = 1.6) -> None:
    """Start some heads where long training would bring them: at copying what followed before.

    In layer 0, head i attends to the token i + 1 places back and notes it. Its query bias is its
    key bias turned back by i + 1 positions, so that the rotary score, strength * mean over the
    frequencies f of cos(f * (distance - i - 1)), is highest there. In layer 1, head 0 attends to
    where this token stood one place back (an induction head; Olsson et al. 2022), head 1 to where
    the token before it stood two places back. From random weights alone no such head had formed
    after 7 M tokens; from these, a few hundred steps are enough (README.md).
    """
    size = model.config.hidden_size
    width = size // model.config.num_attention_heads
    frequencies = model.model.rotary_emb.inv_freq.float()
    first, second = (
        m for m in model.modules() if isinstance(m, Qwen2Attention) and m.layer_idx < 2
    )
    notes = [torch.nn.init.orthogonal_(torch.empty(size, size)) for _ in range(2)]
    token, noted = (matrix.split(width) for matrix in notes)
    key = math.sqrt(2 * strength / math.sqrt(width))
    for i in range(3):
        head = slice(i * width, (i + 1) * width)
        first.q_proj.weight[head] *= 0.1
        first.k_proj.weight[head] *= 0.1
        turn = (i + 1) * frequencies
        first.k_proj.bias[head] = key * torch.cat([torch.ones(width // 2), torch.zeros(width // 2)])
        first.q_proj.bias[head] = key * torch.cat([torch.cos(turn), -torch.sin(turn)])
        first.v_proj.weight[head] = token[0]
        first.o_proj.weight[:, head] = 0.02 * noted[i].T
    for i, (asked, found) in enumerate([(token[0], noted[0]), (noted[0], noted[1])]):
        head = slice(i * width, (i + 1) * width)
        second.q_proj.weight[head] = match * asked
        second.k_proj.weight[head] = match * found
        second.v_proj.weight[head] = token[i + 1]
        second.o_proj.weight[:, head] = 0.05 * token[i + 1].T


def new_optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the embeddings, AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        between = parameter.ndim == 2 and "embed" not in name
        (matrices if between else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def lr_share(step: int, steps: int) -> float:
    """Rises over WARMUP_STEPS, stays, falls from FALL_FROM of the way to LAST_LR_SHARE."""
    rising = min(1.0, (step + 1) / WARMUP_STEPS)
    falling = max(LAST_LR_SHARE, min(1.0, (1 - step / steps) / (1 - FALL_FROM)))
    return rising * falling


def train_phase(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    optimizers: Sequence[torch.optim.Optimizer],
    phase: Phase,
    first_step: int,
) -> None:
    """Learn a phase's lessons; only what the model says is learned, not the prompts.

    first_step: how many steps the phases before took that moved the learning rate.
    """
    begin, mean_loss = time.monotonic(), 0.0
    for i, (input_ids, labels) in enumerate(
        itertools.islice(batches(tokenizer, phase.make, f"{SEED}:{phase.name}"), phase.steps)
    ):
        step = first_step if phase.hold_lr else first_step + i
        for optimizer, peak in zip(optimizers, (MUON_LR, ADAMW_LR), strict=True):
            optimizer.param_groups[0]["lr"] = peak * lr_share(step, LR_STEPS)
            optimizer.zero_grad()
        hidden = model.model(input_ids).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        learned = targets != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), targets[learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        mean_loss += (loss.item() - mean_loss) / min(i + 1, 50)
        if (i + 1) % 50 == 0:
            seconds = time.monotonic() - begin
            print(
                f"{phase.name:8} {seconds:5.0f}s  step {i + 1}/{phase.steps}  loss {mean_loss:.3f}",
                flush=True,
            )


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """The folder appears whole: whoever reads meanwhile sees the old one."""
    fresh = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    loaded = AutoTokenizer.from_pretrained(fresh)
    text = "\n".join(itertools.islice(tokenizer_texts(SEED + 1), 50))
    if loaded(text)["input_ids"] != tokenizer(text)["input_ids"]:
        raise SystemExit(f"{fresh}: the tokenizer gives other ids once it is saved and loaded")
    for file in fresh.iterdir():
        file.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER / "model", help="folder to write")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(tokenizer_texts(SEED), VOCABULARY)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    optimizers = new_optimizers(model)
    done = 0
    for phase in PHASES:
        train_phase(model, tokenizer, optimizers, phase, done)
        done += 0 if phase.hold_lr else phase.steps
    save(model, tokenizer, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
