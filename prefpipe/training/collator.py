"""How a batch of preference pairs is laid out: the pairs of one prompt behind one copy of it.

A trainer of TRL asks its model for one row a completion, (2B, prompt + completion), the chosen
ones first. Here it asks for rows that hold the last prompt token and the completion alone,
(2B, 1 + C), and the batch also carries the packs (prefpipe.models.packs) the model really runs:

    trainer                  (2B, 1 + C)    input_ids, completion_mask
      causal LM / classifier
        backbone             (R, T)         pack_input_ids, pack_position_ids, pack_segments
        hidden states        (R, T, H)  ->  hidden.view(R * T, H)[pack_index]  = (2B, 1 + C, H)
      head and loss          (2B, 1 + C)    unmodified

So the trainer's own loss, head and metrics see what they would see without the prompt, whatever
they are, and the head is not even computed on the prompt. A completion that several pairs share is
run once. On a CPU the packs stand end to end in one row, and each piece attends to just what it
stands behind: under one mask over all of them (CUDA, FlexAttention apart) half of the attention is
computed for nothing. Shapes: B pairs, R packs, T tokens of the longest pack, C of the longest completion.
"""

import functools
import random
import types
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from prefpipe.models.attention import (
    USED_IN_BOTH_WAYS,
    Prefill,
    Segment,
    shared_prefix_attention,
)
from prefpipe.models.last_layer import cut_last_layer
from prefpipe.models.packs import PADDING, PROMPT, Pack, branch_mask, pack, stack
from prefpipe.models.trees import can_share

FLEX_BLOCK = 128
"""FlexAttention's block: packs are padded to a multiple of it, so that few shapes are compiled."""

_LOOK_AHEAD_GROUPS = 64


