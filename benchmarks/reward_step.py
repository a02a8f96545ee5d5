"""A reward-model step on one pair of each of two prompts: ours against trl.RewardTrainer.

    uv run python -m benchmarks.reward_step                  # the shapes, on this machine's CPU

A step is what an epoch repeats: collate, forward, backward, AdamW. The sides alternate within one
process on equal weights, after a step of each on one pair that does not count. TRL is at its best
documented setting: no gradient checkpointing, SDPA; with all pairs in one batch, and a pair a batch with
gradient accumulation (the faster of the two counts). All rows are equally long, so that TRL pads
nothing. Not measured: tokenizing, loading, evaluation; several pairs of a prompt (dpo_step does).
Writes benchmarks/results/reward_step.json; each ratio is of median wall times, TRL's / ours.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForSequenceClassification, logging
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from benchmarks import line_of, machine, make_parser, ratios, write_results
from benchmarks.dpo_step import (
    EMBEDDED,
    OPTIONS,
    SMALL,
    WAYS,
    Shape,
    Step,
    make_pairs,
    steps_of,
    take_turns,
)
from prefpipe.training.reward import PrefixSharedRewardTrainer
from prefpipe.training.tokenized_pairs import to_dataset

SHAPES = [
    Shape("30m_800_150", SMALL, 800, 150, 2),
    Shape("30m_200_50", SMALL, 200, 50, 2),
    Shape("embedded_180_60", EMBEDDED, 180, 60, 2),
]
"""pairs: each of a prompt of its own."""
TINY = Shape("tiny", EMBEDDED, 12, 4, 2)


def make_model(shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0, "attn_implementation": "sdpa"}
    return Qwen2ForSequenceClassification(Qwen2Config(**shape.model, **options))


def make_data(shape: Shape) -> Any:
    """Pairs of as many prompts, as our trainer takes them."""
    return to_dataset([make_pairs(shape, seed=k)[k] for k in range(shape.pairs)])


def whole_rows(data: Any) -> Any:
    """The same as TRL's own preparation leaves it: chosen_ids and rejected_ids with the prompt."""
    return data.map(
        lambda row: {
            name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")
        },
        remove_columns=["id", "prompt_ids"],
    )


def make_steps(
    shape: Shape,
    folder: str,
    make_model: Callable[[], PreTrainedModel],
    sides: Collection[str] = ("ours", *WAYS),
    *,
    peft_config: Any = None,
    **changes: Any,
) -> dict[str, Step]:
    """For each side, its step; changes: of the RewardConfig."""
    data = make_data(shape)
    ours, theirs = (PrefixSharedRewardTrainer, data), (RewardTrainer, whole_rows(data))
    own: dict[str, Any] = {"per_device_train_batch_size": shape.pairs}
    options = RewardConfig(folder, **OPTIONS | own | changes)
    trainers = {side: ours if side == "ours" else theirs for side in sides}
    return steps_of(trainers, options, make_model, peft_config)


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Seconds a step of each side, a list of rounds each; losses; the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(shape, folder, lambda: make_model(shape))
        measured, losses = take_turns(steps, rounds)
    found = ratios(measured, "ours", WAYS)
    print(line_of(shape.name, measured, found), flush=True)
    prompt, completion = shape.prompt_tokens, shape.completion_tokens
    return {
        **asdict(shape),
        **measured,
        **found,
        "tokens": {
            # each branch begins with a copy of the prompt's last token
            "ours": shape.pairs * (prompt - 1 + 2 * (completion + 1)),
            "trl": shape.pairs * 2 * (prompt + completion),
        },
        "losses": losses,
    }


def main() -> None:
    args = make_parser(__doc__).parse_args()
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    results = [measure(shape, args.rounds) for shape in ([TINY] if args.tiny else SHAPES)]
    write_results(
        "reward_step",
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
