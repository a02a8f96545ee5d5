"""Prompts to texts through the OpenAI Batch API: half the price, answers within a day, nothing paid twice.

A folder holds what was submitted and what came back (batch_record.py). A request that was submitted
is found again by any later run of any stage, whatever became of the run that submitted it; its answer
is read from the folder. Deleting the folder is the way to pay again.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator

from prefpipe.llm import Request, Result
from prefpipe.llm.batch_api.batch_answers import Answers, Missing
from prefpipe.llm.batch_api.batch_http import BatchApi, answered
from prefpipe.llm.batch_api.batch_record import ENDED, Batch, BatchRecord
from prefpipe.llm.batch_api.batch_session import BatchSession
from prefpipe.llm.batch_api.batch_submission import BatchOptions
from prefpipe.llm.costs import Estimate, Spending, Spends
from prefpipe.llm.wire import ServedModel, Stop


class BatchEngine(Spends):
    """Answers from the record where it has them; the rest is submitted, waited for and read.

    A kill at any moment costs nothing: what may have been created is looked for at the server
    before anything is created again. A line that ends without an answer (expired, cancelled, an
    error of the server) is sent again, in options.tries batches at most. Failure reasons: those of
    ServerEngine, but in place of SERVER_FAILURES batch_expired, batch_cancelled, batch_error,
    batch_missing after the last try. An answer that was paid and cannot be read is a garbled_reply,
    and is not paid again. A batch whose file is gone, or whose state nobody knows, is looked at some
    times; then its requests are batch_unreadable in this run, and the next one looks again.
    """

    def __init__(self, served: ServedModel, options: BatchOptions) -> None:
        """served: of one base URL, which and whose key are needed only once the server is asked;
        its retries and seconds are those of one call of the API."""
        self.served, self.options = served, options
        self._spending = Spending(served.model, batch=True)
        # of the batches whose answers this engine has fetched
        self.usage, self.spent = self._spending.usage, self._spending.describe

    def generate(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Submit what is not submitted, wait for every batch that has one of these, give results."""
        with self._session() as session:
            yield from session.take(requests)
            if not self.options.as_files:  # nobody knows when a person will have run them
                yield from session.wait()
            session.check_budget()
            session.check_nothing_left()

    def submit(self, requests: Iterable[Request]) -> str:
        """Submit what is not submitted, also what ended without an answer; says what became of it."""
        with self._session() as session:
            for _ in session.take(requests):
                pass  # answered before; download gives it
            session.check_budget()
            return session.summary()

    def download(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results of the batches that have ended; SystemExit at the end where there are others."""
        with self._session() as session:
            yield from session.take(requests, submits=False)
            session.check_nothing_left()

    @contextlib.contextmanager
    def _session(self) -> Iterator[BatchSession]:
        """A session that has looked at what is under way."""
        session = BatchSession(self.served, self.options, self._spending)
        with _stopping(), contextlib.closing(session):
            session.look()
            yield session

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What is left to submit. Asks and writes nothing."""
        total = Estimate(self.served.model, batch=True)
        with _stopping():
            answers = Answers(BatchRecord(self.options.folder), self.served, self.options.tries)
            for request in requests:
                result = answers.result(answers.hash(request), request)
                runs = result if isinstance(result, Missing) else []
                total.submitted += not runs
                for samples in runs:
                    total.add(request, len(samples))
        return total

    def status(self) -> list[Batch]:
        """The folder's batches, those under way as the server has them now. Writes nothing."""
        batches = BatchRecord(self.options.folder).batches
        left = [b for b in batches if b.status not in (*ENDED, "absent")]
        if left:
            with _stopping(), contextlib.closing(BatchApi(self.served, 0.0)) as api:
                for batch in left:
                    if batch.batch_id:
                        shown = api.retrieve(batch.batch_id)
                        batch.status, batch.done = str(shown["status"]), answered(shown)
        return batches


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Stop, which is the engine's own, becomes SystemExit."""
    try:
        yield
    except Stop as stop:
        raise SystemExit(str(stop)) from None
