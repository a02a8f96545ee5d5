"""Speed on a real model: 8 samples of two long prompts, by us, by `generate`, by llama.cpp's server.

    uv run --group real python -m benchmarks.real_speed

SmolLM2-135M-Instruct on this machine's processor. Two prompts of 785 tokens (code of Python's standard
library with a question), temperature 0.8, top-p 0.95, no end before the last of 64 or 150 tokens. Sides,
in turns, medians: our engine in float32, in bfloat16, and in float32 held to a schema (an object with a
text that is longer than what is written, so that as many tokens come), transformers' generate with
num_return_sequences=8, and llama.cpp's own HTTP server (PyPI xllamacpp, in an environment of its own) on
the package's file as it is (Q4_1), 8 slots, prompt cache on, asked by our client for each sample at once.
Not measured: llama.cpp on an F16 file, which the package does not bring.
Writes benchmarks/results/real_speed.json.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks import alternate, machine, make_parser, write_results
from embedded.stdlib_documents import read_documents
from prefpipe import chat, verdicts
from prefpipe.llm import Failure, Request, Result
from prefpipe.llm.local.local_engine import LocalEngine
from prefpipe.llm.server.server_engine import ServerEngine, ServerOptions
from prefpipe.llm.server.started_server import StartedServer
from prefpipe.llm.wire import ServedModel
from prefpipe.models.gguf_files import model_path
from prefpipe.models.loading import load_both

ROOT = Path(__file__).parent.parent
MODEL = "SmolLM2-135M-Instruct"
PROMPT_TOKENS, SAMPLES, PROMPTS, SLOTS = 785, 8, 2, 8
SETTINGS: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}
REACH = {64: {"generate": 7.0, "llama_cpp": 2.5}, 150: {"generate": 5.0, "llama_cpp": 1.5}}
REACH_BFLOAT16 = 1.3
REACH_SCHEMA = 1.1
LONG_TEXT = {"type": "string", "minLength": 3000, "maxLength": 4000}


def llama_cpp_command(slots: int, context: int) -> str:
    """llama.cpp's own server in an environment of its own, for --serve. context: tokens of a slot."""
    script = ROOT / "tests" / "llama_server.py"
    return f"uvx --from xllamacpp python {script} {{model}} --slots {slots} --context {context}"


def long_prompts(tokenizer: Any) -> list[str]:
    """Texts of which each is PROMPT_TOKENS tokens with its turn's marks."""
    sources = (
        code for _, _, code, _ in read_documents(Path(torch.__file__).parent.parent / "numpy")
    )
    text = "\n\n".join(code for code, _ in zip(sources, range(60), strict=False))
    ids = tokenizer(text)["input_ids"]
    frame = len(chat.prompt_ids(tokenizer, ({"role": "user", "content": "x"},))) - 1
    made = []
    for k in range(PROMPTS):
        size = PROMPT_TOKENS - frame
        piece = ids[k * PROMPT_TOKENS : k * PROMPT_TOKENS + size]
        made.append(tokenizer.decode(piece).strip())
    return made


def make_requests(texts: Iterable[str], new_tokens: int) -> list[Request]:
    return [
        Request(
            id=str(k),
            messages=({"role": "user", "content": text},),
            samples=tuple(range(SAMPLES)),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            **SETTINGS,
        )
        for k, text in enumerate(texts)
    ]


def count(results: Iterable[Result]) -> int:
    return sum(c.new_tokens for r in results if not isinstance(r, Failure) for c in r)


def sides(
    model: Any, half: Any, tokenizer: Any, url: str, new_tokens: int
) -> dict[str, Callable[[], int]]:
    requests = make_requests(long_prompts(tokenizer), new_tokens)
    engine, small = LocalEngine(model, tokenizer), LocalEngine(half, tokenizer)
    held = LocalEngine(model, tokenizer, structured_output=True)
    schema = verdicts.object_schema({"text": LONG_TEXT})
    formed = [replace(request, reply_schema=schema) for request in requests]
    served = ServedModel([url], MODEL, timeout_seconds=300, extra_body={"ignore_eos": True})
    one_by_one = [
        Request(f"{r.id}-{k}", r.messages, max_new_tokens=new_tokens, seed=k, **SETTINGS)
        for r in requests
        for k in range(SAMPLES)
    ]
    rows = [chat.prompt_ids(tokenizer, r.messages) for r in requests]
    shortest = min(map(len, rows))
    ids = torch.tensor([row[:shortest] for row in rows])
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": True}

    def generate() -> int:
        mask = torch.ones_like(ids)
        options_of = {**options, **SETTINGS, "attention_mask": mask, "pad_token_id": 0}
        return model.generate(ids, num_return_sequences=SAMPLES, **options_of)[:, shortest:].numel()

    def llama_cpp() -> int:
        return count(ServerEngine(served, ServerOptions(SLOTS * PROMPTS)).generate(one_by_one))

    return {
        "ours": lambda: count(engine.generate(requests)),
        "ours_bfloat16": lambda: count(small.generate(requests)),
        "ours_to_a_schema": lambda: count(held.generate(formed)),
        "generate": generate,
        "llama_cpp": llama_cpp,
    }


def noted(tokens: dict[str, int], name: str, run: Callable[[], int]) -> None:
    tokens[name] = run()


def main() -> None:
    args = make_parser(__doc__).parse_args()
    logging.set_verbosity_error()
    model, tokenizer = load_both(MODEL)
    half = load_both(MODEL)[0].bfloat16()
    lengths = [4] if args.tiny else list(REACH)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        server = StartedServer(llama_cpp_command(SLOTS, 1024), str(model_path(MODEL)), log, 300)
        try:
            for length in lengths:
                tokens: dict[str, int] = {}
                functions = {
                    name: partial(noted, tokens, name, run)
                    for name, run in sides(model, half, tokenizer, server.url, length).items()
                }
                measured = alternate(functions, args.rounds)
                median = measured["median_seconds"]
                found[str(length)] = {
                    **measured,
                    "tokens": tokens,
                    "ratio": {
                        name: median[name] / median["ours"] for name in ("generate", "llama_cpp")
                    },
                    "ratio_of_bfloat16": median["ours"] / median["ours_bfloat16"],
                    "time_to_a_schema": median["ours_to_a_schema"] / median["ours"],
                    "reach": REACH.get(length),
                }
                print(length, {name: round(s, 2) for name, s in median.items()}, tokens, flush=True)
        finally:
            server.stop()
    facts = {"model": MODEL, "prompt_tokens": PROMPT_TOKENS, "prompts": PROMPTS, "samples": SAMPLES}
    results = {"machine": machine(), **facts, "reach_bfloat16": REACH_BFLOAT16}
    results |= {"reach_schema": REACH_SCHEMA, "new_tokens": found}
    write_results("real_speed", results, args.results)


if __name__ == "__main__":
    main()
