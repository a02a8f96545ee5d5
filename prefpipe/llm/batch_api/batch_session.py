"""One run over a folder's record: what is there is given, what lacks is submitted, what ends is read."""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from prefpipe import draws
from prefpipe.foreign_json import read_json
from prefpipe.llm import Failure, Request, Result, wire
from prefpipe.llm.batch_api.batch_answers import Answers, Missing
from prefpipe.llm.batch_api.batch_files import BatchFiles, what_to_run
from prefpipe.llm.batch_api.batch_http import BatchApi, FileGone, answered
from prefpipe.llm.batch_api.batch_record import ENDED, RUNNING, Batch, BatchRecord, hash_of
from prefpipe.llm.batch_api.batch_submission import BatchOptions, Submission
from prefpipe.llm.costs import Spending
from prefpipe.llm.wire import ServedModel, Stop
from prefpipe.screen import visible

_LOOKS = 20  # at a batch in a state that the API does not have, before it is given up
_LOOKS_FOR_FILE = 5  # after which a file that is not there is held to be gone
_FILE_BYTES = 10_000_000  # of a file of answers, beside what its requests may come to
_READS = 3  # times an output file is fetched where it has lines that are no answers
_QUEUE_PAUSES = 8  # times in a row that the account's queue may be full with no batch of ours in it


