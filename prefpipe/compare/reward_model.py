"""Reward models: the score that they give, by a trained head or by a linear probe of frozen layers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe.compare.context import MAX_BATCH_TOKENS, Unscorable, run_window
from prefpipe.compare.reward_tokens import RewardFormat, RewardTokenizer
from prefpipe.files import DataError
from prefpipe.models import packs, probes, sharing, trees
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import bare_model, max_positions
from prefpipe.models.memory import run_batches
from prefpipe.models.model_files import is_probe
from prefpipe.rows import Message

_WINDOW = 64
"""Batches that are collected and sorted by length, where prompts are not shared."""


@dataclass(eq=False)
class RewardModel:
    """Scores the responses to a prompt, each prompt computed once."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    format: RewardFormat
    is_causal: bool
    pad_id: int | None = None
    """See RewardTokenizer."""
    _: KW_ONLY
    has_types: bool = False
    """Whether an encoder is told which of its two texts a token is of, as its makers did; ours is
    not, since TRL's trainer does not tell it."""
    share_prompts: bool = True
    max_batch_tokens: int = MAX_BATCH_TOKENS

    def __post_init__(self) -> None:
        self.model.eval()
        self.tokenize = RewardTokenizer(self.tokenizer, self.format, self.is_causal, self.pad_id)

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether it is asked to, and can: tried out on first use."""
        bare = bare_model(self.model)
        has_head = isinstance(getattr(bare, "score", None), torch.nn.Module)
        return self.share_prompts and self.is_causal and has_head and sharing.shares(bare)

    @classmethod
    def load(
        cls, name: str | Path, *, max_length: int | None = None, **options: Any
    ) -> "RewardModel":
        """From a folder that this pipeline wrote, or any published one-label classifier.

        max_length: for a model that brings no format of its own; longer prompts are cut then.
        options: load_in_4bit; without_weights, for one that is served elsewhere.
        """
        if is_probe(name):
            return ProbedModel.open(Path(name), **options)
        own = RewardFormat.load(Path(name))
        model, tokenizer, causal, pad_id = load_classifier(name, **options)
        limit = max_positions(bare_model(model))
        if own:
            return cls(model, tokenizer, own, causal)
        foreign = RewardFormat(min(max_length or limit, limit), True, read_at="template_end")
        types = getattr(model.config, "type_vocab_size", 0)
        has_types = not causal and types > 1 and "token_type_ids" in tokenizer.model_input_names
        return cls(model, tokenizer, foreign, causal, pad_id, has_types=has_types)

    def score(
        self, questions: Iterable[tuple[str | list[Message], Sequence[str]]]
    ) -> Iterator[list[float] | Unscorable]:
        """For each prompt and its responses their rewards, in order; streams."""
        rows = (self.rows_of(prompt, responses) for prompt, responses in questions)
        while window := [*islice(rows, _WINDOW)]:
            yield from run_window(window, self.score_rows)

    def rows_of(
        self, prompt: str | list[Message], responses: Sequence[str]
    ) -> list[list[int]] | Unscorable:
        """What the model reads of each response."""
        tokens = self.tokenize(prompt, responses)
        if isinstance(tokens, Unscorable):
            return tokens
        return [[*tokens.prompt_ids, *completion] for completion in tokens.completions]

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of whole rows of token ids, prompt and response together."""
        if self.shares_prompts:
            batches = trees.tree_batches(rows, self.max_batch_tokens)
            return run_batches(self._shared, rows, batches)
        unique = list(
            dict.fromkeys(map(tuple, rows))
        )  # equal texts get one score to the last digit
        order = sorted(range(len(unique)), key=lambda i: len(unique[i]))
        if self.is_causal:  # without padding, which a state would carry on: rows of one length
            same = (list(run) for _, run in groupby(order, key=lambda i: len(unique[i])))
            batches = (batch for run in same for batch in self._batches(run, unique))
        else:  # rows of about one length: little is spent on padding
            batches = self._batches(order, unique)
        scores = dict(zip(unique, run_batches(self._padded, unique, batches), strict=True))
        return [scores[tuple(row)] for row in rows]

    def _batches(self, order: list[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        return trees.in_batches(order, self.max_batch_tokens, lambda i, _: len(rows[i]))

    @torch.inference_mode()
    def _shared(self, rows: list[Sequence[int]]) -> list[float]:
        bare: Any = bare_model(self.model)
        outputs, last = trees.run_tree(bare.base_model, rows)
        return bare.score(outputs.last_hidden_state[0, last])[:, 0].float().tolist()

    @torch.inference_mode()
    def _padded(self, rows: list[Sequence[int]]) -> list[float]:
        pad: Any = self.tokenizer.pad_token_id
        ids, mask = (x.to(self.model.device) for x in packs.pad_right(rows, pad))
        more = {}
        if self.has_types:  # the second text stands behind the first separator
            separator: Any = self.tokenizer.sep_token_id
            is_separator = ids.eq(separator).long()
            more["token_type_ids"] = (is_separator.cumsum(1) - is_separator).gt(0).long() * mask
        logits = self.model(input_ids=ids, attention_mask=mask, **more).logits
        return logits[:, 0].float().tolist()


@dataclass(eq=False)
class ProbedModel(RewardModel):
    """A RewardModel whose network is a backbone and whose head is a probe of it."""

    _: KW_ONLY
    probe: probes.Probe

    def __post_init__(self) -> None:
        super().__post_init__()
        self._opening = probes.turn_opening(self.tokenizer) if self.is_causal else []
        probes.cut_above(bare_model(self.model), self.probe.layers)

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether it is asked to, and can: tried out on first use."""
        return self.share_prompts and self.is_causal and sharing.shares(bare_model(self.model))

    @classmethod
    def open(cls, folder: Path, **options: Any) -> "ProbedModel":
        """The probe of a folder on its base model. Raises SystemExit, DataError."""
        own = RewardFormat.load(folder)
        if own is None:
            raise DataError(f"{folder}: no {RewardFormat.file}; train the probe again")
        probe = probes.Probe.load(folder)
        model, tokenizer, is_causal, _ = load_classifier(folder, **options)
        probe.check(model)
        return cls(model, tokenizer, own, is_causal, probe=probe)

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of whole rows of token ids, prompt and response together."""
        return [self.probe.score(features) for features in self.features(rows)]

    def features(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """What the probe reads of whole rows of token ids: (F,) each, float32."""
        found: Any = super().score_rows(rows)
        return found

    @torch.inference_mode()
    def _shared(self, rows: list[Sequence[int]]) -> list[Any]:
        backbone: Any = bare_model(self.model).base_model
        tree = trees.tree_of(rows)
        with probes.watched(backbone, self.probe.layers) as found:
            trees.run_tree(backbone, rows)
        states = [of[0] for of in found]
        return [
            probes.features(states, probes.last_tokens(tree, k, len(row) - self._start(row)))
            for k, row in enumerate(rows)
        ]

    @torch.inference_mode()
    def _padded(self, rows: list[Sequence[int]]) -> list[Any]:
        pad: Any = self.tokenizer.pad_token_id
        ids, mask = (x.to(self.model.device) for x in packs.pad_right(rows, pad))
        with probes.watched(self.model, self.probe.layers) as found:
            self.model(input_ids=ids, attention_mask=mask)
        return [
            probes.features([of[k] for of in found], range(self._start(row), len(row)))
            for k, row in enumerate(rows)
        ]

    def _start(self, row: Sequence[int]) -> int:
        return min(probes.turn_start(row, self._opening), len(row) - 1)
