"""inference_best_of_n: what the engine is asked, and a run that is killed. The engine is scripted."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from embedded.server import Fault, Server, last_message
from inference_best_of_n import Settings, main
from prefpipe.files import DataError, write_rows
from prefpipe.llm import Failure
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import Item
from tests.examples import (
    ROOT,
    item,
    ledger,
    read_jsonl,
    run_stage,
    says,
    sentence,
    write_jsonl,
)

ITEMS = [item(f"i{k}", better=1 + k % 2) for k in range(6)]


def answer(request, sample: int) -> str:
    return f"{request.id}/{sample}"


@pytest.fixture
def s(tmp_path) -> Settings:
    write_rows(tmp_path / "items.jsonl", ITEMS, Item)
    return Settings(
        input=tmp_path / "items.jsonl", output=tmp_path / "best_of_n.jsonl", n=3, model="none"
    )


class Dying(ScriptedEngine):
    """Is killed when it is asked for the request of that number."""

    def __init__(self, at: int) -> None:
        super().__init__(self._answer_or_die)
        self._at = at

    def _answer_or_die(self, request, sample: int) -> str:
        if len(self.asked) > self._at:
            raise KeyboardInterrupt
        return answer(request, sample)


def samples_asked(*engines: ScriptedEngine) -> Counter:
    return Counter((r.id, k) for engine in engines for r in engine.asked for k in r.samples)


ALL_ONCE = Counter((made.id, k) for made in ITEMS for k in range(3))


def test_each_item_gets_n_judgments_in_the_order_of_the_items(s):
    engine = ScriptedEngine(answer)
    main(s, engine)
    rows = [(row["id"], row["sample"], row["text"]) for row in read_jsonl(s.output)]
    assert rows == [(m.id, k, f"{m.id}/{k}") for m in ITEMS for k in range(3)]
    assert samples_asked(engine) == ALL_ONCE
    counts = ledger(s.output.with_name("best_of_n.meta.json"))
    assert counts == {"read": 6, "kept": 6, "left_out": {}, "written": {"best_of_n.jsonl": 18}}


def test_the_settings_that_were_asked_for_reach_the_engine(s):
    update = {"temperature": 0.7, "top_p": 0.9, "top_k": 11, "max_new_tokens": 33, "seed": 5}
    for settings in (s, s.model_copy(update=update | {"overwrite": True})):
        engine = ScriptedEngine(answer)
        main(settings, engine)
        for request, made in zip(engine.asked, ITEMS, strict=True):
            assert request.messages == ({"role": "user", "content": made.prompt},)
            assert request.samples == (0, 1, 2)
            for name in update:
                assert getattr(request, name) == getattr(settings, name)
    assert (s.temperature, s.top_p, s.top_k) == (1.2, 0.95, 50)  # the published recipe


def test_a_run_killed_half_way_ends_in_the_same_bytes_and_asks_nothing_twice(s, tmp_path):
    main(s, ScriptedEngine(answer))
    killed = s.model_copy(update={"output": tmp_path / "killed.jsonl"})
    engines = [Dying(2), Dying(1), ScriptedEngine(answer)]
    for engine in engines[:2]:
        with pytest.raises(KeyboardInterrupt):
            main(killed, engine)
        assert not killed.output.exists()
    main(killed, engines[2])
    assert killed.output.read_bytes() == s.output.read_bytes()
    engines[0].asked.pop()  # these two were asked, and died before they gave a text
    engines[1].asked.pop()
    assert samples_asked(*engines) == ALL_ONCE
    assert not list(tmp_path.glob(".killed*"))


def test_an_item_with_some_of_its_samples_is_asked_for_the_others_only(s, tmp_path):
    """E.g. killed between the samples of one prompt, which a server gives one by one."""
    main(s, ScriptedEngine(answer))
    killed = s.model_copy(update={"output": tmp_path / "killed.jsonl"})
    given = {"i0": {1}, "i2": {0, 2}, "i3": {0, 1, 2}}

    class KilledInBetween(ScriptedEngine):
        def generate(self, requests):
            for reply in super().generate(requests):
                assert not isinstance(reply, Failure)
                if some := [c for c in reply if c.sample in given.get(c.id, ())]:
                    yield some
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main(killed, KilledInBetween(answer))
    engine = ScriptedEngine(answer)
    main(killed, engine)
    asked = {request.id: request.samples for request in engine.asked}
    assert asked == {"i0": (0, 2), "i1": (0, 1, 2), "i2": (1,), "i4": (0, 1, 2), "i5": (0, 1, 2)}
    assert killed.output.read_bytes() == s.output.read_bytes()


def test_no_engine_is_opened_where_all_is_there(s, monkeypatch):
    """E.g. killed between the last judgment and the rename."""
    engine = ScriptedEngine(answer)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(s, engine)
    main(s, None)  # the model "none" could not be opened
    assert len(read_jsonl(s.output)) == 18


def test_a_tie_is_left_out_by_reason_and_costs_nothing(s):
    write_rows(s.input, [*ITEMS[:2], item("tie", better=None)], Item)
    engine = ScriptedEngine(answer)
    main(s, engine)
    assert [request.id for request in engine.asked] == ["i0", "i1"]
    assert ledger(s.output.with_name("best_of_n.meta.json"))["left_out"] == {"tie": 1}


def test_what_the_engine_cannot_answer_is_a_reject_and_the_rest_goes_on(s):
    main(s, ScriptedEngine(lambda r, k: None if r.id == "i3" else answer(r, k)))
    assert {row["id"] for row in read_jsonl(s.output)} == {m.id for m in ITEMS} - {"i3"}
    (reject,) = read_jsonl(s.output.with_name("best_of_n.rejects.jsonl"))
    assert (reject["id"], reject["reason"]) == ("i3", "scripted_failure")


def test_what_may_pass_later_is_asked_again_and_nothing_else(s):
    class Down(ScriptedEngine):
        def generate(self, requests):
            for result, request in zip(super().generate(requests), ITEMS, strict=True):
                yield Failure("i3", "server_error", "503") if request.id == "i3" else result

    with pytest.raises(SystemExit, match=r"1 requests did not pass .*the same command asks"):
        main(s, Down(answer))
    assert not s.output.exists()
    engine = ScriptedEngine(answer)
    main(s, engine)
    assert [request.id for request in engine.asked] == ["i3"]
    assert len(read_jsonl(s.output)) == 18


def test_shards_and_order_ask_the_same_of_each_item(s, tmp_path):
    whole = ScriptedEngine(answer)
    main(s, whole)
    asked = []
    for name, part in (("odd", ITEMS[1::2]), ("even", ITEMS[-2::-2])):
        write_rows(tmp_path / f"{name}.jsonl", part, Item)
        engine = ScriptedEngine(answer)
        update = {"input": tmp_path / f"{name}.jsonl", "output": tmp_path / f"{name}.out.jsonl"}
        main(s.model_copy(update=update), engine)
        asked += engine.asked
    assert sorted(map(repr, asked)) == sorted(map(repr, whole.asked))


def test_a_limit_takes_the_first_items_of_each_split(s, tmp_path):
    splits = {
        split: [item(f"{split}{k}", split=split) for k in range(3)]
        for split in ("train", "validation")
    }
    for split, items in splits.items():
        write_rows(tmp_path / f"both/{split}.jsonl", items, Item)
    engine = ScriptedEngine(answer)
    main(s.model_copy(update={"input": tmp_path / "both", "limit": 2}), engine)
    assert [r.id for r in engine.asked] == ["train0", "train1", "validation0", "validation1"]


def test_two_items_of_one_id_are_an_error_before_anything_is_asked(s):
    write_rows(s.input, [*ITEMS, ITEMS[0]], Item)
    engine = ScriptedEngine(answer)
    with pytest.raises(
        DataError, match=r"items\.jsonl:7: id 'i0' stands at .*items\.jsonl:1 already"
    ):
        main(s, engine)
    assert not engine.asked


def test_another_n_or_a_changed_item_is_never_mixed_in(s):
    with pytest.raises(KeyboardInterrupt):
        main(s, Dying(3))
    with pytest.raises(DataError, match=r"a stopped run with other settings .*setting n 3 -> 4"):
        main(s.model_copy(update={"n": 4}), ScriptedEngine(answer))
    write_rows(s.input, ITEMS[:-1], Item)
    with pytest.raises(DataError, match=r"a stopped run .*input items\.jsonl"):
        main(s, ScriptedEngine(answer))
    main(s.model_copy(update={"overwrite": True}), ScriptedEngine(answer))
    assert len(read_jsonl(s.output)) == 15


@pytest.mark.parametrize("id", ["00123", "12e45", "a_b", "a\tb", "a\tbest_of_n\t0", "中", " "])
def test_any_id_comes_back_as_it_was(s, id):
    write_rows(s.input, [item(id), item("a")], Item)
    main(s, ScriptedEngine(answer))
    assert [row["id"] for row in read_jsonl(s.output)] == [id] * 3 + ["a"] * 3


# ---- as a user runs it


def judge(body, sample: int) -> str:
    return says(1 + len(last_message(body)) % 2, f"sample {sample}")


def command(url: str, output: str = "out.jsonl") -> list[str]:
    return [
        "--input", "items.jsonl", "--output", output, "--n", "2", "--model", "m",
        "--engine", "server", "--base-urls", url, "--requests-in-flight", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the items, and with what an undisturbed run made of them."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder / "items.jsonl", ITEMS, Item)
    with Server(judge) as server:
        result = run_stage("inference_best_of_n", *command(server.url), cwd=folder)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""  # no bar where there is no terminal
        assert result.stdout == (
            ".: 6 items read = 6 kept + 0 left out (none); written: 12 in out.jsonl\n"
        )
        assert sum(server.paid.values()) == 12
    return folder


def test_the_command_writes_what_the_model_said_and_the_second_one_says_finished(folder):
    rows = read_jsonl(folder / "out.jsonl")
    assert [row["text"] for row in rows[:2]] == [
        says(1 + len(ITEMS[0].prompt) % 2, f"sample {k}") for k in (0, 1)
    ]
    again = run_stage("inference_best_of_n", *command("http://127.0.0.1:9"), cwd=folder)
    assert again.returncode == 0
    assert again.stdout.startswith("inference_best_of_n: finished before: .: 6 items read")


def test_a_run_killed_by_the_system_goes_on_and_ends_in_the_same_bytes(folder):
    """kill -9 somewhere in the middle; what was in flight then is the only thing paid twice."""
    with Server(judge, fault=lambda call: Fault(delay_seconds=0.1)) as server:
        options = command(server.url, "killed.jsonl")
        words = [sys.executable, str(ROOT / "inference_best_of_n.py"), *options]
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE)
        end = time.monotonic() + 300
        while sum(server.paid.values()) < 6 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "killed.jsonl").exists()
        result = run_stage("inference_best_of_n", *options, cwd=folder)
        assert result.returncode == 0, result.stderr
        assert "going on from" in result.stderr
        assert 12 <= sum(server.paid.values()) <= 14
    assert (folder / "killed.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"better": 3}, "items.jsonl:2: better: found 3, wanted a Item row"),
        ({"id": 7}, "items.jsonl:2: id: found 7, wanted a Item row"),
        ({"answer_3": "c"}, "items.jsonl:2: answer_3: found 'c', wanted a Item row: Extra"),
    ],
)
def test_a_faulty_row_is_one_sentence(s, tmp_path, record, said):
    write_jsonl(s.input, [ITEMS[0].model_dump(), ITEMS[1].model_dump() | record])
    result = run_stage(
        "inference_best_of_n", "--input", "items.jsonl", "--output", "out.jsonl", "--strict",
        cwd=tmp_path,
    )  # fmt: skip
    assert said in sentence(result)


def test_an_input_that_is_not_there_says_what_to_do(tmp_path):
    result = run_stage("inference_best_of_n", "--input", "none", cwd=tmp_path)
    assert sentence(result) == (
        "inference_best_of_n: none: no such file; run the stage that writes it first"
    )
