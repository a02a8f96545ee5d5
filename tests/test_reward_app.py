"""serving.reward_app: over HTTP a score is what the same model gives here, whoever's words are used."""

import asyncio
import json
import math
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch

from prefpipe.serving.reward_app import RewardServer, make_app
from prefpipe.serving.scorers import PairwiseScorer, RewardScorer
from prefpipe.serving.waiting_rows import WaitingRows
from tests.test_ab_model import pairwise_model
from tests.test_reward_model import QUESTIONS, reward_model
from tests.training_models import scorable, tokenizer

torch.set_num_threads(1)
CLOSE = pytest.approx
PROMPT: Any
PROMPT, RESPONSES = QUESTIONS[0]
TURNS = [{"role": "user", "content": PROMPT}]


class Client:
    """What a test asks of a server of that app."""

    def __init__(self, app: Any, port: int) -> None:
        self.app, self.url = app, f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def right(self, path: str, body: Any) -> Any:
        status, reply = self.ask(path, body)
        assert status == 200, reply
        return reply

    def scores(self, **body: Any) -> list[float]:
        return [each["score"] for each in self.right("/score", body)["data"]]


@contextmanager
def serving(scorer: Any, name: str = "org/model") -> Iterator[Client]:
    app = make_app(scorer, name)
    server = RewardServer(app, "127.0.0.1", 0, "")
    thread = threading.Thread(target=server.serve_until_ctrl_c)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield Client(app, server.port)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def model():
    return reward_model()


@pytest.fixture(scope="module")
def client(model) -> Iterator[Client]:
    with serving(RewardScorer(model)) as made:
        yield made


@pytest.fixture(scope="module")
def comparer():
    return pairwise_model(temperature=2.0)


@pytest.fixture(scope="module")
def pairwise(comparer) -> Iterator[Client]:
    with serving(PairwiseScorer(comparer)) as made:
        yield made


@pytest.fixture(scope="module")
def local(model) -> list[list[float]]:
    """The scores of QUESTIONS, by the model in this process."""
    return [scorable(scores) for scores in model.score(QUESTIONS)]


def rendered(prompt, response) -> str:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns.append({"role": "assistant", "content": response})
    return str(tokenizer().apply_chat_template(turns, tokenize=False))


def rows_of(model, prompt, responses) -> list[list[int]]:
    made = model.tokenize(prompt, responses)
    return [[*made.prompt_ids, *own] for own in made.completions]


# ---- a reward model


def test_score_takes_one_prompt_or_as_many_as_responses(client, local):
    one = client.scores(text_1=PROMPT, text_2=RESPONSES)
    assert one == CLOSE(local[0], abs=1e-4)
    assert client.scores(queries=[PROMPT], documents=RESPONSES[1]) == CLOSE(local[0][1:2], abs=1e-4)
    several, texts = QUESTIONS[2]
    prompts = [PROMPT, several, PROMPT, several]
    found = client.scores(text_1=prompts, text_2=[RESPONSES[0], texts[1], RESPONSES[3], texts[0]])
    wanted = [local[0][0], local[2][1], local[0][3], local[2][0]]
    assert found == CLOSE(wanted, abs=1e-4)
    assert client.right("/v1/score", {"text_1": PROMPT, "text_2": "4"})["object"] == "list"


def test_classify_and_pooling_take_messages_rendered_texts_and_token_ids(client, model, local):
    prompt, responses = QUESTIONS[1]
    messages = [*prompt, {"role": "assistant", "content": responses[1]}]
    texts = [rendered(prompt, response) for response in responses]
    rows = rows_of(model, prompt, responses)
    for given, wanted in (
        ({"messages": messages}, local[1][1:]),
        ({"input": texts}, local[1]),
        ({"input": texts[0]}, local[1][:1]),
        ({"input": rows}, local[1]),
        ({"input": rows[1], "model": "org/model"}, local[1][1:]),
    ):
        data = client.right("/classify", given)["data"]
        assert [each["index"] for each in data] == [*range(len(wanted))]
        assert [each["probs"] for each in data] == [[CLOSE(x, abs=1e-4)] for x in wanted]
        assert {each["num_classes"] for each in data} == {1}
        reply = client.right("/pooling", given)
        assert [each["data"] for each in reply["data"]] == [[CLOSE(x, abs=1e-4)] for x in wanted]
        assert reply["usage"]["total_tokens"] > 0 and reply["model"] == "org/model"


