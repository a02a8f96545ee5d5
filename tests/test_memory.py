"""prefpipe.models.memory: what runs out of memory is run in parts, and nothing else is."""

import pytest
import torch

from prefpipe.models import trees
from prefpipe.models.memory import in_halves, is_out_of_memory
from prefpipe.models.prefix_cache import PrefixCache
from tests.training_models import qwen2


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.OutOfMemoryError("would exceed allowed memory. (out of memory)"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error, is_so):
    assert is_out_of_memory(error) is is_so


def test_a_cpu_says_itself_that_it_has_no_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_a_batch_that_does_not_fit_is_run_in_halves_and_none_is_lost():
    tried = []

    def run(rows):
        tried.append(list(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [row * 10 for row in rows]

    assert in_halves(run, [1, 2, 3, 4, 5]) == [10, 20, 30, 40, 50]
    assert tried == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]


def test_where_memory_is_short_the_cache_goes_first():
    cache, tried = PrefixCache(1000), []
    trees.run_tree(qwen2(), [[5, 6, 7]], cache=cache)

    def run(rows):
        tried.append((list(rows), cache.tokens))
        if cache.tokens or len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    assert in_halves(run, [1, 2], cache) == [1, 2]
    assert tried == [([1, 2], 3), ([1, 2], 0), ([1], 0), ([2], 0)]
    trees.run_tree(qwen2(), [[5, 6, 7]], cache=cache)
    assert cache.tokens == 0  # nor is it filled again
    tried.clear()
    empty = PrefixCache(1000)

    def keeps(rows):
        tried.append((list(rows), empty.max_tokens))
        if empty.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    assert in_halves(keeps, [1], empty) == [1] and tried == [([1], 1000), ([1], 0)]


def test_a_row_that_does_not_fit_alone_is_told_and_another_error_is_not_hidden():
    def too_much(rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(rows):
        raise RuntimeError("a shape is wrong")

    with pytest.raises(SystemExit, match="out of memory with one row"):
        in_halves(too_much, [1, 2])
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        in_halves(broken, [1, 2])
