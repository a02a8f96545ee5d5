"""llm.server.started_server: a server lives as long as the stage that started it, and no longer."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import generate_responses
from prefpipe.llm.responders import Responder
from prefpipe.llm.server import started_server
from prefpipe.llm.server.started_server import PRESETS, StartedServer, words_of
from tests.examples import ROOT, read_jsonl, run_stage, sentence, write_jsonl
from tests.test_gguf_files import write_gguf

FAKE = f"{sys.executable} {ROOT / 'tests/stubborn_server.py'} --port {{port}}"
MODEL = ROOT / "embedded/model"
PROMPTS = [{"id": f"p{k}", "text": f"Question {k}?"} for k in range(5)]
MODELS = [{"name": "theirs", "model": "org/model"}]


@pytest.fixture
def inputs(tmp_path) -> list[str]:
    """Options of generate_responses.py for a run with five prompts."""
    path = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    output = ["--output", str(tmp_path / "out"), "--models", json.dumps(MODELS)]
    return ["--input", str(path), *output, "--engine", "server"]


def started(tmp_path, options: str = "", patience: float = 30.0) -> StartedServer:
    return StartedServer(f"{FAKE} {options}", "m", tmp_path / "s.log", patience)


def is_running(pid: int) -> bool:
    """A process that is dead and that nobody has asked about yet is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes(notes: Path) -> list[int]:
    return [int(pid) for pid in notes.read_text().split()]


def wait_until(holds, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def start_stage(inputs: list[str], serve: str, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "generate_responses.py"), *inputs, "--serve", serve],
        cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip


# ---- what is started


def test_a_preset_is_its_command_with_more_options_behind_it():
    words = words_of("vllm --data-parallel-size 4", "org/model", 81)
    assert words[:3] == ["uvx", "--from", "vllm==0.33.0"] and words[-2:] == [
        "--data-parallel-size",
        "4",
    ]
    assert words[words.index("serve") + 1] == "org/model"
    assert words[words.index("--port") + 1] == "81" and "127.0.0.1" in words


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_the_model_and_the_port_and_listens_to_this_machine_only(name):
    text = " ".join(words_of(name, "MODEL", 8123))
    assert "MODEL" in text and "--port 8123" in text and "--host 127.0.0.1" in text
    assert not re.search(r"[{}]", text)


def test_a_command_is_taken_as_it_stands_and_gets_a_port_where_it_names_none():
    command = 'vllm serve {model} --port {port} --hf-overrides \'{"a": {"b": 1}}\''
    assert words_of(command, "a b", 7) == [
        *["vllm", "serve", "a b", "--port", "7", "--hf-overrides", '{"a": {"b": 1}}']
    ]
    assert words_of("vllm serve {model} -tp 2", "m", 7)[-2:] == ["--port", "7"]


@pytest.mark.parametrize(
    "serve, said",
    [
        ("no-such-program {model}", "no program no-such-program on this machine"),
        ("vllm 'a", "No closing quotation"),
        ("  ", "found no command"),
    ],
)
def test_a_command_that_cannot_run_is_a_sentence_and_leaves_no_log(tmp_path, serve, said):
    with pytest.raises(SystemExit, match=said):
        StartedServer(serve, "m", tmp_path / "s.log", 5.0)
    assert not list(tmp_path.iterdir())


# ---- a server that is in no hurry, dies, or never answers


@pytest.mark.parametrize("options", ["--slow 1", "--loads 1", "--without-health --slow 0.5"])
def test_a_server_that_starts_slowly_is_waited_for(tmp_path, options):
    server = started(tmp_path, options)
    assert server._is_healthy() and not server.why_down()
    server.stop()
    assert server.why_down() and not server._is_healthy()


def test_a_server_that_dies_while_it_starts_is_a_sentence_with_its_last_line(tmp_path):
    began = time.monotonic()
    with pytest.raises(SystemExit, match=r"exit code 3.*ValueError: no such architecture") as end:
        started(tmp_path, "--dies")
    assert len(str(end.value)) < 300 and str(tmp_path / "s.log") in str(end.value)
    assert time.monotonic() - began < 10
    assert (tmp_path / "s.log").read_text().startswith("loading the weights")


