"""transformers' decoder layer on a CPU, in fewer operations.

What Llama, Qwen2 and Mistral do in some 60 calls, for our layouts (prefpipe.llm.shared_prefix):

    x = x + out(attend(rotate(query(norm(x))), rotate(key(norm(x))), value(norm(x))))
    x = x + down(silu(gate(norm(x))) * up(norm(x)))

One product makes queries, keys and values; both rotations are one; silu, the product with `up` and
the two sums are done within the products. Of the last layer only those positions are computed that are
asked for (Prefill.keep): of a prompt its last one, the others only as keys and values.

A layer is replaced only where that gives the same numbers.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prefpipe.llm.shared_prefix import NAME, Prefill, Segment


class Linear(Protocol):
    """A linear layer whose weights are packed; for x (..., I) it gives (..., O)."""

    def forward(self, x: Tensor) -> Tensor: ...
    def silu(self, x: Tensor) -> Tensor:
        """silu(forward(x))"""
        ...

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """forward(x) * factor"""
        ...

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """forward(x) + term"""
        ...


Pack = Callable[..., Linear]
"""Layers of the same input -> one that gives their outputs side by side."""


class Rotations:
    """transformers' cos and sin (1, N, D) as (N, 1, D) each, such that x * cos + roll(x) * sin is x
    turned by its position. All layers of a pass have the same ones.
    """

    def __init__(self) -> None:
        self._of: tuple[Tensor, Tensor] | None = None
        self._made: tuple[Tensor, Tensor] | None = None

    def of(self, cos_and_sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self._made is None or self._of is not cos_and_sin:
            cos, sin = (x[0, :, None] for x in cos_and_sin)
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
            self._of, self._made = cos_and_sin, (cos, signed)
        return self._made


class DecoderLayer:
    """forward() takes what the layer's own takes, and gives the same.

    is_last: only what Prefill.keep names is computed; the other positions are left as they came in.
    """

    def __init__(self, layer: Any, pack: Pack, rotations: Rotations, *, is_last: bool):
        attention, mlp = layer.self_attn, layer.mlp
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        self.layer, self._rotations, self._is_last = layer, rotations, is_last
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._head_size: int = attention.head_dim
        self._heads = [x.out_features // self._head_size for x in (query, key, value)]
        if is_last:
            self._query, self._key_value = pack(query), pack(key, value)
        else:
            self._query_key_value = pack(query, key, value)
        self._out, self._down = pack(attention.o_proj), pack(mlp.down_proj)
        self._gate, self._up = pack(mlp.gate_proj), pack(mlp.up_proj)
        self._attend_with: tuple[int, dict[str, Any]] = 0, {}

    @torch.inference_mode()
    def learn(self, x: Tensor, turned: tuple[Tensor, Tensor]) -> bool:
        """Once before use: how the layer attends; whether it gives x the same (1, 9, hidden size)."""
        watch = _Watch()
        config = self.layer.self_attn.config
        before, config._attn_implementation = config._attn_implementation, NAME
        try:
            options = {"attention_mask": None, "position_embeddings": turned, "layout": watch}
            want = self.layer(x, **options)
        finally:
            config._attn_implementation = before
        self._attend_with = watch.seen[0]
        found = self.forward(x, **options)
        off = (found - want).norm(dim=-1) / (want - x).norm(dim=-1)
        return bool(off.max() < (1e-4 if x.dtype == torch.float32 else 0.05))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        layout = options.get("layout")
        if layout is None or position_embeddings is None:
            options["position_embeddings"] = position_embeddings
            own = type(self.layer).forward
            return own(self.layer, hidden_states, attention_mask, *args, **options)
        x, rotation = self._norms[0](hidden_states), self._rotations.of(position_embeddings)
        H, h, _ = self._heads
        if not self._is_last:
            made = self._in_heads(self._query_key_value.forward(x))
            turned = _turned(made[:, : H + h], rotation)
            return self._behind_attention(
                layout, hidden_states, turned[:, :H], turned[:, H:], made[:, H + h :]
            )
        made = self._in_heads(self._key_value.forward(x))
        key, value = _turned(made[:, :h], rotation), made[:, h:]
        keep = layout.keep
        if keep is None:
            query = _turned(self._in_heads(self._query.forward(x)), rotation)
            return self._behind_attention(layout, hidden_states, query, key, value)
        of_kept = (rotation[0][keep], rotation[1][keep])
        query = _turned(self._in_heads(self._query.forward(x[:, keep])), of_kept)
        kept = self._behind_attention(layout, hidden_states[:, keep], query, key, value)
        return hidden_states.index_copy(1, keep, kept)

    def _in_heads(self, x: Tensor) -> Tensor:
        """(1, N, heads * D) -> (N, heads, D)"""
        return x.view(x.shape[1], -1, self._head_size)

    def _behind_attention(self, layout: Any, before: Tensor, *query_key_value: Tensor) -> Tensor:
        """before (1, Q, hidden size): what came in; queries (Q, H, D), keys and values (N, h, D)."""
        index, options = self._attend_with
        attended = layout.attend(index, *(x.transpose(0, 1) for x in query_key_value), **options)
        after = self._out.plus(attended.reshape(1, len(attended), -1), before)
        x = self._norms[1](after)
        return self._down.plus(self._up.times(x, self._gate.silu(x)), after)


def _turned(x_N_H_D: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    return torch.addcmul(x_N_H_D * cos, x_N_H_D.roll(x_N_H_D.shape[-1] // 2, -1), sin)


class _Watch:
    """Five tokens, and four behind three of them; takes down how attend is called."""

    keep = None

    def __init__(self) -> None:
        first = Segment(0, 3)
        self.layout = Prefill([first, Segment(3, 5, first), Segment(5, 9, first)])
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def attend(self, layer: int, *query_key_value: Tensor, **options: Any) -> Tensor:
        self.seen.append((layer, options))
        return self.layout.attend(layer, *query_key_value, **options)


def decoder_layers(
    model: nn.Module, pack: Pack, is_plain: Callable[[nn.Module], bool]
) -> list[DecoderLayer]:
    """Of a model those layers that can be replaced; is_plain: of a linear layer, that pack takes it."""
    config = getattr(model, "config", None)
    count = getattr(config.get_text_config(), "num_hidden_layers", 0) if config else 0
    rotations, found = Rotations(), []
    for layer in model.modules():
        if not _looks_like_one(layer, is_plain):
            continue
        attention: Any = layer.self_attn
        made = DecoderLayer(layer, pack, rotations, is_last=attention.layer_idx == count - 1)
        weight = attention.q_proj.weight
        noise = torch.Generator().manual_seed(0)
        x = torch.randn(1, 9, weight.shape[1], generator=noise).to(weight.dtype)
        angles = torch.randn(1, 9, attention.head_dim // 2, generator=noise).repeat(1, 1, 2)
        try:
            if made.learn(x, (angles.cos().to(x.dtype), angles.sin().to(x.dtype))):
                found.append(made)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
            continue  # it only looks like one
    return found


def _looks_like_one(layer: nn.Module, is_plain: Callable[[nn.Module], bool]) -> bool:
    parts = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
    if {name for name, _ in layer.named_children()} != parts:
        return False
    attention: Any = layer.self_attn
    mlp = layer.mlp
    linears = [getattr(attention, f"{x}_proj", None) for x in "qkvo"]
    linears += [getattr(mlp, f"{x}_proj", None) for x in ("gate", "up", "down")]
    return (
        all(isinstance(x, nn.Linear) and is_plain(x) for x in linears)
        and len(list(attention.children())) == 4
        and hasattr(attention, "layer_idx")
        and hasattr(attention, "head_dim")
        and all("forward" not in module.__dict__ for module in layer.modules())
    )
