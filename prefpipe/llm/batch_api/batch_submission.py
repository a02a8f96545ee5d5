"""Requests to batches: lines are gathered, and a full batch is uploaded and created."""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prefpipe.llm.batch_api.batch_files import BatchFiles
from prefpipe.llm.batch_api.batch_http import ENDPOINT, BatchApi
from prefpipe.llm.batch_api.batch_record import Batch, BatchRecord, custom_id, most_tokens
from prefpipe.llm.costs import find_price, no_price
from prefpipe.llm.wire import Stop
from prefpipe.screen import visible


@dataclass(frozen=True)
class BatchOptions:
    """How a BatchEngine submits and waits; the settings of a ServerStage, and the API's limits."""

    folder: Path
    """Of the record; one process at a time."""
    requests: int = 50_000
    bytes: int = 200_000_000
    tries: int = 3
    max_cost: float | None = None
    poll_seconds: float = 60.0
    as_files: bool = False
    """Nobody is asked: batches are files that a person has run."""
    settle_seconds: float = 20.0
    """After which a batch that was created is in the server's list of batches; poll_seconds where
    that is shorter."""


class Submission:
    """The batch that is being built, and why no more may be submitted."""

    def __init__(
        self,
        record: BatchRecord,
        model: str,
        options: BatchOptions,
        api: Callable[[], BatchApi | BatchFiles],
    ) -> None:
        """api: connects, once something is to be sent."""
        self._record, self._model, self._options, self._api = record, model, options, api
        self.batch: Batch | None = None
        self._lines: IO[bytes] | None = None
        self._size = 0
        self.submitted = 0
        """Requests, by this run."""
        self.unsubmitted = 0
        """Requests that are in no batch since they may not be submitted."""
        self.over_budget = ""
        """Why max_cost allows no more."""
        self.queue_free_at = 0.0
        """time.monotonic() from which on the account's queue may take a batch again."""

    def close(self) -> None:
        if self._lines:
            self._lines.close()

    def add(self, id: str, hash: str, samples: Sequence[int], body: dict[str, Any]) -> None:
        """A line of the batch that is being built, which is submitted first where it is full.
        id: of the request, for what a person is told."""
        if self.over_budget:
            self.unsubmitted += 1
            return
        line = {"custom_id": custom_id(hash, samples), "method": "POST", "url": ENDPOINT}
        data = json.dumps(line | {"body": body}, ensure_ascii=False).encode() + b"\n"
        if len(data) > self._options.bytes:
            raise Stop(
                f"request {id!r} has {len(data):,} bytes, over the limit of a whole batch "
                f"({self._options.bytes:,}, batch_bytes)"
            )
        if self.batch and (
            self.batch.requests == self._options.requests
            or self._size + len(data) > self._options.bytes
        ):
            time.sleep(max(0.0, self.queue_free_at - time.monotonic()))
            self.flush()
            if self.over_budget:
                self.unsubmitted += 1
                return
        if self.batch is None or self._lines is None:
            number = self._record.batches[-1].number + 1 if self._record.batches else 1
            self.batch = Batch(number, uuid.uuid4().hex, self._model, 0, 0, 0)
            # In place: until the record names it, it is a file that no one has sent.
            self._lines = self._record.path("requests", self.batch).open("wb")
            self._size = 0
        batch = self.batch
        self._record.add_line(batch, line["custom_id"], self._size)
        self._lines.write(data)
        self._size += len(data)
        prompt_tokens, new_tokens = most_tokens(body)
        batch.requests += 1
        batch.prompt_tokens += prompt_tokens
        batch.new_tokens += new_tokens

    def flush(self) -> None:
        """Submit the batch that is being built, if there is one and the account's queue is free."""
        if self.batch is None or self._lines is None or time.monotonic() < self.queue_free_at:
            return
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._lines.close()
        batch, self.batch, self._lines = self.batch, None, None
        self.over_budget = self._beyond_max_cost(batch)
        if self.over_budget:
            self.unsubmitted += batch.requests
            batch.status = "absent"
            return
        batch.file_id = self._api().upload(self._record.path("requests", batch), batch.name)
        self._record.note("creating", batch)
        batch_id = self._api().create(batch)
        self._record.note("created", batch, batch_id=batch_id, status="validating")
        self.submitted += batch.requests
        print(visible(f"{batch_id}: {batch.requests:,} requests submitted"), file=sys.stderr)

    def _beyond_max_cost(self, batch: Batch) -> str:
        """Why the batch may not be submitted; empty: it may."""
        if self._options.max_cost is None:
            return ""
        price = find_price(batch.model, batch=True)
        if price is None:
            raise Stop(f"max_cost: {no_price(batch.model)}; add it, or leave max_cost out")
        spent, more = self._record.cost(price), self._record.most_cost(batch, price)
        if spent + more <= self._options.max_cost:
            return ""
        return (
            f"the next batch of {batch.requests:,} requests may cost {more:.2f} USD, and "
            f"{spent:.2f} are spent or under way: more than max_cost ({self._options.max_cost:.2f})"
        )
