"""Bradley-Terry reward models as TRL trains them, with each prompt computed once for its pairs.

    loss = -log sigmoid(r(x, chosen) - r(x, rejected) - margin) + c * (r(chosen) + r(rejected))^2

averaged over the pairs of an optimizer step, whatever micro-batch they are in. The loss is
trl.RewardTrainer's own; a tie is given to it in both directions, and each decided pair twice, so
that a tie is two halves: -log sigmoid(d) / 2 - log sigmoid(-d) / 2.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from prefpipe.training.collator import PackCollator
from prefpipe.training.trainer import PairTrainer, Weight


@dataclasses.dataclass(frozen=True)
class RewardCollator:
    """Tokenized pairs (dataset.to_dataset, with columns tie and margin where wanted) to a batch.

    The 2 B rows are the chosen ones, then the rejected ones. With prefix_sharing a row is the last
    token alone, (2 B, 1), and the model runs the packs; without, a row is prompt and completion,
    padded on the right. With ties, row_index (4 B,) names the rows of each side twice (see above).
    """

    pad_token_id: int
    prefix_sharing: bool = True
    pairs_per_pack: int = 5

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self._packed(examples) if self.prefix_sharing else self._padded(examples)
        ties = [example.get("tie", False) for example in examples]
        repeats = 1
        if any(ties):
            n, repeats = len(examples), 2
            first = [i + n if tie else i for i, tie in enumerate(ties)]
            second = [i if tie else i + n for i, tie in enumerate(ties)]
            sides = [*range(n), *first, *range(n, 2 * n), *second]
            batch["row_index"] = torch.tensor(sides)
        if "margin" in examples[0]:
            margins = [0.0 if tie else e["margin"] for e, tie in zip(examples, ties, strict=True)]
            batch["margin"] = torch.tensor(margins * repeats)
        batch["completion_mask"] = torch.ones((2 * len(examples), 1), dtype=torch.long)
        batch["id"] = [example["id"] for example in examples]
        return batch

    def _packed(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        packer = PackCollator(self.pad_token_id, self.pairs_per_pack, with_last=True)
        layout = packer([{k: e[k] for k in _IDS} for e in examples])
        lengths = layout["completion_mask"].sum(1, keepdim=True)  # a row's last token stands there
        return {
            "input_ids": layout["input_ids"].gather(1, lengths),
            "attention_mask": layout["attention_mask"],
            "pack_index": layout["pack_index"].gather(1, lengths),
            **{k: layout[k] for k in ("pack_input_ids", "pack_position_ids", "pack_segments")},
        }

    def _padded(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [[*e["prompt_ids"], *e[side]] for side in _IDS[1:] for e in examples]
        longest = max(map(len, rows))
        ids = [[*row, *[self.pad_token_id] * (longest - len(row))] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"input_ids": torch.tensor(ids), "attention_mask": mask}


_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


class PrefixSharedRewardTrainer(PairTrainer, RewardTrainer):
    """trl.RewardTrainer for data sets made by prefpipe.training.tokenized_pairs.to_dataset.

    A column tie (bool) marks pairs that are trained as two halves, a column margin (float) is what
    the loss subtracts. prefix_sharing changes the layout of a batch only; an encoder cannot have it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: RewardConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        prefix_sharing: bool = True,
        pairs_per_pack: int = 5,
        **kwargs: Any,
    ) -> None:
        pad = processing_class.pad_token_id
        if not isinstance(pad, int):
            raise ValueError(
                "the tokenizer has no pad token; see prefpipe.models.classifiers.use_own_pad_token"
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=RewardCollator(pad, prefix_sharing, pairs_per_pack),
            prefix_sharing=prefix_sharing,
            pairs_per_pack=pairs_per_pack,
            **kwargs,
        )
        bare = self.accelerator.unwrap_model(self.model)
        _repeat_rows(bare.get_base_model() if hasattr(bare, "peft_config") else bare)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "tie" not in self._signature_columns:
            self._signature_columns.append("tie")

    def weighted_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, weight: Weight
    ) -> Any:
        """TRL's loss; the mask was for counting pairs, no model takes it."""
        inputs = {k: v for k, v in inputs.items() if k != "completion_mask"}
        return super().weighted_loss(model, inputs, return_outputs, weight)


def _repeat_rows(model: torch.nn.Module) -> None:
    """Let a batch name which rows of the logits it wants, in which order: row_index.

    So a pair that stands in a batch twice is computed once. model: the bare one, not PEFT's.
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
