"""Pairwise preference models, trained with TRL's SFTTrainer on the label token alone.

Each pair is trained in both orders: A where the better response stands first, B where it stands
second. Both orders are branches behind one copy of the context. A tie wants both labels alike: its
rows stand in the batch once with each label, those of decided pairs twice with theirs, so that
every pair weighs the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from prefpipe.compare.ab_prompt import PairwiseTokenizer
from prefpipe.compare.reward_model import Unscorable
from prefpipe.models.packs import IGNORED
from prefpipe.rows import Preference, Reject
from prefpipe.training.collator import PackCollator
from prefpipe.training.preferences import answer_of
from prefpipe.training.tokenized_pairs import TokenizedPair
from prefpipe.training.trainer import PairTrainer


def tokenize_pair(
    row: Preference, tokenize: PairwiseTokenizer
) -> tuple[TokenizedPair, int] | Reject:
    """A pair as what both orders share, the rest with chosen as A, the rest with chosen as B.

    The second value is how many tokens of the context were cut.
    """
    responses = [answer_of(row.chosen), answer_of(row.rejected)]
    made = tokenize(row.prompt, responses, [(0, 1), (1, 0)])
    if isinstance(made, Unscorable):
        return Reject(id=row.id, reason=made.reason, detail=made.detail)
    given, swapped = made.rows
    if given == swapped:
        return Reject(id=row.id, reason="identical_after_tokenizing")
    parts = (given[: made.shared], given[made.shared :], swapped[made.shared :])
    arrays = (np.array(ids, dtype=np.int32) for ids in parts)
    return TokenizedPair(row.id, *arrays), made.tokens_cut


@dataclasses.dataclass(frozen=True)
class PairwiseCollator:
    """Tokenized pairs (see tokenize_pair, with a column tie) to a batch of 4 B rows.

    A row is two tokens, the last of the turn and its label, and the labels are those of the second:
    the head is computed nowhere else. With prefix_sharing the model runs the packs; without, a row
    is the whole turn and its label, padded on the right.
    """

    pad_token_id: int
    labels: tuple[int, int]
    """The tokens A and B."""
    prefix_sharing: bool = True
    pairs_per_pack: int = 5

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        n = len(examples)
        a, b = self.labels
        # rows: chosen as A, chosen as B; then both again, with the other label where it is a tie
        ties = torch.tensor([bool(example.get("tie", False)) for example in examples])
        first = torch.tensor([a] * n + [b] * n)
        again = torch.where(torch.cat([ties, ties]), a + b - first, first)
        label = torch.cat([first, again])[:, None]
        batch = (
            self._packed(examples, label) if self.prefix_sharing else self._padded(examples, label)
        )
        batch["completion_mask"] = torch.ones((2 * n, 1), dtype=torch.long)
        batch["id"] = [example["id"] for example in examples]
        return batch

    def _packed(self, examples: Sequence[Mapping[str, Any]], label: torch.Tensor) -> dict[str, Any]:
        packer = PackCollator(self.pad_token_id, self.pairs_per_pack, with_last=True)
        layout = packer([{k: e[k] for k in _IDS} for e in examples])
        lengths = layout["completion_mask"].sum(1, keepdim=True)  # a row's last token stands there
        last = layout["input_ids"].gather(1, lengths).repeat(2, 1)
        index = layout["pack_index"].gather(1, lengths).repeat(2, 1)
        return {
            "input_ids": torch.cat([last, label], dim=1),
            "labels": torch.cat([torch.full_like(label, IGNORED), label], dim=1),
            "attention_mask": layout["attention_mask"],
            "pack_index": index.expand(-1, 2),
            **{k: layout[k] for k in ("pack_input_ids", "pack_position_ids", "pack_segments")},
        }

    def _padded(self, examples: Sequence[Mapping[str, Any]], label: torch.Tensor) -> dict[str, Any]:
        rows = [[*e["prompt_ids"], *e[side]] for side in _IDS[1:] for e in examples] * 2
        longest = max(map(len, rows)) + 1
        ids = torch.full((len(rows), longest), self.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row)
            ids[k, len(row)] = labels[k, len(row)] = label[k, 0]
            mask[k, : len(row) + 1] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


class PrefixSharedPairwiseTrainer(PairTrainer, SFTTrainer):
    """trl.SFTTrainer on the label tokens of both orders; its loss is the mean of -log p(label).

    mean_token_accuracy is the share of labels that are the model's first choice of all tokens.
    """

    loss_is_scaled_for_ga = False  # PairTrainer's weights undo the division

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        labels: tuple[int, int],
        prefix_sharing: bool = True,
        pairs_per_pack: int = 5,
        **kwargs: Any,
    ) -> None:
        pad = processing_class.pad_token_id
        pad = processing_class.eos_token_id if pad is None else pad
        if not isinstance(pad, int):
            raise ValueError("the tokenizer has neither a pad token nor an end-of-text token")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=PairwiseCollator(pad, labels, prefix_sharing, pairs_per_pack),
            prefix_sharing=prefix_sharing,
            pairs_per_pack=pairs_per_pack,
            **kwargs,
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "tie" not in self._signature_columns:
            self._signature_columns.append("tie")

    def weighted_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, weight: Any
    ) -> Any:
        """TRL's loss; the mask was for counting pairs, no model takes it."""
        inputs = {k: v for k, v in inputs.items() if k != "completion_mask"}
        return super().weighted_loss(model, inputs, return_outputs, weight)
