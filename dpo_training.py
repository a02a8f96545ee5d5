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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

import config
from prefpipe import files
from prefpipe.files import DataError
from prefpipe.rows import JudgmentPair, Reject

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.dpo_config import DPOConfig

    from prefpipe.training.dataset import TokenizedPair
    from prefpipe.training.dpo import PrefixSharedDPOTrainer

CHECKED_PAIRS = 4


class Settings(config.Stage, env_prefix="DPO_TRAINING_"):
    no_effect_on_rows: ClassVar[frozenset[str]] = frozenset({"keep_checkpoints"})

    input: Path = config.DPO_DATASET
    """Folder of train.parquet and validation.parquet."""
    output: Path = config.TUNED_JUDGE
    """Folder of the trained model."""
    model: str = config.BASE_MODEL
    """A folder or a hub name: what is trained, and its own reference."""
    method: Literal["full", "lora"] = "full"
    """full: all weights; lora: a low-rank adapter on frozen ones."""
    load_in_4bit: bool | None = None
    """4-bit NF4 weights under the adapter (lora); None: on a GPU of whose free memory bfloat16 weights
    would take more than half. It saves memory, not time."""
    bf16: bool | None = None
    """bfloat16 arithmetic; None: on a GPU that has it."""
    attn_implementation: Literal["sdpa", "flex_attention"] = "sdpa"
    """flex_attention skips the empty blocks of packed pairs; CUDA only."""
    lora_r: config.Positive = 16
    """Rank of the adapter."""
    lora_alpha: config.Positive = 32
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: config.Share = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    lora_target_modules: list[str] = ["all-linear"]
    """Names of the layers that get an adapter; all-linear: each but the head."""
    merge_adapter: bool = False
    """Save the base with the adapter added in, as one model, instead of the adapter (lora)."""
    loss: Literal["sigmoid", "ipo", "apo_zero"] = "sigmoid"
    """Loss of a pair; sigmoid is DPO's own."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is held to its reference; larger is closer."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the mean -log p of the chosen tokens, added to the loss; 0: none."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """At its highest, after the warm-up."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training pairs."""
    max_length: config.Positive = 1024
    """Tokens of a prompt and a completion together; longer rows are left out, none is cut."""
    batch_pairs: config.Positive = 16
    """Pairs in memory at once."""
    gradient_accumulation_steps: config.Positive = 1
    """Batches an optimizer step; each pair of a step weighs the same."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls afterwards."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """A longer gradient is shortened to this."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""
    prefix_sharing: bool = True
    """Run each prompt once for all of its pairs in a batch; same numbers, fewer tokens."""
    pairs_per_pack: config.Positive = 5
    """Pairs that may stand behind one copy of their prompt."""
    save_steps: config.Positive = 50
    """Steps between two checkpoints; validation loss is measured at each, and at the end."""
    validation_pairs: config.Positive | None = 500
    """Held-out pairs the validation loss is measured on, drawn by the seed; None: all."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints that are kept, the best one beside them."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights are saved at the end; best: of the lowest validation loss."""
    reference_cache: Path = config.DATA / "cache/reference_logps"
    """Folder of reference log-probabilities, kept by content; safe to delete."""


# ---- before the run ----------------------------------------------------------------------------


def check_settings(s: Settings, on_cuda: bool) -> None:
    """Exit with a sentence where the settings cannot work together, or not on this machine."""
    if s.load_in_4bit and s.method == "full":
        raise SystemExit("load_in_4bit: 4-bit weights cannot be trained in full; set --method lora")
    if s.load_in_4bit and not on_cuda:
        # bitsandbytes repacks 4-bit weights for good at the first eval-mode forward on a CPU with
        # AVX512-BF16; the gradients behind them are exactly 0 from then on.
        raise SystemExit(
            "load_in_4bit: training on 4-bit weights needs a GPU: on a CPU the gradients can be "
            "zero without a word; leave it out"
        )
    if s.output.resolve() == Path(s.model).resolve():
        raise SystemExit(f"output: {s.output} is the model itself; name another folder")
    if s.merge_adapter and s.method == "full":
        raise SystemExit("merge_adapter: there is no adapter with --method full; leave it out")
    if (Path(s.model) / "adapter_config.json").exists():
        raise SystemExit(
            f"model: {s.model} is an adapter; train it with --merge-adapter, and go on from that"
        )
    if s.attn_implementation == "flex_attention" and not on_cuda:
        raise SystemExit("attn_implementation: flex_attention cannot train without CUDA; use sdpa")


