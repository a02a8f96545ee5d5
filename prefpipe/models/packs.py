"""Several completions behind ONE copy of their prompt, as one row: what scoring and training run.

    input     p0 p1 .. p(P-2) | p(P-1) a0 a1 .. | p(P-1) b0 b1 .. |
    position   0  1 ..   P-2  |   P-1   P P+1 ..|   P-1   P P+1 ..|
    segment   -1 -1 ..    -1  |     0   0   0 ..|     1   1   1 ..|
    label      .  .        .  |    a0  a1  a2 ..|    b0  b1  b2 ..|

Each branch starts with a copy of the prompt's last token, so that a position has one label: the
next token of its own completion. A branch sees the prompt and itself (`branch_mask`), its positions
go on where the prompt ends; so it gets what it would get in a row of its own.

position_ids without the mask give silently wrong scores (each branch would see the one before it),
as does a 2D mask: always pass `branch_mask` (or an equal BlockMask) along.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PROMPT, PADDING = -1, -2
"""Values of segment_T besides the branches' numbers."""

IGNORED = -100
"""Label of a position that predicts nothing; torch's and transformers' value."""


@dataclass(frozen=True, slots=True)
class Pack:
    """One prompt and its branches; T = P - 1 + the branches' lengths. All tensors are int64."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    segment_T: Tensor
    """PROMPT, or the number of the branch."""
    labels_T: Tensor
    """The next token of the branch, or IGNORED."""
    spans: tuple[tuple[int, int], ...]
    """Branch k's positions: start included, stop not. Position start + i predicts its token i."""

    def __len__(self) -> int:
        return self.input_ids_T.numel()


def pack(
    prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], *, with_last: bool = False
) -> Pack:
    """completions: token ids, the end of turn included where it is to be scored.

    A completion's last token is predicted and not an input, unless with_last: then it is one (with
    label IGNORED), for reading a reward or the next token's logits at position stop - 1.
    """
    if not prompt_ids:
        raise ValueError("a pack needs a prompt of at least one token")
    if not with_last and not all(completions):
        raise ValueError("a completion without a token has nothing to score; leave it out")
    *head, last = prompt_ids
    ids, positions, segments = list(head), list(range(len(head))), [PROMPT] * len(head)
    labels, spans = [IGNORED] * len(head), []
    for k, completion in enumerate(completions):
        branch = [last, *(completion if with_last else completion[:-1])]
        spans.append((len(ids), len(ids) + len(branch)))
        ids += branch
        positions += range(len(head), len(head) + len(branch))
        segments += [k] * len(branch)
        labels += [*completion, *([IGNORED] if with_last else [])]
    columns = ids, positions, segments, labels
    ids_T, positions_T, segments_T, labels_T = (torch.tensor(x, dtype=torch.long) for x in columns)
    return Pack(ids_T, positions_T, segments_T, labels_T, tuple(spans))


def stack(packs: Sequence[Pack], pad_token_id: int) -> dict[str, Tensor]:
    """Packs as one batch, padded on the right to the longest (B, T).

    Keys: input_ids, position_ids, segments, labels; these three padded with 0, PADDING, IGNORED.
    """

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return {
        "input_ids": padded([p.input_ids_T for p in packs], pad_token_id),
        "position_ids": padded([p.position_ids_T for p in packs], 0),
        "segments": padded([p.segment_T for p in packs], PADDING),
        "labels": padded([p.labels_T for p in packs], IGNORED),
    }


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Rows of their own, one under another: token ids and attention mask, both int64 (B, T)."""
    longest = max(map(len, rows))
    ids = [[*row, *[pad_token_id] * (longest - len(row))] for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    return torch.tensor(ids), (torch.arange(longest) < lengths[:, None]).long()


def branch_mask(segments_B_T: Tensor) -> Tensor:
    """True where a query may look (B, 1, T, T): no later key, only the prompt or its own branch.

    Padding sees padding, so that no row of the softmax is empty (it would be NaN).
    """
    index_T = torch.arange(segments_B_T.shape[1], device=segments_B_T.device)
    causal_T_T = index_T[:, None] >= index_T[None, :]
    query_B_T_1, key_B_1_T = segments_B_T[:, :, None], segments_B_T[:, None, :]
    return (causal_T_T & ((key_B_1_T == PROMPT) | (query_B_T_1 == key_B_1_T)))[:, None]
