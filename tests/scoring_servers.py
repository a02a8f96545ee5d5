"""Servers that score with a model of this process, in the words that vLLM, SGLang and llama.cpp document.

Each is a function of path and body that gives a status and a reply's JSON; run it with serving().
"""

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.reward_model import RewardModel

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]
NOT_FOUND = 404, {"detail": "Not Found"}
_one_at_a_time = threading.Lock()


@dataclass
class Running:
    """url: the base URL. paths: how often each was asked. bodies: what was sent."""

    url: str
    paths: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def serving(answer: Answer) -> Iterator[Running]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with _one_at_a_time:
                running.paths[self.path] += 1
                running.bodies.append(body)
                status, reply = answer(self.path, body)
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Running(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield running
    server.shutdown()
    server.server_close()


def refused(message: str) -> tuple[int, Any]:
    return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}


def _rows(given: Any) -> list[list[int]]:
    return [given] if isinstance(given[0], int) else given


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- reward models


def vllm_classifier(model: RewardModel) -> Answer:
    """A sigmoid where nothing else is asked for, as vLLM gives of one label."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/classify":
            return NOT_FOUND
        if "input" not in body:
            return refused("1 validation error: Field required: input")
        scores = model.score_rows(_rows(body["input"]))
        if body.get("use_activation", True):
            scores = [*map(sigmoid, scores)]
        data = [
            {"index": k, "label": "LABEL_0", "probs": [score], "num_classes": 1}
            for k, score in enumerate(scores)
        ]
        return 200, {"id": "classify-1", "object": "list", "created": 1, "model": body["model"],
                     "data": data[::-1], "usage": {"prompt_tokens": 9, "total_tokens": 9}}  # fmt: skip

    return answer


def sglang_embedder(model: RewardModel) -> Answer:
    """SGLang started with --is-embedding."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/classify":
            return NOT_FOUND
        if "input_ids" not in body:
            return refused("Either text, input_ids or input_embeds should be provided.")
        scores = model.score_rows(_rows(body["input_ids"]))
        found = [{"embedding": [x], "meta_info": {"id": "1", "prompt_tokens": 3}} for x in scores]
        return 200, found if isinstance(body["input_ids"][0], list) else found[0]

    return answer


def vllm_pooler(model: RewardModel, *, each_token: bool) -> Answer:
    """vLLM with a reward model of its own pooling: one number a text, or one a token."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/pooling":
            return NOT_FOUND
        scores = model.score_rows(_rows(body["input"]))
        data = [
            {"index": k, "object": "pooling", "data": [[0.5], [-3.0], [x]] if each_token else [x]}
            for k, x in enumerate(scores)
        ]
        return 200, {"id": "pool-1", "object": "list", "model": body["model"], "data": data}

    return answer


# ---- language models


@torch.inference_mode()
def _logps(model: PairwiseModel, row: list[int]) -> list[float]:
    ids = torch.tensor([row])
    return model.model(input_ids=ids).logits[0, -1].float().log_softmax(-1).tolist()


def _top(logps: list[float], most: int) -> list[int]:
    return sorted(range(len(logps)), key=lambda id: -logps[id])[:most]


def vllm_completer(model: PairwiseModel, most: int = 20) -> Answer:
    """The tokens that are asked for beside the one that is drawn, else the likeliest; by number where
    that is asked for, else by text. most: 5 for a server that knows no `logprob_token_ids`."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/completions":
            return NOT_FOUND
        if body["logprobs"] > most:
            return refused(f"Requested sample logprobs of {body['logprobs']}, max allowed: {most}")
        by_number = body.get("return_tokens_as_token_ids")
        choices = []
        for index, row in enumerate(_rows(body["prompt"])):
            logps = _logps(model, row)
            ids = _top(logps, body["logprobs"])
            if most == 20 and "logprob_token_ids" in body:
                ids = [ids[0], *body["logprob_token_ids"]]
            name = (lambda id: f"token_id:{id}") if by_number else model.tokenizer.decode
            top = {name(id): logps[id] for id in ids}
            logprobs = {
                "tokens": [name(ids[0])],
                "token_logprobs": [logps[ids[0]]],
                "top_logprobs": [top],
            }
            choices.append(
                {"index": index, "text": "x", "logprobs": logprobs, "finish_reason": "length"}
            )
        return 200, {"object": "text_completion", "model": body["model"], "choices": choices}

    return answer


def sglang_generator(model: PairwiseModel) -> Answer:
    """The tokens that are asked for, as [log p, number, text]."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/generate":
            return NOT_FOUND
        logps = _logps(model, body["input_ids"])
        assert body["return_logprob"] and body["sampling_params"]["max_new_tokens"] == 1
        found = [[[logps[id], id, None] for id in body["token_ids_logprob"]]]
        return 200, {
            "text": "A",
            "meta_info": {"prompt_tokens": 1, "output_token_ids_logprobs": found},
        }

    return answer


def llama_cpp_completer(model: PairwiseModel) -> Answer:
    """Log-probabilities as in chat completions, tokens by number beside their text."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/completions":
            return NOT_FOUND
        logps = _logps(model, body["prompt"])
        top = [
            {"id": id, "token": model.tokenizer.decode([id]), "logprob": logps[id], "bytes": []}
            for id in _top(logps, body["logprobs"])
        ]
        choice = {
            "index": 0,
            "text": "A",
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        return 200, {"object": "text_completion", "choices": [choice]}

    return answer
