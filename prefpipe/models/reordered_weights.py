"""Linear layers on a CPU with their weights in the order in which its cores read them.

A decoding step multiplies a few dozen rows with every weight. torch's own F.linear rearranges the
weights for each product; oneDNN takes them rearranged once, which is what torch.compile's freezing
does, too (torch/_inductor/fx_passes/mkldnn_fusion.py). For 32 rows of 512 to 1,408 numbers on two
cores: 0.25 instead of 0.42 ms (float32, AMD EPYC); for 3,200 rows 20.5 instead of 23 ms. Also
tried: the weights transposed (no gain), `weight @ x.T` (half of it), MKL's own packing (none).

The decoder layers of Llama, Qwen2 and Mistral are replaced whole (prefpipe.models.last_layer). Of
others the gated layers, down(silu(gate(x)) * up(x)), get silu and product within the matrix products.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import psutil
import torch
from torch import Tensor, nn

from prefpipe.models.last_layer import decoder_layers

MIN_WEIGHTS = 2**17
"""A smaller layer's call costs as much as it saves, but for those in a decoder layer."""

Forward = Callable[[Tensor], Tensor]


def packed_linears(model: nn.Module) -> "PackedLinears":
    """Packed at the first call, and again where the model has got other weights or layers since."""
    state = _state(model)
    if model not in _of_model or _of_model[model][0] != state:
        _of_model.pop(model, None)  # first, so that its memory is free again
        _of_model[model] = state, PackedLinears(model)
    return _of_model[model][1]


class PackedLinears:
    """The decoder layers of a model, and its other large linear ones, with a second copy of their
    weights.

    None are packed where oneDNN is missing, the model isn't on the CPU, or the copy would take more
    than a quarter of the memory that is free. Good for as long as the weights stay as they are;
    packed_linears sees to that.
    """

    @torch.inference_mode()
    def __init__(self, model: nn.Module):
        layers = [m for m in model.modules() if _is_plain(m)]
        size = sum(layer.weight.nbytes for layer in layers)
        has_kernels = torch.backends.mkldnn.is_available() and hasattr(
            torch.ops.mkldnn, "_linear_pointwise"
        )
        self._forwards: list[tuple[nn.Module, Forward]] = []
        if not has_kernels or size > psutil.virtual_memory().available // 4:
            return
        whole = decoder_layers(model, _pack_parts, _is_plain)
        self._forwards += [(found.layer, found.forward) for found in whole]
        inside = {module for found in whole for module in found.layer.modules()}
        others = (x for x in layers if x not in inside and x.weight.numel() >= MIN_WEIGHTS)
        packed = {layer: _Packed(layer) for layer in others}
        gated = ((module, _gated_forward(module, packed)) for module in model.modules())
        self._forwards += [
            *((layer, of_layer.forward) for layer, of_layer in packed.items()),
            *((module, forward) for module, forward in gated if forward),
        ]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """The layers use the packed weights inside, and their own outside."""
        # not by setattr: a module looks at every value that it is given
        before = [module.__dict__.get("forward") for module, _ in self._forwards]
        for module, forward in self._forwards:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for (module, _), forward in zip(self._forwards, before, strict=True):
                if forward is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = forward


_State = list[tuple[str, int, int, list[Any]]]
_of_model: weakref.WeakKeyDictionary[nn.Module, tuple[_State, PackedLinears]]
_of_model = weakref.WeakKeyDictionary()


def _state(model: nn.Module) -> _State:
    """Of each layer to pack: its name, since an adapter may be put around it; where its weights and
    biases are; how often they were changed; and some of them, since changes through .data aren't
    counted.
    """
    found = []
    for name, layer in model.named_modules():
        if _is_plain(layer):
            for given in (layer.weight, layer.bias):
                if given is not None:
                    version = 0 if given.is_inference() else given._version
                    steps = tuple(slice(None, None, max(1, size // 4)) for size in given.shape)
                    some = given.detach()[steps].tolist()
                    found.append((name, given.data_ptr(), version, some))
    return found


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear  # not a quantized one
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in (torch.float32, torch.bfloat16)
        and "forward" not in layer.__dict__  # accelerate's hooks
    )


class _Packed:
    """Of layers with the same input: their outputs side by side."""

    def __init__(self, *layers: nn.Linear):
        weights = [layer.weight.detach() for layer in layers]
        biases = [
            weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
            for layer, weight in zip(layers, weights, strict=True)
        ]
        has_bias = any(layer.bias is not None for layer in layers)
        whole = torch.cat(weights) if len(layers) > 1 else weights[0]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(whole)
        self._bias = torch.cat(biases) if has_bias else None
        self._apply = torch.ops.mkldnn._linear_pointwise.default
        self._with = torch.ops.mkldnn._linear_pointwise.binary

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(x, self._weight, self._bias, "none", [], "")

    def silu(self, x: Tensor) -> Tensor:
        """silu(forward(x)); oneDNN's name for it is swish."""
        return self._apply(x, self._weight, self._bias, "swish", [1.0], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """forward(x) * factor"""
        return self._with(x, factor, self._weight, self._bias, "mul")

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """forward(x) + term"""
        return self._with(x, term, self._weight, self._bias, "add")


def _pack_parts(parent: nn.Module, *names: str) -> _Packed:
    return _Packed(*(getattr(parent, name) for name in names))


def _gated_forward(module: nn.Module, packed: dict[nn.Linear, _Packed]) -> Forward | None:
    """Of a module that is down(silu(gate(x)) * up(x)): small and large inputs tell, the latter since
    some architectures cap what they multiply.
    """
    names = ("gate_proj", "up_proj", "down_proj")
    parts = [packed.get(getattr(module, name, None)) for name in names]  # pyright: ignore[reportArgumentType]
    gate, up, down = parts
    if gate is None or up is None or down is None or "forward" in module.__dict__:
        return None

    def forward(x: Tensor) -> Tensor:
        return down.forward(up.times(x, gate.silu(x)))

    layer: nn.Linear = module.gate_proj  # pyright: ignore[reportAssignmentType]
    x = torch.ones(3, 1, layer.in_features, dtype=layer.weight.dtype)
    x[1, :, ::2] = -1
    x[2] = 100
    off = (forward(x) - module(x)).norm(dim=-1) / module(x).norm(dim=-1)
    return forward if off.max() < (1e-4 if x.dtype == torch.float32 else 0.01) else None
