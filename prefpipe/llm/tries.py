"""Replies that are checked as they are used, and asked for again in another sample where they fail."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from typing import Generic, TypeVar

from prefpipe.files import Run
from prefpipe.llm import SERVER_FAILURES, Engine, Request
from prefpipe.llm.replies import Replies
from prefpipe.rows import Completion, Reject, Row

R = TypeVar("R", bound=Row)


class Tries(Generic[R]):
    """What became of each row that a model is to rewrite; request ids are the rows'. Each try has a
    Replies, and so a log, of its own: a reply that was paid and failed its check stays on disk too,
    and a stopped run goes on with the try behind it."""

    def __init__(
        self,
        run: Run,
        rows: Callable[[], Iterable[R]],
        to_request: Callable[[R, int], Request],
        check: Callable[[R, Completion], R | Reject],
        asked_again: Container[str],
    ) -> None:
        """to_request: of a row and a try, 0-based. asked_again: the reasons of Rejects, of check or of
        the server, that another sample may not have."""
        self._run, self._rows, self._to_request = run, rows, to_request
        self._check, self._asked_again = check, asked_again
        self._tries: list[Replies] = []

    def ask(
        self, open_engine: Callable[[], Engine], tries: int, *, accept_failures: bool = False
    ) -> None:
        """Ask for every row, and in further tries for those that are asked again. Raises SystemExit
        where the server, not the row, is to blame (not with accept_failures), once all others have
        had their tries: it may answer later."""
        # all logs are opened at once: where try 0 failed without a text, try 1 may have one on disk
        self._tries = [
            Replies(self._run, partial(self._requests, number), f"try{number}")
            for number in range(tries)
        ]
        for number, replies in enumerate(self._tries):
            what = f"asking again ({number})" if number else "translating"
            replies.ask(open_engine, what, accept_failures=True)
        results = map(self.of, self._rows()) if not accept_failures else ()
        failed = [r for r in results if isinstance(r, Reject) and r.reason in SERVER_FAILURES]
        if failed:
            raise SystemExit(
                f"{self._run.stage}: no reply for {len(failed)} items "
                f"({dict(Counter(r.reason for r in failed))}; {failed[0].id}: {failed[0].detail}). The "
                "rest is kept: the same command asks for these again; --accept-failures leaves them out"
            )

    def _requests(self, number: int) -> Iterator[Request]:
        for row in self._rows():
            result = self.of(row)
            is_left = self._is_asked_again(result) and not self._tries[number].has(row.id)
            if result is None or is_left:
                yield self._to_request(row, number)

    def _is_asked_again(self, result: R | Reject | None) -> bool:
        return isinstance(result, Reject) and result.reason in self._asked_again

    def of(self, row: R) -> R | Reject | None:
        """What the check made of the first reply that passed, or the last Reject; None: not asked."""
        result = None
        for replies in self._tries:
            if replies.has(row.id):
                reply = replies.of(row.id)
                result = reply if isinstance(reply, Reject) else self._check(row, reply[0])
                if not self._is_asked_again(result):
                    break
        return result
