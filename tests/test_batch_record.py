"""prefpipe.llm.batch_api.batch_record: what a folder says of what was submitted."""

import logging
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from embedded.server import Server
from prefpipe.files import DataError
from prefpipe.llm.batch_api.batch_record import RECORD, BatchRecord
from prefpipe.llm.costs import Price, find_price
from tests.batch_helpers import engine, numbered, request, right, sizes, texts

pytestmark = pytest.mark.usefixtures("no_account")

KEY = "sk-a-very-secret-key"


def test_a_line_of_the_record_that_a_kill_has_cut_is_dropped_and_a_wrong_one_is_named():
    with Server(numbered) as server:
        list(engine(server).generate(map(request, range(3))))
        record = Path("batches") / RECORD
        whole = record.read_bytes()
        record.write_bytes(whole[:-5])
        assert texts(engine(server).generate(map(request, range(3)))) == right(3)
        assert sizes(server) == [3]
        record.write_bytes(whole.replace(b'{"event": "created"', b'{"event": 7', 1))
        with pytest.raises(DataError, match=r"batches.jsonl:2: no line of a batch record"):
            list(engine(server).generate(map(request, range(3))))


@pytest.mark.parametrize(
    "line",
    [
        b"null", b"3", b'"x"', b"[]", b"{}", b"hello", b'{"a":"\xe4"}', b"[" * 100_000,
        b'{"event": "zz", "batch": 1}', b'{"event": "created"}', b'{"event": "created", "batch": 9}',
        b'{"event": "created", "batch": {}}', b'{"event": "created", "batch": 1, "status": []}',
        b'{"event": "ended", "batch": 1, "done": "3"}', b'{"event": "ended", "batch": 1, "errors": 1}',
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)  # fmt: skip
def test_a_line_that_is_none_of_a_record_is_named_whatever_it_is(line):
    with Server(numbered) as server:
        engine(server).submit([request()])
    record = Path("batches") / RECORD
    whole = record.read_bytes()
    record.write_bytes(whole + line + b"\n")
    with pytest.raises(DataError, match=r"batches.jsonl:3: no line of a batch record"):
        engine(None).status()


def test_a_missing_file_of_requests_is_told():
    with Server(numbered) as server:
        engine(server).submit([request()])
    (Path("batches") / "requests-000001.jsonl").unlink()
    with pytest.raises(DataError, match=r"requests-000001.jsonl: missing"):
        BatchRecord(Path("batches"))


def test_status_shows_each_batch_as_the_server_has_it_and_writes_nothing():
    with Server(numbered) as server:
        engine(server, requests=2).submit(map(request, range(3)))
        before = {path: path.read_bytes() for path in Path("batches").iterdir()}
        states = [[b.status for b in engine(server).status()] for _ in range(4)]
        assert states[0] == ["in_progress"] * 2 and states[-1] == ["completed"] * 2
        assert {path: path.read_bytes() for path in Path("batches").iterdir()} == before
    assert engine(None, "nothing-here").status() == []


def test_the_key_is_sent_and_nowhere_to_be_read(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    key = SecretStr(KEY)
    with Server(numbered, api_key=KEY) as server:
        used = engine(server, api_key=key)
        list(used.generate(map(request, range(2))))
    with Server(api_key="another") as server, pytest.raises(SystemExit) as end:
        engine(server, "other", api_key=key).submit([request()])
    assert "***" in str(end.value)
    shown = capfd.readouterr()
    written = "".join(path.read_text() for path in Path().rglob("*.jsonl"))
    for text in (caplog.text, shown.out, shown.err, str(end.value), written, repr(vars(used))):
        assert KEY not in text


# ---- folders of earlier versions

FOLDER = {
    "batches.jsonl": """\
{"event": "creating", "batch": 1, "name": "0a", "model": "gpt-4o-mini", "requests": 2, "prompt_tokens": 3, "new_tokens": 768, "file_id": "file-0"}
{"event": "created", "batch": 1, "batch_id": "batch_0", "status": "validating"}
{"event": "ended", "batch": 1, "status": "completed", "done": 2, "errors": []}
{"event": "downloaded", "batch": 1}
{"event": "creating", "batch": 2, "name": "0b", "model": "gpt-4o-mini", "requests": 1, "prompt_tokens": 1, "new_tokens": 256, "file_id": "file-2"}
{"event": "created", "batch": 2, "batch_id": "batch_1", "status": "validating"}
""",
    "requests-000001.jsonl": """\
{"custom_id": "9b038fdbd4bc4c469a0f1bdb64582a50-0-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "qa"}], "max_completion_tokens": 256, "temperature": 0.0}}
{"custom_id": "2bd4f68ef0842a6f03fd878b8a7036a6-0-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "q编号"}], "max_completion_tokens": 256, "temperature": 1.0, "top_p": 1.0, "seed": 1306919975, "n": 2}}
""",
    "output-000001.jsonl": """\
{"id": "r", "custom_id": "9b038fdbd4bc4c469a0f1bdb64582a50-0-1", "response": {"status_code": 200, "request_id": "r", "body": {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [{"index": 0, "message": {"role": "assistant", "content": "qa/0", "refusal": null}, "finish_reason": "stop", "logprobs": null}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}}, "error": null}
{"id": "r", "custom_id": "2bd4f68ef0842a6f03fd878b8a7036a6-0-2", "response": {"status_code": 200, "request_id": "r", "body": {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [{"index": 0, "message": {"role": "assistant", "content": "q编号/0", "refusal": null}, "finish_reason": "stop", "logprobs": null}, {"index": 1, "message": {"role": "assistant", "content": "q编号/1", "refusal": null}, "finish_reason": "stop", "logprobs": null}], "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}}}, "error": null}
""",
    "requests-000002.jsonl": """\
{"custom_id": "37a59654ee87d2a87392eafe025d515c-0-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "qb"}], "max_completion_tokens": 256, "temperature": 0.0}}
""",
}
"""As version 823606a wrote it: of three requests two were answered, one was under way."""

REQUESTS = [
    request("a"),
    request("编号", samples=(0, 1), temperature=1.0, seed=3),
    request("b"),
]


def write_folder(path: Path) -> None:
    path.mkdir()
    for name, text in FOLDER.items():
        (path / name).write_text(text, encoding="utf-8")


def test_what_an_earlier_version_submitted_is_found_again_and_not_paid_again():
    write_folder(Path("batches"))
    used = engine(None, model="gpt-4o-mini")
    left = used.estimate([*REQUESTS, request("c")])
    assert (left.requests, left.submitted) == (1, 3)
    record = Path("batches") / RECORD
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:4]))
    assert texts(used.generate(REQUESTS[:2])) == {"a": ["qa/0"], "编号": ["q编号/0", "q编号/1"]}


