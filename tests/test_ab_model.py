"""prefpipe.compare.ab_model: the probability, and that sharing and batches change none."""

import pytest
import torch

from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.ab_prompt import PairwiseFormat
from tests.training_models import qwen2, scorable, tokenizer


def pairwise_model(**options):
    made = PairwiseFormat(options.pop("max_length", 512), options.pop("temperature", 1.0))
    return PairwiseModel(qwen2(vocabulary=300), tokenizer(), made, **options)


@pytest.mark.parametrize("tokens", [50, 8192])
@pytest.mark.parametrize("share", [True, False])
def test_both_orders_are_averaged_and_the_mass_outside_a_and_b_is_reported(share, tokens):
    """By hand, from a row's own logits: softmax over the vocabulary, then over A and B."""
    model = pairwise_model(share_prompts=share, max_batch_tokens=tokens, temperature=2.0)
    responses = ["one", "another response", "three"]
    pairs = [(0, 1), (0, 2), (1, 2)]
    (compared,) = model.compare([("What?", responses, pairs)])
    found = scorable(compared)
    a, b = model.tokenize.labels
    for (i, j), preferred in zip(pairs, found, strict=True):
        made = scorable(model.tokenize("What?", responses, [(i, j), (j, i)]))
        logits = [model.model(input_ids=torch.tensor([row])).logits[0, -1] for row in made.rows]
        first = [((x[a] - x[b]) / 2.0).sigmoid().item() for x in logits]
        outside = [1 - x.softmax(-1)[[a, b]].sum().item() for x in logits]
        assert preferred.p_given == pytest.approx(first[0], abs=1e-4)
        assert preferred.p_swapped == pytest.approx(1 - first[1], abs=1e-4)
        assert preferred.p == pytest.approx((first[0] + 1 - first[1]) / 2, abs=1e-4)
        assert preferred.outside == pytest.approx(sum(outside) / 2, abs=1e-4)
    assert max(p.outside for p in found) > 0.5  # a random model says much else
