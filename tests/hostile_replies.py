"""Hostile servers by the hundred: each mode is one thing that a reply should not be, against the stages that ask.

    python -m tests.hostile_replies --results benchmarks/results/hostile_replies.json
    python -m tests.hostile_replies --only "usage *" --seed 3
    python -m tests.hostile_replies --all             # each field with each value: some 700 modes

A mode puts another JSON value at one place of a good reply (of a chat completion, of a call of the
Batch API, of a line of a batch's output), or sends another status, header, encoding or stream. Asked of
each run: it comes to its end within a minute; no traceback and no error that nobody foresaw; the key is
in no file and on no screen, nor is an order to the terminal; memory stays within bounds; and either the
exit code is not 0 and there is a sentence, or each row is a row or a reject. Where it was not 0, the
same command at a well server comes to its end with all rows: nothing is lost.
"""

import argparse
import asyncio
import fnmatch
import gzip
import json
import random
import re
import shutil
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded.server import HttpRequest, HttpResponse, Server
from embedded.server.canned_answers import translate
from tests.bad_inputs import WORK, copy_to, light_runner, make_good
from tests.campaign import ROOT, Answer, Runner, echo, facts, judge, kill, rate, said
from tests.chinese_items import item as chinese_item
from tests.damages import dump
from tests.examples import write_jsonl

KEY = "sk-HOSTILE-0123456789abcdef"
SECONDS = 60
MOST_MEMORY = 700 * 2**20
"""Bytes that a stage may take beyond what it has when it starts."""
ANSI = "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b[8m"

VALUES = {
    "null": "null", "true": "true", "seven": "7", "below 0": "-500", "a fraction": "5.7", "infinite": "1e999",
    "no number": "NaN", "400 digits": "9" * 400, "20 digits": "9" * 20, "no text": '""', "a text": '"x"',
    "half a character": '"a \\ud800 b"', "NUL": '"a\\u0000b"', "orders": json.dumps(ANSI), "a list": "[]",
    "a list of 1": "[1]", "an object": "{}", "another object": '{"a": 1}', "deep": "[" * 900 + "]" * 900,
    "a list of texts": '["x", "y"]', "a megabyte": json.dumps("x" * 1_000_000), "a path": '"../../../etc/passwd"',
    "a line end": '"a\\nb"',
}  # fmt: skip
"""What stands where something else should: in words, and as JSON."""

Path_ = tuple[str | int, ...]
CHAT: dict[str, Path_] = {
    "whole": (), "choices": ("choices",), "choice": ("choices", 0), "index": ("choices", 0, "index"),
    "message": ("choices", 0, "message"), "content": ("choices", 0, "message", "content"),
    "refusal": ("choices", 0, "message", "refusal"), "tool_calls": ("choices", 0, "message", "tool_calls"),
    "reasoning": ("choices", 0, "message", "reasoning_content"), "finish": ("choices", 0, "finish_reason"),
    "usage": ("usage",), "prompt tokens": ("usage", "prompt_tokens"), "new tokens": ("usage", "completion_tokens"),
    "error": ("error",), "model": ("model",), "id": ("id",),
}  # fmt: skip
CALLS: dict[str, tuple[str, str, Path_]] = {
    "upload id": ("POST", "/files", ("id",)), "upload": ("POST", "/files", ()),
    "create id": ("POST", "/batches", ("id",)), "create status": ("POST", "/batches", ("status",)),
    "create": ("POST", "/batches", ()), "retrieve": ("GET", "/batches/", ()),
    "status": ("GET", "/batches/", ("status",)), "output_file_id": ("GET", "/batches/", ("output_file_id",)),
    "error_file_id": ("GET", "/batches/", ("error_file_id",)), "counts": ("GET", "/batches/", ("request_counts",)),
    "completed": ("GET", "/batches/", ("request_counts", "completed")), "errors": ("GET", "/batches/", ("errors",)),
    "list": ("GET", "/batches", ()), "list data": ("GET", "/batches", ("data",)), "list id": ("GET", "/batches", ("data", 0, "id")),
    "list metadata": ("GET", "/batches", ("data", 0, "metadata")), "has_more": ("GET", "/batches", ("has_more",)),
}  # fmt: skip
LINES: dict[str, Path_] = {
    "line": (), "custom_id": ("custom_id",), "response": ("response",), "line status": ("response", "status_code"),
    "body": ("response", "body"), "line error": ("error",), "line choices": ("response", "body", "choices"),
    "line usage": ("response", "body", "usage"), "line tokens": ("response", "body", "usage", "prompt_tokens"),
    "line content": ("response", "body", "choices", 0, "message", "content"), "request_id": ("response", "request_id"),
}  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """A reply that comes in parts."""

    parts: list[bytes]
    """The last one again and again."""
    pause: float = 0.0