def test_classify_answers_as_sglang_does_where_it_is_asked_so(client, model, local):
    rows = rows_of(model, PROMPT, RESPONSES[:2])
    found = client.right("/classify", {"input_ids": rows})
    assert [each["embedding"] for each in found] == [[CLOSE(x, abs=1e-4)] for x in local[0][:2]]
    assert [each["meta_info"]["prompt_tokens"] for each in found] == [*map(len, rows)]
    mixed = [f"Human: {PROMPT}\n\nAssistant: {RESPONSES[1]}", rendered(PROMPT, RESPONSES[0])]
    found = client.right("/classify", {"text": mixed})
    assert [each["embedding"] for each in found] == [[CLOSE(local[0][k], abs=1e-4)] for k in (1, 0)]
    assert [x["meta_info"]["prompt_tokens"] for x in found] == [len(rows[1]), len(rows[0])]
    (value,) = client.right("/classify", {"input_ids": rows[0]})["embedding"]
    assert value == CLOSE(local[0][0], abs=1e-4)
    (value,) = client.right("/classify", {"text": rendered(PROMPT, "4")})["embedding"]
    assert value == CLOSE(local[0][0], abs=1e-4)


def test_a_sigmoid_is_given_where_it_is_asked_for(client, local):
    body = {"text_1": PROMPT, "text_2": RESPONSES, "use_activation": True}
    wanted = [1 / (1 + math.exp(-x)) for x in local[0]]
    assert client.scores(**body) == CLOSE(wanted, abs=1e-4)


@pytest.mark.parametrize("end", ["<|im_end|>\n", "<|im_end|>", "", "<|im_end|><pad><pad>"])
def test_get_reward_reads_rendered_queries_however_they_end(client, local, end):
    texts = [
        rendered(PROMPT, response).removesuffix("<|im_end|>\n") + end for response in RESPONSES
    ]
    prompt = rendered(PROMPT, "").removesuffix("<|im_end|>\n")
    for body in ({"query": texts}, {"query": texts, "prompts": [prompt] * 4, "labels": [""] * 4}):
        reply = client.right("/get_reward", body)
        assert reply["rewards"] == reply["scores"] == CLOSE(local[0], abs=1e-4)


def test_get_reward_reads_plain_prompts_and_the_markup_of_another_model(client, local):
    plain = {"query": [PROMPT + text + "</s>" for text in RESPONSES], "prompts": [PROMPT] * 4}
    assert client.right("/get_reward", plain)["rewards"] == CLOSE(local[0], abs=1e-4)
    prompt, responses = QUESTIONS[1]
    marks = "".join(
        f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n{turn['content']}<|eot_id|>"
        for turn in [*prompt, {"role": "assistant", "content": responses[0]}]
    )
    assert client.right("/get_reward", {"query": marks})["rewards"] == CLOSE(local[1][:1], abs=1e-4)


def test_a_model_that_reads_its_template_to_the_end_gets_the_same_row_of_a_rendered_text(model):
    """By the tokenizer's own template, token by token; what follows the end of turn hangs on the model."""
    at_end = reward_model()
    object.__setattr__(at_end.format, "read_at", "template_end")
    for one in (model, at_end):
        (row,) = rows_of(one, PROMPT, ["4"])
        assert one.tokenize.rendered(rendered(PROMPT, "4")) == row
        assert one.tokenize.rendered(rendered(PROMPT, "4").rstrip()) == row
    assert rows_of(at_end, PROMPT, ["4"])[0][: len(row) - 1] == rows_of(model, PROMPT, ["4"])[0]


# ---- a pairwise model


