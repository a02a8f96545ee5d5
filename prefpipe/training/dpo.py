"""DPO as TRL does it, with each prompt computed once for all of its pairs.

Losses, metrics and gradients are those of trl.DPOTrainer, whichever of its losses is chosen: only
the layout of a batch differs (prefpipe.training.collator). Reference log-probabilities are computed
once a unique completion and kept on disk.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from prefpipe.training.collator import PackCollator, share_prompts
from prefpipe.training.trainer import PairTrainer


class PairCollator(DataCollatorForPreference):
    """TRL's own layout, a row a completion, with the pairs' ids beside it."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super().torch_call(examples), "id": [example["id"] for example in examples]}


class PrefixSharedDPOTrainer(PairTrainer, DPOTrainer):
    """trl.DPOTrainer for data sets made by prefpipe.training.tokenized_pairs.to_dataset.

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
        if args.ld_alpha is not None and args.precompute_ref_log_probs:
            raise ValueError(
                "ld_alpha makes a completion's reference depend on its pair: it cannot be kept by "
                "completion; leave ld_alpha or precompute_ref_log_probs out"
            )
        self.reference_cache = reference_cache
        pad: Any = processing_class.pad_token_id
        if pad is None:  # as TRL has it; padding is told by masks, not by this id
            pad = processing_class.eos_token_id
        collator = PackCollator(pad, pairs_per_pack) if prefix_sharing else PairCollator(pad)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collator,
            prefix_sharing=prefix_sharing,
            pairs_per_pack=pairs_per_pack,
            **kwargs,
        )
        if self.prefix_sharing and self.ref_model is not None:
            share_prompts(self.accelerator.unwrap_model(self.ref_model))

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The data set with ref_chosen_logps and ref_rejected_logps, each completion run once."""
        self.share_prompts()
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
        cache = ReferenceCache(self.reference_cache, f"{self._precompute_model_hash}:{precision}")
        names = ("chosen_ids", "rejected_ids")
        rows: Any = dataset.select_columns(["prompt_ids", *names])
        keys: list[list[str]] = []
        missing: dict[tuple[int, str], dict[str, tuple[int, str]]] = {}
        for index, row in enumerate(rows):
            prompt = row["prompt_ids"]
            keys.append([cache.key(prompt, row[name]) for name in names])
            for key, name in zip(keys[-1], names, strict=True):
                if key not in cache:
                    of_prompt = missing.setdefault((len(prompt), cache.key(prompt, [])), {})
                    of_prompt.setdefault(key, (index, name))
        # As pairs, since the trainer's forward takes pairs: a prompt's completions two by two, an
        # odd one with itself. The longest prompts first: like packs together, memory at its most.
        work: list[tuple[tuple[str, tuple[int, str]], ...]] = []
        for prompt in sorted(missing, reverse=True):
            places = list(missing[prompt].items())
            places += places[-1:] * (len(places) % 2)
            work += zip(places[::2], places[1::2], strict=True)

        def example(two: tuple[tuple[str, tuple[int, str]], ...]) -> dict[str, Any]:
            (key, (i, name)), (_, (j, other)) = two
            row = rows[i]
            completions = {"chosen_ids": row[name], "rejected_ids": rows[j][other]}
            return {"id": key, "prompt_ids": row["prompt_ids"], **completions}

        mine = work[self.accelerator.process_index :: self.accelerator.num_processes]
        several = self.accelerator.num_processes > 1
        found: list[tuple[str, float]] = []
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            batch = self._prepare_inputs(self.data_collator([example(two) for two in part]))
            batch.pop("id")
            logps = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            for two, *values in zip(part, *(half.tolist() for half in logps), strict=True):
                found += [(key, value) for (key, _), value in zip(two, values, strict=True)]
            if not several:
                cache.add(found)
                found = []
        if several:
            cache.add(gather_object(found), write=self.accelerator.is_main_process)
        for column, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            dataset = dataset.add_column(name, [cache[pair[column]] for pair in keys])
        return dataset

    def weighted_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, weight: Any
    ) -> Any:
        """The SFT term is a mean over the chosen tokens, the others over the pairs."""
        own_weights = self.loss_weights
        self.loss_weights = [
            own * (weight.chosen_tokens if kind == "sft" else weight.pairs)
            for kind, own in zip(self.loss_types, own_weights, strict=True)
        ]
        try:
            return DPOTrainer.compute_loss(self, model, inputs, return_outputs)
        finally:
            self.loss_weights = own_weights


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
