"""What was submitted to the Batch API, and what came back: the files of a folder.

`batches.jsonl` is the record, a line an event, only ever appended to. Beside it stand what was sent
(`requests-000001.jsonl`) and what came back (`output-`, `errors-`), batch by batch. A line of these
goes by a custom id: a hash of the request's id and of all that it asks for, and which samples.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from prefpipe.files import DataError, open_alone
from prefpipe.foreign_json import read_json
from prefpipe.llm import Request, wire
from prefpipe.llm.costs import Price, estimate_prompt_tokens, find_price

RECORD = "batches.jsonl"
ENDED = ("completed", "failed", "expired", "cancelled")
"""States of a batch that will not change again."""
RUNNING = ("creating", "validating", "in_progress", "finalizing", "cancelling")
_EVENTS = ("created", "absent", "ended", "downloaded")
_DESCRIPTION = ("name", "model", "requests", "prompt_tokens", "new_tokens", "file_id")
_FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys(("batch", "requests", "prompt_tokens", "new_tokens", "done"), int),
    **dict.fromkeys(("event", "name", "model", "file_id", "batch_id", "status"), str),
    "errors": list,
}
_LINE_START = b'{"custom_id": "'


def request_hash(request: Request, body: dict[str, Any]) -> str:
    """A hash of all that the request asks for, but for which samples."""
    what = {name: value for name, value in body.items() if name not in ("n", "seed")}
    seed = request.seed if "seed" in body else None
    text = json.dumps([request.id, seed, what], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def custom_id(hash: str, samples: Sequence[int]) -> str:
    """What the API gives back with the answer: letters, digits and -. samples: without a gap."""
    return f"{hash}-{samples[0]}-{len(samples)}"


def hash_of(custom_id: str) -> str:
    return custom_id.partition("-")[0]


def samples_of(custom_id: str) -> range:
    _, start, count = custom_id.split("-")
    return range(int(start), int(start) + int(count))


@dataclass
class Batch:
    """One batch, as the record's lines tell it."""

    number: int
    name: str
    """Random; stands in the batch's metadata, by which a batch is found whose id was never read."""
    model: str
    requests: int
    prompt_tokens: int
    new_tokens: int
    """At most; prompt_tokens are estimated."""
    file_id: str = ""
    batch_id: str | None = None
    """None: it is not known whether it was created."""
    status: str = "building"
    done: int = 0
    """Requests with an answer, by the API's own count."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Of a batch that failed its validation: code, line (1-based), message, param."""
    downloaded: bool = False
    used: list[tuple[int, int]] = field(default_factory=list)
    """Prompt and new tokens of each answer."""
    ids: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where each line of its requests begins; ids: its custom id."""
    answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Where the answer to a custom id stands: name and offset; of the first line that has one."""
    is_incomplete: bool = False
    """Some answers were made (and paid), and are in no readable line."""

    @property
    def is_under_way(self) -> bool:
        return self.status != "absent" and not self.downloaded


