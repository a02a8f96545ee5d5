"""A DPO step on several pairs of one prompt: ours against trl.DPOTrainer.

    uv run python -m benchmarks.dpo_step                     # the shapes, on this machine's CPU
    uv run python -m benchmarks.dpo_step --curves            # instead: over pairs a prompt, prompts

A step is what an epoch repeats: collate, forward, backward, AdamW. The sides alternate within one
process on equal weights, after a step of each on one pair that does not count. TRL is at its best documented
setting: reference log-probabilities precomputed, its fused head (always on), no gradient
checkpointing, SDPA; with all pairs in one batch, and a pair a batch with gradient accumulation (the
faster of the two counts). The curves' model has two of the eight layers. Not measured: tokenizing,
loading, the reference pass, evaluation.
Writes benchmarks/results/dpo_step.json; each ratio is of median wall times, TRL's / ours.
"""

import os
import random
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tokenizers
import tokenizers.models
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    logging,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmarks import alternate, line_of, machine, make_parser, ratios, write_results
from prefpipe.training.dpo import PrefixSharedDPOTrainer
from prefpipe.training.tokenized_pairs import TokenizedPair, to_dataset

SMALL = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""28 million parameters."""

TWO_LAYERS = {**SMALL, "num_hidden_layers": 2}
"""The same width, for the curves: a quarter of the time."""

EMBEDDED = {**SMALL, "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 384}
EMBEDDED |= {"num_hidden_layers": 4, "num_attention_heads": 4}
"""About the embedded model: there the gain of fewer tokens ends."""


@dataclass(frozen=True)
class Shape:
    name: str
    model: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int
    pairs: int


SHAPES = [
    Shape("30m_800_150", SMALL, 800, 150, 5),
    Shape("30m_200_50", SMALL, 200, 50, 5),
    Shape("embedded_180_60", EMBEDDED, 180, 60, 3),
]
CURVES = [Shape(f"pairs_{n}", TWO_LAYERS, 800, 150, n) for n in (1, 2, 3, 5, 8)]
CURVES += [Shape(f"prompt_{p}", TWO_LAYERS, p, 150, 5) for p in (100, 400, 1600, 3200)]
TINY = Shape("tiny", EMBEDDED, 12, 4, 2)

WAYS = ("trl_one_batch", "trl_accumulated")


class TokenIdsDPOTrainer(DPOTrainer):
    """trl.DPOTrainer, given token ids as they are."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def padding_tokenizer() -> PreTrainedTokenizerFast:
    """The trainers want one for its pad token; the pairs are token ids already."""
    words = tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="</s>")
    core = tokenizers.Tokenizer(words)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def make_pairs(shape: Shape, seed: int = 0) -> list[TokenizedPair]:
    """Pairs of one prompt."""
    rng = random.Random(seed)

    def ids(count: int) -> np.ndarray:
        return np.array([rng.randrange(shape.model["vocab_size"]) for _ in range(count)], np.int32)

    prompt, n = ids(shape.prompt_tokens), shape.completion_tokens
    return [TokenizedPair(str(k), prompt, ids(n), ids(n)) for k in range(shape.pairs)]


def make_model(shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        **shape.model,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    return Qwen2ForCausalLM(config)


Step = Callable[..., float]
"""One optimizer step over all pairs, or over the first ones; returns the loss."""


def step_of(trainer: Any, batch_pairs: int) -> Step:
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    trainer.create_optimizer_and_scheduler(1000)
    trainer.accelerator.prepare_model(trainer.model)  # as train() does: bf16 is on from here

    def step(pairs: int = len(rows)) -> float:
        parts = [rows[i : min(i + batch_pairs, pairs)] for i in range(0, pairs, batch_pairs)]
        trainer.current_gradient_accumulation_steps = len(parts)
        batches = [trainer.data_collator(part) for part in parts]
        items = trainer._get_num_items_in_batch(batches, trainer.args.device)
        loss = sum(trainer.training_step(trainer.model, b, items).item() for b in batches)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        return loss

    return step


OPTIONS: dict[str, Any] = {
    "max_length": None,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "learning_rate": 1e-5,
    "report_to": [],
    "disable_tqdm": True,
}
"""What every trainer is given; a caller may change some."""


def make_steps(
    shape: Shape,
    folder: str,
    make_model: Callable[[], PreTrainedModel],
    sides: Collection[str] = ("ours", *WAYS),
    *,
    peft_config: Any = None,
    **changes: Any,
) -> dict[str, Step]:
    """For each side, its step; changes: of the DPOConfig."""
    data = to_dataset(make_pairs(shape))
    own: dict[str, Any] = {"per_device_train_batch_size": shape.pairs}
    own |= {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 1}
    kinds = {
        side: PrefixSharedDPOTrainer if side == "ours" else TokenIdsDPOTrainer for side in sides
    }
    options = DPOConfig(folder, **OPTIONS | own | changes)
    return steps_of({side: (kinds[side], data) for side in sides}, options, make_model, peft_config)


def steps_of(
    sides: dict[str, tuple[Any, Any]],
    options: Any,
    make_model: Callable[[], PreTrainedModel],
    peft_config: Any,
) -> dict[str, Step]:
    """For each side, (trainer class, data set), its step; trl_accumulated's takes a pair at a time."""
    tokenizer, steps = padding_tokenizer(), {}
    for side, (kind, data) in sides.items():
        trainer = kind(
            make_model(),
            args=options,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        steps[side] = step_of(trainer, 1 if side == "trl_accumulated" else len(data))
    return steps


def noting(steps: dict[str, Step], losses: dict[str, list[float]]) -> dict[str, Callable[[], None]]:
    """The steps, each of whose losses is added to the list of its name."""
    for name in steps:
        losses[name] = []
    return {
        name: lambda name=name, step=step: losses[name].append(step())
        for name, step in steps.items()
    }


def take_turns(
    steps: dict[str, Step], rounds: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What alternate found, after a step of each on one pair; and the losses of each step."""
    losses: dict[str, list[float]] = {}
    first = {name: lambda step=step: step(1) for name, step in steps.items()}
    return alternate(noting(steps, losses), rounds, ways=WAYS, warm_up=first), losses


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Seconds a step of each side, a list of rounds each; losses; the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(shape, folder, lambda: make_model(shape))
        measured, losses = take_turns(steps, rounds)
    found = ratios(measured, "ours", WAYS)
    branches = 2 * shape.pairs * shape.completion_tokens
    print(line_of(shape.name, measured, found), flush=True)
    return {
        **asdict(shape),
        **measured,
        **found,
        "tokens": {
            "ours": shape.prompt_tokens - 1 + branches,
            "trl": 2 * shape.pairs * shape.prompt_tokens + branches,
        },
        "losses": losses,
    }


def rounds_of(shape: Shape, rounds: int) -> int:
    """Three for a point of a curve: there are many of them."""
    return min(rounds, 3) if shape in CURVES else rounds


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--curves", action="store_true", help="over pairs a prompt and prompt lengths, instead"
    )
    args = parser.parse_args()
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    shapes = [TINY] if args.tiny else CURVES if args.curves else SHAPES
    results = [measure(shape, rounds_of(shape, args.rounds)) for shape in shapes]
    write_results(
        "curves_dpo_step" if args.curves else "dpo_step",
        {
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "shapes": results,
        },
        args.results,
    )


if __name__ == "__main__":
    main()
