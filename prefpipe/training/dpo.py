"""DPO as TRL does it, with each prompt computed once for all of its pairs.

Losses, metrics and gradients are those of trl.DPOTrainer, whichever of its losses is chosen: only
the layout of a batch differs (prefpipe.training.collator). Reference log-probabilities are computed
once a unique completion and kept on disk.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.integrations import deepspeed
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from prefpipe.models.loading import bare_model
from prefpipe.screen import progress
from prefpipe.training import ranks
from prefpipe.training.collator import PackCollator, run_packed
from prefpipe.training.trainer import PairTrainer, Weight, padding_id

_TRL: Any = importlib.import_module("trl.trainer.dpo_trainer")
_NO_PART_OF_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "use_cache")
"""Fields of a configuration that change no number."""


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

    def __init__(self, *args: Any, reference_cache: Path | None = None, **kwargs: Any) -> None:
        self.reference_cache = reference_cache
        of_trl = _TRL.hash_module
        _TRL.hash_module = hash_of_weights
        try:
            super().__init__(*args, **kwargs)
        finally:
            _TRL.hash_module = of_trl
        self.is_fsdp_enabled = self._shares_weights

    def make_collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        pad = padding_id(tokenizer)
        return PackCollator(pad, self.pairs_per_pack) if self.prefix_sharing else PairCollator(pad)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # where the ranks will share the weights, TRL would load a second model for the reference; it
        # is computed before they do, by the model that each still has
        self._shares_weights, self.is_fsdp_enabled = self.is_fsdp_enabled, False

    def set_up_model(self) -> None:
        super().set_up_model()
        if self.prefix_sharing and self.ref_model is not None:
            run_packed(self.accelerator.unwrap_model(self.ref_model))

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The data set with ref_chosen_logps and ref_rejected_logps, each completion run once."""
        args: Any = self.args
        if args.ld_alpha is not None:
            raise ValueError(
                "ld_alpha makes a completion's reference depend on its pair: it cannot be kept by "
                "completion; leave ld_alpha or precompute_ref_log_probs out"
            )
        self.set_up_model()
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        # the weights alone are not the model: another rope_theta gives other numbers
        bare = bare_model(self.accelerator.unwrap_model(self.ref_model or self.model))
        own = {k: v for k, v in bare.config.to_dict().items() if k not in _NO_PART_OF_THE_MODEL}
        shape = json.dumps(own, sort_keys=True, default=str)
        model = f"{self._precompute_model_hash}:{precision}:{shape}"
        cache = ReferenceCache(self.reference_cache, model)
        sides = ("chosen_ids", "rejected_ids")
        rows: Any = dataset.select_columns(["prompt_ids", *sides])
        # 1) Which completions are not known: prompt -> key -> where one stands, its row and side.
        keys: list[list[str]] = []
        missing: dict[tuple[int, str], dict[str, tuple[int, str]]] = {}
        for index, row in enumerate(rows):
            prompt = row["prompt_ids"]
            keys.append([cache.key(prompt, row[side]) for side in sides])
            for key, side in zip(keys[-1], sides, strict=True):
                if key not in cache:
                    of_prompt = missing.setdefault((len(prompt), cache.key(prompt, [])), {})
                    of_prompt.setdefault(key, (index, side))
        # 2) As pairs, since the trainer's forward takes pairs: a prompt's completions two by two, an
        # odd one with itself. The longest prompts first: like packs together, memory at its most.
        work: list[tuple[tuple[str, tuple[int, str]], ...]] = []
        for prompt in sorted(missing, reverse=True):
            completions = list(missing[prompt].items())
            completions += completions[-1:] * (len(completions) % 2)
            work += zip(completions[::2], completions[1::2], strict=True)

        def example(two: tuple[tuple[str, tuple[int, str]], ...]) -> dict[str, Any]:
            (key, (i, side)), (_, (j, other_side)) = two
            ids = {"chosen_ids": rows[i][side], "rejected_ids": rows[j][other_side]}
            return {"id": key, "prompt_ids": rows[i]["prompt_ids"], **ids}

        # 3) Through the reference: each rank its share of a round, the cache written as they come.
        number, own = self.accelerator.num_processes, self.accelerator.process_index
        starts = range(0, len(work), batch_size * number)
        for start in progress(starts, len(starts), "reference, by batches"):
            part = work[start : start + batch_size * number][own::number]
            values: list[tuple[str, float]] = []
            if part:
                batch = self._prepare_inputs(self.data_collator([example(two) for two in part]))
                batch.pop("id")
                with weights_are_whole():
                    logps = self.compute_ref_log_probs(self.ref_model or self.model, batch)
                for two, *both in zip(part, *(half.tolist() for half in logps), strict=True):
                    values += [(key, logp) for (key, _), logp in zip(two, both, strict=True)]
            cache.add(gather_object(values) if number > 1 else values)
        for column, name in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            dataset = dataset.add_column(name, [cache[pair[column]] for pair in keys])
        return dataset

    def weighted_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, weight: Weight
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


@contextmanager
def weights_are_whole() -> Iterator[None]:
    """Under ZeRO-3 TRL takes each weight for a shared one, from the first; before training none is."""
    told = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = told


def hash_of_weights(model: torch.nn.Module) -> str:
    """What tells models apart, of names, dtypes, shapes and bytes. TRL's own turns each tensor into
    float32 first: on a CPU 2.9 s a GB of bf16, against 0.04 s."""
    found = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()


class ReferenceCache:
    """Log-probabilities of completions under one model: key -> sum over the tokens (nats).

    With a folder, kept in a file for that model, one `["key", value]` a line, appended as they come:
    a killed run, or the next one with another learning rate, does not compute them again. Of several
    ranks the main one reads and writes it.
    """

    def __init__(self, folder: Path | None, model: str) -> None:
        self._values: dict[str, float] = {}
        name = hashlib.sha256(model.encode()).hexdigest()[:32]
        self._path = folder / f"{name}.jsonl" if folder and not ranks.is_other() else None
        if self._path and self._path.exists():
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]  # a kill can cut the last line
            if len(whole) < len(data):
                os.truncate(self._path, len(whole))
            try:
                values = [json.loads(line) for line in whole.splitlines()]
                self._values.update({str(key): float(value) for key, value in values})
            except (ValueError, TypeError, RecursionError):
                message = f"{self._path}: damaged; delete it, it is computed again"
                raise SystemExit(message) from None
        self._values = ranks.agree(self._values)

    def key(self, prompt_ids: list[int], completion_ids: list[int]) -> str:
        content = json.dumps([prompt_ids, completion_ids]).encode()
        return hashlib.sha256(content).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> float:
        return self._values[key]

    def add(self, values: list[tuple[str, float]]) -> None:
        self._values.update(values)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(pair) + "\n" for pair in dict(values).items())
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(lines)
