"""embedded/server: the OpenAI-compatible server on loopback that tests and pipeline.sh use."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embedded.server import ApiError, Server, last_message
from prefpipe.llm.server.server_engine import ServerEngine
from prefpipe.llm.wire import ServedModel
from tests.batch_helpers import engine, numbered, request, right, sizes, texts

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("no_account")


# ---- its batches


def test_a_batch_that_takes_its_time_is_not_shown_as_ended_and_outlives_who_looked_at_it():
    """Else a killed client's next run would find it ended without a file, and pay for it again."""
    may_answer = threading.Event()

    async def answer(body, sample) -> str:
        while not may_answer.is_set():
            await asyncio.sleep(0.01)
        return numbered(body, sample)

    with Server(answer) as server:
        engine(server).submit([request(k) for k in range(3)])
        url = f"{server.url}/batches/batch_0"

        def look(seconds: float) -> dict[str, Any]:
            with urllib.request.urlopen(url, timeout=seconds) as reply:
                return json.load(reply)

        for _ in range(3):  # until its states are over and it is at work
            with contextlib.suppress(TimeoutError):
                look(0.3)
        with urllib.request.urlopen(f"{server.url}/batches") as reply:
            [shown] = json.load(reply)["data"]
        assert shown["status"] == "finalizing" and shown["output_file_id"] is None
        may_answer.set()
        ended = look(10)
        assert ended["status"] == "completed" and ended["request_counts"]["completed"] == 3
        assert texts(engine(server).generate([request(k) for k in range(3)])) == right(3)
    assert server.paid == Counter({f"q{k}": 1 for k in range(3)}) and sizes(server) == [3]


def test_a_line_that_the_model_refuses_is_a_line_of_the_error_file_and_stops_no_other():
    async def answer(body, sample) -> str:
        if last_message(body) == "q1":
            raise ApiError(400, "too long", code="context_length_exceeded")
        return numbered(body, sample)

    with Server(answer) as server:
        found = texts(engine(server).generate([request(k) for k in range(3)]))
    assert found == right(3) | {"1": "prompt_too_long"}


# ---- the server as a process


def test_the_loopback_server_runs_as_a_command_and_says_at_its_end_what_it_did():
    command = [sys.executable, "-m", "embedded.server", "--fault", "500:0.3", "--fault", "few:0.3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        asked = [request(i, samples=(0, 1), temperature=1.0) for i in range(40)]
        found = texts(ServerEngine(ServedModel([url], "m")).generate(asked))
        process.send_signal(signal.SIGINT)
        stats = json.loads(process.communicate(timeout=20)[0])
    assert found == {str(i): [f"q{i}"] * 2 for i in range(40)}
    assert stats["paid"] == 80 and stats["requests"] > 50
