"""The model in this process and its keys and values: prompts are read, samples are continued.

The scheduler says which slot of the store a prompt takes, and which row a sample. Both passes put
all tokens into one row, without padding (prefpipe.models.attention).
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefpipe.models import sharing
from prefpipe.models.attention import Layout, Prefill, Segment, shared_prefix_attention
from prefpipe.models.decode import Decode
from prefpipe.models.decode_graphs import DecodeGraphs
from prefpipe.models.kv_store import KVStore
from prefpipe.models.last_layer import cut_last_layer
from prefpipe.models.loading import bare_model, embedding_rows
from prefpipe.models.memory import is_out_of_memory
from prefpipe.models.prefix_cache import common_tokens
from prefpipe.models.reordered_weights import reordered

MIN_SHARED_TOKENS = 32
"""A common beginning that is shorter is read again for each prompt."""


class Runner:
    """model: a causal LM, or one inside PEFT's wrapper."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.store = model, KVStore.of(model)
        self._linears = reordered(model)
        cut_last_layer(model)
        step = functools.partial(self._forward, keep=0)
        self._graphs = DecodeGraphs(model, self.store, step)

    def prefill(self, prompts: Sequence[Sequence[int]], first_slot: int) -> Tensor:
        """Read prompts into the slots first_slot, ...; the logits (prompts, V) behind each."""
        return self._forward(*prefill_plan(prompts, self.store, first_slot))

    def decode(
        self,
        tokens_N: np.ndarray,
        slot_N: np.ndarray,
        age_N: np.ndarray,
        prompt_tokens_S: np.ndarray,
    ) -> Tensor:
        """Read one more token of each sample; the logits (N, V) behind it. slot_N: the slot of a
        sample's prompt. age_N: its own tokens before this one. prompt_tokens_S: how many tokens
        each slot's prompt has."""
        logits = self._graphs.step(tokens_N, slot_N, age_N, prompt_tokens_S)
        if logits is None:
            layout = Decode(self.store, slot_N, age_N, prompt_tokens_S)
            logits = self._forward(tokens_N, layout.position_N, layout, 0)
        return logits

    def _forward(
        self,
        ids: np.ndarray | Tensor,
        positions: np.ndarray | Tensor,
        layout: Layout,
        keep: Tensor | int,
    ) -> Tensor:
        """Logits (K, V) in float32 at the positions to keep (0: all), of tokens that stand in one row."""
        device = self.model.device
        if self.model.training:  # eval() walks through all modules
            self.model.eval()
        with shared_prefix_attention(self.model), self._linears.used():
            outputs = self.model(
                input_ids=torch.as_tensor(ids, device=device)[None],
                position_ids=torch.as_tensor(positions, device=device)[None],
                use_cache=False,
                logits_to_keep=keep,
                layout=layout,
            )
            return outputs.logits[0].float()


def prefill_plan(
    prompts: Sequence[Sequence[int]], store: KVStore, first_slot: int
) -> tuple[np.ndarray, np.ndarray, Prefill, Tensor]:
    """Token ids and positions of the row, its layout, and where each prompt's last token stands."""
    ids, positions, segments = [], [], []

    def add(part: Sequence[int], position: int, parent: Segment | None = None) -> Segment:
        segments.append(Segment(len(ids), len(ids) + len(part), parent))
        ids.extend(part)
        positions.extend(range(position, position + len(part)))
        return segments[-1]

    of_prompt: list[Segment] = []
    for shared, group in _groups(prompts):
        parent = add(group[0][:shared], 0) if shared else None
        of_prompt += [add(prompt[shared:], shared, parent) for prompt in group]
    last = torch.tensor([segment.stop - 1 for segment in of_prompt], device=store.device)
    layout = Prefill(segments, store, list(enumerate(of_prompt, first_slot)), keep=last)
    return np.array(ids), np.array(positions), layout, last


def shared_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both prompts begin with, not counting the last one of either. 0 where that is
    too little to be read apart, since a segment has its cost, too."""
    shared = min(common_tokens(a, b), len(a) - 1, len(b) - 1)
    return shared if shared >= MIN_SHARED_TOKENS else 0


def _groups(prompts: Sequence[Sequence[int]]) -> list[tuple[int, list[Sequence[int]]]]:
    """Runs of prompts with the number of tokens that all of a run begin with; 0 for one alone."""
    groups: list[tuple[int, list[Sequence[int]]]] = []
    for prompt in prompts:
        before, group = groups[-1] if groups else (0, [prompt[:1]])
        shared = shared_tokens(group[0], prompt)
        # a run is not cut down for one that shares much less, such as the instruction alone
        if shared and 2 * shared >= before:
            groups[-1] = (min(shared, before or shared), [*group, prompt])
        else:
            groups.append((0, [prompt]))
    return groups


@torch.inference_mode()
def decodes(model: PreTrainedModel) -> bool:
    """Whether tokens that are read and continued get the logits of the model's own attention.

    More tokens than any window that the configuration names and that can be tried, and as many new
    ones as let a window move on.
    """
    config = model.config.get_text_config()
    model.eval()
    read, new = sharing.self_check_tokens(config), 8
    ids = np.random.default_rng(1).integers(0, embedding_rows(bare_model(model)), read + new)
    given = torch.from_numpy(ids)[None].to(model.device)
    want = model(given, use_cache=False).logits[0, read:].float()
    try:
        runner = Runner(model)
        runner.store.reserve(slots=1, prompt_tokens=read, rows=1, new_tokens=new)
        runner.prefill([ids[:read].tolist()], 0)
        slot, prompt_tokens = np.array([0]), np.array([read])
        # copies, since a later step may write where an earlier one's logits are
        steps = [
            runner.decode(ids[[read + age]], slot, np.array([age]), prompt_tokens)[0].clone()
            for age in range(new)
        ]
        off = (torch.stack(steps) - want).norm(dim=-1) / want.norm(dim=-1)
    except Exception as error:  # whatever a model's code raises where it is run in another way
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        words = (str(error).strip() or type(error).__name__).split("\n")[0][:80]
        sharing.say(config, f"its attention continues texts in a way of its own ({words})")
        return False
    if model.dtype == torch.float32:
        found, spread = float(off.max()), 0.0
    else:  # as in `sharing`: the middle one decides
        found, spread = float(off.median()), sharing.own_spread(model, given, read)
    good = found < sharing.tolerance(model, spread)
    if not good:
        sharing.say(
            config, f"its attention continues texts in a way of its own (off by {found:.1%})"
        )
    return good
