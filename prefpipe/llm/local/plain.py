"""transformers' own way, for models whose texts cannot share a row: one prompt at a time.

The tokens are drawn as the engine draws them, with the same noise, so that a text depends on its
request alone here, too. What a cache must hold (states, latents, windows) is the model's affair.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from prefpipe.llm import Request
from prefpipe.llm.local.decode_rows import Sampling
from prefpipe.llm.local.scheduler import OUT_OF_MEMORY
from prefpipe.llm.local.schema_masks import SchemaMasks
from prefpipe.llm.local.token_choice import choose, uniforms
from prefpipe.models.memory import is_out_of_memory


class _Draw(LogitsProcessor):
    """Leaves the one token that is drawn, so that greedy search takes it."""

    def __init__(
        self,
        request: Request,
        samples: Sequence[int],
        prompt_tokens: int,
        end_ids: list[int],
        masks: SchemaMasks | None,
    ) -> None:
        self.masks = masks if request.reply_schema else None
        self.matchers: list[Any] = []
        self.request, self.prompt_tokens, self.end_ids = request, prompt_tokens, end_ids
        self.sampling = Sampling.of(request)
        noise = [uniforms(request.seed, request.id, s, request.max_new_tokens) for s in samples]
        self.noise_N_T = torch.from_numpy(np.stack(noise))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        age = input_ids.shape[1] - self.prompt_tokens
        logits = scores.float()
        if age < self.request.min_new_tokens:
            logits[:, self.end_ids] = -torch.inf
        if self.masks:
            self._hold(input_ids, logits, age)
        noise = self.noise_N_T[:, age].to(logits.device)
        chosen = choose(logits, noise, **self.sampling._asdict())
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def _hold(self, input_ids: Tensor, logits: Tensor, age: int) -> None:
        """Leave each row what its schema allows; one that has ended may have any token."""
        assert self.masks and self.request.reply_schema
        if not age:
            begin = self.masks.begin
            self.matchers = [begin(self.request.reply_schema, logits.shape[-1]) for _ in logits]
        else:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if token in self.end_ids:
                    self.matchers[row] = None
                elif self.matchers[row]:
                    self.matchers[row].consume_token(token)
        SchemaMasks.mask(logits, self.matchers)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    request: Request,
    ids: Sequence[int],
    samples: Sequence[int],
    ends: list[int],
    masks: SchemaMasks | None = None,
) -> list[list[int]]:
    """The new tokens of each sample, its end token included. In halves where memory is short."""
    model.eval()
    config = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    prompt = torch.tensor([list(ids)] * len(samples), device=model.device)
    try:
        rows = model.generate(  # pyright: ignore[reportCallIssue]
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Draw(request, samples, len(ids), ends, masks)]),
        )[:, len(ids) :].tolist()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(samples) == 1:
            raise SystemExit(OUT_OF_MEMORY) from error
        rows = None
    if rows is None:
        half = len(samples) // 2
        return [
            row
            for part in (samples[:half], samples[half:])
            for row in sample(model, request, ids, part, ends, masks)
        ]
    return [_to_its_end(row, ends) for row in rows]


def _to_its_end(tokens: list[int], ends: list[int]) -> list[int]:
    stop = next((k for k, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: stop + 1]


@torch.inference_mode()
def logps(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Log-probabilities (C,) of a completion's tokens, by a plain forward pass over the row."""
    model.eval()
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    labels = ids[0, len(prompt) :, None]
    return logits.gather(-1, labels)[:, 0].cpu() - logits.logsumexp(-1).cpu()
