"""translation: what is sent, what is checked, what is paid; against a real HTTP server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedded.server import Fault, Reply, Server, last_message, random_faults
from embedded.server.canned_answers import pseudo_english, translate
from prefpipe import files, judge
from prefpipe.files import DataError, read_rows, write_rows
from prefpipe.llm.costs import estimate_tokens, find_price
from prefpipe.rows import Item, Reject
from prefpipe.settings import Account
from tests.chinese_items import item
from translation import Settings, main

ROOT = Path(__file__).parent.parent
KEY = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """The tests' own servers only, whatever the person who runs them has set."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # away from a .env


def in_english(row: Item) -> Item:
    """As the server's pseudo-English makes it."""
    texts = {n: pseudo_english(getattr(row, n)) for n in ("question", "answer_1", "answer_2")}
    prompt = judge.judge_prompt(*texts.values(), language="en")
    return row.model_copy(update={**texts, "language": "en", "prompt": prompt})


def settings(
    tmp_path: Path, items: list[Item], server: Server | None = None, **options
) -> Settings:
    for split in files.SPLITS:
        rows = [row for row in items if row.split == split]
        write_rows(tmp_path / "items" / f"{split}.jsonl", rows, Item)
    return Settings(
        input=tmp_path / "items",
        output=options.pop("output", tmp_path / "english"),
        base_urls=[server.url] if server else [],
        **options,
    )


def written(s: Settings, split="train") -> list[Item]:
    return list(read_rows(s.output / f"{split}.jsonl", Item))


def rejects(s: Settings) -> dict[str, str]:
    (path,) = s.output.glob("*rejects.jsonl")
    return {row.id: row.reason for row in read_rows(path, Reject)}


def asked_item(body: dict) -> str:
    """The id of the item that a request asks for: its question holds the number."""
    question = json.loads(last_message(body).strip().rpartition("\n")[2])["question"]
    return "p" + "".join(c for c in question if c.isdigit())


MIXED = [item(0), item(1, "en"), item(2), item(3, split="validation"), item(4, "en", "validation")]


# ---- what comes out


def test_chinese_items_come_out_in_english_and_the_others_unchanged(tmp_path, capsys):
    with Server(translate) as server:
        s = settings(tmp_path, MIXED, server)
        main(s)
    assert written(s) == [in_english(MIXED[0]), MIXED[1], in_english(MIXED[2])]
    assert written(s, "validation") == [in_english(MIXED[3]), MIXED[4]]
    assert {asked_item(body) for body in server.requests} == {"p0", "p2", "p3"}
    assert len(server.requests) == 3  # English ones cost nothing
    assert rejects(s) == {}
    assert "3 items translated, 2 were English, 0 stayed Chinese" in capsys.readouterr().out


def test_the_batch_engine_gives_the_same_items_at_one_paid_reply_each(tmp_path):
    with Server(translate) as server:
        options = {"engine": "batch", "batch_folder": tmp_path / "batches", "poll_seconds": 0.01}
        s = settings(tmp_path, MIXED, server, **options)
        main(s)
        assert len(server.batches.batches) == 1
    assert written(s) == [in_english(MIXED[0]), MIXED[1], in_english(MIXED[2])]
    assert len(server.paid) == 3 and set(server.paid.values()) == {1}
    assert all("response_format" in body for body in server.requests)


def test_the_prompt_holds_the_three_texts_as_one_json_object_and_asks_for_its_keys(tmp_path):
    tricky = item(7, question='引号"和\n换行与"keys"7')
    with Server(translate) as server:
        main(settings(tmp_path, [tricky], server))
    (body,) = server.requests
    prompt, _, last = last_message(body).strip().rpartition("\n")
    assert json.loads(last) == {
        "question": tricky.question,
        "answer_1": tricky.answer_1,
        "answer_2": tricky.answer_2,
    }
    assert "question, answer_1, answer_2" in prompt and "Literally" in prompt
    assert body["temperature"] == 0 and body["model"] == "gpt-4o-mini"
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["question", "answer_1", "answer_2"]


