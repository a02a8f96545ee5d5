"""planned_training: steps and tokens of a training, before there is one."""

import numpy as np
import pytest

from prefpipe.files import DryRunEnd, Plan
from prefpipe.training.planned_training import How, end
from prefpipe.training.tokenized_pairs import TokenizedPair


def pair(id: str, prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    """Of so many tokens each; prompts of one length are one prompt."""
    ids = [np.arange(n, dtype=np.int32) for n in (prompt, chosen, rejected)]
    return TokenizedPair(id, ids[0], ids[1], ids[2])


@pytest.mark.parametrize(
    ("pairs", "how", "steps"),
    [
        (40, How(16, 1, 4.0, None), 12),  # 16, 16 and 8, four times
        (40, How(16, 2, 4.0, None), 8),  # the last batch is a step of its own
        (48, How(8, 1, 0.5, None), 3),
        (7, How(8, 4, 1.0, None), 1),
        (2400, How(16, 1, 1.5, 3), 225),
    ],
)
def test_steps_by_hand(pairs, how, steps):
    assert how.steps(pairs) == steps


def test_a_prompt_counts_once_for_all_of_its_pairs(tmp_path):
    train = [pair("a", 5, 2, 3), pair("b", 5, 4, 1), pair("c", 6, 1, 2)]
    plan = Plan("dpo_training", "pairs", [], [])
    with pytest.raises(DryRunEnd):
        end(plan, How(2, 1, 2.0, 3), train, [pair("v", 9, 1, 1)], tmp_path / "checkpoint-3")
    (work,) = plan.summary()["work"]
    assert work["tokens_an_epoch"] == 5 + 2 + 3 + 4 + 1 + 6 + 1 + 2
    assert (work["held_out_tokens"], work["steps"], work["steps_done"]) == (11, 4, 3)
    plan.counts = {"read": 4, "kept": 4, "left_out": {}, "waiting": 0, "written": {}}
    assert any(
        "3 pairs in at most 4 steps and 2 epochs; 3 steps are done" in x for x in plan.lines()
    )
