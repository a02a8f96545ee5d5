"""The Batch API of the loopback server: files, batches in all of their states, and what goes wrong."""

import asyncio
import itertools
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from embedded.server.http import ApiError, HttpRequest, HttpResponse

_STATES = ("validating", "in_progress", "finalizing")
"""A batch moves on at each look at it (GET /v1/batches/{id}), and ends behind the last of these."""


@dataclass(frozen=True)
class BatchFault:
    """What goes wrong with one batch. The default is a right one; fields combine."""

    end: str = "completed"
    """How it ends: completed, failed, expired or cancelled."""
    answered: float = 1.0
    """Share of the lines that get a completion, the first ones; of the others it depends on end."""
    line_status: int = 500
    """What the others of a completed batch have in the error file."""
    silent: bool = False
    """The others stand in no file."""
    invalid_lines: tuple[int, ...] = ()
    """1-based numbers: the validation fails, naming them; nothing is run."""
    code: str | None = None
    """The code that a failed validation states, as `token_limit_exceeded`."""
    message: str = "a fault that the test asked for"
    duplicate: bool = False
    """Each output line stands twice."""
    shuffle: bool = False
    """Output lines are in another order."""
    garbage: int = 0
    """Lines that are no JSON, or no answer, between the others."""
    lost: int = 0
    """That many answers are garbage: made, paid and counted, but not to be read."""
    garbled_reads: int | None = None
    """Times the output is read with its garbage; then it is clean. None: always."""


@dataclass(frozen=True)
class BatchCall:
    """A batch as the fault function sees it."""

    number: int
    """0-based, over all batches of this server."""
    lines: list[dict[str, Any]]
    """Of the input file."""


class Api(Protocol):
    """What the server gives: it makes, and counts as paid, one chat completion."""

    async def complete_line(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]: ...


@dataclass
class _Batch:
    call: BatchCall
    fault: BatchFault
    shown: dict[str, Any]
    states: list[str] = field(default_factory=lambda: list(_STATES))
    ending: "asyncio.Task[None] | None" = None
    """The work on its lines, once it has begun: it goes on when the one who looked has gone."""


