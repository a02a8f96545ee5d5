"""serve_reward.py's server, asked by many at once, against scores one by one: requests a second.

    uv run --extra serve python -m benchmarks.reward_serving

A request is one response to a prompt, as an RL framework's reward function sends it: --prompts prompts
of 400 characters with 8 responses of 150 each, in random order. The sides take turns within one process,
on equal weights: the server with 64 requests in flight, the same server with one at a time, and
transformers' own forward of one row after the other without HTTP, which is what a reward function in
the trainer's process does. The client runs in threads of the same process: its time is in the server's.
Writes benchmarks/results/reward_serving.json; `batches` says how many rows ran together.
"""

import json
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks import alternate, machine, make_parser, ratios, write_results
from benchmarks.dpo_step import EMBEDDED, SMALL, Shape
from benchmarks.reward_step import make_model
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.models.tokenizers import load_tokenizer
from prefpipe.serving.reward_app import RewardServer, make_app
from prefpipe.serving.scorers import RewardScorer

IN_FLIGHT = 64
RESPONSES = 8
SHAPES = [Shape("30m", SMALL, 0, 0, 0), Shape("embedded", EMBEDDED, 0, 0, 0)]
Pair = tuple[str, str]


def make_requests(prompts: int, prompt: int, response: int) -> list[Pair]:
    """Prompts with their responses, of so many characters each, in random order."""
    rng = random.Random(3)

    def text(characters: int) -> str:
        return "".join(rng.choice("abcdefgh ijklmno ") for _ in range(characters))

    texts = [text(prompt) for _ in range(prompts)]
    made = [(one, text(response)) for one in texts for _ in range(RESPONSES)]
    rng.shuffle(made)
    return made


def post(url: str, pair: Pair) -> float:
    body = json.dumps({"text_1": pair[0], "text_2": pair[1]}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)["data"][0]["score"]


def asked(url: str, pairs: list[Pair], at_once: int) -> list[float]:
    with ThreadPoolExecutor(at_once) as pool:
        return [*pool.map(lambda pair: post(url, pair), pairs)]


@torch.inference_mode()
def one_by_one(model: RewardModel, pairs: list[Pair]) -> list[float]:
    """transformers' own forward, a row at a time."""
    scores = []
    for prompt, response in pairs:
        rows: Any = model.rows_of(prompt, [response])
        scores.append(model.model(input_ids=torch.tensor(rows)).logits[0, 0].item())
    return scores


def measure(shape: Shape, pairs: list[Pair], rounds: int) -> dict[str, Any]:
    tokenizer = load_tokenizer("embedded/model")
    network = make_model(Shape(shape.name, {**shape.model, "vocab_size": len(tokenizer)}, 0, 0, 0))
    model = RewardModel(network, tokenizer, RewardFormat(2048, True), is_causal=True)
    app = make_app(RewardScorer(model), shape.name)
    server = RewardServer(app, "127.0.0.1", 0, f"{shape.name}: served")
    thread = threading.Thread(target=server.serve_until_ctrl_c)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    url = f"http://127.0.0.1:{server.port}/score"
    sides: dict[str, Callable[[], list[float]]] = {
        "64_in_flight": lambda: asked(url, pairs, IN_FLIGHT),
        "one_at_a_time": lambda: asked(url, pairs, 1),
        "transformers": lambda: one_by_one(model, pairs),
    }
    scores = {name: side() for name, side in sides.items()}
    apart = max(
        abs(a - b) for a, b in zip(scores["64_in_flight"], scores["transformers"], strict=True)
    )
    waiting = app.state.waiting
    before = waiting.rows, waiting.batches
    sides["64_in_flight"]()
    rows, batches = waiting.rows - before[0], waiting.batches - before[1]
    measured = alternate(sides, rounds)
    server.should_exit = True
    thread.join()
    seconds = measured["median_seconds"]
    return {
        "requests": len(pairs),
        "requests_per_second": {name: round(len(pairs) / seconds[name], 1) for name in sides},
        "rows_in_a_batch": round(rows / batches, 1),
        "largest_difference_of_scores": apart,
        "against_one_at_a_time": ratios(measured, "64_in_flight", ["one_at_a_time"]),
        "against_transformers": ratios(measured, "64_in_flight", ["transformers"]),
        **measured,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    args = parser.parse_args()
    sizes = (2, 20, 10) if args.tiny else (args.prompts, 400, 150)
    results = {}
    for shape in SHAPES[-1:] if args.tiny else SHAPES:
        found = results[shape.name] = measure(shape, make_requests(*sizes), args.rounds)
        print(shape.name, found["requests_per_second"], f"{found['rows_in_a_batch']} rows a batch")
    write_results("reward_serving", {"machine": machine(), "shapes": results}, args.results)


if __name__ == "__main__":
    main()
