"""Prompts to texts through the OpenAI Batch API: half the price, answers within a day, nothing paid twice.

A folder holds the record of what was submitted (`batches.jsonl`, only ever appended to) and beside
it, of each batch, what was sent (`requests-000001.jsonl`) and what came back (`output-000001.jsonl`,
`errors-000001.jsonl`). A request goes by a hash of its id and of all that it asks for, so one that
was submitted is found again by any later run of any stage, whatever became of the run that
submitted it; its answer is read from the folder. Deleting the folder is the way to pay again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx2
import openai
from pydantic import SecretStr

from prefpipe.files import DataError, open_alone
from prefpipe.llm import SERVER_FAILURES, Completion, Failure, Request
from prefpipe.llm.costs import Price, describe_tokens, estimate_tokens, find_price
from prefpipe.llm.server.server_engine import (
    NO_MONEY,
    Reply,
    Result,
    Stop,
    Usage,
    certificates,
    check_base_urls,
    completions_of,
    printable,
    printable_url,
    read_error,
    read_reply,
    request_body,
    retry_after,
    seed_of,
)

T = TypeVar("T")

RECORD = "batches.jsonl"
_EVENTS = ("creating", "created", "absent", "ended", "downloaded")
ENDED = ("completed", "failed", "expired", "cancelled")
"""States of a batch that will not change again."""
_ENDPOINT = "/v1/chat/completions"
_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 900.0
_READS = 3
"""Times an output file is fetched where it has lines that are no answers."""
_QUEUE_PAUSES = 8
"""Times in a row that the account's queue may be full with no batch of ours in it."""


@dataclass(frozen=True)
class BatchOptions:
    """How a BatchEngine submits and waits."""

    folder: Path
    """Of the record; one process at a time."""
    requests: int = 50_000
    """Most requests of one batch; the API's limit."""
    bytes: int = 200_000_000
    """Most bytes of one batch; the API's limit."""
    tries: int = 3
    """Batches that a request is sent in at most, where they end without an answer to it."""
    max_cost: float | None = None
    """USD that all batches of the folder may cost together; None: no limit."""
    poll_seconds: float = 60.0
    """Longest pause between two looks at the batches under way."""


@dataclass
class Estimate:
    """What is left to submit, before anything is sent."""

    requests: int
    submitted: int
    """Requests that the record has already: answered, or under way."""
    prompt_tokens: int
    """By estimate_tokens."""
    new_tokens: int
    """At most: each text as long as it may be."""
    usd: float | None
    """At most; None: no price of the model is known."""


