"""One run over a folder's record: what is there is given, what lacks is submitted, what ends is read."""

import random
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from typing import Any, Self

from prefpipe import draws
from prefpipe.llm import Request
from prefpipe.llm.batch_api.batch_answers import Answers, Missing, Wanted, batch_body
from prefpipe.llm.batch_api.batch_http import BatchApi, answered
from prefpipe.llm.batch_api.batch_record import ENDED, Batch, BatchRecord, hash_of
from prefpipe.llm.batch_api.batch_submission import BatchOptions, Submission
from prefpipe.llm.costs import Spending
from prefpipe.llm.wire import Result, ServedModel, Stop

_READS = 3
"""Times an output file is fetched where it has lines that are no answers."""
_QUEUE_PAUSES = 8
"""Times in a row that the account's queue may be full with no batch of ours in it."""


class BatchSession:
    """Holds the record for itself: what it finds, submits and reads, it appends; a context manager."""

    def __init__(
        self,
        served: ServedModel,
        options: BatchOptions,
        spending: Spending,
        *,
        may_submit: bool = True,
    ) -> None:
        """spending: counts the answers that are fetched."""
        self._served, self._options, self._spending = served, options, spending
        self._record = BatchRecord(options.folder, writes=True)
        self._answers = Answers(self._record, served, options.tries)
        self._connection: BatchApi | None = None
        self._submission = Submission(
            self._record, served.model, options, self._api, may_submit=may_submit
        )
        self._waiting: dict[str, list[Wanted]] = {}
        """By the hash of a request."""
        self._full_queue = 0
        """Times in a row that the account's queue was full."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._submission.close()
        self._record.close()
        if self._connection:
            self._connection.close()

    def _api(self) -> BatchApi:
        """The connection, opened by the first one who needs it."""
        if self._connection is None:
            settle = min(self._options.settle_seconds, self._options.poll_seconds)
            self._connection = BatchApi(self._served, settle)
        return self._connection

    # -- requests in

    def take(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results that the record has; the other requests are kept, and submitted where allowed."""
        for request in requests:
            wanted = self._answers.wanted(request)
            result = self._answers.result(wanted)
            if not isinstance(result, Missing):
                yield result
                continue
            self._waiting.setdefault(wanted.hash, []).append(wanted)
            for samples in result.runs:
                body = partial(batch_body, self._served, request, samples)
                self._submission.add(wanted.id, wanted.hash, samples, body)
        self._submission.flush()

    # -- batches back

    def look(self) -> None:
        """What became of the batches that the record has under way; reads those that have ended."""
        for batch in self._record.batches:
            if batch.batch_id is None and batch.is_under_way:
                # The run that created it, or was about to, has never read its id.
                batch_id = self._api().find(batch)
                if batch_id is None:
                    self._record.note("absent", batch, status="absent")
                else:
                    self._record.note("created", batch, batch_id=batch_id, status="validating")
            if batch.is_under_way:
                self._poll(batch)

    def _poll(self, batch: Batch) -> bool:
        """Whether something has changed."""
        assert batch.batch_id
        if batch.status in ENDED:
            self._download(batch, self._api().retrieve(batch.batch_id))
            return True
        shown = self._api().retrieve(batch.batch_id)
        before, batch.status = (batch.status, batch.done), str(shown["status"])
        batch.done = answered(shown)
        if batch.status not in ENDED:
            return before != (batch.status, batch.done)
        errors = (shown.get("errors") or {}).get("data") or []
        self._record.note("ended", batch, status=batch.status, done=batch.done, errors=errors)
        _say(f"{batch.batch_id}: {batch.status}, {batch.done:,} of {batch.requests:,} answered")
        self._download(batch, shown)
        return True

    def _download(self, batch: Batch, shown: dict[str, Any]) -> None:
        files = {"output": shown.get("output_file_id"), "errors": shown.get("error_file_id")}
        for attempt in range(_READS):
            for kind, file_id in files.items():
                if file_id:
                    self._api().content(file_id, self._record.path(kind, batch))
            if not (garbled := self._record.index_answers(batch)):
                break
            _say(f"{batch.batch_id}: {garbled} lines are no answers (read {attempt + 1} times)")
        self._record.note("downloaded", batch)
        for tokens in batch.used:
            self._spending.add(*tokens)

    def wait(self) -> Generator[Result, None, None]:
        """Results as the batches end that have a request of the caller; asks again what has none."""
        pause = first = min(1.0, self._options.poll_seconds)
        while True:
            under_way = [
                batch
                for batch in self._record.batches
                if batch.is_under_way and any(hash_of(i) in self._waiting for i in batch.ids)
            ]
            if not under_way and not self._submission.batch:
                return
            changed = False
            for batch in under_way:
                changed |= self._poll(batch)
                if batch.downloaded:
                    self._check_queue(batch)
                    yield from self._results(batch)
            self._submission.flush()
            if changed:
                pause = first
                continue
            time.sleep(pause * random.uniform(0.8, 1.0))
            pause = min(pause * 1.5, self._options.poll_seconds)

    def _check_queue(self, batch: Batch) -> None:
        """Wait before the next batch where this one, which has ended, found the account's queue full.

        Raises Stop where it failed for a reason that none of its lines is to blame for.
        """
        if batch.status != "failed" or batch.answers:
            self._full_queue = 0
            return
        if any(1 <= (error.get("line") or 0) <= batch.requests for error in batch.errors):
            return
        first = batch.errors[0] if batch.errors else {}
        said = self._served.printable(f"{first.get('code')}: {first.get('message')}")
        if first.get("code") != "token_limit_exceeded":
            raise Stop(
                f"batch {batch.batch_id} failed: {said}; nothing of it was run or paid. Mend that; "
                "the same command submits it again"
            )
        if not any(b.is_under_way for b in self._record.batches):
            self._full_queue += 1
            if self._full_queue > _QUEUE_PAUSES:
                raise Stop(
                    f"batch {batch.batch_id} failed: {said}; lower batch_requests "
                    f"({self._options.requests:,}), or run the same command later"
                )
        pause = self._options.poll_seconds * 2.0 ** min(self._full_queue, 6)
        self._submission.queue_free_at = time.monotonic() + pause
        _say(f"{batch.batch_id}: the account's queue is full; again in {pause:.0f} s")

    def _results(self, batch: Batch) -> Generator[Result, None, None]:
        """Results of the waiting requests that this batch answers; the others are sent again.

        Raises Stop at the end where one of them asks for it.
        """
        stop: Stop | None = None
        for line, sent_as in enumerate(batch.ids):
            hash = hash_of(sent_as)
            left = []
            for wanted in self._waiting.pop(hash, ()):
                try:
                    result = self._answers.result(wanted)
                except Stop as error:
                    stop = stop or error
                    continue
                if not isinstance(result, Missing):
                    yield result
                    continue
                left.append(wanted)
                for samples in result.runs:
                    again = partial(self._sent_again, batch, line, wanted, samples)
                    self._submission.add(wanted.id, hash, samples, again)
            if left:
                self._waiting[hash] = left
        if stop:
            raise stop

    def _sent_again(
        self, batch: Batch, line: int, wanted: Wanted, samples: Sequence[int]
    ) -> dict[str, Any]:
        body = self._record.sent(batch, line)
        body.pop("n", None)
        if len(samples) > 1:
            body["n"] = len(samples)
        if "seed" in body:
            body["seed"] = draws.server_seed(wanted.seed, wanted.id, samples[0])
        return body

    # -- what is left

    def check_budget(self) -> None:
        """Raises Stop where max_cost has kept requests from being submitted."""
        if self._submission.over_budget:
            raise Stop(
                f"{self._submission.unsubmitted:,} requests not submitted: "
                f"{self._submission.over_budget}. What was answered is kept; a higher max_cost goes "
                "on from there"
            )

    def check_nothing_left(self) -> None:
        """Raises Stop where a request has neither an answer nor a failure."""
        if not self._waiting:
            return
        under_way = Counter(b.status for b in self._record.batches if b.is_under_way)
        raise Stop(
            f"{sum(map(len, self._waiting.values())):,} requests have no answer yet: "
            f"{self._submission.unsubmitted:,} are in no batch that is under way, "
            f"batches under way: {dict(under_way) or 'none'}. What is there is kept; submit the "
            "rest, or come back later"
        )

    def summary(self) -> str:
        """What was submitted, and what is waited for."""
        waiting = sum(map(len, self._waiting.values()))
        under_way = sum(b.is_under_way for b in self._record.batches)
        return (
            f"{self._submission.submitted:,} requests submitted now; {waiting:,} wait for an answer, "
            f"in {under_way} batches under way"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
