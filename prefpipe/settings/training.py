"""What the three trainers take: model, adapter, optimizer, checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import config
from prefpipe.files import Run
from prefpipe.publish import trackers
from prefpipe.ranges import AboveZero, AtLeastTwo, PartialShare, Positive, Share, Weight
from prefpipe.settings.chats import ChatStage
from prefpipe.settings.preference_input import PreferenceStage
from prefpipe.settings.ranked import RankedStage
from prefpipe.settings.reporting import ReportingStage
from prefpipe.settings.stage import NoEffectOnRows
from prefpipe.training import ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel

    from prefpipe.training.checkpoints import Checkpoints
    from prefpipe.training.tokenized_pairs import TokenizedPair

WhichCheckpoint = Literal["last", "best"]


class TrainingStage(RankedStage, ReportingStage, ChatStage):
    """What every stage takes that trains a model."""

    output: Path
    """Folder of the trained model."""
    model: str = config.BASE_MODEL
    """A folder or a hub name: what is trained."""
    method: Literal["full", "lora"] = "full"
    """full: all weights; lora: a low-rank adapter on frozen ones."""
    load_in_4bit: bool | None = None
    """4-bit NF4 weights under the adapter (lora, on a GPU). It saves memory, not time. None: where
    bfloat16 weights would fill more than half of what the GPU has free."""
    bf16: bool | None = None
    """bfloat16 arithmetic; None: on a GPU that has it."""
    attn_implementation: Literal["sdpa", "flex_attention"] = "sdpa"
    """flex_attention skips the empty blocks of packed pairs; CUDA only."""
    lora_r: Positive = 16
    """Rank of the adapter."""
    lora_alpha: Positive = 32
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: Share = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    lora_target_modules: list[str] = ["all-linear"]
    """Names of the layers that get an adapter; all-linear: each but the head."""
    merge_adapter: bool = False
    """Save the base with the adapter added in, as one model, instead of the adapter (lora)."""
    learning_rate: AboveZero = 1e-4
    """At its highest, after the warm-up."""
    epochs: AboveZero = 1.0
    """Passes over the training pairs."""
    max_length: Positive = 1024
    """Most tokens of a prompt and a completion together."""
    batch_pairs: Positive = 16
    """Most pairs in a device's memory at once."""
    gradient_accumulation_steps: Positive = 1
    """Batches an optimizer step, which several devices share; each pair of a step weighs the same."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls afterwards."""
    weight_decay: Weight = 0.0
    """AdamW's."""
    max_grad_norm: AboveZero = 1.0
    """A longer gradient is shortened to this."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""
    prefix_sharing: bool = True
    """Run each prompt once for all of its pairs in a batch; same numbers, fewer tokens."""
    save_steps: Positive = 50
    """Steps between two checkpoints; the held-out loss is measured at each, and at the end."""
    keep_checkpoints: NoEffectOnRows[AtLeastTwo] = 2
    """Newest checkpoints that are kept, the best one beside them."""
    checkpoint: WhichCheckpoint = "last"
    """Which weights are saved at the end; best: of the lowest held-out loss."""
    early_stopping: Positive | None = None
    """Stop after this many evaluations without a lower held-out loss, and keep the best weights."""

    def check_weights(self) -> None:
        """Exit with a sentence where a finished run's weights are gone."""
        if not any(self.output.glob("*.safetensors")):
            raise SystemExit(f"{self.output}: finished, but no weights; --overwrite trains again")

    @property
    def wants_best(self) -> bool:
        """Whether the weights of the lowest held-out loss are saved, so that some must be held out."""
        return self.checkpoint == "best" or self.early_stopping is not None

    def check(self) -> None:
        """Exit with a sentence where the settings cannot work together, or not on this machine."""
        import torch

        super().check()
        on_cuda = torch.cuda.is_available()
        if self.load_in_4bit and self.method == "full":
            raise SystemExit("load_in_4bit: 4-bit weights cannot be trained; set --method lora")
        if self.load_in_4bit and not on_cuda:
            # bitsandbytes repacks 4-bit weights for good at the first eval-mode forward on a CPU
            # with AVX512-BF16; the gradients behind them are exactly 0 from then on.
            raise SystemExit(
                "load_in_4bit: training on 4-bit weights needs a CUDA GPU: on a CPU the gradients "
                "can be zero without a word; leave it out"
            )
        if self.merge_adapter and self.method != "lora":
            raise SystemExit(
                f"merge_adapter: there is no adapter with --method {self.method}; leave it out"
            )
        if self.attn_implementation == "flex_attention" and not on_cuda:
            raise SystemExit(
                "attn_implementation: flex_attention cannot train without CUDA; use sdpa"
            )
        if (Path(self.model) / "adapter_config.json").exists():
            raise SystemExit(
                f"model: {self.model} is an adapter; train it with --merge-adapter, and go on from "
                "that"
            )
        if (Path(self.model) / "probe.json").exists():
            raise SystemExit(f"model: {self.model} is a probe; train the model that it reads")
        if self.output.resolve() == Path(self.model).resolve():
            raise SystemExit(f"output: {self.output} is the model itself; name another folder")

    def uses_bf16(self) -> bool:
        import torch

        if self.bf16 is None:
            return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return self.bf16

    def load_options(self) -> dict[str, Any]:
        """Options of load_model: frozen weights may be rounded, those that are trained may not."""
        is_frozen = self.method != "full"
        options: dict[str, Any] = {
            "for_training": True,
            "without_weights": self.dry_run,
            "dtype": "bfloat16" if self.uses_bf16() and is_frozen else "float32",
            "load_in_4bit": self.load_in_4bit if is_frozen and not ranks.share_weights() else False,
        }
        # sdpa is what a model is loaded with, where it can: soft caps and sinks want eager
        flex = {"attn_implementation": "flex_attention"}
        return options | (flex if self.attn_implementation == "flex_attention" else {})

    def open_checkpoints(self, run: Run) -> "Checkpoints":
        """Those of a stopped run of these settings, to go on from."""
        from prefpipe.training.checkpoints import Checkpoints

        kept = {"keep": self.keep_checkpoints, "wants_best": self.wants_best}
        how = {"overwrite": self.overwrite, "looks_only": self.dry_run}
        checkpoints = Checkpoints(self.output, run.mark, **kept, **how)
        run.went_on = checkpoints.stopped_at is not None
        return checkpoints

    def end_dry_run(
        self,
        run: Run,
        checkpoints: "Checkpoints",
        train: "Sequence[TokenizedPair]",
        validation: "Sequence[TokenizedPair]",
    ) -> None:
        """A dry run ends here, before there is a trainer; another goes on."""
        from prefpipe.training import planned_training

        if run.plan:
            names = ("batch_pairs", "gradient_accumulation_steps", "epochs", "early_stopping")
            how = planned_training.How(**self.model_dump(include={*names}))
            planned_training.end(run.plan, how, train, validation, checkpoints.stopped_at)

    def trainer_arguments(self, *, has_validation: bool = True) -> dict[str, Any]:
        """What TRL's configurations take, whichever trainer's it is."""
        import torch

        return {
            "output_dir": str(self.output / "checkpoints"),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_pairs,
            "per_device_eval_batch_size": self.batch_pairs,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.scheduler,
            "warmup_steps": self.warmup_share,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "max_length": None,
            "activation_checkpointing": self.gradient_checkpointing,
            "bf16": self.uses_bf16(),
            "use_cpu": not torch.cuda.is_available(),  # else bf16 is refused there
            "seed": self.seed,
            "data_seed": self.seed,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "eval_strategy": "steps" if has_validation else "no",
            "eval_steps": self.save_steps,
            "save_strategy": "steps",
            "save_steps": self.save_steps,
            "save_total_limit": None,  # Checkpoints.rotate's
            "load_best_model_at_end": self.wants_best,
            "metric_for_best_model": "eval_loss" if has_validation else None,
            "greater_is_better": False if has_validation else None,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "disable_tqdm": True,
            **trackers.training_arguments(self.report_to, self.stage_name(), self.output),
        }

    def save(
        self,
        trainer: Any,
        checked: "Sequence[TokenizedPair]",
        read: "Callable[[Tensor, Tensor], Tensor]",
        **load: Any,
    ) -> "tuple[PreTrainedModel, float]":
        """Save the trained model and load it again (save_and_reload); read: see score_alone."""
        from prefpipe.training import saving

        return saving.save_and_reload(
            trainer,
            self.output,
            merge=self.merge_adapter,
            score=lambda model: saving.score_alone(model, checked, read),
            **load,
        )

    def adapter(
        self, model: Any, task_type: Literal["CAUSAL_LM", "SEQ_CLS"]
    ) -> "LoraConfig | None":
        """The LoRA configuration for this model, whose head is saved with it; None with --method full."""
        if self.method == "full":
            return None
        from peft import LoraConfig

        from prefpipe.models.adapters import check_targets, new_modules

        modules = self.lora_target_modules
        check_targets(model, modules)
        return LoraConfig(
            task_type=task_type,
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules="all-linear" if modules == ["all-linear"] else modules,
            modules_to_save=new_modules(model) if task_type == "SEQ_CLS" else None,
        )


class PreferenceTrainingStage(PreferenceStage, TrainingStage):
    """What both stages take that train a preference model."""

    validation_share: PartialShare = 0.1
    """Share of the questions of input that is held out where there are no rows for it."""
    ties: Literal["drop", "half"] = "drop"
    """Ties in training: left out, or trained as half a win for each side. Held out, they are kept."""
    worst: Positive = 50
    """Held-out pairs that the model is most wrong about, written out for reading."""
    learning_rate: AboveZero = 5e-4
    """At its highest, after the warm-up."""
    epochs: AboveZero = 4.0
    """Passes over the training pairs."""
    checkpoint: WhichCheckpoint = "best"
    """Which weights are saved at the end; best: of the lowest held-out loss after scaling, on half of the
    held-out questions (the report is of the others)."""

    def trainer_arguments(self, *, has_validation: bool = True) -> dict[str, Any]:
        # a temperature is fitted afterwards: a right but too sure checkpoint must not be thrown away
        arguments = super().trainer_arguments(has_validation=has_validation)
        return arguments | {"metric_for_best_model": "eval_scaled_loss"}
