"""prefpipe.llm.local.token_choice against transformers' own warpers, and its noise."""

import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefpipe.llm.local import token_choice
from prefpipe.llm.local.token_choice import choose, uniforms


def exact(logits_V: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """The distribution that transformers' warpers leave."""
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors = LogitsProcessorList(warpers)
    return processors(torch.zeros(1, 1, dtype=torch.long), logits_V[None])[0].softmax(-1)  # pyright: ignore


def test_noise_of_more_tokens_begins_with_that_of_fewer():
    assert uniforms(1, "a", 0, 50)[:7].tolist() == uniforms(1, "a", 0, 7).tolist()
    # ids are not glued together: ("a", 10) and ("a1", 0) differ
    assert uniforms(1, "a", 10, 4).tolist() != uniforms(1, "a1", 0, 4).tolist()


def test_the_highest_logits_are_found_by_columns_and_ties_are_told():
    torch.manual_seed(0)
    logits = torch.randn(30, 4099)
    for k in (1, 7, 50):
        values, ids = token_choice._highest(logits, k) or pytest.fail("there are no ties")
        want = logits.topk(k).indices.sort().values
        assert torch.equal(ids, want) and torch.equal(values, logits.gather(1, want))
        tied = logits.clone()  # the k-th highest again, in a place that is in no column so far
        tied[3, int(logits[3].argmin())] = logits[3].topk(k).values[-1]
        assert token_choice._highest(tied, k) is None


@pytest.mark.parametrize("vocabulary", [300, 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tokens_that_can_be_drawn_are_those_of_the_warpers_also_with_ties(dtype, vocabulary):
    torch.manual_seed(0)
    # in bfloat16 many logits are equal, so that the last of the top_k has ties
    logits = (torch.randn(40, vocabulary) * 2).to(dtype).float()
    for temperature, top_k, top_p in itertools.product((0.5, 1.3), (0, 1, 25), (0.6, 1.0)):
        want = torch.stack([exact(row, temperature, top_k, top_p) for row in logits])
        cdf = want.double().cumsum(-1)
        for u in (0.0, 0.25, 0.5, 0.999):
            got = choose(
                logits,
                torch.full((40,), u),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            )
            below = torch.where(got > 0, cdf.gather(1, (got - 1).clamp(min=0)[:, None])[:, 0], 0.0)
            assert (want.gather(1, got[:, None]) > 0).all() or dtype == torch.bfloat16
            # u lies in the token's part of the distribution; equal ones at top_p's border may
            # be kept here and dropped there, which moves it by their weight
            slack = 1e-5 if dtype == torch.float32 or top_p == 1 else 0.05
            assert (below - slack <= u).all()
            assert (u < cdf.gather(1, got[:, None])[:, 0] + slack).all()


def test_a_gpu_takes_the_ties_of_the_last_one_along():
    """As they come with bfloat16: against choosing among the whole vocabulary."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(200, 3000, generator=generator).bfloat16().float()
    u = torch.rand(200, generator=generator)
    few = token_choice._highest_with_ties(logits, 20)
    assert few is not None
    values, ids = few
    kept = values > -torch.inf
    lowest = logits.sort(descending=True).values[:, 19:20]
    assert kept.sum() == (logits >= lowest).sum() > 200 * 20
    assert (ids.diff() > 0).all() and torch.equal(values[kept], logits.gather(1, ids)[kept])
    among_few = choose(values, u, temperature=0.7, top_p=0.9)
    found = ids.gather(1, among_few[:, None])[:, 0]
    whole = choose(logits.masked_fill(logits < lowest, -torch.inf), u, temperature=0.7, top_p=0.9)
    assert (found == whole).float().mean() > 0.98  # to rounding of the sums
    assert token_choice._highest_with_ties(torch.zeros(2, 3000), 20) is None


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_a_nucleus_is_found_without_sorting_the_vocabulary(spread, monkeypatch):
    """Flat rows, whose nucleus is larger than what is looked at, and steep ones."""
    generator = torch.Generator().manual_seed(3)
    logits = spread * torch.randn(300, 9000, generator=generator)
    u = torch.rand(300, generator=generator)
    assert logits.shape[1] > 16 * token_choice._NUCLEUS
    found = choose(logits, u, temperature=0.8, top_p=0.9)
    probs = (logits / 0.8).softmax(-1).sort(descending=True).values
    sizes = (probs.cumsum(-1) - probs < 0.9).sum(-1)
    assert bool((sizes > token_choice._NUCLEUS).all()) == (spread < 1)
    monkeypatch.setattr(token_choice, "_NUCLEUS", 10_000)  # as before: all are sorted
    assert torch.equal(found, choose(logits, u, temperature=0.8, top_p=0.9))
