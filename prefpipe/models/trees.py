"""One forward pass over many token sequences; what several of them begin with is computed once.

The sequences are laid out as a tree: n responses behind one prompt, both orders of a comparison
behind one context. Each piece is a segment of one long row that attends to its ancestors and itself
(prefpipe.models.attention); its positions go on where they end. So each sequence gets what it would
get alone, to rounding. With a PrefixCache, what sequences of earlier passes began with is not computed
again, either. Source: the radix attention of Zheng et al. 2024 (SGLang).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefpipe.models.attention import Prefill, RowKV, Segment, shared_prefix_attention
from prefpipe.models.last_layer import cut_last_layer
from prefpipe.models.prefix_cache import PrefixCache, common_tokens
from prefpipe.models.reordered_weights import reordered

MIN_SHARED_TOKENS = 16
"""A common beginning that is shorter is computed again for each: a segment has its cost, too."""

T = TypeVar("T")


@dataclass
class Tree:
    """Token sequences as one row of N tokens; all sequences have a token, none is left out."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    ends: list[Segment] = field(default_factory=list)
    """For each sequence, in the order given, the segment whose last token is its last."""
    row_kv: RowKV | None = None

    @property
    def last(self) -> list[int]:
        """For each sequence where its last token stands."""
        return [segment.stop - 1 for segment in self.ends]


def tree_of(
    sequences: Sequence[Sequence[int]],
    min_shared: int = MIN_SHARED_TOKENS,
    cache: PrefixCache | None = None,
) -> Tree:
    """The tree of the sequences; min_shared >= 2. Equal ones share their last token, too.

    What the cache has of a sequence is no part of the tree; the first new segment stands behind it.
    """
    nowhere = Segment(0, 0)
    is_kept = cache is not None and cache.is_open
    tree = Tree(ends=[nowhere] * len(sequences), row_kv=RowKV() if is_kept else None)
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))

    def add(part: Sequence[int], start: int, parent: Segment | None) -> Segment:
        at = len(tree.ids)
        tree.ids += part
        tree.positions += range(start, start + len(part))
        tree.segments.append(Segment(at, at + len(part), parent, tree.row_kv))
        return tree.segments[-1]

    def grow(members: list[int], start: int, parent: Segment | None) -> None:
        """Sequences that are equal up to `start`, in sorted order."""
        while members:
            # 1) The members that have enough in common with the first one, and how much all of them have.
            first = sequences[members[0]]
            run = [members[0]]
            shared = len(first)
            for i in members[1:]:
                common = min(shared, common_tokens(first, sequences[i], start))
                if common == len(first) == len(sequences[i]) or common - start >= min_shared:
                    run.append(i)
                    shared = common
                else:
                    break
            members = members[len(run) :]
            # 2) That is a segment; what differs grows behind it.
            if shared == len(sequences[run[-1]]) == len(first):  # all equal
                segment = add(first[start:], start, parent)
                for i in run:
                    tree.ends[i] = segment
                continue
            # a sequence that ends where the others go on keeps a token of its own
            shared = min(shared, min(len(sequences[i]) for i in run) - 1)
            segment = add(first[start:shared], start, parent)
            grow(run, shared, segment)

    # those that begin with the same kept tokens grow behind these together
    groups: dict[tuple[int, ...], tuple[Segment | None, list[int]]] = {}
    for i in order:
        have, segment = cache.find(sequences[i]) if cache else (0, None)
        if have < min_shared:
            have, segment = 0, None
        groups.setdefault(tuple(sequences[i][:have]), (segment, []))[1].append(i)
    for known, (segment, members) in groups.items():
        grow(members, len(known), segment)
    return tree


@torch.inference_mode()
def run_tree(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    cache: PrefixCache | None = None,
    only_last: bool = False,
) -> tuple[Any, Tensor]:
    """The model's outputs on the tree of the sequences, and where their last tokens stand (N,).

    Only at these the last hidden states are the model's.
    model: a backbone, or with only_last (logits at the last tokens, in order) a causal LM.
    """
    tree = tree_of(sequences, cache=cache)
    row = torch.tensor([tree.ids, tree.positions], device=model.device)
    last = torch.tensor(tree.last, device=model.device)
    cut_last_layer(model)
    options = {"logits_to_keep": last} if only_last else {}
    options |= {"layout": Prefill(tree.segments, row_kv=tree.row_kv, keep=last.unique())}
    with shared_prefix_attention(model), reordered(model).used():
        outputs = model(input_ids=row[:1], position_ids=row[1:], use_cache=False, **options)
    if cache is not None and tree.row_kv is not None:
        cache.add(len(tree.ids), sequences, tree.ends)
    return outputs, last


def tree_batches(sequences: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the sequences in batches whose trees have up to about max_tokens (or of one).

    In sorted order, so that those which share most stand together. A common beginning that is too
    short to be shared (MIN_SHARED_TOKENS) is not counted.
    """

    def own_tokens(i: int, before: int | None) -> int:
        shared = 0 if before is None else common_tokens(sequences[before], sequences[i])
        return len(sequences[i]) - shared

    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    return in_batches(order, max_tokens, own_tokens)


def in_batches(
    items: Iterable[T], max_tokens: int, size: Callable[[T, T | None], int]
) -> Iterator[list[T]]:
    """Items in lists of at most max_tokens (or of one item); size: its tokens, behind the one before."""
    batch: list[T] = []
    tokens = 0
    for item in items:
        more = size(item, batch[-1] if batch else None)
        if batch and tokens + more > max_tokens:
            yield batch
            batch, tokens, more = [], 0, size(item, None)
        batch.append(item)
        tokens += more
    if batch:
        yield batch