def test_what_is_sent_today_are_the_bytes_that_the_earlier_version_sent():
    with Server(numbered) as server:
        engine(server, model="gpt-4o-mini").submit(REQUESTS)
    sent = Path("batches/requests-000001.jsonl").read_text(encoding="utf-8")
    assert sent == FOLDER["requests-000001.jsonl"] + FOLDER["requests-000002.jsonl"]


def test_the_record_has_the_lines_of_the_earlier_version():
    with Server(numbered) as server:
        list(engine(server, model="gpt-4o-mini").generate(REQUESTS[:2]))
        engine(server, model="gpt-4o-mini").submit(REQUESTS[2:])
    random_names = re.compile(r'"name": "\w+"')
    lines = Path("batches/batches.jsonl").read_text(encoding="utf-8")
    assert random_names.sub("", lines) == random_names.sub("", FOLDER["batches.jsonl"])


def test_what_was_used_and_what_is_under_way_is_counted_by_hand():
    write_folder(Path("batches"))
    price = find_price("gpt-4o-mini", batch=True)
    assert price is not None
    # answered: 2 prompt and 5 new tokens; under way: 1 and at most 256; half of 0.15 and 0.60
    want = (2 + 1) * 0.075 + (5 + 256) * 0.3
    assert BatchRecord(Path("batches")).cost(price) * 1e6 == pytest.approx(want)


def test_under_way_a_long_prompt_is_counted_at_its_own_price():
    write_folder(Path("batches"))
    price = Price(((-1, 1.0, 2.0), (0, 10.0, 20.0)), "of a prompt of more than 0 tokens")
    batch = BatchRecord(Path("batches")).batches[1]
    assert BatchRecord(Path("batches")).most_cost(batch, price) * 1e6 == 10 + 256 * 20
