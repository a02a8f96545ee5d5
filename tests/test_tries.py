"""llm.tries: a reply that fails its check is asked for again, and none is paid twice."""

from collections.abc import Iterable, Iterator, Mapping

import pytest

from prefpipe import llm
from prefpipe.llm.tries import Tries
from prefpipe.rows import Completion, Prompt, Reject
from prefpipe.settings import NoEffectOnRows, Stage
from tests.examples import read_jsonl, write_jsonl

IDS = ["a", "b", "c"]
BUSY, GARBLED = "server_error", "garbled_reply"
"""Of the server: it may answer later; another sample may be whole. Any other reply is a text."""


class Settings(Stage, env_prefix="TEST_TRIES_"):
    leave_out_failing: NoEffectOnRows[bool] = False


class Engine:
    """replies: (id, number of the try) -> what is answered; where it is not named, "good"."""

    def __init__(self, replies: Mapping[tuple[str, int], str]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, int]] = []

    def generate(self, requests: Iterable[llm.Request]) -> Iterator[list[Completion] | llm.Failure]:
        for request in requests:
            self.asked.append((request.id, request.seed))
            reply = self.replies.get(self.asked[-1], "good")
            if reply in (BUSY, GARBLED):
                yield llm.Failure(request.id, reply, "so it was")
                continue
            about = {"finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 1}
            yield [
                Completion.model_validate({"id": request.id, "sample": 0, "text": reply, **about})
            ]


def check(row: Prompt, reply: Completion) -> Prompt | Reject:
    if reply.text != "good":
        return Reject(id=row.id, reason=reply.text)
    return row.model_copy(update={"prompt": "rewritten"})


def run(folder, engine: Engine, tries=3, leave_out_failing=False) -> list[tuple[str, int]]:
    """One run of a stage; gives what it asked, as (id, try)."""
    rows = write_jsonl(folder / "in.jsonl", [{"id": id, "prompt": "p"} for id in IDS])
    s = Settings(leave_out_failing=leave_out_failing)
    with s.open_run(inputs=[rows], outputs={folder / "out.jsonl": Prompt}) as run:
        asking = Tries(
            run,
            lambda: run.peek(rows, Prompt),
            lambda row, number: llm.Request(row.id, (), seed=number),
            check,
            asked_again={"bad", GARBLED},
        )
        asking.ask(lambda: engine, tries)
        for row in run.read(rows, Prompt):
            run.emit(asking.of(row) or row)
    return engine.asked


def stopped(folder, engine: Engine) -> list[tuple[str, int]]:
    """What a run asked that the server failed for a."""
    with pytest.raises(
        SystemExit, match=r"1 requests did not pass \(the first: a: server_error, so it was"
    ):
        run(folder, engine)
    assert not (folder / "out.jsonl").exists()
    return engine.asked


def written(folder) -> dict[str, str]:
    return {row["id"]: row["prompt"] for row in read_jsonl(folder / "out.jsonl")}


def rejected(folder) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read_jsonl(folder / "out.rejects.jsonl")}


FIRST = [("a", 0), ("b", 0), ("c", 0)]


def test_only_what_failed_its_check_is_asked_again_and_at_most_so_often(tmp_path):
    replies = {
        ("a", 0): "bad",
        ("b", 0): "bad",
        ("b", 1): GARBLED,
        ("b", 2): "bad",
        ("c", 0): "rude",
    }
    assert run(tmp_path, Engine(replies)) == [*FIRST, ("a", 1), ("b", 1), ("b", 2)]
    assert written(tmp_path) == {"a": "rewritten"}
    assert rejected(tmp_path) == {"b": "bad", "c": "rude"}  # rude is not asked again


def test_a_reply_that_failed_its_check_is_kept_and_not_paid_again(tmp_path):
    engine = Engine({("a", 0): BUSY, ("b", 0): "bad", ("b", 1): "bad"})
    assert stopped(tmp_path, engine) == [*FIRST, ("b", 1), ("b", 2)]  # b had all its tries first
    assert run(tmp_path, Engine({})) == [("a", 0)]
    assert written(tmp_path) == dict.fromkeys(IDS, "rewritten")


def test_a_good_reply_behind_one_without_a_text_is_not_paid_again(tmp_path):
    assert stopped(tmp_path, Engine({("a", 0): BUSY, ("b", 0): GARBLED})) == [*FIRST, ("b", 1)]
    assert run(tmp_path, Engine({})) == [("a", 0)]
    assert written(tmp_path) == dict.fromkeys(IDS, "rewritten")


def test_failures_of_the_server_are_left_out_where_that_is_asked_for(tmp_path):
    assert run(tmp_path, Engine({("a", 0): BUSY}), leave_out_failing=True) == FIRST
    assert rejected(tmp_path) == {"a": BUSY}


def test_more_tries_in_a_later_run_go_on_behind_the_earlier_ones(tmp_path):
    stopped(tmp_path, Engine({("a", 0): BUSY} | {("b", number): "bad" for number in range(3)}))
    assert run(tmp_path, Engine({}), tries=4) == [("a", 0), ("b", 3)]
