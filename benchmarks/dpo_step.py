"""A DPO step on several pairs of one prompt: ours against trl.DPOTrainer.

    uv run python -m benchmarks.dpo_step                     # the shapes, on this machine's CPU
    uv run python -m benchmarks.dpo_step --curves            # and over pairs a prompt, prompt lengths

A step is what an epoch repeats: collate, forward, backward, AdamW. The sides alternate within one
process on equal weights, the first round of each is thrown away. TRL is at its best documented
setting: reference log-probabilities precomputed, its fused head (always on), no gradient
checkpointing, SDPA; with all pairs in one batch, and a pair a batch with gradient accumulation (the
faster of the two counts). Not measured: tokenizing, loading, the reference pass, evaluation.
Writes benchmarks/results/dpo_step.json; each ratio is of median wall times, TRL's / ours.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
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

from benchmarks import machine, write_results
from prefpipe.training.dataset import TokenizedPair, to_dataset
from prefpipe.training.dpo import PrefixSharedDPOTrainer

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
CURVES = [Shape(f"pairs_{n}", SMALL, 800, 150, n) for n in (1, 2, 3, 8)]
CURVES += [Shape(f"prompt_{p}", SMALL, p, 150, 5) for p in (100, 400, 1600, 3200)]


class TokenIdsDPOTrainer(DPOTrainer):
    """trl.DPOTrainer, given token ids as they are."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def padding_tokenizer() -> PreTrainedTokenizerFast:
    """The trainers want one for its pad token; the pairs are token ids already."""
    words = tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="</s>")
    core = tokenizers.Tokenizer(words)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def make_pairs(shape: Shape) -> list[TokenizedPair]:
    rng = random.Random(0)

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


def step_of(trainer: Any, batch_pairs: int) -> Callable[[], float]:
    """A function that makes one optimizer step over all pairs and returns the loss."""
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    parts = [rows[i : i + batch_pairs] for i in range(0, len(rows), batch_pairs)]
    trainer.current_gradient_accumulation_steps = len(parts)
    trainer.create_optimizer_and_scheduler(1000)

    def step() -> float:
        batches = [trainer.data_collator(part) for part in parts]
        items = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
        loss = sum(trainer.training_step(trainer.model, b, items).item() for b in batches)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        return loss

    return step


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Seconds a step of each side, a list of rounds each; losses of the first step; the ratio."""
    tokenizer = padding_tokenizer()
    data = to_dataset(make_pairs(shape))
    with tempfile.TemporaryDirectory() as folder:
        options = DPOConfig(
            folder,
            max_length=None,
            per_device_train_batch_size=shape.pairs,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            learning_rate=1e-5,
            report_to=[],
            disable_tqdm=True,
        )

        def trainer(kind: Any) -> Any:
            return kind(
                make_model(shape), args=options, train_dataset=data, processing_class=tokenizer
            )

        sides = {
            "ours": step_of(trainer(PrefixSharedDPOTrainer), shape.pairs),
            "trl_one_batch": step_of(trainer(TokenIdsDPOTrainer), shape.pairs),
            "trl_accumulated": step_of(trainer(TokenIdsDPOTrainer), 1),
        }
        losses = {name: step() for name, step in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, step in sides.items():
                wall, cpu = time.perf_counter(), time.process_time()
                step()
                seconds[name].append(time.perf_counter() - wall)
                cpu_seconds[name].append(time.process_time() - cpu)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu_median = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    branches = 2 * shape.pairs * shape.completion_tokens
    result = {
        **{k: v for k, v in asdict(shape).items() if k != "model"},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": min(median["trl_one_batch"], median["trl_accumulated"]) / median["ours"],
        "cpu_ratio": min(cpu_median["trl_one_batch"], cpu_median["trl_accumulated"])
        / cpu_median["ours"],
        "tokens": {
            "ours": shape.prompt_tokens - 1 + branches,
            "trl": 2 * shape.pairs * shape.prompt_tokens + branches,
        },
        "first_loss": losses,
    }
    print(
        f"{shape.name:<16} ours {median['ours']:7.3f} s   TRL {median['trl_one_batch']:7.3f} s "
        f"({median['trl_accumulated']:.3f} accumulated)   ratio {result['ratio']:.2f} "
        f"(CPU time {result['cpu_ratio']:.2f})",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="steps measured of each side")
    parser.add_argument("--curves", action="store_true", help="also pairs a prompt, prompt lengths")
    chosen = parser.parse_args()
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    shapes = SHAPES + (CURVES if chosen.curves else [])
    results = [measure(shape, chosen.rounds) for shape in shapes]
    write_results(
        "dpo_step",
        {
            **machine(),
            "threads": torch.get_num_threads(),
            "load_before": os.getloadavg()[0],
            "ratio": results[0]["ratio"],
            "reach": 3.0,
            "shapes": results,
        },
    )


if __name__ == "__main__":
    main()
