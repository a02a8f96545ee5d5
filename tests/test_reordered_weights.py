"""prefpipe.models.reordered_weights: a second copy of the weights changes no number."""

import copy
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from prefpipe.models import reordered_weights
from prefpipe.models.attention import Prefill, Segment, shared_prefix_attention
from prefpipe.models.reordered_weights import MIN_WEIGHTS, ReorderedWeights, reordered
from tests.engine_models import make_model

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
def test_a_reordered_layer_gives_what_the_layer_gives(layers, dtype, tolerance, rows):
    layers.to(dtype)
    x = torch.randn(1, rows, 512, dtype=dtype)
    faster = ReorderedWeights(layers)
    with torch.inference_mode():
        want = copy.deepcopy(layers).double()(x.double())
        with faster.used():
            found = layers(x)
    assert (found - want).abs().max() <= tolerance * want.abs().max()


def test_outside_the_layers_are_their_own_even_after_an_error(layers):
    faster = ReorderedWeights(layers)
    x = torch.randn(4, 512)
    with torch.inference_mode():
        before = layers(x)
        with pytest.raises(ZeroDivisionError), faster.used():
            raise ZeroDivisionError
        layers[0].weight.zero_()  # would go unseen by reordered weights
        assert not torch.equal(layers(x), before)
    assert all("forward" not in layer.__dict__ for layer in layers)


def test_only_large_plain_layers_on_the_cpu_are_reordered(layers):
    class Quantized(nn.Linear):
        pass

    small = nn.Linear(2, MIN_WEIGHTS // 2 - 1)
    others = [small, Quantized(512, 512), nn.Linear(512, 512, device="meta")]
    others.append(nn.Linear(512, 512, dtype=torch.float64))
    faster = ReorderedWeights(nn.ModuleList([*layers, *others]))
    assert [layer for layer, _ in faster._forwards] == list(layers[:2])


def test_no_layer_is_reordered_where_memory_is_short(layers, monkeypatch):
    size = 4 * (2 * 512 * 700)  # of the two layers that are large enough
    for free, count in ((4 * size - 4, 0), (4 * size + 4, 2)):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(reordered_weights.psutil, "virtual_memory", lambda m=memory: m)
        assert len(ReorderedWeights(layers)._forwards) == count


def test_reordered_once_and_again_when_the_weights_are_other_ones(layers):
    faster = reordered(layers)
    assert reordered(layers) is faster
    x = torch.randn(4, 512)

    def is_right():
        with torch.inference_mode():
            want = layers(x)
            with reordered(layers).used():
                return torch.allclose(layers(x), want, atol=1e-4)

    with torch.no_grad():
        layers[0].weight.mul_(2)  # as an optimizer does
    assert reordered(layers) is not faster and is_right()
    layers[1].weight.data = torch.randn(512, 700)
    assert is_right()
    layers[1].weight.data += 1  # as PEFT merges; no counter tells
    assert is_right()
    faster = reordered(layers)
    assert reordered(layers) is faster


def test_changed_biases_are_seen_too(monkeypatch):
    model = make_model("qwen2_untied")
    options = {"input_ids": torch.arange(5, 25)[None], "position_ids": torch.arange(20)[None]}
    monkeypatch.setattr(reordered_weights, "MIN_WEIGHTS", 1)
    reordered(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    with torch.inference_mode():
        want = model(**options, use_cache=False).logits
        with shared_prefix_attention(model), reordered(model).used():
            found = model(**options, use_cache=False, layout=Prefill([Segment(0, 20)])).logits
    assert torch.allclose(found, want, atol=1e-3)


def test_a_forward_that_was_there_before_is_there_afterwards(layers):
    faster, layer = reordered(layers), layers[0]
    own = layer.forward
    layer.forward = own
    with faster.used():
        assert layer.__dict__["forward"] != own
    assert layer.__dict__["forward"] == own


def test_a_model_that_is_gone_leaves_no_weights_behind():
    gc.collect()  # those of other tests
    models = len(reordered_weights._of_model)
    owner = nn.Sequential(nn.Linear(512, 512))
    faster = weakref.ref(reordered(owner))
    assert len(reordered_weights._of_model) == models + 1
    del owner
    gc.collect()
    assert faster() is None and len(reordered_weights._of_model) == models


class Gated(nn.Module):
    """As in Llama; scale: what another architecture might do besides."""

    def __init__(self, act=nn.functional.silu, scale=1.0, bias=False):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(512, 600, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(600, 512, bias=bias)
        self.act, self.scale = act, scale

    def forward(self, x):
        return self.scale * self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_a_gated_layer_gives_what_it_gives(dtype, tolerance, bias):
    torch.manual_seed(0)
    gated = Gated(bias=bias).to(dtype)
    faster = ReorderedWeights(gated)
    assert gated in dict(faster._forwards)
    x = torch.randn(1, 33, 512, dtype=dtype)
    before = x.clone()
    with torch.inference_mode():
        want = copy.deepcopy(gated).double()(x.double())
        with faster.used():
            found = gated(x)
    assert (found - want).abs().max() <= tolerance * want.abs().max()
    assert torch.equal(x, before)


def test_an_adapter_put_into_such_a_model_is_not_passed_by():
    torch.manual_seed(0)
    model = nn.Sequential(Gated())
    assert model[0] in dict(reordered(model)._forwards)
    targets = ["gate_proj", "down_proj"]
    tuned: Any = get_peft_model(
        model, LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    )
    x = torch.randn(1, 3, 512)

    def is_right(model):
        with torch.inference_mode():
            want = model(x)
            with reordered(model).used():
                return torch.allclose(model(x), want, atol=1e-5)

    assert is_right(tuned.get_base_model())
    with tuned.disable_adapter():
        assert is_right(tuned.get_base_model())
    assert is_right(tuned.merge_and_unload()) and is_right(model)


def test_an_adapter_around_a_projection_is_not_passed_by(monkeypatch):
    monkeypatch.setattr(reordered_weights, "MIN_WEIGHTS", 1)
    model = make_model("qwen2_untied")
    reordered(model)
    tuned: Any = get_peft_model(
        model, LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    )
    options = {"input_ids": torch.arange(5, 25)[None], "position_ids": torch.arange(20)[None]}
    for inner in (tuned.get_base_model(), tuned.merge_and_unload()):
        with torch.inference_mode():
            want = inner(**options, use_cache=False).logits
            with shared_prefix_attention(inner), reordered(inner).used():
                layout = Prefill([Segment(0, 20)])
                found = inner(**options, use_cache=False, layout=layout).logits
        assert torch.allclose(found, want, atol=1e-3)


def capped_silu(x):
    return nn.functional.silu(x).clamp(max=7)


@pytest.mark.parametrize(
    "other", [{"act": nn.functional.gelu}, {"scale": 1.01}, {"act": capped_silu}]
)
def test_a_layer_that_only_looks_gated_keeps_its_own_forward(other):
    torch.manual_seed(0)
    gated = Gated(**other)
    faster = ReorderedWeights(gated)
    assert gated not in dict(faster._forwards)
    x = torch.randn(1, 3, 512)
    with torch.inference_mode(), faster.used():
        found = gated(x)
    assert torch.allclose(found, gated(x), atol=1e-5)
