"""What an architecture cannot do: whether its texts can stand in one row and share their beginnings.

One answer for sampling, scoring, ranking and training. Where it is no, each text is read by itself
with transformers' own attention: slower, and right. Some of it the configuration says; the rest is
tried out, with texts longer than any window or chunk that it names: a state that is carried from
one text into the next one, attention that looks at what no layout is asked about.
"""

import re
import sys
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from prefpipe.models import trees
from prefpipe.models.loading import bare_model, embedding_rows
from prefpipe.models.memory import is_out_of_memory
from prefpipe.models.reordered_weights import forget

LONGEST_TRIED = 1024
"""Tokens: a window or chunk that is longer is not tried out."""
_LENGTH = re.compile(r"window|chunk|top_?k$|block_size")
_KNOWN_WINDOWS = ("sliding_window", "max_window_layers")
"""What attention is told of with each call, so that it need not be tried."""


def shares(model: Any) -> bool:
    """Whether texts can share what they begin with; where not, standard error says why, once."""
    bare: Any = bare_model(model)
    if not hasattr(bare, "why_not_shared"):
        bare.why_not_shared = why_not_shared(bare)
        if bare.why_not_shared:
            say(bare.config.get_text_config(), bare.why_not_shared)
    return not bare.why_not_shared


def say(config: Any, why: str) -> None:
    words = "each text is read by itself, which is right and takes longer"
    print(f"{config.model_type}: {why}; {words}", file=sys.stderr)


def why_not_shared(model: PreTrainedModel) -> str:
    """Why rows of several texts would give other numbers than each text alone; empty: they don't."""
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be given several texts in one row"
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        return f"layers of kind {', '.join(sorted(map(str, kinds)))} carry on or cut what they read"
    if depends_on_longest(config):
        return "its position encoding changes with the longest text of a row"
    lengths = named_lengths(config)
    if unknown := [
        key for key in lengths if key not in _KNOWN_WINDOWS and lengths[key] > LONGEST_TRIED
    ]:
        return f"its {unknown[0]} of {lengths[unknown[0]]} tokens is too long to be tried out"
    try:
        off, spread = _difference(model, self_check_tokens(config))
    except Exception as error:  # whatever a model's code raises where it is run in another way
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        words = str(error).strip().split("\n")[0][:80]
        return f"its attention does more than prefpipe's ({words})"
    if not off < tolerance(model, spread):
        return f"several texts in one row change its numbers, by {off:.1%}"
    return ""


def depends_on_longest(config: Any) -> bool:
    """Whether a text's positions hang on the longest text that is read with it."""
    rope = str(getattr(config, "rope_parameters", None))
    return "'dynamic'" in rope or "'longrope'" in rope


def named_lengths(config: Any) -> dict[str, int]:
    """The windows, chunks and top-k that a configuration names, in tokens."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and value > 0
        and _LENGTH.search(key)
    }


def self_check_tokens(config: Any) -> int:
    """Longer than each of these that can be tried, and than what is carried on by a convolution."""
    tried = [length for length in named_lengths(config).values() if length <= LONGEST_TRIED]
    limit = getattr(config, "max_position_embeddings", None) or LONGEST_TRIED
    return max(16, min(max([24, *tried]) + 16, limit - 48))


def tolerance(model: PreTrainedModel, spread: float) -> float:
    """How far the same numbers computed in another order may be off.

    spread: how far the model's own two ways are from each other. In half precision it grows with
    width and depth: 2 % for 1,024 numbers a token, 3 % for 2,048, random weights, 32 layers.
    """
    return 1e-3 if model.dtype == torch.float32 else min(max(0.05, 3 * spread), 0.3)


@torch.inference_mode()
def own_spread(model: Any, ids: torch.Tensor, read: int) -> float:
    """How far logits behind ids (1, N) are from each other where the model reads all at once, and where
    it reads the first ones, and each other one behind their cache: rounding alone. The middle one."""
    try:
        whole = model(ids, use_cache=False).logits[0, read:].float()
        cache, rows = model(ids[:, :read], use_cache=True).past_key_values, []
        for i in range(read, ids.shape[1]):  # one by one, as other kernels do it
            step = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            rows.append(step.logits[0, 0].float())
        parts = torch.stack(rows)
        off = (parts - whole).norm(dim=-1) / whole.norm(dim=-1)
    except Exception as error:  # a model without a cache, a backbone without logits
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return 0.0
    return float(off.median())


@torch.inference_mode()
def _difference(model: PreTrainedModel, tokens: int) -> tuple[float, float]:
    """How far the outputs behind texts that share a row are from those behind each text alone; and
    `own_spread`, where that is not float32."""
    was_training = model.training
    model.eval()
    has_head = model.get_output_embeddings() is not None
    body: Any = model if has_head else model.base_model
    ids = np.random.default_rng(0).integers(0, embedding_rows(model), tokens + 96).tolist()
    trunk = ids[:tokens]
    texts = [trunk + ids[-8:], trunk + ids[-40:-8], ids[-96:-40], trunk[: tokens // 2] + ids[-20:]]
    try:
        outputs, last = trees.run_tree(body, texts, only_last=has_head)
        found = outputs.logits[0] if has_head else outputs.last_hidden_state[0, last]
        off = []
        for text, row in zip(texts, found.float(), strict=True):
            alone = body(input_ids=torch.tensor([text], device=model.device), use_cache=False)
            want = (alone.logits if has_head else alone.last_hidden_state)[0, -1].float()
            if not want.isfinite().all():
                raise SystemExit(
                    f"model {model.name_or_path}: what it computes of a text is no number (NaN): its "
                    "config.json does not fit its weights, or these are damaged"
                )
            off.append(float((row - want).norm() / want.norm()))
        if model.dtype == torch.float32:
            return max(off), 0.0
        # Rounding can send a token to another expert: in half precision the middle one decides.
        trunk_ids = torch.tensor([trunk], device=model.device)
        return float(np.median(off)), own_spread(body, trunk_ids, tokens - 8)
    finally:
        forget(body)
        model.train(was_training)
