"""How much memory there is, what a token takes of it, and what to do when it runs out."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from prefpipe.models.kv_store import kv_shape
from prefpipe.models.prefix_cache import PrefixCache

R = TypeVar("R")
T = TypeVar("T")


def position_bytes(model: PreTrainedModel) -> int:
    """Bytes that one token's keys and values take in all layers."""
    config = model.config.get_text_config()
    return 2 * config.num_hidden_layers * prod(kv_shape(config)) * model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, torch's own cache counted in; on a CPU half of what the machine has left."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available // 2


def is_out_of_memory(error: RuntimeError) -> bool:
    # accelerate reads the messages; cudaMallocAsync's own is not among those it knows
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def run_batches(
    run: Callable[[list[R]], list[T]],
    rows: Sequence[R],
    batches: Iterable[Sequence[int]],
    cache: PrefixCache | None = None,
) -> list[T]:
    """What `run` gives for each row, run by batches of their indices, each in_halves where it must be."""
    results: dict[int, T] = {}
    for batch in batches:
        of_batch = in_halves(run, [rows[i] for i in batch], cache)
        results |= zip(batch, of_batch, strict=True)
    return [results[i] for i in range(len(rows))]


def in_halves(
    run: Callable[[list[R]], list[T]], rows: list[R], cache: PrefixCache | None = None
) -> list[T]:
    """run(rows); where memory is short, without the cache, then of each half by itself, and so on.

    Raises SystemExit where it does not suffice for one row.
    """
    is_caching = cache is not None and cache.max_tokens > 0
    try:
        return run(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1 and not is_caching:
            raise SystemExit(
                "out of memory with one row of tokens: load the model in 4-bit, or take a smaller "
                "one, or a smaller --max-length"
            ) from error
    # not in the except block: the exception holds on to the tensors of the failed pass
    if cache is not None:
        cache.give_up()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if is_caching:
        return in_halves(run, rows)
    half = len(rows) // 2
    return in_halves(run, rows[:half]) + in_halves(run, rows[half:])
