"""prefpipe.models.last_layer: a last layer that leaves out what isn't asked for gives the same numbers."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prefpipe.models.attention import Prefill, Segment, shared_prefix_attention
from prefpipe.models.last_layer import cut_last_layer
from tests.engine_models import SHAPES, make_model

SMALL: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
OTHERS = {
    "norms_on_heads": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "factors": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, residual_multiplier=0.5)),
    "capped_queries": lambda: OlmoForCausalLM(OlmoConfig(**SMALL, clip_qkv=8.0)),
    "gelu_and_norms_from_one": lambda: GemmaForCausalLM(GemmaConfig(**SMALL, head_dim=16)),
}
MODELS = {shape: lambda shape=shape: make_model(shape, num_hidden_layers=3) for shape in SHAPES}

KEEP = torch.tensor([7, 40, 41, 42, 59, 60, 69])


def options(keep: torch.Tensor | None) -> dict[str, Any]:
    """30 tokens, and two continuations of 30 and 10 behind them."""
    first = Segment(0, 30)
    segments = [first, Segment(30, 60, first), Segment(60, 70, first)]
    ids = torch.randint(5, 90, (1, 70), generator=torch.Generator().manual_seed(0))
    places = torch.cat([torch.arange(60), torch.arange(30, 40)])[None]
    layout = Prefill(segments, keep=keep)
    return {"input_ids": ids, "position_ids": places, "use_cache": False, "layout": layout}


def logits(model: Any, keep: torch.Tensor | None) -> torch.Tensor:
    with torch.inference_mode(), shared_prefix_attention(model):
        return model(**options(keep)).logits[0]


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)], ids=str
)
def test_what_is_asked_for_is_what_the_whole_layer_gives(name, dtype, tolerance):
    torch.manual_seed(0)
    model: Any = (MODELS | OTHERS)[name]().to(dtype).eval()
    want = logits(model, KEEP)
    cut_last_layer(model)
    off = (logits(model, KEEP) - want)[KEEP].float().norm() / want[KEEP].float().norm()
    assert off < tolerance and model.model.layers[-1].is_cut
    everything = logits(model, None)
    assert torch.equal(everything[:-1], want[:-1])


def test_only_what_is_asked_for_is_computed():
    model, rows = make_model("mistral", num_hidden_layers=3), []
    cut_last_layer(model)
    cut_last_layer(model)
    for layer in model.model.layers:
        norm = layer.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    logits(model, KEEP)  # the first time it runs whole, too, to be compared
    rows.clear()
    logits(model, KEEP)
    assert rows == [70, 70, len(KEEP)]


def test_without_a_layout_a_layer_is_its_own():
    model = make_model("qwen2_untied")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        want = model(ids, output_hidden_states=True)
        cut_last_layer(model)
        found = model(ids, output_hidden_states=True)
    for a, b in zip(found.hidden_states, want.hidden_states, strict=True):
        assert torch.equal(a, b)


def test_gradients_are_those_of_the_whole_layer():
    whole, cut = (make_model("qwen2_untied", num_hidden_layers=3) for _ in range(2))
    cut_last_layer(cut)
    for model in (whole, cut):
        with shared_prefix_attention(model):
            model(**options(KEEP)).logits[0, KEEP].sum().backward()
    for (name, a), (_, b) in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-4 * a.grad.norm() + 1e-6, name


def test_an_adapter_that_comes_later_is_run():
    model = make_model("qwen2_untied")
    cut_last_layer(model)
    before = logits(model, KEEP)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    tuned: Any = get_peft_model(model, config)
    found, plain = logits(tuned, KEEP), make_model("qwen2_untied")
    want = get_peft_model(plain, copy.deepcopy(config))
    want.load_state_dict(tuned.state_dict())
    want = logits(want, KEEP)
    assert torch.allclose(found[KEEP], want[KEEP], atol=1e-3)
    assert not torch.allclose(found[KEEP], before[KEEP], atol=1e-1)


def test_a_copy_of_a_model_runs_its_own_weights():
    model = make_model("qwen2_untied")
    cut_last_layer(model)
    before, twin = logits(model, KEEP), copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.zero_()
    assert torch.equal(logits(twin, KEEP), before)
    assert not torch.equal(logits(model, KEEP), before)


def looks_back(layer):
    """Each token gets something of the one before it, besides attention."""
    own = layer.forward

    def forward(hidden_states, *args, **options):
        return own(hidden_states, *args, **options) + hidden_states.roll(1, 1)

    layer.forward = forward


def attends_to_nothing(layer):
    layer.forward = lambda hidden_states, *args, **options: 2 * hidden_states


@pytest.mark.parametrize("other", [looks_back, attends_to_nothing])
def test_a_layer_that_does_something_else_stays_as_it_is(other):
    model = make_model("qwen2_untied")
    layer = model.model.layers[-1]
    other(layer)
    want = logits(model, KEEP)
    cut_last_layer(model)
    for _ in range(2):
        assert torch.equal(logits(model, KEEP), want) and layer.is_cut is False
