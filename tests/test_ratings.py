"""ratings: one rating a text by its number, or none of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedded.world import make_rating
from prefpipe.ratings import (
    Annotation,
    mean_ratings,
    ratings_by_aspect,
    read_annotation,
    read_ratings,
)
from prefpipe.rows import AnnotationAnswer, AnnotationPrompt
from prefpipe.verdicts import Unreadable

KNOWN = {
    *("empty", "cut_off", "broken_json", "no_rating", "two_ratings", "unknown_text"),
    *("out_of_scale", "not_a_rating"),
}

ULTRAFEEDBACK = """\
#### Output for Text 1
Rating: 5
Rationale: It follows the instruction.

#### Output for Text 2
Rating: 3
Rationale: It leaves out the date.

#### Output for Text 3
Rating: N/A
Rationale: The text is empty.

#### Output for Text 4
Rating: 1
Rationale: It is about something else."""
"""The published form of an annotation."""
ITS_RATINGS = [5.0, 3.0, None, 1.0]


def test_the_published_form_is_read():
    assert read_ratings(ULTRAFEEDBACK, 4) == ITS_RATINGS


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here are my ratings.\n\n" + ULTRAFEEDBACK,
        ULTRAFEEDBACK.replace("Rating:", "**Rating:**"),
        ULTRAFEEDBACK.replace("Rating: ", "**Rating**: "),
        ULTRAFEEDBACK.replace("\n", "\r\n"),
        ULTRAFEEDBACK.replace("Rationale: ", "Rationale: First of all, the form.\n\nText 4 and Text 1 "),
        ULTRAFEEDBACK.replace("\n\n", "\n"),
        ULTRAFEEDBACK.replace("#### Output for Text", "Text"),
        ULTRAFEEDBACK.replace("#### Output for Text 1", "**Text 1:**"),
        ULTRAFEEDBACK.replace("Rating: 5", "- Rating: 5/5 (very good)"),
        ULTRAFEEDBACK.replace("Rating: 3", "Rating:\n3"),
        ULTRAFEEDBACK.replace("Rating: 3", "Rating: ３."),
        ULTRAFEEDBACK + "\n\nAll in all, text 1 is the best, with a rating of 5 against 1.",
        "<think>Text 1 gets a\nRating: 2\n</think>" + ULTRAFEEDBACK,
        ULTRAFEEDBACK + "\n\n" + ULTRAFEEDBACK,
    ],
    ids=[
        "intro line", "bold", "bold key", "CRLF", "two paragraphs of rationale", "no blank lines",
        "plain heads", "bold head", "of 5, with a remark", "on the next line", "full width",
        "closing words", "thoughts", "said twice",
    ],
)  # fmt: skip
def test_an_untidy_annotation_has_the_same_ratings(text):
    """S2: each of these shifts the ratings where paragraphs are counted."""
    assert read_ratings(text, 4) == ITS_RATINGS


def test_texts_out_of_order_keep_their_ratings():
    parts = ULTRAFEEDBACK.split("\n\n")
    assert read_ratings("\n\n".join(parts[::-1]), 4) == ITS_RATINGS


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("empty", " \n"),
        ("cut_off", "<think>\n" + ULTRAFEEDBACK),
        ("no_rating", "I'm sorry, but I can't rate these."),
        ("no_rating", ULTRAFEEDBACK.rpartition("\n\n")[0]),
        ("unknown_text", ULTRAFEEDBACK.replace("Text 4", "Text 5")),
        ("unknown_text", ULTRAFEEDBACK.replace("Text 1", "Text 0")),
        ("unknown_text", "Rating: 5\n\nRating: 3\n\nRating: 4\n\nRating: 1"),
        ("two_ratings", ULTRAFEEDBACK + "\nRating: 2"),
        ("two_ratings", ULTRAFEEDBACK.replace("Text 4", "Text 1")),
        ("two_ratings", ULTRAFEEDBACK + "\n\nText 3\nRating: 2"),
        ("not_a_rating", ULTRAFEEDBACK.replace("Rating: 5", "Rating: excellent")),
        ("not_a_rating", ULTRAFEEDBACK.replace("Rating: 5", "Rating: 4-5")),
        ("not_a_rating", ULTRAFEEDBACK.replace("Rating: 5", "Rating: 4 or 5")),
        ("not_a_rating", ULTRAFEEDBACK.replace("Rating: 5", "Rating:\n")),
        ("out_of_scale", ULTRAFEEDBACK.replace("Rating: 5", "Rating: 10")),
        ("out_of_scale", ULTRAFEEDBACK.replace("Rating: 5", "Rating: 0")),
        ("out_of_scale", ULTRAFEEDBACK.replace("Rating: 5", "Rating: -1")),
        ("out_of_scale", ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5/10")),
        ("out_of_scale", ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5.5")),
    ],
)
def test_what_cannot_be_read_is_unreadable_and_no_rating_of_1(reason, text):
    assert read_ratings(text, 4) == Unreadable(reason)


OTHER_SCALES = [
    ULTRAFEEDBACK.replace("Rating: 5", "Rating (1-10): 5"),
    ULTRAFEEDBACK.replace("Rating: 5", "Rating (out of 10): 5"),
    ULTRAFEEDBACK.replace("Rating: 5", "**Rating (/10):** 5"),
    ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5 (out of 10)"),
    ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5 (on a 7-point scale)"),
    ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5 - on a scale from 1 to 10"),
    ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5 (max. 10)"),
    "I rate on a scale of 1 to 10.\n" + ULTRAFEEDBACK,
    "Ratings (1-10):\n\n" + ULTRAFEEDBACK,
    "Scores range from 0 to 100.\n" + ULTRAFEEDBACK,
    "All ratings are out of 10.\n" + ULTRAFEEDBACK,
    ULTRAFEEDBACK + "\n(10-point scale)",
    ULTRAFEEDBACK + "\n(1-10 scale)",
]


@pytest.mark.parametrize("text", OTHER_SCALES, ids=range(len(OTHER_SCALES)))
def test_a_rating_on_another_scale_is_none(text):
    assert read_ratings(text, 4) == Unreadable("out_of_scale")


@pytest.mark.parametrize(
    "text",
    [
        ULTRAFEEDBACK.replace("Rating: 5", "Rating (1-5): 5").replace(
            "Rating: 3", "Rating (out of 5): 3"
        ),
        "On a scale from 1 to 5:\n" + ULTRAFEEDBACK,
        ULTRAFEEDBACK.replace("It leaves out the date.", "It has 2 out of 3 dates, on 10 pages."),
        ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5 (out of 5)"),
        ULTRAFEEDBACK.replace("Rating: 5", "Rating: 5 (gets 2 of 2 right)"),
    ],
    ids=range(5),
)
def test_our_scale_may_be_named_and_other_numbers_are_no_scale(text):
    assert read_ratings(text, 4) == ITS_RATINGS


def test_half_points_stay_and_na_is_no_number():
    text = ULTRAFEEDBACK.replace("Rating: 3", "Rating: 4.5").replace("Rating: 1", "Rating: n/a")
    assert read_ratings(text, 4) == [5.0, 4.5, None, None]


ratings = st.lists(st.sampled_from([None, 1.0, 2.0, 3.5, 4.5, 5.0]), min_size=1, max_size=6)
prose = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=40)


@given(given=ratings, reason=prose, order=st.randoms(use_true_random=False))
def test_what_is_written_is_read_whatever_the_reasons_say(given, reason, order):
    blocks = [
        f"Text {k}\nReason: {reason}\nRating: {'N/A' if rating is None else rating}"
        for k, rating in enumerate(given, start=1)
    ]
    order.shuffle(blocks)
    assert read_ratings("\n\n".join(blocks), len(given)) == given


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 4))
def test_any_text_gives_ratings_in_scale_or_a_known_reason(text, count):
    found = read_ratings(text, count)
    if isinstance(found, Unreadable):
        assert found.reason in KNOWN
    else:
        assert len(found) == count and all(r is None or 1 <= r <= 5 for r in found)


@given(st.randoms(use_true_random=False))
def test_what_the_embedded_model_was_taught_to_write_is_read(rng):
    made = make_rating(rng, clean=True)
    assert read_ratings(made.answer, len(made.right)) == [5.0 if r else 1.0 for r in made.right]


# ---- an object, as a server with structured output writes it


def rated(*ratings: object) -> str:
    texts = {f"text_{k}": {"reason": "r", "rating": r} for k, r in enumerate(ratings, start=1)}
    return json.dumps(texts)


@pytest.mark.parametrize(
    "text",
    [
        rated("5", "3", "N/A"),
        rated(5, 3.0, "n/a"),
        "```json\n" + rated("5", "3", "N/A") + "\n```",
        '{"text_3": {"rating": "N/A"}, "text_1": {"rating": "5"}, "text_2": {"rating": "3"}}',
        '{"Text 1": 5, "Text 2": 3, "Text 3": "N/A", "note": "Rating: 1"}',
    ],
    ids=["as asked", "numbers", "fence", "other order, no reasons", "plain"],
)
def test_ratings_in_an_object_are_read(text):
    assert read_ratings(text, 3) == [5.0, 3.0, None]


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("cut_off", rated("5", "3")[:-10]),
        ("broken_json", '{"text_1": {"rating": 5}, text_2}'),
        ("no_rating", rated("5")),
        ("no_rating", '{"text_1": {"rating": "5"}, "text_2": {"reason": "Rating: 3"}}'),
        ("unknown_text", rated("5", "3", "1")),
        ("out_of_scale", rated("5", "10")),
        ("out_of_scale", '{"text_1": {"rating": 4, "scale": 10}, "text_2": {"rating": 3}}'),
        ("out_of_scale", '{"text_1": {"rating": "4/10"}, "text_2": {"rating": 3}}'),
        ("cut_off", "<thinking>" + rated("5", "3")),
        ("not_a_rating", rated("5", True)),
        ("not_a_rating", rated("5", None)),
        ("not_a_rating", rated("5", [3])),
        ("two_ratings", '{"text_1": 5, "text_2": 3, "text_2": 4}'),
        ("two_ratings", '{"text_1": 5, "text_2": {"rating": 3, "rating": 4}}'),
    ],
)
def test_an_object_that_cannot_be_read_is_unreadable(reason, text):
    assert read_ratings(text, 2) == Unreadable(reason)


# ---- the ratings of one prompt's responses


def annotation(text: str | None, order: list[int], **other: object) -> Annotation:
    key = {"id": "p", "aspect": "honesty"}
    asked = {**key, "prompt": "Rate.", "order": order, "texts": len(order)}
    given = {"finish_reason": "stop", "model": "judge", "prompt_tokens": 1, "new_tokens": 1}
    return read_annotation(
        AnnotationPrompt.model_validate(asked),
        AnnotationAnswer.model_validate({**key, "text": text, **given, **other}) if text else None,
    )


def test_a_rating_is_the_response_s_whatever_the_order_shown():
    # shown: response 2 as text 1, 0 as text 2, 1 as text 3
    assert annotation(rated("5", "3", "N/A"), [2, 0, 1]).ratings == [3.0, None, 5.0]


def test_no_answer_is_missing_and_a_cut_one_is_not_read():
    assert annotation(None, [0, 1]).ratings == Unreadable("missing")
    cut = annotation("Text 1\nRating: 5\nText 2\nRating: 4", [0, 1], finish_reason="length")
    assert cut.ratings == Unreadable("cut_off")  # it may have been going to be 4.5


def test_means_are_of_the_first_annotations_and_of_enough_aspects():
    annotations = [
        Annotation("honesty", False, [0, 1, 2], [5.0, 1.0, None]),
        Annotation("honesty", True, [2, 1, 0], [1.0, 1.0, 1.0]),
        Annotation("wit", False, [0, 1, 2], [4.0, 2.5, 3.0]),
        Annotation("truth", False, [0, 1, 2], Unreadable("empty")),
    ]
    by_aspect = ratings_by_aspect(annotations, 3)
    nothing = [None, None, None]
    assert by_aspect == {"honesty": [5, 1, None], "wit": [4, 2.5, 3], "truth": nothing}
    assert mean_ratings(by_aspect, 2) == {0: 4.5, 1: 1.75}
    assert mean_ratings(by_aspect, 1) == {0: 4.5, 1: 1.75, 2: 3.0}


def test_a_rationale_may_speak_of_another_scale():
    said = "Rationale: It explains the pain scale of 1 to 10, a 10-point scale, correctly."
    assert read_ratings(f"Text 1\nRating: 4\n{said}\n\nText 2\nRating: 2\n{said}", 2) == [4, 2]
    asked = read_ratings(f"On a scale of 1 to 10.\nText 1\nRating: 4\n{said}", 1)
    assert asked == Unreadable("out_of_scale")