class Batches:
    """The routes of files and batches, and their state."""

    def __init__(self, api: Api, fault: Callable[[BatchCall], BatchFault | None]) -> None:
        self._api, self._fault = api, fault
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        """Of the files, as they were uploaded."""
        self.batches: dict[str, _Batch] = {}
        self.reads: dict[str, int] = {}
        self._clean: dict[str, bytes] = {}
        self.routes = [
            ("POST", re.compile(r"/v1/files"), self._upload),
            ("GET", re.compile(r"/v1/files/(?P<id>[^/]+)/content"), self._content),
            ("POST", re.compile(r"/v1/batches"), self._create),
            ("GET", re.compile(r"/v1/batches"), self._list),
            ("GET", re.compile(r"/v1/batches/(?P<id>[^/]+)"), self._retrieve),
            ("POST", re.compile(r"/v1/batches/(?P<id>[^/]+)/cancel"), self._cancel),
        ]

    async def _upload(self, request: HttpRequest) -> HttpResponse:
        fields = _multipart(request)
        if fields.get("purpose", (b"", ""))[0] != b"batch":
            raise ApiError(400, "Invalid value: 'purpose'", param="purpose")
        if "file" not in fields:
            raise ApiError(400, "Missing required parameter: 'file'.", param="file")
        data, name = fields["file"]
        id = f"file-{len(self.files)}"
        self.files[id], self.names[id] = data, name
        return _json({"id": id, "object": "file", "bytes": len(data), "created_at": 0,
                      "filename": name, "purpose": "batch", "status": "processed"})  # fmt: skip

    async def _content(self, request: HttpRequest, id: str) -> HttpResponse:
        if id not in self.files:
            raise ApiError(404, f"No such File object: {id}", param="id")
        self.reads[id] = self.reads.get(id, 0) + 1
        batch = next((b for b in self.batches.values() if b.shown["output_file_id"] == id), None)
        reads = batch.fault.garbled_reads if batch else None
        data = self._clean[id] if reads is not None and self.reads[id] > reads else self.files[id]
        return HttpResponse(200, data, "application/octet-stream")

    async def _create(self, request: HttpRequest) -> HttpResponse:
        body = json.loads(request.body)
        file_id = body.get("input_file_id")
        if file_id not in self.files:
            raise ApiError(400, f"No such File object: {file_id}", param="input_file_id")
        if body.get("endpoint") != "/v1/chat/completions" or body.get("completion_window") != "24h":
            raise ApiError(400, "Invalid value: 'endpoint' or 'completion_window'")
        try:
            lines = [json.loads(line) for line in self.files[file_id].splitlines()]
        except ValueError:
            lines = []
        call = BatchCall(len(self.batches), lines)
        id = f"batch_{call.number}"
        shown = {"id": id, "object": "batch", "endpoint": body["endpoint"], "errors": None,
                 "input_file_id": file_id, "completion_window": "24h", "status": "validating",
                 "output_file_id": None, "error_file_id": None, "created_at": call.number,
                 "metadata": body.get("metadata"),
                 "request_counts": {"total": 0, "completed": 0, "failed": 0}}  # fmt: skip
        self.batches[id] = _Batch(call, self._fault(call) or BatchFault(), shown)
        return _json(shown)

    async def _list(self, request: HttpRequest) -> HttpResponse:
        query = dict(part.split("=") for part in request.path.partition("?")[2].split("&") if part)
        ids = list(reversed(self.batches))  # newest first
        if after := query.get("after"):
            ids = ids[ids.index(after) + 1 :]
        page = ids[: int(query.get("limit", "20"))]
        return _json({"object": "list", "data": [self.batches[id].shown for id in page],
                      "has_more": len(page) < len(ids)})  # fmt: skip

    def _find(self, id: str) -> _Batch:
        if id not in self.batches:
            raise ApiError(404, f"No batch found with id '{id}'.", param="id")
        return self.batches[id]

    async def _retrieve(self, request: HttpRequest, id: str) -> HttpResponse:
        batch = self._find(id)
        if batch.states:
            batch.states.pop(0)
            if batch.states:
                batch.shown["status"] = batch.states[0]
        if not batch.states:
            await self._at_end(batch)
        return _json(batch.shown)

    async def _cancel(self, request: HttpRequest, id: str) -> HttpResponse:
        batch = self._find(id)
        if batch.states:
            batch.states = ["cancelling", "cancelling"]
            batch.shown["status"] = "cancelling"
            half = BatchFault(end="cancelled", answered=0.5)
            batch.fault = half if batch.fault == BatchFault() else batch.fault
        return _json(batch.shown)

    async def run_to_the_end(self) -> None:
        """Batches that nobody looks at are run, and paid, as all others are."""
        for batch in self.batches.values():
            batch.states.clear()
            await self._at_end(batch)

    async def _at_end(self, batch: _Batch) -> None:
        """Its work is done, once: other calls see `finalizing` until then, and no end without files."""
        if batch.ending is None:
            batch.shown["status"] = "finalizing"
            batch.ending = asyncio.ensure_future(self._end(batch))
        await asyncio.shield(batch.ending)

    async def _end(self, batch: _Batch) -> None:
        fault, shown, lines = batch.fault, batch.shown, batch.call.lines
        if errors := self._validation_errors(batch):
            shown["status"] = "failed"
            shown["errors"] = {"object": "list", "data": errors}
            return
        done = round(len(lines) * fault.answered)
        output, failed = [], []
        answers = await asyncio.gather(*(self._api.complete_line(x["body"]) for x in lines[:done]))
        for line, (status, body) in zip(lines, answers, strict=False):
            (output if status == 200 else failed).append(_answer(line, status, body))
        for line in lines[done:]:
            if fault.silent:
                continue
            if fault.end == "completed":
                error = {"message": fault.message, "type": "server_error", "code": fault.code}
                failed.append(_answer(line, fault.line_status, {"error": error}))
            else:
                error = {"code": f"batch_{fault.end}", "message": "This request was not executed."}
                failed.append({"id": "r", "custom_id": line["custom_id"], "response": None,
                               "error": error})  # fmt: skip
        shown["request_counts"] = {
            "total": len(lines), "completed": len(output), "failed": len(lines) - len(output)
        }  # fmt: skip
        shuffler = random.Random(batch.call.number)
        if fault.duplicate:
            output = [line for line in output for _ in range(2)]
        if fault.shuffle:
            shuffler.shuffle(output)
        texts = [json.dumps(line, ensure_ascii=False) for line in output]
        clean = "".join(text + "\n" for text in texts)
        for k in range(fault.lost):
            texts[k] = texts[k][: len(texts[k]) // 2]
        junk = ["<html>502</html>", "{}", '{"custom_id": "nobody\'s"}', "", "[1]", "null"]
        for text in itertools.islice(itertools.cycle(junk), fault.garbage):
            texts.insert(shuffler.randrange(len(texts) + 1), text)
        number = batch.call.number
        if texts:
            shown["output_file_id"] = id = f"file-out-{number}"
            self.files[id] = "".join(text + "\n" for text in texts).encode()
            self._clean[id] = clean.encode()
        if failed:
            shown["error_file_id"] = id = f"file-err-{number}"
            self.files[id] = "".join(json.dumps(line) + "\n" for line in failed).encode()
        shown["status"] = fault.end

    def _validation_errors(self, batch: _Batch) -> list[dict[str, Any]]:
        fault, lines = batch.fault, batch.call.lines
        numbers: list[int | None] = list(fault.invalid_lines)
        if fault.end == "failed" and not numbers:
            numbers = [None]
        errors = [{"code": fault.code or "invalid_request", "line": n, "param": None,
                   "message": fault.message} for n in numbers]  # fmt: skip
        if not lines:
            errors.append({"code": "empty_file", "line": None, "param": None,
                           "message": "The input file has no requests."})  # fmt: skip
        ids = [line.get("custom_id") for line in lines]
        for number, line in enumerate(lines, start=1):
            right = set(line) == {"custom_id", "method", "url", "body"} and line["method"] == "POST"
            if not right or ids.index(line["custom_id"]) != number - 1:
                errors.append({"code": "invalid_request", "line": number, "param": None,
                               "message": "A wrong line, or its custom_id stands twice."})  # fmt: skip
        return errors


def _answer(line: dict[str, Any], status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}


def _json(value: dict[str, Any]) -> HttpResponse:
    return HttpResponse(200, json.dumps(value).encode())


def _multipart(request: HttpRequest) -> dict[str, tuple[bytes, str]]:
    """Content and file name of each part, by its name."""
    found = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if not found:
        raise ApiError(400, "Expected a multipart form.")
    fields = {}
    for part in request.body.split(b"--" + found[1].encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        named = dict(re.findall(r'(\w+)="([^"]*)"', head.decode()))
        fields[named["name"]] = (content.removesuffix(b"\r\n"), named.get("filename", ""))
    return fields