class BatchRecord:
    """The batches of a folder, and where each request stands in them. In memory are the hashes of
    the requests and the offsets of their answers; texts stay on disk."""

    def __init__(self, folder: Path, *, writes: bool = False) -> None:
        """writes: hold the record against other processes; else only look, while another writes it,
        too. Raises DataError on a line that is none of a record."""
        self.folder = folder
        self.batches: list[Batch] = []
        self.lines: dict[str, list[tuple[Batch, int]]] = {}
        """By the hash of a request: batch, and line of its requests (0-based)."""
        self._by_number: dict[int, Batch] = {}
        self._file: IO[bytes] | None = open_alone(folder / RECORD) if writes else None
        try:
            size = self._load()
            if self._file:
                self._file.truncate(size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _load(self) -> int:
        """Bytes of the record's whole lines; a kill can cut the last one."""
        path, size = self.folder / RECORD, 0
        if not path.exists():
            return 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._replay(_event(line))
            except DataError:
                raise
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}:{number}: no line of a batch record") from None
            size += len(line)
        return size

    def _replay(self, event: dict[str, Any]) -> None:
        kind, number = event.pop("event"), event.pop("batch")
        if kind == "creating":
            batch = Batch(number=number, **event)
            self._read_sent(batch)
            self._change(kind, batch, {})
        elif kind in _EVENTS:
            self._change(kind, self._by_number[number], event)
        else:
            raise ValueError(kind)

    def _change(self, kind: str, batch: Batch, values: dict[str, Any]) -> None:
        """Change what the event changes: the one way in which a batch of the record changes."""
        if kind == "creating":
            batch.status = kind
            self.batches.append(batch)
            self._by_number[batch.number] = batch
        for name, value in values.items():
            setattr(batch, name, value)
        if kind == "downloaded":
            batch.downloaded = True
            self.index_answers(batch)

    def note(self, kind: str, batch: Batch, **values: Any) -> None:
        """Write the event down, safe against a power cut; then change the batch by it. From
        "creating" on the batch may exist: what is not found at the server was not created."""
        event = {"event": kind, "batch": batch.number, **values}
        if kind == "creating":
            event |= {name: getattr(batch, name) for name in _DESCRIPTION}
        assert self._file, "this record is only looked at"
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._change(kind, batch, values)

    def path(self, kind: str, batch: Batch) -> Path:
        return self.folder / f"{kind}-{batch.number:06}.jsonl"

    def add_line(self, batch: Batch, custom_id: str, offset: int) -> None:
        """A line more of its requests."""
        self.lines.setdefault(hash_of(custom_id), []).append((batch, len(batch.ids)))
        batch.ids.append(custom_id)
        batch.offsets.append(offset)

    def _read_sent(self, batch: Batch) -> None:
        path = self.path("requests", batch)
        if not path.exists():
            raise DataError(f"{path}: missing, but {RECORD} says that it was sent; put it back")
        for offset, line in _lines(path):
            # only its beginning is read: parsing the texts would take minutes
            id = line[len(_LINE_START) : line.index(b'"', len(_LINE_START))].decode()
            self.add_line(batch, id, offset)

    def index_answers(self, batch: Batch) -> int:
        """Find the batch's answers in its files; returns the number of lines that are none."""
        lines, garbled, paid = {id: line for line, id in enumerate(batch.ids)}, 0, 0
        batch.answers.clear()
        batch.used.clear()
        for kind in ("output", "errors"):
            path = self.path(kind, batch)
            for offset, line in _lines(path) if path.exists() else ():
                answer = _parse_answer(line)
                if answer is None or answer["custom_id"] not in lines:
                    garbled += bool(line.strip())
                elif answer["custom_id"] not in batch.answers:
                    batch.answers[answer["custom_id"]] = (path.name, offset)
                    response = wire.part(answer, "response", dict)
                    if wire.count_in(response, "status_code") == 200:
                        paid += 1
                        line_sent = lines[answer["custom_id"]]
                        batch.used.append(self._used(batch, line_sent, response.get("body")))
        # The API's own count tells lost answers from lines that never were any.
        batch.is_incomplete = batch.done > paid if batch.done else bool(garbled)
        return garbled

    def _used(self, batch: Batch, line: int, body: Any) -> tuple[int, int]:
        """Prompt and new tokens of an answer; the most there can be where it does not state them."""
        if isinstance(reply := wire.read_reply(body), tuple):
            return 0, 0
        if reply and reply.prompt_tokens and reply.new_tokens:
            return reply.prompt_tokens, reply.new_tokens
        return most_tokens(self.sent(batch, line))

    def sent(self, batch: Batch, line: int) -> dict[str, Any]:
        """The body of a request as it was sent."""
        return _line(self.path("requests", batch), batch.offsets[line])["body"]

    def answer(self, batch: Batch, custom_id: str) -> dict[str, Any]:
        name, offset = batch.answers[custom_id]
        return _line(self.folder / name, offset)

    def cost(self, price: Price) -> float:
        """USD at most: of what was used, and of what is under way as if each text were longest.
        price: of a model that has none of its own."""
        usd = 0.0
        for batch in self.batches:
            price_of = find_price(batch.model, batch=True) or price
            if batch.downloaded:
                usd += sum(price_of.money(*tokens) for tokens in batch.used)
            elif batch.status != "absent":
                usd += self.most_cost(batch, price_of)
        return usd

    def most_cost(self, batch: Batch, price: Price) -> float:
        """USD of the batch if each text is as long as it may be."""
        if len(price.rates) == 1:
            return price.money(batch.prompt_tokens, batch.new_tokens)
        bodies = (self.sent(batch, line) for line in range(len(batch.ids)))
        return sum(price.money(*most_tokens(body)) for body in bodies)


def _event(line: bytes) -> dict[str, Any]:
    """A line of the record. Raises ValueError where it is none."""
    event = read_json(line)
    if not isinstance(event, dict):
        raise ValueError("no event")
    for name, value in event.items():
        if type(value) is not _FIELD_TYPES.get(name, type(value)):
            raise ValueError(name)
    return event


def most_tokens(body: dict[str, Any]) -> tuple[int, int]:
    """Prompt tokens of a request as it is sent (estimated), and new ones at most."""
    new_tokens = body.get("n", 1) * body["max_completion_tokens"]
    return estimate_prompt_tokens(body["messages"]), new_tokens


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line of the file, and where it begins."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _line(path: Path, offset: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        file.seek(offset)
        return read_json(file.readline())


def _parse_answer(line: bytes) -> dict[str, Any] | None:
    """A line of an output or error file; None where it is not one."""
    with contextlib.suppress(ValueError):
        match read_json(line):
            case {"custom_id": str(), "response": {"status_code": int()}} as answer:
                return answer
            case {"custom_id": str(), "error": dict()} as answer:
                return answer
    return None
