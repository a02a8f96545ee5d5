"""annotate_preferences: rows, steps, resume; kill -9 at random moments against a server with faults."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import config
from annotate_preferences import Settings, main
from embedded.server import BatchFault, Fault, Server, last_message
from prefpipe import ratings
from prefpipe.files import DataError, read_rows, write_rows
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import AnnotationAnswer, AnnotationPrompt, Reject
from tests.examples import ROOT, ledger, run_stage, sentence

KEY = "sk-a-very-secret-key"
ASPECTS = ("honesty", "helpfulness")


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """The tests' own servers only, whatever the person who runs them has set."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def prompt(id: str, aspect: str = "honesty", **other) -> AnnotationPrompt:
    text = f"Rate {id!r} for {aspect}{' again' if other.get('swapped') else ''}."
    given = {"id": id, "aspect": aspect, "prompt": text, "order": [1, 0], "texts": 2, **other}
    return AnnotationPrompt.model_validate(given)


def settings(rows: list[AnnotationPrompt] | None = None, server: Server | None = None, **options):
    if rows is not None:
        write_rows(Path("prompts.jsonl"), rows, AnnotationPrompt)
    given = {"input": Path("prompts.jsonl"), "output": Path("answers.jsonl"), "model": "m"}
    given |= {"base_urls": [server.url] if server else [], "batch_folder": Path("batches")}
    return Settings.model_validate(given | {"engine": "batch", "poll_seconds": 0.01} | options)


def answered() -> list[AnnotationAnswer]:
    return list(read_rows(Path("answers.jsonl"), AnnotationAnswer))


def rejected() -> dict[str, str]:
    return {row.id: row.reason for row in read_rows(Path("answers.rejects.jsonl"), Reject)}


def rate(body, sample) -> str:
    return f"Ratings of: {last_message(body)}"


ROWS = [prompt(id, aspect) for id in ("p1", "p2") for aspect in ASPECTS]
ROWS.append(prompt("p1", swapped=True))


# ---- rows


@pytest.mark.parametrize("kind", ["server", "batch"])
def test_each_prompt_gets_its_answer_in_the_order_of_the_input(kind, capsys):
    with Server(rate) as server:
        main(settings(ROWS, server, engine=kind))
    assert [(r.id, r.aspect, r.swapped, r.text) for r in answered()] == [
        (p.id, p.aspect, p.swapped, f"Ratings of: {p.prompt}") for p in ROWS
    ]
    assert {(r.model, r.finish_reason) for r in answered()} == {("m", "stop")}
    assert ledger(Path("answers.meta.json"))["kept"] == 5 and rejected() == {}
    # 4 characters a token: "Rate 'p1' for honesty." and "Ratings of: " before it
    first = answered()[0]
    assert (first.prompt_tokens, first.new_tokens) == (6, 9)
    total = sum(r.prompt_tokens for r in answered()), sum(r.new_tokens for r in answered())
    assert f"{total[0]} prompt + {total[1]} new tokens" in capsys.readouterr().out


def test_structured_output_asks_for_the_form_that_is_read():
    asked = []

    def answer(body, sample):
        asked.append(body["response_format"]["json_schema"])
        rated = asked[-1]["schema"]["properties"]
        worst_first = [
            one["properties"]["rating"]["enum"][k] for k, one in enumerate(rated.values())
        ]
        return json.dumps({key: {"reason": "so", "rating": worst_first.pop(0)} for key in rated})

    with Server(answer) as server:
        main(settings(ROWS[:1], server, structured_output=True))
    assert asked[0]["strict"] is True
    assert ratings.read_ratings(answered()[0].text, ROWS[0].texts) == [
        float(k) for k in range(1, ROWS[0].texts + 1)
    ]


def test_the_local_engine_gives_the_same_rows():
    engine = ScriptedEngine(
        lambda request, sample: f"Ratings of: {request.messages[-1]['content']}"
    )
    main(settings(ROWS, engine="local"), engine)
    assert [r.text for r in answered()] == [f"Ratings of: {p.prompt}" for p in ROWS]


