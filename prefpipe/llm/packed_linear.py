"""Linear layers on a CPU with their weights in the order in which its cores read them.

A decoding step multiplies a few dozen rows with every weight. torch's own F.linear rearranges the
weights for each product; oneDNN takes them rearranged once, which is what torch.compile's freezing
does, too (torch/_inductor/fx_passes/mkldnn_fusion.py). For 32 rows of 512 to 1,408 numbers on two
cores: 0.25 instead of 0.42 ms (float32, AMD EPYC); for 3,200 rows 20.5 instead of 23 ms. Also
tried: the weights transposed (no gain), `weight @ x.T` (half of it), MKL's own packing (none).
"""

import contextlib
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor, nn

MIN_WEIGHTS = 2**17
"""A smaller layer's call costs as much as it saves."""


class PackedLinears:
    """The large linear layers of a model, with a second copy of their weights.

    None are packed where oneDNN is missing, the model isn't on the CPU, or the copy would take more
    than a quarter of the memory that is free. Good for as long as the weights stay as they are.
    """

    def __init__(self, model: nn.Module):
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and _packable(m)]
        size = sum(layer.weight.nbytes for layer in layers)
        has_kernels = torch.backends.mkldnn.is_available() and hasattr(
            torch.ops.mkldnn, "_linear_pointwise"
        )
        if not has_kernels or size > psutil.virtual_memory().available // 4:
            layers = []
        self._forwards = [(layer, _packed_forward(layer)) for layer in layers]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """The layers use the packed weights inside, and their own outside."""
        # not by setattr: a module looks at every value that it is given
        for layer, forward in self._forwards:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                del layer.__dict__["forward"]


def _packable(layer: nn.Linear) -> bool:
    return (
        type(layer) is nn.Linear  # not a quantized one
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in (torch.float32, torch.bfloat16)
        and layer.weight.numel() >= MIN_WEIGHTS
        and "forward" not in layer.__dict__  # accelerate's hooks
    )


@torch.inference_mode()
def _packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = None if layer.bias is None else layer.bias.detach()
    apply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: apply(x, weight, bias, "none", [], "")
