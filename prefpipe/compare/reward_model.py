"""Reward models: what they read, and the score they give. Training is in prefpipe.training.reward.

A score r(x, y) is read at the last token of prompt and response: the end of the assistant's turn of
a decoder, or what an encoder's own head pools. Training, evaluation and ranking get their token ids
from RewardTokenizer, with the same limit; a response is never cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.compare.context import SavedFormat, Unscorable, cut_left
from prefpipe.models import packs, trees
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import bare_model, max_positions
from prefpipe.models.memory import in_halves
from prefpipe.rows import Message, as_turns, flatten_turns

MAX_BATCH_TOKENS = 8192
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


class RewardTokenizer:
    """A prompt and its responses to token ids.

    A decoder reads its chat template (prefpipe.chat), an encoder prompt and response as a pair
    of texts. All responses of one call are behind the same prompt: where it must be cut, it is cut
    for the longest of them, so that they are compared in one context.
    """

    def __init__(self, tokenizer: Tokenizer, reward_format: RewardFormat, is_causal: bool) -> None:
        self.tokenizer, self.format, self.is_causal = tokenizer, reward_format, is_causal

    def __call__(
        self, prompt: str | list[Message], responses: Sequence[str]
    ) -> TokenizedResponses | Unscorable:
        turns = as_turns(prompt)
        if not any(turn["content"].strip() for turn in turns):
            return Unscorable("empty_question", "the prompt is empty")
        own = self._own_ids(responses) if self.is_causal else None
        prompt_ids, completions = self._behind(turns, responses, own)
        longest = whole = len(prompt_ids) + max(map(len, completions))
        while longest > self.format.max_length:
            shorter = self._cut(turns, longest - self.format.max_length)
            if shorter is None:
                return Unscorable(
                    "too_long",
                    f"prompt and response have more than {self.format.max_length} tokens"
                    + (", the response alone nearly as many" if self.format.cut_prompt else ""),
                )
            turns = shorter
            prompt_ids, completions = self._behind(turns, responses, own)
            longest = len(prompt_ids) + max(map(len, completions))
        return TokenizedResponses(prompt_ids, completions, whole - longest)

    def _own_ids(self, responses: Sequence[str]) -> list[list[int]]:
        return [chat.completion_ids(self.tokenizer, response) for response in responses]

    def _behind(
        self, turns: list[Message], responses: Sequence[str], own: list[list[int]] | None
    ) -> tuple[list[int], list[list[int]]]:
        """Prompt and completions; own: a decoder's, which no cut of the prompt changes."""
        if own is not None:
            return chat.prompt_ids(self.tokenizer, turns), own
        prompt = flatten_turns(turns)
        rows: Any = [self.tokenizer(prompt, text, verbose=False)["input_ids"] for text in responses]
        return [], rows

    def _cut(self, turns: list[Message], over: int) -> list[Message] | None:
        """The turns without the oldest ones, or the last turn without its first `over` tokens.

        A system turn stays. None: nothing is left to cut, or it must not be cut.
        """
        if not self.format.cut_prompt:
            return None
        kept = [turn for turn in turns if turn["role"] == "system"][:1]
        rest = turns[len(kept) :]
        if len(rest) > 1:
            later = next(
                (k for k in range(1, len(rest)) if rest[k]["role"] == "user"), len(rest) - 1
            )
            return [*kept, *rest[later:]]
        text = cut_left(self.tokenizer, rest[0]["content"], over)
        return [*kept, Message(role=rest[0]["role"], content=text)] if text.strip() else None


class RewardModel:
    """Scores the responses to a prompt, each prompt computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        reward_format: RewardFormat,
        is_causal: bool,
        *,
        share_prompts: bool = True,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        self.model = model.eval()
        self.tokenize = RewardTokenizer(tokenizer, reward_format, is_causal)
        bare = bare_model(model)
        self.shares_prompts = (
            share_prompts
            and is_causal
            and trees.can_share(bare)
            and isinstance(getattr(bare, "score", None), torch.nn.Module)
        )
        self.max_batch_tokens = max_batch_tokens

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        max_length: int | None = None,
        cut_prompt: bool = True,
        load_in_4bit: bool | None = None,
    ) -> "RewardModel":
        """From a folder that this pipeline wrote, or any published one-label classifier.

        max_length, cut_prompt: for a model that brings no format of its own.
        """
        model, tokenizer, causal = load_classifier(name, load_in_4bit=load_in_4bit)
        limit = max_positions(bare_model(model))
        own = RewardFormat.load(Path(name))
        return cls(
            model,
            tokenizer,
            own or RewardFormat(min(max_length or limit, limit), cut_prompt),
            causal,
        )

    def score(
        self, questions: Iterable[tuple[str | list[Message], Sequence[str]]]
    ) -> Iterator[list[float] | Unscorable]:
        """For each prompt and its responses their rewards, in order; streams."""
        window: list[TokenizedResponses | Unscorable] = []
        for prompt, responses in questions:
            window.append(self.tokenize(prompt, responses))
            if len(window) == _WINDOW:
                yield from self._score_window(window)
                window = []
        yield from self._score_window(window)

    def _score_window(
        self, window: list[TokenizedResponses | Unscorable]
    ) -> Iterator[list[float] | Unscorable]:
        rows = [
            [*tokens.prompt_ids, *completion]
            for tokens in window
            if isinstance(tokens, TokenizedResponses)
            for completion in tokens.completions
        ]
        scores = iter(self.score_rows(rows))
        for tokens in window:
            if isinstance(tokens, Unscorable):
                yield tokens
            else:
                yield [next(scores) for _ in tokens.completions]

    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of whole rows of token ids, prompt and response together."""
        if self.shares_prompts:
            run, batches = self._shared, trees.tree_batches(rows, self.max_batch_tokens)
        else:
            # rows of about one length together: little is spent on padding
            order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
            run = self._padded
            batches = trees.in_batches(((len(rows[i]), i) for i in order), self.max_batch_tokens)
        scores = [0.0] * len(rows)
        for batch in batches:
            rewards = in_halves(run, [rows[i] for i in batch])
            for i, reward in zip(batch, rewards, strict=True):
                scores[i] = reward
        return scores

    def _shared(self, rows: list[Sequence[int]]) -> list[float]:
        bare = bare_model(self.model)
        backbone = bare.base_model
        assert isinstance(backbone, PreTrainedModel)
        outputs, last = trees.run_tree(backbone, rows)
        with torch.inference_mode():
            head: Any = bare.score
            return head(outputs.last_hidden_state[0, last])[:, 0].float().tolist()

    def _padded(self, rows: list[Sequence[int]]) -> list[float]:
        pad: Any = self.tokenize.tokenizer.pad_token_id
        ids, mask = packs.pad_right(rows, pad)
        device = self.model.device
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits[:, 0].float().tolist()
