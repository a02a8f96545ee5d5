"""Results of rows of token ids from a server that holds the model: many requests at once, retried."""

from collections.abc import Mapping
from typing import Any

from prefpipe.llm import SERVER_FAILURES, Failure
from prefpipe.llm.outcomes import Outcomes, passes_later
from prefpipe.llm.server.dialect import Language
from prefpipe.llm.server.score_dialect import Rows, RowsRequest, ScoreDialect, Wanted
from prefpipe.llm.server.server_engine import ServerEngine
from prefpipe.llm.server.server_session import ServerOptions
from prefpipe.llm.wire import ServedModel


class ScoreEngine(ServerEngine):
    """What a server makes of rows, asked as ServerEngine asks for texts."""

    def __init__(
        self,
        served: ServedModel,
        options: ServerOptions,
        wanted: Wanted,
        *,
        leaves_out: bool,
    ) -> None:
        """leaves_out: requests that the server fails on each time are no reason to stop."""
        super().__init__(served, options)
        # of all windows: what the server understands is learnt once
        self._words = ScoreDialect(served, wanted)
        self._outcomes, self._leaves_out = Outcomes(True, leaves_out), leaves_out

    def _dialect(self) -> Language:
        return self._words

    def ask(self, rows: Mapping[str, Rows]) -> dict[str, list[Any] | Failure]:
        """By id the results of each one's rows, or why there are none. Raises SystemExit where requests
        did not pass that may pass later.
        """
        found: dict[str, Any] = {}
        requests: Any = (RowsRequest(id, own) for id, own in rows.items())
        results: Any = self.generate(requests)
        for result in results:
            id, values = (result.id, result) if isinstance(result, Failure) else result[0]
            found[id] = values
            self._outcomes.add(result if isinstance(result, Failure) else None)
        later = [
            f for f in found.values() if isinstance(f, Failure) and f.reason in SERVER_FAILURES
        ]
        if later and not self._leaves_out:
            raise SystemExit(passes_later(later))
        return found
