import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prefpipe.llm import packed_linear
from prefpipe.llm.packed_linear import MIN_WEIGHTS, PackedLinears

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch is without oneDNN"
)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 700), nn.Linear(700, 512, bias=False), nn.Linear(512, 2))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("rows", [1, 3, 32, 700])
def test_a_packed_layer_gives_what_the_layer_gives(layers, dtype, tolerance, rows):
    layers.to(dtype)
    x = torch.randn(1, rows, 512, dtype=dtype)
    packed = PackedLinears(layers)
    with torch.inference_mode():
        want = copy.deepcopy(layers).double()(x.double())
        with packed.used():
            found = layers(x)
    assert (found - want).abs().max() <= tolerance * want.abs().max()


def test_outside_the_layers_are_their_own_even_after_an_error(layers):
    packed = PackedLinears(layers)
    x = torch.randn(4, 512)
    with torch.inference_mode():
        before = layers(x)
        with pytest.raises(ZeroDivisionError), packed.used():
            raise ZeroDivisionError
        layers[0].weight.zero_()  # would go unseen by packed weights
        assert not torch.equal(layers(x), before)
    assert all("forward" not in layer.__dict__ for layer in layers)


def test_only_large_plain_layers_on_the_cpu_are_packed(layers):
    class Quantized(nn.Linear):
        pass

    small = nn.Linear(2, MIN_WEIGHTS // 2 - 1)
    others = [small, Quantized(512, 512), nn.Linear(512, 512, device="meta")]
    others.append(nn.Linear(512, 512, dtype=torch.float64))
    packed = PackedLinears(nn.ModuleList([*layers, *others]))
    assert [layer for layer, _ in packed._forwards] == list(layers[:2])


def test_no_layer_is_packed_where_memory_is_short(layers, monkeypatch):
    size = 4 * 2 * 512 * 700
    for free, count in ((4 * size - 4, 0), (4 * size + 4, 2)):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(packed_linear.psutil, "virtual_memory", lambda m=memory: m)
        assert len(PackedLinears(layers)._forwards) == count
