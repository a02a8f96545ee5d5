"""One client of `client.py`, in a process and an environment of its own; started by that script only.

    python -P benchmarks/client_sides.py CLIENT '{"url": ..., "requests": ..., ...}' RESULT.json

It imports nothing of this project before it knows which client it is: the environments of distilabel
and curator hold neither us nor each other. Measured from before the first request to after the last
text: CPU of this process, all its threads and its children; importing and constructing the client
are over by then.
"""

import asyncio
import importlib.metadata
import importlib.util
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODEL = "gpt-4o-mini"
"""Any name will do for the server; curator wants one that it knows."""
MAX_NEW_TOKENS = 512


def prompts(options: dict[str, Any]) -> Iterator[str]:
    """Texts of prompt_characters each, no two alike; the server sends each back."""
    words = "the better answer states what it took from the question and what it added to it "
    text = words * (options["prompt_characters"] // len(words) + 1)
    for k in range(options["requests"]):
        yield f"{k:08d} {text}"[: options["prompt_characters"]]


Run = Callable[[], int]
"""All the requests, and the characters of the texts that came back."""


def prefpipe(options: dict[str, Any]) -> Run:
    """As the stages have it (ServerStage.open_server): a result is given once it is there."""
    from prefpipe.llm import Failure, Request
    from prefpipe.llm.server.server_engine import ServerEngine, ServerOptions
    from prefpipe.llm.wire import ServedModel

    engine = ServerEngine(ServedModel([options["url"]], MODEL), ServerOptions(options["in_flight"]))

    def run() -> int:
        characters = 0
        requests = (
            Request(
                str(k), ({"role": "user", "content": text},),
                max_new_tokens=MAX_NEW_TOKENS, temperature=1.0,
            )
            for k, text in enumerate(prompts(options))
        )  # fmt: skip
        for result in engine.generate(requests):
            if isinstance(result, Failure):
                raise SystemExit(f"{result.id}: {result.reason}, {result.detail}")
            characters += sum(len(completion.text) for completion in result)
        return characters

    return run


def async_openai(options: dict[str, Any], make_transport: Callable[[], Any] = lambda: None) -> Run:
    """A task a request, a semaphore, gather."""
    import openai

    async def run() -> int:
        semaphore = asyncio.Semaphore(options["in_flight"])
        async with openai.AsyncOpenAI(
            base_url=options["url"], api_key="none", http_client=make_transport()
        ) as client:

            async def ask(text: str) -> str:
                async with semaphore:
                    completion = await client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": text}],
                        max_tokens=MAX_NEW_TOKENS,
                        temperature=1.0,
                    )
                return completion.choices[0].message.content or ""

            return sum(map(len, await asyncio.gather(*map(ask, prompts(options)))))

    return lambda: asyncio.run(run())


def async_openai_aiohttp(options: dict[str, Any]) -> Run:
    """The same with the transport that the library's README offers for more concurrency; ours, too."""
    import openai

    return async_openai(options, openai.DefaultAioHttpClient)


def distilabel(options: dict[str, Any]) -> Run:
    """generate_outputs of a batch after the other, which is what a step of a pipeline does.

    The batch is as large as requests are to be in flight, and its texts come back together.
    """
    from distilabel.models import OpenAILLM  # pyright: ignore[reportMissingImports]

    llm = OpenAILLM(
        model=MODEL,
        base_url=options["url"],
        api_key="none",
        generation_kwargs={"max_new_tokens": MAX_NEW_TOKENS, "temperature": 1.0},
    )
    llm.load()

    def run() -> int:
        characters, texts = 0, prompts(options)
        while batch := list(itertools.islice(texts, options["in_flight"])):
            outputs = llm.generate_outputs(
                inputs=[[{"role": "user", "content": text}] for text in batch],
                **(llm.generation_kwargs or {}),
            )
            characters += sum(len(output["generations"][0]) for output in outputs)
        return characters

    return run


def curator(options: dict[str, Any]) -> Run:
    """Rows in, a dataset out, with the files that it writes on the way; no limit a minute."""
    # it counts tokens with a file that tiktoken would fetch; litellm, which it needs, has a copy
    litellm = importlib.util.find_spec("litellm")
    assert litellm and litellm.origin
    tokenizers = Path(litellm.origin).parent / "litellm_core_utils/tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(tokenizers)

    from bespokelabs import curator  # pyright: ignore[reportMissingImports]

    llm = curator.LLM(
        model_name=MODEL,
        backend="openai",
        generation_params={"max_tokens": MAX_NEW_TOKENS, "temperature": 1.0},
        backend_params={
            "base_url": options["url"],
            "api_key": "none",
            "max_concurrent_requests": options["in_flight"],
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 100_000_000_000,
        },
    )

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            answered = llm(list(prompts(options)), working_dir=folder)
            return sum(len(row["response"]) for row in answered.dataset)

    return run


CLIENTS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "prefpipe": prefpipe,
    "async_openai": async_openai,
    "async_openai_aiohttp": async_openai_aiohttp,
    "distilabel": distilabel,
    "curator": curator,
}
DISTRIBUTIONS = {
    "prefpipe": ("openai", "aiohttp"),
    "async_openai": ("openai",),
    "async_openai_aiohttp": ("openai", "aiohttp"),
    "distilabel": ("distilabel", "openai"),
    "curator": ("bespokelabs-curator", "aiohttp"),
}


def megabytes(field: str) -> float:
    """VmRSS: held now; VmHWM: the most so far. Of ru_maxrss part is the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000


def cpu_seconds() -> float:
    import resource  # Linux, as /proc above

    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def main() -> None:
    client, options, path = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    run = CLIENTS[client](options)
    held, cpu, wall = megabytes("VmRSS"), cpu_seconds(), time.perf_counter()
    characters = run()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    found = {
        "seconds": wall,
        "cpu_seconds": cpu,
        "megabytes_before": held,
        "peak_megabytes": megabytes("VmHWM"),
        "characters": characters,
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS[client]},
    }
    path.write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without what libraries do at their end


if __name__ == "__main__":
    main()
