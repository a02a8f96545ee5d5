"""Train the judge on its own contrastive judgments (DPO).

Reads   data/dpo/train.parquet        JudgmentPair rows
        data/dpo/validation.parquet   JudgmentPair rows; never trained on
Writes  data/models/judge/            the adapter or model (safetensors), the tokenizer, README.md
        data/models/judge/loss_curve.csv    a row a step: loss, learning rate, margins; validation
        data/models/judge/loss_curve.png    the same as a picture
        data/models/judge/checkpoints/     a stopped run goes on from the newest one
        data/models/judge/dpo_training.rejects.jsonl   Reject rows: pairs not trained on, and why

    {"id": "p8:best_of_n:0", "item_id": "p8", "split": "train", "pair_type": "best_of_n", "better": 2, "prompt": [{"role": "user", "content": "[Question]..."}], "chosen": [{"role": "assistant", "content": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 2}"}], "rejected": [{"role": "assistant", "content": "{\\"reason\\": \\"5 is more.\\", \\"better_answer\\": 1}"}], "chosen_sample": 0, "rejected_sample": 5}
 -> {"id": "p9:hint:0", "reason": "chosen_too_long", "detail": "1038 tokens, max_length is 1024"}

The loss is -log sigmoid(beta * margin) + sft_weight * (-mean log p(chosen)), the margin being the
log-ratio of chosen to its reference less that of rejected (Rafailov et al. 2023, eq. 7).

    uv run dpo_training.py --epochs 1 --beta 0.1
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import config
from prefpipe import draws, files, screen
from prefpipe.files import DataError
from prefpipe.ranges import AboveZero, Positive, Weight
from prefpipe.settings import NoEffectOnRows, TrainingStage, local_folders

if TYPE_CHECKING:
    from trl.trainer.dpo_config import DPOConfig

    from prefpipe.training.tokenized_pairs import TokenizedPair

CHECKED_PAIRS = 4
"""Pairs that a saved model must give the same log-probabilities when it is loaded again."""


class Settings(TrainingStage, env_prefix="DPO_TRAINING_"):
    input: Path = config.DPO_DATASET
    """Folder of train.parquet and validation.parquet."""
    output: Path = config.TUNED_JUDGE
    """Folder of the trained model."""
    loss: Literal["sigmoid", "ipo", "apo_zero"] = "sigmoid"
    """Loss of a pair; sigmoid is DPO's own."""
    beta: AboveZero = 0.1
    """How strongly the model is held to its reference; larger is closer."""
    sft_weight: Weight = 0.05
    """Weight of the mean -log p of the chosen tokens, added to the loss; 0: none."""
    validation_pairs: Positive | None = 500
    """Held-out pairs the validation loss is measured on, drawn by the seed; None: all."""
    reference_cache: NoEffectOnRows[Path] = config.REFERENCE_CACHE
    """Folder of reference log-probabilities, kept by content; safe to delete."""


def main(s: Settings) -> None:
    inputs = [s.input, *local_folders(s.model)]
    with s.open_run(inputs=inputs, outputs={}, home=s.output, unit="pairs") as run:
        if run.finished:
            s.check_weights()
            return
        for name, value in train(s, run).items():
            print(f"{name:<32}{value:8.4f}")


def train(s: Settings, run: files.Run) -> dict[str, float]:
    screen.quiet_libraries()
    from prefpipe.models.loading import load_both, max_positions
    from prefpipe.training.dpo import PrefixSharedDPOTrainer
    from prefpipe.training.record import record
    from prefpipe.training.saving import mean_logp
    from prefpipe.training.tokenized_pairs import collect_judgment_pairs, to_dataset

    s.check()
    # before the model: what a stopped run left is refused or taken up before minutes of loading
    checkpoints = s.open_checkpoints(run)
    model, tokenizer = load_both(s.model, **s.load_options())
    limit = min(s.max_length, max_positions(model))
    pairs = collect_judgment_pairs(s.input, run, tokenizer, limit)
    if s.wants_best and not pairs["validation"]:
        raise DataError(f"{s.input}: no validation pair, so no best checkpoint; use last")
    validation = draw(pairs["validation"], s.validation_pairs, s.seed)
    s.end_dry_run(run, checkpoints, pairs["train"], validation)
    trainer = PrefixSharedDPOTrainer(
        model,
        training_arguments(s, has_validation=bool(validation)),
        to_dataset(pairs["train"]),
        to_dataset(validation) if validation else None,
        processing_class=tokenizer,
        prefix_sharing=s.prefix_sharing,
        reference_cache=s.reference_cache,
        peft_config=s.adapter(model, "CAUSAL_LM"),
    )
    del model  # the trainer's from here on, which lets go of it
    checkpoints.fit(trainer, run.stage, s.early_stopping)
    results = last_numbers(trainer.state.log_history)
    checked = (validation or pairs["train"])[:CHECKED_PAIRS]
    # saved, loaded again and scored: a model that cannot be read back is no result
    _, difference = s.save(trainer, checked, mean_logp)
    counts = {f"{split} pairs": len(rows) for split, rows in pairs.items()}
    counts["validation pairs measured"] = len(validation)
    record(run, trainer, "dpo", s.model_dump(mode="json"), counts, results, difference)
    return results


def draw(pairs: "list[TokenizedPair]", count: int | None, seed: int) -> "list[TokenizedPair]":
    """The first `count` pairs in an order of their prompts drawn by seed; pairs of one stay together."""

    def by_prompt(pair: "TokenizedPair") -> tuple[bytes, str]:
        return draws.place(seed, pair.prompt_ids.tobytes()), pair.id

    # by prompts, since a prompt is computed once for all of its pairs
    return sorted(pairs, key=by_prompt)[:count]


def training_arguments(s: Settings, *, has_validation: bool) -> "DPOConfig":
    from trl.trainer.dpo_config import DPOConfig

    with_sft = s.sft_weight > 0
    return DPOConfig(
        **s.trainer_arguments(has_validation=has_validation),
        loss_type=[s.loss, "sft"] if with_sft else [s.loss],
        loss_weights=[1.0, s.sft_weight] if with_sft else [1.0],
        beta=s.beta,
        # a completion under the reference never changes: once, kept on disk, and no second model
        precompute_ref_log_probs=True,
        disable_dropout=False,  # the trainer switches off all but the adapter's own
    )


def last_numbers(log: list[dict[str, Any]]) -> dict[str, float]:
    """The last step's and the last evaluation's, as the card and meta.json show them."""
    shown = ("loss", "rewards/accuracies", "rewards/margins")
    last = [row for row in log if "loss" in row][-1]
    last_eval = next((row for row in reversed(log) if "eval_loss" in row), {})
    return {f"train {n}": last[n] for n in shown} | {
        f"validation {n}": last_eval[f"eval_{n}"] for n in shown if f"eval_{n}" in last_eval
    }


if __name__ == "__main__":
    Settings.run(main)
