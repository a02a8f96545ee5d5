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

import hashlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import config
from prefpipe import files
from prefpipe.files import DataError
from prefpipe.ranges import AboveZero, Positive, Weight
from prefpipe.rows import JudgmentPair, Reject
from prefpipe.settings import NoEffectOnRows, TrainingStage, local_folders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.dpo_config import DPOConfig

    from prefpipe.training.dpo import PrefixSharedDPOTrainer
    from prefpipe.training.tokenized_pairs import TokenizedPair

CHECKED_PAIRS = 4


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


# ---- before the run ----------------------------------------------------------------------------


def read_pairs(
    s: Settings, run: files.Run, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "dict[str, list[TokenizedPair]]":
    """The pairs of each split as token ids; what does not fit is emitted as its Reject."""
    from prefpipe.training.tokenized_pairs import PairTokenizer

    pairs: dict[str, list[TokenizedPair]] = {split: [] for split in files.SPLITS}
    items: dict[str, set[str]] = {split: set() for split in files.SPLITS}
    for path in files.data_files(s.input):
        if path.stem not in pairs:
            raise DataError(f"{path}: wanted a folder with train.parquet; set --input")
        tokenize = PairTokenizer(tokenizer, max_length)
        for row in run.read(path, JudgmentPair):
            result = tokenize(row)
            items[path.stem].add(row.item_id)
            if isinstance(result, Reject):
                run.emit(result)
            else:
                run.keep()
                pairs[path.stem].append(result)
    if leaked := sorted(items["train"] & items["validation"]):
        raise DataError(
            f"{s.input}: {len(leaked)} items are in train and in validation, the first is "
            f"{leaked[0]!r}; run construct_dpo_dataset.py again"
        )
    if not pairs["train"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in run.left_out.most_common())
        raise DataError(f"{s.input}: no pair to train on (left out: {reasons or 'none read'})")
    if s.wants_best and not pairs["validation"]:
        raise DataError(f"{s.input}: no validation pair, so no best checkpoint; use last")
    return pairs


def draw(pairs: "list[TokenizedPair]", count: int | None, seed: int) -> "list[TokenizedPair]":
    """The first `count` pairs in an order of their prompts drawn by seed; pairs of one stay together."""

    def place(pair: "TokenizedPair") -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:".encode() + pair.prompt_ids.tobytes()).digest(), pair.id

    return sorted(pairs, key=place)[:count]


def training_arguments(s: Settings, bf16: bool, has_validation: bool) -> "DPOConfig":
    from trl.trainer.dpo_config import DPOConfig

    with_sft = s.sft_weight > 0
    return DPOConfig(
        **s.trainer_arguments(bf16, has_validation=has_validation),
        loss_type=[s.loss, "sft"] if with_sft else [s.loss],
        loss_weights=[1.0, s.sft_weight] if with_sft else [1.0],
        beta=s.beta,
        precompute_ref_log_probs=True,
        disable_dropout=s.lora_dropout == 0,  # it would switch the adapter's off, too
    )


# ---- after the run -----------------------------------------------------------------------------


def save(
    s: Settings,
    trainer: "PrefixSharedDPOTrainer",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "list[TokenizedPair]",
) -> float:
    """Save model and tokenizer, load them again and compare; the largest difference (nats a token)."""
    from prefpipe.models.loading import load_model
    from prefpipe.training import saving

    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    quantized = bool(getattr(model, "is_loaded_in_4bit", False))
    if s.merge_adapter and quantized:
        # The adapter is added to the full-precision base: 4-bit weights would be rounded again.
        saving.save_model(model, tokenizer, s.output)
        model, quantized = load_model(s.output, load_in_4bit=False, dtype="bfloat16"), False
    expected = saving.mean_logps(model, pairs)
    if s.merge_adapter:
        model = model.merge_and_unload()
    saving.save_model(model, tokenizer, s.output)
    dtype = saving.weight_dtype(model)
    del model
    trainer.release()
    reloaded = load_model(s.output, load_in_4bit=quantized, dtype=dtype)
    return saving.check_reloaded(expected, reloaded, pairs, s.output)


def results(log: list[dict[str, Any]]) -> dict[str, float]:
    """The last step's and the last evaluation's numbers, as the card and meta.json show them."""
    shown = ("loss", "rewards/accuracies", "rewards/margins")
    last = [row for row in log if "loss" in row][-1]
    last_eval = next((row for row in reversed(log) if "eval_loss" in row), {})
    return {f"train {n}": last[n] for n in shown} | {
        f"validation {n}": last_eval[f"eval_{n}"] for n in shown if f"eval_{n}" in last_eval
    }


def write_curve(s: Settings, log: list[dict[str, Any]]) -> int:
    """loss_curve.csv and loss_curve.png; the number of rows."""
    from prefpipe.training import curve

    rows = curve.write_csv(s.output / "loss_curve.csv", log)
    panels = {
        "loss": ("loss", "eval_loss"),
        "reward margin": ("rewards/margins", "eval_rewards/margins"),
        "reward accuracy": ("rewards/accuracies", "eval_rewards/accuracies"),
    }
    curve.write_png(s.output / "loss_curve.png", rows, panels, f"DPO of {Path(s.model).name}")
    return len(rows)


def write_card(
    s: Settings, run: files.Run, counts: dict[str, int], found: dict[str, float]
) -> None:
    from prefpipe.training.card import model_card

    left_out = ", ".join(f"{n} {reason}" for reason, n in run.left_out.most_common())
    text = model_card(
        title=f"A contrastive judge, DPO on {Path(s.model).name}",
        base=s.model,
        library="peft" if s.method == "lora" and not s.merge_adapter else "transformers",
        method="dpo",
        what=(
            f"Trained with DPO on pairs of its own judgments, one with the right verdict and one "
            f"with the wrong one ({s.method}, weights of the {s.checkpoint} checkpoint). It reads "
            "a question and two answers, and replies with a JSON object: the reason, and which "
            "answer is better."
        ),
        data={"pairs": str(s.input), **counts, "left out": left_out or "none"},
        results=found,
        settings=s.model_dump(mode="json"),
        use=(
            "Judging two answers to one question, in the prompt format of its training. A single "
            "verdict can depend on the order of the answers: judge in both orders. Its reasons are "
            "generated text, not evidence. It inherits the base model's licence and limits."
        ),
    )
    files.write_text(s.output / "README.md", text)


# ---- the run -----------------------------------------------------------------------------------


def main(s: Settings) -> None:
    inputs = [s.input, *local_folders(s.model)]
    with files.open_run(s, inputs=inputs, outputs={}, home=s.output, unit="pairs") as run:
        if run.finished:
            if not any(s.output.glob("*.safetensors")):
                raise SystemExit(f"{s.output}: finished, but no weights; --overwrite trains again")
            return
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        train(s, run)


def train(s: Settings, run: files.Run) -> None:
    import torch
    import transformers

    from prefpipe.models.loading import load_model, load_tokenizer
    from prefpipe.training.checkpoints import TrainingCallback, open_checkpoints
    from prefpipe.training.dpo import PrefixSharedDPOTrainer
    from prefpipe.training.tokenized_pairs import to_dataset
    from prefpipe.training.trainer import NotFiniteError

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL and transformers, mutually
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    on_cuda = torch.cuda.is_available()
    s.check(on_cuda)
    stopped_at = open_checkpoints(s.output / "checkpoints", run.mark, s.overwrite)
    tokenizer = load_tokenizer(s.model)
    bf16 = on_cuda and torch.cuda.is_bf16_supported() if s.bf16 is None else s.bf16
    model = load_model(
        s.model,
        load_in_4bit=s.load_in_4bit if s.method == "lora" else False,
        dtype="bfloat16" if bf16 and s.method == "lora" else "float32",
    )
    model.set_attn_implementation(s.attn_implementation)
    limit = min(s.max_length, model.config.get_text_config().max_position_embeddings)
    pairs = read_pairs(s, run, tokenizer, limit)
    validation = draw(pairs["validation"], s.validation_pairs, s.seed)
    trainer = PrefixSharedDPOTrainer(
        model,
        training_arguments(s, bf16, bool(validation)),
        to_dataset(pairs["train"]),
        to_dataset(validation) if validation else None,
        processing_class=tokenizer,
        prefix_sharing=s.prefix_sharing,
        reference_cache=s.reference_cache,
        peft_config=s.adapter("CAUSAL_LM"),
        callbacks=[TrainingCallback(s.output / "loss_curve.csv", run.stage)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=str(stopped_at) if stopped_at else None)
    except NotFiniteError as error:
        raise SystemExit(f"{run.stage}: {error}") from None
    steps = write_curve(s, trainer.state.log_history)
    found = results(trainer.state.log_history)
    checked = (validation or pairs["train"])[:CHECKED_PAIRS]
    difference = save(s, trainer, tokenizer, checked)
    counts = {f"{split} pairs": len(rows) for split, rows in pairs.items()}
    counts["validation pairs measured"] = len(validation)
    write_card(s, run, counts, found)
    run.written["loss_curve.csv"] = steps
    run.summary |= {
        "pairs": counts,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "results": found,
        "reload_difference": difference,
    }
    for name, value in found.items():
        print(f"{name:<32}{value:8.4f}")


if __name__ == "__main__":
    Settings.run(main)
