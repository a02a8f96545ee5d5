"""The client of a fleet: one stage, many servers, of which some are lost and some come later.

    uv run python -m benchmarks.fleet                        # 1,000,000 requests, about an hour on two cores
    uv run python -m benchmarks.fleet --requests 20000

64 servers on loopback, in a process of their own, each of which answers in a stated time and so many
requests at once: what a GPU would write is not simulated, only how long it takes. Eight of them are down
at the start and come up later, eight others are lost on the way with all that they have in flight. The
client is the stage itself, inference_best_of_n.py with --engine server and all 64 base URLs. Measured
are its CPU time and memory, and, from the servers' own counts, whether each request was answered, and
how many were answered twice: those that were in flight at a server that was lost, at most.
Writes benchmarks/results/fleet.json.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, machine, write_results
from prefpipe.rows import Item

ROOT = Path(__file__).parent.parent
SERVERS, LATE, LOST = 64, 8, 8
REPLY_SECONDS = 0.5
AT_ONCE = 64
IN_FLIGHT = 2048
REACH_MEGABYTES = 1000

_NUMBER = re.compile(rb"which (\d+)\?")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class _Connection(asyncio.Protocol):
    """One connection to one of the servers."""

    def __init__(self, fleet: "_Fleet", number: int) -> None:
        self._fleet, self._number, self._data = fleet, number, b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._fleet.connections[self._number].add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fleet.connections[self._number].discard(self)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._data, 0, end)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self._data) < size:
                return
            body, self._data = self._data[end:size], self._data[size:]
            self._fleet.arrived(self._number, body, self._reply)

    def _reply(self, number: int) -> None:
        if self._transport.is_closing():
            return
        text = json.dumps({"reason": f"because {number}", "better_answer": 1 + number % 2})
        message = {"index": 0, "finish_reason": "stop", "message": {"content": text}}
        usage = {"prompt_tokens": 60, "completion_tokens": 12}
        body = json.dumps(
            {"object": "chat.completion", "choices": [message], "usage": usage}
        ).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        self._fleet.answered[number] += 1


class _Fleet:
    """All servers, in one event loop."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self.connections: list[set[_Connection]] = [set() for _ in range(SERVERS)]
        self.answered: Counter[int] = Counter()
        self.in_flight: Counter[int] = Counter()
        self._waiting: list[list[tuple[int, Any]]] = [[] for _ in range(SERVERS)]
        self._listening: list[Any] = [None] * SERVERS
        self._down: set[int] = set(range(LATE))
        self.lost_in_flight = 0
        self._arrived = 0

    def arrived(self, server: int, body: bytes, reply: Any) -> None:
        self._arrived += 1
        found = _NUMBER.search(body)
        self._waiting[server].append((int(found[1]) if found else -1, reply))
        self._begin(server)
        share = self._arrived / self._requests
        if self._down and share > 0.2 and min(self._down) < LATE:
            self._down -= set(range(LATE))
            asyncio.get_running_loop().create_task(self._come_up())
        for lost in range(LATE, LATE + LOST):  # one after the other
            if lost not in self._down and share > 0.3 + 0.05 * (lost - LATE):
                self._lose(lost)

    def _begin(self, server: int) -> None:
        while self._waiting[server] and self.in_flight[server] < AT_ONCE:
            number, reply = self._waiting[server].pop(0)
            self.in_flight[server] += 1
            asyncio.get_running_loop().call_later(REPLY_SECONDS, self._end, server, number, reply)

    def _end(self, server: int, number: int, reply: Any) -> None:
        self.in_flight[server] -= 1
        reply(number)
        self._begin(server)

    def _lose(self, server: int) -> None:
        self._down.add(server)
        self.lost_in_flight += self.in_flight[server] + len(self._waiting[server])
        self._waiting[server].clear()
        self._listening[server].close()
        for connection in list(self.connections[server]):
            connection.abort()

    async def _come_up(self) -> None:
        for server in range(LATE):
            await self._listen(server, self.ports[server])

    async def _listen(self, server: int, port: int) -> int:
        loop = asyncio.get_running_loop()
        made = await loop.create_server(lambda: _Connection(self, server), "127.0.0.1", port)
        self._listening[server] = made
        return made.sockets[0].getsockname()[1]

    async def start(self) -> list[int]:
        self.ports = [await self._listen(server, 0) for server in range(SERVERS)]
        for server in self._down:
            self._listening[server].close()
        return self.ports


def serve(requests: int, pipe: Any) -> None:
    """The servers' process: sends its ports, then what it counted once it is told to end."""

    async def run() -> None:
        fleet = _Fleet(requests)
        pipe.send(await fleet.start())
        while not pipe.poll():
            await asyncio.sleep(0.2)
        used = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(
            {
                "answered": len(fleet.answered),
                "twice": sum(n - 1 for n in fleet.answered.values()),
                "lost_in_flight": fleet.lost_in_flight,
                "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            }
        )

    asyncio.run(run())


def write_items(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for k in range(count):
            item = Item(
                id=f"i{k}", source="fleet", split="train", language="en", question=f"which {k}?",
                answer_1=f"the first {k}", answer_2=f"the second {k}", better=1,
                prompt=f"[Question]\nwhich {k}?\n\n[Answer 1]\nthe first {k}\n\n[Answer 2]\nthe second {k}",
            )  # fmt: skip
            file.write(item.model_dump_json() + "\n")


def measure(requests: int, folder: Path) -> dict[str, Any]:
    items, output = folder / "items.jsonl", folder / "best_of_n.jsonl"
    write_items(items, requests)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(requests, there), daemon=True)
    process.start()
    urls = json.dumps([f"http://127.0.0.1:{port}/v1" for port in here.recv()])
    command = [
        sys.executable, "inference_best_of_n.py", "--input", str(items), "--output", str(output),
        "--engine", "server", "--base-urls", urls, "--model", "m", "--n", "1",
        "--requests-in-flight", str(IN_FLIGHT),
    ]  # fmt: skip
    started = time.monotonic()
    client = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OPENAI_API_KEY": "sk-fleet"})
    _, status, used = os.wait4(client.pid, 0)
    seconds = time.monotonic() - started
    here.send("end")
    counted = here.recv()
    process.join()
    rows = output.read_bytes().count(b"\n") if output.exists() else 0
    cpu = used.ru_utime + used.ru_stime
    return {
        "requests": requests,
        "exit_code": os.waitstatus_to_exitcode(status),
        "rows": rows,
        "seconds": round(seconds, 1),
        "requests_a_second": round(requests / seconds, 1),
        "client": {
            "cpu_seconds": round(cpu, 1),
            "cpu_microseconds_a_request": round(cpu / requests * 1e6, 1),
            "megabytes": used.ru_maxrss // 1024,
        },
        "servers": counted,
        "nothing_lost": rows == requests == counted["answered"],
        "twice_at_most_in_flight": counted["twice"] <= counted["lost_in_flight"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(a.requests, Path(folder))
    print(json.dumps(found, indent=1))
    setting = {"servers": SERVERS, "late": LATE, "lost": LOST, "reply_seconds": REPLY_SECONDS,
               "at_once_a_server": AT_ONCE, "in_flight": IN_FLIGHT}  # fmt: skip
    write_results("fleet", {"machine": machine(), "setting": setting, **found}, a.results)


if __name__ == "__main__":
    main()
