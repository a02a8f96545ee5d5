"""What a request costs the client: ours, AsyncOpenAI, distilabel and curator, on one loopback server.

    uv run python -m benchmarks.client                                  # about 12 minutes, two idle cores
    uv run python -m benchmarks.client --requests 200 --results FOLDER  # shows that all of them run

CPU and wall milliseconds a request, rows a second and peak memory at 64 and 512 requests in flight,
for 2,000 requests (is memory flat?) and for 20,000. Each run is a process of its own
(client_sides.py has what it does; its CPU is by its own rusage) against a fresh process of
embedded/server, and the clients take turns. Each prompt has 1,000 characters, no two are alike, and comes
back as the answer; where one does not, the run failed. The server takes 0.5 ms times the requests in
flight for a reply, so that hundreds are in flight indeed; rows a second are 2,000 at most therefore.

    prefpipe              ServerEngine, as the stages have it
    async_openai          AsyncOpenAI, a semaphore and gather, as documented; our release of it
    async_openai_aiohttp  the same with DefaultAioHttpClient
    distilabel            OpenAILLM.generate_outputs, a batch after the other
    curator               bespokelabs.curator.LLM on a list of prompts

The last two get an environment of their own from uv, once: that needs a package index, all else
needs no network. A peer that cannot be installed or run has why in the JSON, and the others go on.
curator writes its requests and answers to files and its rows to a dataset, the others only count what
came back; its display is off. The rest of a distilabel pipeline, a process a step, is not measured, and would
add to its numbers. Client and server share the machine: on two cores a core each.
Writes benchmarks/results/client.json; cpu_ms_a_request is ours with the most requests, the most in flight.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, machine, write_results
from benchmarks.client_sides import CLIENTS

ROOT = Path(__file__).parent.parent
SIDES = Path(__file__).parent / "client_sides.py"
OURS = "prefpipe"
PACKAGES = {
    # it imports requests and does not ask for it
    "distilabel": ("distilabel[openai]==1.5.3", "requests"),
    "curator": ("bespokelabs-curator==0.1.31",),
}
"""What is not in our environment, and cannot be: their requirements exclude ours."""
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefpipe-peers"
PROMPT_CHARACTERS = 1_000
LATENCY_SECONDS = 0.0005
"""Of a reply, for each request in flight."""
LONGEST_RUN_SECONDS = 1_800

QUIET = {
    "NO_PROXY": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TELEMETRY_ENABLED": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
}
"""Nobody is told or asked anything; the last is curator's progress display."""


class PeerFailed(Exception):
    """The message is the last line of what it said."""


