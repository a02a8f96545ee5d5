"""compare.served_models: scores through a server are the model's own, in whichever server's words."""

import json
import re
import subprocess
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch

import accuracy
import rank_responses
from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.context import Unscorable
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.served_models import ServedPairwiseModel, ServedRewardModel
from prefpipe.llm.server.score_dialect import label_logps
from prefpipe.llm.server.score_engine import ScoreEngine
from prefpipe.llm.server.server_session import ServerOptions
from prefpipe.llm.server.started_server import StartedServer
from prefpipe.llm.wire import ServedModel
from prefpipe.serving.scorers import PairwiseScorer, RewardScorer
from tests import scoring_servers
from tests.examples import ROOT, read_jsonl, write_jsonl
from tests.scoring_servers import (
    NOT_FOUND,
    llama_cpp_completer,
    refused,
    serving,
    sglang_embedder,
    sglang_generator,
    vllm_classifier,
    vllm_completer,
    vllm_pooler,
)
from tests.test_ab_model import pairwise_model
from tests.test_gguf_files import write_gguf
from tests.test_reward_app import serving as serving_app
from tests.test_reward_model import QUESTIONS, reward_model
from tests.test_serve_reward import COMMAND, save
from tests.test_started_server import MODEL, XLLAMACPP
from tests.training_models import scorable

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    return save(reward_model(), tmp_path_factory.mktemp("models") / "reward")


@pytest.fixture(scope="module")
def pairwise_folder(tmp_path_factory):
    """A model that says A or B and little else: its head points to where its last states lie."""
    made = pairwise_model(temperature=2.0)
    rows = [
        row
        for prompt, texts in QUESTIONS
        for row in scorable(made.tokenize(prompt, texts, [(0, 1), (1, 0)])).rows
    ]
    a, b = made.tokenize.labels
    with torch.no_grad():
        states = [
            made.model.base_model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows
        ]
        mean = torch.stack(states).mean(0)
        head: Any = made.model.get_output_embeddings()
        weight = head.weight
        own = weight[[a, b]].clone()
        weight *= 0.02
        weight[[a, b]] = 2 * own + 8 * mean / mean.dot(mean)
    return save(made, tmp_path_factory.mktemp("models") / "pairwise")


@pytest.fixture(scope="module")
def reward(reward_folder) -> RewardModel:
    return RewardModel.load(reward_folder)


@pytest.fixture(scope="module")
def pairwise(pairwise_folder) -> PairwiseModel:
    return PairwiseModel.load(pairwise_folder)


def opener(url: str, *, leaves_out: bool = False, **options):
    """open_rows of a server at that URL."""

    def open_rows(model, wanted) -> ScoreEngine:
        served = ServedModel([url], model, **{"first_backoff_seconds": 0.01, **options})
        return ScoreEngine(served, ServerOptions(8), wanted, leaves_out=leaves_out)

    return open_rows


def asked(folder, url: str, questions=QUESTIONS, **options) -> list:
    model = ServedRewardModel(str(folder), opener(url, **options), max_length=None)
    return [*model.score(questions)]


# ---- reward models


REWARD_SERVERS = {
    "vllm": lambda model: serving(vllm_classifier(model)),
    "sglang": lambda model: serving(sglang_embedder(model)),
    "vllm pooling": lambda model: serving(vllm_pooler(model, each_token=False)),
    "vllm pooling of tokens": lambda model: serving(vllm_pooler(model, each_token=True)),
    "serve_reward": lambda model: as_base_url(RewardScorer(model)),
}


@contextmanager
def as_base_url(scorer, name="m"):
    with serving_app(scorer, name) as client:
        client.url += "/v1"
        yield client


@pytest.mark.parametrize("server", REWARD_SERVERS)
def test_a_served_reward_models_scores_are_those_of_the_model_here(server, reward, reward_folder):
    wanted = [scorable(scores) for scores in reward.score(QUESTIONS)]
    name = str(reward_folder)
    start = REWARD_SERVERS[server] if server != "serve_reward" else None
    with start(reward) if start else as_base_url(RewardScorer(reward), name) as running:
        found = asked(reward_folder, running.url)
    assert found == [pytest.approx(scores, abs=1e-4) for scores in wanted]
    assert min(map(min, wanted)) < 0  # so that a sigmoid would be seen