def test_a_pairwise_models_score_is_the_mean_probability_to_be_better(pairwise, comparer):
    """By hand, out of compare() of each pair; a random model is trusted here to say A or B."""
    texts = RESPONSES[:3]
    pairs = [*combinations(range(3), 2)]
    (compared,) = comparer.compare([(PROMPT, texts, pairs)])
    p = {pair: one.p for pair, one in zip(pairs, scorable(compared), strict=True)}
    wanted = [
        (p[0, 1] + p[0, 2]) / 2,
        (1 - p[0, 1] + p[1, 2]) / 2,
        (1 - p[0, 2] + 1 - p[1, 2]) / 2,
    ]
    assert pairwise.scores(text_1=PROMPT, text_2=texts) == CLOSE(wanted, abs=1e-4)
    mixed = {"query": [f"{PROMPT}{texts[0]}", "Why?No.", *(f"{PROMPT}{t}" for t in texts[1:]), "Why?So."],
             "prompts": [PROMPT, "Why?", PROMPT, PROMPT, "Why?"]}  # fmt: skip
    rewards = pairwise.right("/get_reward", mixed)["rewards"]
    assert [rewards[0], rewards[2], rewards[3]] == CLOSE(wanted, abs=1e-4)
    assert rewards[1] + rewards[4] == CLOSE(1.0)


@pytest.mark.parametrize("as_ids", [True, False])
def test_completions_give_the_log_probabilities_of_a_and_b(pairwise, comparer, as_ids):
    rows = scorable(comparer.tokenize(PROMPT, RESPONSES[:2], [(0, 1), (1, 0)])).rows
    asked = {"prompt": rows, "max_tokens": 1, "logprobs": 5, "return_tokens_as_token_ids": as_ids}
    choices = pairwise.right("/v1/completions", asked)["choices"]
    a, b = comparer.tokenize.labels
    names = (f"token_id:{a}", f"token_id:{b}") if as_ids else ("A", "B")
    for choice, (lp_a, lp_b) in zip(choices, comparer.label_logps(rows), strict=True):
        (top,) = choice["logprobs"]["top_logprobs"]
        assert top == {names[0]: CLOSE(lp_a, abs=1e-4), names[1]: CLOSE(lp_b, abs=1e-4)}
        assert choice["text"] == names[lp_b > lp_a]


def test_a_language_model_that_says_neither_a_nor_b_is_an_error_of_the_server():
    comparer = pairwise_model(is_trusted=False)
    with serving(PairwiseScorer(comparer)) as client:
        status, reply = client.ask("/score", {"text_1": "Q", "text_2": ["a", "b"]})
        assert status == 500 and "on neither A nor B" in reply["error"]["message"]
        assert client.ask("/health")[0] == 200


# ---- what cannot be answered


