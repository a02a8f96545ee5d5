"""Pairwise preference models, trained with TRL's SFTTrainer on the label token alone.

Each pair is trained in both orders: A where the better response stands first, B where it stands
second. Both orders are branches behind one copy of the context. A tie wants both labels alike: its
rows stand in the batch once with each label, those of decided pairs twice with theirs, so that
every pair weighs the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_trainer import SFTTrainer

from prefpipe.compare.ab_prompt import PairwiseTokenizer
from prefpipe.compare.context import Unscorable
from prefpipe.models.packs import IGNORED, pad_right
from prefpipe.rows import Preference, Reject, answer_of
from prefpipe.training.collator import last_token_packs, whole_rows
from prefpipe.training.sampler import PAIRS_PER_PACK
from prefpipe.training.tokenized_pairs import TokenizedPair
from prefpipe.training.trainer import PairTrainer, padding_id


def tokenize_pair(
    row: Preference, tokenize: PairwiseTokenizer
) -> tuple[TokenizedPair | Reject, int]:
    """What both orders share, the rest with chosen as A, with chosen as B; how many tokens were cut."""
    responses = [answer_of(row.chosen), answer_of(row.rejected)]
    turns = tokenize(row.prompt, responses, [(0, 1), (1, 0)])
    if isinstance(turns, Unscorable):
        return turns.reject(row.id), 0
    given, swapped = turns.rows
    shared = turns.shared
    pair = TokenizedPair.of(row.id, given[:shared], given[shared:], swapped[shared:], tie=row.tie)
    return pair, turns.tokens_cut


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
    pairs_per_pack: int = PAIRS_PER_PACK

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        n = len(examples)
        a, b = self.labels
        # rows: chosen as A, chosen as B; then both again, with the other label where it is a tie
        ties = torch.tensor([bool(example.get("tie", False)) for example in examples])
        first = torch.tensor([a] * n + [b] * n)
        again = torch.where(torch.cat([ties, ties]), a + b - first, first)
        label = torch.cat([first, again])[:, None]
        layout = self._packed if self.prefix_sharing else self._padded
        batch = layout(examples, label)
        batch["completion_mask"] = torch.ones((2 * n, 1), dtype=torch.long)
        batch["id"] = [example["id"] for example in examples]
        return batch

    def _packed(self, examples: Sequence[Mapping[str, Any]], label: torch.Tensor) -> dict[str, Any]:
        batch = last_token_packs(examples, self.pad_token_id, self.pairs_per_pack)
        last, index = (batch[name].repeat(2, 1) for name in ("input_ids", "pack_index"))
        return batch | {
            "input_ids": torch.cat([last, label], dim=1),
            "labels": torch.cat([torch.full_like(label, IGNORED), label], dim=1),
            "pack_index": index.expand(-1, 2),
        }

    def _padded(self, examples: Sequence[Mapping[str, Any]], label: torch.Tensor) -> dict[str, Any]:
        turns = whole_rows(examples) * 2
        rows = [[*turn, own] for turn, own in zip(turns, label[:, 0].tolist(), strict=True)]
        ids, mask = pad_right(rows, self.pad_token_id)
        last = mask.sum(1, keepdim=True) - 1
        labels = torch.full_like(ids, IGNORED).scatter(1, last, label)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class PrefixSharedPairwiseTrainer(PairTrainer, SFTTrainer):
    """trl.SFTTrainer on the label tokens of both orders; its loss is the mean of -log p(label).

    mean_token_accuracy is the share of labels that are the model's first choice of all tokens.
    """

    loss_is_scaled_for_ga = False  # PairTrainer's weights undo the division

    def __init__(self, *args: Any, labels: tuple[int, int], **kwargs: Any) -> None:
        self.labels = labels
        super().__init__(*args, **kwargs)

    def decisions(self, inputs: Mapping[str, Any], outputs: Any) -> list[tuple[float, float]]:
        targets = inputs["labels"][:, 1:]
        asked = targets != IGNORED
        labels, logits = targets[asked], outputs.logits.detach()[:, :-1][asked].float()
        own = logits.gather(1, labels[:, None])
        other = logits.gather(1, (sum(self.labels) - labels)[:, None])
        return [(odds, 1.0) for odds in (own - other)[:, 0].tolist()]

    def make_collator(self, tokenizer: PreTrainedTokenizerBase) -> PairwiseCollator:
        pad = padding_id(tokenizer)
        return PairwiseCollator(pad, self.labels, self.prefix_sharing, self.pairs_per_pack)
