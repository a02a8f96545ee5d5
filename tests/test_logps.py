"""prefpipe.models.logps: several texts behind one prompt get what rows of their own get."""

import random

import pytest
import torch

from prefpipe.models.logps import completion_logps
from prefpipe.models.packs import branch_mask, pack, stack
from tests.engine_models import SHAPES, make_model


def plain_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """A row of its own, log_softmax over everything."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_a_row_alone(shape):
    model, rng = make_model(shape), random.Random(0)
    draw = lambda n: [rng.randrange(90) for _ in range(n)]  # noqa: E731
    cases = [(draw(p), [draw(c) for c in cs]) for p, cs in [(50, (3, 12, 1)), (1, (5, 4)), (9, ())]]
    found = completion_logps(model, [pack(prompt, cs) for prompt, cs in cases])
    for (prompt, completions), logps in zip(cases, found, strict=True):
        for completion, logp in zip(completions, logps, strict=True):
            torch.testing.assert_close(
                logp, plain_logps(model, prompt, completion), atol=2e-5, rtol=0
            )


def test_the_packs_mask_and_positions_give_the_same_scores_and_positions_alone_do_not():
    model, rng = make_model(), random.Random(0)
    prompt = [rng.randrange(90) for _ in range(20)]
    completions = [[rng.randrange(90) for _ in range(6)] for _ in range(3)]
    batch = stack([pack(prompt, completions)], pad_token_id=0)
    given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    with torch.inference_mode():
        masked = model(**given, attention_mask=branch_mask(batch["segments"])).logits[0]
        without = model(**given, attention_mask=torch.ones_like(given["input_ids"])).logits[0]
    labels = batch["labels"][0]
    at = labels >= 0
    pick = lambda x: x.log_softmax(-1)[at].gather(1, labels[at][:, None])[:, 0]  # noqa: E731
    want = torch.cat([plain_logps(model, prompt, c) for c in completions])
    torch.testing.assert_close(pick(masked), want, atol=2e-5, rtol=0)
    assert (pick(without) - want).abs().max() > 0.01
