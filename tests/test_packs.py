"""prefpipe.models.packs: several completions behind one copy of their prompt."""

import pytest
import torch

from prefpipe.models.packs import IGNORED, PADDING, PROMPT, branch_mask, pack, stack


def test_a_pack_by_hand():
    p = pack([5, 6, 7], [[1, 2, 9], [3, 9]])
    #                       prompt  | last, branch 0 | last, branch 1
    assert p.input_ids_T.tolist() == [5, 6, 7, 1, 2, 7, 3]
    assert p.position_ids_T.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert p.segment_T.tolist() == [PROMPT, PROMPT, 0, 0, 0, 1, 1]
    assert p.labels_T.tolist() == [IGNORED, IGNORED, 1, 2, 9, 3, 9]
    assert p.spans == ((2, 5), (5, 7))


def test_with_last_the_last_token_is_an_input_and_predicts_nothing():
    p = pack([5, 6], [[1, 9], []], with_last=True)
    assert p.input_ids_T.tolist() == [5, 6, 1, 9, 6]
    assert p.position_ids_T.tolist() == [0, 1, 2, 3, 1]
    assert p.labels_T.tolist() == [IGNORED, 1, 9, IGNORED, IGNORED]
    assert [p.input_ids_T[stop - 1].item() for _, stop in p.spans] == [9, 6]


def test_a_prompt_of_one_token_stands_in_the_branches_only():
    p = pack([5], [[1, 2], [3, 4]])
    assert p.input_ids_T.tolist() == [5, 1, 5, 3]
    assert p.segment_T.tolist() == [0, 0, 1, 1]


def test_a_pack_without_prompt_or_completion_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt"):
        pack([], [[1]])
    with pytest.raises(ValueError, match="nothing to score"):
        pack([1], [[1], []])


def test_a_branch_sees_the_prompt_and_itself_and_nothing_later():
    segments = torch.tensor([[PROMPT, 0, 0, 1, 1, PADDING]])
    seen = branch_mask(segments)[0, 0].int().tolist()
    assert seen[0] == [1, 0, 0, 0, 0, 0]
    assert seen[2] == [1, 1, 1, 0, 0, 0]
    assert seen[3] == [1, 0, 0, 1, 0, 0]
    assert seen[4] == [1, 0, 0, 1, 1, 0]
    assert seen[5][5] == 1  # a row that sees nothing would be NaN


def test_stacked_packs_are_padded_on_the_right():
    batch = stack([pack([5, 6], [[1, 2]]), pack([7], [[3]])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 0, 0]]
    assert batch["segments"].tolist() == [[PROMPT, 0, 0], [0, PADDING, PADDING]]
    assert batch["labels"].tolist() == [[IGNORED, 1, 2], [3, IGNORED, IGNORED]]
