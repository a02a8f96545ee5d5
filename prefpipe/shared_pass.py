"""One forward pass over many token sequences; what several of them begin with is computed once.

The sequences are laid out as a tree: n responses behind one prompt, both orders of a comparison
behind one context, all opponents of one response behind it. Each piece is a segment of one long
row that attends to its ancestors and itself (prefpipe.llm.shared_prefix); its positions go on where
they end. So each sequence gets what it would get alone, to rounding. Source: the radix attention of
Zheng et al. 2024 (SGLang), here as a layout of one pass, without a cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefpipe.llm.batch import is_out_of_memory
from prefpipe.llm.packed_linear import packed_linears
from prefpipe.llm.shared_prefix import Prefill, Segment, shared_prefix_attention

MIN_SHARED_TOKENS = 16
"""A common beginning that is shorter is computed again for each: a segment has its cost, too."""

R = TypeVar("R")
T = TypeVar("T")


@dataclass
class Tree:
    """Token sequences as one row of N tokens; all sequences have a token, none is left out."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    """For each sequence, in the order given, where its last token stands."""


def lay_out(sequences: Sequence[Sequence[int]], min_shared: int = MIN_SHARED_TOKENS) -> Tree:
    """The tree of the sequences; min_shared >= 2. Equal ones share their last token, too."""
    tree = Tree(last=[-1] * len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))

    def add(part: Sequence[int], start: int, parent: Segment | None) -> Segment:
        at = len(tree.ids)
        tree.ids += part
        tree.positions += range(start, start + len(part))
        tree.segments.append(Segment(at, at + len(part), parent))
        return tree.segments[-1]

    def place(members: list[int], start: int, parent: Segment | None) -> None:
        """Sequences that are equal up to `start`, in sorted order."""
        while members:
            first = sequences[members[0]]
            run = [members[0]]
            shared = len(first)
            for i in members[1:]:
                common = min(shared, _common(first, sequences[i], start))
                if common == len(first) == len(sequences[i]) or common - start >= min_shared:
                    run.append(i)
                    shared = common
                else:
                    break
            members = members[len(run) :]
            if shared == len(sequences[run[-1]]) == len(first):  # all equal
                segment = add(first[start:], start, parent)
                for i in run:
                    tree.last[i] = segment.stop - 1
                continue
            # a sequence that ends where the others go on keeps a token of its own
            shared = min(shared, min(len(sequences[i]) for i in run) - 1)
            segment = add(first[start:shared], start, parent)
            place(run, shared, segment)

    place(order, 0, None)
    return tree


def _common(a: Sequence[int], b: Sequence[int], start: int) -> int:
    """How many tokens both begin with; the first `start` are known to be equal."""
    stop = min(len(a), len(b))
    return next((k for k in range(start, stop) if a[k] != b[k]), stop)


def can_share(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be given a layout (and is a decoder's)."""
    return bool(getattr(model, "_supports_attention_backend", False))


@torch.inference_mode()
def run_tree(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], **options: Any
) -> tuple[Any, Tensor]:
    """The model's outputs on the tree of the sequences, and where their last tokens stand (N,).

    model: a backbone, or a causal LM with options logits_to_keep left out.
    """
    tree = lay_out(sequences)
    device = model.device
    last = torch.tensor(tree.last, device=device)
    if options.pop("only_last", False):
        options["logits_to_keep"] = last
    with shared_prefix_attention(model), packed_linears(model).used():
        outputs = model(
            input_ids=torch.tensor([tree.ids], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            use_cache=False,
            layout=Prefill(tree.segments),
            **options,
        )
    return outputs, last


def tree_batches(sequences: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the sequences in batches whose trees have up to about max_tokens (or of one).

    In sorted order, so that those which share most stand together. A common beginning that is too
    short to be shared (MIN_SHARED_TOKENS) is not counted.
    """
    batch: list[int] = []
    size = 0
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        own = len(sequences[i])
        more = own - _common(sequences[batch[-1]], sequences[i], 0) if batch else own
        if batch and size + more > max_tokens:
            yield batch
            batch, size, more = [], 0, own
        batch.append(i)
        size += more
    if batch:
        yield batch


def in_halves(run: Callable[[list[R]], list[T]], rows: list[R]) -> list[T]:
    """run(rows); where memory does not suffice, of each half by itself, and so on.

    Raises SystemExit where it does not suffice for one row.
    """
    try:
        return run(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise SystemExit(
                "out of memory with one row of tokens: load the model in 4-bit, or take a smaller "
                "one, or a smaller --max-length"
            ) from error
    # not in the except block: the exception holds on to the tensors of the failed pass
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    return in_halves(run, rows[:half]) + in_halves(run, rows[half:])


def in_batches(items: Iterable[tuple[int, T]], max_tokens: int) -> Iterator[list[T]]:
    """Items, each with its size in tokens, in lists of at most max_tokens (or of one item)."""
    batch: list[T] = []
    size = 0
    for tokens, item in items:
        if batch and size + tokens > max_tokens:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += tokens
    if batch:
        yield batch
