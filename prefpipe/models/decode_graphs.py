"""CUDA graphs of decoding steps: one launch instead of some two thousand.

A step of a few hundred samples takes a GPU less time than a CPU needs to launch its kernels one by
one. A graph has fixed sizes and addresses, so a step is rounded up to a `Size`: rows without a sample
stand behind the live ones, in room of the store that nobody uses; what they compute is not looked at.

A step is recorded when its size comes for the third time, and compared with the same step launched
kernel by kernel. Where recording is impossible (a model that waits for the device in its middle,
layers that are moved to it) or gives other numbers, all steps are launched one by one: slower, and right.
Recording as in nano-vllm, whose graphs are of whole batch sizes, too.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefpipe.models.attention import Window
from prefpipe.models.decode import Decode, bias_of, grid_of
from prefpipe.models.kv_store import KVStore
from prefpipe.models.memory import is_out_of_memory

STEPS_BEFORE = 2
"""Of one size that are launched one by one: a size that passes quickly is not worth recording."""
MOST = 48
"""Graphs that are kept."""

Forward = Callable[[Tensor, Tensor, Decode], Tensor]
"""Token ids and positions (N,), and the layout, to logits (N, V)."""


@dataclass(frozen=True)
class Size:
    """What a step is rounded up to."""

    rows: int
    slots: int
    width: int
    """Samples of a prompt."""
    prompt_tokens: int
    own_tokens: int

    @classmethod
    def of(
        cls, store: KVStore, slot_N: np.ndarray, age_N: np.ndarray, prompts: np.ndarray
    ) -> "Size":
        slots, prompt_tokens, rows, own_tokens = store.sizes
        return cls(
            min(rounded(len(slot_N)), rows),
            min(rounded(len(prompts)), slots),
            1 << int(np.bincount(slot_N).max() - 1).bit_length(),
            min(-(-int(prompts.max()) // 64) * 64, prompt_tokens),
            min(-(-(int(age_N.max()) + 1) // 64) * 64, own_tokens),
        )  # fmt: skip


def rounded(count: int) -> int:
    """Up to a multiple of an eighth of the power of two below it, at least of 8."""
    step = 1 << max(3, count.bit_length() - 4)
    return -(-count // step) * step


class FixedDecode(Decode):
    """A layout of one size, whose tensors stay where they are and get other numbers (`fill`)."""

    def __init__(self, store: KVStore, size: Size) -> None:
        self.store, self.size = store, size
        self.longest_prompt, self.longest_own = size.prompt_tokens, size.own_tokens
        self.slots, self.width, self.is_grid = size.slots, size.width, False
        # the last position that a step of this size can have
        self.last_position = size.prompt_tokens + size.own_tokens - 1
        counts = [size.rows] * 4 + [size.slots * size.width, size.slots]
        self._filled = torch.zeros(sum(counts), dtype=torch.long, device=store.device)
        parts = self._filled.split(counts)
        self.tokens_N, self.slot_N, self.age_N, self.cell_N = parts[:4]
        self.row_cells, self.prompt_tokens_S = parts[4:]

    def fill(
        self,
        tokens_N: np.ndarray,
        slot_N: np.ndarray,
        age_N: np.ndarray,
        prompt_tokens_S: np.ndarray,
    ) -> None:
        """The numbers of the next step; rows and slots that nobody has are those of 0."""
        size = self.size
        cells = grid_of(slot_N, size.slots, size.width)
        widths = [size.rows] * 4 + [size.slots * size.width, size.slots]
        columns = [tokens_N, slot_N, age_N, *cells, prompt_tokens_S]
        padded = [
            np.pad(column, (0, width - len(column)))
            for column, width in zip(columns, widths, strict=True)
        ]
        self._filled.copy_(torch.from_numpy(np.concatenate(padded)))

    def begin(self) -> None:
        """Forget what was computed of other numbers."""
        self.position_N = self.prompt_tokens_S[self.slot_N] + self.age_N
        self._biases, self._vectors = {}, {}

    def _bias(self, window: Window, G: int, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        if window is not None and self.last_position >= window:
            raise NotImplementedError("a window that moves along")
        return super()._bias(window, G, dtype)

    def _as_bias(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        return bias_of(seen, dtype)


class DecodeGraphs:
    """forward: a step, whose sizes and addresses are those of its arguments."""

    def __init__(self, model: torch.nn.Module, store: KVStore, forward: Forward) -> None:
        self.store, self._forward = store, forward
        # hooks (accelerate's) may bring a layer's weights to the device, or its inputs to another
        moved = any(hasattr(module, "_hf_hook") for module in model.modules())
        self.is_on = store.device.type == "cuda" and not moved
        self._seen: Counter[Size] = Counter()
        self._graphs: dict[Size, tuple[FixedDecode, Callable[[], Tensor]]] = {}
        self._version = -1
        self._pool: Any = None

    def step(
        self,
        tokens_N: np.ndarray,
        slot_N: np.ndarray,
        age_N: np.ndarray,
        prompt_tokens_S: np.ndarray,
    ) -> Tensor | None:
        """The logits (N, V) behind these tokens, good until the next step; None: launch it yourself."""
        if not self.is_on:
            return None
        if self._version != self.store.version or len(self._graphs) > MOST:
            self._graphs.clear()
            self._seen.clear()
            self._version = self.store.version
        numbers = tokens_N, slot_N, age_N, prompt_tokens_S
        size = Size.of(self.store, *numbers[1:])
        if size not in self._graphs:
            self._seen[size] += 1
            if self._seen[size] <= STEPS_BEFORE:
                return None
            return self._first(size, numbers)
        layout, replay = self._graphs[size]
        layout.fill(*numbers)
        return replay()[: len(tokens_N)]

    def _first(self, size: Size, numbers: tuple[np.ndarray, ...]) -> Tensor | None:
        """The logits of a step that is recorded."""
        layout = FixedDecode(self.store, size)
        layout.fill(*numbers)

        def run() -> Tensor:
            layout.begin()
            return self._forward(layout.tokens_N, layout.position_N, layout)

        try:
            replay, want = self.record(run)
            found, live = replay(), slice(len(numbers[0]))
            off = (found[live] - want[live]).norm() / want[live].norm()
            if not off < 1e-2:
                raise RuntimeError(f"its numbers differ by {float(off):.1%}")
        except Exception as error:  # whatever a model's code does that a graph cannot hold
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            self.is_on = False
            self._graphs.clear()
            words = (str(error).strip() or type(error).__name__).split("\n")[0][:120]
            print(f"no CUDA graph of this model, which is slower: {words}", file=sys.stderr)
            return None
        self._graphs[size] = layout, replay
        return found[live]

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], Tensor]:
        """What replays `run`, whose result is the same tensor each time; and what it gave once."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up, which no graph can hold
            want = run()
        torch.cuda.current_stream().wait_stream(side)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay, want
