"""The synthetic path from prompts to pairs as a user runs it, through a real HTTP server."""

import json
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embedded import synthetic
from embedded.server import Call, Fault, Reply, Server, last_message
from embedded.server.local_models import to_request
from prefpipe.files import read_rows
from prefpipe.rows import SyntheticPair
from tests.examples import ROOT, ledger, read_jsonl, run_stage, write_jsonl

STAGES = [
    "generate_responses",
    "create_annotation_mix",
    "annotate_preferences",
    "parse_preferences",
]
IDS = ["00123", "a_b", "12e45", "p3", "p4"]
PROMPTS = [{"id": id, "text": f"Question {id}?"} for id in IDS]
QUALITY = {"best": 5, "fair": 4, "poor": 2, "worst": 1}
MODELS = [*QUALITY, "copy", "short"]


def answer(body: dict[str, Any], sample: int) -> str | Reply:
    """Six models and a judge that knows them: the texts say who wrote them."""
    text = last_message(body)
    if body["model"] == "judge":
        return rate(text)
    id = text.removeprefix("Question ").removesuffix("?")
    if body["model"] == "short" and id != "p3":
        return Reply(None, refusal="I will not.")
    name = "best" if body["model"] == "copy" else body["model"]  # says the same as another one
    return f"{name} answer to {id}"


