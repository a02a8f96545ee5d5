"""Preference rows to token ids: the ids that sampling and scoring use, whole or left out by name.

TRL would render the chat template again (with a second system turn where the template adds one),
and cut what is longer than 1,024 tokens without a word. Here nothing is ever cut.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prefpipe.chat import completion_ids, prompt_ids
from prefpipe.rows import JudgmentPair, Message, Preference, Reject

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LeftOut = Literal[
    "completion_is_no_single_turn",
    "identical_after_tokenizing",
    "duplicate_pair",
    "prompt_too_long",
    "chosen_too_long",
    "rejected_too_long",
]


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A pair as the trainer takes it. int32; each completion ends with the end-of-turn token."""

    id: str
    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray

    def __len__(self) -> int:
        """Tokens of the prompt and the longer completion."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class PairTokenizer:
    """Rows, one after another, to token ids, or to the Reject that names why not (LeftOut).

    max_length: most tokens of a prompt and a completion together, the end of turn included. A row
    beyond it is left out whole: a completion that was cut would be trained to stop in mid-sentence,
    and a judgment that was cut before its verdict to give none.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._seen: set[bytes] = set()
        self._last_prompt: tuple[list[Message], list[int]] = ([], [])

    def __call__(self, row: JudgmentPair | Preference) -> TokenizedPair | Reject:
        def left_out(reason: LeftOut, detail: str = "") -> Reject:
            return Reject(id=row.id, reason=reason, detail=detail)

        chosen, rejected = _answer(row.chosen), _answer(row.rejected)
        if chosen is None or rejected is None:
            return left_out("completion_is_no_single_turn", "wanted one assistant turn")
        prompt = self._prompt_ids(row.prompt)
        chosen = completion_ids(self.tokenizer, chosen)
        rejected = completion_ids(self.tokenizer, rejected)
        if chosen == rejected:
            return left_out("identical_after_tokenizing")
        limits: list[tuple[LeftOut, int]] = [
            ("prompt_too_long", len(prompt) + 1),
            ("chosen_too_long", len(prompt) + len(chosen)),
            ("rejected_too_long", len(prompt) + len(rejected)),
        ]
        for reason, length in limits:
            if length > self.max_length:
                return left_out(reason, f"{length} tokens, max_length is {self.max_length}")
        arrays = [np.array(ids, dtype=np.int32) for ids in (prompt, chosen, rejected)]
        digest = hashlib.sha256(b"|".join(a.tobytes() for a in arrays)).digest()[:16]
        if digest in self._seen:
            return left_out("duplicate_pair", "the same token ids as an earlier row")
        self._seen.add(digest)
        return TokenizedPair(row.id, *arrays)

    def _prompt_ids(self, prompt: str | list[Message]) -> list[int]:
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        if messages != self._last_prompt[0]:  # pairs of one prompt follow each other
            self._last_prompt = messages, prompt_ids(self.tokenizer, messages)
        return self._last_prompt[1]


def _answer(completion: str | list[Message]) -> str | None:
    """The assistant's text; None where the completion is anything but one assistant turn."""
    if isinstance(completion, str):
        return completion
    one_turn = len(completion) == 1 and completion[0]["role"] == "assistant"
    return completion[0]["content"] if one_turn else None


def to_dataset(pairs: Iterable[TokenizedPair], **columns: list[Any]) -> "Dataset":
    """Columns id, prompt_ids, chosen_ids, rejected_ids: those TRL's trainers make of a raw row.

    columns: further ones (a margin, say), in the order of the pairs.
    """
    from datasets import Dataset

    pairs = list(pairs)
    names = ("id", "prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({n: [getattr(p, n) for p in pairs] for n in names} | columns)
