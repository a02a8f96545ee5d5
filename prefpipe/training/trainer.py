"""What our trainers of pairs add to TRL's, whatever the loss: order, weights, and a stop at NaN."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from prefpipe.models.adapters import check_savable
from prefpipe.models.loading import bare_model
from prefpipe.training.collator import ID_COLUMNS, can_pack, run_packed
from prefpipe.training.sampler import PAIRS_PER_PACK, PromptGroupSampler


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


_RANDOM = re.compile(r"drop|jitter")
"""Names of what makes two passes over one text differ."""


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Set every share of dropped numbers to 0: of layers, and of those that are mere attributes.

    A preference is compared with a reference, or with another response, that has no dropout; and a
    prompt that is run once for all of its pairs could have it only once.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config: Any = model.config
    for part in (*model.modules(), config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and _RANDOM.search(name):
                setattr(part, name, 0.0)


class PairTrainer(Trainer):
    """Mixin, before a trainer of TRL whose data set has id, prompt_ids, chosen_ids, rejected_ids.

    - Pairs of a prompt come in one batch (PromptGroupSampler), in training and in evaluation.
    - With prefix_sharing the model runs the packs that PackCollator lays out.
    - A pair weighs the same whatever micro-batch it lands in; TRL's mean a micro-batch does not.
    - A loss or gradient that is no number ends the run (NotFiniteError).
    - Nothing is tokenized, cut, reported to anyone or written as a model card.
    """

    # TRL's trainers have these; Trainer itself does not.
    model: Any
    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int

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
        self.prefix_sharing = prefix_sharing and can_pack(model, longest, _router_loss(model, args))
        switch_off_dropout(model)  # before there is an adapter, whose own stays as it was asked for
        self.pairs_per_pack = pairs_per_pack
        self._pairs_logged: dict[str, list[int]] = {"train": [], "eval": []}
        self._ids_since_log: list[str] = []
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

    def _get_train_sampler(self, train_dataset: Any = None) -> PromptGroupSampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return self._sampler(data, self._train_batch_size, seed=seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> PromptGroupSampler:
        return self._sampler(eval_dataset, self.args.eval_batch_size, shuffle=False)

    def _sampler(self, dataset: Any, batch_pairs: int, **options: Any) -> PromptGroupSampler:
        rows = dataset.select_columns("prompt_ids").with_format("numpy")
        prompts = [hashlib.sha256(row["prompt_ids"].tobytes()).digest()[:16] for row in rows]
        return PromptGroupSampler(
            prompts, batch_pairs=batch_pairs, pairs_per_pack=self.pairs_per_pack, **options
        )

    # -- the loss

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
        ids = inputs.pop("id")
        counts = _counts(inputs)
        if not self._total_train_tokens:  # TRL counts from 0 again where a stopped run goes on
            logged = [int(row.get("num_tokens", 0)) for row in self.state.log_history]
            self._total_train_tokens = max(logged, default=0)
        weight = Weight()
        if isinstance(num_items_in_batch, Tensor) and self.model.training:
            shares = counts / num_items_in_batch.to(counts.device)
            weight = Weight(*(shares * self.current_gradient_accumulation_steps).tolist())
        result = self.weighted_loss(model, inputs, return_outputs, weight)
        mode = "train" if self.model.training else "eval"
        self._pairs_logged[mode].append(int(counts[0]))
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


def _router_loss(model: Any, args: Any) -> bool:
    """Whether TRL adds the load-balancing loss of a mixture of experts, as it does where it can.

    Where a model only seems to have one (Doge without experts), it is switched off in args.
    """
    config = model.config.get_text_config()
    coefficient = getattr(args, "router_aux_loss_coef", 0.0)
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if not coefficient or not hasattr(config, "output_router_logits"):
        return False
    try:
        with torch.no_grad():
            ids = torch.tensor([[1, 2, 3]], device=model.device)
            if model(input_ids=ids, output_router_logits=True).aux_loss is not None:
                return True
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        pass
    args.router_aux_loss_coef = 0.0
    return False


def _counts(batch: Mapping[str, Any]) -> Tensor:
    """(pairs, chosen tokens) of a micro-batch."""
    chosen_mask = batch["completion_mask"].chunk(2)[0]
    return torch.tensor([len(chosen_mask), int(chosen_mask.sum())], dtype=torch.float32)


def _longest(dataset: Dataset) -> int:
    """Tokens of the longest prompt with one of its completions."""
    columns: Any = dataset.select_columns([*ID_COLUMNS])
    return max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in columns.with_format("numpy")
    )