def test_ids_come_out_as_they_went_in():
    """S11: "00123" became 123, "12e45" a float, and a `_` in an id cut it."""
    ids = [
        "00123",
        "123",
        "12e45",
        "a_b",
        "a\tb",
        "a\thonesty\tgiven",
        '"x"\n',
        "编号",
        "1.0",
        "null",
    ]
    rows = [prompt(id, aspect) for id in ids for aspect in ASPECTS]
    with Server(lambda body, sample: f"Text 1\nRating: 3\n{rate(body, sample)}") as server:
        main(settings(rows, server))
    assert [(r.id, r.aspect) for r in answered()] == [(p.id, p.aspect) for p in rows]
    assert [r.text[17:] for r in answered()] == [f"Ratings of: {p.prompt}" for p in rows]


def test_a_doubled_prompt_is_an_error_with_both_lines_before_anything_is_paid():
    rows = [*ROWS, prompt("p1")]
    with Server(rate) as server, pytest.raises(DataError, match=r"jsonl:6: id .*jsonl:1 already"):
        main(settings(rows, server, step="submit"))
    assert not server.api_calls


def test_a_request_without_an_answer_is_a_reject_with_its_reason():
    def fault(call):
        return Fault(status=400, message="no") if "'p2'" in last_message(call.body) else None

    with Server(rate, fault=fault) as server:
        main(settings(ROWS, server))
    assert [r.id for r in answered()] == ["p1", "p1", "p1"]
    assert rejected() == {f"p2\t{aspect}\tgiven": "bad_request" for aspect in ASPECTS}
    assert ledger(Path("answers.meta.json"))["left_out"] == {"bad_request": 2}


# ---- steps


def test_the_steps_one_by_one_end_in_the_rows_of_a_run(capsys):
    """S6: `download` exited 0 having done nothing; here the exit says what is still to be done."""
    with Server(rate, batch_fault=expire_first) as server:
        s = settings(ROWS, server)
        step(s, "submit", exits=0)
        assert "5 requests submitted now; 5 wait for an answer, in 1 batches" in out(capsys)
        step(s, "submit", exits=0)
        assert "0 requests submitted now; 5 wait" in out(capsys)
        step(s, "status")
        assert "batch_0  finalizing   0 of 5 answered" in out(capsys)
        for _ in range(2):
            assert "have no answer yet" in step(s, "download", exits=1)
            assert not Path("answers.jsonl").exists()
        step(s, "submit", exits=0)
        assert "3 requests submitted now; 3 wait" in out(capsys)
        for _ in range(3):
            step(s, "status")  # the loopback server's batches move on at each look
        step(s, "download")
        assert len(answered()) == 5
        out(capsys)
        step(s, "status")
        assert "completed    3 of 3 answered  downloaded" in out(capsys)
    assert set(server.paid.values()) == {1}


def expire_first(call):
    return BatchFault(end="expired", answered=0.4) if call.number == 0 else None


def step(s: Settings, name: str, exits: int | None = None) -> str:
    """What the step says as it stops; exits None: it does not."""
    s = s.model_copy(update={"step": name})
    if exits is None:
        main(s)
        return ""
    with pytest.raises(SystemExit) as end:
        main(s)
    assert (end.value.code == 0) == (exits == 0), end.value.code
    return str(end.value.code)


def out(capsys) -> str:
    return capsys.readouterr().out


def test_a_step_of_the_batch_engine_wants_the_batch_engine():
    for name in ("submit", "status", "download"):
        with pytest.raises(SystemExit, match=f"--step {name}.*--engine batch"):
            main(settings(ROWS, engine="server", step=name))