@dataclass
class Batch:
    """One batch, as the record's lines tell it."""

    number: int
    name: str
    """Random; stands in the batch's metadata, by which a batch is found whose id was never read."""
    model: str
    requests: int
    prompt_tokens: int
    """Estimated."""
    new_tokens: int
    """At most."""
    file_id: str = ""
    batch_id: str | None = None
    """None: it is not known whether it was created."""
    status: str = "building"
    done: int = 0
    """Requests with an answer, by the API's own count."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Of a batch that failed its validation: code, line (1-based), message, param."""
    downloaded: bool = False
    used_prompt_tokens: int = 0
    used_new_tokens: int = 0
    ids: list[str] = field(default_factory=list)
    """The custom id of each line of its requests."""
    offsets: list[int] = field(default_factory=list)
    """Where each of these lines begins."""
    answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Where the answer to a custom id stands: name and offset; of the first line that has one."""
    is_incomplete: bool = False
    """Some answers were made (and paid), and are in no readable line."""

    @property
    def is_under_way(self) -> bool:
        return self.status != "absent" and not self.downloaded


@dataclass(frozen=True, slots=True)
class _Job:
    """A request of the caller that has no result yet."""

    id: str
    samples: tuple[int, ...]
    seed: int
    prefill: str

    @classmethod
    def of(cls, request: Request) -> "_Job":
        return cls(request.id, request.samples, request.seed, request.prefill)


@dataclass(frozen=True, slots=True)
class _Again:
    """A line without an answer that may get one in another batch."""

    reason: str
    detail: str


class BatchEngine:
    """Answers from the record where it has them; the rest is submitted, waited for and read.

    generate() yields each result once it is there, not in order. A kill at any moment costs
    nothing: what may have been created is looked for at the server before anything is created
    again. A line that ends without an answer (expired, cancelled, an error of the server) is sent
    again, in options.tries batches at most. Failure reasons: those of ServerEngine, but in place of
    SERVER_FAILURES batch_expired, batch_cancelled, batch_error, batch_missing after the last try. An
    answer that was paid and cannot be read is a garbled_reply, and is not paid again.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        api_key: SecretStr | None,
        options: BatchOptions,
        *,
        max_retries: int = 8,
        timeout_seconds: float = 600.0,
        first_backoff_seconds: float = 0.5,
        settle_seconds: float | None = None,
        structured_output: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """base_urls: one. api_key: needed only once something is asked of the server.
        max_retries, timeout_seconds, first_backoff_seconds: of one call of the API.
        settle_seconds: after which a batch that was created is in the server's list of batches; None:
        20, or a shorter pause between two looks.
        structured_output: send each request's reply_schema, where it has one, as response_format.
        extra_body: fields that go with every request.
        """
        self.base_urls = tuple(base_urls)
        self.model = model
        self.api_key = api_key
        self.options = options
        self.max_retries = max_retries
        self.timeout_seconds = timeout_seconds
        self.first_backoff_seconds = first_backoff_seconds
        self.settle_seconds = (
            min(20.0, options.poll_seconds) if settle_seconds is None else settle_seconds
        )
        self.structured_output = structured_output
        self.extra_body = dict(extra_body or {})
        self.usage = Usage()
        """Of the batches whose answers this engine has fetched."""

    def spent(self) -> str:
        """Tokens and money of the answers that this engine has fetched, for a person."""
        used = self.usage
        return describe_tokens(self.model, used.prompt_tokens, used.new_tokens, batch=True)

    def generate(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Submit what is not submitted, wait for every batch that has one of these, give results."""
        yield from self._session(requests, may_submit=True, waits=True)

    def submit(self, requests: Iterable[Request]) -> str:
        """Submit what is not submitted, also what ended without an answer; says what became of it."""
        with self._stopping(), _Session(self) as session:
            session.look()
            for _ in session.take(requests):
                pass  # answered before; download gives it
            session.flush()
            session.check_budget()
            return session.summary()

    def download(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results of the batches that have ended; SystemExit at the end where there are others."""
        yield from self._session(requests, may_submit=False, waits=False)

    def _session(
        self, requests: Iterable[Request], *, may_submit: bool, waits: bool
    ) -> Generator[Result, None, None]:
        with self._stopping(), _Session(self, may_submit=may_submit) as session:
            session.look()
            yield from session.take(requests)
            session.flush()
            if waits:
                yield from session.wait()
            session.check_budget()
            session.check_nothing_left()

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Asks and writes nothing."""
        new = Estimate(0, 0, 0, 0, None)
        with self._stopping(), _Session(self, writes=False) as session:
            for request in requests:
                result = session.result(request)
                runs = result.runs if isinstance(result, _Missing) else []
                new.submitted += not runs
                new.requests += len(runs)
                new.prompt_tokens += len(runs) * _prompt_tokens(request.messages)
                new.new_tokens += sum(map(len, runs)) * request.max_new_tokens
        if price := find_price(self.model):
            new.usd = price.money(new.prompt_tokens, new.new_tokens, batch=True)
        return new

    def status(self) -> list[Batch]:
        """The folder's batches, those under way as the server has them now. Writes nothing."""
        with self._stopping():
            batches = Record(self.options.folder).batches
            api = _Api(self) if any(b.status not in (*ENDED, "absent") for b in batches) else None
            for batch in batches:
                if api and batch.batch_id and batch.status not in ENDED:
                    found = api.retrieve(batch.batch_id)
                    batch.status, batch.done = str(found["status"]), _done(found)
            return batches

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except Stop as stop:
            raise SystemExit(str(stop)) from None


# ---- the record ------------------------------------------------------------------------------


class Record:
    """The batches of a folder, and where each request stands in them. Reads; a Session writes.

    In memory are the hashes of the requests and the offsets of their answers; texts stay on disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: list[Batch] = []
        self._by_number: dict[int, Batch] = {}
        self.places: dict[str, list[tuple[Batch, int]]] = {}
        """By the hash of a request: batch, and line of its requests (0-based)."""
        self.size = 0
        """Bytes of the record's whole lines; a kill can cut the last one."""
        path = folder / RECORD
        if path.exists():
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self.replay(json.loads(line))
                except DataError:
                    raise
                except (ValueError, KeyError, TypeError):
                    raise DataError(f"{path}:{number}: no line of a batch record") from None
                self.size += len(line)

    def path(self, kind: str, batch: Batch) -> Path:
        return self.folder / f"{kind}-{batch.number:06}.jsonl"

    def replay(self, event: dict[str, Any]) -> None:
        """Change what the event changes: the one way in which a batch of the record changes."""
        kind, number = event.pop("event"), event.pop("batch")
        if kind == "creating":
            batch = Batch(number=number, **event)
            self._read_sent(batch)
            self.append(batch)
            return
        if kind not in _EVENTS:
            raise ValueError(kind)
        batch = self._by_number[number]
        for name, value in event.items():
            setattr(batch, name, value)
        if kind == "downloaded":
            batch.downloaded = True
            self.index_answers(batch)

    def append(self, batch: Batch) -> None:
        batch.status = "creating"
        self.batches.append(batch)
        self._by_number[batch.number] = batch

    def add_line(self, batch: Batch, id: str, offset: int) -> None:
        self.places.setdefault(id.partition("-")[0], []).append((batch, len(batch.ids)))
        batch.ids.append(id)
        batch.offsets.append(offset)

    def _read_sent(self, batch: Batch) -> None:
        path = self.path("requests", batch)
        if not path.exists():
            raise DataError(f"{path}: missing, but {RECORD} says that it was sent; put it back")
        offset = 0
        with open(path, "rb") as file:
            for line in file:
                id = line[len(_LINE_START) : line.index(b'"', len(_LINE_START))].decode()
                self.add_line(batch, id, offset)
                offset += len(line)

    def index_answers(self, batch: Batch) -> int:
        """Find the batch's answers in its files; returns the number of lines that are none."""
        wanted, garbled, made = set(batch.ids), 0, 0
        batch.answers.clear()
        batch.used_prompt_tokens = batch.used_new_tokens = 0
        for kind in ("output", "errors"):
            path = self.path(kind, batch)
            if not path.exists():
                continue
            offset = 0
            with open(path, "rb") as file:
                for line in file:
                    answer = _parse_answer(line)
                    if answer is None or answer["custom_id"] not in wanted:
                        garbled += bool(line.strip())
                    elif answer["custom_id"] not in batch.answers:
                        batch.answers[answer["custom_id"]] = (path.name, offset)
                        made += (answer.get("response") or {}).get("status_code") == 200
                        used = _usage(answer)
                        batch.used_prompt_tokens += used[0]
                        batch.used_new_tokens += used[1]
                    offset += len(line)
        batch.is_incomplete = batch.done > made if batch.done else bool(garbled)
        return garbled

    def sent(self, batch: Batch, line: int) -> dict[str, Any]:
        """The body of a request as it was sent."""
        return self._line(self.path("requests", batch), batch.offsets[line])["body"]

    def answer(self, batch: Batch, id: str) -> dict[str, Any]:
        name, offset = batch.answers[id]
        return self._line(self.folder / name, offset)

    def _line(self, path: Path, offset: int) -> dict[str, Any]:
        with open(path, "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def cost(self, price: Price) -> float:
        """USD at most: of what was used, and of what is under way as if each text were longest.

        price: of a model that has none in the table.
        """
        batches = [batch for batch in self.batches if batch.status != "absent"]
        prices = {model: find_price(model) or price for model in {b.model for b in batches}}
        return sum(
            prices[b.model].money(b.used_prompt_tokens, b.used_new_tokens, batch=True)
            if b.downloaded
            else prices[b.model].money(b.prompt_tokens, b.new_tokens, batch=True)
            for b in batches
        )


_LINE_START = b'{"custom_id": "'


def _parse_answer(line: bytes) -> dict[str, Any] | None:
    """A line of an output or error file; None where it is not one."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("custom_id"), str):
        return None
    response, error = answer.get("response"), answer.get("error")
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        return answer
    return answer if isinstance(error, dict) else None


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    try:
        used = answer["response"]["body"]["usage"]
        return int(used["prompt_tokens"]), int(used["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        return 0, 0


def _done(found: dict[str, Any]) -> int:
    return int((found.get("request_counts") or {}).get("completed") or 0)


def _prompt_tokens(messages: Iterable[Any]) -> int:
    return sum(estimate_tokens(message["content"]) for message in messages)


def _base_of(request: Request, body: dict[str, Any]) -> str:
    """A hash of all that the request asks for, but for which samples."""
    what = {name: value for name, value in body.items() if name not in ("n", "seed")}
    seed = request.seed if "seed" in body else None
    text = json.dumps([request.id, seed, what], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _custom_id(base: str, samples: Sequence[int]) -> str:
    """What the API gives back with the answer: letters, digits and - only, whatever the id.

    samples: without a gap.
    """
    return f"{base}-{samples[0]}-{len(samples)}"


def _samples_of(custom_id: str) -> range:
    _, start, count = custom_id.split("-")
    return range(int(start), int(start) + int(count))


def _runs(samples: Iterable[int]) -> list[list[int]]:
    """0, 1, 2, 5 -> [0, 1, 2], [5]"""
    runs: list[list[int]] = []
    for sample in sorted(samples):
        if runs and runs[-1][-1] == sample - 1:
            runs[-1].append(sample)
        else:
            runs.append([sample])
    return runs


# ---- one run over the record -----------------------------------------------------------------


class _Session:
    """Holds the record for itself: what it finds, submits and reads, it appends."""

    def __init__(
        self, engine: BatchEngine, *, may_submit: bool = True, writes: bool = True
    ) -> None:
        """writes: False only looks at the record, also while another process writes it."""
        self.engine, self.options = engine, engine.options
        self._may_submit = may_submit
        self._api_opened: _Api | None = None
        self._building: Batch | None = None
        self._lines: IO[bytes] | None = None
        self._lines_size = 0
        self._file: IO[bytes] | None = None
        folder = engine.options.folder
        if writes:
            self._file = open_alone(folder / RECORD)
        try:
            self.record = Record(folder)
            if self._file:
                self._file.truncate(self.record.size)  # a line that a kill has cut
        except BaseException:
            self.close()
            raise
        self._waiting: dict[str, list[_Job]] = {}
        self._submitted = 0
        self._over_budget = ""
        self._unsubmitted = 0
        self._full_queue = 0
        self._queue_free_at = 0.0

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._lines:
            self._lines.close()
        if self._file:
            self._file.close()
        if self._api_opened:
            self._api_opened.close()

    @property
    def _api(self) -> "_Api":
        self._api_opened = self._api_opened or _Api(self.engine)
        return self._api_opened

    def _append(self, kind: str, batch: Batch, **values: Any) -> None:
        """Safe against a kill, and a power cut, once this returns."""
        event = {"event": kind, "batch": batch.number, **values}
        assert self._file, "this session only looks"
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _note(self, kind: str, batch: Batch, **values: Any) -> None:
        self._append(kind, batch, **values)
        self.record.replay({"event": kind, "batch": batch.number, **values})

    # -- requests in

    def take(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results that the record has; the other requests are kept, and submitted where allowed."""
        for request in requests:
            result = self.result(request)
            if not isinstance(result, _Missing):
                yield result
                continue
            base, job = _base_of(request, self._body(request, request.samples)), _Job.of(request)
            self._waiting.setdefault(base, []).append(job)
            for samples in result.runs:
                self._add(base, job, samples, partial(self._body, request, samples))

    def result(self, request: Request) -> "Result | _Missing":
        """What the record has for the request, or which of its samples no batch will answer."""
        body = self._body(request, request.samples)
        return self._result(_base_of(request, body), _Job.of(request))

    def _body(self, request: Request, samples: Sequence[int]) -> dict[str, Any]:
        # max_completion_tokens: newer OpenAI models refuse max_tokens, and a batch learns of that
        # only once all of its lines have failed.
        return request_body(self.engine, request, samples, "max_completion_tokens")

    def _result(self, base: str, job: _Job) -> "Result | _Missing":
        have: dict[int, Completion] = {}
        pending: set[int] = set()
        tries: Counter[int] = Counter()
        last = _Again("", "")
        for batch, line in self.record.places.get(base, ()):
            if batch.status == "absent":
                continue
            samples = [k for k in _samples_of(batch.ids[line]) if k in job.samples]
            if not batch.downloaded:
                pending.update(samples)
                continue
            outcome = self._outcome(batch, line, job)
            if isinstance(outcome, Failure):
                return outcome
            if isinstance(outcome, _Again):
                last = outcome
                tries.update(samples)
            elif outcome:
                have.update((c.sample, c) for c in outcome if c.sample in job.samples)
        missing = set(job.samples) - have.keys()
        if not missing:
            return [have[k] for k in job.samples]
        missing -= pending
        if missing and (most := max(tries[k] for k in missing)) >= self.options.tries:
            reason = last.reason if last.reason.startswith("batch_") else "batch_error"
            return Failure(job.id, reason, f"{most} batches; the last: {last.detail}")
        return _Missing(_runs(missing))

    def _outcome(
        self, batch: Batch, line: int, job: _Job
    ) -> "list[Completion] | Failure | _Again | None":
        """What became of a line of a batch that has ended; None: it was not even tried."""
        engine, id = self.engine, batch.ids[line]
        place = f"batch {batch.batch_id}, request {job.id!r}: "
        if id not in batch.answers:
            if batch.status == "failed" and not batch.done:
                named = next((e for e in batch.errors if e.get("line") == line + 1), None)
                if named is None:
                    return None
                status = 404 if named.get("code") == "model_not_found" else 400
                body = self.record.sent(batch, line)
                return Failure(job.id, *read_error(status, named, body, place, engine.api_key))
            if batch.is_incomplete:
                detail = f"{batch.batch_id}: the answer is in no readable line of its output"
                return Failure(job.id, "garbled_reply", detail)
            reason = "batch_missing" if batch.status == "completed" else f"batch_{batch.status}"
            return _Again(reason, f"{batch.batch_id} {batch.status} without it")
        answer = self.record.answer(batch, id)
        response, error = answer.get("response"), answer.get("error") or {}
        if not isinstance(response, dict):
            reason = str(error.get("code"))
            if reason not in ("batch_expired", "batch_cancelled"):
                reason = "batch_error"
            detail = printable(f"{error.get('code')}: {error.get('message')}", engine.api_key)
            return _Again(reason, f"{batch.batch_id}: {detail}")
        status, body = response["status_code"], response.get("body")
        if status == 200:
            reply = read_reply(body, job.id, Usage(), engine.api_key)
            if reply is None:
                text = printable(json.dumps(body, ensure_ascii=False), engine.api_key)
                return Failure(job.id, "garbled_reply", f"no chat completion but {text}")
            if isinstance(reply, Reply):
                reply = completions_of(reply, job.id, _samples_of(id), job.prefill)
            return reply
        stated = body.get("error") if isinstance(body, dict) else None
        stated = stated if isinstance(stated, dict) else {"message": body}
        if status in (401, 402, 403) or stated.get("code") in NO_MONEY:
            # The account's, not the request's: it may have been mended since.
            detail = printable(str(stated.get("message")), engine.api_key)
            return _Again("batch_error", f"{batch.batch_id}: HTTP {status}: {detail}")
        sent = self.record.sent(batch, line)
        reason, detail = read_error(status, stated, sent, place, engine.api_key)
        if reason in SERVER_FAILURES:
            return _Again("batch_error", f"{batch.batch_id}: {detail}")
        return Failure(job.id, reason, detail)

    # -- batches out

    def _add(
        self, base: str, job: _Job, samples: Sequence[int], body: Callable[[], dict[str, Any]]
    ) -> None:
        """A line of the batch that is being built; a full one is submitted."""
        if self._over_budget or not self._may_submit:
            self._unsubmitted += 1
            return
        id, sent = _custom_id(base, samples), body()
        line = json.dumps({"custom_id": id, "method": "POST", "url": _ENDPOINT, "body": sent},
                          ensure_ascii=False).encode() + b"\n"  # fmt: skip
        if len(line) > self.options.bytes:
            raise Stop(
                f"request {job.id!r} has {len(line):,} bytes, over the limit of a whole batch "
                f"({self.options.bytes:,}, batch_bytes)"
            )
        if self._building and (
            self._building.requests == self.options.requests
            or self._lines_size + len(line) > self.options.bytes
        ):
            time.sleep(max(0.0, self._queue_free_at - time.monotonic()))
            self.flush()
            if self._over_budget:
                self._unsubmitted += 1
                return
        if self._building is None:
            number = self.record.batches[-1].number + 1 if self.record.batches else 1
            self._building = Batch(number, uuid.uuid4().hex, self.engine.model, 0, 0, 0)
            path = self.record.path("requests", self._building)
            # In place: until the record names it, it is a file that no one has sent.
            self._lines, self._lines_size = open(path, "wb"), 0  # noqa: SIM115
        assert self._lines
        self.record.add_line(self._building, id, self._lines_size)
        self._lines.write(line)
        self._lines_size += len(line)
        self._building.requests += 1
        self._building.prompt_tokens += _prompt_tokens(sent["messages"])
        self._building.new_tokens += len(samples) * sent["max_completion_tokens"]

    def flush(self) -> None:
        """Submit the batch that is being built, if there is one."""
        batch = self._building
        if batch is None or time.monotonic() < self._queue_free_at:
            return
        assert self._lines
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._lines.close()
        self._building = self._lines = None
        self._submit(batch)

    def _submit(self, batch: Batch) -> None:
        if reason := self._beyond_max_cost(batch):
            self._over_budget = reason
            self._unsubmitted += batch.requests
            batch.status = "absent"
            return
        path = self.record.path("requests", batch)
        batch.file_id = self._api.upload(path, batch.name)
        # From here on it may exist: what is not found at the server was not created.
        self._append(
            "creating",
            batch,
            name=batch.name,
            model=batch.model,
            requests=batch.requests,
            prompt_tokens=batch.prompt_tokens,
            new_tokens=batch.new_tokens,
            file_id=batch.file_id,
        )
        self.record.append(batch)
        self._note("created", batch, batch_id=self._api.create(batch), status="validating")
        self._submitted += batch.requests
        _say(f"{batch.batch_id}: {batch.requests:,} requests submitted")

    def _beyond_max_cost(self, batch: Batch) -> str:
        """Why the batch may not be submitted; empty: it may."""
        if self.options.max_cost is None:
            return ""
        price = find_price(batch.model)
        if price is None:
            raise Stop(
                f"max_cost: no price of {batch.model} in prefpipe/prices.toml; add it, or leave "
                "max_cost out"
            )
        spent = self.record.cost(price)
        more = price.money(batch.prompt_tokens, batch.new_tokens, batch=True)
        if spent + more <= self.options.max_cost:
            return ""
        return (
            f"the next batch of {batch.requests:,} requests may cost {more:.2f} USD, and "
            f"{spent:.2f} are spent or under way: more than max_cost ({self.options.max_cost:.2f})"
        )

    # -- batches back

    def look(self) -> None:
        """What became of the batches that the record has under way; reads those that have ended."""
        for batch in self.record.batches:
            if batch.batch_id is None and batch.is_under_way:
                # The run that created it, or was about to, has never read its id.
                found = self._api.find(batch, patient=True)
                if found is None:
                    self._note("absent", batch, status="absent")
                else:
                    self._note("created", batch, batch_id=found, status="validating")
            if batch.is_under_way:
                self._poll(batch)

    def _poll(self, batch: Batch) -> bool:
        """Whether something has changed."""
        assert batch.batch_id
        if batch.status in ENDED:
            self._download(batch)
            return True
        found = self._api.retrieve(batch.batch_id)
        before, batch.status = (batch.status, batch.done), str(found["status"])
        batch.done = _done(found)
        if batch.status not in ENDED:
            return before != (batch.status, batch.done)
        errors = (found.get("errors") or {}).get("data") or []
        self._note("ended", batch, status=batch.status, done=batch.done, errors=errors)
        _say(f"{batch.batch_id}: {batch.status}, {batch.done:,} of {batch.requests:,} answered")
        self._download(batch, found)
        return True

    def _download(self, batch: Batch, found: dict[str, Any] | None = None) -> None:
        assert batch.batch_id
        found = found or self._api.retrieve(batch.batch_id)
        files = {"output": found.get("output_file_id"), "errors": found.get("error_file_id")}
        for attempt in range(_READS):
            for kind, file_id in files.items():
                if file_id:
                    self._api.content(file_id, self.record.path(kind, batch))
            if not (garbled := self.record.index_answers(batch)):
                break
            _say(f"{batch.batch_id}: {garbled} lines are no answers (read {attempt + 1} times)")
        self._note("downloaded", batch)
        self.engine.usage.replies += len(batch.answers)
        self.engine.usage.prompt_tokens += batch.used_prompt_tokens
        self.engine.usage.new_tokens += batch.used_new_tokens

    def wait(self) -> Generator[Result, None, None]:
        """Results as the batches end that have a request of the caller; asks again what has none."""
        pause = first = min(1.0, self.options.poll_seconds)
        while True:
            under_way = [
                batch
                for batch in self.record.batches
                if batch.is_under_way
                and any(i.partition("-")[0] in self._waiting for i in batch.ids)
            ]
            if not under_way and not self._building:
                return
            changed = False
            for batch in under_way:
                changed |= self._poll(batch)
                if batch.downloaded:
                    self._check_queue(batch)
                    yield from self._results(batch)
            self.flush()
            if changed:
                pause = first
                continue
            time.sleep(pause * random.uniform(0.8, 1.0))
            pause = min(pause * 1.5, self.options.poll_seconds)

    def _check_queue(self, batch: Batch) -> None:
        """Of a batch that has ended: where the account's queue was full, wait before the next one.

        Raises Stop where it failed for a reason that none of its lines is to blame for.
        """
        if batch.status != "failed" or batch.answers:
            self._full_queue = 0
            return
        if any(1 <= (error.get("line") or 0) <= batch.requests for error in batch.errors):
            return
        first = batch.errors[0] if batch.errors else {}
        said = printable(f"{first.get('code')}: {first.get('message')}", self.engine.api_key)
        if first.get("code") != "token_limit_exceeded":
            raise Stop(
                f"batch {batch.batch_id} failed: {said}; nothing of it was run or paid. Mend that; "
                "the same command submits it again"
            )
        if not any(b.is_under_way for b in self.record.batches):
            self._full_queue += 1
            if self._full_queue > _QUEUE_PAUSES:
                raise Stop(
                    f"batch {batch.batch_id} failed: {said}; lower batch_requests "
                    f"({self.options.requests:,}), or run the same command later"
                )
        pause = self.options.poll_seconds * 2.0 ** min(self._full_queue, 6)
        self._queue_free_at = time.monotonic() + pause
        _say(f"{batch.batch_id}: the account's queue is full; again in {pause:.0f} s")

    def _results(self, batch: Batch) -> Generator[Result, None, None]:
        """Of the waiting requests that are in the batch; then, Stop if one of them says so."""
        stop: Stop | None = None
        for line, id in enumerate(batch.ids):
            base = id.partition("-")[0]
            left = []
            for job in self._waiting.pop(base, ()):
                try:
                    result = self._result(base, job)
                except Stop as error:
                    stop = stop or error
                    continue
                if not isinstance(result, _Missing):
                    yield result
                    continue
                left.append(job)
                for samples in result.runs:
                    again = partial(self._sent_again, batch, line, job, samples)
                    self._add(base, job, samples, again)
            if left:
                self._waiting[base] = left
        if stop:
            raise stop

    def _sent_again(
        self, batch: Batch, line: int, job: _Job, samples: Sequence[int]
    ) -> dict[str, Any]:
        body = self.record.sent(batch, line)
        body.pop("n", None)
        if len(samples) > 1:
            body["n"] = len(samples)
        if "seed" in body:
            body["seed"] = seed_of(job.seed, job.id, samples[0])
        return body

    # -- what is left

    def check_budget(self) -> None:
        if self._over_budget:
            raise Stop(
                f"{self._unsubmitted:,} requests not submitted: {self._over_budget}. What was "
                "answered is kept; a higher max_cost goes on from there"
            )

    def check_nothing_left(self) -> None:
        """Raises Stop where a request has neither an answer nor a failure."""
        if not self._waiting:
            return
        under_way = Counter(b.status for b in self.record.batches if b.is_under_way)
        raise Stop(
            f"{sum(map(len, self._waiting.values())):,} requests have no answer yet: "
            f"{self._unsubmitted:,} are in no batch that is under way, "
            f"batches under way: {dict(under_way) or 'none'}. What is there is kept; submit the "
            "rest, or come back later"
        )

    def summary(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        under_way = sum(b.is_under_way for b in self.record.batches)
        return (
            f"{self._submitted:,} requests submitted now; {waiting:,} wait for an answer, in "
            f"{under_way} batches under way"
        )


@dataclass(frozen=True, slots=True)
class _Missing:
    """Samples that no batch under way will answer, as runs without a gap; none: all are under way."""

    runs: list[list[int]]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# ---- the API ---------------------------------------------------------------------------------


class _Api:
    """The few calls of the Batch API, each tried again where that may pass. Raises Stop."""

    def __init__(self, engine: BatchEngine) -> None:
        check_base_urls(engine.base_urls)
        url, *others = engine.base_urls
        if others:
            raise Stop(f"the batch engine talks to one server; found {len(others) + 1} base URLs")
        self._engine = engine
        self._place = printable_url(url)
        self._client = openai.OpenAI(
            base_url=url,
            api_key=engine.api_key.get_secret_value().strip() if engine.api_key else "none",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                timeout=httpx2.Timeout(engine.timeout_seconds, connect=30.0),
                verify=certificates(),
            ),
        )

    def close(self) -> None:
        self._client.close()

    def upload(self, path: Path, name: str) -> str:
        """The file's id. A file whose upload was cut short costs nothing."""

        def call() -> str:
            with open(path, "rb") as file:
                response = self._client.files.with_raw_response.create(
                    file=(f"prefpipe-{name}.jsonl", file), purpose="batch"
                )
            return self._object(response.text)["id"]

        return self._retry(call)

    def create(self, batch: Batch) -> str:
        """The batch's id. After a try whose reply was lost, it is looked for before the next one."""
        tried = False

        def call() -> str:
            nonlocal tried
            if tried and (found := self.find(batch, patient=True)):
                return found
            tried = True
            response = self._client.batches.with_raw_response.create(
                input_file_id=batch.file_id,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={"prefpipe": batch.name},
            )
            return self._object(response.text)["id"]

        return self._retry(call)

    def find(self, batch: Batch, *, patient: bool) -> str | None:
        """Id of the batch of that name, or of that input file, among all of the account.

        patient: where it is not there, look again once it would have been.
        """

        def page(after: str | None) -> dict[str, Any]:
            options: dict[str, Any] = {"after": after} if after else {}
            response = self._client.batches.with_raw_response.list(limit=100, **options)
            return self._object(response.text, "data")

        after = None
        while True:
            found = self._retry(lambda after=after: page(after))
            for other in found["data"]:
                if (other.get("metadata") or {}).get("prefpipe") == batch.name:
                    return other["id"]
                if other.get("input_file_id") == batch.file_id:
                    return other["id"]
            if not found.get("has_more") or not found["data"]:
                break
            after = found["data"][-1]["id"]
        if not patient:
            return None
        time.sleep(self._engine.settle_seconds)
        return self.find(batch, patient=False)

    def retrieve(self, batch_id: str) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            response = self._client.batches.with_raw_response.retrieve(batch_id)
            return self._object(response.text, "status")

        return self._retry(call, missing=f"batch {batch_id} is not known there: was it submitted "
                           "to another server, or by another account?")  # fmt: skip

    def content(self, file_id: str, path: Path) -> None:
        """The file, whole or not at all."""
        temporary = path.with_suffix(".tmp")

        def call() -> None:
            with (
                self._client.files.with_streaming_response.content(file_id) as response,
                open(temporary, "wb") as file,
            ):
                for part in response.iter_bytes():
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            with open(temporary, "rb") as file:
                # A gateway's page must not make paid answers unreadable for good.
                if not any(line.startswith(b"{") for line in file):
                    raise _Garbled(f"file {file_id} has no line of JSON")

        self._retry(
            call, missing=f"file {file_id} is there no more; without it the answers are lost"
        )
        os.replace(temporary, path)

    def _object(self, text: str, needed: str = "id") -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or needed not in found:
            raise _Garbled(printable(text, self._engine.api_key))
        return found

    def _retry(self, call: Callable[[], T], missing: str = "") -> T:
        """The call's result. missing: what a 404 means."""
        engine = self._engine
        for attempt in itertools.count():
            after = None
            try:
                return call()
            except openai.APIStatusError as error:
                stated = error.body if isinstance(error.body, dict) else {}
                message = stated.get("message") or error.response.text
                if error.status_code == 404 and missing:
                    raise Stop(f"{self._place}: {missing}") from None
                reason, detail = read_error(
                    error.status_code,
                    {**stated, "message": message},
                    {"model": engine.model},
                    f"{self._place}: ",
                    engine.api_key,
                )
                if reason not in SERVER_FAILURES:
                    raise Stop(f"{self._place}: {detail}") from None
                after = retry_after(error.response.headers)
            except _Garbled as error:
                detail = f"a reply that is none: {error}"
            except (openai.APIConnectionError, httpx2.HTTPError) as error:
                cause = error.__cause__ or error
                detail = printable(f"{type(cause).__name__}: {cause}", engine.api_key)
            if attempt == engine.max_retries or (after or 0) > _LONGEST_RETRY_AFTER_SECONDS:
                raise Stop(
                    f"{self._place}: {attempt + 1} tries; the last: {detail}; nothing is lost: the "
                    "same command goes on from here"
                )
            pause = engine.first_backoff_seconds * 2.0 ** min(attempt, 30)
            pause = min(pause, _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)
            time.sleep(max(after or 0.0, pause))
        raise AssertionError


class _Garbled(Exception):
    """A reply of the API that is not what its documentation says."""