@dataclass(frozen=True)
class PackCollator:
    """Tokenized pairs (dataset.to_dataset) to the batch that the module's docstring shows.

    attention_mask is that of the packs (R, T), for trainers that count tokens; the model does not
    read it. Columns other than the ids go through: numbers as a tensor, the rest as lists.
    """

    pad_token_id: int
    pairs_per_pack: int = 5
    with_last: bool = False
    """Run a completion's last token too: for a score that is read there."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [(e["prompt_ids"], e["chosen_ids"]) for e in examples]
        rows += [(e["prompt_ids"], e["rejected_ids"]) for e in examples]
        length = 1 + max(len(completion) for _, completion in rows)
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        completion_mask = torch.zeros((len(rows), length), dtype=torch.long)
        for i, (prompt, completion) in enumerate(rows):
            input_ids[i, 0] = prompt[-1]
            input_ids[i, 1 : 1 + len(completion)] = torch.as_tensor(completion)
            completion_mask[i, 1 : 1 + len(completion)] = 1

        packs, places = self._packs(examples)
        stacked = stack(packs, self.pad_token_id)
        pack_length = stacked["input_ids"].shape[1]
        index = torch.zeros((len(rows), length), dtype=torch.long)
        for i, (r, (start, stop)) in enumerate(places):
            index[i, : stop - start] = torch.arange(start, stop) + r * pack_length
        tokens = torch.tensor([len(p) for p in packs])
        return {
            "input_ids": input_ids,
            "completion_mask": completion_mask,
            "attention_mask": (torch.arange(pack_length) < tokens[:, None]).long(),
            "pack_input_ids": stacked["input_ids"],
            "pack_position_ids": stacked["position_ids"],
            "pack_segments": stacked["segments"],
            "pack_index": index,
            **_other_columns(examples),
        }

    def _packs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Pack], list[tuple[int, tuple[int, int]]]]:
        """The packs, and for each of the 2B rows its (pack, span)."""
        groups: list[tuple[list[int], dict[tuple[int, ...], int], list[int]]] = []
        open_group: dict[tuple[int, ...], int] = {}
        for i, example in enumerate(examples):
            prompt = tuple(example["prompt_ids"])
            g = open_group.get(prompt)
            if g is None or len(groups[g][2]) == self.pairs_per_pack:
                g = open_group[prompt] = len(groups)
                groups.append((list(prompt), {}, []))
            _, branches, pairs = groups[g]
            pairs.append(i)
            for name in ("chosen_ids", "rejected_ids"):
                branches.setdefault(tuple(example[name]), len(branches))
        packs = [
            pack(prompt, list(branches), with_last=self.with_last) for prompt, branches, _ in groups
        ]
        places: list[tuple[int, tuple[int, int]]] = [(0, (0, 0))] * (2 * len(examples))
        for g, (_, branches, pairs) in enumerate(groups):
            for i in pairs:
                chosen, rejected = (tuple(examples[i][k]) for k in ("chosen_ids", "rejected_ids"))
                places[i] = g, packs[g].spans[branches[chosen]]
                places[len(examples) + i] = g, packs[g].spans[branches[rejected]]
        return packs, places


def _other_columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = {}
    for name in examples[0].keys() - {"prompt_ids", "chosen_ids", "rejected_ids"}:
        values = [example[name] for example in examples]
        columns[name] = torch.tensor(values) if isinstance(values[0], float) else values
    return columns


def share_prompts(model: torch.nn.Module) -> None:
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
    if config._attn_implementation == "sdpa" and can_share(backbone) and not has_dropout:
        config._attn_implementation = USED_IN_BOTH_WAYS
        cut_last_layer(backbone)

    @functools.wraps(run)
    def forward(
        self: Any,
        *args: Any,
        pack_input_ids: Tensor | None = None,
        pack_position_ids: Tensor | None = None,
        pack_segments: Tensor | None = None,
        pack_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if pack_input_ids is None or pack_position_ids is None or pack_segments is None:
            return run(*args, **kwargs)
        implementation = self.config._attn_implementation
        if implementation == USED_IN_BOTH_WAYS:
            if pack_input_ids.device.type == "cpu":
                real_R_T = pack_segments != PADDING
                place_RT = real_R_T.flatten().cumsum(0) - 1
                place = place_RT[pack_index]
                layout = Prefill(_segments_of(pack_segments), keep=place.unique())
                kwargs |= {"attention_mask": None, "layout": layout}
                kwargs["input_ids"] = pack_input_ids[real_R_T][None]
                kwargs["position_ids"] = pack_position_ids[real_R_T][None]
                with shared_prefix_attention(self):
                    outputs = run(**kwargs)
                outputs.last_hidden_state = outputs.last_hidden_state[0, place]
                return outputs
            implementation = "sdpa"
        length = pack_input_ids.shape[1]
        if implementation == "flex_attention":
            short = (0, -length % FLEX_BLOCK)
            pack_input_ids = torch.nn.functional.pad(pack_input_ids, short)
            pack_position_ids = torch.nn.functional.pad(pack_position_ids, short)
            pack_segments = torch.nn.functional.pad(pack_segments, short, value=PADDING)
        kwargs |= {"input_ids": pack_input_ids, "position_ids": pack_position_ids}
        kwargs["attention_mask"] = attention_mask(pack_segments, implementation, self.dtype)
        outputs = run(**kwargs)
        hidden_R_T_H = outputs.last_hidden_state[:, :length]
        outputs.last_hidden_state = hidden_R_T_H.flatten(0, 1)[pack_index]
        return outputs

    backbone.forward = types.MethodType(forward, backbone)
    backbone.runs_packs = True


def _segments_of(segments_R_T: Tensor) -> list[Segment]:
    """The packs end to end without their padding, as pieces that attend to what they stand behind."""
    found: list[Segment] = []
    start = 0
    for row in segments_R_T:
        prompt = None
        kinds, counts = row.unique_consecutive(return_counts=True)
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            if kind == PADDING:
                continue
            found.append(Segment(start, start + count, None if kind == PROMPT else prompt))
            prompt = found[-1] if kind == PROMPT else prompt
            start += count
    return found


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


def check_model(config: Any, longest_tokens: int) -> None:
    """Raise ValueError where a pack would not give what rows of their own give.

    longest_tokens: of a prompt and a completion. A sliding window shorter than that would have to
    move along each branch; a layer that carries a state (linear attention, Mamba) cannot branch.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"{text.model_type}: layers of kind {', '.join(sorted(unknown))} cannot share a "
            "prompt; switch prefix_sharing off"
        )
    window: int | None = getattr(text, "sliding_window", None)
    slides = not kinds or "sliding_attention" in kinds
    if window is not None and slides and longest_tokens > window:
        raise ValueError(
            f"{text.model_type}: {longest_tokens} tokens of prompt and completion are longer than "
            f"the sliding window of {window}; lower max_length or switch prefix_sharing off"
        )


class PromptGroupSampler(Sampler[int]):
    """Indices of the pairs for an epoch, so that the pairs of a prompt fall into one batch.

    prompts: for each pair, what is equal for pairs of one prompt. Groups of up to pairs_per_pack
    pairs are shuffled (by seed and epoch) and put into batches of batch_pairs; where no group fits
    the room that is left, one is split. Every batch but the last has batch_pairs pairs, whatever
    the groups' sizes. Without shuffle: the order of the input, grouped.
    """

    def __init__(
        self,
        prompts: Sequence[Hashable],
        *,
        batch_pairs: int,
        pairs_per_pack: int = 5,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self._indices: dict[Hashable, list[int]] = {}
        for index, prompt in enumerate(prompts):
            self._indices.setdefault(prompt, []).append(index)
        self.batch_pairs = batch_pairs
        self.group_pairs = min(pairs_per_pack, batch_pairs)
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self._length = len(prompts)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}:{self.epoch}")
        groups: list[list[int]] = []
        for indices in self._indices.values():
            order = rng.sample(indices, len(indices)) if self.shuffle else indices
            size = self.group_pairs
            groups += [order[i : i + size] for i in range(0, len(order), size)]
        if self.shuffle:
            rng.shuffle(groups)
        waiting = deque(groups)
        while waiting:
            room, passed = self.batch_pairs, []
            while waiting and room and len(passed) < _LOOK_AHEAD_GROUPS:
                group = waiting.popleft()
                if len(group) > room:
                    passed.append(group)
                    continue
                yield from group
                room -= len(group)
            waiting.extendleft(reversed(passed))
            if room and waiting:
                yield from waiting[0][:room]
                waiting[0] = waiting[0][room:]
