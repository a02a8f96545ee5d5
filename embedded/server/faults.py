"""What a test wants of the loopback server: its answers, and what goes wrong with them."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one reply. The default is a right one; fields combine."""

    status: int = 200
    retry_after: str | None = None
    """The header of that name: seconds, or an HTTP date."""
    delay_seconds: float = 0.0
    hang: bool = False
    """Take the request, work on nothing, answer never."""
    cut: bool = False
    """Send half the body, then drop the connection. The completions were made and are paid."""
    body: bytes | None = None
    """Sent in place of the answer."""
    raw: bytes | None = None
    """Sent in place of the whole HTTP response, before the connection is dropped."""
    content_type: str = "application/json"
    choices: int | None = None
    """At most that many choices, whatever `n` says; 1 is what servers do that ignore `n`."""
    code: str | None = None
    """The error object's code, as `insufficient_quota`."""
    message: str = "a fault that the test asked for"


@dataclass(frozen=True)
class Call:
    """A request as the fault function sees it."""

    number: int
    """0-based, over all chat completions of this server."""
    attempt: int
    """0-based, over requests with the same last message."""
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One choice. A plain string stands for Reply(text)."""

    text: str | None
    finish_reason: str = "stop"
    refusal: str | None = None
    tokens: int | None = None
    """What a real model counted; its text has been cut by `stop` and limit already. None: neither."""


Answer = Callable[[dict[str, Any], int], "str | Reply | Awaitable[str | Reply]"]
"""(request body, number of the choice) -> the choice."""
FaultOf = Callable[[Call], "Fault | None"]


def echo(body: dict[str, Any], sample: int) -> str:
    return last_message(body)


def last_message(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def first_attempt(fault: Fault, attempts: int = 1) -> FaultOf:
    """The fault for the first attempts at every request, then a right reply."""
    return lambda call: fault if call.attempt < attempts else None


def random_faults(shares: list[tuple[Fault, float]], seed: int = 0) -> FaultOf:
    """Each fault for its share of the requests; the same for the same call number and seed."""

    def fault_of(call: Call) -> Fault | None:
        at = random.Random(f"{seed}:{call.number}").random()
        for fault, share in shares:
            if at < share:
                return fault
            at -= share
        return None

    return fault_of
