"""A server that a stage starts for itself, and that ends with it, however the stage ends.

The command runs in an environment and a process group of its own, kept by watcher.py. Who wants one
server for several stages starts it by hand and gives its base URL.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from prefpipe.llm.server import watcher
from prefpipe.llm.wire import brief
from prefpipe.screen import visible, working

_HERE = "--host 127.0.0.1 --port {port}"
PRESETS = {
    # vLLM's and SGLang's pins and ours exclude each other: uvx gives each an environment of its own.
    # What generation_config.json says of a model is not to change what is asked for. A small model that
    # may put spaces between the parts of a JSON object can write nothing else.
    "vllm": f"uvx --from vllm==0.33.0 vllm serve {{model}} --generation-config vllm {_HERE} "
    "--structured-outputs-config.backend guidance "
    "--structured-outputs-config.disable_any_whitespace true",
    "sglang": "uvx --prerelease allow --from sglang==0.5.23 python -m sglang.launch_server "
    f"--model-path {{model}} --sampling-defaults openai {_HERE}",
    "llama.cpp": f"llama-server --model {{model}} {_HERE}",
    "transformers": f"{{python}} -m transformers.cli.transformers serve {{model}} {_HERE}",
}
"""Commands by the name that --serve takes; options behind the name are added to them."""
GRACE_SECONDS = 10.0
"""From the polite signal to the other one."""
_POLL_SECONDS = 0.2
NOWHERE = "http://127.0.0.1:8000/v1"
"""Base URL of a server that a dry run does not start."""


def words_of(serve: str, model: str, port: int) -> list[str]:
    """The command with its place and model: a preset and more options, or words as they stand.

    A command without {port} gets --port, which all of the presets' servers take.
    """
    name, _, more = serve.strip().partition(" ")
    if name in PRESETS and "{model}" not in more:
        serve = f"{PRESETS[name]} {more}"
    try:
        words = shlex.split(serve)
    except ValueError as error:
        raise SystemExit(f"--serve {serve!r}: {error}") from None
    if not words:
        raise SystemExit(f"--serve: found no command; name one, or one of {', '.join(PRESETS)}")
    if not any("{port}" in word for word in words):
        words += ["--port", "{port}"]
    values = {"{model}": model, "{port}": str(port), "{python}": sys.executable}
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    return words


def check_command(serve: str) -> None:
    """SystemExit where the command is not there; what a dry run does of it."""
    program = words_of(serve, "model", 1)[0]
    if not shutil.which(program):
        hint = "it comes with uv" if program == "uvx" else "install it, or give its path"
        raise SystemExit(f"--serve {brief(serve)}: no program {program} on this machine; {hint}")


def _ask_no_proxy() -> None:
    """Let the clients of this process reach this machine directly, where a proxy is set."""
    direct = urllib.request.getproxies().get("no", "")
    if len(urllib.request.getproxies()) > bool(direct) and direct != "*":
        os.environ["no_proxy"] = ",".join(filter(None, [direct, "127.0.0.1"]))


class StartedServer:
    """One server, which answers once this has been made."""

    def __init__(self, serve: str, model: str, log: Path, patience_seconds: float) -> None:
        """log: of what it writes, replaced. patience_seconds: until it answers at most.

        Raises SystemExit with the last line of the log where it ends before, or takes longer.
        """
        check_command(serve)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        words = words_of(serve, model, self._port)
        self._log, self._name = log, " ".join(words[:3] if len(words[0]) < 40 else words[1:4])
        log.parent.mkdir(parents=True, exist_ok=True)
        _ask_no_proxy()
        with log.open("wb") as file:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", watcher.__file__, str(GRACE_SECONDS), *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                # whatever it writes of its environment, it writes no key
                env={name: v for name, v in os.environ.items() if name != "OPENAI_API_KEY"},
                start_new_session=True,  # Ctrl-C is the stage's
            )
        try:
            with working(f"starting {self._name} (at most {patience_seconds:,.0f} s; {log})"):
                self._wait(patience_seconds)
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    def _wait(self, patience_seconds: float) -> None:
        until = time.monotonic() + patience_seconds
        while not self._is_healthy():
            if why := self.why_down():
                raise SystemExit(why)
            if time.monotonic() > until:
                raise SystemExit(
                    f"--serve: {self._name} did not answer within {patience_seconds:g} s "
                    f"(--serve-seconds); {self._last_words()}"
                )
            time.sleep(_POLL_SECONDS)
        if why := self.why_down():  # another process's server has the port
            raise SystemExit(why)

    def _is_healthy(self) -> bool:
        """Whether /health says so, or, of a server that has none, /v1/models."""
        status = self._status("/health")
        return status == 200 or (status in (404, 405, 501) and self._status("/v1/models") == 200)

    def _status(self, path: str) -> int:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"http://127.0.0.1:{self._port}{path}", timeout=5) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, ValueError):
            return 0

    def why_down(self) -> str:
        """What is known of a server that has ended; empty: it runs."""
        code = self._watcher.poll()
        if code is None:
            return ""
        return f"--serve: {self._name} ended (exit code {code}); {self._last_words()}"

    def _last_words(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - 4096))
            lines = [*filter(str.strip, visible(file.read().decode(errors="replace")).split("\n"))]
        said = (
            f"the last line of its log: {brief(lines[-1].strip())}" if lines else "it said nothing"
        )
        return f"{said} ({self._log})"

    def stop(self) -> None:
        """End it and all that it started, and wait for that; a second call does nothing."""
        pipe = self._watcher.stdin
        if pipe is None or pipe.closed:
            return
        try:
            os.write(
                pipe.fileno(), b"."
            )  # not the end of the pipe alone, which a fork may hold open
            pipe.close()
        except OSError:
            pass  # it has ended by itself
        try:
            self._watcher.wait(GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._watcher.kill()
