import copy
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from prefpipe.models import reordered_weights
from prefpipe.models.attention import Prefill, Segment, shared_prefix_attention
from prefpipe.models.reordered_weights import MIN_WEIGHTS, PackedLinears, packed_linears
from tests.engine_models import SHAPES, make_model

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
    size = 4 * (2 * 512 * 700 + 512 * 2)
    for free, count in ((4 * size - 4, 0), (4 * size + 4, 2)):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(reordered_weights.psutil, "virtual_memory", lambda m=memory: m)
        assert len(PackedLinears(layers)._forwards) == count


def test_packed_once_and_again_when_the_weights_are_other_ones(layers):
    packed = packed_linears(layers)
    assert packed_linears(layers) is packed
    x = torch.randn(4, 512)

    def is_right():
        with torch.inference_mode():
            want = layers(x)
            with packed_linears(layers).used():
                return torch.allclose(layers(x), want, atol=1e-4)

    with torch.no_grad():
        layers[0].weight.mul_(2)  # as an optimizer does
    assert packed_linears(layers) is not packed and is_right()
    layers[1].weight.data = torch.randn(512, 700)
    assert is_right()
    layers[1].weight.data += 1  # as PEFT merges; no counter tells
    assert is_right()
    packed = packed_linears(layers)
    assert packed_linears(layers) is packed


def test_changed_biases_are_seen_too():
    model = make_model("qwen2_untied")
    options = {"input_ids": torch.arange(5, 25)[None], "position_ids": torch.arange(20)[None]}
    packed_linears(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    with torch.inference_mode():
        want = model(**options, use_cache=False).logits
        with shared_prefix_attention(model), packed_linears(model).used():
            found = model(**options, use_cache=False, layout=Prefill([Segment(0, 20)])).logits
    assert torch.allclose(found, want, atol=1e-3)


def test_a_forward_that_was_there_before_is_there_afterwards():
    model = make_model("qwen2_untied")
    packed, layer = packed_linears(model), model.model.layers[0]
    own = layer.forward
    layer.forward = own
    with packed.used():
        assert layer.__dict__["forward"] != own
    assert layer.__dict__["forward"] == own


def test_a_model_that_is_gone_leaves_no_packed_weights_behind():
    gc.collect()  # those of other tests
    models = len(reordered_weights._of_model)
    owner = nn.Sequential(nn.Linear(512, 512))
    packed = weakref.ref(packed_linears(owner))
    assert len(reordered_weights._of_model) == models + 1
    del owner
    gc.collect()
    assert packed() is None and len(reordered_weights._of_model) == models


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
    packed = PackedLinears(gated)
    assert gated in dict(packed._forwards)
    x = torch.randn(1, 33, 512, dtype=dtype)
    before = x.clone()
    with torch.inference_mode():
        want = copy.deepcopy(gated).double()(x.double())
        with packed.used():
            found = gated(x)
    assert (found - want).abs().max() <= tolerance * want.abs().max()
    assert torch.equal(x, before)


def test_an_adapter_put_into_a_packed_model_is_not_passed_by():
    torch.manual_seed(0)
    model = nn.Sequential(Gated())
    assert model[0] in dict(packed_linears(model)._forwards)
    targets = ["gate_proj", "down_proj"]
    tuned: Any = get_peft_model(
        model, LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    )
    x = torch.randn(1, 3, 512)

    def is_right(model):
        with torch.inference_mode():
            want = model(x)
            with packed_linears(model).used():
                return torch.allclose(model(x), want, atol=1e-5)

    assert is_right(tuned.get_base_model())
    with tuned.disable_adapter():
        assert is_right(tuned.get_base_model())
    assert is_right(tuned.merge_and_unload()) and is_right(model)


# ---- whole decoder layers ------------------------------------------------------------------------


def test_the_layers_of_llama_qwen2_and_mistral_are_replaced_and_give_what_they_give():
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.06)):
            model = make_model(shape, num_hidden_layers=3).to(dtype)
            packed = PackedLinears(model)
            replaced = [module for module, _ in packed._forwards]
            assert all(layer in replaced for layer in model.model.layers), shape
            ids = torch.from_numpy(rng.integers(5, 90, (1, 70)))
            places = torch.cat([torch.arange(60), torch.arange(30, 40)])[None]
            first = Segment(0, 30)
            segments = [first, Segment(30, 60, first), Segment(60, 70, first)]
            for keep in (None, torch.tensor([7, 40, 41, 42, 59, 60, 69])):
                options = {"input_ids": ids, "position_ids": places, "use_cache": False}
                options["layout"] = Prefill(segments, keep=keep)
                with torch.inference_mode(), shared_prefix_attention(model):
                    want = model(**options).logits[0]
                    with packed.used():
                        found = model(**options).logits[0]
                asked = slice(None) if keep is None else keep
                off = (found - want)[asked].float().norm() / want[asked].float().norm()
                assert off < tolerance, (shape, dtype, keep)


