"""prefpipe.models.trees and prefix_cache: what sequences share is computed once and changes no number."""

import random

import pytest
import torch

from prefpipe.models import trees
from prefpipe.models.prefix_cache import PrefixCache
from tests.engine_models import make_model
from tests.training_models import qwen2

# ---- one row of many sequences -------------------------------------------------------------------


def sequences(seed=0):
    rng = random.Random(seed)

    def ids(n):
        return [rng.randrange(3, 97) for _ in range(n)]

    prompt, answer = ids(40), ids(20)
    found = [prompt + ids(7), prompt + answer + ids(5), prompt + answer + ids(9)]
    found += [prompt + answer, ids(30), prompt + answer + [5], [*prompt[:39], 96], [7]]
    return [*found, list(found[0])]


def test_each_sequence_gets_the_logits_it_gets_alone_and_shared_tokens_run_once():
    model, rows = qwen2(), sequences()
    outputs, last = trees.run_tree(model, rows, only_last=True)
    for k, row in enumerate(rows):
        alone = model(input_ids=torch.tensor([row])).logits[0, -1]
        assert (outputs.logits[0, k] - alone).abs().max() < 1e-4
    tree = trees.tree_of(rows)
    assert len(tree.ids) < 0.45 * sum(map(len, rows))
    assert last.tolist() == tree.last and tree.last[0] == tree.last[-1]


@pytest.mark.parametrize("seed", range(8))
def test_the_tree_holds_every_sequence(seed):
    """Read back from the segments: the tokens of a leaf and its ancestors, at positions 0, 1, ..."""
    rng = random.Random(seed)
    rows = [[rng.randrange(2) for _ in range(rng.randrange(1, 9))] for _ in range(12)]
    tree = trees.tree_of(rows, min_shared=2 + seed % 3)
    for row, last in zip(rows, tree.last, strict=True):
        segment = next(s for s in tree.segments if s.start <= last < s.stop)
        assert last == segment.stop - 1
        chain = []
        while segment is not None:
            chain.insert(0, segment)
            segment = segment.parent
        places = [k for s in chain for k in range(s.start, s.stop)]
        assert [tree.ids[k] for k in places] == row
        assert [tree.positions[k] for k in places] == list(range(len(row)))


def test_a_batch_is_as_large_as_its_tree_not_as_its_rows_together():
    """Two contexts of 100 tokens, 20 responses of 10 behind each, in turn: 100 + 20 * 10 each."""
    rng = random.Random(0)
    ids = lambda n: [rng.randrange(3, 97) for _ in range(n)]  # noqa: E731
    contexts = [ids(100), ids(100)]
    rows = [contexts[k % 2] + ids(10) for k in range(40)]
    batches = list(trees.tree_batches(rows, 300))
    assert sorted(map(sorted, batches)) == [list(range(0, 40, 2)), list(range(1, 40, 2))]
    assert [len(trees.tree_of([rows[i] for i in b]).ids) for b in batches] == [300, 300]
    assert sorted(map(len, trees.tree_batches(rows, 150))) == [5] * 8
    assert list(trees.tree_batches([ids(9), ids(8)], 1)) in ([[0], [1]], [[1], [0]])


# ---- what earlier passes have read ---------------------------------------------------------------


def knockout_rows(rng: random.Random) -> list[list[list[int]]]:
    """Token ids of three rounds: a context of 60, eight responses of 20, both orders of each pair."""
    ids = lambda n: [rng.randrange(3, 97) for _ in range(n)]  # noqa: E731
    context, responses, middle = ids(60), [ids(20) for _ in range(8)], ids(3)
    rounds = [[(0, 1), (2, 3), (4, 5), (6, 7)], [(0, 2), (4, 6)], [(0, 4)]]
    return [
        [
            context + responses[a] + middle + responses[b] + [5]
            for x, y in pairs
            for a, b in ((x, y), (y, x))
        ]
        for pairs in rounds
    ]


def test_a_knockout_reads_each_response_once_as_the_first_and_gets_the_same_logits():
    model, cache, read = qwen2(), PrefixCache(10_000), []
    for rows in knockout_rows(random.Random(0)):
        outputs, _ = trees.run_tree(model, rows, cache=cache, only_last=True)
        read.append(cache.tokens - sum(read))
        for k, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row])).logits[0, -1]
            assert (outputs.logits[0, k] - alone).abs().max() < 1e-4
    # the context, 8 as the first, 8 as the second; later the second ones only, and what ends a row
    assert read == [60 + 8 * (20 + 3 + 20 + 1), 4 * 21, 2 * 21]


@pytest.mark.parametrize(
    "shape", ["mistral_windowed", "qwen2_some_layers_windowed", "llama_no_gqa"]
)
@pytest.mark.parametrize("room", [0, 1, 100, 10_000])
def test_any_sequence_after_any_other_gets_its_own_logits(shape, room):
    """Equal ones, beginnings and continuations of known ones, of lengths around a shared piece."""
    model, rng, cache = make_model(shape), random.Random(room), PrefixCache(room)
    known = [[rng.randrange(5, 90) for _ in range(rng.randrange(2, 90))] for _ in range(4)]
    for _ in range(6):
        rows = []
        for _ in range(4):
            row = rng.choice(known)
            row = row[: rng.randrange(1, len(row) + 1)] + rng.choice(known)[: rng.randrange(40)]
            rows.append(row[:120])
        rows.append(rng.choice(known))
        known += rows
        outputs, _ = trees.run_tree(model, rows, cache=cache, only_last=True)
        for k, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row])).logits[0, -1]
            assert (outputs.logits[0, k] - alone).abs().max() < 2e-4
    assert (cache.tokens > 0) == (room > 0)