def test_a_server_that_never_answers_is_ended_and_the_limit_is_named(tmp_path):
    notes = tmp_path / "notes"
    with pytest.raises(SystemExit, match=r"did not answer within 2 s \(--serve-seconds\).*loading"):
        started(tmp_path, f"--loads 1000 --child --notes {notes}", patience=2.0)
    assert not any(map(is_running, processes(notes)))


def test_a_server_that_ignores_signals_is_killed_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(started_server, "GRACE_SECONDS", 1.0)
    notes = tmp_path / "notes"
    server = started(tmp_path, f"--ignores-signals --child --notes {notes}")
    both = processes(notes)
    assert len(both) == 2 and all(map(is_running, both))
    server.stop()
    server.stop()
    assert not any(map(is_running, both))


def test_a_key_is_not_in_the_servers_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    environment = "import os; print(os.environ.get('OPENAI_API_KEY'), os.environ['HOME'])"
    with pytest.raises(SystemExit, match=f"None {os.environ['HOME']}"):
        StartedServer(f'{sys.executable} -c "{environment}"', "m", tmp_path / "s.log", 30.0)


def test_a_proxy_is_not_asked_for_this_machine(tmp_path, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    inputs = Path(tmp_path / "prompts.jsonl")
    write_jsonl(inputs, PROMPTS[:1])
    s = generate_responses.Settings(
        input=str(inputs), output=tmp_path / "out", models=[Responder.model_validate(MODELS[0])],
        engine="server", serve=FAKE,
    )  # fmt: skip
    generate_responses.main(s)
    monkeypatch.delenv("no_proxy")
    assert len(read_jsonl(tmp_path / "out/theirs/responses.jsonl")) == 1


# ---- a stage and its server


def test_a_stage_starts_its_server_and_ends_it_and_the_rows_are_those_of_a_base_url(
    tmp_path, inputs
):
    notes = tmp_path / "notes"
    result = run_stage(
        "generate_responses", *inputs, "--serve", f"{FAKE} --child --notes {notes}", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert not any(map(is_running, processes(notes)))
    rows = (tmp_path / "out/theirs/responses.jsonl").read_bytes()
    assert b"answer to Question 4?" in rows
    log = tmp_path / "out/generate_responses.org-model.server.log"
    assert log.read_text() == "loading the weights\n"
    # a finished run starts nothing, whatever --serve says; a base URL gives the same fingerprint
    again = ("--serve", "python -c 0", *inputs)
    assert run_stage("generate_responses", *again, cwd=tmp_path).returncode == 0
    server = started(tmp_path)
    other = [*inputs, "--base-urls", json.dumps([server.url]), "--overwrite"]
    assert run_stage("generate_responses", *other, cwd=tmp_path).returncode == 0
    server.stop()
    assert (tmp_path / "out/theirs/responses.jsonl").read_bytes() == rows


def test_models_have_their_servers_one_after_the_other(tmp_path, monkeypatch):
    """The first one's memory is free before the second is loaded."""
    running = []

    class Noted(StartedServer):
        def __init__(self, *arguments) -> None:
            assert not [server for server in running if not server.why_down()]
            super().__init__(*arguments)
            running.append(self)

    monkeypatch.setattr(started_server, "StartedServer", Noted)
    models = [Responder(name=name, model=name) for name in ("a", "b")]
    path = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    s = generate_responses.Settings(
        input=str(path), output=tmp_path / "out", models=models, engine="server", serve=FAKE
    )
    generate_responses.main(s)
    gc.collect()
    assert len(running) == 2 and all(server.why_down() for server in running)
    assert len(list((tmp_path / "out").glob("*.server.log"))) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stage_that_is_stopped_while_it_waits_leaves_no_server(tmp_path, inputs, number):
    notes = tmp_path / "notes"
    stage = start_stage(inputs, f"{FAKE} --loads 1000 --child --notes {notes}", tmp_path)
    wait_until(lambda: notes.exists() and len(processes(notes)) == 2)
    assert all(map(is_running, processes(notes)))
    stage.send_signal(number)
    stage.wait(90)
    wait_until(lambda: not any(map(is_running, processes(notes))))
    if number == signal.SIGINT:
        assert stage.returncode == 130 and stage.stderr
        assert stage.stderr.read() == "generate_responses: stopped; the same command goes on\n"


def test_a_server_that_dies_on_the_way_is_a_sentence_and_the_same_command_goes_on(tmp_path, inputs):
    options = ("--requests-in-flight", 1)
    began = time.monotonic()
    result = run_stage(
        "generate_responses", *inputs, *options, "--serve", f"{FAKE} --dies-after 3", cwd=tmp_path
    )
    first, last = result.stderr.strip().split("\n")
    assert "ended (exit code 9); the last line of its log: RuntimeError: out of memory" in first
    assert "theirs" in last and len(first) < 330 and time.monotonic() - began < 30
    assert run_stage("generate_responses", *inputs, "--serve", FAKE, cwd=tmp_path).returncode == 0
    rows = read_jsonl(tmp_path / "out/theirs/responses.jsonl")
    assert [row["text"] for row in rows] == [f"answer to Question {k}?" for k in range(5)]


def test_a_shard_has_a_server_and_a_log_of_its_own(tmp_path, inputs):
    shards = ("1/2", "2/2", "all/2")
    for shard in shards:
        serve = "no-such-program" if shard == "all/2" else FAKE  # put together without a model
        result = run_stage(
            "generate_responses", *inputs, "--shard", shard, "--serve", serve, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
    rows = read_jsonl(tmp_path / "out/theirs/responses.jsonl")
    assert [row["text"] for row in rows] == [f"answer to Question {k}?" for k in range(5)]
    names = {path.name for path in (tmp_path / "out").glob("*.server.log")}
    assert names == {f"generate_responses.{k}-of-2.org-model.server.log" for k in (1, 2)}


def test_a_dry_run_starts_nothing_and_refuses_what_the_run_would(tmp_path, inputs):
    notes = tmp_path / "notes"
    dry = (*inputs, "--dry-run", "--serve")
    result = run_stage("generate_responses", *dry, f"{FAKE} --notes {notes}", cwd=tmp_path)
    assert result.returncode == 0 and "5 requests" in result.stdout, result.stdout + result.stderr
    assert not notes.exists() and not (tmp_path / "out").exists()
    result = run_stage("generate_responses", *dry, "no-such-program", cwd=tmp_path)
    assert result.returncode == 1 and "no program no-such-program" in result.stderr


@pytest.mark.parametrize(
    "options, said",
    [
        (["--base-urls", '["http://a/v1"]', "--engine", "server"], "set one of both"),
        (["--engine", "local"], "set --engine server"),
        (["--engine", "batch"], "set --engine server"),
    ],
)
def test_what_contradicts_a_server_of_its_own_is_refused(tmp_path, options, said):
    assert said in sentence(run_stage("inference_all", "--serve", "vllm", *options, cwd=tmp_path))


# ---- servers that are not ours


XLLAMACPP = "uvx --from xllamacpp==2026.10.11549 python"


def greedy_rows(tmp_path: Path, name: str, *options: str, model: Path = MODEL) -> list[str]:
    """What the embedded model writes to five prompts."""
    path = write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    models = json.dumps([{"name": name, "model": str(model), "temperature": 0.0}])
    common = ["--input", path, "--output", tmp_path / "out", "--models", models]
    result = run_stage(
        "generate_responses", *common, "--max-new-tokens", 24, *options, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    return [r["text"] for r in read_jsonl(tmp_path / f"out/{name}/responses.jsonl")]


@pytest.mark.slow
def test_transformers_serve_writes_what_the_local_engine_writes(tmp_path):
    ours = greedy_rows(tmp_path, "ours")
    served = ("--engine", "server", "--serve", "transformers --device cpu")
    assert greedy_rows(tmp_path, "theirs", *served) == ours


@pytest.mark.slow
def test_llama_cpp_writes_what_the_local_engine_writes(tmp_path):
    if subprocess.run([*XLLAMACPP.split(), "-c", "import xllamacpp"]).returncode:
        pytest.skip("xllamacpp cannot be had here")
    model = write_gguf(tmp_path / "embedded.gguf")
    served = f"{XLLAMACPP} {ROOT / 'tests/llama_server.py'} {{model}}"
    theirs = greedy_rows(tmp_path, "theirs", "--engine", "server", "--serve", served, model=model)
    assert theirs == greedy_rows(tmp_path, "ours")
