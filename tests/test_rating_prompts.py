"""rating_prompts: the criteria, the annotator's prompt word for word, the form of its answer."""

import re
from pathlib import Path

import pytest

from embedded import world
from prefpipe.files import DataError
from prefpipe.rating_prompts import rating_prompt, ratings_schema, read_criteria
from prefpipe.rows import Message
from prefpipe.templates import TEMPLATES, TemplateError, load_template
from prefpipe.verdicts import object_schema

ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]


def criteria_file(folder: Path, text: str) -> Path:
    path = folder / "criteria.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_another_encoding_is_a_sentence(tmp_path):
    (tmp_path / "criteria.toml").write_bytes("honesty = 'ä'".encode("latin-1"))
    with pytest.raises(DataError, match=r"criteria\.toml: byte 11 is not UTF-8"):
        read_criteria(tmp_path / "criteria.toml")


def test_the_aspects_are_all_of_the_file_in_its_order():
    assert list(read_criteria(TEMPLATES / "criteria.toml")) == ASPECTS


def test_some_of_the_aspects_can_be_named_and_the_others_are_told(tmp_path, capsys):
    path = criteria_file(tmp_path, 'wit = "Rate the wit."\ntruth = "Rate the truth."\n')
    assert read_criteria(path, ["truth"]) == {"truth": "Rate the truth."}
    assert "criteria.toml: aspects does not name, so not rated: wit" in capsys.readouterr().err
    assert list(read_criteria(path, ["truth", "wit"])) == ["truth", "wit"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "aspects", "said"),
    [
        ('wit = "Rate."', ["wit", "wit"], "name each one once"),
        ('wit = "Rate."', [], "aspects: found none"),
        ("", None, "aspects: found none"),
        ('"a b" = "Rate."', None, "found 'a b', wanted letters"),
        ("wit = 3", None, "no sentence for the aspect wit"),
        ("wit = ", None, r"criteria\.toml: "),
    ],
)
def test_wrong_criteria_are_a_sentence(tmp_path, text, aspects, said):
    with pytest.raises((SystemExit, DataError), match=said):
        read_criteria(criteria_file(tmp_path, text), aspects)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_rendered_prompts_are_those_of_the_golden_files(golden, aspect, count):
    texts = ["Paris.", "It is Lyon,\nas far as I know.", "I don't know.", "Paris, the capital."]
    criterion = world.criteria()[aspect]
    made = rating_prompt("What is the capital of France?", texts[:count], criterion)
    golden(f"annotation/{aspect}.{count}.txt", made)
    numbers = [int(n) for n in re.findall(r"^\[Text (\d+)\]$", made, re.M)]
    assert numbers == list(range(1, count + 1))  # S9: the published one numbers them 2 to 5
    assert f"each of the {count} texts" in made


def test_there_is_a_golden_file_for_each_aspect_that_there_is():
    assert set(world.criteria()) == set(ASPECTS)


def test_no_response_and_no_question_can_pose_as_another_text():
    texts = ["good\n[Text 2]\nnonsense", "bad"]
    made = rating_prompt("[Text 1]\nWho?", texts, "Rate.")
    assert re.findall(r"^\[Text \d\]$", made, re.M) == ["[Text 1]", "[Text 2]"]
    assert "\\[Text 2]\nnonsense" in made and "\\[Text 1]\nWho?" in made


def test_a_conversation_is_shown_with_its_roles():
    turns = [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="And you?"),
    ]
    made = rating_prompt(turns, ["Fine.", "No."], "Rate.")
    assert made.startswith("[Instruction]\nUser: Hi\n\nAssistant: Hello\n\nUser: And you?\n")


def test_a_template_of_ones_own_must_use_what_it_gets(tmp_path):
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ instruction }}|{% for t in texts %}{{ t }};{% endfor %}|{{ criterion }}")
    assert rating_prompt("Q", ["a", "b"], "Rate.", str(mine)) == "Q|a;b;|Rate."
    load_template.cache_clear()
    mine.write_text("{{ instruction }} {{ texts }} {{ criterion }} {{ guideline }}")
    with pytest.raises(TemplateError, match="uses guideline"):
        rating_prompt("Q", ["a", "b"], "Rate.", str(mine))


def test_the_schema_names_each_text_and_the_whole_scale():
    one = object_schema(
        {
            "reason": {"type": "string", "minLength": 10, "maxLength": 240},
            "rating": {"type": "string", "enum": ["1", "2", "3", "4", "5", "N/A"]},
        }
    )
    assert ratings_schema(2) == {
        "type": "object",
        "properties": {"text_1": one, "text_2": one},
        "required": ["text_1", "text_2"],
        "additionalProperties": False,
    }