def environment(client: str, folder: Path) -> Path:
    """The Python that has the client; made once in `folder`. Raises PeerFailed where it cannot be."""
    packages = PACKAGES.get(client)
    if packages is None:
        return Path(sys.executable)
    name = "-".join(packages)
    place = folder / "".join(c if c.isalnum() or c in ".-" else "-" for c in name)
    python, made = place / "bin/python", place / "installed"
    if made.exists():
        return python
    if shutil.which("uv") is None:
        raise PeerFailed("uv is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    print("installing", *packages, flush=True)
    for command in (
        ["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
        ["uv", "pip", "install", "--quiet", "--python", str(python), *packages],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise PeerFailed(f"{packages[0]} cannot be installed: {last_line(done.stderr)}")
    made.touch()
    return python


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


@contextmanager
def serving(latency_seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server's base URL, and a dict that has its counters and CPU seconds once it has stopped."""
    command = [sys.executable, "-m", "embedded.server", "--latency", str(latency_seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    counters: dict[str, Any] = {}
    try:
        url = process.stdout.readline().strip()
        yield url, counters
    finally:
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        counters.update(json.loads(last_line(said)), cpu_seconds=used.ru_utime + used.ru_stime)


def run_side(client: str, python: Path, in_flight: int, requests: int) -> dict[str, Any]:
    """One run: what it cost. Raises PeerFailed where it ended otherwise than with all texts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(LATENCY_SECONDS * in_flight) as (url, server),
    ):
        options = {
            "url": url,
            "requests": requests,
            "in_flight": in_flight,
            "prompt_characters": PROMPT_CHARACTERS,
        }
        path = Path(folder) / "found.json"
        surroundings = {**os.environ, **QUIET, "HF_HOME": folder, "CURATOR_CACHE_DIR": folder}
        if python == Path(sys.executable):
            surroundings["PYTHONPATH"] = str(ROOT)
        try:
            done = subprocess.run(
                [str(python), "-P", str(SIDES), client, json.dumps(options), str(path)],
                cwd=folder,
                env=surroundings,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=LONGEST_RUN_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"not done after {LONGEST_RUN_SECONDS} s") from None
        if done.returncode:
            raise PeerFailed(f"it ended with {done.returncode}: {last_line(done.stderr)}")
        found = json.loads(path.read_text(encoding="utf-8"))
    if found["characters"] != requests * PROMPT_CHARACTERS:
        raise PeerFailed(
            f"{found['characters']} characters came back, {requests * PROMPT_CHARACTERS} were asked for"
        )
    return {
        "in_flight": in_flight,
        "requests": requests,
        "cpu_ms_a_request": 1000 * found["cpu_seconds"] / requests,
        "wall_ms_a_request": 1000 * found["seconds"] / requests,
        "rows_per_second": requests / found["seconds"],
        "peak_megabytes": found["peak_megabytes"],
        "megabytes_before": found["megabytes_before"],
        "versions": found["versions"],
        "server": {
            "requests": server["requests"],
            "peak_in_flight": server["peak_in_flight"],
            "connections": server["connections"],
            "cpu_ms_a_request": 1000 * server["cpu_seconds"] / requests,
        },
    }


def measure(
    clients: list[str], in_flights: list[int], requests: list[int], environments: Path
) -> dict[str, Any]:
    """Client -> status, versions, runs. Raises SystemExit where ours fails."""
    results: dict[str, Any] = {
        client: {"status": "measured", "versions": {}, "runs": []} for client in clients
    }
    for in_flight in in_flights:
        for count in requests:
            for client, result in results.items():
                if result["status"] != "measured":
                    continue
                try:
                    python = environment(client, environments)
                    run = run_side(client, python, in_flight, count)
                except PeerFailed as error:
                    if client == OURS:
                        raise SystemExit(f"{client}: {error}") from None
                    result["status"] = f"failed: {error}"
                    print(f"{client:20s} {result['status']}", flush=True)
                    continue
                result["versions"] = run.pop("versions")
                result["runs"].append(run)
                print(line_of(client, run), flush=True)
    return results


def line_of(client: str, run: dict[str, Any]) -> str:
    return (
        f"{client:20s} {run['in_flight']:4d} in flight, {run['requests']:6,} requests: "
        f"CPU {run['cpu_ms_a_request']:.2f} ms, wall {run['wall_ms_a_request']:.2f} ms a request, "
        f"{run['rows_per_second']:.0f} rows/s, {run['peak_megabytes']:.0f} MB"
    )


def conclusions(results: dict[str, Any]) -> dict[str, Any]:
    """What is asked of ours, of the runs with the most in flight and the most requests.

    below_each_peer: in CPU and in wall time, in every run that both have. memory_growth: most MB
    with the most requests less those with the fewest.
    """

    def runs(client: str) -> dict[tuple[int, int], dict[str, Any]]:
        return {(run["in_flight"], run["requests"]): run for run in results[client]["runs"]}

    ours = runs(OURS)
    key = max(ours)
    fewest = min(ours, key=lambda k: (-k[0], k[1]))
    peers = {client: runs(client) for client in results if client != OURS}
    fields = ("cpu_ms_a_request", "wall_ms_a_request")
    return {
        "cpu_ms_a_request": ours[key]["cpu_ms_a_request"],
        "cpu_ratio": {
            client: theirs[key]["cpu_ms_a_request"] / ours[key]["cpu_ms_a_request"]
            for client, theirs in peers.items()
            if key in theirs
        },
        "below_each_peer": {
            field: all(
                ours[at][field] < run[field]
                for theirs in peers.values()
                for at, run in theirs.items()
            )
            for field in fields
        },
        "memory_growth_megabytes": ours[key]["peak_megabytes"] - ours[fewest]["peak_megabytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, help="where the peers' are kept"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    if OURS not in args.clients:
        parser.error(f"--clients: {OURS} is what the others are compared with")
    for client in args.clients:  # before anything is measured
        try:
            environment(client, args.environments.resolve())
        except PeerFailed as error:
            print(f"{client}: {error}", flush=True)
    results = measure(args.clients, args.in_flight, args.requests, args.environments.resolve())
    found = conclusions(results)
    write_results(
        "client",
        {
            "machine": machine(),
            "prompt_characters": PROMPT_CHARACTERS,
            "latency_ms_a_request_in_flight": 1000 * LATENCY_SECONDS,
            **found,
            "clients": results,
        },
        args.results,
    )


if __name__ == "__main__":
    main()
