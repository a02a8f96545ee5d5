"""Models of this machine behind the loopback server: requests that wait together run in one batch.

    server = Server(LocalModels({"embedded/model": "embedded/model"}).answer, models=("embedded/model",))

A text depends on its request alone (messages, sampling options, seed, number of the choice), as with
prefpipe's local engine, which this is.
"""

import asyncio
import hashlib
import json
import queue
import threading
from collections.abc import Mapping
from typing import Any

from embedded.server import ApiError, Reply
from prefpipe import llm
from prefpipe.llm.local.local_engine import open_local

_Job = tuple[llm.Request, "asyncio.Future[Reply]"]


class LocalModels:
    """One thread a model, which loads it at once and ends with the process."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        """folders: the name that requests give -> a folder of a model, or of a LoRA adapter."""
        self._queues: dict[str, queue.SimpleQueue[_Job]] = {}
        for name, folder in folders.items():
            engine = open_local(folder)
            self._queues[name] = queue.SimpleQueue()
            work = (engine, self._queues[name])
            threading.Thread(target=_work, args=work, name=f"model {name}", daemon=True).start()

    async def answer(self, body: dict[str, Any], sample: int) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queues[body["model"]].put((to_request(body, sample), future))
        return await future


def to_request(body: dict[str, Any], sample: int) -> llm.Request:
    """The API's request as the engine's. What the API leaves to the model is what OpenAI takes."""
    temperature = body.get("temperature")
    return llm.Request(
        id=hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest(),
        messages=tuple(body["messages"]),
        samples=(sample,),
        max_new_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 256,
        temperature=1.0 if temperature is None else temperature,
        top_p=body.get("top_p") or 1.0,
        top_k=body.get("top_k") or 0,
        seed=body.get("seed") or 0,
    )


def _work(engine: llm.Engine, waiting: "queue.SimpleQueue[_Job]") -> None:
    while True:
        jobs = [waiting.get()]
        while not waiting.empty():
            jobs.append(waiting.get())
        results = engine.generate([request for request, _ in jobs])
        for (_, future), result in zip(jobs, results, strict=True):
            future.get_loop().call_soon_threadsafe(_give, future, result)


def _give(future: "asyncio.Future[Reply]", result: list[llm.Completion] | llm.Failure) -> None:
    if future.done():
        return  # the client has gone
    if isinstance(result, llm.Failure):
        code = "context_length_exceeded" if result.reason == "prompt_too_long" else None
        future.set_exception(ApiError(400, result.detail or result.reason, code=code))
        return
    (completion,) = result
    future.set_result(
        Reply(completion.text, completion.finish_reason, tokens=completion.new_tokens)
    )
