"""A/B preference models: the probability that one response to a prompt is better than another.

Both orders of two responses are asked, and what comparisons have in common is computed once
(prefpipe/models/trees.py). What such a model reads is in prefpipe/compare/ab_prompt.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe.compare.ab_prompt import PairwiseFormat, PairwiseTokenizer, TokenizedTurns
from prefpipe.compare.context import MAX_BATCH_TOKENS, Unscorable, run_window
from prefpipe.models import sharing, trees
from prefpipe.models.loading import bare_model, load_both, max_positions
from prefpipe.models.memory import free_bytes, position_bytes, run_batches
from prefpipe.models.prefix_cache import PrefixCache
from prefpipe.rows import Message

MOST_OUTSIDE = 0.5
"""Mean probability on neither A nor B from which on a model is no pairwise model."""


@dataclass(frozen=True, slots=True)
class Preferred:
    """One comparison, asked in both orders."""

    p: float
    """P(first response is better), the mean of both orders."""
    p_given: float
    """With the first response as A."""
    p_swapped: float
    """With the first response as B; equal to p_given for a model without position bias."""
    outside: float
    """Probability that is neither on A nor on B, the mean of both orders."""


@dataclass(eq=False)
class PairwiseModel:
    """Compares responses to a prompt; what comparisons share is computed once."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    format: PairwiseFormat
    _: KW_ONLY
    share_prompts: bool = True
    max_batch_tokens: int = MAX_BATCH_TOKENS
    is_trusted: bool = True
    """Whether it is known to answer A or B; if not, it must put MOST_OUTSIDE at most elsewhere."""

    def __post_init__(self) -> None:
        self.model.eval()
        self.outside: list[float] = []
        """Of each comparison so far."""
        self.tokenize = PairwiseTokenizer(self.tokenizer, self.format.max_length)
        self.temperature = self.format.temperature

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether it is asked to, and can: tried out on first use."""
        return self.share_prompts and sharing.shares(self.model)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> "PairwiseModel":
        """From a folder that this pipeline wrote, or a published checkpoint of the format.

        max_length, temperature: for a model that brings no format of its own; a temperature that
        is given holds for both. options: load_in_4bit; without_weights, for one that is served elsewhere.
        """
        own = PairwiseFormat.load(Path(name))
        model, tokenizer = load_both(name, **options)
        limit = max_positions(bare_model(model))
        own = own or PairwiseFormat(min(max_length or limit, limit))
        own = PairwiseFormat(own.max_length, temperature or own.temperature)
        return cls(model, tokenizer, own, is_trusted=False)

    def compare(
        self,
        questions: Iterable[tuple[str | list[Message], Sequence[str], Sequence[tuple[int, int]]]],
        cache: PrefixCache | None = None,
    ) -> Iterator[list[Preferred] | Unscorable]:
        """For each (prompt, responses, pairs of their indices) what is preferred; streams.

        cache: new_cache(), and given again for further pairs of the same questions.
        """
        window: list[list[list[int]] | Unscorable] = []
        tokens = 0
        for prompt, responses, pairs in questions:
            both = [order for a, b in pairs for order in ((a, b), (b, a))]
            turns = self.tokenize(prompt, responses, both) if both else TokenizedTurns([], 0, 0)
            window.append(turns if isinstance(turns, Unscorable) else turns.rows)
            tokens += 0 if isinstance(turns, Unscorable) else sum(map(len, turns.rows))
            if tokens >= 16 * self.max_batch_tokens:
                yield from self._compare_window(window, cache)
                window, tokens = [], 0
        yield from self._compare_window(window, cache)

    def _compare_window(
        self, window: list[list[list[int]] | Unscorable], cache: PrefixCache | None
    ) -> Iterator[list[Preferred] | Unscorable]:
        for logps in run_window(window, partial(self.label_logps, cache=cache)):
            if isinstance(logps, Unscorable):
                yield logps
                continue
            yield self.preferences_of(logps)
        self.check_outside()

    def preferences_of(self, logps: Sequence[tuple[float, float]]) -> list[Preferred]:
        """Comparisons out of the label_logps of both orders of each, one behind the other."""
        preferred = [*map(self._preferred, logps[::2], logps[1::2])]
        self.outside += [each.outside for each in preferred]
        return preferred

    def check_outside(self) -> None:
        """SystemExit for a model that answers neither A nor B: what is left would say nothing."""
        mean = sum(self.outside) / max(1, len(self.outside))
        if mean > MOST_OUTSIDE and not self.is_trusted:
            raise SystemExit(
                f"{self.tokenizer.name_or_path}: {mean:.0%} of its probability is on neither A nor B (at "
                f"most {MOST_OUTSIDE:.0%} may be): it is no pairwise model of this format; take one, or "
                "train one with train_pairwise_model.py"
            )

    def _preferred(self, given: tuple[float, float], swapped: tuple[float, float]) -> Preferred:
        p_given = _first_of_two(given[0], given[1], self.temperature)
        p_swapped = _first_of_two(swapped[1], swapped[0], self.temperature)
        outside = [1 - float(np.exp(a) + np.exp(b)) for a, b in (given, swapped)]
        return Preferred((p_given + p_swapped) / 2, p_given, p_swapped, max(0.0, sum(outside) / 2))

    def label_logps(
        self, rows: Sequence[Sequence[int]], cache: PrefixCache | None = None
    ) -> list[tuple[float, float]]:
        """(log p(A), log p(B)) of the token behind each row."""
        one_by_one = ([i] for i in range(len(rows)))
        in_trees = trees.tree_batches(rows, self.max_batch_tokens)
        batches = in_trees if self.shares_prompts else one_by_one
        return run_batches(partial(self._read, cache), rows, batches, cache)

    def new_cache(self) -> PrefixCache:
        """For the keys and values of two or three batches, where a quarter of the free memory suffices.

        Of none where prompts are not shared.
        """
        if not self.shares_prompts:
            return PrefixCache(0)
        fitting = free_bytes(self.model.device) // 4 // position_bytes(bare_model(self.model))
        return PrefixCache(min(2 * self.max_batch_tokens, fitting))

    @torch.inference_mode()
    def _read(
        self, cache: PrefixCache | None, rows: list[Sequence[int]]
    ) -> list[tuple[float, float]]:
        """label_logps of one batch; of one row where prompts are not shared."""
        if self.shares_prompts:
            outputs, _ = trees.run_tree(self.model, rows, cache=cache, only_last=True)
            logits_N_V = outputs.logits[0]
        else:
            ids = torch.tensor(rows, device=self.model.device)
            logits_N_V = self.model(input_ids=ids).logits[:, -1]
        logps = logits_N_V.float().log_softmax(-1)[:, [*self.tokenize.labels]].tolist()
        return [(a, b) for a, b in logps]


def _first_of_two(first: float, second: float, temperature: float) -> float:
    return float(1 / (1 + np.exp((second - first) / temperature)))
