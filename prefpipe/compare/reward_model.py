"""Reward models: what they read, and the score they give.

A score r(x, y) is read at the last token of prompt and response: the end of the assistant's turn of
a decoder, or what an encoder's own head pools. Training and use get their token ids from
RewardTokenizer, with the same limit; a response is never cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.compare.context import MAX_BATCH_TOKENS, SavedFormat, Unscorable, cut_left, run_window
from prefpipe.models import packs, trees
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import bare_model, max_positions
from prefpipe.models.memory import run_batches
from prefpipe.rows import Message, as_turns, flatten_turns

_WINDOW = 64
"""Batches that are collected and sorted by length, where prompts are not shared."""


@dataclass(frozen=True, slots=True)
class RewardFormat(SavedFormat):
    """The limits of a reward model, and the scale of its scores."""

    file: ClassVar[str] = "reward_format.json"

    max_length: int
    """Most tokens of prompt and response together."""
    cut_prompt: bool
    """Cut a longer prompt from its left; False: such a row is left out."""
    temperature: float | None = None
    """Margins divided by it are calibrated log-odds, on the held-out pairs; None: not fitted."""


@dataclass(frozen=True, slots=True)
class TokenizedResponses:
    """The responses to one prompt, all behind the same copy of it."""

    prompt_ids: list[int]
    """Empty for an encoder: its prompt stands in each response's row."""
    completions: list[list[int]]
    """For each response; of a decoder ending with the end of turn."""
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

    def __call__(
        self, prompt: str | list[Message], responses: Sequence[str]
    ) -> TokenizedResponses | Unscorable:
        turns = as_turns(prompt)
        if not any(turn["content"].strip() for turn in turns):
            return Unscorable("empty_question", "the prompt is empty")
        own = (
            [chat.completion_ids(self.tokenizer, r) for r in responses] if self.is_causal else None
        )
        limit, whole = self.format.max_length, 0
        while turns:
            prompt_ids, completions = self._behind(turns, responses, own)
            longest = len(prompt_ids) + max(map(len, completions))
            whole = whole or longest
            if longest <= limit:
                return TokenizedResponses(prompt_ids, completions, whole - longest)
            turns = self._cut(turns, longest - limit)
        alone = ", the response alone nearly as many" if self.format.cut_prompt else ""
        return Unscorable("too_long", f"prompt and response have more than {limit} tokens{alone}")

    def _behind(
        self, turns: list[Message], responses: Sequence[str], own: list[list[int]] | None
    ) -> tuple[list[int], list[list[int]]]:
        """Prompt and completions; own: a decoder's, which no cut of the prompt changes."""
        if own is not None:
            return chat.prompt_ids(self.tokenizer, turns), own
        prompt = flatten_turns(turns)
        rows: Any = [self.tokenizer(prompt, text, verbose=False)["input_ids"] for text in responses]
        return [], rows

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
    _: KW_ONLY
    share_prompts: bool = True
    max_batch_tokens: int = MAX_BATCH_TOKENS

    def __post_init__(self) -> None:
        self.model.eval()
        self.tokenize = RewardTokenizer(self.tokenizer, self.format, self.is_causal)
        bare = bare_model(self.model)
        has_head = isinstance(getattr(bare, "score", None), torch.nn.Module)
        can_share = self.is_causal and has_head and trees.can_share(bare)
        self.shares_prompts = self.share_prompts and can_share

    @classmethod
    def load(
        cls, name: str | Path, *, max_length: int | None = None, load_in_4bit: bool | None = None
    ) -> "RewardModel":
        """From a folder that this pipeline wrote, or any published one-label classifier.

        max_length: for a model that brings no format of its own; longer prompts are cut then.
        """
        model, tokenizer, causal = load_classifier(name, load_in_4bit=load_in_4bit)
        limit = max_positions(bare_model(model))
        own = RewardFormat.load(Path(name)) or RewardFormat(min(max_length or limit, limit), True)
        return cls(model, tokenizer, own, causal)

    def score(
        self, questions: Iterable[tuple[str | list[Message], Sequence[str]]]
    ) -> Iterator[list[float] | Unscorable]:
        """For each prompt and its responses their rewards, in order; streams."""
        rows = (self._rows(prompt, responses) for prompt, responses in questions)
        while window := [*islice(rows, _WINDOW)]:
            yield from run_window(window, self.score_rows)

    def _rows(
        self, prompt: str | list[Message], responses: Sequence[str]
    ) -> list[list[int]] | Unscorable:
        tokens = self.tokenize(prompt, responses)
        if isinstance(tokens, Unscorable):
            return tokens
        return [[*tokens.prompt_ids, *completion] for completion in tokens.completions]

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of whole rows of token ids, prompt and response together."""
        if self.shares_prompts:
            batches = trees.tree_batches(rows, self.max_batch_tokens)
            return run_batches(self._shared, rows, batches)
        # rows of about one length together: little is spent on padding
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        batches = trees.in_batches(order, self.max_batch_tokens, lambda i, _: len(rows[i]))
        return run_batches(self._padded, rows, batches)

    @torch.inference_mode()
    def _shared(self, rows: list[Sequence[int]]) -> list[float]:
        bare: Any = bare_model(self.model)
        outputs, last = trees.run_tree(bare.base_model, rows)
        return bare.score(outputs.last_hidden_state[0, last])[:, 0].float().tolist()

    @torch.inference_mode()
    def _padded(self, rows: list[Sequence[int]]) -> list[float]:
        pad: Any = self.tokenizer.pad_token_id
        ids, mask = (x.to(self.model.device) for x in packs.pad_right(rows, pad))
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float().tolist()