def test_what_a_server_does_not_understand_is_tried_once_and_not_again(reward, reward_folder):
    with serving(sglang_embedder(reward)) as running:
        model = ServedRewardModel(str(reward_folder), opener(running.url), max_length=None)
        for _ in range(3):
            assert len([*model.score(QUESTIONS[:1])]) == 1
    assert len(running.bodies) == 4 and "input" in running.bodies[0]
    assert all("input_ids" in body for body in running.bodies[1:])


def test_a_question_that_is_too_long_here_is_not_sent(reward_folder, reward):
    questions = [("Q", ["x" * 600]), ("Q", ["a"]), (" ", ["a"])]
    with serving(vllm_classifier(reward)) as running:
        found = asked(reward_folder, running.url, questions)
    assert [one.reason for one in found if isinstance(one, Unscorable)] == [
        "too_long",
        "empty_question",
    ]
    assert len(running.bodies) == 1


def test_an_encoder_that_is_told_of_its_two_texts_is_not_asked_at_a_server(
    monkeypatch, reward, reward_folder
):
    typed = reward_model(has_types=True)
    monkeypatch.setattr(RewardModel, "load", lambda *_, **__: typed)
    with pytest.raises(SystemExit, match="set --engine local"):
        asked(reward_folder, "http://127.0.0.1:9/v1")


def test_a_server_that_says_a_row_is_too_long_costs_that_row(reward, reward_folder):
    inner = vllm_classifier(reward)

    def answer(path, body):
        if len(body.get("input", [[]])[0]) > 60:
            return refused("This model's maximum context length is 60 tokens")
        return inner(path, body)

    questions = [("Q", ["a"]), ("Q", ["b" * 60]), ("Q", ["c"])]
    with serving(answer) as running:
        first, long, last = asked(reward_folder, running.url, questions)
    assert isinstance(first, list) and isinstance(last, list)
    assert isinstance(long, Unscorable) and long.reason == "prompt_too_long"


def test_errors_of_a_server_are_tried_again_and_in_the_end_a_sentence(reward, reward_folder):
    inner, failures = vllm_classifier(reward), [0]

    def shaky(path, body):
        failures[0] += 1
        return (503, {"error": "busy"}) if failures[0] % 3 else inner(path, body)

    with serving(shaky) as running:
        found = asked(reward_folder, running.url)
    assert all(isinstance(one, list) for one in found)
    with serving(lambda *_: (503, {"error": "busy"})) as running:
        with pytest.raises(SystemExit, match=r"requests did not pass .*server_error") as end:
            asked(reward_folder, running.url, max_retries=1)
        assert len(str(end.value)) < 400
        left = asked(reward_folder, running.url, max_retries=1, leaves_out=True)
    assert [one.reason for one in left] == ["server_error"] * 3


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda *_: NOT_FOUND, r"no score \(/classify: HTTP 404.*/pooling: HTTP 404.*--is-embedding"),
        (lambda *_: refused("not a pooling model"), "no score .*not a pooling model"),
        (lambda *_: (200, {"data": [{"index": 0, "probs": [0.1, 0.9]}]}), "gives 2 numbers a text"),
        (lambda *_: (200, {"data": [{"index": 0, "probs": [None]}] * 4}), "garbled_reply"),
        (lambda *_: (200, b'{"data": [{"index": 0, "probs": [NaN]}]}'), "garbled_reply"),
        (lambda *_: (200, b"<html>"), "no score but"),
        (lambda *_: (200, {"data": []}), "0 results for"),
        (lambda *_: (401, {"error": {"message": "no"}}), "check the API key"),
    ],
)  # fmt: skip
def test_a_server_without_scores_is_one_sentence(reward_folder, answer, said):
    with serving(answer) as running:
        try:
            found = asked(reward_folder, running.url)
        except SystemExit as end:
            found = str(end)
        else:  # three questions only: nothing is known of all others
            found = "; ".join(f"{one.reason}: {one.detail}" for one in found)
    assert re.search(said, found), found
    assert "Traceback" not in found and "\n" not in found


def test_scores_that_look_like_probabilities_are_told_of_once(reward_folder, capsys):
    def bounded(path, body):
        return 200, {"data": [{"index": k, "probs": [0.3]} for k in range(len(body["input"]))]}

    with serving(bounded) as running:
        asked(reward_folder, running.url, [("Q", ["a", "b"])] * 30)
    assert capsys.readouterr().err.count("between 0 and 1") == 1


# ---- pairwise models


def strict(answer: Any) -> Any:
    """As OpenAI's own server: a field that it does not know is an error."""
    known = {"model", "prompt", "max_tokens", "temperature", "logprobs"}

    def answered(path: str, body: dict[str, Any]) -> Any:
        if path.endswith("/completions") and (unknown := {*body} - known):
            return refused(f"Unrecognized request argument supplied: {min(unknown)}")
        return answer(path, body)

    return answered