def test_estimate_and_status_need_no_key_and_submit_says_what_is_missing(tmp_path):
    """S7: the documented commands did not start, and a missing key was a NameError everywhere."""
    settings(ROWS)
    options = ["--input", "prompts.jsonl", "--engine", "batch", "--model", "gpt-4o-mini"]

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return run_stage("annotate_preferences", *options, "--step", name, cwd=tmp_path)

    estimate = run("estimate")
    assert estimate.returncode == 0, estimate.stderr
    assert "requests: 5 to send; 0 are submitted" in estimate.stdout
    assert f"at most {5 * 512:,} new" in estimate.stdout
    # the five prompts have 22, 26, 22, 26 and 28 characters: 6 + 7 + 6 + 7 + 7 tokens
    assert "about 33 in the prompts" in estimate.stdout
    assert "gpt-4o-mini in batches" in estimate.stdout and "nothing was sent" in estimate.stdout
    status = run("status")
    assert status.returncode == 0 and "0 batches submitted" in status.stdout
    assert "OPENAI_API_KEY" in sentence(run("submit"))


def test_the_key_of_dot_env_reaches_the_api_and_no_output(tmp_path):
    with Server(rate, api_key=KEY) as server:
        settings(ROWS)
        Path(".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={server.url}\n")
        options = ["--input", "prompts.jsonl", "--output", "answers.jsonl", "--engine", "batch"]
        options += ["--model", "m", "--batch-folder", "batches", "--poll-seconds", "0.05"]
        done = run_stage("annotate_preferences", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shown = run_stage("annotate_preferences", *options, "--show-settings", cwd=tmp_path)
    assert len(answered()) == 5
    files = [path for path in Path().rglob("*") if path.is_file() and path.name != ".env"]
    assert {"batches.jsonl", "answers.meta.json"} <= {path.name for path in files}
    assert not any(KEY in text for text in
                   [done.stdout, done.stderr, shown.stdout, *map(Path.read_text, files)])  # fmt: skip


def test_the_estimate_of_a_server_is_at_its_full_price(capsys):
    settings(ROWS)
    for kind, factor in (("server", 1), ("batch", 2)):
        rows = [prompt(f"p{i}", prompt="x" * 4000) for i in range(160)]
        s = settings(rows, engine=kind, step="estimate", model="gpt-4o-mini", max_new_tokens=1000)
        main(s)
        # 160 * 1000 tokens each way: 0.024 + 0.096 USD
        assert f"at most about {0.12 / factor:.2f} USD" in out(capsys)
    with pytest.raises(SystemExit, match="costs nothing"):
        main(settings(engine="local", step="estimate"))


def test_max_cost_stops_the_run_and_a_higher_one_goes_on():
    with Server(rate) as server:
        s = settings(ROWS, server, model="gpt-4o-mini", max_new_tokens=1_000_000, batch_requests=2)
        with pytest.raises(SystemExit, match=r"5 requests not submitted.*max_cost"):
            main(s.model_copy(update={"max_cost": 0.1}))
        assert not server.paid and not Path("answers.jsonl").exists()
        main(s.model_copy(update={"max_cost": 2.0}))
    assert len(answered()) == 5 and set(server.paid.values()) == {1}


# ---- resume


def test_starting_anew_takes_paid_answers_from_the_folder():
    with Server(rate) as server:
        main(settings(ROWS, server))
        before = Path("answers.jsonl").read_bytes()
        main(settings(ROWS, server, overwrite=True))
        assert Path("answers.jsonl").read_bytes() == before
        main(settings([*ROWS, prompt("p3")], server, overwrite=True))
    assert len(answered()) == 6 and set(server.paid.values()) == {1}


def test_every_stage_with_a_model_takes_the_batch_engine(monkeypatch):
    monkeypatch.setattr(config, "BATCHES", Path("elsewhere"))
    from prefpipe.llm.batch_api.batch_engine import BatchEngine

    s = settings(ROWS, batch_folder=None, max_cost=3.0)
    engine = s.open_engine("m")
    assert isinstance(engine, BatchEngine)
    assert engine.options == s.batch_options()
    assert engine.options.folder == Path("elsewhere/annotate_preferences")
    assert (engine.options.max_cost, engine.options.requests) == (3.0, 50_000)


ZYGOTE = """
# Starts the stage again and again in forks of itself: its imports are done once.
import os, sys
import openai
import annotate_preferences as stage, prefpipe.llm.batch_api.batch_engine
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        sys.argv[1:] = line.split()
        stage.Settings.run(stage.main)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_any_moment_every_request_is_paid_once_and_has_one_row_or_reason(tmp_path):
    """kill -9 at random moments of submit, poll, download and write, with faults of every kind."""
    rows = [prompt(f"p{i}", aspect) for i in range(50) for aspect in ASPECTS]
    chance = random.Random(5)
    kinds = [
        BatchFault(),
        BatchFault(end="expired", answered=0.5),
        BatchFault(end="cancelled", answered=0.3, silent=True),
        BatchFault(answered=0.6),
        BatchFault(invalid_lines=(1,)),
        BatchFault(duplicate=True, shuffle=True, garbage=3),
        BatchFault(lost=1),
        BatchFault(end="failed", code="token_limit_exceeded", message="full"),
        BatchFault(end="failed", code="internal", message="try later"),
    ]
    child, calls_left, killed_in = 0, 0, []

    def api_fault(request, number) -> Fault | None:
        """Kills the stage in this call, or shortly behind it; else lets some of them go wrong."""
        nonlocal calls_left
        calls_left -= 1
        if calls_left == 0:
            moment = chance.choice(["before", "after", "behind"])
            killed_in.append(f"{request.method} {request.path.split('/')[2].partition('?')[0]}")
            if moment == "behind":
                threading.Timer(chance.uniform(0, 0.05), kill, [child]).start()
                return None
            kill(child)
            return Fault(status=500) if moment == "before" else None
        at = chance.random()
        if at < 0.15:
            return [Fault(cut=True), Fault(status=503), Fault(status=429, retry_after="0.01")][
                int(at * 20)
            ]
        return None

    def kill(process: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself in the meantime
            os.kill(process, signal.SIGKILL)

    with Server(rate, batch_fault=lambda call: chance.choice(kinds), api_fault=api_fault) as server:
        write_rows(Path("prompts.jsonl"), rows, AnnotationPrompt)
        command = (
            f"--input prompts.jsonl --output answers.jsonl --engine batch --model m "
            f"--batch-folder batches --batch-requests 7 --batch-tries 8 --poll-seconds 0.02 "
            f"--base-urls {server.url}\n"
        )
        zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], cwd=tmp_path, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert zygote.stdin and zygote.stdout
        codes: list[int] = []
        while 0 not in codes:
            calls_left = chance.randint(1, 7) if codes.count(-signal.SIGKILL) < 40 else -1
            zygote.stdin.write(command)
            zygote.stdin.flush()
            child = int(zygote.stdout.readline())
            codes.append(int(zygote.stdout.readline()))
            assert len(codes) < 400, Path("stderr.txt").read_text()[-3000:]
        zygote.stdin.close()
        zygote.wait()
    assert codes.count(-signal.SIGKILL) >= 30, codes
    assert {"POST files", "POST batches", "GET batches", "GET files"} <= set(killed_in)
    assert set(codes) <= {0, 1, -signal.SIGKILL}  # 1: a batch that failed as a whole, said so
    assert "Traceback" not in Path("stderr.txt").read_text()

    reasons = rejected()
    keys = [row.key for row in answered()]
    assert keys == [row.key for row in rows if row.key not in reasons]
    assert len(keys) + len(reasons) == len(rows) and not set(keys) & set(reasons)
    assert [row.text for row in answered()] == [
        f"Ratings of: {row.prompt}" for row in rows if row.key not in reasons
    ]
    paid = {row.key: server.paid[row.prompt] for row in rows}
    assert {paid[key] for key in keys} == {1}
    for key, reason in reasons.items():
        assert (reason, paid[key]) in {
            ("garbled_reply", 1), ("bad_request", 0), ("batch_expired", 0),
        }, (key, reason)  # fmt: skip
    assert sum(server.paid.values()) == len(keys) + list(reasons.values()).count("garbled_reply")