def test_the_first_rows_of_each_split_are_kept_and_the_rest_is_left_out_by_reason(tmp_path):
    many = [item(i) for i in range(4)] + [item(i, split="validation") for i in range(4, 7)]
    with Server(translate) as server:
        s = settings(tmp_path, many, server, max_rows=2)
        main(s)
    assert [row.id for row in written(s)] == ["p0", "p1"]
    assert [row.id for row in written(s, "validation")] == ["p4", "p5"]
    assert rejects(s) == dict.fromkeys(["p2", "p3", "p6"], "beyond_max_rows")
    assert len(server.requests) == 4
    assert Settings.model_fields["max_rows"].default == 5000


def test_without_a_server_every_item_passes_as_it_is_and_the_untranslated_are_counted(
    tmp_path, capsys
):
    s = settings(tmp_path, MIXED)
    main(s)
    for split in files.SPLITS:
        name = f"{split}.jsonl"
        assert (s.output / name).read_bytes() == (s.input / name).read_bytes()
    assert "0 items translated, 2 were English, 3 stayed Chinese" in capsys.readouterr().out


def test_require_makes_untranslated_items_an_error_and_english_ones_none(tmp_path):
    s = settings(tmp_path, MIXED, require=True)
    with pytest.raises(SystemExit, match="3 Chinese items and no server"):
        main(s)
    assert not (s.output / "train.jsonl").exists()
    main(settings(tmp_path, [MIXED[1]], require=True, output=tmp_path / "other"))


def test_offline_asks_nobody(tmp_path):
    with Server(translate) as server:
        s = settings(tmp_path, MIXED, server, offline=True)
        main(s)
    assert not server.requests and written(s)[0] == MIXED[0]


def test_a_second_run_finds_its_work_done_and_asks_nothing(tmp_path):
    with Server(translate) as server:
        s = settings(tmp_path, MIXED, server)
        main(s)
        main(s)
    assert len(server.requests) == 3


def test_a_doubled_id_is_told_before_anything_is_paid(tmp_path):
    with Server(translate) as server, pytest.raises(DataError, match=r"train.jsonl:3: id 'p1'"):
        main(settings(tmp_path, [item(1), item(2), item(1)], server))
    assert not server.requests


# ---- the estimate


def test_the_estimate_counts_rows_tokens_and_money_and_sends_and_writes_nothing(tmp_path, capsys):
    with Server(translate) as server:
        s = settings(tmp_path, [*MIXED, *map(item, range(5, 9))], server, max_rows=5, estimate=True)
        main(s)
        assert not server.requests and not server.connections
    assert not s.output.exists()
    out = capsys.readouterr().out
    # Of train the first five are 0, 1 (English), 2, 5, 6; of validation 3 and 4 (English).
    assert "rows: 5 to translate; 2 are English already, 2 are beyond max_rows" in out
    # 第N个问题是什么? has 7 wide and 2 other characters, 回答一号,编号N。 too, 不知道。 has 4 wide
    # ones; the object around them has 48: 18*0.8 + 52*0.25 = 27.4 -> 28 tokens a row
    assert len('{"question": "", "answer_1": "", "answer_2": ""}') == 48
    assert f"and {5 * 28} new" in out
    assert "USD for gpt-4o-mini, at the prices of" in out and "nothing was sent" in out


def test_tokens_and_money_are_what_they_are_by_hand():
    assert estimate_tokens("a" * 9) == 3  # 9 / 4, rounded up
    assert estimate_tokens("你好吗") == 3  # 2.4
    assert estimate_tokens("你好 ab") == 3  # 1.6 + 0.75
    assert estimate_tokens("") == 0
    price = find_price("gpt-4o-mini")
    assert price is not None
    assert price.money(2_000_000, 500_000) == pytest.approx(2 * 0.15 + 0.5 * 0.60)
    assert find_price("no-such-model") is None