PAIRWISE_SERVERS = {
    "vllm": lambda model, name: serving(vllm_completer(model)),
    "with 5 log-probabilities": lambda model, name: serving(vllm_completer(model, most=5)),
    "of known fields only": lambda model, name: serving(strict(vllm_completer(model, most=5))),
    "sglang": lambda model, name: serving(sglang_generator(model)),
    "llama.cpp": lambda model, name: serving(llama_cpp_completer(model)),
    "serve_reward": lambda model, name: as_base_url(PairwiseScorer(model), name),
}


@pytest.mark.parametrize("server", PAIRWISE_SERVERS)
def test_a_served_pairwise_models_probabilities_are_those_of_the_model_here(
    server, pairwise, pairwise_folder
):
    questions = [
        (prompt, texts, [*combinations(range(len(texts)), 2)]) for prompt, texts in QUESTIONS
    ]
    wanted = [scorable(one) for one in pairwise.compare(questions)]
    with PAIRWISE_SERVERS[server](pairwise, str(pairwise_folder)) as running:
        model = ServedPairwiseModel(str(pairwise_folder), opener(running.url))
        found = [scorable(one) for one in model.compare(questions)]
    flat = [
        (a, b)
        for ours, theirs in zip(found, wanted, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert len(flat) == 6 + 1 + 1
    for ours, theirs in flat:
        for name in ("p", "p_given", "p_swapped", "outside"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-4)
    given = [one.p_given for _, one in flat]
    assert max(given) - min(given) > 0.05


def test_a_token_by_its_text_is_enough_and_a_missing_label_is_as_likely_as_the_last(
    pairwise_folder,
):
    def answer(path, body):
        if path != "/v1/completions":
            return NOT_FOUND
        top = {"A": -0.01, "x": -5.0, "y": -6.0}
        return 200, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [top]}}]}

    with serving(answer) as running:
        model = ServedPairwiseModel(str(pairwise_folder), opener(running.url))
        ((one,),) = (scorable(each) for each in model.compare([("Q", ["a", "b"], [(0, 1)])]))
    # at a temperature of 2, as it was saved: log p of -0.01 against -6
    assert one.p_given == pytest.approx(1 / (1 + 2.718281828 ** ((-6 + 0.01) / 2)), abs=1e-6)


def test_a_model_that_says_neither_a_nor_b_is_refused_at_a_server_too(tmp_path):
    folder = save(pairwise_model(), tmp_path / "pairwise")
    with serving(sglang_generator(PairwiseModel.load(folder))) as running:
        model = ServedPairwiseModel(str(folder), opener(running.url))
        with pytest.raises(SystemExit, match="on neither A nor B"):
            list(model.compare([("Q", ["a", "b"], [(0, 1)])]))


@pytest.mark.slow
def test_llama_cpps_own_server_gives_the_log_probabilities_of_a_and_b(tmp_path):
    """The embedded model, in llama.cpp's arithmetic."""
    if subprocess.run([*XLLAMACPP.split(), "-c", "import xllamacpp"]).returncode:
        pytest.skip("xllamacpp cannot be had here")
    here = PairwiseModel.load(MODEL)
    rows = scorable(here.tokenize("What is 2 + 2?", ["4", "Five."], [(0, 1), (1, 0)])).rows
    serve = f"{XLLAMACPP} {ROOT / 'tests/llama_server.py'} {{model}}"
    model = str(write_gguf(tmp_path / "embedded.gguf"))
    server = StartedServer(serve, model, tmp_path / "server.log", 300.0)
    asked_for = label_logps(here.tokenize.labels, ("A", "B"))
    found = opener(server.url)(model, asked_for).ask({str(k): [row] for k, row in enumerate(rows)})
    server.stop()
    for k, wanted in enumerate(here.label_logps(rows)):
        assert found[str(k)] == [pytest.approx(wanted, abs=2e-3)]


# ---- stages


ROWS = [
    {"id": f"r{k}", "prompt": f"Question {k}?", "responses": [f"{k}", "It is so.", "No, never.", "So?"]}
    for k in range(9)
]  # fmt: skip


def rankings(tmp_path, name: str, options: dict) -> list[dict]:
    s = rank_responses.Settings(
        input=write_jsonl(tmp_path / "r.jsonl", ROWS), output=tmp_path / name, **options
    )
    rank_responses.main(s)
    return read_jsonl(tmp_path / name / "rankings.jsonl")


