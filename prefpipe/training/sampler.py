"""The order in which pairs are trained on: those of a prompt in one batch, every batch full.

A step is the same pairs whatever the number of ranks: so many of that order, which are then laid out
into the batches that each rank has in memory at once.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

from torch.utils.data import Sampler

from prefpipe import draws

PAIRS_PER_PACK = 5
"""Most pairs behind one copy of their prompt: under one mask, attention grows with a pack's square."""

_LOOK_AHEAD_GROUPS = 64


class PromptGroupSampler(Sampler[int]):
    """Indices of the pairs for an epoch, so that the pairs of a prompt fall into one batch.

    prompts: for each pair, what is equal for pairs of one prompt. Groups of up to pairs_per_pack
    pairs are shuffled (by seed and epoch) and put into batches of batch_pairs; where no group fits
    the room that is left, one is split. Every batch but the last has batch_pairs pairs, whatever
    the groups' sizes. Without shuffle: the order of the input, grouped.
    """

    def __init__(
        self,
        prompts: Sequence[Hashable],
        *,
        batch_pairs: int,
        pairs_per_pack: int = PAIRS_PER_PACK,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.prompts = prompts
        self._indices: dict[Hashable, list[int]] = {}
        for index, prompt in enumerate(prompts):
            self._indices.setdefault(prompt, []).append(index)
        self.batch_pairs = batch_pairs
        self.group_pairs = min(pairs_per_pack, batch_pairs)
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[int]:
        rng = draws.rng(self.seed, self.epoch)
        groups: list[list[int]] = []
        for indices in self._indices.values():
            order = rng.sample(indices, len(indices)) if self.shuffle else indices
            size = self.group_pairs
            groups += [order[i : i + size] for i in range(0, len(order), size)]
        if self.shuffle:
            rng.shuffle(groups)
        # first fit, a batch at a time: groups that are too large for the room that is left wait for
        # the next batch, before all others; far ahead nobody looks, since all of them may be large
        waiting = deque(groups)
        while waiting:
            room, passed = self.batch_pairs, []
            while waiting and room and len(passed) < _LOOK_AHEAD_GROUPS:
                group = waiting.popleft()
                if len(group) > room:
                    passed.append(group)
                    continue
                yield from group
                room -= len(group)
            waiting.extendleft(reversed(passed))
            if room and waiting:  # no group fits: one is split, so that every batch is full
                yield from waiting[0][:room]
                waiting[0] = waiting[0][room:]


class StepBatches:
    """The sampler's order by steps, each laid out into as many batches: `accumulated` for each rank.

    accelerate gives batch k to rank k % ranks. A batch that a step has no pair for is [filler], the
    index of a row that weighs nothing: all ranks go through a model together.
    """

    def __init__(
        self,
        sampler: PromptGroupSampler,
        *,
        step_pairs: int,
        accumulated: int = 1,
        ranks: int = 1,
        filler: int = -1,
    ) -> None:
        """step_pairs: pairs of a step, of each but the last."""
        self.sampler, self.step_pairs, self.filler = sampler, step_pairs, filler
        self.batches = accumulated * ranks

    def __len__(self) -> int:
        return self.batches * math.ceil(len(self.sampler) / self.step_pairs)

    def __iter__(self) -> Iterator[list[int]]:
        order = iter(self.sampler)
        while step := list(islice(order, self.step_pairs)):
            yield from self._laid_out(step)

    def _laid_out(self, step: list[int]) -> list[list[int]]:
        """The groups of a step, the largest first, each in the batch that has the fewest pairs (LPT
        scheduling, Graham 1969). One is split only where it fits nowhere."""
        size = self.sampler.group_pairs
        of_prompt: dict[Hashable, list[int]] = {}
        for index in step:
            of_prompt.setdefault(self.sampler.prompts[index], []).append(index)
        groups = [g[i : i + size] for g in of_prompt.values() for i in range(0, len(g), size)]
        waiting = deque(sorted(groups, key=len, reverse=True))
        batches: list[list[int]] = [[] for _ in range(self.batches)]
        while waiting:
            group = waiting.popleft()
            emptiest = min(batches, key=len)
            room = self.sampler.batch_pairs - len(emptiest)
            emptiest += group[:room]
            if group[room:]:
                waiting.appendleft(group[room:])
        place = {index: k for k, index in enumerate(step)}
        return [sorted(batch, key=place.__getitem__) or [self.filler] for batch in batches]
