"""Log-probabilities of several texts behind one prompt, in one pass.

The packs of training (prefpipe.models.packs) stand end to end in one row without padding; each branch
attends to just its prompt and itself (prefpipe.models.attention), so no mask of (T x T) is built.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from prefpipe.models.attention import Prefill, Segment, shared_prefix_attention
from prefpipe.models.loading import bare_model
from prefpipe.models.packs import IGNORED, Pack
from prefpipe.models.reordered_weights import reordered

_MAX_LOGITS = 1 << 25
"""Numbers in a (positions x vocabulary) matrix at once: 128 MiB in float32."""


def completion_logps(model: Any, packs: Sequence[Pack]) -> list[list[Tensor]]:
    """Log-probabilities of each completion's tokens, pack by pack, in float32."""
    with reordered(bare_model(model)).used():
        hidden_N_H = hidden_states(model, packs)
        labels_N = torch.cat([pack.labels_T for pack in packs]).to(hidden_N_H.device)
        asked = (labels_N != IGNORED).nonzero()[:, 0]
        logps_N = hidden_N_H.new_zeros(len(labels_N), dtype=torch.float32)
        for part, logits in _logits(model, hidden_N_H, asked):
            picked = logits.gather(-1, labels_N[part, None])[:, 0]
            logps_N[part] = picked - logits.logsumexp(-1)
    rows = logps_N.cpu().split([len(pack) for pack in packs])
    return [[row[a:b] for a, b in pack.spans] for pack, row in zip(packs, rows, strict=True)]


def scales_logits(model: Any) -> bool:
    """Whether the model's logits are more than its head makes of hidden states, as `_logits` has them."""
    config = bare_model(model).config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(config, name, None) is not None for name in names)


@torch.inference_mode()
def hidden_states(model: Any, packs: Sequence[Pack]) -> Tensor:
    """Last hidden states (N, H) of all packs' positions, end to end."""
    segments, start = [], 0
    for pack in packs:
        prompt = None
        if first := pack.spans[0][0] if pack.spans else len(pack):
            prompt = Segment(start, start + first)
            segments.append(prompt)
        segments += [Segment(start + a, start + b, prompt) for a, b in pack.spans]
        start += len(pack)
    inner = bare_model(model)
    body = getattr(inner, inner.base_model_prefix)
    model.eval()
    with shared_prefix_attention(inner):
        return body(
            input_ids=torch.cat([pack.input_ids_T for pack in packs])[None].to(inner.device),
            position_ids=torch.cat([pack.position_ids_T for pack in packs])[None].to(inner.device),
            use_cache=False,
            layout=Prefill(segments),
        ).last_hidden_state[0]


@torch.inference_mode()
def _logits(model: Any, hidden_N_H: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions, their logits in float32), some at a time: all of them may not fit."""
    inner: Any = bare_model(model)
    head = inner.get_output_embeddings()
    for part in positions.split(max(1, _MAX_LOGITS // head.weight.shape[0])):
        yield part, head(hidden_N_H[part]).float()
