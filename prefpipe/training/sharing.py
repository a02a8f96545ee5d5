"""What the reward and the pairwise trainer add to TRL's, whatever the loss.

PromptSharing goes before a trainer of TRL in the bases. It changes how a batch is laid out
(prefpipe.training.layout) and the order that keeps a prompt's pairs together; ends the run, naming
the rows, where a loss is not a number; and switches off what reports to others.
"""

import functools
import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefpipe.training.dpo import NotFiniteError, longest, prompt_digests
from prefpipe.training.layout import PromptGroupSampler, check_model, share_prompts


class PromptSharing:
    """Mixin for data sets made by prefpipe.training.dataset.to_dataset.

    args.per_device_train_batch_size counts pairs. prefix_sharing changes the layout only: the order
    of the pairs, the batches and all numbers stay (to rounding). A batch holds the pairs' `id`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        data_collator: Any,
        prefix_sharing: bool = True,
        pairs_per_pack: int = 5,
        **kwargs: Any,
    ) -> None:
        if args.max_length is not None:
            raise ValueError("max_length must be None: TRL would cut or drop without a word")
        self.prefix_sharing = prefix_sharing
        self.pairs_per_pack = pairs_per_pack
        self._columns = train_dataset.column_names
        self._pairs_logged: dict[str, list[int]] = {"train": [], "eval": []}
        self._ids_since_log: list[str] = []
        if prefix_sharing:
            check_model(model.config, max(map(longest, filter(None, (train_dataset, eval_dataset)))))
        super().__init__(  # pyright: ignore[reportCallIssue]
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        bare = self.accelerator.unwrap_model(self.model)
        bare = bare.get_base_model() if hasattr(bare, "peft_config") else bare
        if prefix_sharing:
            share_prompts(bare)
        repeat_rows(bare)

    # -- the data

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Token ids are made before, once, by the one renderer; TRL's templating is not run."""
        missing = {"id", "prompt_ids", "chosen_ids", "rejected_ids"} - set(dataset.column_names)
        if missing:
            raise ValueError(f"columns missing: {sorted(missing)}; make it with to_dataset")
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = self._columns

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> PromptGroupSampler:
        return PromptGroupSampler(
            list(prompt_digests(self.train_dataset if train_dataset is None else train_dataset)),
            batch_pairs=self._train_batch_size,
            pairs_per_pack=self.pairs_per_pack,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> PromptGroupSampler:
        return PromptGroupSampler(
            list(prompt_digests(eval_dataset)),
            batch_pairs=self.args.eval_batch_size,
            pairs_per_pack=self.pairs_per_pack,
            shuffle=False,
        )

    # -- the loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss, checked to be a number."""
        inputs = dict(inputs)
        ids = inputs.pop("id")
        if not self._total_train_tokens:  # TRL counts from 0 again where a stopped run goes on
            logged = [row.get("num_tokens", 0) for row in self.state.log_history]
            self._total_train_tokens = max(logged, default=0)
        result = super().compute_loss(  # pyright: ignore[reportAttributeAccessIssue]
            model, inputs, return_outputs, num_items_in_batch
        )
        mode = "train" if self.model.training else "eval"
        self._pairs_logged[mode].append(len(ids))
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            raise NotFiniteError(self._where(f"the loss is {loss.item()}", mode, ids))
        if mode == "train":
            self._ids_since_log += ids
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's; a metric's mean over unequal micro-batches is weighted by their pairs."""
        mode = "train" if self.model.training else "eval"
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            what = f"the gradient's norm is {logs['grad_norm']}"
            raise NotFiniteError(self._where(what, mode, self._ids_since_log))
        pairs = self._pairs_logged[mode]
        for name, values in self._metrics[mode].items():
            if len(values) == len(pairs):
                mean = sum(v * n for v, n in zip(values, pairs, strict=True)) / sum(pairs)
                self._metrics[mode][name] = [mean]
        pairs.clear()
        if mode == "train":
            self._ids_since_log.clear()
        super().log(logs, start_time)  # pyright: ignore[reportAttributeAccessIssue]

    def _where(self, what: str, mode: str, ids: Sequence[str]) -> str:
        shown = ", ".join(ids[:20]) + (f", ... ({len(ids)} in all)" if len(ids) > 20 else "")
        step = self.state.global_step + (mode == "train")
        return (
            f"step {step}: {what} in {'training' if mode == 'train' else 'evaluation'}; rows: "
            f"{shown}. A lower learning_rate or max_grad_norm helps where training diverges; "
            "otherwise look at these rows"
        )

    # -- off

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The stage writes the model card: it knows the data and the results."""


def repeat_rows(model: torch.nn.Module) -> None:
    """Let a batch name which rows of the logits it wants, in which order: `row_index` (R',).

    A pair that stands in a batch twice is so computed once. Batches without row_index are as
    before; a second call does nothing. model: the bare model, not one wrapped by PEFT.
    """
    if getattr(model, "repeats_rows", False):
        return
    run = model.forward

    @functools.wraps(run)
    def forward(self: Any, *args: Any, row_index: Tensor | None = None, **kwargs: Any) -> Any:
        outputs = run(*args, **kwargs)
        if row_index is not None:
            outputs.logits = outputs.logits[row_index]
        return outputs

    model.forward = types.MethodType(forward, model)
    model.repeats_rows = True  # pyright: ignore[reportArgumentType]