def read_pairs(
    s: Settings, run: files.Run, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "dict[str, list[TokenizedPair]]":
    """The pairs of each split as token ids; what does not fit is emitted as its Reject."""
    from prefpipe.training.dataset import PairTokenizer

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
    if s.checkpoint == "best" and not pairs["validation"]:
        raise DataError(f"{s.input}: no validation pair, so no best checkpoint; use last")
    return pairs


def draw(pairs: "list[TokenizedPair]", count: int | None, seed: int) -> "list[TokenizedPair]":
    """The first `count` pairs in an order of their prompts drawn by seed; pairs of one stay together."""

    def place(pair: "TokenizedPair") -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}:".encode() + pair.prompt_ids.tobytes()).digest(), pair.id

    return sorted(pairs, key=place)[:count]


def training_arguments(s: Settings, bf16: bool, has_validation: bool) -> "DPOConfig":
    import torch
    from trl.trainer.dpo_config import DPOConfig

    every = "steps" if has_validation else "no"
    with_sft = s.sft_weight > 0
    return DPOConfig(
        output_dir=str(s.output / "checkpoints"),
        num_train_epochs=s.epochs,
        per_device_train_batch_size=s.batch_pairs,
        per_device_eval_batch_size=s.batch_pairs,
        gradient_accumulation_steps=s.gradient_accumulation_steps,
        learning_rate=s.learning_rate,
        lr_scheduler_type=s.scheduler,
        warmup_steps=s.warmup_share,
        weight_decay=s.weight_decay,
        max_grad_norm=s.max_grad_norm,
        loss_type=[s.loss, "sft"] if with_sft else [s.loss],
        loss_weights=[1.0, s.sft_weight] if with_sft else [1.0],
        beta=s.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        disable_dropout=s.lora_dropout == 0,  # it would switch the adapter's off, too
        activation_checkpointing=s.gradient_checkpointing,
        bf16=bf16,
        seed=s.seed,
        data_seed=s.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy=every,
        eval_steps=s.save_steps,
        save_strategy="steps",
        save_steps=s.save_steps,
        save_total_limit=s.keep_checkpoints,
        load_best_model_at_end=s.checkpoint == "best",
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )


def adapter(s: Settings) -> "LoraConfig | None":
    if s.method == "full":
        return None
    from peft import LoraConfig

    modules = s.lora_target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=s.lora_r,
        lora_alpha=s.lora_alpha,
        lora_dropout=s.lora_dropout,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
    )


# ---- after the run -----------------------------------------------------------------------------


def save(
    s: Settings,
    trainer: "PrefixSharedDPOTrainer",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "list[TokenizedPair]",
) -> float:
    """Save model and tokenizer, load them again and compare; the largest difference (nats a token)."""
    from prefpipe.training import saving
    from prefpipe.training.loading import load_model

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
    inputs = [s.input, *config.local_folders(s.model)]
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

    from prefpipe.training.checkpoints import TrainingCallback, open_checkpoints
    from prefpipe.training.dataset import to_dataset
    from prefpipe.training.dpo import PrefixSharedDPOTrainer
    from prefpipe.training.loading import load_model, load_tokenizer
    from prefpipe.training.trainer import NotFiniteError

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL and transformers, mutually
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    on_cuda = torch.cuda.is_available()
    check_settings(s, on_cuda)
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
        pairs_per_pack=s.pairs_per_pack,
        reference_cache=s.reference_cache,
        peft_config=adapter(s),
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
