"""prefpipe.formats: published formats as rows, what is wrong with a record that is none, a format that is new."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded.server import Server, last_message
from prefpipe.formats import FORMATS, judgebench, responses, rewardbench, rewardbench2
from prefpipe.formats.opening import HowRead
from prefpipe.rows import Preference, Prompt, Question
from tests.examples import ROOT, read_jsonl, says, write_jsonl


def reads(name: str) -> Callable[[Any], Preference]:
    """The one pair of a record in that format."""
    return lambda record: HowRead().reader(FORMATS[name]).read(record)[0]


sky, llmbar, autoj = map(reads, ("sky", "llmbar", "autoj"))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*contents: str) -> list[dict[str, str]]:
    """Turns of user, assistant, user, ..."""
    return [turn(("user", "assistant")[k % 2], text) for k, text in enumerate(contents)]


SKYWORK = {"chosen": chat("2+2?", "4"), "rejected": chat("2+2?", "5"), "source": "sums"}
PLAIN = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
LLMBAR = {
    "id": "llmbar-natural-0", "subset": "Natural", "input": "2+2?",
    "output_1": "5", "output_2": "4", "label": 2,
}  # fmt: skip
AUTOJ = {
    "id": "autoj-0", "scenario": "math", "prompt": "2+2?",
    "response 1": "4", "response 2": "5", "label": 0,
}  # fmt: skip


def test_the_skywork_form_is_read():
    row = sky(SKYWORK)
    assert row.prompt == [turn("user", "2+2?")]
    assert (row.chosen, row.rejected, row.source, row.tie) == ("4", "5", "sums", False)


def test_the_earlier_turns_of_a_conversation_are_the_prompt():
    before = ("hi", "hello", "2+2?")
    row = sky({"chosen": chat(*before, "4"), "rejected": chat(*before, "5")})
    assert row.prompt == chat(*before) and (row.chosen, row.rejected) == ("4", "5")
    system = turn("system", "Be brief.")
    row = sky({"chosen": [system, *chat("2+2?", "4")], "rejected": [system, *chat("2+2?", "5")]})
    assert row.prompt == [system, turn("user", "2+2?")]


def test_plain_and_conversational_preference_rows_are_read():
    assert sky(PLAIN).model_dump(exclude={"id"}) == {
        **PLAIN, "margin": None, "tie": False, "source": None
    }  # fmt: skip
    row = sky(
        {"prompt": chat("2+2?"), "chosen": chat("2+2?", "4")[1:], "rejected": chat("x", "5")[1:]}
    )
    assert row.prompt == chat("2+2?") and (row.chosen, row.rejected) == ("4", "5")
    same = sky({"prompt": "2+2?", "chosen": chat("2+2?", "4"), "rejected": chat("2+2?", "5")})
    assert same.prompt == chat("2+2?")


def test_what_this_pipeline_writes_is_read_back_as_it_was():
    row = Preference(id="a", prompt="p", chosen="c", rejected="r", margin=0.5, tie=True, source="s")
    assert sky(json.loads(row.model_dump_json())) == row


def test_llmbar_and_autoj_labels_say_which_is_better():
    """LLMBar counts from 1, Auto-J from 0 with 2 for a tie."""
    assert [(r.chosen, r.rejected) for r in (llmbar(LLMBAR), llmbar(LLMBAR | {"label": 1}))] == [
        ("4", "5"),
        ("5", "4"),
    ]
    rows = [autoj(AUTOJ | {"label": label}) for label in (0, 1, 2)]
    assert [(r.chosen, r.rejected, r.tie) for r in rows] == [
        ("4", "5", False),
        ("5", "4", False),
        ("4", "5", True),
    ]
    assert (llmbar(LLMBAR).source, rows[0].source) == ("llmbar/Natural", "autoj/math")
    assert (llmbar(LLMBAR).id, rows[0].id) == ("llmbar-natural-0", "autoj-0")


@pytest.mark.parametrize("id", ["00123", "12e45", "a_b", "1.0", " ", "Ünïcode 中", "a\tb"])
def test_an_id_stays_the_text_it_is(id):
    assert sky(PLAIN | {"id": id}).id == id


def test_a_whole_number_is_its_digits_and_another_is_refused():
    """pandas has 12.0 for 12 beside a gap, and NaN for the gap."""
    assert [sky(PLAIN | {"id": id}).id for id in (0, 123, 12.0)] == ["0", "123", "12"]
    assert sky(PLAIN | {"id": float("nan")}).id == sky(PLAIN).id
    for id in (1.2e46, 12.5, True, ["a"]):
        with pytest.raises(ValueError, match="id: found"):
            sky(PLAIN | {"id": id})


def test_an_id_that_a_record_lacks_is_made_of_its_content():
    one, same = sky(SKYWORK), sky(dict(reversed(SKYWORK.items())) | {"id": None})
    other = sky(SKYWORK | {"rejected": chat("2+2?", "6")})
    assert one.id == same.id != other.id and len(one.id) == 16


def test_the_empty_fields_and_words_of_a_csv_row_are_what_they_mean():
    row = sky(PLAIN | {"id": "", "source": "", "tie": "", "margin": ""})
    assert (row.source, row.tie, row.margin) == (None, False, None) and len(row.id) == 16
    row = sky(PLAIN | {"margin": float("nan"), "source": None})  # as pandas has it
    assert (row.source, row.margin) == (None, None)
    row = sky(PLAIN | {"id": "007", "tie": "True", "margin": "0.5"})
    assert (row.id, row.tie, row.margin) == ("007", True, 0.5)


@pytest.mark.parametrize(
    ("read", "record", "said"),
    [
        (sky, {"prompt": "p", "rejected": "r"}, "chosen: missing; found prompt, rejected; name yours with --chosen"),
        (sky, {"chosen": "c", "rejected": "r"}, "prompt: missing; found chosen, rejected; name yours with --prompt"),
        (sky, {}, "chosen: missing; found nothing"),
        (sky, ["c", "r"], "the row: found list, wanted an object"),
        (sky, PLAIN | {"chosen": None}, "chosen: found null, which cannot be shown as text"),
        (sky, PLAIN | {"chosen": chat("a", "b")}, "rejected: found another form than chosen"),
        (sky, PLAIN | {"chosen": 4, "rejected": 5}, "chosen: found int, wanted text or a list of turns"),
        (sky, PLAIN | {"prompt": 4}, "prompt: found int, wanted text or a list of turns"),
        (sky, PLAIN | {"prompt": []}, "prompt: found null"),
        (sky, PLAIN | {"tie": 2}, "tie: found '2', wanted true or false"),
        (sky, PLAIN | {"tie": float("inf")}, "tie: found 'inf', wanted true or false"),
        (sky, PLAIN | {"tie": "perhaps"}, "tie: found 'perhaps', wanted true or false"),
        (sky, PLAIN | {"margin": -1}, "margin: found '-1', wanted a number >= 0"),
        (sky, PLAIN | {"margin": float("inf")}, "margin: found 'inf', wanted a number >= 0"),
        (sky, PLAIN | {"margin": True}, "margin: found 'True', wanted a number"),
        (sky, PLAIN | {"margin": "wide"}, "margin: found 'wide', wanted a number >= 0 .--margin-column None"),
        (sky, PLAIN | {"margin": [1]}, r"margin: found '\[1\]', wanted a number"),
        (sky, PLAIN | {"source": {"a": 1}}, "source: found \"{'a': 1}\", wanted a text"),
        (sky, SKYWORK | {"chosen": [turn("assistant", "4")], "rejected": [turn("assistant", "5")]},
         "chosen: found one turn, wanted the prompt's turns"),
        (sky, SKYWORK | {"rejected": chat("3+3?", "5")}, "rejected: its earlier turns differ"),
        (sky, SKYWORK | {"prompt": "3+3?"}, r"chosen: its earlier turns are not the prompt's: '2\+2\?' against '3\+3"),
        (sky, SKYWORK | {"chosen": chat("2+2?"), "rejected": chat("2+2?")}, "chosen: found one turn"),
        (sky, SKYWORK | {"chosen": chat("a", "b", "c"), "rejected": chat("a", "b", "d")},
         "chosen: found role user last, wanted assistant"),
        (sky, PLAIN | {"prompt": chat("a", "b")}, "chosen: found role assistant last before the answer"),
        (sky, SKYWORK | {"chosen": [turn("narrator", "a"), turn("assistant", "b")]},
         r"chosen\[0\]\.role: found 'narrator', wanted system, user"),
        (sky, SKYWORK | {"chosen": [{"role": "user"}, turn("assistant", "b")]},
         r"chosen\[0\]: found .* wanted role and content as text"),
        (sky, SKYWORK | {"chosen": ["a", "b"]}, r"chosen\[0\]: found"),
        (llmbar, LLMBAR | {"label": 3}, "label: found '3', wanted one of 1, 2"),
        (llmbar, LLMBAR | {"label": 0}, "label: found '0', wanted one of 1, 2"),
        (llmbar, LLMBAR | {"label": 1.5}, r"label: found '1\.5', wanted one of 1, 2"),
        (llmbar, LLMBAR | {"label": None}, "label: found nothing: which answer is better is not said"),
        (llmbar, LLMBAR | {"label": [1]}, r"label: found '\[1\]', wanted one of 1, 2"),
        (llmbar, LLMBAR | {"output_2": 5}, "output_2: found int, wanted text"),
        (llmbar, AUTOJ, "output_1: missing; found id, scenario, prompt"),
        (autoj, AUTOJ | {"label": 3}, "label: found '3', wanted one of 0, 1, 2"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_an_error_that_names_the_field(read, record, said):
    with pytest.raises(ValueError, match=said):
        read(record)


def test_rewardbench_rows_are_preferences_whose_id_names_the_subset():
    row = rewardbench.read(
        {
            "prompt": "Q",
            "chosen": "good",
            "chosen_model": "a",
            "rejected": "bad",
            "rejected_model": "b",
            "subset": "math-prm",
            "id": 7,
        }
    )
    assert (row.id, row.prompt, row.chosen, row.rejected) == ("math-prm:7", "Q", "good", "bad")
    assert row.source == "rewardbench/math-prm"


def rewardbench2_record(**changes):
    made = {
        "id": "12",
        "prompt": "Q",
        "chosen": ["good"],
        "rejected": ["b", "c", "d"],
        "num_correct": 1,
        "num_incorrect": 3,
        "total_completions": 4,
        "subset": "Math",
    }
    return {**made, **changes}


def test_rewardbench2_rows_are_questions_with_one_right_and_three_wrong_responses():
    row = rewardbench2.read(rewardbench2_record())
    assert (row.id, row.right, row.wrong) == ("Math:12", ["good"], ["b", "c", "d"])
    assert row.source == "rewardbench2/Math"
    with pytest.raises(ValueError, match="chosen: found str, wanted a list"):
        rewardbench2.read(rewardbench2_record(chosen="good"))
    with pytest.raises(ValueError, match="id: found '12', wanted ref:"):
        rewardbench2.read(rewardbench2_record(subset="Ties"))


def test_judgebench_rows_say_which_is_better_and_their_kind():
    made = {
        "pair_id": "81ec57f2",
        "original_id": "10646",
        "source": "mmlu-pro-computer science",
        "question": "Q",
        "response_model": "gpt-4o",
        "response_A": "first",
        "response_B": "second",
        "label": "B>A",
    }
    row = judgebench.read(made)
    assert (row.id, row.chosen, row.rejected) == ("81ec57f2", "second", "first")
    assert row.source == "judgebench/knowledge"
    assert judgebench.read({**made, "label": "A>B"}).chosen == "first"
    with pytest.raises(ValueError, match="label: found 'A=B'"):
        judgebench.read({**made, "label": "A=B"})


def test_best_of_n_rows_need_to_say_which_responses_are_right():
    row = responses.read({"id": "a", "prompt": "Q", "responses": ["x", "y", "z"], "right": [False, True, True]})  # fmt: skip
    assert (row.right, row.wrong) == (["y", "z"], ["x"])
    with pytest.raises(ValueError, match="right: wanted true or false for each"):
        responses.read({"id": "a", "prompt": "Q", "responses": ["x", "y"]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = sorted({*SKYWORK, *PLAIN, *LLMBAR, *AUTOJ, "margin", "tie", "role", "content", "question"})


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(
    base=st.sampled_from([SKYWORK, PLAIN, LLMBAR, AUTOJ]),
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
)
def test_any_record_is_a_row_or_an_error(name, base, changes):
    form, record = FORMATS[name], {**base, **changes}
    try:
        if form.layout and form.layout.only_prompts:
            rows = [HowRead(prompts=True).reader(form).prompt(record)]
        else:
            read = form.read if form.several_answers else None
            rows = [read(record)] if read else HowRead().reader(form).read(record)
    except ValueError as error:
        assert str(error).encode() and len(str(error)) < 400
    else:
        assert rows and all(isinstance(row, Preference | Question | Prompt) for row in rows)


# ---- a new format is one file and one line -------------------------------------------------------

NEW_FORMAT = '''"""A format of a person's own: question, good, bad, kind; its score: of the hard ones alone."""

