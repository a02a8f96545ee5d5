"""prefpipe.formats.prompts: prompts, and prompts with several responses, of published sets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from prefpipe import files
from prefpipe.files import DataError
from prefpipe.formats.opening import HowRead
from prefpipe.formats.prompts import read_prompts, read_responses
from prefpipe.rows import Prompt, Reject, Responses, as_turns
from rank_responses import Settings
from tests.examples import write_jsonl
from tests.test_presets import ASKED, BAD, BOTH, GOOD, SYSTEM, Q, turn


def responses(folder: Path, record: dict[str, Any], **columns: Any) -> Responses:
    path = write_jsonl(folder / "x.jsonl", [record])
    ((_, row),) = read_responses(path, None, HowRead(columns=columns))
    assert isinstance(row, Responses), row
    return row


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"id": "a", "prompt": Q, "responses": [BAD, GOOD, ""], "right": None, "source": None}, [BAD, GOOD, ""]),
        ({"instruction": Q, "completions": [
            {"response": BAD, "overall_score": 1}, {"response": GOOD, "overall_score": None}, {"response": "Ten.", "overall_score": 2}]},
         [BAD, GOOD, "Ten."]),
        ({"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": [{"answer": GOOD, "rank": 1}, {"answer": BAD, "rank": 2}]},
         [GOOD, BAD]),
        ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, [GOOD, BAD]),
        ({**BOTH, "source": "x"}, [GOOD, BAD]),
        ({"instruction": Q, "reference": {"output": GOOD}, "others": [{"output": BAD, "preference": 1.1}]}, [GOOD, BAD]),
    ],
)  # fmt: skip
def test_every_answer_to_a_prompt_is_a_response(tmp_path, record, wanted):
    row = responses(tmp_path, record)
    assert row.responses == wanted and as_turns(row.prompt) == ASKED


def test_the_columns_of_responses_can_be_named(tmp_path):
    record = {
        "ask": Q,
        "who": "Be brief.",
        "texts": [{"t": GOOD, "s": 1}, {"t": BAD, "s": 0}, {"t": None, "s": 0}],
    }
    columns = {
        "prompt": ("ask",),
        "system": ("who",),
        "candidates": "texts",
        "text": "t",
        "score": "s",
    }
    row = responses(tmp_path, record, **columns)
    assert row.responses == [GOOD, BAD] and row.prompt == [SYSTEM, *ASKED]


def test_an_id_stands_once_and_a_copy_without_one_is_left_out(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": Q, "chosen": GOOD, "rejected": BAD}] * 2)
    (_, first), (_, copy) = read_responses(path, None, HowRead())
    assert (
        isinstance(first, Responses) and isinstance(copy, Reject) and copy.reason == "duplicate_row"
    )
    path = write_jsonl(tmp_path / "y.jsonl", [{"id": 0, "prompt": Q}, {"id": 0.0, "prompt": "Q2"}])
    with pytest.raises(
        DataError, match=r"y\.jsonl:2: id '0' stands at .* \(--id-column None makes them"
    ):
        list(read_prompts([path]))
    how = HowRead(columns={"id": None}, prompts=True)
    assert len({getattr(row, "id", "") for _, row in read_prompts([path], None, how)}) == 2


def test_a_conversation_without_a_question_is_an_error_of_its_row(tmp_path):
    rows = [
        {"messages": [SYSTEM, *ASKED]},
        {"messages": [SYSTEM, turn("assistant", "Hello.")]},
        {"messages": []},
    ]
    found = [row for _, row in read_prompts([write_jsonl(tmp_path / "x.jsonl", rows)])]
    assert "messages: found no turn of the user's" in str(found[1])
    assert "prompt: missing" in str(found[2])


def test_how_each_file_was_read_is_told(tmp_path):
    path = write_jsonl(
        tmp_path / "x.jsonl", [{"conversations": [{"from": "human", "value": Q}], "tools": "f"}]
    )
    told: list[str] = []
    list(read_prompts([path], tell=told.extend))
    first, second = told
    assert first.endswith("x.jsonl: read as messages, by its columns conversations")
    assert second.endswith("x.jsonl: not read: tools (rows: 1; nothing reads it)")


def test_prompts_and_responses_may_be_on_the_hub(monkeypatch):
    rows = [{"id": "a", "prompt": Q, "responses": ["x", "y"]}]
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, options["split"], options["revision"]))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *a, **k: ["train", "test"])
    how = HowRead(part={"revision": "v1", "split": "test"})
    ((_, row),) = read_responses(Path("some/set"), None, how)
    assert isinstance(row, Responses) and row.responses == ["x", "y"]
    (path,) = files.each_of("some/set")
    ((_, prompt),) = read_prompts([path], how=replace(how, prompts=True))
    assert isinstance(prompt, Prompt) and prompt.prompt == Q
    assert set(asked) == {("some/set", "test", "v1")}
    # no file stands for them in a fingerprint: their name does
    assert files.here([path, "data/x.jsonl"]) == [Path("data/x.jsonl")]
    assert Settings(input=path).rows_depend_on()["data"] == ["some/set"]
    assert "data" not in Settings(input=Path("x.jsonl")).rows_depend_on()