Reply = HttpResponse | Stream
Of = Callable[[HttpRequest, HttpResponse], Reply]
"""(request, the good reply) -> what is sent."""


@dataclass(frozen=True)
class Mode:
    name: str
    of: Of
    batch: bool = False


def put(value: Any, path: Path_, raw: str) -> bytes:
    """The value as JSON, with that text at that place."""
    mark = "\ue001"

    def inner(value: Any, path: Path_) -> Any:
        if not path:
            return mark
        if isinstance(value, list) and value:
            return [inner(value[0], path[1:]), *value[1:]]
        value = dict(value) if isinstance(value, dict) else {}
        return value | {path[0]: inner(value.get(path[0], {}), path[1:])}

    return dump(inner(value, path)).decode().replace(json.dumps(mark, ensure_ascii=False), raw).encode()  # fmt: skip


def raw(body: bytes, status: int = 200, *headers: str, length: bool = True) -> Reply:
    head = [f"HTTP/1.1 {status} X", *([f"content-length: {len(body)}"] if length else []), *headers]
    return HttpResponse(200, b"", raw=("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body)


def _value_modes(rng: random.Random, share: float) -> list[Mode]:
    """Each field with some of the values."""

    def some() -> list[tuple[str, str]]:
        return rng.sample(sorted(VALUES.items()), max(1, round(share * len(VALUES))))

    def chat(path: Path_, text: str) -> Of:
        return lambda _, good: HttpResponse(200, put(json.loads(good.body), path, text))

    def call(method: str, start: str, path: Path_, text: str) -> Of:
        def of(request: HttpRequest, good: HttpResponse) -> Reply:
            where = request.path.removeprefix("/v1").partition("?")[0]
            is_it = where.startswith(start) if start.endswith("/") else where == start
            if request.method != method or not is_it or good.status != 200:
                return good
            return HttpResponse(200, put(json.loads(good.body), path, text))

        return of

    def line(path: Path_, text: str) -> Of:
        def of(request: HttpRequest, good: HttpResponse) -> Reply:
            if not request.path.endswith("/content"):
                return good
            first, _, rest = good.body.partition(b"\n")
            return HttpResponse(200, put(json.loads(first), path, text) + b"\n" + rest)

        return of

    made = [Mode(f"{f}: {v}", chat(path, text)) for f, path in CHAT.items() for v, text in some()]
    made += [
        Mode(f"batch {f}: {v}", call(*where, text), batch=True)
        for f, where in CALLS.items()
        for v, text in some()
    ]
    made += [Mode(f"batch {f}: {v}", line(path, text), batch=True) for f, path in LINES.items() for v, text in some()]  # fmt: skip
    return made


def _key_of(request: HttpRequest) -> str:
    return request.headers.get("authorization", "")


def _error_modes() -> list[Mode]:
    """Each status with an error object, one of other types, a page, and the key."""
    bodies: dict[str, Callable[[HttpRequest], bytes]] = {
        "an error": lambda r: b'{"error": {"message": "m", "code": "c"}}',
        "odd types": lambda r: b'{"error": {"message": ["x"], "code": {}, "param": [1]}}',
        "a page": lambda r: b"<html>\xe4 busy</html>",
        "the key": lambda r: json.dumps({"error": {"message": f"{ANSI} {_key_of(r)}"}}).encode(),
    }
    statuses = (400, 401, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529, 600, 999)

    def of(status: int, body: Callable[[HttpRequest], bytes]) -> Of:
        return lambda request, _: raw(body(request), status, "content-type: application/json")

    made = [Mode(f"{s} {name}", of(s, body)) for s in statuses for name, body in bodies.items()]
    made += [Mode(f"batch {s} {name}", of(s, bodies[name]), batch=True) for s, name in
             [(401, "the key"), (404, "odd types"), (429, "an error"), (500, "a page"), (400, "the key")]]  # fmt: skip
    return made


def _wire_modes() -> list[Mode]:
    """Headers, encodings, lengths, redirects, streams."""
    pauses = ["nan", "inf", "-5", "1e400", "soon", "Fri, 99 Foo 2020", "Fri, 31 Dec 2021 23:59:59 +99999999999999", "1_0",
              "Fri, 31 Dec 9999 23:59:59 -1200", "Mon, 01 Jan 0001 00:00:00 +1200", "Fri, 31 Dec 1999 23:59:59 GMT", "", "\u0661", "0x1"]  # fmt: skip
    made = [
        Mode(f"retry-after {p}", lambda r, _, p=p: raw(b'{"error": {"message": "m"}}', 429, f"retry-after: {p.encode().decode('latin-1')}"))
        for p in pauses
    ]  # fmt: skip
    made.append(Mode("retry-after-ms nan", lambda r, _: raw(b"{}", 429, "retry-after-ms: nan")))

    def body(change: Callable[[bytes], bytes], *headers: str, status: int = 200, length: bool = True) -> Of:  # fmt: skip
        return lambda _, good: raw(change(good.body), status, *headers, length=length)

    def bomb(size: int) -> bytes:
        packing = zlib.compressobj(9, zlib.DEFLATED, 31)
        return packing.compress(b" " * size) + packing.flush()

    as_it_is = bytes
    wires: dict[str, Of] = {
        "empty": body(lambda b: b""), "half": body(lambda b: b[: len(b) // 2]), "a million brackets": body(lambda b: b"[" * 1_000_000),
        "nested objects": body(lambda b: b'{"choices":' * 200_000), "UTF-16": body(lambda b: b.decode().encode("utf-16")),
        "no UTF-8": body(lambda b: b'{"choices": "\xff\xfe"}'), "a mark before": body(lambda b: b"\xef\xbb\xbf" + b),
        "two objects": body(lambda b: b + b), "something behind": body(lambda b: b + b"\0" * 99), "NULs before": body(lambda b: b"\0\0" + b),
        "event stream": body(lambda b: b"data: " + b + b"\n\ndata: [DONE]\n\n", "content-type: text/event-stream"),
        "ten thousand choices": lambda _, good: HttpResponse(200, put(json.loads(good.body), ("choices",), "[" + ",".join(['{"index":0,"message":{"content":"x"},"finish_reason":"stop"}'] * 10_000) + "]")),
        "key in the text": lambda r, good: HttpResponse(200, put(json.loads(good.body), ("choices", 0, "message", "content"), json.dumps(f"{_key_of(r)} x"))),
        "key in a page": lambda r, good: raw(f"<html>{_key_of(r)}</html>".encode(), 200, "content-type: text/html"),
        "key in a finish reason": lambda r, good: HttpResponse(200, put(json.loads(good.body), ("choices", 0, "finish_reason"), json.dumps(_key_of(r)))),
        "gzip": body(gzip.compress, "content-encoding: gzip"), "no gzip": body(as_it_is, "content-encoding: gzip"),
        "bomb": body(lambda b: bomb(500_000_000), "content-encoding: gzip"), "brotli": body(lambda b: b"xx", "content-encoding: br"),
        "zstd": body(lambda b: b"xx", "content-encoding: zstd"), "deflate": body(lambda b: b"xx", "content-encoding: deflate"),
        "unknown encoding": body(as_it_is, "content-encoding: foo"), "odd charset": body(as_it_is, "content-type: text/html; charset=utf-99"),
        "charset hex": body(as_it_is, "content-type: text/html; charset=hex"), "error, charset idna": body(lambda b: b"\xff", "content-type: text/html; charset=idna", status=500),
        "a header of a megabyte": body(as_it_is, "x: " + "a" * 1_000_000), "20,000 headers": body(as_it_is, *(f"x{k}: y" for k in range(20_000))),
        "NUL in a header": body(as_it_is, "x: a\0b"), "length below 0": body(as_it_is, "content-length: -5", length=False),
        "length without end": body(as_it_is, f"content-length: {'9' * 20}", length=False), "two lengths": body(as_it_is, "content-length: 5"),
        "odd chunk": body(lambda b: b"zz\r\n{}\r\n", "transfer-encoding: chunked", length=False), "cookie": body(as_it_is, "set-cookie: a=b"),
        "no HTTP": lambda r, _: HttpResponse(200, b"", raw=b"<html>hello"), "HTTP 2": lambda r, _: HttpResponse(200, b"", raw=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "nothing": lambda r, _: HttpResponse(200, b"", raw=b""), "101": body(lambda b: b"", "upgrade: h2c", status=101, length=False),
        "204": body(lambda b: b"", status=204, length=False), "continue": lambda _, good: HttpResponse(200, b"", raw=b"HTTP/1.1 100 Continue\r\n\r\n" + good.encode()),
        "redirect to another server": body(lambda b: b"", "location: http://127.0.0.2:9/v1/chat/completions", status=307),
        "redirect to https": body(lambda b: b"", "location: https://127.0.0.1/v1", status=308), "redirect to a file": body(lambda b: b"", "location: file:///etc/passwd", status=307),
        "redirect to nowhere": body(lambda b: b"", status=302), "odd redirect": body(lambda b: b"", "location: http://[::bad", status=307),
        "redirect to itself": lambda r, _: raw(b"", 307, f"location: {r.path}"),
        "a gigabyte": lambda r, _: Stream([b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", b" " * 2**20]),
        "without end": lambda r, _: Stream([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"100000\r\n" + b" " * 2**20 + b"\r\n"]),
        "a byte at a time": lambda r, _: Stream([b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" "], 0.3),
        "headers a byte at a time": lambda r, _: Stream([b"HTTP/1.1 200 OK\r\n", b"x"], 0.3),
        "headers without end": lambda r, _: Stream([b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 10_000]),
    }  # fmt: skip
    made += [Mode(name, of) for name, of in wires.items()]

    def content(change: Callable[[bytes], Reply]) -> Of:
        return lambda r, good: change(good.body) if r.path.endswith("/content") else good

    files: dict[str, Of] = {
        "a file without end": content(lambda b: Stream([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"100000\r\n" + b"{" * 2**20 + b"\r\n"])),
        "a file a byte at a time": content(lambda b: Stream([b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"{"], 0.3)),
        "a bomb as a file": content(lambda b: raw(bomb(500_000_000), 200, "content-encoding: gzip")),
        "an empty file": content(lambda b: HttpResponse(200, b"")), "a page as a file": content(lambda b: HttpResponse(200, b"<html>")),
        "a binary file": content(lambda b: HttpResponse(200, bytes(range(256)) * 100)), "half a file": content(lambda b: HttpResponse(200, b[: len(b) // 2])),
        "each line twice": content(lambda b: HttpResponse(200, b + b)), "lines of nobody": content(lambda b: HttpResponse(200, re.sub(rb'"custom_id": "', b'"custom_id": "x', b))),
        "NULs between lines": content(lambda b: HttpResponse(200, b.replace(b"\n", b"\n\0\0\n"))),
    }  # fmt: skip
    made += [Mode(f"batch {name}", of, batch=True) for name, of in files.items()]
    return made


def modes(seed: int, share: float = 0.28) -> list[Mode]:
    """All modes of a seed, each name once."""
    return [*_value_modes(random.Random(seed), share), *_error_modes(), *_wire_modes()]


# ---- the server and the stages ---------------------------------------------------------------------


class Hostile(Server):
    """The server of a mode: each reply goes through it."""

    def __init__(self, mode: Mode | None, answer: Answer) -> None:
        super().__init__(answer)
        self._mode = mode

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _WRITERS[asyncio.current_task()] = writer
        try:
            await super()._talk(reader, writer)
        finally:
            _WRITERS.pop(asyncio.current_task(), None)

    async def respond(self, request: HttpRequest) -> HttpResponse:
        good = await super().respond(request)
        reply = self._mode.of(request, good) if self._mode else good
        if isinstance(reply, HttpResponse):
            return reply
        writer = _WRITERS[asyncio.current_task()]
        for part in reply.parts[:-1]:
            writer.write(part)
        while True:
            writer.write(reply.parts[-1])
            await writer.drain()
            await asyncio.sleep(reply.pause)


_WRITERS: dict[Any, asyncio.StreamWriter] = {}
"""Of the connections under way, by their task."""

ASKING: dict[str, tuple[str, str, Answer]] = {
    "annotate_preferences": ("annotate_preferences.py --model m --input mixed/annotation_prompts.jsonl --output out/a.jsonl", "mixed", rate),
    "translation": ("translation.py --model m --tries 2 --input chinese --output out", "chinese", translate),
    "inference_best_of_n": ("inference_best_of_n.py --model m --n 2 --input items --output out/o.jsonl", "items", judge),
    "inference_all": ("inference_all.py --model m --input items --output out", "items", judge),
    "generate_responses": ('generate_responses.py --models [{"name":"m","model":"m"}] --input prompts.jsonl --output out', "prompts.jsonl", echo),
    "rank_responses": ("rank_responses.py --by judge --judge m --input responses.jsonl --output out", "responses.jsonl", judge),
}  # fmt: skip
"""Stage -> its command, its inputs, and what a well server answers."""
OPTIONS = "--max-retries 1 --timeout-seconds 3 --requests-in-flight 4 --poll-seconds 0.02 --batch-tries 2 --batch-folder b"
BATCHING = ("annotate_preferences", "translation", "inference_best_of_n", "generate_responses")


def memory_of(pid: int) -> int:
    """Bytes that a process has in memory of its own."""
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def run(mode: Mode, stage: str, folder: Path, good: Path, runner: Runner) -> list[str]:
    """What was wrong with the run against that server; nothing where all was right."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "embedded").symlink_to(ROOT / "embedded")
    command, inputs, answer = ASKING[stage]
    copy_to(good / inputs, folder / inputs)
    options = f"{OPTIONS} --engine {'batch' if mode.batch else 'server'}"
    words = [*command.split(), *options.split()]
    problems = []
    with Hostile(mode, answer) as server:
        env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url}
        process = runner.start(words, folder / "data", env, folder=folder)
        first = most = memory_of(process.pid)
        end = time.monotonic() + SECONDS
        while process.is_alive() and time.monotonic() < end:
            process.join(0.1)
            most = max(most, memory_of(process.pid))
        if process.exitcode is None:
            kill(process, signal.SIGKILL)
            process.join()
            problems.append(f"not at its end after {SECONDS} s")
    text, code = said(folder), process.exitcode
    if most - first > MOST_MEMORY:
        problems.append(f"{(most - first) >> 20} MiB")
    problems += problems_of(folder, text, code)
    # where each row is in the rejects with its reason, all is accounted for
    if code and not problems and not mode.batch and "could be used (" not in text:
        with Hostile(None, answer) as server:
            env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url}
            process = runner.start(words, folder / "data", env, folder=folder)
            process.join(SECONDS)
        again = said(folder)
        if process.exitcode:
            problems.append(f"and then, at a well server: {process.exitcode} {again[-200:]}")
        problems += problems_of(folder, again, process.exitcode)
    return problems


def problems_of(folder: Path, text: str, code: int | None) -> list[str]:
    problems = []
    if "Traceback (most recent call last)" in text or "--debug shows it" in text:
        problems.append(f"unforeseen: {text[-300:]}")
    if code is not None and code < 0:
        problems.append(f"signal {-code}")
    if any(order in text for order in ("\x1b", "\x07")):
        problems.append("orders to the terminal")
    if code and not text.strip():
        problems.append("not a word")
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    if leaks := [p.name for p in files if KEY.encode() in p.read_bytes()]:
        problems.append(f"the key is in {leaks}")
    if code == 0:
        for meta in folder.glob("out/**/*.meta.json"):
            counts = json.loads(meta.read_text(encoding="utf-8"))["counts"]
            lost = sum(counts["left_out"].values())
            rejects = meta.with_name(meta.name.replace(".meta.json", ".rejects.jsonl"))
            if counts["read"] != counts["kept"] + lost or rejects.read_bytes().count(b"\n") != lost:
                problems.append(f"lost: {counts}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="modes whose name fits this glob")
    parser.add_argument(
        "--stages", nargs="+", choices=ASKING, help="each mode against each of them"
    )
    parser.add_argument("--all", action="store_true", help="each field with each value")
    parser.add_argument("--list", action="store_true", help="print the modes' names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, help="JSON to write")
    a = parser.parse_args()
    chosen = [m for m in modes(a.seed, 1.0 if a.all else 0.28) if fnmatch.fnmatch(m.name, a.only)]
    if a.list:
        print("\n".join(m.name for m in chosen), len(chosen), sep="\n")
        return
    runner = light_runner()
    good = a.work / "good"
    make_good(good, runner, False)
    write_jsonl(good / "chinese/train.jsonl", [chinese_item(k).model_dump() for k in range(4)])
    pairs = []
    for number, mode in enumerate(chosen):
        able = [s for s in (a.stages or ASKING) if not mode.batch or s in BATCHING]
        pairs += [(mode, stage) for stage in (able if a.stages else [able[number % len(able)]])]
    counts: dict[str, Counter[str]] = {}
    failures: list[str] = []

    def one(number: int) -> tuple[Mode, str, list[str]]:
        mode, stage = pairs[number]
        folder = a.work / f"hostile/{number}"
        return mode, stage, run(mode, stage, folder, good, runner)

    with ThreadPoolExecutor(a.workers) as pool:
        for number, (mode, stage, problems) in enumerate(pool.map(one, range(len(pairs)))):
            kind = "batch" if mode.batch else "server"
            counts.setdefault(f"{stage}, {kind}", Counter())[
                "failures" if problems else "right"
            ] += 1
            if problems:
                failures.append(f"{mode.name}; {stage}: {'; '.join(problems)}")
                print(f"{number}: {failures[-1]}", flush=True)
            elif number % 50 == 49:
                print(f"{number + 1} of {len(pairs)}", flush=True)
    if a.results:
        stages = {name: {"modes": one.total(), "failures": one["failures"]} for name, one in sorted(counts.items())}  # fmt: skip
        made = {**facts(), "seed": a.seed, "modes": len(chosen), "stages": stages, "failures": failures}  # fmt: skip
        a.results.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{len(pairs)} runs of {len(chosen)} modes, {len(failures)} failures")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
