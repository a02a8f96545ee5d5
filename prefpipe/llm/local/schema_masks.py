"""Replies that are held to a JSON schema: of each sample's next tokens, those that the schema allows.

llguidance follows the grammar of a schema token by token and says what may come next; all other
logits become -inf before a token is drawn. So the text stays a function of its request: the draw is
the same, from fewer tokens. N: samples; V: vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# as json.dumps writes, and so as our judges were trained to: one form less that a model must choose
_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class SchemaMasks:
    """The masks of one tokenizer. A matcher is one sample's place in its schema."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> None:
        """Raises SystemExit where the tokenizer's words cannot be looked into."""
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise SystemExit(
                f"{tokenizer.name_or_path}: structured_output needs a tokenizer with a tokenizer.json"
            )
        self._tokenizer, self._end_ids = tokenizer, list(end_ids)
        self._of_width: dict[int, Any] = {}
        self._begun: dict[tuple[int, str], LLMatcher] = {}

    def begin(self, schema: Mapping[str, Any], width: int) -> LLMatcher:
        """Before the first token of a reply; width: V. Raises SystemExit for what is no schema."""
        key = width, json.dumps(schema, sort_keys=False)
        if key not in self._begun:
            if width not in self._of_width:  # a second of work
                self._of_width[width] = llguidance.hf.from_tokenizer(
                    self._tokenizer, n_vocab=width, eos_token=self._end_ids
                )
            grammar = LLMatcher.grammar_from_json_schema(key[1], overrides=_FORM)
            matcher = LLMatcher(self._of_width[width], grammar, log_level=0)
            if matcher.is_error():
                raise SystemExit(f"structured_output: {matcher.get_error().splitlines()[0][:200]}")
            self._begun[key] = matcher
        return self._begun[key].deep_copy()

    @staticmethod
    def mask(logits_N_V: Tensor, matchers: Sequence[LLMatcher | None]) -> None:
        """Set to -inf, in place, what may not come next; None: a row that may have any token."""
        held = [row for row, matcher in enumerate(matchers) if matcher]
        if not held:
            return
        width = logits_N_V.shape[-1]
        bits = np.zeros((len(held), -(-width // 32)), dtype=np.int32)
        for row, matcher in zip(bits, filter(None, matchers), strict=True):
            matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=width, bitorder="little")
        forbidden = torch.from_numpy(allowed == 0).to(logits_N_V.device)
        rows = torch.tensor(held, device=logits_N_V.device)
        logits_N_V[rows] = logits_N_V[rows].masked_fill(forbidden, -torch.inf)
