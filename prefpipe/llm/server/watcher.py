"""The keeper of a server that a stage starts: a process of its own, which ends the server with the stage.

    python watcher.py GRACE_SECONDS COMMAND...

A stage that is killed (kill -9, out of memory) can end nothing any more; but the system closes its
end of the pipe that this process reads from, on Linux, macOS and Windows alike, and so it is known here.
Standard library only, and nothing of prefpipe: it is started as a file.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_LOOK_SECONDS = 0.2


def keep(words: list[str], grace_seconds: float) -> int:
    """Run the command until it ends or the stage does; its exit code as a shell gives it."""
    stage, is_over = os.getppid(), threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # as a batch system sends to all of a job
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: is_over.set())
    # a group of its own: what the server starts is ended with it, and a Ctrl-C goes to the stage alone
    group: dict[str, Any] = (
        {"start_new_session": True}
        if os.name == "posix"
        else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    )
    try:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, **group)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", flush=True)
        return 127

    def wait_for_stage() -> None:
        os.read(
            0, 1
        )  # a byte, or the end of the pipe: either way the stage wants no server any more
        is_over.set()

    threading.Thread(target=wait_for_stage, daemon=True).start()
    # the parent is looked at, too: a fork of the stage that lives on would hold the pipe open
    while server.poll() is None and not is_over.wait(_LOOK_SECONDS) and os.getppid() == stage:
        pass
    end = _end_group if os.name == "posix" else _end_tree
    end(server, grace_seconds)
    code = server.wait()
    return code if code >= 0 else 128 - code


def _end_group(server: "subprocess.Popen[Any]", grace_seconds: float) -> None:
    """SIGTERM to the server and all that it started; SIGKILL to what is there after grace_seconds."""
    until = time.monotonic() + grace_seconds
    number = signal.SIGTERM
    while True:
        try:
            os.killpg(server.pid, number)
        except OSError:
            return  # nobody is left
        if number == getattr(signal, "SIGKILL", None):
            return
        server.poll()  # a dead leader that nobody has asked about counts as one of the group
        time.sleep(0.05)
        number = 0 if time.monotonic() < until else signal.SIGKILL


def _end_tree(server: "subprocess.Popen[Any]", grace_seconds: float) -> None:
    """The same on Windows, which knows trees of processes instead."""
    try:
        server.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        server.wait(grace_seconds)
    except (OSError, subprocess.TimeoutExpired):
        pass
    subprocess.run(["taskkill", "/F", "/T", "/PID", str(server.pid)], capture_output=True)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[2:], float(sys.argv[1])))
