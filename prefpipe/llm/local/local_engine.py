"""transformers in this process: each prompt is read once, for all of its samples.

Requests are taken from a bounded window in order of length, and given back in the order of the input.
The scheduler says who is in the batch, the runner has the forward passes. A model that cannot be run
so (prefpipe.models.sharing) writes one prompt's samples at a time, by its own code (plain.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefpipe import chat
from prefpipe.llm import Completion, Failure, Request, Result, TokenScores
from prefpipe.llm.local import plain
from prefpipe.llm.local.decode_rows import Job
from prefpipe.llm.local.prompt_reader import PromptReader
from prefpipe.llm.local.runner import Runner, decodes, shared_tokens
from prefpipe.llm.local.scheduler import OUT_OF_MEMORY, Limits, Scheduler
from prefpipe.llm.local.schema_masks import SchemaMasks
from prefpipe.models import sharing
from prefpipe.models.classifiers import is_causal
from prefpipe.models.loading import Dtype, bare_model, load_both, max_positions
from prefpipe.models.logps import completion_logps, scales_logits
from prefpipe.models.memory import free_bytes, is_out_of_memory, position_bytes
from prefpipe.models.packs import Pack, pack
from prefpipe.rows import Message


class LocalEngine:
    """Engine of one causal language model on one device; `open_local` makes one from a name.

    max_batch_tokens: positions of keys and values held at once (a prompt counts once, each live sample
    with its max_new_tokens); None: from free memory. It is halved when memory runs out: the older half
    of the batch goes on, the newer starts again later and, having the same noise, in the same texts.
    max_samples: live samples at once. max_prefill_tokens: prompt tokens in one forward pass; None:
    2,048 on a CPU, else 8,192.

    structured_output: replies are held to the schema of their request, where it has one.

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
        max_prefill_tokens: int | None = None,
        structured_output: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        bare = bare_model(model)
        if not is_causal(bare):
            raise SystemExit(
                f"{tokenizer.name_or_path}: its tokens see later ones: it writes no text"
            )
        self.reader = PromptReader(tokenizer, max_positions(bare))
        self.end_ids = end_token_ids(model, tokenizer)
        self.masks = SchemaMasks(tokenizer, sorted(self.end_ids)) if structured_output else None
        self.is_plain = not (sharing.shares(model) and decodes(model))
        if self.is_plain:
            bare.generation_config = (
                GenerationConfig()
            )  # what a Request leaves out is not taken there
            self.limits = Limits(1, max_samples, 1)
            return
        # a CPU is done with each of the smaller passes' tensors while they are in its caches
        prefill_tokens = max_prefill_tokens or (2048 if model.device.type == "cpu" else 8192)
        batch_tokens = max_batch_tokens or _tokens_that_fit(model, max_samples, prefill_tokens)
        self.limits = Limits(batch_tokens, max_samples, prefill_tokens)

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """A request's completions in the order of its samples, or why it has none."""
        if self.is_plain:
            yield from (self._plain(index, request) for index, request in enumerate(requests))
            return
        results: dict[int, Result] = {}
        windows = self._windows(requests, results)
        scheduler = Scheduler(Runner(self.model), self.limits, self.end_ids, self.masks)
        following, reading = 0, True
        while reading or scheduler.waiting or scheduler.running:
            # 1) The next window, once no job of the last one waits.
            if reading and not scheduler.waiting:
                window = next(windows, None)
                reading = window is not None
                scheduler.waiting.extend(window or ())
            # 2) A step.
            for job in scheduler.step():
                results[job.index] = [self._completion(job, s) for s in job.request.samples]
            # 3) What is finished, in the order of the input.
            while following in results:
                yield results.pop(following)
                following += 1

    def _plain(self, index: int, request: Request) -> Result:
        job = self._job(index, request)
        if isinstance(job, Failure):
            return job
        ends, most, masks = sorted(self.end_ids), self.limits.samples, self.masks
        for start in range(0, len(request.samples), most):
            part = request.samples[start : start + most]
            job.done |= zip(
                part, plain.sample(self.model, request, job.ids, part, ends, masks), strict=True
            )
        return [self._completion(job, sample) for sample in request.samples]

    def score(
        self, prompted: Iterable[tuple[Sequence[Message], Sequence[str]]]
    ) -> Iterator[list[TokenScores] | Failure]:
        """The log-probabilities of each (messages, answers)' answers, end of turn included. A
        Failure (its id is the number in the input, from 0) where an answer does not fit."""
        packs = (self._pack(index, *prompt) for index, prompt in enumerate(prompted))
        for result in self._logps(packs):
            if isinstance(result, Failure):
                yield result
            else:
                yield [TokenScores(float(logps.double().sum()), len(logps)) for logps in result]

    def _pack(
        self, index: int, messages: Sequence[Message], answers: Sequence[str]
    ) -> Pack | Failure:
        completions = self.reader.completions(answers)
        new = max(map(len, completions), default=0)
        ids = self.reader.read(str(index), messages, new)
        return ids if isinstance(ids, Failure) else pack(ids, completions)

    def _logps(self, packs: Iterable[Pack | Failure]) -> Iterator[list[Tensor] | Failure]:
        """completion_logps of each pack, in order; a Failure is passed on."""
        if self.is_plain or scales_logits(self.model):
            yield from (p if isinstance(p, Failure) else self._plain_logps(p) for p in packs)
            return
        waiting: list[Pack | Failure] = []
        tokens = 0
        for item in packs:
            size = 1 if isinstance(item, Failure) else len(item)
            if waiting and tokens + size > self.limits.prefill_tokens:
                yield from self._logps_of(waiting)
                waiting, tokens = [], 0
            waiting.append(item)
            tokens += size
        yield from self._logps_of(waiting)

    def _logps_of(self, items: list[Pack | Failure]) -> Iterator[list[Tensor] | Failure]:
        batch = [item for item in items if isinstance(item, Pack)]
        try:
            results = iter(completion_logps(self.model, batch) if batch else [])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise SystemExit(OUT_OF_MEMORY) from error
            results = None
        if results:
            yield from (next(results) if isinstance(item, Pack) else item for item in items)
        else:
            self.limits.prefill_tokens = max(1, sum(map(len, batch)) // 2)
            yield from self._logps(items)

    def _plain_logps(self, item: Pack) -> list[Tensor]:
        ids = item.input_ids_T
        rows = [torch.cat([ids[a:b], item.labels_T[b - 1 : b]]).tolist() for a, b in item.spans]
        head = ids[: item.spans[0][0]].tolist() if item.spans else []
        return [plain.logps(self.model, [*head, row[0]], row[1:]) for row in rows]

    def _windows(self, requests: Iterable[Request], results: dict) -> Iterator[list[Job]]:
        """Some batches' worth of requests at a time, in order of length; failures go to results."""
        jobs, samples, longest_first = [], 0, True
        for index, request in enumerate(requests):
            job = self._job(index, request)
            if isinstance(job, Failure):
                results[index] = job
            else:
                jobs.append(job)
            samples += len(request.samples)
            if samples >= 4 * self.limits.samples:
                yield by_length(jobs, longest_first)
                # up and down in turn: neighbours across windows are alike in length, too
                jobs, samples, longest_first = [], 0, not longest_first
        yield by_length(jobs, longest_first)

    def _job(self, index: int, request: Request) -> Job | Failure:
        _check(request)
        ids = self.reader.read(request.id, request.messages, request.max_new_tokens)
        return ids if isinstance(ids, Failure) else Job(index, request, ids)

    def _completion(self, job: Job, sample: int) -> Completion:
        tokens = job.done[sample]
        at_end = tokens[-1] in self.end_ids
        kept = tokens[: len(tokens) - at_end]
        text = self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Completion(
            id=job.request.id,
            sample=sample,
            text=str(text),
            finish_reason="stop" if at_end else "length",
            prompt_tokens=len(job.ids),
            new_tokens=len(tokens),
        )


def by_length(jobs: list[Job], longest_first: bool) -> list[Job]:
    """Sorted by length; neighbours that have half a prompt or more in common stay together."""
    groups: list[list[Job]] = []
    for job in jobs:
        before = groups[-1][-1].ids if groups else job.ids[:1]
        shared = shared_tokens(before, job.ids)
        if not shared or 2 * shared < min(len(before), len(job.ids)):
            groups.append([])
        groups[-1].append(job)
    groups.sort(key=lambda group: max(len(job.ids) for job in group), reverse=longest_first)
    return [job for group in groups for job in group]


def _tokens_that_fit(model: PreTrainedModel, max_samples: int, max_prefill_tokens: int) -> int:
    """Positions whose keys and values fit into free memory, a fifth and the activations left out."""
    config = model.config.get_text_config()
    hidden = 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    activations = max_prefill_tokens * hidden * model.dtype.itemsize
    logits = max_samples * config.vocab_size * 16
    free = int(0.8 * free_bytes(model.device)) - activations - logits
    return max(free // position_bytes(model), 1)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends an answer: the chat template's end of turn, every EOS of model and tokenizer."""
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = of_model if isinstance(of_model, list) else [of_model]
    ids = [*ids, chat.end_of_turn_id(tokenizer), tokenizer.eos_token_id]
    return frozenset(i for i in ids if isinstance(i, int))


def _check(request: Request) -> None:
    distinct = 0 < len(set(request.samples)) == len(request.samples)
    rules = (
        ("max_new_tokens", request.max_new_tokens >= 1, ">= 1"),
        ("temperature", request.temperature >= 0, ">= 0"),
        ("top_p", 0 < request.top_p <= 1, "in (0, 1]"),
        ("top_k", request.top_k >= 0, ">= 0 (0: all tokens)"),
        ("samples", distinct, "one or more distinct numbers"),
    )
    wrong = [
        f"{name} {getattr(request, name)} is not {want}" for name, good, want in rules if not good
    ]
    if wrong:
        raise ValueError(f"request {request.id}: {'; '.join(wrong)}")


def open_local(
    name: str | Path, *, load_in_4bit: bool | None = None, dtype: Dtype = "auto", **options: Any
) -> LocalEngine:
    """The engine of a model folder, a LoRA folder or a hub name; see load_model and LocalEngine,
    whose options these are."""
    model, tokenizer = load_both(name, load_in_4bit=load_in_4bit, dtype=dtype)
    return LocalEngine(model, tokenizer, **options)
