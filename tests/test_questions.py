"""questions: which are the same, which split each one is in."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from prefpipe.near_duplicates import NearDuplicates
from prefpipe.questions import in_blocks, question_key, splits

# ---- the split


def test_all_rows_of_a_question_are_on_one_side():
    options = {"validation_share": 0.3, "seed": 0}
    asked = [f"What is {k} + {k}?" for k in range(3000)]
    sides = splits(asked, **options)
    assert splits([f" what IS  {k} + {k} ?!" for k in range(3000)], **options) == sides
    assert [splits([question], **options)[0] for question in asked] == sides
    assert abs(sides.count("validation") - 900) < 4 * (3000 * 0.21) ** 0.5
    assert splits(asked, validation_share=0.3, seed=1) != sides
    larger = splits(asked, validation_share=0.5, seed=0)
    moved = Counter(zip(sides, larger, strict=True))
    assert moved["validation", "train"] == 0  # a larger share only adds


def test_questions_without_a_word_are_not_all_the_same():
    keys = {question_key(question) for question in ("🙂", "🙃", "?", "!", "", "c", "c++")}
    assert len(keys) == 7
    assert "🙃" not in NearDuplicates(["🙂", "?"]) and "🙂" in NearDuplicates(["🙂", "?"])


# ---- blocks


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=90), st.integers(0, 10_000))
def test_the_split_of_a_question_does_not_depend_on_its_block(asked, seed):
    options = {"validation_share": 0.5, "seed": seed}
    assert splits(asked, **options) == [splits([text], **options)[0] for text in asked]


def test_values_come_in_blocks_of_which_the_last_may_be_shorter():
    assert list(in_blocks(range(5), 2)) == [[0, 1], [2, 3], [4]] and list(in_blocks([])) == []
