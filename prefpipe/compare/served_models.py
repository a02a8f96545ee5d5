"""Preference models that a server holds: rendered and read here, so that scores are those of the model here.

What is here of such a model is its tokenizer, its configuration and its format; no weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prefpipe.compare.ab_model import PairwiseModel, Preferred
from prefpipe.compare.ab_prompt import TokenizedTurns
from prefpipe.compare.context import Unscorable
from prefpipe.compare.reward_model import RewardModel
from prefpipe.llm import Failure
from prefpipe.llm.server.score_dialect import SCORES, Rows, Wanted, label_logps
from prefpipe.rows import Message

Question = tuple[str | list[Message], Sequence[str]]


class RowsEngine(Protocol):
    """Who knows the results of rows: ScoreEngine."""

    def ask(self, rows: Mapping[str, Rows]) -> Mapping[str, list[Any] | Failure]: ...


OpenRows = Callable[[str, Wanted], RowsEngine]
"""Of the model's name and what is wanted of its rows."""


class ServedRewardModel:
    """A RewardModel's scores, from a server."""

    def __init__(self, name: str, open_rows: OpenRows, *, max_length: int | None) -> None:
        self._here = RewardModel.load(name, max_length=max_length, without_weights=True)
        if self._here.has_types:
            raise SystemExit(
                f"{name} is told which of its two texts a token is of, which goes with no row of token ids "
                "to a server: set --engine local"
            )
        self._engine = open_rows(name, SCORES)

    def score(self, questions: Iterable[Question]) -> Iterator[list[float] | Unscorable]:
        """For each prompt and its responses their rewards, in order."""
        made = [self._here.rows_of(prompt, responses) for prompt, responses in questions]
        asked = {str(k): rows for k, rows in enumerate(made) if isinstance(rows, list)}
        found = self._engine.ask(asked)
        for k, rows in enumerate(made):
            result = rows if isinstance(rows, Unscorable) else found[str(k)]
            yield _unscorable(result) if isinstance(result, Failure) else result


class ServedPairwiseModel:
    """A PairwiseModel's comparisons, from a server."""

    max_batch_tokens = 1_000_000
    """Of a knockout's first round: as many as may be asked at once, since no memory here is taken."""

    def __init__(self, name: str, open_rows: OpenRows, **options: Any) -> None:
        """options: max_length and temperature of PairwiseModel.load."""
        self._here = PairwiseModel.load(name, without_weights=True, **options)
        ids, tokenizer = self._here.tokenize.labels, self._here.tokenizer
        a, b = (str(tokenizer.decode([id])) for id in ids)
        self._engine = open_rows(name, label_logps(ids, (a, b)))

    def new_cache(self) -> None:
        """None: the server has its own."""

    def compare(
        self,
        questions: Iterable[tuple[str | list[Message], Sequence[str], Sequence[tuple[int, int]]]],
        cache: None = None,
    ) -> Iterator[list[Preferred] | Unscorable]:
        """For each (prompt, responses, pairs of their indices) what is preferred."""
        made: list[TokenizedTurns | Unscorable] = []
        for prompt, responses, pairs in questions:
            both = [order for a, b in pairs for order in ((a, b), (b, a))]
            turns = self._here.tokenize(prompt, responses, both) if both else None
            made.append(turns or TokenizedTurns([], 0, 0))
        asked = {
            f"{k}.{n}": [row]
            for k, turns in enumerate(made)
            if isinstance(turns, TokenizedTurns)
            for n, row in enumerate(turns.rows)
        }
        found = self._engine.ask(asked)
        for k, turns in enumerate(made):
            if isinstance(turns, Unscorable):
                yield turns
                continue
            results: list[Any] = [found[f"{k}.{n}"] for n in range(len(turns.rows))]
            if failed := next((one for one in results if isinstance(one, Failure)), None):
                yield _unscorable(failed)
            else:
                yield self._here.preferences_of([logps for (logps,) in results])
        self._here.check_outside()


def _unscorable(failure: Failure) -> Unscorable:
    return Unscorable(failure.reason, failure.detail)
