"""HTTP, as much of it as the loopback server needs."""

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Self


class ApiError(Exception):
    """Becomes the API's error object."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 429 else "server_error"
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body = json.dumps({"error": error}, ensure_ascii=False).encode()


@dataclass(frozen=True)
class HttpRequest:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class HttpResponse:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    raw: bytes | None = None

    def encode(self) -> bytes:
        if self.raw is not None:
            return self.raw
        lines = [
            f"HTTP/1.1 {self.status} {'OK' if self.status < 400 else 'Error'}",
            f"content-type: {self.content_type}",
            f"content-length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class HttpServer:
    """Runs in a thread of its own from start() (or `with`) to stop()."""

    def __init__(self, port: int) -> None:
        """port: 0 takes a free one."""
        self.port = port
        self.connections = 0
        """That were made to it."""
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="embedded.server", daemon=True)

    async def respond(self, request: HttpRequest) -> HttpResponse:
        raise NotImplementedError

    async def before_stop(self) -> None:
        """Done while connections are open still."""

    @property
    def url(self) -> str:
        """What clients take as the base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._thread.start()
        self._started.wait()
        if self._failed:
            raise self._failed

    def stop(self) -> None:
        """Drop all connections and give the port back."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failed = error
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                await self._talk(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client has gone, or the server stops
            finally:
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, "127.0.0.1", self.port, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        await self.before_stop()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await _read_request(reader)
            except ValueError as error:
                writer.write(HttpResponse(400, ApiError(400, str(error)).body).encode())
                await writer.drain()
                return
            if request is None:
                return
            response = await self.respond(request)
            data = response.encode()
            if response.cut or response.raw is not None:
                writer.write(
                    data[: len(data) - len(response.body) // 2 - 1] if response.cut else data
                )
                await writer.drain()
                await asyncio.sleep(0.01)  # so that the client sees what was sent
                return
            writer.write(data)
            await writer.drain()
            if request.headers.get("connection", "").lower() == "close":
                return


async def _read_request(reader: asyncio.StreamReader) -> HttpRequest | None:
    """None where the client closed between two requests."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    except asyncio.LimitOverrunError:
        raise ValueError("headers too long") from None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    try:
        method, path, _ = first.split(" ")
    except ValueError:
        raise ValueError(f"not an HTTP request: {first[:80]!r}") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return HttpRequest(method, path, headers, bytes(body))
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return HttpRequest(method, path, headers, body)
