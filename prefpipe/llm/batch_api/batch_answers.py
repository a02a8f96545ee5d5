"""What a folder's batches have brought for a request, and what lacks still."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefpipe.llm import SERVER_FAILURES, Completion, Failure, Request, Result, error_replies, wire
from prefpipe.llm.batch_api.batch_record import Batch, BatchRecord, request_hash, samples_of
from prefpipe.llm.wire import ServedModel


class Missing(list[list[int]]):
    """Samples that no batch under way will answer, as runs without a gap; none: all are under way."""


@dataclass(frozen=True, slots=True)
class _Again(Failure):
    """A line without an answer that may get one in another batch."""


class Answers:
    """The answers of a record. Reads only."""

    def __init__(self, record: BatchRecord, served: ServedModel, tries: int) -> None:
        """tries: batches that a request is sent in at most, where they end without an answer."""
        self._record, self._served, self._tries = record, served, tries
        self._goes_one_by_one = "n" in served.unsent

    def body(self, request: Request, samples: Sequence[int]) -> dict[str, Any]:
        """The chat completion request for those samples, as a batch has it."""
        # max_completion_tokens: newer OpenAI models refuse max_tokens, and a batch learns of that
        # only once all of its lines have failed.
        return wire.request_body(self._served, request, samples, "max_completion_tokens")

    def hash(self, request: Request) -> str:
        """What the record knows the request by."""
        body = self.body(request, request.samples)
        # n is in no hash; a request that was refused for its n is another one without it
        return request_hash(request, body | ({"unsent": "n"} if self._goes_one_by_one else {}))

    def result(self, hash: str, request: Request) -> Result | Missing:
        """The completions or the failure; or which samples no batch will answer. Raises Stop."""
        have: dict[int, Completion] = {}
        pending: set[int] = set()
        tries: Counter[int] = Counter()
        last = _Again(request.id, "")
        # 1) What each line that was ever sent for it has brought.
        for batch, line in self._record.lines.get(hash, ()):
            if batch.status == "absent":
                continue
            samples = [k for k in samples_of(batch.ids[line]) if k in request.samples]
            if not batch.downloaded:
                pending.update(samples)
                continue
            outcome = self._outcome(batch, line, request.id)
            if isinstance(outcome, _Again):
                last = outcome
                tries.update(samples)
            elif isinstance(outcome, Failure):
                return outcome
            else:
                have.update((c.sample, c) for c in outcome if c.sample in request.samples)
        # 2) What lacks still, and whether it may be sent once more.
        missing = sorted(set(request.samples) - have.keys())
        if not missing:
            return [have[k] for k in request.samples]
        missing = [k for k in missing if k not in pending]
        if missing and (most := max(tries[k] for k in missing)) >= self._tries:
            reason = last.reason if last.reason.startswith("batch_") else "batch_error"
            return Failure(request.id, reason, f"{most} batches; the last: {last.detail}")
        if self._goes_one_by_one:
            return Missing([k] for k in missing)
        # within a run without a gap, a sample's distance to its place stays the same
        runs = itertools.groupby(enumerate(missing), lambda numbered: numbered[1] - numbered[0])
        return Missing([sample for _, sample in run] for _, run in runs)

    def _outcome(self, batch: Batch, line: int, id: str) -> Result:
        """What became of a line of a batch that has ended; no completion: it was not even tried."""
        sent_as = batch.ids[line]
        if sent_as not in batch.answers:
            return self._without_answer(batch, line, id)
        answer = self._record.answer(batch, sent_as)
        response, error = (wire.part(answer, name, dict) for name in ("response", "error"))
        if not (status := wire.count_in(response, "status_code")):
            reason = str(error.get("code"))
            if reason not in ("batch_expired", "batch_cancelled"):
                reason = "batch_error"
            detail = self._served.printable(f"{error.get('code')}: {error.get('message')}")
            return _Again(id, reason, f"{batch.batch_id}: {detail}")
        body = response.get("body")
        stated = wire.part(body, "error", dict) or {"message": body}
        if status == 200:
            reply = wire.read_reply(body)
            if isinstance(reply, wire.ChatCompletion):
                return wire.completions_of(reply, id, samples_of(sent_as), self._served)
            if reply is None:
                text = self._served.printable(json.dumps(body, ensure_ascii=False))
                return Failure(id, "garbled_reply", f"no chat completion but {text}")
            status, stated = reply
        if status in (401, 402, 403) or str(stated.get("code")) in error_replies.NO_MONEY:
            # The account's, not the request's: it may have been mended since.
            detail = self._served.printable(stated.get("message"))
            return _Again(id, "batch_error", f"{batch.batch_id}: HTTP {status}: {detail}")
        reason, detail = self._read_error(batch, line, id, status, stated)
        if reason in SERVER_FAILURES:
            return _Again(id, "batch_error", f"{batch.batch_id}: {detail}")
        return Failure(id, reason, detail)

    def _without_answer(self, batch: Batch, line: int, id: str) -> Result:
        if batch.status == "failed" and not batch.done:
            named = next((e for e in batch.errors if e.get("line") == line + 1), None)
            if named is None:
                return []
            status = 404 if named.get("code") == "model_not_found" else 400
            return Failure(id, *self._read_error(batch, line, id, status, named))
        if batch.is_incomplete:
            detail = f"{batch.batch_id}: the answer is in no readable line of its output"
            return Failure(id, "garbled_reply", detail)
        reason = "batch_missing" if batch.status == "completed" else f"batch_{batch.status}"
        return _Again(id, reason, f"{batch.batch_id} {batch.status} without it")

    def _read_error(
        self, batch: Batch, line: int, id: str, status: int, error: dict[str, Any]
    ) -> tuple[str, str]:
        where = f"batch {batch.batch_id}, request {id!r}"
        return error_replies.read_error(
            status, error, self._record.sent(batch, line), where, self._served
        )