def rate(prompt: str) -> str | Reply:
    if "Question a_b?" in prompt and "honest" in prompt:
        return Reply(None, finish_reason="content_filter")
    blocks = ["I have read them all."]
    for number, name in re.findall(r"^\[Text (\d+)\]\n(\w+) answer", prompt, re.M):
        rating = 3 if name == "short" else QUALITY[name]
        blocks.append(f"**Text {number}**\r\nReason: of {name}.\r\n\r\n**Rating:** {rating}")
    return "\r\n\r\n".join(blocks)


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("OPENAI_", "GENERATE_", "ANNOTATE_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def server():
    seen: set[str] = set()

    def busy_at_first(call: Call) -> Fault | None:
        request = json.dumps(call.body)
        if request in seen:
            return None
        seen.add(request)
        return Fault(status=429, retry_after="0.01")

    with Server(answer, models=(*MODELS, "judge"), fault=busy_at_first) as made:
        yield made


def environment(server: Server, folder: Path) -> dict[str, str]:
    """What the user has set; no stage gets an input or output."""
    return {
        "PREFPIPE_DATA": str(folder),
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": "sk-x",
        "GENERATE_MODELS": json.dumps([{"name": name, "model": name} for name in MODELS]),
        "GENERATE_ENGINE": "server",
        "ANNOTATE_ENGINE": "server",
        "ANNOTATE_MODEL": "judge",
        "PARSE_PAIRS": "best-vs-worst",
        "ANNOTATION_MIX_SWAPPED_SHARE": "0.5",
    }


def test_the_four_stages_connect_and_nothing_is_asked_twice(server, tmp_path):
    """S13, S7: no path is given to any of them. Each request fails once before it passes."""
    write_jsonl(tmp_path / "data/synthetic/prompts.jsonl", PROMPTS)
    env = environment(server, tmp_path / "data")
    said = {}
    for stage in STAGES:
        result = run_stage(stage, cwd=tmp_path, env=env)
        assert result.returncode == 0, (stage, result.stderr)
        said[stage] = result.stdout

    home = tmp_path / "data/synthetic"
    assert sorted(p.name for p in (home / "responses").iterdir()) == sorted(MODELS)
    assert ledger(home / "responses/short/responses.meta.json")["left_out"] == {"refused": 4}
    for mix in read_jsonl(home / "mix.jsonl"):
        assert [text.split()[0] for text in mix["responses"]] == [
            "best" if name == "copy" else name for name in mix["models"]
        ]
        assert all(text.endswith(f" answer to {mix['id']}") for text in mix["responses"])
        assert len({*mix["models"]} & {"best", "copy"}) == 1 or len(mix["models"]) == 4

    pairs = list(read_rows(home / "preferences.jsonl", SyntheticPair))
    assert [pair.id for pair in pairs] == IDS
    quality = {**QUALITY, "short": 3}
    by_id = {mix["id"]: mix for mix in read_jsonl(home / "mix.jsonl")}
    for pair in pairs:
        ranked = sorted(quality[text.split()[0]] for text in by_id[pair.id]["responses"])
        assert isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
        assert quality[pair.chosen.split()[0]] == ranked[-1] == pair.chosen_rating
        assert quality[pair.rejected.split()[0]] == ranked[0] == pair.rejected_rating
        assert pair.margin == ranked[-1] - ranked[0]
        assert pair.prompt == f"Question {pair.id}?"
    # a_b: the judge would not say how honest; three aspects are more than half of four
    lost = {pair.id for pair in pairs if None in pair.chosen_ratings}
    assert lost == {"a_b"}
    assert "the same rating for 1.000" in said["parse_preferences"]

    asked = Counter(json.dumps(body, sort_keys=True) for body in server.requests)
    assert set(asked.values()) == {2}  # the fault, and the answer
    before = len(server.requests)
    for stage in STAGES:
        again = run_stage(stage, cwd=tmp_path, env=env)
        assert again.returncode == 0 and "finished before" in again.stdout
    assert len(server.requests) == before


def test_each_command_of_the_readme_starts(tmp_path):
    """S7: with --show-settings, so that its options are read, and nothing else happens."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"uv run (\w+)\.py([^\n`#]*)", text)
    assert len(commands) >= 8
    for stage, options in commands:
        result = run_stage(stage, *shlex.split(options), "--show-settings", cwd=tmp_path)
        assert result.returncode == 0, result.stderr


# ---- the loopback server with models behind it


def test_a_request_of_the_api_is_the_engine_s(server):
    body = {"messages": [{"role": "user", "content": "Q"}], "max_tokens": 9, "temperature": 0.0,
            "top_p": 0.9, "top_k": 5, "seed": 3}  # fmt: skip
    request = to_request(body, 2)
    assert (request.samples, request.max_new_tokens, request.temperature) == ((2,), 9, 0.0)
    assert (request.top_p, request.top_k, request.seed) == (0.9, 5, 3)
    assert request.messages == ({"role": "user", "content": "Q"},)
    plain = to_request({"messages": body["messages"]}, 0)
    assert (plain.temperature, plain.top_p, plain.top_k) == (1.0, 1.0, 0)


# ---- the embedded questions


def test_the_share_of_right_answers_is_counted_on_the_questions_themselves(tmp_path):
    synthetic.write_prompts(tmp_path / "prompts.jsonl", 6, seed=4)
    prompts = read_jsonl(tmp_path / "prompts.jsonl")
    items = [item for (_, item), _ in zip(synthetic.make_exercises(4), range(6), strict=False)]
    assert [p["prompt"] for p in prompts] == [item.prompt for item in items]
    assert all(item.language == "en" for item in items)

    def pair(k: int, chosen_is_right: bool, tie: bool = False) -> SyntheticPair:
        item = items[k]
        right, wrong = f"It is {item.value}.", f"It is {item.wrong}."
        sides = (right, wrong) if chosen_is_right else (wrong, right)
        return SyntheticPair(
            id=prompts[k]["id"] + (":0-1" if k % 2 else ""), prompt=item.prompt,
            chosen=sides[0], rejected=sides[1], tie=tie, chosen_model="a", rejected_model="b",
            chosen_rating=5.0, rejected_rating=1.0, aspects=["honesty"], chosen_ratings=[5.0],
            rejected_ratings=[1.0],
        )  # fmt: skip

    rows = [pair(0, True), pair(1, True), pair(2, False), pair(3, True), pair(4, False, tie=True)]
    lines = synthetic.right_lines(rows)
    assert lines[0] == "4 pairs, and 1 ties, which are in no share"
    assert "chosen  : 0.750" in lines[1] and "rejected: 0.250" in lines[2]
