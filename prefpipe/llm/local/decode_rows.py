"""The samples under way as columns: row r of each array, and of the store, is one sample."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from prefpipe.llm import Request
from prefpipe.llm.local.token_choice import uniforms


@dataclass(eq=False)
class Job:
    """A request on its way. index: its number in the input."""

    index: int
    request: Request
    ids: list[int]
    """The prompt's tokens."""
    done: dict[int, list[int]] = field(default_factory=dict)
    """Those of each finished sample."""
    matchers: dict[int, Any] = field(default_factory=dict)
    """Where each sample stands in the schema that it is held to, if it is."""

    @property
    def missing(self) -> list[int]:
        return [s for s in self.request.samples if s not in self.done]


class Sampling(NamedTuple):
    """How a token is drawn; equal for most rows of a batch, which are then drawn together."""

    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def of(cls, request: Request) -> "Sampling":
        if not request.temperature:
            return cls(0.0, 0, 1.0)  # greedy: the others have no effect
        return cls(request.temperature, request.top_k, request.top_p)


@dataclass
class DecodeRows:
    """N samples; T: the most tokens that one of them may get."""

    slot: np.ndarray
    """Which of the running jobs it answers."""
    sample: np.ndarray
    age: np.ndarray
    """Tokens chosen so far; the last one's keys and values are not in the store yet."""
    tokens: np.ndarray
    noise: np.ndarray
    """(N, T), as the tokens: what each is drawn with."""
    limit: np.ndarray
    minimum: np.ndarray
    """max_new_tokens and min_new_tokens."""
    sampling: np.ndarray
    """Which of the batch's ways to draw a token is its own."""

    @classmethod
    def of(cls, jobs: Sequence[Job], first_slot: int, ways: list[Sampling]) -> "DecodeRows":
        """The samples that the jobs lack, before their first token. New ways to draw join `ways`."""
        samples = [(slot, job.request, s) for slot, job in enumerate(jobs) for s in job.missing]
        N, T = len(samples), max((r.max_new_tokens for _, r, _ in samples), default=0)
        rows = cls(*(np.zeros(N, dtype=np.int64) for _ in fields(cls)))
        rows.tokens = np.zeros((N, T), dtype=np.int64)
        rows.noise = np.zeros((N, T), dtype=np.float32)
        for row, (slot, r, sample) in enumerate(samples):
            if (sampling := Sampling.of(r)) not in ways:
                ways.append(sampling)
            rows.slot[row], rows.sample[row] = first_slot + slot, sample
            rows.limit[row], rows.minimum[row] = r.max_new_tokens, r.min_new_tokens
            rows.sampling[row] = ways.index(sampling)
            if r.temperature:
                noise = uniforms(r.seed, r.id, sample, r.max_new_tokens)
                rows.noise[row, : r.max_new_tokens] = noise
        return rows

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, order: np.ndarray) -> "DecodeRows":
        return DecodeRows(*(getattr(self, f.name)[order] for f in fields(self)))

    def __add__(self, other: "DecodeRows") -> "DecodeRows":
        names = [f.name for f in fields(self)]
        return DecodeRows(*(_joined(getattr(self, name), getattr(other, name)) for name in names))


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One behind the other; of two dimensions, filled up with zeros to the wider."""
    if a.ndim == 2:
        wide = max(a.shape[1], b.shape[1])
        a, b = (np.pad(x, ((0, 0), (0, wide - x.shape[1]))) for x in (a, b))
    return np.concatenate([a, b])


def closing(count: int, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How `count` rows close up when some go: the new order, and the moves (to, from). The last
    ones fill the gaps, so that no more move than go, and the first ones stay where they are."""
    left = count - len(gone)
    to = np.sort(gone[gone < left])
    source = np.setdiff1d(np.arange(left, count), gone)
    order = np.arange(left)
    order[to] = source
    return order, to, source
