"""Linear layers on a CPU with their weights in the order in which its cores read them.

A decoding step multiplies a few dozen rows with every weight. torch's own F.linear rearranges the
weights for each product; oneDNN takes them rearranged once, which is what torch.compile's freezing
does, too (torch/_inductor/fx_passes/mkldnn_fusion.py). For 32 rows of 512 to 1,408 numbers on two
cores: 0.25 instead of 0.42 ms (float32, AMD EPYC); for 3,200 rows 20.5 instead of 23 ms. Also
tried: the weights transposed (no gain), `weight @ x.T` (half of it), MKL's own packing (none).

Gated layers, down(silu(gate(x)) * up(x)), get silu and product within the matrix products. Decoder
layers replaced whole (one product for queries, keys and values, both rotations in one, sums within the
products) took 3 to 10 % less time in sampling with 135 M parameters, and were left for their code's sake.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import psutil
import torch
from torch import Tensor, nn

MIN_WEIGHTS = 2**17
"""A smaller layer's call costs as much as it saves."""

Forward = Callable[[Tensor], Tensor]


def reordered(model: nn.Module) -> "ReorderedWeights":
    """Made at the first call, and again where the model has got other weights or layers since."""
    state = _state(model)
    if model not in _of_model or _of_model[model][0] != state:
        _of_model.pop(model, None)  # first, so that its memory is free again
        _of_model[model] = state, ReorderedWeights(model)
    return _of_model[model][1]


def forget(model: nn.Module) -> None:
    """Give back the memory of the model's copy, where it has one."""
    _of_model.pop(model, None)


class ReorderedWeights:
    """A second copy of the weights of a model's large linear layers, in oneDNN's order.

    It is empty where oneDNN is missing, the model isn't on the CPU, or it would take more than a quarter
    of the free memory. Good for as long as the weights stay as they are, which `reordered` sees to.
    """

    @torch.inference_mode()
    def __init__(self, model: nn.Module):
        layers = [m for m in model.modules() if _is_plain(m) and m.weight.numel() >= MIN_WEIGHTS]
        size = sum(layer.weight.nbytes for layer in layers)
        one_dnn = torch.backends.mkldnn.is_available()
        has_kernels = one_dnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        self._forwards: list[tuple[nn.Module, Forward]] = []
        if not has_kernels or size > psutil.virtual_memory().available // 4:
            return
        linears = {layer: _Reordered(layer) for layer in layers}
        gated = ((module, _gated_forward(module, linears)) for module in model.modules())
        self._forwards += [
            *((layer, of_layer.forward) for layer, of_layer in linears.items()),
            *((module, forward) for module, forward in gated if forward),
        ]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """The layers use these weights inside, and their own outside."""
        # not by setattr: a module looks at every value that it is given
        before = [module.__dict__.get("forward") for module, _ in self._forwards]
        for module, forward in self._forwards:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for (module, _), forward in zip(self._forwards, before, strict=True):
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward


_State = list[tuple[str, int, int, list[Any]]]
_of_model: weakref.WeakKeyDictionary[nn.Module, tuple[_State, ReorderedWeights]]
_of_model = weakref.WeakKeyDictionary()


def _state(model: nn.Module) -> _State:
    """What tells that a plain layer's weights or biases are others than before.

    The layer's name, since an adapter may be put around it; where the tensor is; how often it was
    changed; and some of its numbers, since changes through .data aren't counted.
    """
    state = []
    layers = ((name, layer) for name, layer in model.named_modules() if _is_plain(layer))
    tensors = ((name, x) for name, layer in layers for x in (layer.weight, layer.bias))
    for name, given in ((name, given) for name, given in tensors if given is not None):
        version = 0 if given.is_inference() else given._version
        steps = tuple(slice(None, None, max(1, size // 4)) for size in given.shape)
        state.append((name, given.data_ptr(), version, given.detach()[steps].tolist()))
    return state


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear  # not a quantized one
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in (torch.float32, torch.bfloat16)
        and "forward" not in layer.__dict__  # accelerate's hooks
    )


class _Reordered:
    """A linear layer's weights in oneDNN's order, and its products with them."""

    def __init__(self, layer: nn.Linear):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        self._bias = None if layer.bias is None else layer.bias.detach()
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


def _gated_forward(module: nn.Module, linears: dict[nn.Linear, _Reordered]) -> Forward | None:
    """A faster forward for a module that computes down(silu(gate(x)) * up(x)), or None.

    Found out by trying small and large inputs: large ones, since some architectures cap the product.
    """
    names = ("gate_proj", "up_proj", "down_proj")
    parts = [linears.get(getattr(module, name, None)) for name in names]  # pyright: ignore[reportArgumentType]
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
