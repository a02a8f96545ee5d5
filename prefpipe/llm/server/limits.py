"""When a server may be asked, and which: within the account's limits, and not while it rests."""

import asyncio
import random
import sys
import time

import aiohttp
import httpx2
import openai

from prefpipe.llm import wire
from prefpipe.llm.environment import route_to
from prefpipe.llm.http_clients import AsyncClient, BadReply
from prefpipe.llm.wire import ServedModel, Stop


class Endpoint:
    """One base URL: its connections, and whether it is worth asking now."""

    def __init__(self, url: str, served: ServedModel, connections: int) -> None:
        route = route_to(url)
        self.name = route.name
        self.root = route.base_url.rstrip("/").removesuffix("/v1")
        """Where a server has what is none of OpenAI's."""
        limits = httpx2.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=4.0,  # below the 5 s after which uvicorn (vLLM, SGLang) closes idle ones
        )
        timeout = httpx2.Timeout(None, connect=30.0)
        self.client = openai.AsyncOpenAI(
            base_url=route.base_url,
            default_query=route.query,
            api_key=served.key(),
            max_retries=0,
            timeout=timeout,
            http_client=AsyncClient(limits=limits, timeout=timeout, **route.client_options),
        )
        self.in_flight = 0
        self.lost = 0
        """Times in a row that no connection could be had; one request at a time probes it then."""
        self.rests_until = 0.0

    def may_be_asked(self, now: float) -> bool:
        return self.rests_until <= now and not (self.lost and self.in_flight)


class Endpoints:
    """All base URLs of a model: which one is asked next, and the pauses after a failure."""

    def __init__(self, served: ServedModel, connections: int) -> None:
        """connections: of each base URL. To be made where the event loop runs."""
        self._served = served
        self._all = [Endpoint(url, served, connections) for url in served.base_urls]
        self._ever_connected = False

    async def close(self) -> None:
        for endpoint in self._all:
            await endpoint.client.close()

    async def pick(self, avoid: Endpoint | None) -> Endpoint:
        """The least busy endpoint that may be asked; not the one that just failed, if possible."""
        while True:
            now = time.monotonic()
            free = [e for e in self._all if e.may_be_asked(now)]
            if free:
                return min(free, key=lambda e: (e is avoid, e.in_flight))
            rest = min(e.rests_until for e in self._all) - now
            # Not at rest but not free: another request finds out whether the server is back.
            await asyncio.sleep((rest if rest > 0 else 0.1) * random.uniform(1.0, 1.2))

    def connected(self, endpoint: Endpoint) -> None:
        self._ever_connected = True
        endpoint.lost = 0

    def lost_connection(self, endpoint: Endpoint, detail: str) -> None:
        """Let the endpoint rest; raises Stop once none has been there max_retries times in a row.

        No fault of the request, so none of its tries. Few times do where no server has ever been.
        """
        if self._served.why_down and (why := self._served.why_down()):
            raise Stop(why)
        now = time.monotonic()
        if endpoint.rests_until > now:
            return  # another request of the same burst has seen it
        endpoint.lost += 1
        endpoint.rests_until = now + self._served.backoff_seconds(endpoint.lost - 1)
        allowed = self._served.max_retries
        allowed = allowed if self._ever_connected else min(allowed, 2)
        if all(e.lost > allowed for e in self._all):
            raise Stop(
                f"no connection to {', '.join(e.name for e in self._all)} ({wire.brief(detail)}): start "
                "the server or correct the base URL; the same command goes on from the rows done"
            )

    async def back_off(
        self, endpoint: Endpoint, detail: str, tries: int, after: float | None
    ) -> None:
        """Wait before the next try; what the server asks to wait holds for every request to it.
        tries: of the request so far. after: seconds that the server asks to wait."""
        now = time.monotonic()
        if after is not None and after > wire.LONGEST_RETRY_AFTER_SECONDS:
            raise Stop(
                f"{endpoint.name}: {wire.brief(detail)}: it asks to wait {after:.0f} s; run the same command "
                "again then, it goes on from the rows done"
            )
        if after:
            if after >= 5 and endpoint.rests_until < now:
                print(
                    f"{endpoint.name}: {wire.brief(detail)}: waiting {after:.0f} s", file=sys.stderr
                )
            endpoint.rests_until = max(endpoint.rests_until, now + after)
        others = sum(e is not endpoint and e.may_be_asked(now) for e in self._all)
        if tries > others:  # each of them gets one try at once
            await asyncio.sleep(max(after or 0.0, self._served.backoff_seconds(tries - 1)))


class Budget:
    """Spends at most per_minute (None: no limit) in a minute, evenly. A token bucket that may go
    below zero: who takes too much makes the next one wait."""

    def __init__(self, per_minute: int | None) -> None:
        self._rate = per_minute / 60 if per_minute else None
        self._balance = 0.0
        self._at = time.monotonic()
        self._lock = asyncio.Lock()

    async def take(self, amount: float) -> None:
        if self._rate is None:
            return
        async with self._lock:  # first come, first served
            while (balance := self._refill(self._rate)) < 0:
                await asyncio.sleep(-balance / self._rate)
            self._balance -= amount

    def give(self, amount: float) -> None:
        """Correct an estimate: back (or, negative, more) once the true amount is known."""
        self._balance += amount

    def _refill(self, rate: float) -> float:
        before, self._at = self._at, time.monotonic()
        # A tenth of a second may be caught up on: sleeps end late.
        self._balance = min(self._balance + (self._at - before) * rate, 0.1 * rate)
        return self._balance


def network_reason(error: BaseException) -> tuple[str, str]:
    """no_connection, timeout or connection_lost, and what the transport said."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    detail = f"{type(causes[-1]).__name__}: {causes[-1]}".rstrip(": ")
    for cause in causes:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return "no_connection", str(cause) or detail
    if isinstance(error, TimeoutError):
        return "timeout", "no reply within the time limit"
    if isinstance(error, BadReply):
        return "garbled_reply", str(error)
    return "connection_lost", detail
