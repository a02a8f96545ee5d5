"""A copy of the project whose config.py a user has edited: each stage still finds the one before it.

The same copy shows that what a run reads at run time, the project's own templates and criteria too, is
part of its fingerprint: an edit between two runs is refused, never mixed in.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embedded.server import Server, last_message
from tests.examples import ROOT, read_jsonl, sentence, write_jsonl

IDS = ["p1", "p2", "p3"]
EDITS = {
    'SYNTHETIC = DATA / "synthetic"': 'SYNTHETIC = DATA / "somewhere/else"',
    'MODEL_RESPONSES = SYNTHETIC / "responses"': 'MODEL_RESPONSES = DATA / "answered"',
    'ANNOTATION_MIX = SYNTHETIC / "mix.jsonl"': 'ANNOTATION_MIX = DATA / "mixed/up.jsonl"',
    'ANNOTATION_PROMPTS = SYNTHETIC / "annotation_prompts.jsonl"': (
        'ANNOTATION_PROMPTS = SYNTHETIC / "asked.jsonl"'
    ),
}
Project = Path


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """The stages, prefpipe and config.py in a folder of their own."""
    for name in [n for n in os.environ if n.startswith(("OPENAI_", "GENERATE_", "ANNOTATE_"))]:
        monkeypatch.delenv(name)
    copy = tmp_path / "project"
    copy.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    shutil.copytree(ROOT / "prefpipe", copy / "prefpipe", ignore=lambda *_: ["__pycache__"])
    return copy


def edit(path: Path, edits: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def run(
    project: Project, stage: str, *options: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"{stage}.py", *map(str, options)],
        cwd=project,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def answer(body: dict[str, Any], sample: int) -> str:
    """Two models, and a judge that rates the better one's texts higher."""
    text = last_message(body)
    if body["model"] != "judge":
        return f"{body['model']} answer to {text}"
    shown = re.findall(r"^\[Text (\d+)\]\n(\w+) answer", text, re.M)
    return "\n\n".join(f"Text {n}\nRating: {5 if name == 'good' else 2}" for n, name in shown)


def prompts(folder: Path) -> Path:
    return write_jsonl(folder, [{"id": id, "text": f"Question {id}?"} for id in IDS])


def test_edited_constants_of_config_connect_all_stages_of_the_synthetic_path(project):
    edit(project / "config.py", EDITS)
    prompts(project / "runs/b/somewhere/else/prompts.jsonl")
    with Server(answer, models=("good", "poor", "judge")) as server:
        models = '[{"name": "good", "model": "good"}, {"name": "poor", "model": "poor"}]'
        environment = {"PREFPIPE_DATA": "runs/b", "OPENAI_BASE_URL": server.url}
        environment |= {"GENERATE_ENGINE": "server", "GENERATE_MODELS": models}
        environment |= {"ANNOTATE_ENGINE": "server", "ANNOTATE_MODEL": "judge"}
        for stage in (
            "generate_responses",
            "create_annotation_mix",
            "annotate_preferences",
            "parse_preferences",
        ):
            done = run(project, stage, **environment)
            assert done.returncode == 0, (stage, done.stderr)
    data = project / "runs/b"
    written = {str(path.relative_to(data)) for path in data.rglob("[a-z]*.jsonl")}
    assert written >= {
        "answered/good/responses.jsonl",
        "answered/poor/responses.jsonl",
        "mixed/up.jsonl",
        "mixed/create_annotation_mix.rejects.jsonl",
        "somewhere/else/asked.jsonl",
        "somewhere/else/annotations.jsonl",
        "somewhere/else/preferences.jsonl",
    }
    assert not (project / "data").exists()
    pairs = read_jsonl(data / "somewhere/else/preferences.jsonl")
    assert [(row["id"], row["chosen_model"], row["margin"]) for row in pairs] == [
        (id, "good", 3.0) for id in IDS
    ]


# ---- an edit between two runs


def mix(project: Project) -> subprocess.CompletedProcess[str]:
    return run(
        project, "create_annotation_mix", "--prompts", "prompts.jsonl", "--input", "responses"
    )


@pytest.fixture
def responses(project) -> Project:
    """The project with the responses of two models in it."""
    prompts(project / "prompts.jsonl")
    more = {"finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 1}
    for model in ("a", "b"):
        rows = [
            {"id": id, "prompt": f"Question {id}?", "model": model, "text": f"{model} {id}", **more}
            for id in IDS
        ]
        write_jsonl(project / "responses" / model / "responses.jsonl", rows)
    return project


@pytest.mark.parametrize(
    ("name", "edits"),
    [
        ("rate.en.jinja", {"in order, write three lines": "write three lines"}),
        ("criteria.toml", {"Rate how helpful": "Say how helpful"}),
    ],
)
def test_a_built_in_template_or_criterion_that_was_edited_is_named(responses, name, edits):
    assert mix(responses).returncode == 0
    asked = responses / "data/synthetic/annotation_prompts.jsonl"
    before = asked.read_bytes()
    edit(responses / "prefpipe/templates" / name, edits)
    said = sentence(mix(responses))
    assert f"made with other settings or input (input {name})" in said and "--overwrite" in said
    assert asked.read_bytes() == before


def test_the_translator_s_and_the_judge_s_template_are_part_of_a_translation(project):
    from prefpipe.files import write_rows
    from prefpipe.rows import Item
    from tests.chinese_items import item

    write_rows(project / "items/train.jsonl", [item(1, "en")], Item)
    options = ("--input", "items", "--output", "english", "--offline")
    assert run(project, "translation", *options).returncode == 0
    templates = project / "prefpipe/templates"
    for name, edits in (
        ("translate.jinja", {"Literally and completely.": "Freely."}),
        ("judge.en.jinja", {"[Question]": "[The question]"}),
    ):
        before = (templates / name).read_bytes()
        edit(templates / name, edits)
        said = sentence(run(project, "translation", *options))
        assert f"(input {name})" in said
        (templates / name).write_bytes(before)
    edit(templates / "guide.en.jinja", {"[Question]": "[The question]"})  # which is not read
    assert "finished before" in run(project, "translation", *options).stdout


def test_a_template_edited_while_a_run_was_stopped_is_refused_and_nothing_is_mixed(project):
    """Half of the texts under one prompt, half under another, is what must never be in one file."""
    from prefpipe.files import write_rows
    from prefpipe.rows import Item
    from tests.examples import item

    rows = [item(f"q{k}") for k in range(6)]
    write_rows(project / "items/train.jsonl", rows, Item)
    options = ("--input", "items", "--output", "raw", "--engine", "server", "--model", "m")
    busy = {"is": False}

    def fault(call):
        from embedded.server import Fault

        busy["is"] |= "q3" in last_message(call.body)
        return Fault(status=500) if busy["is"] else None

    with Server(lambda body, sample: "A reason.", fault=fault) as server:
        environment = {"OPENAI_BASE_URL": server.url}
        few = ("--requests-in-flight", "1", "--max-retries", "0")
        stopped = run(project, "inference_all", *options, *few, **environment)
        assert "the same command asks for these again" in stopped.stderr, stopped.stderr
        edit(project / "prefpipe/templates/guide.en.jinja", {"[Question]": "[The question]"})
        busy["is"] = False
        before = len(server.requests)
        said = sentence(run(project, "inference_all", *options, *few, **environment))
        assert "a stopped run with other settings or input (input guide.en.jinja)" in said
        assert len(server.requests) == before and not list((project / "raw").glob("[a-z]*.jsonl"))
