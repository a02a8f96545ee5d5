"""Rows of requests that wait together, run as one batch: what they begin with is computed once.

No time is waited for more of them: while the model works on a batch, the next one gathers, so that
a batch is as large as the load is, and a single request is answered at once.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

_MOST_BATCHES = 8
"""Of the model's own size, that are taken at once: those that wait behind get their turn soon."""


class _Job(NamedTuple):
    rows: list[list[int]]
    future: "asyncio.Future[list[Any]]"


class WaitingRows:
    """A queue before a model, which one thread runs; it ends with the process."""

    def __init__(self, run: Callable[[list[list[int]]], list[Any]], batch_tokens: int) -> None:
        """run: the rows' results. batch_tokens: of one batch of the model."""
        self._run, self._most = run, _MOST_BATCHES * batch_tokens
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.rows = self.batches = 0
        """Done so far."""
        threading.Thread(target=self._work, name="prefpipe-model", daemon=True).start()

    async def results(self, rows: list[list[int]]) -> list[Any]:
        """The results of one request's rows. Raises what the model raised."""
        future = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(rows, future))
        return await future

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            tokens = _tokens(jobs[0])
            while tokens < self._most and not self._jobs.empty():
                jobs.append(self._jobs.get())
                tokens += _tokens(jobs[-1])
            jobs = [job for job in jobs if not job.future.cancelled()]  # a client that has gone
            rows = [row for job in jobs for row in job.rows]
            try:
                results: Any = iter(self._run(rows))
                outcomes = [[next(results) for _ in job.rows] for job in jobs]
            except (Exception, SystemExit) as error:  # out of memory is said by SystemExit
                outcomes = [RuntimeError(str(error))] * len(jobs)
            self.rows, self.batches = self.rows + len(rows), self.batches + 1
            for job, outcome in zip(jobs, outcomes, strict=True):
                with contextlib.suppress(RuntimeError):  # the server has ended
                    job.future.get_loop().call_soon_threadsafe(_give, job.future, outcome)


def _tokens(job: _Job) -> int:
    return sum(map(len, job.rows))


def _give(future: "asyncio.Future[list[Any]]", outcome: list[Any] | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
