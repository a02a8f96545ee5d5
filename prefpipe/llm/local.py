"""transformers in this process: each prompt is read once, for all of its samples.

A step continues every live sample by one token in one forward pass (prefpipe.llm.shared_prefix).
Samples that end leave the batch, prompts that end make room for the next ones. Requests are taken
from a bounded window in order of length, and given back in the order of the input.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefpipe import prompts
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.sampling import choose, uniforms
from prefpipe.llm.scoring import completion_logps, next_token_logps
from prefpipe.llm.shared_prefix import Decode, Prefill, Segment, Store, shared_prefix_attention
from prefpipe.packing import Pack, pack
from prefpipe.rows import Message
from prefpipe.training.loading import Device, Dtype, load_model, load_tokenizer

MIN_SHARED_TOKENS = 32
"""A common beginning that is shorter is read again for each prompt."""


OUT_OF_MEMORY = (
    "out of memory with a single prompt: ask for fewer samples or tokens of it, load the model in "
    "4-bit, or take a smaller one"
)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model makes of one given text."""

    sum_logp: float
    """Sum of its tokens' log-probabilities (nats)."""
    n_tokens: int
    """The end of turn counts."""


@dataclass(eq=False)
class _Job:
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


class LocalEngine:
    """Engine of one causal language model on one device; `open_local` makes one from a name.

    max_batch_tokens: cache positions held at once (a prompt counts once, each live sample with its
    max_new_tokens); None: from free memory. It is halved when memory runs out: the older half of
    the batch goes on, the newer starts again later and, having the same noise, in the same texts.
    max_samples: live samples at once. max_prefill_tokens: prompt tokens in one forward pass.
    max_prompt_tokens: a longer prompt is a Failure; None: only the model's own limit counts.

    A text is shaped by its Request alone: of the model's generation_config the end tokens count,
    but no temperature, top_p, top_k or penalty.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_tokens: int | None = None,
        max_samples: int = 512,
        max_prefill_tokens: int = 8192,
        max_prompt_tokens: int | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config()
        self.end_ids = end_token_ids(model, tokenizer)
        self.max_samples = max_samples
        self.max_prefill_tokens = max_prefill_tokens
        self.max_prompt_tokens = max_prompt_tokens
        _check_attention(self)
        self.max_batch_tokens = max_batch_tokens or self._tokens_that_fit()

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion] | Failure]:
        """A request's completions in the order of its samples, or why it has none."""
        results: dict[int, list[Completion] | Failure] = {}
        following = 0
        windows = self._windows(requests, results)
        pending: deque[_Job] = deque()
        live = _Live(self)
        reading = True
        while reading or pending or live.jobs:
            if reading and not pending:
                window = next(windows, None)
                reading = window is not None
                pending.extend(window or ())
            for job in live.advance(pending):
                results[job.index] = [job.done[s] for s in job.request.samples]
            while following in results:
                yield results.pop(following)
                following += 1

    def score(
        self, prompted: Iterable[tuple[Sequence[Message], Sequence[str]]]
    ) -> Iterator[list[TokenScores] | Failure]:
        """Of each (messages, answers): the answers' log-probabilities, end of turn included.

        A Failure (its id is the place in the input, from 0) where an answer does not fit.
        """
        tokenizer = self.tokenizer
        packs = (
            self._pack(
                index,
                prompts.prompt_ids(tokenizer, messages),
                [prompts.completion_ids(tokenizer, answer) for answer in answers],
            )
            for index, (messages, answers) in enumerate(prompted)
        )
        for result in self._in_batches(packs, lambda batch: completion_logps(self.model, batch)):
            if isinstance(result, Failure):
                yield result
            else:
                yield [TokenScores(float(logps.double().sum()), len(logps)) for logps in result]

    def next_token_logps(
        self,
        prompted: Iterable[tuple[Sequence[int], Sequence[Sequence[int]]]],
        token_ids: Sequence[int],
    ) -> Iterator[Tensor | Failure]:
        """Of each (prompt's token ids, continuations' token ids): log-probabilities of token_ids
        as the next token behind each continuation (continuations, token_ids).

        A continuation may be empty. Both orders of a comparison are two continuations of what they
        begin with alike.
        """
        packs = (
            self._pack(index, ids, continuations, with_last=True)
            for index, (ids, continuations) in enumerate(prompted)
        )
        return self._in_batches(packs, lambda batch: next_token_logps(self.model, batch, token_ids))

    def _pack(
        self,
        index: int,
        ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        with_last: bool = False,
    ) -> Pack | Failure:
        new = max((len(completion) for completion in completions), default=0)
        if why := self._too_long(len(ids), new):
            return Failure(str(index), "prompt_too_long", why)
        return pack(ids, completions, with_last=with_last)

    def _in_batches(
        self, packs: Iterable[Pack | Failure], run: Callable[[list[Pack]], list[Any]]
    ) -> Iterator[Any]:
        """run's result for each pack, in order; a Failure is passed on."""
        waiting: list[Pack | Failure] = []
        tokens = 0
        for item in packs:
            size = 0 if isinstance(item, Failure) else len(item)
            if waiting and tokens + size > self.max_prefill_tokens:
                yield from self._run_batch(waiting, run)
                waiting, tokens = [], 0
            waiting.append(item)
            tokens += size
        yield from self._run_batch(waiting, run)

    def _run_batch(
        self, items: list[Pack | Failure], run: Callable[[list[Pack]], list[Any]]
    ) -> Iterator[Any]:
        batch = [item for item in items if isinstance(item, Pack)]
        try:
            results = iter(run(batch) if batch else [])
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise SystemExit(OUT_OF_MEMORY) from error
            results = None
        if results is None:
            self.max_prefill_tokens = max(1, sum(map(len, batch)) // 2)
            yield from self._in_batches(items, run)
        else:
            yield from (next(results) if isinstance(item, Pack) else item for item in items)

    def _windows(self, requests: Iterable[Request], results: dict) -> Iterator[list[_Job]]:
        """Some batches' worth of requests at a time, in order of length; failures go to results."""
        jobs, samples, longest_first = [], 0, True
        for index, request in enumerate(requests):
            job = self._job(index, request)
            if isinstance(job, Failure):
                results[index] = job
            else:
                jobs.append(job)
            samples += len(request.samples)
            if samples >= 4 * self.max_samples:
                yield _by_length(jobs, longest_first)
                # up and down in turn: neighbours across windows are alike in length, too
                jobs, samples, longest_first = [], 0, not longest_first
        yield _by_length(jobs, longest_first)

    def _job(self, index: int, request: Request) -> _Job | Failure:
        _check(request)
        prefill_ids = prompts.encode(self.tokenizer, request.prefill) if request.prefill else []
        ids = [*prompts.prompt_ids(self.tokenizer, request.messages), *prefill_ids]
        if why := self._too_long(len(ids), request.max_new_tokens):
            return Failure(request.id, "prompt_too_long", why)
        return _Job(index, request, np.array(ids), prefill_ids)

    def _too_long(self, prompt_tokens: int, new_tokens: int) -> str:
        """Why that much does not fit; empty where it does."""
        most, positions = self.max_prompt_tokens, self.config.max_position_embeddings
        if most is not None and prompt_tokens > most:
            return f"the prompt has {prompt_tokens} tokens, max_prompt_tokens is {most}"
        if prompt_tokens + new_tokens > positions:
            return (
                f"the prompt has {prompt_tokens} tokens, the answer up to {new_tokens}: more than "
                f"the model's {positions} positions"
            )
        return ""

    def _tokens_that_fit(self) -> int:
        """Cache positions for which memory is free, a fifth and the activations left out."""
        config, device, dtype = self.config, self.model.device, self.model.dtype
        if device.type == "cuda":
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + cached
        else:
            free = psutil.virtual_memory().available // 2
        hidden = 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
        activations = self.max_prefill_tokens * hidden * dtype.itemsize
        logits = self.max_samples * config.vocab_size * 16
        heads, size = _kv_shape(config)
        position = 2 * config.num_hidden_layers * heads * size * dtype.itemsize
        return max(int(0.8 * free - activations - logits) // position, 1)

    def _forward(self, ids: np.ndarray, positions: np.ndarray | Tensor, layout, keep) -> Tensor:
        """Logits (K, V) in float32 at the positions to keep, of tokens that stand in one row."""
        device = self.model.device
        self.model.eval()
        with shared_prefix_attention(self.model):
            return (
                self.model(
                    input_ids=torch.as_tensor(ids, device=device)[None],
                    position_ids=torch.as_tensor(positions, device=device)[None],
                    use_cache=False,
                    logits_to_keep=keep,
                    layout=layout,
                )
                .logits[0]
                .float()
            )


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
    """Which of _Live.settings it is drawn by."""
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

    def with_job(self, job: _Job) -> "_Size":
        return _Size(
            self.slots + 1,
            max(self.prompt_tokens, len(job.ids)),
            self.samples + len(job.missing),
            max(self.new_tokens, job.request.max_new_tokens),
        )


class _Live:
    """The batch: slot i of the store holds the prompt of jobs[i], row r the sample rows[r]."""

    def __init__(self, engine: LocalEngine):
        self.engine = engine
        heads, size = _kv_shape(engine.config)
        self.store = Store(
            engine.config.num_hidden_layers, heads, size, engine.model.dtype, engine.model.device
        )
        self.jobs: list[_Job] = []
        self.settings: list[tuple[float, int, float]] = []
        self.rows = self._new_rows([], 0)

    @torch.inference_mode()
    def advance(self, pending: deque[_Job]) -> list[_Job]:
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
            if not _is_out_of_memory(error):
                raise
            if len({*self.jobs, *jobs}) == 1:
                raise SystemExit(OUT_OF_MEMORY) from error
        # not in the except block: the exception holds on to the tensors of the failed pass
        pending.extendleft(reversed(self._retreat(jobs)))
        return []

    def _fitting(self, pending: deque[_Job]) -> list[_Job]:
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

    def _for_one_pass(self, jobs: list[_Job]) -> list[_Job]:
        tokens = itertools.accumulate(len(job.ids) for job in jobs)
        count = sum(total <= self.engine.max_prefill_tokens for total in tokens)
        return jobs[: max(count, 1)]

    def _size(self, more: list[_Job]) -> "_Size":
        """Of the batch with these jobs in it, too."""
        longest = max((len(job.ids) for job in self.jobs), default=0)
        new = max((job.request.max_new_tokens for job in self.jobs), default=0)
        size = _Size(len(self.jobs), longest, len(self.rows), new)
        for job in more:
            size = size.with_job(job)
        return size

    def _admit(self, jobs: list[_Job], fitting: list[_Job]) -> list[_Job]:
        """Read the prompts, and choose the first token of each of their samples.

        fitting: these and what will be let in next; room is made for all of them at once.
        """
        first_slot, first_row = len(self.jobs), len(self.rows)
        new = self._new_rows(jobs, first_slot)
        room = self._size(fitting)
        # in steps of 64: a slightly longer prompt does not move everything
        prompt_tokens = -(-room.prompt_tokens // 64) * 64
        self.store.reserve(room.slots, prompt_tokens, room.samples, room.new_tokens)
        ids, positions, layout, last = _lay_out([job.ids for job in jobs], self.store, first_slot)
        logits = self.engine._forward(ids, positions, layout, last)
        logits = logits[torch.from_numpy(new.slot - first_slot).to(logits.device)]
        self.jobs, self.rows = [*self.jobs, *jobs], self.rows + new
        return self._choose(np.arange(first_row, len(self.rows)), logits)

    def _new_rows(self, jobs: list[_Job], first_slot: int) -> _Rows:
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

    def _step(self) -> list[_Job]:
        rows = self.rows
        every, at = np.arange(len(rows)), rows.age - 1
        layout = Decode(self.store, rows.slot, at, np.array([len(job.ids) for job in self.jobs]))
        logits = self.engine._forward(rows.tokens[every, at], layout.position_N, layout, 0)
        return self._choose(every, logits)

    def _choose(self, which: np.ndarray, logits: Tensor) -> list[_Job]:
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

    def _let_go(self, gone: np.ndarray) -> list[_Job]:
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

    def _retreat(self, attempted: list[_Job]) -> list[_Job]:
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


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends an answer: the chat template's end of turn, every EOS of model and tokenizer."""
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = of_model if isinstance(of_model, list) else [of_model]
    ids = [*ids, prompts.end_of_turn_id(tokenizer), tokenizer.eos_token_id]
    return frozenset(i for i in ids if isinstance(i, int))


@torch.inference_mode()
def _check_attention(engine: LocalEngine) -> None:
    """Eight tokens, read and continued, must get the logits of the model's own attention.

    A model may have what this engine's has not (attention sinks, softcaps, state-space layers), or
    not call it at all; then it would write wrong texts without a word.
    """
    model, name = engine.model, engine.config.model_type
    rope = str(getattr(engine.config, "rope_parameters", None))
    if "'dynamic'" in rope or "'longrope'" in rope:
        raise SystemExit(
            f"{name}: its position encoding changes with the longest text of a batch, so that a "
            "text would depend on its batch mates; use engine server for this model"
        )
    model.eval()
    ids = np.arange(8) % engine.config.vocab_size
    want = model(torch.from_numpy(ids)[None].to(model.device), use_cache=False).logits[0, -1]
    try:
        live = _Live(engine)
        live.store.reserve(slots=1, prompt_tokens=6, rows=1, new_tokens=2)
        engine._forward(*_lay_out([ids[:6]], live.store, 0))
        found = torch.zeros_like(want)
        for age in (0, 1):
            layout = Decode(live.store, np.array([0]), np.array([age]), np.array([6]))
            found = engine._forward(ids[6 + age : 7 + age], layout.position_N, layout, 0)[0]
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise SystemExit(
            f"{name}: the local engine cannot run this model's attention ({error}); use engine "
            "server for it"
        ) from error
    off = (found - want.float()).norm() / want.float().norm()
    if not off < (1e-3 if model.dtype == torch.float32 else 0.05):
        raise SystemExit(
            f"{name}: the local engine's attention is not this model's (its logits are off by "
            f"{off:.1%}); use engine server for it"
        )


def _check(request: Request) -> None:
    wrong = [
        f"{name} {value} is not {wanted}"
        for name, value, good, wanted in (
            ("max_new_tokens", request.max_new_tokens, request.max_new_tokens >= 1, ">= 1"),
            ("temperature", request.temperature, request.temperature >= 0, ">= 0"),
            ("top_p", request.top_p, 0 < request.top_p <= 1, "in (0, 1]"),
            ("top_k", request.top_k, request.top_k >= 0, ">= 0 (0: all tokens)"),
            (
                "samples",
                request.samples,
                0 < len(set(request.samples)) == len(request.samples),
                "one or more distinct numbers",
            ),
            ("stop", request.stop, all(request.stop), "without empty strings"),
        )
        if not good
    ]
    if wrong:
        raise ValueError(f"request {request.id}: {'; '.join(wrong)}")


def _by_length(jobs: list[_Job], longest_first: bool) -> list[_Job]:
    """Sorted by length; neighbours that have half a prompt or more in common stay together."""
    groups: list[list[_Job]] = []
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


def _lay_out(
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
    layout = Prefill(segments, store, list(enumerate(of_prompt, first_slot)))
    last = torch.tensor([segment.stop - 1 for segment in of_prompt])
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


def _kv_shape(config) -> tuple[int, int]:
    """Key-value heads, and their size."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads, size


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def open_local(
    name: str | Path,
    *,
    adapter: Path | None = None,
    dtype: Dtype = "auto",
    load_in_4bit: bool | None = None,
    device: Device = "auto",
    max_batch_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
) -> LocalEngine:
    """The engine of a model folder, a LoRA folder or a hub name; see load_model and LocalEngine."""
    model = load_model(name, adapter=adapter, dtype=dtype, load_in_4bit=load_in_4bit, device=device)
    return LocalEngine(
        model,
        load_tokenizer(name),
        max_batch_tokens=max_batch_tokens,
        max_prompt_tokens=max_prompt_tokens,
    )
