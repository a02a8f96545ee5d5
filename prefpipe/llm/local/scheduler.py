"""The samples that the local engine has under way, and how they come and go.

Samples that end leave the batch, prompts that end make room for the next ones; the others close the
gaps, so that a step reads plain slices of the store.
"""

import functools
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefpipe.llm import Completion, Request
from prefpipe.llm.local.sampling import choose, uniforms
from prefpipe.models.attention import Decode, Prefill, Segment, Store
from prefpipe.models.reordered_weights import PackedLinears, packed_linears

if TYPE_CHECKING:
    from prefpipe.llm.local.local_engine import LocalEngine

MIN_SHARED_TOKENS = 32
"""A common beginning that is shorter is read again for each prompt."""


OUT_OF_MEMORY = (
    "out of memory with a single prompt: ask for fewer samples or tokens of it, load the model in "
    "4-bit, or take a smaller one"
)


@dataclass(eq=False)
class Job:
    """A request on its way. index: its place in the input."""

    index: int
    request: Request
    ids: np.ndarray
    """The prompt's tokens and the prefill's."""
    prefill_ids: list[int]
    done: dict[int, Completion] = field(default_factory=dict)
    """Finished completions by sample."""

    @property
    def missing(self) -> list[int]:
        return [s for s in self.request.samples if s not in self.done]