from prefpipe.formats.reading import Format, Record, prompt_field, text_field, to_preference
from prefpipe.rows import Preference


def read(record: Record) -> Preference:
    named = {"id": record.get("id"), "source": f"mine/{text_field(record, 'kind')}"}
    answers = (text_field(record, name) for name in ("good", "bad"))
    return to_preference(named, prompt_field(record, "question"), *answers)


FORMAT = Format(read, published_of_subsets=lambda accuracy: {"score": accuracy["hard"]})
'''


def test_a_new_format_is_a_file_and_a_line(tmp_path):
    """Both stages that choose from the list take it: --format, and --benchmark with its own score."""
    home = tmp_path / "pipeline"
    shutil.copytree(
        ROOT / "prefpipe", home / "prefpipe", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("config.py", "preprocess_dataset.py", "accuracy.py"):
        shutil.copy(ROOT / name, home)
    (home / "prefpipe/formats/mine.py").write_text(NEW_FORMAT)
    listed = home / "prefpipe/formats/__init__.py"
    line = "FORMATS: dict[str, Format] = {\n"
    own = 'import_module("prefpipe.formats.mine").FORMAT'
    text = listed.read_text().replace(
        line, f'from importlib import import_module\n{line}    "mine": {own},\n'
    )
    listed.write_text(text)
    rows = [
        {"id": "a", "question": "A?", "good": "right", "bad": "wrong", "kind": "easy"},
        {"id": "b", "question": "B?", "good": "wrong", "bad": "right", "kind": "hard"},
    ]
    write_jsonl(tmp_path / "mine.jsonl", rows)

    def run(stage: str, *options: str) -> None:
        command = [sys.executable, str(home / f"{stage}.py"), *options]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    held_out = ["--validation-input", "mine.jsonl", "--output", "items", "--near-duplicate", "1"]
    write_jsonl(tmp_path / "train.jsonl", [{**rows[0], "id": "c", "question": "C?"}])
    run("preprocess_dataset", "--format", "mine", "--input", "train.jsonl", *held_out)
    assert [i["source"] for i in read_jsonl(tmp_path / "items/validation.jsonl")] == [
        "mine/easy",
        "mine/hard",
    ]

    def right(body, sample: int) -> str:
        text = last_message(body)
        return says(1 if text.index("\nright") < text.index("\nwrong") else 2)

    with Server(right) as server:
        asked = ["--engine", "server", "--base-urls", server.url, "--base", "x", "--tuned", "x"]
        sets = ["--items", "None", "--pairs", "None", "--benchmark", "mine=mine.jsonl"]
        run("accuracy", *asked, *sets, "--output", "accuracy")
    numbers = json.loads((tmp_path / "accuracy/accuracy.json").read_text())["judging"]["mine"]
    assert numbers["base"]["accuracy"] == 0.5
    assert numbers["published"] == {"base": {"score": 0.0}, "tuned": {"score": 0.0}}