@pytest.mark.parametrize(
    "path, body, status, said",
    [
        ("/score", b"{", 400, "the body is no JSON: .* at character 1"),
        ("/score", b"[]", 400, "the body"),
        ("/score", {"text_1": "Q"}, 400, "text_2: Field required"),
        ("/score", {"text_1": "Q", "text_2": []}, 400, r"text_1 \(prompts\) or text_2"),
        ("/score", {"text_1": ["Q", "R"], "text_2": ["a"]}, 400, "2 prompts .* and 1 responses"),
        ("/score", {"text_1": " ", "text_2": "a"}, 400, "empty_question"),
        ("/score", {"text_1": "Q", "text_2": "a" * 600}, 400, "too_long: .*512 tokens"),
        ("/score", {"text_1": "Q", "text_2": "a", "model": "other"}, 404, "no model 'other' here"),
        ("/classify", {}, 400, "send one of input, text, input_ids and messages; found none"),
        ("/classify", {"input": []}, 400, "input is empty"),
        ("/classify", {"input": [[]]}, 400, "a row of token ids is empty"),
        ("/classify", {"input": [[1, 300]]}, 400, "token ids are from 0 to 299"),
        ("/classify", {"input": [5] * 513}, 400, "maximum context length is 512"),
        ("/classify", {"input": "no conversation"}, 400, "no conversation in this model's chat"),
        ("/classify", {"input": 7}, 400, "input"),
        ("/classify", {"input": "a", "messages": TURNS}, 400, "found input and messages"),
        ("/classify", {"messages": TURNS}, 400, "the last turn is the response"),
        ("/pooling", {"input": "a", "encoding_format": "base64"}, 400, "encoding_format: "),
        ("/get_reward", {"query": []}, 400, "query is empty"),
        ("/get_reward", {"query": ["ab"], "prompts": ["b"]}, 400, "query 0 does not begin with"),
        ("/get_reward", {"query": ["ab"], "prompts": []}, 400, "1 of query and 0 prompts"),
        ("/get_reward", {"query": "Human: Hi\n\nAssistant: Yes\n\nHuman: So?"}, 400, "no turn of"),
        ("/nothing", {}, 404, "nothing at /nothing; there are /classify"),
        ("/v1/completions", {"prompt": [1], "max_tokens": 1, "logprobs": 5}, 404, "nothing at"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_sentence_in_the_error_object(
    client, path, body, status, said
):
    found, reply = client.ask(path, body)
    assert found == status
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    message = reply["error"]["message"]
    assert len(message) <= 300 and "\n" not in message
    assert re.search(said, message), message


@pytest.mark.parametrize(
    "path, body, said",
    [
        ("/score", {"text_1": "Q", "text_2": "a"}, "two responses or more"),
        ("/classify", {"input": [1, 2]}, "a pairwise model compares"),
        ("/v1/completions", {"prompt": [1, 2], "max_tokens": 9, "logprobs": 5}, "max_tokens"),
        ("/v1/completions", {"prompt": [], "max_tokens": 1, "logprobs": 5}, "empty"),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 1, "logprobs": 5}, "prompt"),
    ],
)
def test_what_a_pairwise_model_cannot_answer_is_a_sentence(pairwise, path, body, said):
    status, reply = pairwise.ask(path, body)
    assert status == 400 and said in reply["error"]["message"]


def test_a_request_that_is_none_is_an_error_object_too(client):
    status, reply = client.ask("/score")
    assert (status, reply["error"]["message"]) == (405, "GET /score: Method Not Allowed")


def test_scores_that_are_no_number_are_an_error_of_the_server():
    broken = reward_model()
    with torch.no_grad():
        head: Any = broken.model.score
        head.weight.fill_(float("inf"))
    with serving(RewardScorer(broken)) as client:
        status, reply = client.ask("/score", {"text_1": "Q", "text_2": "a"})
    assert status == 500 and "no number" in reply["error"]["message"]


def test_the_model_and_its_kind_are_named(client, pairwise):
    assert client.ask("/health")[1] == {"status": "ok", "kind": "reward", "model": "org/model"}
    assert pairwise.ask("/health")[1]["kind"] == "pairwise"
    assert [m["id"] for m in client.ask("/v1/models")[1]["data"]] == ["org/model"]


# ---- requests that wait together


def test_many_requests_at_once_become_few_batches_and_each_gets_its_own_scores(client, local):
    waiting = client.app.state.waiting
    before = waiting.batches
    jobs = [(k % 4, RESPONSES[k % 4]) for k in range(64)]
    with ThreadPoolExecutor(32) as pool:
        found = [*pool.map(lambda job: client.scores(text_1=PROMPT, text_2=job[1]), jobs)]
    assert found == [[CLOSE(local[0][k], abs=1e-4)] for k, _ in jobs]
    assert waiting.batches - before < 64


def test_rows_that_gather_while_the_model_works_are_one_batch_and_an_error_is_theirs_alone():
    """The first batch is held until all others wait."""
    go_on, batches = threading.Event(), []

    def run(rows):
        batches.append(len(rows))
        if len(batches) == 1:
            go_on.wait(10)
        if [13] in rows:
            raise SystemExit("out of memory with one row of tokens")
        return [row[0] * 2 for row in rows]

    async def main():
        waiting = WaitingRows(run, 8192)
        first = asyncio.create_task(waiting.results([[1]]))
        while not batches:
            await asyncio.sleep(0.01)
        gone = asyncio.create_task(waiting.results([[99]]))
        others = [asyncio.create_task(waiting.results([[k], [k + 1]])) for k in range(2, 6)]
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        assert await first == [2]
        assert [await job for job in others] == [[2 * k, 2 * k + 2] for k in range(2, 6)]
        with pytest.raises(RuntimeError, match="out of memory"):
            await waiting.results([[13]])
        assert await waiting.results([[7]]) == [14]

    asyncio.run(main())
    assert batches == [1, 8, 1, 1]
