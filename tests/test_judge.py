"""prefpipe.judge: where the better answer stands, and a judge asked in both orders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.files import DataError
from prefpipe.judge import Showing, both_orders, build_item, item_in_both_orders, verdict
from prefpipe.rows import Completion, Item, Message, Preference, Reject
from prefpipe.verdicts import Unreadable
from tests.examples import item, says


def preference(id: str = "a", **other) -> Preference:
    made = {"id": id, "prompt": "Q?", "chosen": "good", "rejected": "bad", "source": "s"}
    return Preference.model_validate(made | other)


def built(row: Preference, seed: int = 0) -> Item:
    made = build_item(row, split="train", seed=seed)
    assert isinstance(made, Item)
    return made


# ---- an item


def test_the_better_answer_stands_first_half_of_the_time_and_is_the_one_that_is_named():
    items = [built(preference(str(k))) for k in range(2000)]
    for made in items:
        assert (made.answer_1, made.answer_2)[(made.better or 0) - 1] == "good"
    first = sum(made.better == 1 for made in items)
    assert abs(first - 1000) < 4 * (2000 * 0.25) ** 0.5  # four standard deviations


def test_the_place_depends_on_seed_and_id_alone():
    items = [built(preference(str(k))) for k in range(50)]
    assert [built(preference(str(k), chosen="other")).better for k in range(50)] == [
        made.better for made in items
    ]
    assert [built(preference(str(k)), seed=1).better for k in range(50)] != [
        made.better for made in items
    ]


def test_a_tie_stays_a_tie_in_an_order_of_its_own():
    items = [built(preference(str(k), tie=True)) for k in range(50)]
    assert {made.better for made in items} == {None}
    assert {made.answer_1 for made in items} == {"good", "bad"}


def test_the_turns_of_a_conversation_are_in_the_question_and_in_the_prompt():
    turns = [Message(role="user", content="hi"), Message(role="assistant", content="hello")]
    made = built(preference(prompt=[*turns, Message(role="user", content="and you?")]))
    assert made.question == "User: hi\n\nAssistant: hello\n\nUser: and you?"
    assert made.question in made.prompt


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": " \n"}, "empty_question"),
        ({"chosen": ""}, "empty_answer"),
        ({"rejected": " \t"}, "empty_answer"),
        ({"chosen": "a  b\n", "rejected": "a b"}, "equal_answers"),
    ],
)
def test_what_cannot_be_judged_is_left_out_by_reason(changes, reason):
    made = build_item(preference(**changes), split="train", seed=0)
    assert made == Reject(id="a", reason=reason)


def test_a_chinese_question_gets_the_chinese_prompt():
    made = built(preference(prompt="2加2等于几?"))
    assert made.language == "zh" and made.prompt.startswith("[问题]\n2加2等于几?")


# ---- a judge asked in both orders


@given(st.text(), st.text(), st.sampled_from(["en", "zh"]))
def test_both_orders_are_the_prompts_of_the_item_and_of_the_item_the_other_way_round(
    a, b, language
):
    made = item("a", answer_1=a, answer_2=b, language=language)
    other = item("a", answer_1=b, answer_2=a, language=language)
    given, swapped = item_in_both_orders(made, ("x", "y"))
    assert given == Showing("x", made.prompt, language, swapped=False)
    assert swapped == Showing("y", other.prompt, language, swapped=True)
    assert both_orders(("x", "y"), made.question, a, b, language=language) == (given, swapped)


def test_an_item_of_another_template_is_not_shown_in_this_one(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }}|{{ answer_1 }}|{{ answer_2 }}")
    mine = build_item(preference(), split="train", seed=0, template=str(path))
    assert isinstance(mine, Item)
    _, swapped = item_in_both_orders(mine, ("x", "y"), template=str(path))
    assert swapped.prompt == f"Q?|{mine.answer_2}|{mine.answer_1}"
    with pytest.raises(DataError, match="of/x: item 'a': its prompt is not the template's; give"):
        item_in_both_orders(mine, ("x", "y"), place="of/x")


def completion(text: str) -> Completion:
    counts = {"finish_reason": "stop", "prompt_tokens": 1, "new_tokens": 1}
    return Completion.model_validate({"id": "x", "sample": 0, "text": text, **counts})


@pytest.mark.parametrize(("said", "wanted"), [(1, (1, 2)), (2, (2, 1))])
def test_a_verdict_is_on_a_and_b_whichever_stood_first(said, wanted):
    showings = both_orders(("x", "y"), "Q?", "a", "b", language="en")
    assert tuple(verdict([completion(says(said))], showing) for showing in showings) == wanted


def test_without_a_text_or_a_readable_one_there_is_no_verdict():
    given, swapped = both_orders(("x", "y"), "Q?", "a", "b", language="en")
    failed = Reject(id="x", reason="prompt_too_long")
    assert verdict(failed, given) == verdict(failed, swapped) == failed
    assert verdict([completion("Hm.")], swapped) == Unreadable("no_json")
