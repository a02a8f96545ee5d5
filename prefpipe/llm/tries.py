"""Replies that are checked as they are used, and asked for again in another sample where they fail."""

from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from typing import Generic, TypeVar

from prefpipe.files import Run
from prefpipe.llm import SERVER_FAILURES, Engine, Failure, Request
from prefpipe.llm.outcomes import passes_later
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

    def ask(self, open_engine: Callable[[], Engine], tries: int) -> None:
        """Ask for every row, and in further tries for those that are asked again. Raises SystemExit
        where the server, not the row, is to blame (not with leave_out_failing), once all others have
        had their tries: it may answer later."""
        # all logs are opened at once: where try 0 failed without a text, try 1 may have one on disk
        self._tries = [
            Replies(self._run, partial(self._requests, number), f"try{number}")
            for number in range(tries)
        ]

        def fault_of(reply: Completion) -> str:
            row = next(row for row in self._rows() if row.id == reply.id)  # one of the first ones
            checked = self._check(row, reply)
            return f"{checked.reason}: {checked.detail}" if isinstance(checked, Reject) else ""

        for number, replies in enumerate(self._tries):
            what = f"asking again ({number})" if number else "translating"
            options = {"fault_of": fault_of, "asked_again": self._asked_again}
            replies.collect(open_engine, what, is_first=not number, **options)
        results = map(self.of, self._rows())
        failed = [r for r in results if isinstance(r, Reject) and r.reason in SERVER_FAILURES]
        if failed and not self._run.facts.leave_out_failing:
            raise SystemExit(passes_later([Failure(r.id, r.reason, r.detail) for r in failed]))

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
