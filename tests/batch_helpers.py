"""A batch engine against the loopback server, for the tests of prefpipe/llm/batch_api/."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedded.server import BatchFault, Server, last_message
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.batch_api.batch_engine import BatchEngine, BatchOptions
from prefpipe.llm.wire import ServedModel


def request(id: object = "a", text: str | None = None, **options) -> Request:
    return Request(id=str(id), messages=({"role": "user", "content": text or f"q{id}"},), **options)


def engine(
    server: Server | str | None, folder: Path | str = "batches", model="m", **options: Any
) -> BatchEngine:
    names = BatchOptions.__dataclass_fields__.keys() & options.keys()
    quick: dict[str, Any] = {"poll_seconds": 0.01, "settle_seconds": 0.0}
    given = quick | {name: options.pop(name) for name in names}
    url = server.url if isinstance(server, Server) else server
    served = ServedModel([url] if url else [], model, **{"first_backoff_seconds": 0.01, **options})
    return BatchEngine(served, BatchOptions(folder=Path(folder), **given))


def numbered(body, sample) -> str:
    return f"{last_message(body)}/{sample}"


def texts(results: Iterable[list[Completion] | Failure]) -> dict[str, Any]:
    """By id: the texts in the order of the samples, or the reason of the failure."""
    found: dict[str, Any] = {}
    for result in results:
        id = result.id if isinstance(result, Failure) else result[0].id
        assert id not in found, "two results for one request"
        found[id] = (
            result.reason
            if isinstance(result, Failure)
            else [completion.text for completion in result]
        )
    return found


def right(count: int) -> dict[str, list[str]]:
    return {str(i): [f"q{i}/0"] for i in range(count)}


def faults(*of_batches: BatchFault):
    """The first batch has the first fault, and so on; later ones are right."""
    return lambda call: of_batches[call.number] if call.number < len(of_batches) else None


def sizes(server: Server) -> list[int]:
    """Requests of each batch that the server has."""
    return [len(batch.call.lines) for batch in server.batches.batches.values()]
