"""prefpipe.publish.sources: where data comes from, and what its own card states."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from prefpipe.publish.sources import licences, on_hub, runs_before, shown
from tests.examples import write_jsonl


def write_meta(path: Path, stage: str, **settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"closing_line": "", "fingerprint": {}, "stage": stage, "settings": settings}
    path.write_text(json.dumps(meta))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_path_is_shown_without_what_is_this_machines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/alice")
    cached = "/home/alice/.cache/huggingface/hub/models--owner--base/snapshots/abc"
    assert shown(
        {
            "a": tmp_path / "data/x",
            "b": ["/home/alice/x", f"llmbar={tmp_path}/y"],
            "c": cached,
            "d": 3,
        }
    ) == {"a": "data/x", "b": ["~/x", "llmbar=y"], "c": "owner/base", "d": 3}
    assert shown("/srv/data") == "/srv/data"  # what the user named
    assert shown("/home/alice2/x") == "/home/alice2/x"


def test_runs_before_are_followed_through_files_and_folders_the_first_one_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    raw = write_jsonl(tmp_path / "raw.jsonl", [{}])
    write_jsonl(tmp_path / "items/train.jsonl", [{}])
    write_meta(
        tmp_path / "items/preprocess_dataset.meta.json", "preprocess_dataset", input=str(raw)
    )
    write_jsonl(tmp_path / "said/best.jsonl", [{}])
    write_meta(tmp_path / "said/best.meta.json", "inference_best_of_n", input="items", model="m")
    last = {"items": "items", "input": "said/best.jsonl", "output": "said"}
    stages = [run["stage"] for run in runs_before(last)]
    assert stages == ["preprocess_dataset", "inference_best_of_n"]
    (tmp_path / "said/best.meta.json").write_text("{")  # a damaged one says nothing
    assert [run["stage"] for run in runs_before(last)] == ["preprocess_dataset"]


def test_a_run_that_wrote_another_file_of_the_folder_is_not_before(tmp_path):
    mine = write_jsonl(tmp_path / "mine.jsonl", [{}])
    write_meta(tmp_path / "rank_responses.meta.json", "rank_responses", input="x")
    assert runs_before({"input": str(mine)}) == []
    meta = json.loads((tmp_path / "rank_responses.meta.json").read_text())
    meta["counts"] = {"written": {"mine.jsonl": 3}}
    (tmp_path / "rank_responses.meta.json").write_text(json.dumps(meta))
    assert [run["stage"] for run in runs_before({"input": str(mine)})] == ["rank_responses"]


def test_a_circle_of_inputs_ends(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{}])
        write_meta(tmp_path / f"{name}.meta.json", name, input=str(tmp_path / f"{other}.jsonl"))
    assert {run["stage"] for run in runs_before({"input": str(tmp_path / "a.jsonl")})} == {"a", "b"}


def test_the_licence_is_that_of_the_inputs_own_card_also_through_the_runs_between(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "clone/data/train.jsonl", [{}])
    (tmp_path / "clone/README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A set\n")
    assert licences({"input": "clone/data/train.jsonl"}) == {"clone/data/train.jsonl": "cc-by-4.0"}
    write_jsonl(tmp_path / "items/train.jsonl", [{}])
    write_meta(tmp_path / "items/preprocess_dataset.meta.json", "preprocess_dataset", input="clone")
    assert licences({"items": "items", "seed": 3}) == {"clone": "cc-by-4.0"}


@pytest.mark.parametrize(
    "text",
    ["# A project\nlicense: mit\n", "---\nlicense: [\n---\n", "---\ntags: [x]\n---\n", "\x00"],
)
def test_a_card_that_states_none_states_none(tmp_path, text):
    write_jsonl(tmp_path / "mine.jsonl", [{}])
    (tmp_path / "README.md").write_text(text)
    assert licences({"input": str(tmp_path / "mine.jsonl")}) == {}


def test_a_set_of_the_hub_is_known_by_the_hubs_cache_and_its_card_stands_there(hub_cache):
    folder = hub_cache / "datasets--owner--set"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("a" * 40) / "README.md").write_text("---\nlicense: odc-by\n---\n")
    settings = {"input": "owner/set", "model": "openai/gpt-4o", "output": "owner/set2"}
    assert on_hub(settings, "dataset") == ["owner/set"] and on_hub(settings, "model") == []
    assert licences(settings) == {"owner/set": "odc-by"}


def test_the_licence_of_files_by_a_glob_and_of_a_path_with_an_equals_sign(tmp_path):
    for folder in ("d", "k=v"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A set\n")
        (tmp_path / folder / "a.jsonl").write_text("{}\n")
    for name in (tmp_path / "d/*.jsonl", tmp_path / "k=v/a.jsonl", f"llmbar={tmp_path}/d/a.jsonl"):
        assert set(licences({"input": str(name)}).values()) == {"cc-by-4.0"}, name
