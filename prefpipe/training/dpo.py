"""DPO as TRL does it, with each prompt computed once for all of its pairs.

PrefixSharedDPOTrainer changes how a batch is laid out (prefpipe.training.layout), nothing of what
is computed: its losses, metrics and gradients are those of trl.DPOTrainer. It also mends three
things around the loss: a pair weighs the same whatever micro-batch it lands in; reference
log-probabilities are computed once a unique completion and kept on disk; a loss that is not a
number ends the run, naming the rows.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefpipe.training.layout import PackCollator, PromptGroupSampler, check_model, share_prompts


class NotFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite; the message names the step and the rows."""


class PairCollator(DataCollatorForPreference):
    """TRL's own layout, a row a completion, with the pairs' ids beside it."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super().torch_call(examples), "id": [example["id"] for example in examples]}


class PrefixSharedDPOTrainer(DPOTrainer):
    """trl.DPOTrainer for data sets made by prefpipe.training.dataset.to_dataset.

    args.per_device_train_batch_size counts pairs. prefix_sharing changes the layout only: the order
    of the pairs, the batches and all numbers stay (to rounding). reference_cache is a folder for
    reference log-probabilities, used where args.precompute_ref_log_probs is set.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: DPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        prefix_sharing: bool = True,
        pairs_per_pack: int = 5,
        reference_cache: Path | None = None,
        **kwargs: Any,
    ) -> None:
        if args.max_length is not None:
            raise ValueError("max_length must be None: TRL would cut; PairTokenizer leaves out")
        if args.ld_alpha is not None and args.precompute_ref_log_probs:
            raise ValueError(
                "ld_alpha makes a completion's reference depend on its pair: it cannot be kept by "
                "completion; leave ld_alpha or precompute_ref_log_probs out"
            )
        self.prefix_sharing = prefix_sharing
        self.pairs_per_pack = pairs_per_pack
        self.reference_cache = reference_cache
        self._pairs_logged: dict[str, list[int]] = {"train": [], "eval": []}
        self._ids_since_log: list[str] = []
        pad = processing_class.pad_token_id
        pad = processing_class.eos_token_id if pad is None else pad
        if prefix_sharing:
            longest = max(map(_longest, filter(None, (train_dataset, eval_dataset))))
            check_model(model.config, longest)
            collator = PackCollator(pad, pairs_per_pack)
        else:
            collator = PairCollator(pad)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collator,
            **kwargs,
        )
        self._share_prompts()

    def _share_prompts(self) -> None:
        if not self.prefix_sharing:
            return
        for model in filter(None, (self.model, self.ref_model)):
            bare = self.accelerator.unwrap_model(model)
            share_prompts(bare.get_base_model() if hasattr(bare, "peft_config") else bare)

    # -- the data

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Token ids are made before, once, by the one renderer; TRL's templating is not run."""
        missing = {"id", "prompt_ids", "chosen_ids", "rejected_ids"} - set(dataset.column_names)
        if missing:
            raise ValueError(f"columns missing: {sorted(missing)}; make it with to_dataset")
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "id" not in self._signature_columns:
            self._signature_columns.append("id")

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> PromptGroupSampler:
        return PromptGroupSampler(
            list(_prompt_digests(self.train_dataset if train_dataset is None else train_dataset)),
            batch_pairs=self._train_batch_size,
            pairs_per_pack=self.pairs_per_pack,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> PromptGroupSampler:
        return PromptGroupSampler(
            list(_prompt_digests(eval_dataset)),
            batch_pairs=self.args.eval_batch_size,
            pairs_per_pack=self.pairs_per_pack,
            shuffle=False,
        )

    # -- the reference

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The data set with ref_chosen_logps and ref_rejected_logps, each completion run once."""
        self._share_prompts()
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
        cache = ReferenceCache(self.reference_cache, f"{self._precompute_model_hash}:{precision}")
        keys, missing = [], {}
        for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]):
            prompt, chosen, rejected = (
                row[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")
            )
            keys.append((cache.key(prompt, chosen), cache.key(prompt, rejected)))
            for key, completion in zip(keys[-1], (chosen, rejected), strict=True):
                if key not in cache:
                    missing.setdefault(tuple(prompt), {})[key] = completion
        # Pairs, as the trainer's forward wants them: a prompt's completions two by two, an odd one
        # with itself. Long prompts first, so that a batch's packs are alike, and the largest first.
        work = []
        for prompt in sorted(missing, key=len, reverse=True):
            left = list(missing[prompt].items())
            for (key, completion), (key_2, completion_2) in zip(
                left[::2], left[1::2] + left[-1:] * (len(left) % 2), strict=True
            ):
                ids = {
                    "prompt_ids": list(prompt),
                    "chosen_ids": completion,
                    "rejected_ids": completion_2,
                }
                work.append((key, key_2, {"id": key, **ids}))
        mine = work[self.accelerator.process_index :: self.accelerator.num_processes]
        found: list[tuple[str, float]] = []
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            batch = self._prepare_inputs(self.data_collator([example for *_, example in part]))
            batch.pop("id")
            first, second = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            values = zip(part, first.tolist(), second.tolist(), strict=True)
            new = [pair for (k, k2, _), a, b in values for pair in ((k, a), (k2, b))]
            if self.accelerator.num_processes == 1:
                cache.add(new)
            found += new
        if self.accelerator.num_processes > 1:
            found = gather_object(found)
            cache.add(found, write=self.accelerator.is_main_process)
        columns = {
            "ref_chosen_logps": [cache[chosen] for chosen, _ in keys],
            "ref_rejected_logps": [cache[rejected] for _, rejected in keys],
        }
        for column, values in columns.items():
            dataset = dataset.add_column(column, values)
        return dataset

    # -- the loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """(pairs, chosen tokens) of an optimizer step, a process: what the means are taken over."""
        counts = sum(map(_counts, batch_samples)).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "mean")
        return counts

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """TRL's loss. In training its mean over the micro-batch becomes its share of the step's mean.

        The trainer divides by the micro-batches of the step, as if all were alike; so each loss is
        weighted by (its share of the step's pairs) x (micro-batches), the SFT term, a mean over the
        chosen tokens, by its share of those.
        """
        inputs = dict(inputs)
        ids = inputs.pop("id")
        counts = _counts(inputs)
        if not self._total_train_tokens:  # TRL counts from 0 again where a stopped run goes on
            logged = [row.get("num_tokens", 0) for row in self.state.log_history]
            self._total_train_tokens = max(logged, default=0)
        own_weights = self.loss_weights
        if num_items_in_batch is not None:
            shares = counts.to(num_items_in_batch.device) / num_items_in_batch
            pairs, tokens = (shares * self.current_gradient_accumulation_steps).tolist()
            self.loss_weights = [
                weight * (tokens if kind == "sft" else pairs)
                for kind, weight in zip(self.loss_types, own_weights, strict=True)
            ]
        try:
            result = super().compute_loss(model, inputs, return_outputs)
        finally:
            self.loss_weights = own_weights
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
        step = self.state.global_step + (mode == "train")
        return (
            f"step {step}: {what} in {'training' if mode == 'train' else 'evaluation'}; rows: "
            f"{shown}. A lower learning_rate or max_grad_norm helps where training diverges; "
            "otherwise look at these rows"
        )

    def release(self) -> None:
        """Let go of model and optimizer, so that their memory is free for another one."""
        del self.model, self.model_wrapped, self.ref_model, self.callback_handler.model
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()

    # -- off

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The stage writes the model card: it knows the data and the results."""


class ReferenceCache:
    """Log-probabilities of completions under one model: key -> sum over the tokens (nats).

    With a folder, kept in a file for that model, one `["key", value]` a line, appended as they come:
    a killed run, or the next one with another learning rate, does not compute them again.
    """

    def __init__(self, folder: Path | None, model: str) -> None:
        self._model = hashlib.sha256(model.encode()).hexdigest()
        self._values: dict[str, float] = {}
        self._path = folder / f"{self._model[:32]}.jsonl" if folder else None
        if self._path and self._path.exists():
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]  # a kill can cut the last line
            if len(whole) < len(data):
                os.truncate(self._path, len(whole))
            self._values.update(json.loads(line) for line in whole.splitlines())

    def key(self, prompt_ids: list[int], completion_ids: list[int]) -> str:
        content = json.dumps([prompt_ids, completion_ids]).encode()
        return hashlib.sha256(content).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> float:
        return self._values[key]

    def add(self, values: list[tuple[str, float]], write: bool = True) -> None:
        self._values.update(values)
        if self._path and write:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(pair) + "\n" for pair in dict(values).items())
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(lines)


def _counts(batch: Mapping[str, Any]) -> Tensor:
    """(pairs, chosen tokens) of a micro-batch."""
    chosen_mask = batch["completion_mask"].chunk(2)[0]
    return torch.tensor([len(chosen_mask), int(chosen_mask.sum())], dtype=torch.float32)


def _prompt_digests(dataset: Dataset) -> Iterator[bytes]:
    for row in dataset.select_columns("prompt_ids").with_format("numpy"):
        yield hashlib.sha256(row["prompt_ids"].tobytes()).digest()[:16]


def _longest(dataset: Dataset) -> int:
    columns = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    return max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in columns.with_format("numpy")
    )
