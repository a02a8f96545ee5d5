"""sources: published formats as Preference rows, and what is wrong with a record that is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.formats.reading import FORMATS, Sky, autoj, llmbar
from prefpipe.rows import Preference


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
    row = Sky(SKYWORK)
    assert row.prompt == [turn("user", "2+2?")]
    assert (row.chosen, row.rejected, row.source, row.tie) == ("4", "5", "sums", False)


def test_j6_the_earlier_turns_of_a_conversation_are_the_prompt():
    before = ("hi", "hello", "2+2?")
    row = Sky({"chosen": chat(*before, "4"), "rejected": chat(*before, "5")})
    assert row.prompt == chat(*before) and (row.chosen, row.rejected) == ("4", "5")
    system = turn("system", "Be brief.")
    row = Sky({"chosen": [system, *chat("2+2?", "4")], "rejected": [system, *chat("2+2?", "5")]})
    assert row.prompt == [system, turn("user", "2+2?")]


def test_plain_and_conversational_preference_rows_are_read():
    assert Sky(PLAIN).model_dump(exclude={"id"}) == {
        **PLAIN, "margin": None, "tie": False, "source": None
    }  # fmt: skip
    row = Sky(
        {"prompt": chat("2+2?"), "chosen": chat("2+2?", "4")[1:], "rejected": chat("x", "5")[1:]}
    )
    assert row.prompt == chat("2+2?") and (row.chosen, row.rejected) == ("4", "5")
    same = Sky({"prompt": "2+2?", "chosen": chat("2+2?", "4"), "rejected": chat("2+2?", "5")})
    assert same.prompt == chat("2+2?")


def test_what_this_pipeline_writes_is_read_back_as_it_was():
    row = Preference(id="a", prompt="p", chosen="c", rejected="r", margin=0.5, tie=True, source="s")
    assert Sky(json.loads(row.model_dump_json())) == row


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
def test_s11_an_id_stays_the_text_it_is(id):
    assert Sky(PLAIN | {"id": id}).id == id


def test_s11_e8_a_whole_number_is_its_digits_and_a_float_is_refused():
    assert Sky(PLAIN | {"id": 123}).id == "123"
    for id in (1.2e46, 12.0, True, ["a"]):
        with pytest.raises(ValueError, match="id: found"):
            Sky(PLAIN | {"id": id})


def test_an_id_that_a_record_lacks_is_made_of_its_content():
    one, same = Sky(SKYWORK), Sky(dict(reversed(SKYWORK.items())) | {"id": None})
    other = Sky(SKYWORK | {"rejected": chat("2+2?", "6")})
    assert one.id == same.id != other.id and len(one.id) == 16


def test_the_empty_fields_and_words_of_a_csv_row_are_what_they_mean():
    row = Sky(PLAIN | {"id": "", "source": "", "tie": "", "margin": ""})
    assert (row.source, row.tie, row.margin) == (None, False, None) and len(row.id) == 16
    row = Sky(PLAIN | {"id": "007", "tie": "True", "margin": "0.5"})
    assert (row.id, row.tie, row.margin) == ("007", True, 0.5)


@pytest.mark.parametrize(
    ("mapping", "record", "said"),
    [
        (Sky, {"prompt": "p", "rejected": "r"}, "chosen: missing; found prompt, rejected"),
        (Sky, {"chosen": "c", "rejected": "r"}, "prompt: missing; found chosen, rejected"),
        (Sky, {}, "chosen: missing; found nothing"),
        (Sky, ["c", "r"], "the row: found list, wanted an object"),
        (Sky, PLAIN | {"chosen": None}, "chosen: missing"),
        (Sky, PLAIN | {"chosen": chat("a", "b")}, "rejected: found another form than chosen"),
        (Sky, PLAIN | {"chosen": 4, "rejected": 5}, "chosen: found int, wanted a list of turns"),
        (Sky, PLAIN | {"prompt": 4}, "prompt: found int, wanted a list of turns"),
        (Sky, PLAIN | {"prompt": []}, "prompt: found list, wanted a list of turns"),
        (Sky, PLAIN | {"tie": 1}, "tie: found 1, wanted true or false"),
        (Sky, PLAIN | {"tie": "perhaps"}, "tie: found 'perhaps', wanted true or false"),
        (Sky, PLAIN | {"margin": -1}, "margin: found -1, wanted a number >= 0"),
        (Sky, PLAIN | {"margin": float("nan")}, "margin: found nan, wanted a number >= 0"),
        (Sky, PLAIN | {"margin": float("inf")}, "margin: found inf, wanted a number >= 0"),
        (Sky, PLAIN | {"margin": True}, "margin: found True, wanted a number"),
        (Sky, PLAIN | {"margin": "wide"}, "margin: found 'wide', wanted a number"),
        (Sky, PLAIN | {"margin": [1]}, r"margin: found \[1\], wanted a number"),
        (Sky, PLAIN | {"source": {"a": 1}}, "source: found {'a': 1}, wanted a text"),
        (Sky, SKYWORK | {"chosen": [turn("assistant", "4")], "rejected": [turn("assistant", "5")]},
         "chosen: found one turn, wanted the prompt's turns"),
        (Sky, SKYWORK | {"rejected": chat("3+3?", "5")}, "rejected: its earlier turns differ"),
        (Sky, SKYWORK | {"prompt": "3+3?"}, "chosen: its earlier turns are not the prompt's"),
        (Sky, SKYWORK | {"chosen": chat("2+2?"), "rejected": chat("2+2?")}, "chosen: found one turn"),
        (Sky, SKYWORK | {"chosen": chat("a", "b", "c"), "rejected": chat("a", "b", "d")},
         "chosen: found a assistant turn last before the answer"),
        (Sky, SKYWORK | {"chosen": [turn("human", "a"), turn("assistant", "b")]},
         r"chosen\[0\]\.role: found 'human', wanted one of"),
        (Sky, SKYWORK | {"chosen": [{"role": "user"}, turn("assistant", "b")]},
         r"chosen\[0\]: found .* wanted role and content as text"),
        (Sky, SKYWORK | {"chosen": ["a", "b"]}, r"chosen\[0\]: found"),
        (llmbar, LLMBAR | {"label": 3}, r"label: found 3, wanted one of \[1, 2\]"),
        (llmbar, LLMBAR | {"label": 0}, r"label: found 0, wanted one of \[1, 2\]"),
        (llmbar, LLMBAR | {"label": 1.0}, r"label: found 1\.0, wanted one of \[1, 2\]"),
        (llmbar, LLMBAR | {"label": True}, r"label: found True, wanted one of \[1, 2\]"),
        (llmbar, LLMBAR | {"label": "1"}, r"label: found '1', wanted one of \[1, 2\]"),
        (llmbar, LLMBAR | {"label": [1]}, r"label: found \[1\], wanted one of \[1, 2\]"),
        (llmbar, LLMBAR | {"output_2": 5}, "output_2: found int, wanted text"),
        (llmbar, AUTOJ, "output_1: missing; found id, scenario, prompt"),
        (autoj, AUTOJ | {"label": 3}, r"label: found 3, wanted one of \[0, 1, 2\]"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_an_error_that_names_the_field(mapping, record, said):
    with pytest.raises(ValueError, match=said):
        mapping(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = sorted({*SKYWORK, *PLAIN, *LLMBAR, *AUTOJ, "margin", "tie", "role", "content", "question"})


@pytest.mark.parametrize("name", FORMATS)
@given(
    base=st.sampled_from([SKYWORK, PLAIN, LLMBAR, AUTOJ]),
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
)
def test_any_record_is_a_preference_or_an_error(name, base, changes):
    try:
        row = FORMATS[name]({**base, **changes})
    except ValueError as error:
        assert str(error).encode()
    else:
        assert isinstance(row, Preference)
