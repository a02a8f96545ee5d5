"""An OpenAI-compatible server on loopback, for tests and for trying stages out. Standard library only.

    with Server(lambda body, sample: "text", fault=first_attempt(Fault(status=429))) as server:
        ...ServerEngine(ServedModel([server.url], "m"))
        assert max(server.paid.values()) == 1

    python -m embedded.server --help        # the same as a process of its own

It answers what the API answers: `n` choices, `max_tokens`, `stop`, usage, finish reasons, error
objects, 401, 404, keep-alive; and `/v1/files` and `/v1/batches`, where a batch moves on each time it
is looked at, and is run at the latest when the server stops: who forgets one pays for it all the
same. What a bad network or a bad server does is a `Fault`, what becomes of a batch a `BatchFault`.
"""

from embedded.server.batches import BatchCall, BatchFault
from embedded.server.faults import (
    Answer,
    Call,
    Fault,
    FaultOf,
    Reply,
    echo,
    first_attempt,
    last_message,
    random_faults,
)
from embedded.server.http import ApiError, HttpRequest, HttpResponse
from embedded.server.loopback import Server

__all__ = [
    "Answer",
    "ApiError",
    "BatchCall",
    "BatchFault",
    "Call",
    "Fault",
    "FaultOf",
    "HttpRequest",
    "HttpResponse",
    "Reply",
    "Server",
    "echo",
    "first_attempt",
    "last_message",
    "random_faults",
]
