"""Reward models: what they read, and the score they give.

A score r(x, y) of a decoder is read at the last token of the rendered conversation, which is where
TRL's RewardTrainer trains it and where transformers reads it; an encoder's own head pools. Training
and use get their token ids from RewardTokenizer, with the same limit; a response is never cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.compare.context import MAX_BATCH_TOKENS, SavedFormat, Unscorable, cut_left, run_window
from prefpipe.models import packs, sharing, trees
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import bare_model, max_positions
from prefpipe.models.memory import run_batches
from prefpipe.models.model_files import is_probe
from prefpipe.models.prefix_cache import common_tokens
from prefpipe.ranges import AboveZero, Positive
from prefpipe.rows import Message, as_turns, flatten_turns

_WINDOW = 64
"""Batches that are collected and sorted by length, where prompts are not shared."""


@dataclass(frozen=True, slots=True)
class RewardFormat(SavedFormat):
    """The limits of a reward model, and the scale of its scores."""

    file: ClassVar[str] = "reward_format.json"

    max_length: Positive
    """Most tokens of prompt and response together."""
    cut_prompt: bool
    """Cut a longer prompt from its left; False: such a row is left out."""
    temperature: AboveZero | None = None
    """Margins divided by it are calibrated log-odds, on the held-out pairs; None: not fitted."""
    read_at: Literal["end_of_turn", "template_end"] = "end_of_turn"
    """A decoder's last token: the end of the assistant's turn (models of before 2026-11), or what
    the chat template ends with: ChatML's and Gemma's have a line end behind the turn."""


@dataclass(frozen=True, slots=True)
class TokenizedResponses:
    """The responses to one prompt, all behind the same copy of it."""

    prompt_ids: list[int]
    """Empty for an encoder: its prompt stands in each response's row."""
    completions: list[list[int]]
    """For each response; of a decoder to the token where its score is read."""
    tokens_cut: int
    """How many of the prompt's were cut from its left."""


@dataclass(frozen=True)
class RewardTokenizer:
    """A prompt and its responses to token ids.

    A decoder reads its chat template, an encoder prompt and response as a pair of texts. The prompt
    is cut for the longest response of a call, so that all are compared in one context.
    """

    tokenizer: Tokenizer
    format: RewardFormat
    is_causal: bool
    pad_id: int | None = None
    """A decoder's that was trained elsewhere: transformers passes over it at a conversation's end."""

    def __call__(
        self, prompt: str | list[Message], responses: Sequence[str]
    ) -> TokenizedResponses | Unscorable:
        turns = as_turns(prompt)
        if not any(turn["content"].strip() for turn in turns):
            return Unscorable("empty_question", "the prompt is empty")
        limit, whole = self.format.max_length, 0
        try:
            while turns:
                prompt_ids, completions = self._ids(turns, responses)
                longest = len(prompt_ids) + max(map(len, completions))
                whole = whole or longest
                if longest <= limit:
                    return TokenizedResponses(prompt_ids, completions, whole - longest)
                turns = self._cut(turns, longest - limit)
        except chat.TurnsRefused as error:
            return Unscorable(error.reason, str(error))
        alone = ", the response alone nearly as many" if self.format.cut_prompt else ""
        return Unscorable("too_long", f"prompt and response have more than {limit} tokens{alone}")

    def _ids(
        self, turns: list[Message], responses: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """What all rows begin with, and each response's rest of its row."""
        if not self.is_causal:
            prompt = flatten_turns(turns)
            pairs: Any = [self.tokenizer(prompt, text, verbose=False) for text in responses]
            return [], [pair["input_ids"] for pair in pairs]
        prompt_ids = chat.prompt_ids(self.tokenizer, turns)
        if self.format.read_at == "end_of_turn":
            return prompt_ids, [chat.completion_ids(self.tokenizer, text) for text in responses]
        rows = [
            self.without_padding(chat.conversation_ids(self.tokenizer, turns, text))
            for text in responses
        ]
        # every pair of a prompt gets the same part of it, so that they are run behind one copy
        if prompt_ids[:1] != rows[0][:1]:
            prompt_ids = prompt_ids[1:]  # a BOS that the template has not
        shared = min(min(common_tokens(prompt_ids, row), len(row) - 1) for row in rows)
        return prompt_ids[:shared], [row[shared:] for row in rows]

    def rendered(self, text: str) -> list[int]:
        """The row of a conversation that somebody has rendered with this model's chat template."""
        if self.format.read_at == "template_end":
            return self.without_padding(chat.rendered_ids(self.tokenizer, text, bos=False))
        row, end = (
            chat.rendered_ids(self.tokenizer, text, bos=True),
            chat.end_of_turn_id(self.tokenizer),
        )
        return row[: len(row) - row[::-1].index(end)] if end in row else [*row, end]

    def without_padding(self, row: list[int]) -> list[int]:
        """The row without the tokens at its end that transformers passes over."""
        while len(row) > 1 and row[-1] == self.pad_id:
            row.pop()
        return row

    def _cut(self, turns: list[Message], over: int) -> list[Message]:
        """The turns without the oldest ones, or the last turn without its first `over` tokens.

        A system turn stays. Empty: nothing is left to cut, or it must not be cut.
        """
        if not self.format.cut_prompt:
            return []
        kept = [turn for turn in turns if turn["role"] == "system"][:1]
        rest = turns[len(kept) :]
        if len(rest) > 1:
            users = (k for k in range(1, len(rest)) if rest[k]["role"] == "user")
            return [*kept, *rest[next(users, len(rest) - 1) :]]
        text = cut_left(self.tokenizer, rest[0]["content"], over)
        return [*kept, Message(role=rest[0]["role"], content=text)] if text.strip() else []


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
            from prefpipe.compare.probed_model import ProbedModel

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
