"""Attention in which many texts share one prompt's keys and values.

All tokens of a pass stand in one row (1, N): whole prompts and texts when they are read (`Prefill`),
one token of each live sample when they are continued (prefpipe.models.decode). The model is
transformers' own and calls `attend` below instead of its attention: linear layers see one dense
matrix without padding, and no mask of (queries x keys) is built.

N: tokens of the pass; H: query heads; h: key-value heads; D: a head's size; K: keys.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefpipe.models.kv_store import KVStore

NAME = "prefpipe_shared_prefix"
"""Only with a layout, and no mask is made."""
USED_IN_BOTH_WAYS = "prefpipe_shared_prefix_or_sdpa"
"""What a model in training has all the time: gradient checkpointing runs its layers again after the
forward pass, and must find the same attention then."""
Window = int | None
"""How many tokens a token sees, itself included. None: all before it."""


class Layout(Protocol):
    """How the tokens of a pass stand in their one row, and so what each attends to."""

    @property
    def keep(self) -> Tensor | None:
        """Positions, rising, whose outputs are asked for (a last layer may skip others); None: all."""
        ...

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: Window
    ) -> Tensor:
        """Queries (H, N, D) on keys and values (h, N, D): the outputs (N, H, D)."""
        ...


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query (1, H, N, D), key and value (1, h, N, D).

    Without a layout it is sdpa, for a model that is used in both ways (USED_IN_BOTH_WAYS). Raises
    NotImplementedError where the model's attention does more than queries, keys and a window.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    index: Any = module.layer_idx
    how = {"scale": options["scaling"], "window": options.get("sliding_window")}
    return layout.attend(index, query[0], key[0], value[0], **how)[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_ATTENTION_FUNCTIONS.register(USED_IN_BOTH_WAYS, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(USED_IN_BOTH_WAYS, sdpa_mask)


@contextlib.contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """The model uses `attend` inside, and what it used before outside."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@dataclass(eq=False)
class RowKV:
    """Keys and values (h, N, D) of a row's N tokens, by layer, for passes over what stands behind."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens start..stop of the row, behind those of `parent`, where there is one."""

    start: int
    stop: int
    parent: "Segment | None" = None
    row_kv: RowKV | None = None
    """The row of an earlier pass; None: that of this pass."""


@dataclass(frozen=True)
class Prefill:
    """Prompts read from scratch, end to end in one row, and where their keys and values go."""

    segments: Sequence[Segment]
    store: KVStore | None = None
    """None: nothing is kept (scoring)."""
    slots: Sequence[tuple[int, Segment]] = ()
    """Which segment (with its parent) is the prompt of which slot."""
    row_kv: RowKV | None = None
    """Where keys and values of the whole row go."""
    keep: Tensor | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: Window
    ) -> Tensor:
        """Queries of all tokens, or of those to keep."""
        H, N, D = query.shape
        row = key, value
        # 1) Keys and values go where later passes look for them.
        if self.row_kv is not None:  # by themselves: they may be parts of something larger
            row = self.row_kv.layers[layer] = key.contiguous(), value.contiguous()
        if self.store is not None:
            keys, values = self.store.prompt[layer]
            for slot, segment in self.slots:
                own_key, own_value = _behind(segment, layer, row)
                keys[slot, :, :, : own_key.shape[1]] = own_key.mT
                values[slot, :, : own_key.shape[1]] = own_value
        # 2) Each segment's queries attend by themselves, so that no mask says what they don't see.
        out_N_H_D, start = query.new_empty(N, H, D), 0
        for queries, segment in self._pieces(all_tokens=key.shape[1] == N):
            part = slice(start, start := start + queries)
            seen_key, seen_value = _behind(segment, layer, row)
            long = seen_key.shape[1]
            in_window = window is None or long <= window
            # the kernel's own causal mask is right for a square only; one query sees every key
            whole = queries == long and in_window
            masked = not whole and not (queries == 1 and in_window)
            out = scaled_dot_product_attention(
                query[None, :, part],
                seen_key[None],
                seen_value[None],
                attn_mask=_lower_right(queries, long, window, key.device) if masked else None,
                is_causal=whole,
                scale=scale,
                enable_gqa=key.shape[0] != H,
            )
            out_N_H_D[part] = out[0].transpose(0, 1)
        return out_N_H_D

    def _pieces(self, *, all_tokens: bool) -> Iterator[tuple[int, Segment]]:
        """How many queries, and the segment whose last tokens they are."""
        if all_tokens:
            yield from ((segment.stop - segment.start, segment) for segment in self.segments)
            return
        assert self.keep is not None
        keep = self.keep.cpu().numpy()
        starts = np.array([segment.start for segment in self.segments])
        owner = starts.searchsorted(keep, side="right") - 1
        # a run of neighbours in one segment is a segment that ends earlier
        ends = (np.diff(keep, append=-1) != 1) | (np.diff(owner, append=-1) != 0)
        before = -1
        for k in ends.nonzero()[0].tolist():
            yield k - before, replace(self.segments[int(owner[k])], stop=int(keep[k]) + 1)
            before = k


def _behind(segment: Segment | None, layer: int, row: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Keys and values (h, K, D) of a segment and all that it stands behind."""
    parts: list[tuple[Tensor, Tensor]] = []
    while segment is not None:
        keys, values = row if segment.row_kv is None else segment.row_kv.layers[layer]
        part = slice(segment.start, segment.stop)
        parts.insert(0, (keys[:, part], values[:, part]))
        segment = segment.parent
    return [x[0] if len(x) == 1 else torch.cat(x, 1) for x in zip(*parts, strict=True)]


def _lower_right(queries: int, keys: int, window: Window, device: torch.device) -> Tensor:
    """Causal mask (queries, keys) in which the last query sees the last key."""
    key = torch.arange(keys, device=device)
    query = key[keys - queries :, None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)