def test_of_the_last_layer_only_what_is_asked_for_is_computed():
    model, rows = make_model("mistral", num_hidden_layers=3), []
    for layer in model.model.layers:
        norm = layer.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    packed = PackedLinears(model)
    rows.clear()
    layout = Prefill([Segment(0, 20), Segment(20, 50)], keep=torch.tensor([19, 49]))
    options = {"input_ids": torch.full((1, 50), 7), "position_ids": torch.arange(50)[None] % 30}
    with torch.inference_mode(), shared_prefix_attention(model), packed.used():
        model(**options, use_cache=False, layout=layout)
    assert rows == [50, 50, 2]


def test_without_a_layout_a_layer_is_its_own():
    model = make_model("qwen2_untied")
    packed = PackedLinears(model)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        want = model(ids, output_hidden_states=True)
        with packed.used():
            found = model(ids, output_hidden_states=True)
    for a, b in zip(found.hidden_states, want.hidden_states, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def qwen3():
    """Norms on the heads of queries and keys."""
    config = Qwen3Config(**SMALL, head_dim=16)
    return Qwen3ForCausalLM(config)


def granite():
    """As Llama, with factors on the residuals, the attention and the logits."""
    return GraniteForCausalLM(GraniteConfig(**SMALL, residual_multiplier=0.5))


def stablelm():
    """As Llama, with half of each head turned."""
    turned = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    return StableLmForCausalLM(StableLmConfig(**SMALL, rope_parameters=turned))


SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip


def olmo():
    """As Llama, with queries, keys and values capped; norms without weights."""
    return OlmoForCausalLM(OlmoConfig(**SMALL, clip_qkv=8.0))


def capped():
    """As Llama, with one that a normal input does not reach."""
    model = make_model("llama_no_gqa")
    for layer in model.model.layers:
        del layer.mlp.act_fn  # a module, whose place no function takes
        layer.mlp.act_fn = capped_silu
    return model


@pytest.mark.parametrize("made", [qwen3, granite, stablelm, olmo, capped])
def test_a_layer_that_does_something_else_besides_keeps_its_own_forward(made):
    torch.manual_seed(0)
    model: Any = made().eval()
    packed = PackedLinears(model)
    assert not {module for module, _ in packed._forwards} & set(model.model.layers)
    options = {"input_ids": torch.arange(9)[None], "position_ids": torch.arange(9)[None]}
    options |= {"use_cache": False}
    with torch.inference_mode():
        want = model(**options).logits
        with shared_prefix_attention(model), packed.used():
            found = model(**options, layout=Prefill([Segment(0, 9)])).logits
    assert torch.allclose(found, want, atol=1e-4)


def test_an_adapter_around_a_projection_is_not_passed_by():
    model = make_model("qwen2_untied")
    packed_linears(model)
    tuned: Any = get_peft_model(
        model, LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    )
    options = {"input_ids": torch.arange(5, 25)[None], "position_ids": torch.arange(20)[None]}
    for inner in (tuned.get_base_model(), tuned.merge_and_unload()):
        with torch.inference_mode():
            want = inner(**options, use_cache=False).logits
            with shared_prefix_attention(inner), packed_linears(inner).used():
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
    packed = PackedLinears(gated)
    assert gated not in dict(packed._forwards)
    x = torch.randn(1, 3, 512)
    with torch.inference_mode(), packed.used():
        found = gated(x)
    assert torch.allclose(found, gated(x), atol=1e-5)
