"""What a reward model reads: a prompt and its responses as token ids, within its limits.

A score r(x, y) of a decoder is read at the last token of the rendered conversation, which is where
TRL's RewardTrainer trains it and where transformers reads it; an encoder's own head pools. Training
and use get their token ids from here, with the same limit; a response is never cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.compare.context import SavedFormat, Unscorable, cut_left
from prefpipe.models.prefix_cache import common_tokens
from prefpipe.ranges import AboveZero, Positive
from prefpipe.rows import Message, as_turns, flatten_turns


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
