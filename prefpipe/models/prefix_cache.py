"""What token sequences begin with, and the keys and values of what earlier passes have read."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefpipe.models.attention import Segment


def common_tokens(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """How many tokens both begin with; the first `start` are known to be equal."""
    stop = min(len(a), len(b))
    return next((k for k in range(start, stop) if a[k] != b[k]), stop)


@dataclass
class PrefixCache:
    """Keys and values of the sequences that one model has read, for those that begin alike."""

    max_tokens: int
    """Once that many are kept, no further pass is."""
    tokens: int = 0
    _known: list[tuple[tuple[int, ...], Segment]] = field(default_factory=list)
    """Sequences in order, each with the segment where it ends."""

    def find(self, ids: Sequence[int]) -> tuple[int, Segment | None]:
        """How many tokens it begins with are kept, its last one left out, and where they end."""
        # 1) In sorted order its neighbours have the most in common with it.
        index = bisect.bisect(self._known, tuple(ids), key=lambda known: known[0])
        near = self._known[max(0, index - 1) : index + 1]
        candidates = ((common_tokens(ids, known), known, segment) for known, segment in near)
        have, known, segment = max(candidates, key=lambda c: c[0], default=(0, (), None))
        # 2) From the neighbour's end back to the segment in which the common part ends.
        have = min(have, len(ids) - 1)
        stop = len(known)
        while segment is not None and have:
            start = stop - (segment.stop - segment.start)
            if start < have:
                end = segment.start + have - start
                return have, Segment(segment.start, end, segment.parent, segment.row_kv)
            segment, stop = segment.parent, start
        return 0, None

    @property
    def is_open(self) -> bool:
        """Whether the next pass is kept."""
        return self.tokens < self.max_tokens

    def add(self, tokens: int, sequences: Sequence[Sequence[int]], ends: Sequence[Segment]) -> None:
        """Sequences of a pass over so many tokens that was kept, each with the segment where it ends."""
        self.tokens += tokens
        new = zip(map(tuple, sequences), ends, strict=True)
        self._known = sorted([*self._known, *new], key=lambda known: known[0])

    def give_up(self) -> None:
        """Forget all, and keep nothing more."""
        self.tokens = self.max_tokens = 0
        self._known = []
