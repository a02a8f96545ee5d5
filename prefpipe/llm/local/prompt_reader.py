"""Prompts as a local model reads them: token ids, or why a prompt gets no text; and a plan of both.

A plan goes by the tokenizer and the configuration: no weights are loaded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from prefpipe import chat
from prefpipe.llm import Failure, Request, Result
from prefpipe.llm.costs import Estimate
from prefpipe.models.loading import bare_model, load_both, max_positions
from prefpipe.rows import Message


@dataclass(frozen=True)
class PromptReader:
    """The tokenizer of a model, and how much the model takes."""

    tokenizer: PreTrainedTokenizerBase
    positions: int

    @classmethod
    def of(cls, name: str) -> Self:
        """Without the model's weights. SystemExit as load_both."""
        model, tokenizer = load_both(name, without_weights=True)
        return cls(tokenizer, max_positions(bare_model(model)))

    def read(self, id: str, messages: Sequence[Message], new_tokens: int) -> list[int] | Failure:
        """The prompt's ids, if it fits with so many new tokens."""
        try:
            ids = chat.prompt_ids(self.tokenizer, messages)
        except chat.TurnsRefused as error:
            return Failure(id, error.reason, str(error))
        if len(ids) + new_tokens <= self.positions:
            return ids
        return Failure(
            id,
            "prompt_too_long",
            f"the prompt has {len(ids)} tokens, the answer up to {new_tokens}: more than "
            f"the model's {self.positions} positions",
        )

    def completions(self, answers: Sequence[str]) -> list[list[int]]:
        """Each answer's ids, the end of turn included."""
        return [chat.completion_ids(self.tokenizer, answer) for answer in answers]


class PlannedEngine:
    """What LocalEngine would be asked for, counted; it writes nothing."""

    def __init__(self, name: str) -> None:
        self._name, self._reader = name, PromptReader.of(name)

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        raise AssertionError("a dry run asks nobody")

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What they would use at most; prompts that do not fit are failures."""
        total = Estimate(self._name, tokenizer=self._name)
        for request in requests:
            ids = self._reader.read(request.id, request.messages, request.max_new_tokens)
            if isinstance(ids, Failure):
                total.failures[request.id] = ids
            else:
                total.add(request, len(request.samples), len(ids))
        return total

    def estimate_scores(
        self, prompted: Iterable[tuple[Sequence[Message], Sequence[str]]]
    ) -> tuple[int, dict[int, Failure]]:
        """Tokens of all prompts and answers that score() would read, and by its number in the input
        why one could not be read."""
        tokens, failures = 0, dict[int, Failure]()
        for index, (messages, answers) in enumerate(prompted):
            completions = self._reader.completions(answers)
            longest = max(map(len, completions), default=0)
            ids: Any = self._reader.read(str(index), messages, longest)
            if isinstance(ids, Failure):
                failures[index] = ids
            else:
                tokens += len(ids) + sum(map(len, completions))
        return tokens, failures
