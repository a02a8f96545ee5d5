"""What an A/B preference model reads: a conversation and two responses, in one user turn.

The format is that of RLHFlow's pair-preference models (Dong et al. 2024; SLiC, Zhao et al. 2023);
it is answered with one token, A or B.

    [CONTEXT] <turn> user ... <turn> assistant ... [RESPONSE A] ... [RESPONSE B] ...

Training, scoring and ranking get their token ids from PairwiseTokenizer, with the same limit. The
context is cut from its left where it must be, a response never.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe import chat
from prefpipe.compare.context import SavedFormat, Unscorable, cut_left
from prefpipe.files import DataError
from prefpipe.models.prefix_cache import common_tokens
from prefpipe.ranges import AboveZero, Positive
from prefpipe.rows import Message, as_turns

LABELS = ("A", "B")

# A marker of the format, with the backslashes that already stand before it.
_MARKER = re.compile(r"(?<!\\)\\*(?:\[CONTEXT\]|\[RESPONSE [AB]\]|<turn> (?:user|assistant))")


@dataclass(frozen=True, slots=True)
class PairwiseFormat(SavedFormat):
    """The limits and the temperature of an A/B model."""

    file: ClassVar[str] = "pairwise_format.json"

    max_length: Positive
    """Most tokens of the whole turn, the chat template's own included."""
    temperature: AboveZero = 1.0
    """Logits are divided by it before the softmax over A and B; fitted on the held-out pairs."""


def escape(text: str) -> str:
    r"""Put a backslash before each marker of the format, so that no response can pose as two.

    A marker that already has backslashes gets one more: different texts stay different.
    """
    return _MARKER.sub(r"\\\g<0>", text)


def render_context(turns: Sequence[Message]) -> str:
    """The conversation as the published format writes it: its roles are user and assistant.

    A system turn, which the format does not know, stands before the first user's words.
    """
    text, system = "\n", ""  # line ends as in transformers' rendering of the published template
    for turn in turns:
        if turn["role"] == "system":
            system += f"{turn['content']}\n\n"
            continue
        role = "assistant" if turn["role"] == "assistant" else "user"
        text += f"\n<turn> {role}\n {escape(system + turn['content'])}"
        system = ""
    return text + "\n"


def render_pair(context: str, response_a: str, response_b: str) -> str:
    """The user turn."""
    return f"{_head(context)} {escape(response_a)} [RESPONSE B] {escape(response_b)} \n"


def _head(context: str) -> str:
    return f"[CONTEXT] {context} [RESPONSE A]"


@dataclass(frozen=True, slots=True)
class TokenizedTurns:
    """Several comparisons in one context, each order of two responses as a turn of its own."""

    rows: list[list[int]]
    shared: int
    """Tokens that all rows begin with, up to where the first response begins."""
    tokens_cut: int
    """How many of the context's were cut from its left."""


class PairwiseTokenizer:
    """A prompt and two responses to token ids, up to where the label token is predicted.

    Raises DataError where a label is not one token of its own, or does not follow the rendered text
    as that token.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.labels = label_ids(tokenizer)
        # tokens from the label on
        self._behind = len(_answered(tokenizer, "x", LABELS[0])) - _place(tokenizer)

    def __call__(
        self,
        prompt: str | list[Message],
        responses: Sequence[str],
        pairs: Sequence[tuple[int, int]],
    ) -> TokenizedTurns | Unscorable:
        """Each pair (index of response A, index of B) as a row; the context is cut alike for all."""
        turns = as_turns(prompt)
        if not any(turn["content"].strip() for turn in turns):
            return Unscorable("empty_question", "the prompt is empty")
        context = render_context(turns)
        whole = 0
        while True:
            rows = [self._ids(render_pair(context, responses[a], responses[b])) for a, b in pairs]
            longest = max(map(len, rows))
            whole = whole or longest
            if longest <= self.max_length:
                break
            context = cut_left(self.tokenizer, context, longest - self.max_length)
            if context.startswith("["):  # its backslash was cut
                context = escape(context[:20]) + context[20:]
            if not context.strip():
                return Unscorable(
                    "responses_too_long",
                    f"both responses leave no room for the context in {self.max_length} tokens",
                )
        # what all pairs of this context begin with: the turn up to the first response
        head = self._ids(_head(context))
        shared = min(common_tokens(head, row) for row in rows)
        return TokenizedTurns(rows, min(shared, *(len(row) - 1 for row in rows)), whole - longest)

    def _ids(self, text: str) -> list[int]:
        """The conversation up to the label, as it is rendered with one."""
        return _answered(self.tokenizer, text, LABELS[0])[: -self._behind]


def label_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens A and B as they follow the rendered turn: where both conversations differ."""
    chat.render(tokenizer, [Message(role="user", content="x")])  # an answer follows, or it raises
    place = _place(tokenizer)
    rows = [_answered(tokenizer, "x", label) for label in LABELS]
    if rows[0][place + 1 :] != rows[1][place + 1 :]:
        a, b = (tokenizer.convert_ids_to_tokens(row[place : place + 3]) for row in rows)
        raise DataError(
            f"{tokenizer.name_or_path}: the labels A and B must be one token each, and stand in the "
            f"conversation as {a} and {b}; take a model whose tokenizer has them as one"
        )
    a, b = (row[place] for row in rows)
    return a, b


def _place(tokenizer: Tokenizer) -> int:
    """Where the label stands behind the turn "x"."""
    a, b = (_answered(tokenizer, "x", label) for label in LABELS)
    if a == b:
        raise DataError(f"{tokenizer.name_or_path}: A and B are the same tokens")
    return common_tokens(a, b)


def _answered(tokenizer: Tokenizer, turn: str, label: str) -> list[int]:
    return chat.conversation_ids(tokenizer, [Message(role="user", content=turn)], label, bos=True)
