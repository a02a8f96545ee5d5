"""transformers in this process: each prompt is read once, for all of its samples.

A step continues every live sample by one token in one forward pass (prefpipe.models.attention).
Requests are taken from a bounded window in order of length, and given back in the order of the
input; prefpipe.llm.local.scheduler says who is in the batch.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefpipe import chat
from prefpipe.llm import Completion, Failure, Request, TokenScores
from prefpipe.llm.local.scheduler import (
    OUT_OF_MEMORY,
    Job,
    Live,
    by_length,
    free_bytes,
    is_out_of_memory,
    lay_out,
    position_bytes,
)
from prefpipe.models.attention import Decode, shared_prefix_attention
from prefpipe.models.loading import Device, Dtype, load_model, load_tokenizer
from prefpipe.models.logps import completion_logps
from prefpipe.models.packs import Pack, pack
from prefpipe.rows import Message


class LocalEngine:
    """Engine of one causal language model on one device; `open_local` makes one from a name.

    max_batch_tokens: cache positions held at once (a prompt counts once, each live sample with its
    max_new_tokens); None: from free memory. It is halved when memory runs out: the older half of
    the batch goes on, the newer starts again later and, having the same noise, in the same texts.
    max_samples: live samples at once. max_prefill_tokens: prompt tokens in one forward pass.
    None: 2,048 on a CPU, else 8,192.
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
        max_prefill_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config()
        self.end_ids = end_token_ids(model, tokenizer)
        self.max_samples = max_samples
        # a CPU is done with each of the smaller passes' tensors while they are in its caches
        self.max_prefill_tokens = max_prefill_tokens or (
            2048 if model.device.type == "cpu" else 8192
        )
        self.max_prompt_tokens = max_prompt_tokens
        _check_attention(self)
        self.max_batch_tokens = max_batch_tokens or self._tokens_that_fit()

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion] | Failure]:
        """A request's completions in the order of its samples, or why it has none."""
        results: dict[int, list[Completion] | Failure] = {}
        following = 0
        windows = self._windows(requests, results)
        pending: deque[Job] = deque()
        live = Live(self)
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
                chat.prompt_ids(tokenizer, messages),
                [chat.completion_ids(tokenizer, answer) for answer in answers],
            )
            for index, (messages, answers) in enumerate(prompted)
        )
        for result in self._logps(packs):
            if isinstance(result, Failure):
                yield result
            else:
                yield [TokenScores(float(logps.double().sum()), len(logps)) for logps in result]

    def _pack(
        self,
        index: int,
        ids: Sequence[int],
        completions: Sequence[Sequence[int]],
    ) -> Pack | Failure:
        new = max((len(completion) for completion in completions), default=0)
        if why := self._too_long(len(ids), new):
            return Failure(str(index), "prompt_too_long", why)
        return pack(ids, completions)

    def _logps(self, packs: Iterable[Pack | Failure]) -> Iterator[list[Tensor] | Failure]:
        """completion_logps of each pack, in order; a Failure is passed on."""
        waiting: list[Pack | Failure] = []
        tokens = 0
        for item in packs:
            size = 1 if isinstance(item, Failure) else len(item)
            if waiting and tokens + size > self.max_prefill_tokens:
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
        if results is None:
            self.max_prefill_tokens = max(1, sum(map(len, batch)) // 2)
            yield from self._logps(items)
        else:
            yield from (next(results) if isinstance(item, Pack) else item for item in items)

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
            if samples >= 4 * self.max_samples:
                yield by_length(jobs, longest_first)
                # up and down in turn: neighbours across windows are alike in length, too
                jobs, samples, longest_first = [], 0, not longest_first
        yield by_length(jobs, longest_first)

    def _job(self, index: int, request: Request) -> Job | Failure:
        _check(request)
        prefill_ids = chat.encode(self.tokenizer, request.prefill) if request.prefill else []
        ids = [*chat.prompt_ids(self.tokenizer, request.messages), *prefill_ids]
        if why := self._too_long(len(ids), request.max_new_tokens):
            return Failure(request.id, "prompt_too_long", why)
        return Job(index, request, np.array(ids), prefill_ids)

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
        config, dtype = self.config, self.model.dtype
        hidden = 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
        activations = self.max_prefill_tokens * hidden * dtype.itemsize
        logits = self.max_samples * config.vocab_size * 16
        free = int(0.8 * free_bytes(self.model.device)) - activations - logits
        return max(free // position_bytes(self.model), 1)

    def forward(self, ids: np.ndarray, positions: np.ndarray | Tensor, layout, keep) -> Tensor:
        """Logits (K, V) in float32 at the positions to keep, of tokens that stand in one row."""
        device = self.model.device
        if self.model.training:  # eval() walks through all modules
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


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends an answer: the chat template's end of turn, every EOS of model and tokenizer."""
    of_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = of_model if isinstance(of_model, list) else [of_model]
    ids = [*ids, chat.end_of_turn_id(tokenizer), tokenizer.eos_token_id]
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
        live = Live(engine)
        live.store.reserve(slots=1, prompt_tokens=6, rows=1, new_tokens=2)
        engine.forward(*lay_out([ids[:6]], live.store, 0))
        found = torch.zeros_like(want)
        for age in (0, 1):
            layout = Decode(live.store, np.array([0]), np.array([age]), np.array([6]))
            found = engine.forward(ids[6 + age : 7 + age], layout.position_N, layout, 0)[0]
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
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