# ---- a reply that is no translation


GOOD = {"question": "What?", "answer_1": "One.", "answer_2": "Two."}


@pytest.mark.parametrize(
    "bad",
    [
        Fault(choices=0),
        Reply("I cannot find a question here."),
        Reply(json.dumps({**GOOD, "answer_2": ""})),
        Reply(json.dumps({"question": "Q", "answer_1": "为什么不翻译呢"})),
        Reply(json.dumps(GOOD)[:20], finish_reason="length"),
    ],
    ids=["no_choice", "prose", "empty", "keys", "cut"],
)
def test_a_bad_reply_is_asked_for_again_in_another_sample(tmp_path, bad):
    asked = []

    def answer(body, sample):
        asked.append(body)
        return bad if isinstance(bad, Reply) and len(asked) == 1 else translate(body, sample)

    def fault(call):
        return bad if isinstance(bad, Fault) and call.attempt == 0 else None

    with Server(answer, fault=fault) as server:
        s = settings(tmp_path, [item(5)], server)
        main(s)
    assert written(s) == [in_english(item(5))]
    first, second = server.requests
    assert first["temperature"] == 0 and second["temperature"] > 0
    assert first["messages"] == second["messages"]


def test_half_of_an_emoji_in_the_translators_json_is_written_as_a_sign_that_says_so(tmp_path):
    with Server(lambda body, sample: json.dumps(GOOD | {"question": "q \ud83d."})) as server:
        s = settings(tmp_path, [item(5)], server)
        main(s)
    assert [row.question for row in written(s)] == ["q \ufffd."]


def test_after_the_stated_tries_the_row_is_left_out_by_its_reason_and_the_others_are_there(
    tmp_path,
):
    def answer(body, sample):
        return "no" if asked_item(body) == "p2" else translate(body, sample)

    with Server(answer) as server:
        s = settings(tmp_path, [item(i) for i in range(4)], server, tries=3)
        main(s)
    assert [row.id for row in written(s)] == ["p0", "p1", "p3"]
    assert rejects(s) == {"p2": "not_json"}
    assert [asked_item(body) for body in server.requests].count("p2") == 3
    assert len(server.requests) == 6


def test_a_refusal_is_left_out_and_not_asked_for_again(tmp_path):
    def answer(body, sample):
        refusal = Reply(None, refusal="I will not translate this.")
        return refusal if asked_item(body) == "p1" else translate(body, sample)

    with Server(answer) as server:
        s = settings(tmp_path, [item(0), item(1)], server)
        main(s)
    assert rejects(s) == {"p1": "refused"} and len(server.requests) == 2


# ---- a bad network, a killed run


def test_rate_limits_errors_hangs_and_cut_connections_change_no_row(tmp_path):
    faults = random_faults(
        [
            (Fault(status=429, retry_after="0.05"), 0.1),
            (Fault(status=500), 0.1),
            (Fault(hang=True), 0.05),
            (Fault(cut=True), 0.05),
            (Fault(body=b"\x00garbage"), 0.05),
        ]
    )
    rows = [item(i) for i in range(40)]
    with Server(translate, fault=faults) as server:
        s = settings(tmp_path, rows, server, timeout_seconds=3.0, max_retries=12, tries=8)
        main(s)
    assert written(s) == list(map(in_english, rows))


def test_rows_that_the_server_failed_on_stop_the_stage_and_only_they_are_asked_for_again(tmp_path):
    broken = {"p1", "p3"}

    def fault(call):
        return Fault(status=500) if asked_item(call.body) in broken else None

    rows = [item(i) for i in range(5)]
    with Server(translate, fault=fault) as server:
        s = settings(tmp_path, rows, server, max_retries=1)
        with pytest.raises(SystemExit, match=r"2 requests did not pass.*server_error"):
            main(s)
        assert not (s.output / "train.jsonl").exists()
        before = len(server.requests)
        broken.clear()
        main(s)
    assert sorted(asked_item(body) for body in server.requests[before:]) == ["p1", "p3"]
    assert written(s) == list(map(in_english, rows))
    assert max(server.paid.values()) == 1


