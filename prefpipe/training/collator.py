"""How a batch of preference pairs is laid out: the pairs of one prompt behind one copy of it.

A trainer of TRL asks its model for one row a completion, (2B, prompt + completion), the chosen
ones first. Here it asks for rows that hold the last prompt token and the completion alone,
(2B, 1 + C), and the batch also carries the packs (prefpipe.models.packs) the model really runs:

    trainer                  (2B, 1 + C)    input_ids, completion_mask
      causal LM / classifier
        backbone             (R, T)         pack_input_ids, pack_position_ids, pack_segments
        hidden states        (R, T, H)  ->  hidden.view(R * T, H)[pack_index]  = (2B, 1 + C, H)
      head and loss          (2B, 1 + C)    unmodified

So the trainer's own loss and metrics see what they would see without the prompt, whatever they are,
and the head is not computed on the prompt. A completion that several pairs share is run once. On a
CPU the packs stand end to end in one row, and each piece attends to just what it stands behind:
under one mask over all of them (CUDA, FlexAttention apart) half of it would be for nothing. Shapes: B pairs, R packs, T tokens of the longest pack, C of the longest completion.
"""

import functools
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefpipe.models.attention import USED_IN_BOTH_WAYS, Prefill, Segment, shared_prefix_attention
from prefpipe.models.last_layer import cut_last_layer
from prefpipe.models.packs import PADDING, PROMPT, Pack, branch_mask, pack, pad_right, stack
from prefpipe.models.sharing import say, shares
from prefpipe.training.sampler import PAIRS_PER_PACK

FLEX_BLOCK = 128
"""FlexAttention's block: packs are padded to a multiple of it, so that few shapes are compiled."""

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""What every collator lays out; other columns go through as they are."""


@dataclass(frozen=True)
class PackCollator:
    """Tokenized pairs (tokenized_pairs.to_dataset) to the batch that the module's docstring shows.

    attention_mask is that of the packs (R, T), for trainers that count tokens; the model does not
    read it. Columns other than the ids go through: numbers as a tensor, the rest as lists.
    """

    pad_token_id: int
    pairs_per_pack: int = PAIRS_PER_PACK
    with_last: bool = False
    """Run a completion's last token too: for a score that is read there."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [[e["prompt_ids"][-1], *e[side]] for side in ID_COLUMNS[1:] for e in examples]
        input_ids, completion_mask = pad_right(rows, self.pad_token_id)
        completion_mask[:, 0] = 0  # the prompt's last token
        packs, spans = self._packs(examples)
        stacked = stack(packs, self.pad_token_id)
        pack_length = stacked["input_ids"].shape[1]
        index = torch.zeros_like(input_ids)
        for i, (r, (start, stop)) in enumerate(spans):
            index[i, : stop - start] = torch.arange(start, stop) + r * pack_length
        tokens = torch.tensor([len(p) for p in packs])
        batch: dict[str, Any] = {
            "input_ids": input_ids,
            "completion_mask": completion_mask,
            "attention_mask": (torch.arange(pack_length) < tokens[:, None]).long(),
            "pack_input_ids": stacked["input_ids"],
            "pack_position_ids": stacked["position_ids"],
            "pack_segments": stacked["segments"],
            "pack_index": index,
        }
        for name in examples[0].keys() - {*ID_COLUMNS}:
            values: Any = [example[name] for example in examples]
            batch[name] = torch.tensor(values) if isinstance(values[0], float) else values
        return batch

    def _packs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Pack], list[tuple[int, tuple[int, int]]]]:
        """The packs, and for each of the 2B rows its (pack, span)."""
        # 1) Pairs by prompt, at most pairs_per_pack in a group; equal completions are one branch.
        groups: list[tuple[tuple[int, ...], dict[tuple[int, ...], int]]] = []
        open_group: dict[tuple[int, ...], int] = {}
        pairs_in: Counter[int] = Counter()
        places: list[tuple[int, list[int]]] = []  # of each pair: its group, its two branches
        for example in examples:
            prompt = tuple(example["prompt_ids"])
            g = open_group.get(prompt)
            if g is None or pairs_in[g] == self.pairs_per_pack:
                g = open_group[prompt] = len(groups)
                groups.append((prompt, {}))
            pairs_in[g] += 1
            branches = groups[g][1]
            completions = [tuple(example[name]) for name in ID_COLUMNS[1:]]
            own = [branches.setdefault(each, len(branches)) for each in completions]
            places.append((g, own))
        packs = [pack(list(p), list(them), with_last=self.with_last) for p, them in groups]
        # 2) Where each row's completion is: the chosen ones in the first half, as the trainer has it.
        return packs, [(g, packs[g].spans[own[side]]) for side in (0, 1) for g, own in places]


def last_token_packs(
    examples: Sequence[Mapping[str, Any]], pad_token_id: int, pairs_per_pack: int
) -> dict[str, Any]:
    """The packs of a batch whose rows are each completion's last token alone, (2B, 1).

    For a loss that reads one position: a reward, the token behind a turn.
    """
    packer = PackCollator(pad_token_id, pairs_per_pack, with_last=True)
    batch = packer([{name: e[name] for name in ID_COLUMNS} for e in examples])
    last = batch.pop("completion_mask").sum(1, keepdim=True)  # where a row's last token stands
    one_token = {name: batch[name].gather(1, last) for name in ("input_ids", "pack_index")}
    return batch | one_token