class BatchSession:
    """Holds the record for itself, until close(): what it finds, submits and reads, it appends."""

    def __init__(self, served: ServedModel, options: BatchOptions, spending: Spending) -> None:
        """spending: counts the answers that are fetched."""
        self._served, self._options, self._spending = served, options, spending
        self._record = BatchRecord(options.folder, writes=True)
        self._answers = Answers(self._record, served, options.tries)
        self._submission = Submission(self._record, served.model, options, lambda: self._api)
        self._waiting: dict[str, list[Request]] = {}
        """By its hash; without the messages, which are on disk."""
        self._full_queue = 0
        self._looks: Counter[int] = Counter()
        """In vain, by the number of the batch."""
        self._given_up: dict[int, str] = {}
        """Why a batch is not looked at any more in this run, by its number."""

    def close(self) -> None:
        self._submission.close()
        self._record.close()
        if "_api" in vars(self):
            self._api.close()

    @cached_property
    def _api(self) -> BatchApi | BatchFiles:
        """The connection, opened by the first one who needs it."""
        if self._options.as_files:
            return BatchFiles(self._record)
        settle = min(self._options.settle_seconds, self._options.poll_seconds)
        return BatchApi(self._served, settle)

    def take(
        self, requests: Iterable[Request], *, submits: bool = True
    ) -> Generator[Result, None, None]:
        """Results that the record has; the other requests are kept, and submitted or only counted."""
        for request in requests:
            hash = self._answers.hash(request)
            result = self._answers.result(hash, request)
            if not isinstance(result, Missing):
                yield result
                continue
            self._waiting.setdefault(hash, []).append(replace(request, messages=()))
            if not submits:
                self._submission.unsubmitted += len(result)
                continue
            for samples in result:
                body = self._answers.body(request, samples)
                self._submission.add(request.id, hash, samples, body)
        self._submission.flush()

    def look(self) -> None:
        """What became of the batches that the record has under way; reads those that have ended."""
        for batch in self._record.batches:
            if batch.batch_id is None and batch.is_under_way:
                # The run that created it, or was about to, has never read its id.
                if batch_id := self._api.find(batch):
                    self._record.note("created", batch, batch_id=batch_id, status="validating")
                else:
                    self._record.note("absent", batch, status="absent")
            if batch.is_under_way:
                self._poll(batch)

    def _poll(self, batch: Batch) -> bool:
        """Whether something has changed."""
        assert batch.batch_id
        shown = self._api.retrieve(batch.batch_id)
        if batch.status not in ENDED:
            before, batch.status = (batch.status, batch.done), str(shown["status"])
            batch.done = answered(shown)
            if batch.status not in (*ENDED, *RUNNING):
                self._look_again(
                    batch, f"it is in the state {batch.status[:40]!r}, which nobody knows"
                )
            if batch.status not in ENDED:
                return before != (batch.status, batch.done)
            errors = wire.part(wire.part(shown, "errors", dict), "data", list)
            errors = [error for error in errors if isinstance(error, dict)]
            errors = read_json(self._served.without_secrets(json.dumps(errors)))
            self._record.note("ended", batch, status=batch.status, done=batch.done, errors=errors)
            _say(f"{batch.batch_id}: {batch.status}, {batch.done:,} of {batch.requests:,} answered")
        try:
            self._download(batch, shown)
        except FileGone as error:
            self._look_again(batch, str(error))
        return batch.downloaded

    def _look_again(self, batch: Batch, why: str) -> None:
        """A look in vain; at the last one the batch is given up, in this run."""
        self._looks[batch.number] += 1
        most = _LOOKS if batch.status not in ENDED else _LOOKS_FOR_FILE
        if self._looks[batch.number] == 1:
            _say(f"{batch.batch_id}: {why}; it is looked at {most} times")
        if self._looks[batch.number] >= most:
            self._given_up[batch.number] = f"{batch.batch_id}: {why} ({most} looks)"

    def _download(self, batch: Batch, shown: dict[str, Any]) -> None:
        files = {"output": "output_file_id", "errors": "error_file_id"}
        is_answered = batch.done or batch.status == "completed"
        if is_answered and not any(wire.part(shown, name, str) for name in files.values()):
            raise FileGone("it names no file of its answers")
        # Generous: a token has some 5 characters, and JSON writes one in 6 bytes at most.
        tokens = batch.prompt_tokens + batch.new_tokens
        most_bytes = _FILE_BYTES + 5000 * batch.requests + 100 * tokens
        for attempt in range(_READS):
            for kind, name in files.items():
                if file_id := wire.part(shown, name, str):
                    self._fetch(kind, file_id, batch, most_bytes)
            if not (garbled := self._record.index_answers(batch)):
                break
            _say(f"{batch.batch_id}: {garbled} lines are no answers (read {attempt + 1} times)")
        self._record.note("downloaded", batch)
        for tokens in batch.used:
            self._spending.add(*tokens)

    def _fetch(self, kind: str, file_id: str, batch: Batch, most_bytes: int) -> None:
        """Write the file of the batch. One of errors that is gone is done without in the end: what
        was answered, and paid, stands in the other one."""
        try:
            self._api.content(file_id, self._record.path(kind, batch), most_bytes)
        except FileGone:
            if kind == "output" or self._looks[batch.number] + 1 < _LOOKS_FOR_FILE:
                raise

    def wait(self) -> Generator[Result, None, None]:
        """Results as the batches end that have a request of the caller; asks again what has none."""
        pause = first = min(1.0, self._options.poll_seconds)
        while True:
            batches = self._under_way()
            batches = [b for b in batches if any(hash_of(id) in self._waiting for id in b.ids)]
            batches = [b for b in batches if b.number not in self._given_up]
            if not batches and not self._submission.batch:
                yield from self._failures()
                return
            changed = False
            for batch in batches:
                changed |= self._poll(batch)
                if batch.downloaded:
                    self._check_queue(batch)
                    yield from self._results(batch)
            self._submission.flush()
            if changed:
                pause = first
            else:
                time.sleep(pause * random.uniform(0.8, 1.0))
                pause = min(pause * 1.5, self._options.poll_seconds)

    def _failures(self) -> Iterator[Failure]:
        """The requests that batches have which were given up. None is paid again of itself."""
        for batch in self._record.batches:
            if why := self._given_up.get(batch.number):
                for id in batch.ids:
                    for request in self._waiting.pop(hash_of(id), ()):
                        yield Failure(request.id, "batch_unreadable", why)

    def _under_way(self) -> list[Batch]:
        return [batch for batch in self._record.batches if batch.is_under_way]

    def _check_queue(self, batch: Batch) -> None:
        """Wait before the next batch where this one, which has ended, found the account's queue
        full. Raises Stop where it failed for a reason that none of its lines is to blame for."""
        if batch.status != "failed" or batch.answers:
            self._full_queue = 0
            return
        if any(1 <= wire.count_in(error, "line") <= batch.requests for error in batch.errors):
            return
        first = batch.errors[0] if batch.errors else {}
        said = wire.brief(self._served.printable(f"{first.get('code')}: {first.get('message')}"))
        if first.get("code") != "token_limit_exceeded":
            raise Stop(
                f"batch {batch.batch_id} failed: {said}; nothing of it was run or paid. Mend that; "
                "the same command submits it again"
            )
        if not self._under_way():
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
        Raises Stop at the end where one of them asks for it."""
        stop: Stop | None = None
        for line, sent_as in enumerate(batch.ids):
            hash = hash_of(sent_as)
            for request in self._waiting.pop(hash, ()):
                try:
                    result = self._answers.result(hash, request)
                except Stop as error:
                    stop = stop or error
                    continue
                if not isinstance(result, Missing):
                    yield result
                    continue
                self._waiting.setdefault(hash, []).append(request)
                for samples in result:
                    again = _with_samples(self._record.sent(batch, line), request, samples)
                    self._submission.add(request.id, hash, samples, again)
        if stop:
            raise stop

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
        if self._options.as_files and (waiting := self._under_way()):
            raise Stop(what_to_run(self._options.folder, waiting, self._served.model))
        under_way = Counter(batch.status for batch in self._under_way())
        raise Stop(
            f"{sum(map(len, self._waiting.values())):,} requests have no answer yet: "
            f"{self._submission.unsubmitted:,} are in no batch that is under way, "
            f"batches under way: {dict(under_way) or 'none'}. What is there is kept; submit the "
            "rest, or come back later"
        )

    def summary(self) -> str:
        """What was submitted, and what is waited for."""
        if self._options.as_files and (under_way := self._under_way()):
            return what_to_run(self._options.folder, under_way, self._served.model)
        waiting = sum(map(len, self._waiting.values()))
        return (
            f"{self._submission.submitted:,} requests submitted now; {waiting:,} wait for an answer, "
            f"in {len(self._under_way())} batches under way"
        )


def _with_samples(body: dict[str, Any], request: Request, samples: Sequence[int]) -> dict[str, Any]:
    """A body that was sent for other samples of the request."""
    body = {name: value for name, value in body.items() if name != "n"}
    if len(samples) > 1:
        body["n"] = len(samples)
    if "seed" in body:
        body["seed"] = draws.server_seed(request.seed, request.id, samples[0])
    return body


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr)