@pytest.mark.parametrize("tournament", ["knockout", "round-robin"])
def test_rank_responses_gives_the_same_rankings_at_a_server(
    tmp_path, tournament, reward, pairwise, reward_folder, pairwise_folder
):
    for by, folder, answer in (
        ("reward", reward_folder, vllm_classifier(reward)),
        ("pairwise", pairwise_folder, vllm_completer(pairwise)),
    ):
        options = {"by": by, f"{by}_model": str(folder), "tournament": tournament}
        here = rankings(tmp_path, f"{by}-here", options)
        with serving(answer) as running:
            at_server = {"engine": "server", "base_urls": [running.url]}
            there = rankings(tmp_path, f"{by}-there", options | at_server)
        assert len(running.bodies) > 1
        for ours, theirs in zip(here, there, strict=True):
            assert ours["ranking"] == theirs["ranking"]
            for name in ("scores", "margins"):
                assert (ours[name] is None) == (theirs[name] is None)
                assert theirs[name] in (None, pytest.approx(ours[name], abs=1e-3))
            played = [[match["p"] for match in row["comparisons"]] for row in (ours, theirs)]
            assert played[0] == pytest.approx(played[1], abs=1e-4)


def test_accuracy_gives_the_same_numbers_at_a_server(
    tmp_path, reward, pairwise, reward_folder, pairwise_folder
):
    pairs = write_jsonl(
        tmp_path / "p.jsonl",
        [{"prompt": f"Q {k}?", "chosen": f"yes {k}", "rejected": "no"} for k in range(8)],
    )

    def report(name: str, options: dict) -> dict:
        s = accuracy.Settings(
            kind=["reward", "pairwise"], benchmark=[f"auto={pairs}"], items=None, output=tmp_path / name,
            reward_model=str(reward_folder), pairwise_model=str(pairwise_folder), **options,
        )  # fmt: skip
        accuracy.main(s)
        return json.loads((tmp_path / name / "accuracy.json").read_text())["scored"]["auto"]

    def both(path, body):
        classified = vllm_classifier(reward)(path, body)
        return classified if classified is not NOT_FOUND else vllm_completer(pairwise)(path, body)

    here = report("here", {})
    with serving(both) as running:
        there = report("there", {"engine": "server", "base_urls": [running.url]})
    for kind in ("reward", "pairwise"):
        assert there[kind]["accuracy"] == here[kind]["accuracy"] and there[kind]["n"] == 8
    rows = [read_jsonl(tmp_path / name / "scores.jsonl") for name in ("here", "there")]
    for ours, theirs in zip(*rows, strict=True):
        assert theirs["right_scores"] == pytest.approx(ours["right_scores"], abs=1e-3)


def test_a_stage_starts_serve_reward_for_itself(tmp_path, reward_folder):
    options = {"reward_model": str(reward_folder)}
    served = {"engine": "server", "serve": COMMAND, "serve_seconds": 300.0}
    there = rankings(tmp_path, "there", options | served)
    here = rankings(tmp_path, "here", options)
    assert [row["ranking"] for row in here] == [row["ranking"] for row in there]
    (log,) = (tmp_path / "there").glob("rank_responses.*.server.log")
    assert "a reward model at http://127.0.0.1:" in log.read_text()


def test_engines_that_give_no_scores_are_refused(tmp_path):
    for more in ({"engine": "batch"}, {"engine": "batch", "dry_run": True}, {"engine": "files"}):
        with pytest.raises(SystemExit, match="these models give scores: set local or server"):
            rankings(tmp_path, "o", more)


def test_a_server_that_is_not_there_is_a_sentence(tmp_path, reward_folder):
    nobody = {"engine": "server", "base_urls": ["http://127.0.0.1:9/v1"]}
    with pytest.raises(SystemExit, match=r"no connection to http://127\.0\.0\.1:9/v1"):
        rankings(tmp_path, "o", {"reward_model": str(reward_folder), **nobody})


def test_the_fakes_give_a_sigmoid_where_nothing_else_is_asked_for(reward):
    """So that a client which does not ask for the scores themselves would be seen."""
    row = reward.tokenize("Q", ["a"])
    ids = [*scorable(row).prompt_ids, *scorable(row).completions[0]]
    _, plain = vllm_classifier(reward)("/classify", {"model": "m", "input": ids})
    (score,) = reward.score_rows([ids])
    assert plain["data"][0]["probs"] == [pytest.approx(scoring_servers.sigmoid(score))]
