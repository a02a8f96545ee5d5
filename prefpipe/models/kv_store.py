"""Keys and values of what a model has read: each prompt's once, each sample's own behind it.

h: key-value heads; D: their size; P: tokens of the longest prompt; T: of the longest sample.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


def kv_shape(config: PreTrainedConfig) -> tuple[int, int]:
    """Key-value heads, and their size; older configurations name the heads of the queries alone."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads, size


@dataclass
class KVStore:
    """Keys and values: of each prompt once (slots), of each live sample's own tokens (rows).

    Live slots and rows are the first ones, so that a step reads plain slices. Room is allocated
    ahead and only grows when more samples or longer prompts are let in.
    """

    layers: int
    heads: int
    """Key-value heads (h)."""
    head_size: int
    dtype: torch.dtype
    device: torch.device
    prompt: list[tuple[Tensor, Tensor]] = field(init=False)
    """A layer: keys (slots, h, D, P), as products want them, and values (slots, h, P, D)."""
    own: list[tuple[Tensor, Tensor]] = field(init=False)
    """A layer: keys and values (rows, h, T, D)."""
    version: int = 0
    """Another one where the tensors are others than before."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "KVStore":
        """An empty one, in the model's shape, dtype and place."""
        config = model.config.get_text_config()
        return cls(config.num_hidden_layers, *kv_shape(config), model.dtype, model.device)

    def __post_init__(self) -> None:
        nothing = torch.zeros(
            0, self.heads, 0, self.head_size, device=self.device, dtype=self.dtype
        )
        self.prompt = [(nothing.mT, nothing)] * self.layers
        self.own = [(nothing, nothing)] * self.layers

    def reserve(self, slots: int, prompt_tokens: int, rows: int, new_tokens: int) -> None:
        """Make room for that many, which the live ones must be among."""
        before = self.sizes
        # a layer at a time, so that old and new stand side by side for one layer only
        for layer, (keys, values) in enumerate(self.prompt):
            keys = _with_room(keys, slots, prompt_tokens, dim=3)
            self.prompt[layer] = keys, _with_room(values, slots, prompt_tokens, dim=2)
        for layer, (keys, values) in enumerate(self.own):
            keys = _with_room(keys, rows, new_tokens, dim=2)
            self.own[layer] = keys, _with_room(values, rows, new_tokens, dim=2)
        self.version += self.sizes != before

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Slots and their tokens, rows and theirs."""
        (_, prompt), (_, own) = self.prompt[0], self.own[0]
        return *prompt.shape[0::2], *own.shape[0::2]  # pyright: ignore[reportReturnType]

    def move(self, parts: list[tuple[Tensor, Tensor]], to: np.ndarray, source: np.ndarray) -> None:
        """Copy slots or rows `source` of self.prompt or self.own to the slots or rows `to`."""
        if len(to):
            to_t, source_t = (torch.from_numpy(x).to(self.device) for x in (to, source))
            for part in itertools.chain.from_iterable(parts):
                part[to_t] = part[source_t]

    def shrink(self, slots: int, rows: int) -> None:
        """Give back the room of all but the first ones."""
        self.prompt = [(k[:slots].clone(), v[:slots].clone()) for k, v in self.prompt]
        self.own = [(k[:rows].clone(), v[:rows].clone()) for k, v in self.own]
        self.version += 1


def _with_room(old: Tensor, count: int, tokens: int, *, dim: int) -> Tensor:
    """A tensor of `count` slots or rows, and that many tokens in dimension dim, with the old ones."""
    if old.shape[0] == count and old.shape[dim] == tokens:
        return old
    # Not wider than asked in either way: many short prompts may be followed by a few long ones.
    # Zeros, since a masked key's weight of 0 is multiplied: it must be finite.
    shape = list(old.shape)
    shape[0], shape[dim] = count, tokens
    new = old.new_zeros(shape)
    have, long = min(old.shape[0], count), min(old.shape[dim], tokens)
    new[:have].narrow(dim, 0, long).copy_(old[:have].narrow(dim, 0, long))
    return new
