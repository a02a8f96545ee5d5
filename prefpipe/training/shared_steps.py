"""How the ranks of a training share the pairs of each step, and of each evaluation.

A step is the same pairs on one device and on eight (prefpipe.training.sampler), and all that is
logged of it is a mean over them.
"""

import hashlib
import math
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from prefpipe.evaluation.calibration import scaled_loss
from prefpipe.training.sampler import PAIRS_PER_PACK, PromptGroupSampler, StepBatches

FILLER = "\x01 filler"
"""The id of a row that weighs nothing, for a rank that a step has no pair for."""


class StepSharing(Trainer):
    """The part of PairTrainer that knows of ranks."""

    # TRL's trainers have these; Trainer itself does not.
    model: Any
    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int

    pairs_per_pack = PAIRS_PER_PACK
    batches: StepBatches
    """Those of the training pairs, of all ranks."""
    _tokens_of_all = 0
    """Those of all ranks, when a step was last logged."""
    _pairs_logged: dict[str, list[int]]
    decided: list[tuple[float, float]]
    """Of the evaluation under way: PairTrainer.decisions of this rank's batches."""

    def share_steps(self, args: TrainingArguments) -> None:
        """args say how many pairs a step has, as on one device; from here on what each rank does."""
        self.step_pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps
        shared = math.ceil(args.gradient_accumulation_steps / args.world_size)
        args.gradient_accumulation_steps = shared
        self.has_fillers = shared * args.world_size > 1

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Batches as StepBatches lays them out, which accelerate deals out to the ranks."""
        prompts, number = _prompts(dataset), self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        how: dict[str, Any] = {"shuffle": False, "batch_pairs": batch_size}
        layout = {"step_pairs": batch_size * number, "ranks": number, "filler": len(prompts)}
        if description == "Training":
            how |= {"shuffle": True, "seed": seed}
            accumulated = self.args.gradient_accumulation_steps
            layout |= {"step_pairs": self.step_pairs, "accumulated": accumulated}
        order = PromptGroupSampler(prompts, pairs_per_pack=self.pairs_per_pack, **how)
        batches = StepBatches(order, **layout)
        if description == "Training":
            self.batches = batches
        rows: Any = self._remove_unused_columns(dataset, description)
        loader = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """As transformers', which does not tell the epoch where batches are both shared and skipped."""
        self.batches.sampler.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def take_means(self, metrics: dict[str, list[float]], pairs: list[int]) -> None:
        """Leave one number of each metric, the mean over all pairs of all ranks; of the tokens, the sum."""
        names = sorted(metrics.keys() - {"num_tokens"})
        own = [self._total_train_tokens - self._tokens_of_all, sum(pairs)]
        own += [sum(v * n for v, n in zip(metrics[k], pairs, strict=True)) for k in names]
        tokens, count, *sums = self._sum_over_ranks(own)
        self._tokens_of_all += int(tokens)
        self._total_train_tokens = self._tokens_of_all
        means = {name: [each / count] for name, each in zip(names, sums, strict=True)}
        for name in [name for name in names if name.startswith(("min_", "max_"))]:
            extreme = min if name.startswith("min_") else max
            seen = [value for value, n in zip(metrics[name], pairs, strict=True) if n]
            means[name] = [extreme(gather_object(seen) if self.args.world_size > 1 else seen)]
        metrics |= means | {"num_tokens": [float(self._tokens_of_all)]}

    def _sum_over_ranks(self, own: list[float]) -> list[float]:
        if self.args.world_size == 1:
            return own
        table = torch.tensor(own, dtype=torch.float64, device=self.accelerator.device)
        total: Any = self.accelerator.reduce(table, "sum")
        return total.tolist()

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss, a mean over all pairs; transformers' loop gathers batches of one size only. Of a
        trainer that has decisions their loss after scaling beside it."""
        self.model.eval()
        self.decided = []
        loss = 0.0
        for inputs in dataloader:
            mean: Any = self.prediction_step(self.model, inputs, prediction_loss_only=True)[0]
            loss += mean.item() * self._pairs_logged["eval"][-1]
        loss, count = self._sum_over_ranks([loss, sum(self._pairs_logged["eval"])])
        metrics = {f"{metric_key_prefix}_loss": loss / count}
        if decided := gather_object(self.decided) if self.args.world_size > 1 else self.decided:
            # sorted: sums of them are then the same however many ranks there are
            metrics[f"{metric_key_prefix}_scaled_loss"] = scaled_loss(
                *zip(*sorted(decided), strict=True)
            )
        return EvalLoopOutput(None, None, metrics, num_samples=int(count))  # pyright: ignore[reportArgumentType]


def with_filler(dataset: Dataset) -> Dataset:
    return dataset.add_item({**dataset[0], "id": FILLER})  # pyright: ignore[reportCallIssue]


def _prompts(dataset: Any) -> list[bytes]:
    """For each pair what is equal for pairs of one prompt; a filler, the last row, has none."""
    rows = dataset.select_columns(["id", "prompt_ids"]).with_format("numpy")
    return [
        hashlib.sha256(row["prompt_ids"].tobytes()).digest()[:16]
        for row in rows
        if row["id"] != FILLER
    ]
