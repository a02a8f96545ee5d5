"""A small Hugging Face hub on this machine: the calls that huggingface_hub makes for an upload.

Repositories with their visibility, git's small files inside the commit, large ones by LFS. A PUT of
an object in `cut` breaks off in its middle.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "TestToken0123456789abcdefghijkl"
LARGE = (".parquet", ".safetensors", ".jsonl")


class Hub:
    """What it holds, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        """datasets/owner/name -> private, files: name -> bytes."""
        self.objects: dict[str, bytes] = {}
        self.cut: set[str] = set()
        """Names of files whose upload breaks off; `commit`: before the commit's reply."""
        self.names: dict[str, str] = {}  # sha256 -> the file that was announced with it
        self.asked: Counter[str] = Counter()
        self.put: list[str] = []
        """Names of the files that came in by LFS."""
        self.url = ""

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name]["files"]


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *_: Any) -> None:
        pass

    def reply(self, value: Any = None, status: int = 200, **headers: str) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_all(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        if self.command == "PUT":
            return self.take_object(path.rpartition("/")[2])
        content = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            hub.asked["refused"] += 1
            return self.reply({"error": "Invalid credentials"}, 401, X_Error_Message="no")
        if path == "/api/repos/create":
            asked = json.loads(content)
            kind = "datasets" if asked["type"] == "dataset" else "models"
            name = f"{kind}/{asked['organization']}/{asked['name']}"
            hub.asked["create"] += 1
            hub.repositories[name] = {"private": asked["visibility"] == "private", "files": {".gitattributes": b"* x\n"}}  # fmt: skip
            return self.reply({"url": f"{hub.url}/{name.removeprefix('models/')}"})
        if path == "/api/validate-yaml":
            head = json.loads(content)["content"].split("---\n")[1]
            try:
                yaml.safe_load(head)
            except yaml.YAMLError as error:
                return self.reply({"errors": [{"message": str(error)}]}, 400)
            return self.reply({"warnings": [], "errors": []})
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.announce(json.loads(content))
        found = re.fullmatch(r"/api/((?:datasets|models)/[^/]+/[^/]+)(?:/(\w+).*)?", path)
        assert found, path
        name, what = found.groups()
        if name not in hub.repositories:
            return self.reply({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        repository = hub.repositories[name]
        files: dict[str, bytes] = repository["files"]
        if what in (None, "revision"):
            return self.reply({"id": name.partition("/")[2], "private": repository["private"], "sha": "1" * 40})  # fmt: skip
        if what == "tree":
            return self.reply([entry(path, content) for path, content in files.items()])
        if what == "preupload":
            asked = json.loads(content)["files"]
            modes = {f["path"]: "lfs" if is_large(f["path"]) else "regular" for f in asked}
            return self.reply({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})  # fmt: skip
        assert what == "commit", what
        hub.asked["commit"] += 1
        new: dict[str, bytes] = {}
        for line in content.splitlines():
            entry_ = json.loads(line)
            value = entry_["value"]
            if entry_["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif entry_["key"] == "lfsFile":
                new[value["path"]] = hub.objects[value["oid"]]
        files |= new
        if "commit" in hub.cut:  # it is done, and nobody learns of it
            self.close_connection = True
            return self.connection.close()
        self.reply({"commitUrl": f"{hub.url}/{name}/commit/{'2' * 40}", "commitOid": "2" * 40})

    def announce(self, asked: dict[str, Any]) -> None:
        def action(wanted: dict[str, Any]) -> dict[str, Any]:
            upload = {"upload": {"href": f"{self.hub.url}/put/{wanted['oid']}"}}
            return wanted | ({} if wanted["oid"] in self.hub.objects else {"actions": upload})

        self.reply({"transfer": "basic", "objects": [action(o) for o in asked["objects"]]})

    def take_object(self, oid: str) -> None:
        name = self.hub.names.get(oid, oid)
        if name in self.hub.cut:
            self.rfile.read(10)
            self.close_connection = True
            return self.connection.close()
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.hub.put.append(name)
        self.reply()

    do_GET = do_POST = do_PUT = handle_all


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    listed: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": git_hash(content),
    }
    if is_large(path):
        sha256 = hashlib.sha256(content).hexdigest()
        listed |= {
            "oid": git_hash(b"a pointer"),
            "lfs": {"oid": sha256, "size": len(content), "pointerSize": 9},
        }
    return listed


@contextmanager
def open_hub():
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
