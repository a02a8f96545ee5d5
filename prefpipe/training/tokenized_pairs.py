"""Preference rows to token ids: the ids that sampling and scoring use, whole or left out by name.

TRL would render the chat template again (with a second system turn where the template adds one),
and cut what is longer than 1,024 tokens without a word. Here nothing is ever cut.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefpipe.chat import TurnsRefused, completion_ids, prompt_ids
from prefpipe.files import SPLITS, DataError, Run, data_files
from prefpipe.rows import JudgmentPair, Message, Preference, Reject, answer_of, as_turns

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A pair as the trainer takes it. int32; each completion ends with the end-of-turn token."""

    id: str
    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    tie: bool = False
    margin: float = 0.0
    """How much better chosen is, in the unit of the loss; 0 where it is not known."""

    @classmethod
    def of(
        cls, id: str, *ids: Sequence[int], tie: bool = False, margin: float = 0.0
    ) -> "TokenizedPair | Reject":
        """ids: of the prompt, of chosen and of rejected; a Reject where both completions are equal."""
        prompt, chosen, rejected = (np.array(each, dtype=np.int32) for each in ids)
        if np.array_equal(chosen, rejected):
            return Reject(id=id, reason="identical_after_tokenizing")
        return cls(id, prompt, chosen, rejected, tie, margin)

    @property
    def completions(self) -> tuple[np.ndarray, np.ndarray]:
        return self.chosen_ids, self.rejected_ids

    @property
    def digest(self) -> bytes:
        """Equal for pairs of the same token ids; 16 bytes."""
        parts = (self.prompt_ids, self.chosen_ids, self.rejected_ids)
        return hashlib.sha256(b"|".join(ids.tobytes() for ids in parts)).digest()[:16]


class PairTokenizer:
    """Rows, one after another, to token ids, or to the Reject that names why not.

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
        def left_out(reason: str, detail: str = "") -> Reject:
            return Reject(id=row.id, reason=reason, detail=detail)

        if not _is_one_turn(row.chosen) or not _is_one_turn(row.rejected):
            return left_out("completion_is_no_single_turn", "wanted one assistant turn")
        try:
            prompt = self._prompt_ids(row.prompt)
        except TurnsRefused as error:
            return left_out(error.reason, str(error))
        chosen, rejected = (
            completion_ids(self.tokenizer, answer_of(side)) for side in (row.chosen, row.rejected)
        )
        pair = TokenizedPair.of(row.id, prompt, chosen, rejected)
        if isinstance(pair, Reject):
            return pair
        for reason, length in (
            ("prompt_too_long", len(prompt) + 1),
            ("chosen_too_long", len(prompt) + len(chosen)),
            ("rejected_too_long", len(prompt) + len(rejected)),
        ):
            if length > self.max_length:
                return left_out(reason, f"{length} tokens, max_length is {self.max_length}")
        if pair.digest in self._seen:
            return left_out("duplicate_pair", "the same token ids as an earlier row")
        self._seen.add(pair.digest)
        return pair

    def _prompt_ids(self, prompt: str | list[Message]) -> list[int]:
        turns = as_turns(prompt)
        if turns != self._last_prompt[0]:  # pairs of one prompt follow each other
            self._last_prompt = turns, prompt_ids(self.tokenizer, turns)
        return self._last_prompt[1]


def _is_one_turn(completion: str | list[Message]) -> bool:
    """Whether the completion is text, or one assistant turn."""
    return isinstance(completion, str) or [turn["role"] for turn in completion] == ["assistant"]


def collect_judgment_pairs(
    folder: Path, run: Run, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, list[TokenizedPair]]:
    """The JudgmentPair rows of each split as token ids; what does not fit is emitted as its Reject.

    Raises DataError where an item is on both sides, or nothing is left to train on.
    """
    pairs: dict[str, list[TokenizedPair]] = {split: [] for split in SPLITS}
    items: dict[str, set[str]] = {split: set() for split in SPLITS}
    for path in data_files(folder):
        if path.stem not in pairs:
            raise DataError(f"{path}: wanted a folder with train.parquet; set --input")
        tokenize = PairTokenizer(tokenizer, max_length)
        for row in run.read(path, JudgmentPair):
            items[path.stem].add(row.item_id)
            pair = tokenize(row)
            if isinstance(pair, Reject):
                run.emit(pair)
            else:
                run.keep()
                pairs[path.stem].append(pair)
    if leaked := sorted(items["train"] & items["validation"]):
        raise DataError(
            f"{folder}: {len(leaked)} items are in train and in validation, the first is "
            f"{leaked[0]!r}; run construct_dpo_dataset.py again"
        )
    if not pairs["train"]:
        raise DataError(f"{folder}: no pair to train on (left out: {run.reasons() or 'none read'})")
    return pairs


def to_dataset(pairs: Sequence[TokenizedPair], *more: str) -> "Dataset":
    """Columns id, prompt_ids, chosen_ids, rejected_ids: those TRL's trainers make of a raw row.

    more: further ones, tie and margin.
    """
    from datasets import Dataset

    names = ("id", "prompt_ids", "chosen_ids", "rejected_ids", *more)
    return Dataset.from_dict({name: [getattr(p, name) for p in pairs] for name in names})
