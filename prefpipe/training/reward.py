"""Bradley-Terry reward models as TRL trains them, with each prompt computed once for its pairs.

    loss = -log sigmoid(r(x, chosen) - r(x, rejected) - margin) + c * (r(chosen) + r(rejected))^2

averaged over the pairs of an optimizer step, whatever micro-batch they are in. The loss is
trl.RewardTrainer's own; a margin may instead be a factor of the pair's term (Wang et al. 2024, scaled
Bradley-Terry), or the log-odds of a soft label p: -p log sigmoid(d) - (1 - p) log sigmoid(-d). A tie is given to it in both directions, and each decided pair twice, so
that a tie is two halves: -log sigmoid(d) / 2 - log sigmoid(-d) / 2.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.reward_trainer import RewardTrainer

from prefpipe.compare.context import Unscorable
from prefpipe.compare.reward_tokens import RewardTokenizer
from prefpipe.models.loading import bare_model
from prefpipe.models.packs import pad_right
from prefpipe.rows import Preference, Reject, answer_of
from prefpipe.training.collator import last_token_packs, whole_rows
from prefpipe.training.sampler import PAIRS_PER_PACK
from prefpipe.training.tokenized_pairs import TokenizedPair
from prefpipe.training.trainer import PairTrainer, Weight

MarginAs = Literal["additive", "scaled", "soft"]
_WITHOUT: dict[MarginAs, float] = {"additive": 0.0, "scaled": 1.0, "soft": math.inf}
"""What stands for the margin of a pair that has none, so that it is trained as without margins."""


def tokenize_pair(
    row: Preference, tokenize: RewardTokenizer, margin_weight: float, margin_as: MarginAs
) -> tuple[TokenizedPair | Reject, int]:
    """Both responses behind one prompt, as every reader has them; how many tokens were cut of it."""
    tokens = tokenize(row.prompt, [answer_of(row.chosen), answer_of(row.rejected)])
    if isinstance(tokens, Unscorable):
        return tokens.reject(row.id), 0
    ids = (tokens.prompt_ids, *tokens.completions)
    margin = _WITHOUT[margin_as] if row.margin is None else margin_weight * row.margin
    return TokenizedPair.of(row.id, *ids, tie=row.tie, margin=margin), tokens.tokens_cut


@dataclasses.dataclass(frozen=True)
class RewardCollator:
    """Tokenized pairs (to_dataset, with columns tie and margin where wanted) to a batch.

    The 2 B rows are the chosen ones, then the rejected ones. With prefix_sharing a row is the last
    token alone, (2 B, 1), and the model runs the packs; without, a row is prompt and completion,
    padded on the right. With ties, row_index (4 B,) names the rows of each side twice (see above).
    """

    pad_token_id: int
    prefix_sharing: bool = True
    pairs_per_pack: int = PAIRS_PER_PACK
    of_a_tie: float = 0.0
    """What stands for its margin, which nobody has."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        pad = self.pad_token_id
        if self.prefix_sharing:
            batch: dict[str, Any] = last_token_packs(examples, pad, self.pairs_per_pack)
        else:
            ids, mask = pad_right(whole_rows(examples), pad)
            batch = {"input_ids": ids, "attention_mask": mask}
        ties = [example.get("tie", False) for example in examples]
        repeats = 1
        if any(ties):
            n, repeats = len(examples), 2
            first = [i + n if tie else i for i, tie in enumerate(ties)]
            second = [i if tie else i + n for i, tie in enumerate(ties)]
            sides = [*range(n), *first, *range(n, 2 * n), *second]
            batch["row_index"] = torch.tensor(sides)
        if "margin" in examples[0]:
            margins = [
                self.of_a_tie if tie else e["margin"] for e, tie in zip(examples, ties, strict=True)
            ]
            batch["margin"] = torch.tensor(margins * repeats)
        batch["completion_mask"] = torch.ones((2 * len(examples), 1), dtype=torch.long)
        batch["id"] = [example["id"] for example in examples]
        return batch


class PrefixSharedRewardTrainer(PairTrainer, RewardTrainer):
    """trl.RewardTrainer for data sets made by prefpipe.training.tokenized_pairs.to_dataset.

    A column tie (bool) marks pairs that are trained as two halves, a column margin (float) is what
    the loss subtracts, or (margin_as) multiplies with, or takes for a label's log-odds.
    prefix_sharing changes the layout of a batch only; an encoder cannot have it.
    """

    def __init__(self, *args: Any, margin_as: MarginAs = "additive", **kwargs: Any) -> None:
        self.margin_as: MarginAs = margin_as
        super().__init__(*args, **kwargs)

    def weighted_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool, weight: Weight
    ) -> Any:
        """TRL's, to which what another kind of margin adds is added: it knows additive ones only."""
        margin = None if self.margin_as == "additive" else inputs.pop("margin", None)
        if margin is None:
            return super().weighted_loss(model, inputs, return_outputs, weight)
        loss, outputs = super().weighted_loss(model, inputs, True, weight)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        difference = chosen - rejected
        if self.margin_as == "soft":  # -log s(d) (1 - p) + log s(-d) (1 - p) is -(1 - p) d
            more = (1 - margin.sigmoid()) * difference
        else:
            more = (1 - margin) * torch.nn.functional.logsigmoid(difference)
        loss = loss + more.mean() * weight.pairs
        return (loss, outputs) if return_outputs else loss

    def decisions(self, inputs: Mapping[str, Any], outputs: Any) -> list[tuple[float, float]]:
        chosen, rejected = outputs.logits.detach().float().squeeze(-1).chunk(2)
        is_soft = self.margin_as == "soft" and "margin" in inputs
        outcomes = inputs["margin"].sigmoid() if is_soft else torch.ones_like(chosen)
        return list(zip((chosen - rejected).tolist(), outcomes.tolist(), strict=True))

    def make_collator(self, tokenizer: PreTrainedTokenizerBase) -> RewardCollator:
        pad = tokenizer.pad_token_id
        if not isinstance(pad, int):
            raise ValueError(
                "the tokenizer has no pad token; see prefpipe.models.classifiers.use_own_pad_token"
            )
        of_a_tie = _WITHOUT[self.margin_as]
        return RewardCollator(pad, self.prefix_sharing, self.pairs_per_pack, of_a_tie)

    def set_up_model(self) -> None:
        super().set_up_model()
        _repeat_rows(bare_model(self.accelerator.unwrap_model(self.model)))


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
