"""serve_reward: the script as a user runs it, and a GRPO run of TRL whose rewards it gives."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.reward_model import RewardModel
from prefpipe.llm.server.started_server import StartedServer
from tests.examples import ROOT, run_stage, sentence
from tests.test_ab_model import pairwise_model
from tests.test_reward_model import reward_model
from tests.training_models import scorable

COMMAND = f"{sys.executable} {ROOT / 'serve_reward.py'} {{model}} --port {{port}}"


def save(made: RewardModel | PairwiseModel, folder: Path) -> Path:
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    made.format.save(folder)
    return folder


def post(url: str, body: Any) -> Any:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_saved_model_is_served_until_ctrl_c_and_its_scores_are_those_of_the_folder(tmp_path):
    folder = save(reward_model(), tmp_path / "reward")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "serve_reward.py"), str(folder), "--port", str(port)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout
    assert server.stdout.readline() == (
        f"{folder}: a reward model at http://127.0.0.1:{port}; Ctrl-C ends it\n"
    )
    taken = run_stage("serve_reward", folder, "--port", port, cwd=tmp_path)
    assert "choose another --port" in sentence(taken)
    found = post(f"http://127.0.0.1:{port}/score", {"text_1": "Why?", "text_2": ["So.", "No."]})
    (wanted,) = RewardModel.load(folder).score([("Why?", ["So.", "No."])])
    assert [x["score"] for x in found["data"]] == pytest.approx(scorable(wanted), abs=1e-4)
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=20)
    assert (server.returncode, err) == (0, "")
    assert out == "1 requests, 2 rows in 1 batches\n"


def test_a_pairwise_model_is_known_by_its_files_and_one_of_anybodys_by_its_architecture(tmp_path):
    from prefpipe.serving.scorers import open_scorer

    options: dict[str, Any] = {"max_length": None, "load_in_4bit": None}
    folders = [save(reward_model(), tmp_path / "r"), save(pairwise_model(), tmp_path / "p")]
    kinds = ["reward", "pairwise"]
    assert [open_scorer(str(folder), **options).kind for folder in folders] == kinds
    for folder in folders:
        next(folder.glob("*_format.json")).unlink()
    assert [open_scorer(str(folder), **options).kind for folder in folders] == kinds


def test_a_model_that_is_not_there_is_a_sentence(tmp_path):
    assert "nowhere/model" in sentence(run_stage("serve_reward", "nowhere/model", cwd=tmp_path))


@pytest.mark.slow
def test_a_grpo_run_of_trl_gets_its_rewards_from_the_server(tmp_path):
    """A few steps on the embedded model; each reward that TRL logs is the reward model's own score."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    folder = save(reward_model(), tmp_path / "reward")
    server = StartedServer(COMMAND, str(folder), tmp_path / "server.log", 120.0)
    rewarded: list[tuple[str, str, float]] = []

    def served_reward(prompts: list[Any], completions: list[Any], **_: Any) -> Any:
        asked = [prompt[-1]["content"] for prompt in prompts]
        texts = [completion[0]["content"] for completion in completions]
        reply = post(server.url.removesuffix("/v1") + "/score", {"text_1": asked, "text_2": texts})
        rewards = [each["score"] for each in reply["data"]]
        rewarded.extend(zip(asked, texts, rewards, strict=True))
        return rewards

    prompts = [[{"role": "user", "content": f"What is {k} + {k}?"}] for k in range(8)]
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "grpo"),
        max_steps=3, num_generations=4, per_device_train_batch_size=4, max_completion_length=12,
        learning_rate=1e-4, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(ROOT / "embedded/model"),
        reward_funcs=served_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
    )
    trainer.train()
    server.stop()
    logged = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    assert len(logged) == 3 and len(rewarded) == 12
    model = RewardModel.load(folder)
    by_hand = [
        scorable(next(iter(model.score([(prompt, [text])]))))[0] for prompt, text, _ in rewarded
    ]
    assert [reward for *_, reward in rewarded] == pytest.approx(by_hand, abs=1e-4)
    means = [sum(by_hand[k : k + 4]) / 4 for k in (0, 4, 8)]
    assert logged == pytest.approx(means, abs=1e-3)