@dataclass
class _Rows:
    """The samples under way, one element of each array a sample."""

    slot: np.ndarray
    """Which of the jobs it answers."""
    sample: np.ndarray
    age: np.ndarray
    """Tokens chosen so far; the last one's keys and values are not in the store yet."""
    tokens: np.ndarray
    """(N, T) those tokens."""
    noise: np.ndarray
    """(N, T) what each token is drawn with."""
    limit: np.ndarray
    """max_new_tokens."""
    minimum: np.ndarray
    setting: np.ndarray
    """Which of Live.settings it is drawn by."""
    has_stop: np.ndarray

    def __len__(self) -> int:
        return len(self.slot)

    def __getitem__(self, order: np.ndarray) -> "_Rows":
        return _Rows(*(getattr(self, f.name)[order] for f in fields(self)))

    def __add__(self, other: "_Rows") -> "_Rows":
        return _Rows(
            *(_joined(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )


@dataclass(frozen=True, slots=True)
class _Size:
    """What a batch needs in the store."""

    slots: int
    prompt_tokens: int
    """Of the longest prompt."""
    samples: int
    new_tokens: int
    """The most that one may get."""

    @property
    def tokens(self) -> int:
        return self.slots * self.prompt_tokens + self.samples * self.new_tokens

    def with_job(self, job: Job) -> "_Size":
        return _Size(
            self.slots + 1,
            max(self.prompt_tokens, len(job.ids)),
            self.samples + len(job.missing),
            max(self.new_tokens, job.request.max_new_tokens),
        )


class Live:
    """The batch: slot i of the store holds the prompt of jobs[i], row r the sample rows[r]."""

    def __init__(self, engine: "LocalEngine"):
        self.engine = engine
        heads, size = kv_shape(engine.config)
        self.store = Store(
            engine.config.num_hidden_layers, heads, size, engine.model.dtype, engine.model.device
        )
        self.jobs: list[Job] = []
        self.settings: list[tuple[float, int, float]] = []
        self.rows = self._new_rows([], 0)

    @functools.cached_property
    def packed(self) -> PackedLinears:
        return packed_linears(self.engine.model)

    @torch.inference_mode()
    def advance(self, pending: deque[Job]) -> list[Job]:
        """Let prompts in, or take a step; the jobs that it finished."""
        fitting = self._fitting(pending)
        jobs = self._for_one_pass(fitting)
        try:
            if jobs:
                finished = self._admit(jobs, fitting)
                for _ in jobs:
                    pending.popleft()
                return finished
            return self._step() if self.jobs else []
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len({*self.jobs, *jobs}) == 1:
                raise SystemExit(OUT_OF_MEMORY) from error
        # not in the except block: the exception holds on to the tensors of the failed pass
        pending.extendleft(reversed(self._retreat(jobs)))
        return []

    def _fitting(self, pending: deque[Job]) -> list[Job]:
        """Those for which there is room; none while so little is free that a pass doesn't pay."""
        engine, jobs = self.engine, []
        size = self._size([])
        if 8 * size.samples > 7 * engine.max_samples:
            return []
        if 8 * size.tokens > 7 * engine.max_batch_tokens:
            return []
        for job in pending:
            size = size.with_job(job)
            fits = size.samples <= engine.max_samples and size.tokens <= engine.max_batch_tokens
            if not fits and (jobs or self.jobs):
                break
            jobs.append(job)
        return jobs

    def _for_one_pass(self, jobs: list[Job]) -> list[Job]:
        tokens = itertools.accumulate(len(job.ids) for job in jobs)
        count = sum(total <= self.engine.max_prefill_tokens for total in tokens)
        return jobs[: max(count, 1)]

    def _size(self, more: list[Job]) -> "_Size":
        """Of the batch with these jobs in it, too."""
        longest = max((len(job.ids) for job in self.jobs), default=0)
        new = max((job.request.max_new_tokens for job in self.jobs), default=0)
        size = _Size(len(self.jobs), longest, len(self.rows), new)
        for job in more:
            size = size.with_job(job)
        return size

    def _admit(self, jobs: list[Job], fitting: list[Job]) -> list[Job]:
        """Read the prompts, and choose the first token of each of their samples.

        fitting: these and what will be let in next; room is made for all of them at once.
        """
        first_slot, first_row = len(self.jobs), len(self.rows)
        new = self._new_rows(jobs, first_slot)
        room = self._size(fitting)
        # in steps of 64: a slightly longer prompt does not move everything
        prompt_tokens = -(-room.prompt_tokens // 64) * 64
        self.store.reserve(room.slots, prompt_tokens, room.samples, room.new_tokens)
        ids, positions, layout, last = lay_out([job.ids for job in jobs], self.store, first_slot)
        with self.packed.used():
            logits = self.engine.forward(ids, positions, layout, last)
        logits = logits[torch.from_numpy(new.slot - first_slot).to(logits.device)]
        self.jobs, self.rows = [*self.jobs, *jobs], self.rows + new
        return self._choose(np.arange(first_row, len(self.rows)), logits)

    def _new_rows(self, jobs: list[Job], first_slot: int) -> _Rows:
        samples = [(slot, job.request, s) for slot, job in enumerate(jobs) for s in job.missing]
        longest = max((r.max_new_tokens for _, r, _ in samples), default=0)
        noise = np.zeros((len(samples), longest), dtype=np.float32)
        settings = []
        for row, (_, r, sample) in enumerate(samples):
            setting = (r.temperature, r.top_k, r.top_p) if r.temperature else (0.0, 0, 1.0)
            if setting not in self.settings:
                self.settings.append(setting)
            settings.append(self.settings.index(setting))
            if r.temperature:
                noise[row, : r.max_new_tokens] = uniforms(r.seed, r.id, sample, r.max_new_tokens)

        def column(values: Iterable[int]) -> np.ndarray:
            return np.array(list(values), dtype=np.int64)

        return _Rows(
            slot=column(slot + first_slot for slot, _, _ in samples),
            sample=column(sample for _, _, sample in samples),
            age=np.zeros(len(samples), dtype=np.int64),
            tokens=np.zeros((len(samples), longest), dtype=np.int64),
            noise=noise,
            limit=column(r.max_new_tokens for _, r, _ in samples),
            minimum=column(r.min_new_tokens for _, r, _ in samples),
            setting=column(settings),
            has_stop=column(bool(r.stop) for _, r, _ in samples).astype(bool),
        )

    def _step(self) -> list[Job]:
        rows = self.rows
        every, at = np.arange(len(rows)), rows.age - 1
        layout = Decode(self.store, rows.slot, at, np.array([len(job.ids) for job in self.jobs]))
        with self.packed.used():
            logits = self.engine.forward(rows.tokens[every, at], layout.position_N, layout, 0)
        return self._choose(every, logits)

    def _choose(self, which: np.ndarray, logits: Tensor) -> list[Job]:
        """The next token of these rows, from their logits; lets go of the rows that end with it."""
        rows, device = self.rows, logits.device
        age = rows.age[which]
        if (early := age < rows.minimum[which]).any():
            early_t = torch.from_numpy(early.nonzero()[0]).to(device)
            logits[
                early_t[:, None], torch.tensor(sorted(self.engine.end_ids)).to(device)
            ] = -torch.inf
        noise = torch.from_numpy(rows.noise[which, age]).to(device)
        chosen = np.empty(len(which), dtype=np.int64)
        for setting in np.unique(rows.setting[which]):
            temperature, top_k, top_p = self.settings[setting]
            members = (rows.setting[which] == setting).nonzero()[0]
            part = (
                slice(None) if len(members) == len(which) else torch.from_numpy(members).to(device)
            )
            chosen[members] = choose(
                logits[part], noise[part], temperature=temperature, top_k=top_k, top_p=top_p
            ).cpu()
        rows.tokens[which, age] = chosen
        rows.age[which] += 1

        at_end = np.isin(chosen, list(self.engine.end_ids))
        ended = at_end | (rows.age[which] == rows.limit[which])
        for i in (rows.has_stop[which] & ~ended).nonzero()[0]:
            ended[i] = self._has_stopped(int(which[i]))
        for i in ended.nonzero()[0]:
            self._finish(int(which[i]), bool(at_end[i]))
        return self._let_go(which[ended])

    def _has_stopped(self, row: int) -> bool:
        request, age = self.jobs[self.rows.slot[row]].request, self.rows.age[row]
        # a stop string of b bytes lies within the last b tokens; one more, since some decoders drop
        # the space in front of the first
        back = 1 + max(len(stop.encode()) for stop in request.stop)
        tail = self._text(self.rows.tokens[row, max(0, age - back) : age])
        return any(stop in tail for stop in request.stop)

    def _finish(self, row: int, at_end: bool) -> None:
        rows, job = self.rows, self.jobs[self.rows.slot[row]]
        age, sample = int(rows.age[row]), int(rows.sample[row])
        text = self._text([*job.prefill_ids, *rows.tokens[row, : age - at_end]])
        text = text[len(self._text(job.prefill_ids)) :]
        cuts = [cut for stop in job.request.stop if (cut := text.find(stop)) >= 0]
        job.done[sample] = Completion(
            id=job.request.id,
            sample=sample,
            text=job.request.prefill + text[: min(cuts, default=None)],
            finish_reason="stop" if at_end or cuts else "length",
            prompt_tokens=len(job.ids),
            new_tokens=age,
        )

    def _text(self, ids: Iterable[int]) -> str:
        return self.engine.tokenizer.decode(  # pyright: ignore[reportReturnType]
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _let_go(self, gone: np.ndarray) -> list[Job]:
        """Drop these rows, and the jobs (returned) that have none left; others close the gaps."""
        if not len(gone):
            return []
        order, to, source = _closing(len(self.rows), gone)
        self.store.move(self.store.own, to, source)
        self.rows = self.rows[order]
        idle = np.setdiff1d(np.arange(len(self.jobs)), self.rows.slot)
        finished = [self.jobs[slot] for slot in idle]
        order, to, source = _closing(len(self.jobs), idle)
        self.store.move(self.store.prompt, to, source)
        place = np.zeros(len(self.jobs), dtype=np.int64)
        place[order] = np.arange(len(order))
        self.rows.slot = place[self.rows.slot]
        self.jobs = [self.jobs[slot] for slot in order]
        return finished

    def _retreat(self, attempted: list[Job]) -> list[Job]:
        """Halve the budget after an out-of-memory; returns the live jobs that must wait."""
        engine = self.engine
        # let in, but without a first token yet
        self._let_go((self.rows.age == 0).nonzero()[0])
        size = self._size(attempted)
        engine.max_samples = max(1, min(engine.max_samples, size.samples) // 2)
        engine.max_batch_tokens = max(1, min(engine.max_batch_tokens, size.tokens) // 2)
        engine.max_prefill_tokens = max(1, engine.max_prefill_tokens // 2)
        keep = (len(self.jobs) + len(attempted)) // 2
        late = self.jobs[keep:]
        self._let_go((self.rows.slot >= keep).nonzero()[0])
        self.store.shrink(len(self.jobs), len(self.rows))
        if engine.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return late


def by_length(jobs: list[Job], longest_first: bool) -> list[Job]:
    """Sorted by length; neighbours that have half a prompt or more in common stay together."""
    groups: list[list[Job]] = []
    for job in jobs:
        before = groups[-1][-1].ids if groups else job.ids[:0]
        shared = _shared_tokens(before, job.ids)
        if shared >= MIN_SHARED_TOKENS and 2 * shared >= min(len(before), len(job.ids)):
            groups[-1].append(job)
        else:
            groups.append([job])
    groups.sort(key=lambda group: max(len(job.ids) for job in group), reverse=longest_first)
    return [job for group in groups for job in group]


def _shared_tokens(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with, not counting the last one of either."""
    long = max(min(len(a), len(b)) - 1, 0)
    differs = a[:long] != b[:long]
    return int(differs.argmax()) if differs.any() else long


def lay_out(
    prompt_ids: list[np.ndarray], store: Store, first_slot: int
) -> tuple[np.ndarray, np.ndarray, Prefill, Tensor]:
    """Token ids and positions of the row, its layout, and where each prompt's last token stands."""
    ids, positions, segments, length = [], [], [], 0

    def add(part: np.ndarray, position: int, parent: Segment | None = None) -> Segment:
        nonlocal length
        segments.append(Segment(length, length + len(part), parent))
        ids.append(part)
        positions.append(np.arange(position, position + len(part)))
        length += len(part)
        return segments[-1]

    of_prompt: list[Segment] = []
    for shared, group in _groups(prompt_ids):
        parent = add(group[0][:shared], 0) if shared else None
        of_prompt += [add(prompt[shared:], shared, parent) for prompt in group]
    last = torch.tensor([segment.stop - 1 for segment in of_prompt], device=store.device)
    layout = Prefill(segments, store, list(enumerate(of_prompt, first_slot)), keep=last)
    return np.concatenate(ids), np.concatenate(positions), layout, last


def _groups(prompt_ids: list[np.ndarray]) -> list[tuple[int, list[np.ndarray]]]:
    """Runs of prompts with the number of tokens that all of a run begin with; 0 for one alone."""
    groups: list[tuple[int, list[np.ndarray]]] = []
    for prompt in prompt_ids:
        if groups:
            before, group = groups[-1]
            shared = _shared_tokens(group[0], prompt)
            # a run is not cut down for one that shares much less, such as the instruction alone
            if shared >= MIN_SHARED_TOKENS and 2 * shared >= before:
                groups[-1] = (min(shared, before) if before else shared, [*group, prompt])
                continue
        groups.append((0, [prompt]))
    return groups


def _closing(count: int, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How `count` places close up when some go: the new order, and the moves (to, from)."""
    left = count - len(gone)
    to = np.sort(gone[gone < left])
    source = np.setdiff1d(np.arange(left, count), gone)
    order = np.arange(left)
    order[to] = source
    return order, to, source


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One behind the other; of two dimensions, filled up with zeros to the wider."""
    if a.ndim == 2:
        wide = max(a.shape[1], b.shape[1])
        a, b = (np.pad(x, ((0, 0), (0, wide - x.shape[1]))) for x in (a, b))
    return np.concatenate([a, b])


def kv_shape(config) -> tuple[int, int]:
    """Key-value heads, and their size."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads, size


def position_bytes(model: PreTrainedModel) -> int:
    """Of the keys and values of one token in all layers."""
    config = model.config.get_text_config()
    heads, size = kv_shape(config)
    return 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Of a GPU's memory what is free, of the machine's the half of it."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available // 2


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
