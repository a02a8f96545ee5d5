"""prefpipe.models.sharing: whose texts can stand in one row, and whose must stand alone."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from prefpipe.llm.local.runner import decodes
from prefpipe.models import sharing
from prefpipe.models.decode import Decode
from prefpipe.models.sharing import self_check_tokens, shares, why_not_shared
from tests.engine_models import make_model

SIZE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
WINDOW: dict[str, Any] = {"sliding_window": 24, "head_dim": 8}


def model_of(config) -> PreTrainedModel:
    torch.manual_seed(0)
    return Auto.from_config(config).eval()


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZE),
        MistralConfig(**SIZE, **WINDOW),
        Gemma3TextConfig(**SIZE, **WINDOW, query_pre_attn_scalar=8),
    ],
    ids=lambda config: config.model_type,
)
def test_plain_attention_and_windows_are_shared(config):
    assert why_not_shared(model_of(config)) == ""


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            Llama4TextConfig(**SIZE, head_dim=8, attention_chunk_size=24, intermediate_size_mlp=64,
                             num_local_experts=2, moe_layers=[]),
            "layers of kind chunked_attention",
        ),
        (
            Lfm2Config(**SIZE, block_auto_adjust_ff_dim=False,
                       layer_types=["conv", "full_attention"]),
            "layers of kind conv",
        ),
        (
            GptOssConfig(**SIZE, **WINDOW, num_local_experts=4, num_experts_per_tok=2),
            "does more than prefpipe's .*s_aux",
        ),
        (
            MambaConfig(vocab_size=60, hidden_size=32, state_size=8, num_hidden_layers=2),
            "cannot be given several texts",
        ),
        (
            Qwen2Config(**SIZE, rope_parameters={
                "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
            "changes with the longest text",
        ),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)  # fmt: skip
def test_what_an_architecture_cannot_do_is_said(config, why, capfd):
    model = model_of(config)
    assert not shares(model) and not shares(model)
    said = capfd.readouterr().err
    assert re.search(why, said) and said.count("each text is read by itself") == 1


def test_a_state_that_no_field_names_is_found_by_trying_it_out():
    """As Doge's dynamic mask, which its configuration calls a full attention."""
    model = model_of(Qwen2Config(**SIZE))
    layer: Any = model.base_model.layers[0]  # pyright: ignore[reportIndexIssue]
    own = layer.forward

    def leaking(hidden_states, *args, **options):
        out = own(hidden_states, *args, **options)
        return out + 0.1 * hidden_states.cumsum(1)

    layer.forward = leaking
    assert "several texts in one row change its numbers" in why_not_shared(model)


def test_what_is_tried_out_is_longer_than_any_window_that_the_configuration_names():
    config = MistralConfig(**{**SIZE, "max_position_embeddings": 4096, "sliding_window": 200})
    assert self_check_tokens(config) > 200
    config.index_topk = 500
    assert self_check_tokens(config) > 500
    config.attention_chunk_size = 8192
    assert "attention_chunk_size of 8192 tokens is too long" in why_not_shared(model_of(config))


def test_the_weights_in_the_cpus_order_are_given_back_after_the_trial():
    from prefpipe.models import reordered_weights

    model = make_model()
    assert shares(model) and model not in reordered_weights._of_model
    assert sharing.shares(model)


def test_rounding_is_allowed_for_by_how_far_the_models_own_two_ways_are_apart():
    half = SimpleNamespace(dtype=torch.bfloat16)
    allowed = [sharing.tolerance(half, spread) for spread in (0.0, 0.01, 0.04, 0.5)]  # pyright: ignore[reportArgumentType]
    assert allowed == pytest.approx([0.05, 0.05, 0.12, 0.3])
    assert sharing.tolerance(SimpleNamespace(dtype=torch.float32), 0.5) == 1e-3  # pyright: ignore[reportArgumentType]


def test_a_models_own_spread_is_rounding_alone():
    ids = torch.arange(5, 45)[None]
    wide: Any = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    model = make_model(**wide, initializer_range=0.05)
    assert sharing.own_spread(model, ids, 32) < 1e-5
    assert 1e-3 < sharing.own_spread(model.bfloat16(), ids, 32) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_attention_of_a_step_is_seen_in_half_precision_too(dtype, monkeypatch, capfd):
    """A step that attends to its prompt alone, and one that scales its scores otherwise."""
    model = make_model().to(dtype)
    assert decodes(model)
    attend = Decode.attend
    wrong = lambda self, *a, scale, window: attend(self, *a, scale=1.5 * scale, window=window)  # noqa: E731
    monkeypatch.setattr(Decode, "attend", wrong)
    assert not decodes(model)
    assert "continues texts in a way of its own (off by" in capfd.readouterr().err
