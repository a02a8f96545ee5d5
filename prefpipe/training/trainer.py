"""What our trainers of pairs add to TRL's, whatever the loss: order, weights, and a stop at NaN."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from prefpipe.models.adapters import check_savable
from prefpipe.models.loading import bare_model
from prefpipe.training import ranks
from prefpipe.training.collator import ID_COLUMNS, can_pack, run_packed
from prefpipe.training.sampler import PAIRS_PER_PACK
from prefpipe.training.saving import skeleton
from prefpipe.training.shared_steps import FILLER, StepSharing, with_filler
from prefpipe.training.untrained import has_router_loss, switch_off_dropout


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token, else the end of text as TRL has it (masks tell padding), else ValueError."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ValueError("the tokenizer has neither a pad token nor an end-of-text token")


class NotFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite; the message names the step and the rows."""


class Weight(NamedTuple):
    """Factors that turn a mean over a micro-batch into its share of the mean over the step.

    Trainer divides each loss by the number of micro-batches, as if all were alike; a factor is
    (the micro-batch's share of the step) x (micro-batches).
    """

    pairs: float = 1.0
    chosen_tokens: float = 1.0


class PairTrainer(StepSharing):
    """Mixin, before a trainer of TRL whose data set has id, prompt_ids, chosen_ids, rejected_ids.

    - args count the pairs of a step, however many ranks there are: they share its pairs.
    - Pairs of a prompt come in one batch (StepBatches), in training and in evaluation.
    - With prefix_sharing the model runs the packs that PackCollator lays out.
    - A pair weighs the same whatever batch of whatever rank it lands in; with TRL's means it does not.
    - A loss or gradient that is no number ends the run (NotFiniteError).
    - Nothing is tokenized, cut, reported to anyone or written as a model card.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        prefix_sharing: bool = True,
        pairs_per_pack: int = PAIRS_PER_PACK,
        **kwargs: Any,
    ) -> None:
        if getattr(args, "max_length", None) is not None:
            raise ValueError("max_length must be None: TRL would cut; PairTokenizer leaves out")
        datasets = (d for d in (train_dataset, eval_dataset) if d is not None)
        longest = max(map(_longest, datasets))
        self.prefix_sharing = prefix_sharing and can_pack(
            model, longest, has_router_loss(model, args)
        )
        switch_off_dropout(model)  # before there is an adapter, whose own stays as it was asked for
        self.pairs_per_pack = pairs_per_pack
        self._pairs_logged: dict[str, list[int]] = {"train": [], "eval": []}
        self._ids_since_log: list[str] = []
        self.decided: list[tuple[float, float]] = []
        self.share_steps(args)
        if self.has_fillers:
            train_dataset = with_filler(train_dataset)
            eval_dataset = eval_dataset and with_filler(eval_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=self.make_collator(processing_class),
            **kwargs,
        )
        check_savable(self.accelerator.unwrap_model(self.model))
        share_weights = self.accelerator.distributed_type in ("FSDP", "DEEPSPEED")
        self.skeleton = skeleton(self.model) if share_weights else None
        self.set_up_model()

    def make_collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Examples to a batch, as the loss reads it."""
        raise NotImplementedError

    def set_up_model(self) -> None:
        """Make the model run packs, if it is to; called again it does nothing."""
        if self.prefix_sharing:
            run_packed(bare_model(self.accelerator.unwrap_model(self.model)))

    # -- the data

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Token ids are made before, once, by the one renderer; TRL's templating is not run."""
        missing = {"id", *ID_COLUMNS} - set(dataset.column_names)
        if missing:
            raise ValueError(f"columns missing: {sorted(missing)}; make it with to_dataset")
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self._signature_columns or []
        own = ["id", "tie", *ID_COLUMNS]
        self._signature_columns = columns + [name for name in own if name not in columns]

    # -- the loss

    def decisions(self, inputs: Mapping[str, Any], outputs: Any) -> list[tuple[float, float]]:
        """The batch's decisions, each (log-odds of an outcome, how far it is so, 0 to 1); the scaled loss
        is theirs. None by default."""
        return []

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """(pairs, chosen tokens) of an optimizer step, a process: what the means are taken over."""
        counts = torch.stack([_counts(batch) for batch in batch_samples]).sum(0).to(device)
        mean: Any = self.accelerator.reduce(counts, "mean")  # of one process: as it is
        return mean

    def weighted_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, weight: Weight
    ) -> Any:
        """The next trainer's loss, a mean over the micro-batch's pairs, times weight.pairs."""
        # the mask was for counting pairs, no model takes it
        inputs = {name: value for name, value in inputs.items() if name != "completion_mask"}
        result: Any = super().compute_loss(model, inputs, return_outputs)
        if return_outputs:
            return result[0] * weight.pairs, result[1]
        return result * weight.pairs

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        counts = _counts(inputs)
        ids = inputs.pop("id")
        if not self._total_train_tokens:  # TRL counts from 0 again where a stopped run goes on
            logged = [int(row.get("num_tokens", 0)) for row in self.state.log_history]
            self._total_train_tokens = self._tokens_of_all = max(logged, default=0)
        tokens_before = self._total_train_tokens
        weight = Weight()
        if isinstance(num_items_in_batch, Tensor) and self.model.training:
            shares = counts / num_items_in_batch.to(counts.device)
            weight = Weight(*(shares * self.current_gradient_accumulation_steps).tolist())
        mode = "train" if self.model.training else "eval"
        wants_outputs = return_outputs or mode == "eval"
        # TRL would gather each number of each batch, as if all ranks had as many pairs; see log
        with ranks.by_itself(self.accelerator):
            result = self.weighted_loss(model, dict(inputs), wants_outputs, weight)
        if mode == "eval":
            if counts[0]:
                self.decided += self.decisions(inputs, result[1])
            result = result if return_outputs else result[0]
        self._pairs_logged[mode].append(int(counts[0]))
        if not counts[0]:
            self._total_train_tokens = tokens_before
            return (result[0] * 0, result[1]) if return_outputs else result * 0
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            raise NotFiniteError(self._where(f"the loss is {loss.item()}", mode, ids))
        if mode == "train":
            self._ids_since_log += ids
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's; a metric's mean over unequal batches, of all ranks, is weighted by their pairs."""
        mode = "train" if self.model.training else "eval"
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # which is every rank's
            what = f"the gradient's norm is {logs['grad_norm']}"
            raise NotFiniteError(self._where(what, mode, gather_object(self._ids_since_log)))
        if self._metrics[mode]:
            self.take_means(self._metrics[mode], self._pairs_logged[mode])
        self._pairs_logged[mode].clear()
        if mode == "train":
            self._ids_since_log.clear()
        super().log(logs, start_time)

    def _where(self, what: str, mode: str, ids: list[str]) -> str:
        shown = ", ".join(ids[:20]) + (f", ... ({len(ids)} in all)" if len(ids) > 20 else "")
        step = self.state.global_step + (mode == "train" and "norm" not in what)
        return (
            f"step {step}: {what} in {'training' if mode == 'train' else 'evaluation'}; rows: "
            f"{shown}. A lower learning_rate or max_grad_norm helps where training diverges; "
            "otherwise look at these rows"
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint has tied weights once, under one of their names: the others are not missing."""
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [k for k in load_result.missing_keys if k not in tied]
        super()._issue_warnings_after_load(load_result)

    # -- the end

    def release(self) -> None:
        """Let go of model and optimizer, so that their memory is free for another one."""
        for name in ("model", "model_wrapped", "ref_model", "optimizer", "lr_scheduler"):
            setattr(self, name, None)
            setattr(self.callback_handler, name, None)
        self.accelerator.free_memory()

    # -- off

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The stage writes the model card: it knows the data and the results."""


def _counts(batch: Mapping[str, Any]) -> Tensor:
    """(pairs, chosen tokens) of a micro-batch."""
    chosen_mask = batch["completion_mask"].chunk(2)[0]
    counts = torch.tensor([len(chosen_mask), int(chosen_mask.sum())], dtype=torch.float32)
    return counts * (batch["id"] != [FILLER])


def _longest(dataset: Dataset) -> int:
    """Tokens of the longest prompt with one of its completions."""
    columns: Any = dataset.select_columns([*ID_COLUMNS])
    return max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in columns.with_format("numpy")
    )
