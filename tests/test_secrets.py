"""A key or a password is nowhere: in no byte that a stage writes or prints, whatever the server sends back."""

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import annotate_preferences
import generate_responses
import inference_all
import inference_best_of_n
import translation
from embedded.server import Fault, Server, last_message
from tests.chinese_items import item as chinese_item
from tests.examples import item, write_jsonl

pytestmark = pytest.mark.usefixtures("no_account")

SECRET = "SECRET-0123456789"
KEYS = {
    "plain": f"sk-{SECRET}",
    "a line end behind": f"sk-{SECRET}\n",
    "CRLF and blanks": f"  sk-{SECRET} \r\n",
    "in quotes": f"'sk-{SECRET}'",
    "signs that JSON escapes": f'sk-"{SECRET}\\x',
    "a line end inside": f"sk-\n{SECRET}",
    "not ASCII": f"sk-ü{SECRET}",
    "zero-width": f"\u200bsk-{SECRET}",
}
STAGES: list[ModuleType] = [
    annotate_preferences, translation, inference_best_of_n, inference_all, generate_responses
]  # fmt: skip
ECHOES = [200, 400, 401, 403, 429, 500, "html", "an error in a 200", "a refusal"]


def inputs() -> dict[str, list[str]]:
    """Options of each stage."""
    asked = {
        "id": "p",
        "aspect": "wit",
        "swapped": False,
        "prompt": "Rate",
        "order": [0],
        "texts": 1,
    }
    write_jsonl(Path("asked.jsonl"), [asked | {"id": f"p{k}"} for k in range(2)])
    write_jsonl(Path("items.jsonl"), [item(id).model_dump() for id in "ab"])
    write_jsonl(Path("chinese.jsonl"), [chinese_item(k).model_dump() for k in range(2)])
    write_jsonl(Path("prompts.jsonl"), [{"id": "a", "prompt": "2+2?"}])
    served = '[{"name": "m", "model": "m"}]'
    return {
        "annotate_preferences": ["--input", "asked.jsonl", "--output", "out/a.jsonl"],
        "translation": ["--input", "chinese.jsonl", "--output", "out/t"],
        "inference_best_of_n": ["--input", "items.jsonl", "--output", "out/b.jsonl", "--n", "2"],
        "inference_all": ["--input", "items.jsonl", "--output", "out/all"],
        "generate_responses": ["--input", "prompts.jsonl", "--output", "out/g", "--models", served],
    }


def fault_of(echo: object, key: str):
    said = f"Incorrect API key provided: {key}. Bearer {key!r} {json.dumps(key)}"
    error = {"message": said, "code": key}
    faults = {
        "html": Fault(body=f"<html>{said}</html>".encode(), content_type="text/html"),
        "an error in a 200": Fault(body=json.dumps({"error": error}).encode()),
        "a refusal": Fault(
            body=json.dumps(
                {"choices": [{"message": {"refusal": said}, "finish_reason": "stop"}]}
            ).encode()
        ),
    }
    status = echo if isinstance(echo, int) else 200
    return lambda call: (
        None if echo == 200 else faults.get(str(echo), Fault(status=status, message=said))
    )


def run(stage: ModuleType, *options: str) -> object:
    """The stage as it is started; its exit code."""
    name = stage.__name__
    sys.argv = [
        f"{name}.py",
        *inputs()[name],
        "--max-retries",
        "0",
        "--poll-seconds",
        "0.01",
        *options,
    ]
    if name != "generate_responses":
        sys.argv += ["--model", "m"]
    try:
        stage.Settings.run(stage.main)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        return end.code


def found(secret: str, capfd) -> list[str]:
    """Where the secret stands: on the screen, in files."""
    printed = "".join(capfd.readouterr())
    files = [path for path in Path().rglob("*") if path.is_file()]
    return [*("screen" for _ in [0] if secret in printed),
            *(str(p) for p in files if secret.encode() in p.read_bytes())]  # fmt: skip


@pytest.mark.parametrize("engine", ["server", "batch"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_key_is_in_no_file_and_on_no_screen(stage, engine, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("PREFPIPE_DATA", "data")
    # each stage and engine meets some of all pairs, all of them together meet each pair
    at = 2 * STAGES.index(stage) + (engine == "batch")
    pairs = list(itertools.product(KEYS.values(), ECHOES))
    for number, (key, echo) in enumerate(pairs[at :: 2 * len(STAGES)]):
        sent = key.strip()

        def answer(body, sample, sent=sent):
            return f"{last_message(body)[:5]} Text 1\nRating: 3\nBearer {sent} {sent!r}"

        monkeypatch.setenv("OPENAI_API_KEY", key)
        with Server(answer, fault=fault_of(echo, sent)) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            folder = f"b{number}"
            run(stage, "--engine", engine, "--batch-folder", folder, "--overwrite", "--debug")
        assert not found(SECRET, capfd), (key, echo)


@pytest.mark.parametrize("options", [["--show-settings"], []], ids=["shown", "run"])
def test_what_is_secret_in_a_url_is_in_no_file_and_on_no_screen(options, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", [])
    with Server(lambda body, sample: "Text 1\nRating: 3") as server:
        base = server.url
        for url, proxy in [
            (f"{base}?api-key={SECRET}", ""),
            (base.replace("//", f"//me:{SECRET}@"), ""),
            (f"{base}/{{}}?token={SECRET}#x", ""),
            (base, f"http://me:{SECRET}@127.0.0.1:9"),
            (base, f"socks5://me:{SECRET}@127.0.0.1:9"),
        ]:
            monkeypatch.setenv("HTTP_PROXY", proxy)
            for engine in ("server", "batch"):
                base_urls = ["--base-urls", url, "--engine", engine, "--overwrite", *options]
                run(annotate_preferences, *base_urls, "--batch-folder", f"b-{engine}")
                assert not [place for place in found(SECRET, capfd) if place != "prompts"], url


def test_a_key_in_an_error_that_nobody_foresaw_is_in_no_log(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", [])
    key = KEYS["a line end behind"]
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def fails(*_, **__):
        raise RuntimeError(f"Illegal header value b'Bearer {key.strip()}' {key!r}")

    monkeypatch.setattr("prefpipe.llm.server.server_engine.ServerEngine.generate", fails)
    assert "unexpected RuntimeError" in str(run(annotate_preferences, "--engine", "server", "--debug",
                                                "--base-urls", "http://127.0.0.1:9/v1"))  # fmt: skip
    assert not found(SECRET, capfd)