def test_leave_out_failing_leaves_those_rows_out_by_their_reason(tmp_path):
    with Server(translate, fault=lambda call: Fault(status=503)) as server:
        s = settings(tmp_path, MIXED, server, max_retries=0, leave_out_failing=True)
        main(s)
    assert rejects(s) == dict.fromkeys(["p0", "p2", "p3"], "server_error")
    assert written(s) == [MIXED[1]]


def test_a_wrong_key_stops_the_run_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with Server(translate, api_key=KEY) as server:
        s = settings(tmp_path, MIXED, server)
        with pytest.raises(SystemExit, match="API key"):
            main(s)
    assert not (s.output / "train.jsonl").exists()


def run_stage(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "translation.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(tmp_path):
    rows = [item(i) for i in range(12)]
    answered: set[str] = set()

    def fault(call):
        """Five replies, then none: what is under way at the kill has not been paid."""
        if killed or len(answered) < 5:
            answered.add(asked_item(call.body))
            return None
        return Fault(hang=True)

    killed = False
    with Server(translate, fault=fault) as server:
        s = settings(tmp_path, rows, server)
        arguments = ["--input", s.input, "--output", s.output, "--base-urls", server.url]
        stage = run_stage(*arguments, cwd=tmp_path)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and stage.poll() is None:
            logs = list(s.output.glob(".*partial.jsonl"))
            if logs and logs[0].read_bytes().count(b"\n") == 1 + 5:  # the fingerprint, and rows
                break
            time.sleep(0.02)
        stage.send_signal(signal.SIGKILL)
        _, errors = stage.communicate()
        assert stage.returncode == -signal.SIGKILL, errors
        assert not (s.output / "train.jsonl").exists()
        killed = True
        again = run_stage(*arguments, cwd=tmp_path)
        _, errors = again.communicate(timeout=60)
        assert again.returncode == 0, errors
        assert "going on from 5" in errors
    assert sum(server.paid.values()) == 12 and max(server.paid.values()) == 1
    whole = settings(tmp_path, rows, output=tmp_path / "whole")
    with Server(translate) as server:
        main(whole.model_copy(update={"base_urls": [server.url]}))
    for name in ("train.jsonl", "validation.jsonl"):
        assert (s.output / name).read_bytes() == (whole.output / name).read_bytes()


# ---- the key, and the command as users run it


def test_the_key_comes_from_dot_env_and_stands_in_no_output(tmp_path):
    with Server(translate, api_key=KEY) as server:
        s = settings(tmp_path, MIXED)
        (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={server.url}\n")
        arguments = ["--input", s.input, "--output", s.output]
        stage = run_stage(*arguments, cwd=tmp_path)
        out, errors = stage.communicate(timeout=60)
        assert stage.returncode == 0, errors
        shown, _ = run_stage(*arguments, "--show-settings", cwd=tmp_path).communicate(timeout=60)
    assert written(s)[0] == in_english(MIXED[0])
    texts = [path.read_text() for path in s.output.rglob("*") if path.is_file()]
    assert len(texts) >= 4  # two splits, rejects, meta
    assert not any(KEY in text for text in [out, errors, shown, *texts])
    assert KEY not in repr(Account()) + str(Account().model_dump())


def test_the_account_names_the_servers(monkeypatch):
    assert Account().base_urls() == []
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert Account().base_urls() == []
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Account().base_urls() == ["https://api.openai.com/v1"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://a/v1, http://b/v1")
    assert Account().base_urls() == ["http://a/v1", "http://b/v1"]


def test_a_server_without_a_key_is_told_none(tmp_path, monkeypatch):
    with Server(translate) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        s = settings(tmp_path, [item(0)])
        main(s)
    assert written(s) == [in_english(item(0))]
