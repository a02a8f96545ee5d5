"""A server that misbehaves as it is told, for test_started_server.py: python stubborn_server.py --port N ...

It answers each chat completion with "answer to" and the last message; standard library only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--slow", type=float, default=0.0, help="seconds until it listens")
parser.add_argument("--loads", type=float, default=0.0, help="seconds that /health answers 503")
parser.add_argument("--without-health", action="store_true", help="it knows /v1/models only")
parser.add_argument("--dies", action="store_true", help="at once, with a sentence")
parser.add_argument("--dies-after", type=int, default=0, help="completions, in the middle of one")
parser.add_argument("--ignores-signals", action="store_true")
parser.add_argument("--child", action="store_true", help="it starts a process of its own")
parser.add_argument("--notes", type=Path, help="file that gets the numbers of its processes")
options = parser.parse_args()
began, answered = time.monotonic(), 0

if options.ignores_signals:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
processes = [os.getpid()]
if options.child:
    processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
if options.notes:
    options.notes.write_text(" ".join(map(str, processes)))
print("loading the weights", flush=True)
if options.dies:
    print("ValueError: no such architecture\n", flush=True)
    sys.exit(3)
time.sleep(options.slow)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": []})
        elif self.path != "/health" or options.without_health:
            self.answer(404, {"detail": "Not Found"})
        else:
            self.answer(200 if time.monotonic() - began >= options.loads else 503, {})

    def do_POST(self) -> None:
        global answered
        answered += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if options.dies_after and answered >= options.dies_after:
            print("RuntimeError: out of memory", flush=True)
            os._exit(9)
        message = {"role": "assistant", "content": f"answer to {body['messages'][-1]['content']}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer(200, {"object": "chat.completion", "choices": [choice]})


ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
