"""Who is in the batch: continuous batching of many samples behind each prompt.

A job waits, runs (its prompt takes a slot of the store, each of its samples a row) and is finished.
Samples that end leave at once, and the last ones close the gaps, so that a step reads plain slices of
the store. Where memory runs out, the newer jobs are preempted: they wait again and, having the same
noise, end in the same texts. Words as in nano-vllm, whose scheduler and runner are cut the same way.
"""

import functools
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefpipe.llm.local.decode_rows import DecodeRows, Job, Sampling, closing
from prefpipe.llm.local.runner import Runner
from prefpipe.llm.local.schema_masks import SchemaMasks
from prefpipe.llm.local.token_choice import choose
from prefpipe.models.memory import is_out_of_memory

OUT_OF_MEMORY = (
    "out of memory with a single prompt: ask for fewer samples or tokens of it, load the model in "
    "4-bit, or take a smaller one"
)


@dataclass
class Limits:
    """How much runs at once. They fall where memory runs out, and stay there."""

    batch_tokens: int
    """Positions of the store: a prompt counts once, each of its samples with its max_new_tokens."""
    samples: int
    prefill_tokens: int
    """Prompt tokens in one forward pass."""

    def halve(self, size: "Size") -> None:
        """size: of the batch that did not fit."""
        self.samples = max(1, min(self.samples, size.samples) // 2)
        self.batch_tokens = max(1, min(self.batch_tokens, size.tokens) // 2)
        self.prefill_tokens = max(1, self.prefill_tokens // 2)


@dataclass(frozen=True, slots=True)
class Size:
    """What a batch needs in the store; tokens of the longest prompt, and the most new ones."""

    slots: int
    prompt_tokens: int
    samples: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        return self.slots * self.prompt_tokens + self.samples * self.new_tokens

    def with_job(self, job: Job) -> "Size":
        return Size(
            self.slots + 1,
            max(self.prompt_tokens, len(job.ids)),
            self.samples + len(job.missing),
            max(self.new_tokens, job.request.max_new_tokens),
        )


class Scheduler:
    """waiting: whoever calls `step` adds to it. running: slot i of the store holds the prompt of
    running[i], row r the sample rows[r]."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        end_ids: frozenset[int],
        masks: SchemaMasks | None = None,
    ) -> None:
        """masks: with them replies are held to the schemas that their requests have."""
        self.runner, self.limits, self.end_ids = runner, limits, sorted(end_ids)
        self._masks = masks
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self._ways: list[Sampling] = []
        self.rows = DecodeRows.of([], 0, self._ways)

    @torch.inference_mode()
    def step(self) -> list[Job]:
        """One forward pass: of prompts that are admitted or, where none is, of every sample's last
        token. The jobs that it finished."""
        # 1) Schedule: prompts first, so that a step carries as many samples as there is room for.
        fitting = self._fitting()
        jobs = self._in_one_pass(fitting)
        try:
            # 2) Run, 3) choose a token for each row, 4) let go of what ended.
            if not jobs:
                return self._decode() if self.running else []
            finished = self._admit(jobs, fitting)
            for _ in jobs:
                self.waiting.popleft()
            return finished
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len({*self.running, *jobs}) == 1:
                raise SystemExit(OUT_OF_MEMORY) from error
        # not in the except block: the exception holds on to the tensors of the failed pass
        self._preempt(jobs)
        return []

    def _fitting(self) -> list[Job]:
        """The waiting jobs for which there is room. None while less than an eighth is free: prompts
        that come in twos and threads pay a forward pass each, those that come together share one. A
        job that is larger than the limits runs alone."""
        limits, jobs = self.limits, []
        size = self._size([])
        if 8 * size.samples > 7 * limits.samples or 8 * size.tokens > 7 * limits.batch_tokens:
            return []
        for job in self.waiting:
            size = size.with_job(job)
            fits = size.samples <= limits.samples and size.tokens <= limits.batch_tokens
            if not fits and (jobs or self.running):
                break
            jobs.append(job)
        return jobs

    def _in_one_pass(self, jobs: list[Job]) -> list[Job]:
        tokens = itertools.accumulate(len(job.ids) for job in jobs)
        count = sum(total <= self.limits.prefill_tokens for total in tokens)
        return jobs[: max(count, 1)]

    def _size(self, more: Sequence[Job]) -> Size:
        """The running batch's, with these jobs in it, too."""
        longest = max((len(job.ids) for job in self.running), default=0)
        new = max((job.request.max_new_tokens for job in self.running), default=0)
        return functools.reduce(
            Size.with_job, more, Size(len(self.running), longest, len(self.rows), new)
        )

    def _admit(self, jobs: list[Job], fitting: list[Job]) -> list[Job]:
        """Read the prompts, and choose the first token of each of their samples. fitting: these and
        what will be admitted next; room is made for all of them at once."""
        first_slot, first_row = len(self.running), len(self.rows)
        new = DecodeRows.of(jobs, first_slot, self._ways)
        room = self._size(fitting)
        # in steps of 64: a slightly longer prompt does not move everything
        prompt_tokens = -(-room.prompt_tokens // 64) * 64
        self.runner.store.reserve(room.slots, prompt_tokens, room.samples, room.new_tokens)
        logits = self.runner.prefill([job.ids for job in jobs], first_slot)
        # all samples of a prompt are drawn from the same logits
        logits = logits[torch.from_numpy(new.slot - first_slot).to(logits.device)]
        self.running, self.rows = [*self.running, *jobs], self.rows + new
        return self._choose(np.arange(first_row, len(self.rows)), logits)

    def _decode(self) -> list[Job]:
        rows, every, last = self.rows, np.arange(len(self.rows)), self.rows.age - 1
        prompt_tokens = np.array([len(job.ids) for job in self.running])
        logits = self.runner.decode(rows.tokens[every, last], rows.slot, last, prompt_tokens)
        return self._choose(every, logits)

    def _choose(self, which: np.ndarray, logits: Tensor) -> list[Job]:
        """The next token of these rows, from their logits; lets go of the rows that end with it."""
        rows, device = self.rows, logits.device
        age = rows.age[which]
        # 1) No end before min_new_tokens.
        if (early := age < rows.minimum[which]).any():
            early_rows = torch.from_numpy(early.nonzero()[0]).to(device)
            logits[early_rows[:, None], torch.tensor(self.end_ids).to(device)] = -torch.inf
        matchers = self._matchers(which, logits.shape[-1]) if self._masks else []
        SchemaMasks.mask(logits, matchers)
        # 2) Rows that are drawn alike are drawn at once.
        noise = torch.from_numpy(rows.noise[which, age]).to(device)
        chosen = np.empty(len(which), dtype=np.int64)
        for way in np.unique(rows.sampling[which]):
            members = (rows.sampling[which] == way).nonzero()[0]
            every = len(members) == len(which)
            part = slice(None) if every else torch.from_numpy(members).to(device)
            chosen[members] = choose(logits[part], noise[part], **self._ways[way]._asdict()).cpu()
        rows.tokens[which, age] = chosen
        rows.age[which] += 1
        for matcher, token in zip(matchers, chosen.tolist(), strict=bool(matchers)):
            if matcher and token not in self.end_ids:
                matcher.consume_token(token)
        # 3) An end token, or the limit, ends a sample.
        ended = which[np.isin(chosen, self.end_ids) | (rows.age[which] == rows.limit[which])]
        for row in ended:
            job = self.running[rows.slot[row]]
            job.done[int(rows.sample[row])] = rows.tokens[row, : rows.age[row]].tolist()
        return self._let_go(ended)

    def _matchers(self, which: np.ndarray, width: int) -> list[Any]:
        """Where each of these rows stands in its schema; None: it has none."""
        assert self._masks
        matchers: list[Any] = []
        for row in which.tolist():
            job, sample = self.running[self.rows.slot[row]], int(self.rows.sample[row])
            schema = job.request.reply_schema
            if schema and not self.rows.age[row]:  # of a job that was preempted anew, too
                job.matchers[sample] = self._masks.begin(schema, width)
            matchers.append(job.matchers[sample] if schema else None)
        return matchers

    def _let_go(self, gone: np.ndarray) -> list[Job]:
        """Drop these rows, and the jobs (returned) that have none left; others close the gaps."""
        if not len(gone):
            return []
        store = self.runner.store
        order, to, source = closing(len(self.rows), gone)
        store.move(store.own, to, source)
        self.rows = self.rows[order]
        idle = np.setdiff1d(np.arange(len(self.running)), self.rows.slot)
        finished = [self.running[slot] for slot in idle]
        order, to, source = closing(len(self.running), idle)
        store.move(store.prompt, to, source)
        new_slot = np.zeros(len(self.running), dtype=np.int64)
        new_slot[order] = np.arange(len(order))
        self.rows.slot = new_slot[self.rows.slot]
        self.running = [self.running[slot] for slot in order]
        return finished

    def _preempt(self, attempted: list[Job]) -> None:
        """Halve the limits after an out-of-memory; the newer half of the jobs wait again."""
        # 1) Those that were being admitted have no token yet.
        self._let_go((self.rows.age == 0).nonzero()[0])
        self.limits.halve(self._size(attempted))
        # 2) Of the running ones the older half stays, with all that they have.
        keep = (len(self.running) + len(attempted)) // 2
        self.waiting.extendleft(reversed(self.running[keep:]))
        self._let_go((self.rows.slot >= keep).nonzero()[0])
        # 3) The room of the others is given back.
        self.runner.store.shrink(len(self.running), len(self.rows))
        if self.runner.store.device.type == "cuda":
            torch.cuda.empty_cache()