def whole_rows(examples: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Prompt and completion as a row of their own, the chosen ones first (2B): without packs."""
    return [[*e["prompt_ids"], *e[side]] for side in ID_COLUMNS[1:] for e in examples]


def run_packed(model: torch.nn.Module) -> None:
    """Make the backbone of a causal LM or classifier run a batch's packs, if it has any.

    The model's own forward, its head and the trainer's loss stay as they are. A second call does
    nothing. model: the bare model, not one wrapped by PEFT.
    """
    backbone: Any = model.base_model
    if getattr(backbone, "runs_packs", False):
        return
    run = backbone.forward
    config = backbone.config
    has_dropout = bool(getattr(config, "attention_dropout", 0))  # the layout's attention has none
    if config._attn_implementation == "sdpa" and not has_dropout:
        config._attn_implementation = USED_IN_BOTH_WAYS
        cut_last_layer(backbone)

    @functools.wraps(run)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("input_ids", "position_ids", "segments", "index")
        ids, positions, segments, index = (kwargs.pop(f"pack_{name}", None) for name in names)
        if ids is None:
            return run(*args, **kwargs)
        implementation = self.config._attn_implementation
        if implementation == USED_IN_BOTH_WAYS:
            if ids.device.type == "cpu":
                # all packs end to end in one row without their padding, (1, N): index_2B_C says
                # where in it each of the trainer's positions stands
                real_R_T = segments != PADDING
                index_RT = real_R_T.flatten().cumsum(0) - 1
                index_2B_C = index_RT[index]
                layout = Prefill(_segments_of(segments), keep=index_2B_C.unique())
                kwargs |= {"attention_mask": None, "layout": layout}
                kwargs["input_ids"] = ids[real_R_T][None]
                kwargs["position_ids"] = positions[real_R_T][None]
                with shared_prefix_attention(self):
                    outputs = run(**kwargs)
                outputs.last_hidden_state = outputs.last_hidden_state[0, index_2B_C]
                return outputs
            implementation = "sdpa"
        length = ids.shape[1]
        if implementation == "flex_attention":
            short = (0, -length % FLEX_BLOCK)
            ids, positions = (torch.nn.functional.pad(t, short) for t in (ids, positions))
            segments = torch.nn.functional.pad(segments, short, value=PADDING)
        kwargs |= {"input_ids": ids, "position_ids": positions}
        kwargs["attention_mask"] = attention_mask(segments, implementation, self.dtype)
        outputs = run(**kwargs)
        hidden_R_T_H = outputs.last_hidden_state[:, :length]
        outputs.last_hidden_state = hidden_R_T_H.flatten(0, 1)[index]
        return outputs

    backbone.forward = types.MethodType(forward, backbone)
    backbone.runs_packs = True


def _segments_of(segments_R_T: Tensor) -> list[Segment]:
    """The packs end to end without their padding, as pieces that attend to what they stand behind."""
    segments: list[Segment] = []
    start = 0
    for row in segments_R_T:
        prompt = None
        kinds, counts = row.unique_consecutive(return_counts=True)
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            if kind == PADDING:
                continue
            segments.append(Segment(start, start + count, None if kind == PROMPT else prompt))
            prompt = segments[-1] if kind == PROMPT else prompt
            start += count
    return segments


def attention_mask(segments_R_T: Tensor, implementation: str, dtype: torch.dtype) -> Any:
    """The branch mask as that attention implementation takes it.

    SDPA (CUDA): bool; eager: 0 or the dtype's minimum, to be added; FlexAttention: a BlockMask, which
    skips the blocks between branches (CUDA only: it has no backward pass on a CPU). Raises
    ValueError for any other: flash attention's kernels cannot express the mask.
    """
    if implementation == "sdpa":
        return branch_mask(segments_R_T)
    if implementation == "eager":
        mask = branch_mask(segments_R_T)
        zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return zeros.masked_fill(~mask, torch.finfo(dtype).min)
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            segment = segments_R_T[row, key]
            own = segment == segments_R_T[row, query]
            return (query >= key) & ((segment == PROMPT) | own)

        rows, length = segments_R_T.shape
        return create_block_mask(
            sees, rows, None, length, length, device=segments_R_T.device, BLOCK_SIZE=FLEX_BLOCK
        )
    raise ValueError(
        f"prefix sharing does not run on attn_implementation={implementation!r}; load the model "
        "with sdpa (or, on CUDA, flex_attention), or switch prefix_sharing off"
    )


def can_pack(model: Any, longest_tokens: int, router_loss: bool = False) -> bool:
    """Whether packs give what rows of their own give; where not, standard error says why.

    longest_tokens: of a prompt and a completion. A sliding window shorter than that would have to
    move along each branch. router_loss: of a mixture of experts, a mean over all tokens: a prompt
    that is run once would count once.
    """
    if not shares(model):
        return False
    config = model.config.get_text_config()
    if router_loss:
        say(config, "the loss of its router counts each token of each text")
        return False
    kinds = set(getattr(config, "layer_types", None) or ())
    window: int | None = getattr(config, "sliding_window", None)
    slides = not kinds or "sliding_attention" in kinds
    if window is not None and slides and longest_tokens > window:
        say(config, f"pairs of {longest_tokens} tokens are longer than its window of {window}")
        return False
    return True
