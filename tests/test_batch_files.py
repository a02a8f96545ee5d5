"""Batches as files. Who runs them here posts each line to the loopback server, as vllm run-batch does."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import annotate_preferences
import inference_best_of_n
from embedded.server import Server
from prefpipe.rows import AnnotationPrompt, Item
from tests.batch_helpers import engine, numbered, request, texts
from tests.examples import read_jsonl, write_jsonl


def answer(line: dict[str, Any], server: Server) -> dict[str, Any]:
    """A line as vllm run-batch writes it."""
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    call = urllib.request.Request(
        f"{server.url}/chat/completions",
        json.dumps(line["body"]).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(call) as reply:
            status, body = reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        status, body = error.code, json.loads(error.read())
    response = {"status_code": status, "request_id": "vllm-batch-1", "body": body}
    return {"id": "vllm-1", "custom_id": line["custom_id"], "response": response, "error": None}


def run_batches(
    folder: Path, server: Server, keep: Callable[[int], bool] = lambda n: True
) -> list[int]:
    """Answer each file that has no results yet; keep: of a line's number, whether it is answered.
    The number of lines of each."""
    counts = []
    for path in sorted(folder.glob("requests-*.jsonl")):
        results = path.with_name(path.name.replace("requests", "results"))
        if not results.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            counts.append(len(lines))
            answers = [answer(line, server) for n, line in enumerate(lines) if keep(n)]
            results.write_text("".join(json.dumps(a) + "\n" for a in answers[::-1]))
    return counts


def exported(offline: Any, requests: list[Any]) -> str:
    with pytest.raises(SystemExit) as end:
        list(offline.generate(requests))
    return str(end.value)


def test_what_comes_back_in_files_is_what_a_server_says(tmp_path):
    requests = [request(k, samples=(0, 1, 2), temperature=0.7) for k in range(7)]
    with Server(numbered) as server:
        offline = engine(None, tmp_path, as_files=True, requests=4)
        said = exported(offline, requests)
        assert re.search(
            rf"7 requests wait in {tmp_path}: run vllm run-batch --model m "
            rf"-i {tmp_path}/requests-000001\.jsonl -o {tmp_path}/results-000001\.jsonl, and 1 more",
            said,
        )
        assert exported(offline, requests) == said, "nothing is written twice"
        assert run_batches(tmp_path, server) == [4, 3]
        found = texts(offline.generate(requests))
        online = texts(engine(server, tmp_path / "online").generate(requests))
    assert found == online and len(found) == 7
    assert texts(engine(None, tmp_path, as_files=True).generate(requests)) == found


def test_what_has_no_line_or_failed_at_the_server_is_asked_again_in_the_next_file(tmp_path):
    requests = [request(k) for k in range(6)]
    with Server(numbered) as server:
        offline = engine(None, tmp_path, as_files=True)
        exported(offline, requests)
        run_batches(tmp_path, server, keep=lambda n: n % 3 != 0)
        assert "2 requests wait" in exported(offline, requests)
        assert run_batches(tmp_path, server) == [2]
        assert texts(offline.generate(requests)) == {str(k): [f"q{k}/0"] for k in range(6)}


def test_results_that_are_none_cost_their_lines_only(tmp_path):
    requests = [request(k) for k in range(3)]
    offline = engine(None, tmp_path, as_files=True)
    exported(offline, requests)
    with Server(numbered) as server:
        run_batches(tmp_path, server)
        path = tmp_path / "results-000001.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["no JSON", lines[0][:40], *lines[1:]]))
        found = texts(offline.generate(requests))
    assert sorted(map(str, found.values())) == ["['q0/0']", "['q1/0']", "garbled_reply"]


def test_a_stage_writes_its_requests_and_goes_on_from_the_results(tmp_path, monkeypatch, capsys):
    """Shards write files of their own."""
    item = Item(
        id="a", source="s", split="train", language="en", question="q", answer_1="x", answer_2="y",
        better=1, prompt="which?",
    )  # fmt: skip
    items = [item.model_copy(update={"id": f"i{k}", "prompt": f"which {k}?"}) for k in range(9)]
    path = write_jsonl(tmp_path / "items.jsonl", [i.model_dump() for i in items])
    s = inference_best_of_n.Settings(
        input=path, output=tmp_path / "out/best_of_n.jsonl", n=2, engine="files", model="m",
        batch_folder=tmp_path / "batches",
    )  # fmt: skip

    def judged(body, sample):
        return json.dumps({"reason": numbered(body, sample), "better_answer": 1 + sample})

    with Server(judged) as server:
        for shard in ("1/2", "2/2"):
            part = s.model_copy(update={"shard": shard})
            with pytest.raises(SystemExit, match="vllm run-batch"):
                inference_best_of_n.main(part)
            run_batches(tmp_path / "batches" / shard.replace("/", "-of-"), server)
            inference_best_of_n.main(part)
        inference_best_of_n.main(s.model_copy(update={"shard": "all/2"}))
    rows = read_jsonl(tmp_path / "out/best_of_n.jsonl")
    assert [row["id"] for row in rows] == [i.id for i in items for _ in range(2)]
    assert json.loads(rows[3]["text"])["reason"] == "which 1?/1"


def test_the_annotator_exports_and_imports_by_steps(tmp_path, monkeypatch, capsys):
    prompts = [
        AnnotationPrompt(id=f"p{k}", aspect="honesty", swapped=False, prompt=f"rate {k}", order=[0, 1], texts=2)
        for k in range(4)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "prompts.jsonl", [p.model_dump() for p in prompts])
    s = annotate_preferences.Settings(
        input=path, output=tmp_path / "out.jsonl", model="m", batch_folder=tmp_path / "batches"
    )
    step = lambda name: s.model_copy(update={"step": name})  # noqa: E731
    with pytest.raises(SystemExit):
        annotate_preferences.main(step("export"))
    assert "4 requests wait" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="4 requests wait"):
        annotate_preferences.main(step("import"))
    with Server(lambda body, sample: "Text 1\nRating: 4\n\nText 2\nRating: 2") as server:
        assert run_batches(tmp_path / "batches", server) == [4]
    annotate_preferences.main(step("import"))
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["p0", "p1", "p2", "p3"]
