"""From logits to tokens: temperature, top-k, top-p as in transformers, with noise of our own.

Each token is drawn by inverse CDF from one uniform number, which is keyed by (seed, request, sample,
position): so a text is the same in any batch. N: samples; V: vocabulary.
"""

import hashlib
import json

import numpy as np
import torch
from torch import Tensor


def uniforms(seed: int, request_id: str, sample: int, count: int) -> np.ndarray:
    """A text's noise, whatever its batch, order, shard or restart: float32 in [0, 1), one a token.
    Philox (Salmon et al. 2011) keyed by a hash of the three; asking for more numbers repeats the
    first ones, so that max_new_tokens changes no text but its length."""
    name = json.dumps([seed, request_id, sample]).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32)


def choose(
    logits_N_V: Tensor, u_N: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Token ids (N,) by inverse CDF at u_N; temperature 0 is greedy, and u_N then has no effect.

    The order of transformers: temperature, then the top_k highest (0: all; ties with the last one
    stay), then the smallest set of at least top_p. The CDF runs over token ids, not over the sorted
    probabilities: two nearly equal ones that change places by a rounding error would change a text.
    """
    if temperature == 0:
        return logits_N_V.argmax(-1)
    logits, ids = logits_N_V, None
    if not top_k and top_p < 1 and logits.shape[-1] > 16 * _NUCLEUS:
        few = _highest(logits, _NUCLEUS)
        if few is not None:
            return _choose_in_nucleus(logits, u_N, few, temperature, top_p)
    if 0 < top_k < logits.shape[-1]:
        few = _highest(logits, top_k)
        if few is not None:
            logits, ids = few
        else:
            logits = logits.masked_fill(logits < _kth_highest(logits, top_k), -torch.inf)
    logits = logits / temperature
    if top_p < 1:
        logits = _cut(logits, logits.logsumexp(-1, keepdim=True), top_p)
    return _pick(logits, u_N, ids)


def _cut(logits: Tensor, total_N_1: Tensor, top_p: float) -> Tensor:
    """The logits with -inf outside the nucleus. total: log of the sum of exponentials of the whole
    vocabulary's."""
    falling = logits.sort(descending=True).values
    probs = (falling - total_N_1).exp()
    # a token stays while those above it have less than top_p
    out = probs.cumsum(-1) - probs >= top_p
    lowest = falling.masked_fill(out, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill(logits < lowest, -torch.inf)


def _pick(logits: Tensor, u_N: Tensor, ids: Tensor | None) -> Tensor:
    """Token ids by inverse CDF; ids: of the columns, where these are not all tokens."""
    cdf = logits.softmax(-1).cumsum(-1)
    # divided by itself the last one is exactly 1, above every u
    pick = (cdf / cdf[:, -1:] <= u_N[:, None]).sum(-1)
    return pick if ids is None else ids.gather(-1, pick[:, None])[:, 0]


_NUCLEUS = 512
"""Tokens among which a nucleus is looked for before the whole vocabulary is sorted: 128 rows of 49,152
logits take 0.27 instead of 0.76 seconds of CPU time."""


def _choose_in_nucleus(
    logits_N_V: Tensor, u_N: Tensor, few: tuple[Tensor, Tensor], temperature: float, top_p: float
) -> Tensor:
    """As choose; few: the highest logits of each row and their ids. Rows whose nucleus is larger are
    chosen of the whole vocabulary."""
    values, ids = few[0] / temperature, few[1]
    total = (logits_N_V / temperature).logsumexp(-1, keepdim=True)
    chosen = _pick(_cut(values, total, top_p), u_N, ids)
    larger = ((values - total).exp().sum(-1) < top_p).nonzero()[:, 0]
    if len(larger):
        whole = logits_N_V[larger] / temperature
        chosen[larger] = _pick(_cut(whole, total[larger], top_p), u_N[larger], None)
    return chosen


_PARTS = 16


def _highest(logits_N_V: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The k highest logits (N, k) and their token ids, which rise; None where the last has a tie.
    On a CPU not every logit is sorted: of V // 16 columns, of 16 each, the k highest logits stand
    in the k with the highest maxima."""
    if logits_N_V.device.type != "cpu":
        return _highest_with_ties(logits_N_V, k)
    N, V = logits_N_V.shape
    width = V // _PARTS
    logits, ids, maxima = logits_N_V, None, None
    if 4 * k <= width:
        maxima = logits[:, : _PARTS * width].view(N, _PARTS, width).amax(1)
        columns = np.sort(np.argpartition(maxima.numpy(), -k, axis=-1)[:, -k:], axis=-1)
        ids = torch.from_numpy(columns)[:, None] + torch.arange(_PARTS)[:, None] * width
        rest = torch.arange(_PARTS * width, V).expand(N, -1)
        ids = torch.cat([ids.view(N, -1), rest], dim=1)
        logits = logits.gather(1, ids)
    lowest = _kth_highest(logits, k)
    kept = logits >= lowest
    if int(kept.sum()) > N * k:
        return None
    if maxima is not None and bool(((maxima >= lowest).sum(-1) > k).any()):
        return None  # in a column that was not looked at
    if ids is None:
        return logits[kept].view(N, k), kept.nonzero()[:, 1].view(N, k)
    return logits[kept].view(N, k), ids[kept].view(N, k)


def _highest_with_ties(logits_N_V: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The same, with all that equal the last one, which logits of bfloat16 often do; what a row has
    fewer of is -inf. None where they are many more than k."""
    lowest = _kth_highest(logits_N_V, k)
    most = int((logits_N_V >= lowest).sum(-1).max())
    if most > 8 * k:
        return None
    values, ids = logits_N_V.topk(most)
    ids, order = ids.sort()
    values = values.gather(-1, order)
    return values.masked_fill(values < lowest, -torch.inf), ids


def _kth_highest(logits_N_V: Tensor, k: int) -> Tensor:
    """(N, 1)"""
    if logits_N_V.device.type != "cpu":
        return logits_N_V.topk(k).values[:, -1:]
    # numpy's partition takes a fifth of the time of torch's topk
    rising = np.partition(logits_N_V.numpy(), -k, axis=-1)
    return torch.from_numpy(rising[:, -k : logits_N_V.shape[-1] - k + 1])
