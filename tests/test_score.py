"""The score of an answer: by hand, and what must hold for every answer."""

import keyword
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.rag.score import (
    ScoreRules,
    extract_keywords,
    keyword_coverage,
    length_penalty,
    pick_extremes,
    says_more,
    score_abstention,
    score_answer,
    split_names,
    stop_words,
)

RULES = ScoreRules(
    weight_grounding=0.7,
    weight_keywords=0.3,
    weight_length=0.05,
    free_characters=10,
    full_characters=30,
    abstentions=(),
)
cosines = st.floats(-1, 1)
texts = st.text(st.sampled_from("ab lost keys 不知。"), max_size=60)


def test_a_score_is_what_the_formula_gives_by_hand():
    # 20 characters: half way from 10 to 30. Two of four keywords.
    score = score_answer("read_line and a FILE", 0.5, ["read", "file", "close", "open"], RULES)
    assert (score["grounding"], score["keyword_coverage"], score["length_penalty"]) == (
        0.5,
        0.5,
        0.5,
    )
    assert score["score"] == pytest.approx(0.7 * 0.5 + 0.3 * 0.5 - 0.05 * 0.5)  # 0.475
    assert not score["is_abstention"]


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0), (10, 0), (11, 0.05), (20, 0.5), (30, 1), (3000, 1)]
)
def test_the_length_penalty_rises_evenly_between_its_two_lengths(length, penalty):
    assert length_penalty("x" * length, RULES) == pytest.approx(penalty)


@given(texts, cosines, cosines)
def test_more_grounding_never_lowers_a_score(text, one, other):
    low, high = sorted((one, other))
    assert (
        score_answer(text, low, ["keys"], RULES)["score"]
        <= score_answer(text, high, ["keys"], RULES)["score"]
    )


@given(texts, cosines)
def test_a_mentioned_keyword_never_lowers_a_score(text, cosine):
    free = replace(RULES, free_characters=10**6, full_characters=10**6 + 1)
    with_it = score_answer(f"{text} keys", cosine, ["keys", "lost"], free)
    assert with_it["score"] >= score_answer(text, cosine, ["keys", "lost"], free)["score"]


@given(texts, cosines)
def test_a_longer_text_with_the_same_words_is_never_scored_higher(text, cosine):
    longer = score_answer(f"{text}{' ...' * 9}", cosine, ["keys"], RULES)
    assert longer["score"] <= score_answer(text, cosine, ["keys"], RULES)["score"]


def test_a_weight_counts_its_part_and_no_other():
    """Each weight alone: the score is its part, or for the length minus it."""
    parts = {"weight_grounding": "grounding", "weight_keywords": "keyword_coverage"}
    none = {name: 0.0 for name in (*parts, "weight_length")}
    for weight, part in {**parts, "weight_length": "length_penalty"}.items():
        rules = replace(RULES, **none | {weight: 1.0})
        score = score_answer("read_line and a FILE", 0.25, ["read", "file", "close"], rules)
        assert abs(score["score"]) == score[part] > 0
        assert (score["score"] < 0) == (weight == "weight_length")
        abstention = score_answer("I don't know", 0.25, [], rules)
        assert abstention["score"] == (-1 if weight == "weight_length" else 0)
        assert abstention["length_penalty"] == 1 and abstention["grounding"] == 0


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), texts, st.booleans(), st.booleans()),
        min_size=2,
        unique_by=lambda x: x[1],
    ),
    st.randoms(),
)
def test_the_order_of_candidates_changes_neither_best_nor_worst(candidates, random):
    def extremes(rows):
        scores, words, may_win, may_lose = zip(*rows, strict=True)
        best_worst = pick_extremes(scores, words, may_win, may_lose)
        return best_worst and (words[best_worst[0]], words[best_worst[1]])

    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert extremes(shuffled) == extremes(candidates)


@given(st.lists(st.tuples(st.floats(-1, 1), st.booleans(), st.booleans()), min_size=2))
def test_the_best_may_win_and_no_other_that_may_lose_is_worse_than_the_worst(rows):
    scores, may_win, may_lose = (list(column) for column in zip(*rows, strict=True))
    extremes = pick_extremes(scores, [str(i) for i in range(len(rows))], may_win, may_lose)
    if extremes is None:
        losers = [i for i, allowed in enumerate(may_lose) if allowed]
        winners = [i for i, allowed in enumerate(may_win) if allowed]
        top = max((scores[i] for i in winners), default=0)
        assert not winners or not losers or (len(losers) == 1 and scores[losers[0]] == top)
        return
    best, worst = extremes
    assert best != worst
    assert may_win[best] and may_lose[worst]
    assert scores[best] == max(score for score, allowed, _ in rows if allowed)
    others = [row for i, row in enumerate(rows) if i != best]
    assert scores[worst] == min(score for score, _, allowed in others if allowed)


def test_equal_scores_do_not_make_one_text_both_best_and_worst():
    assert pick_extremes([0.5, 0.5, 0.5], ["b", "a", "c"], [True] * 3, [True] * 3) == (2, 1)


@given(texts, cosines)
def test_where_the_context_answers_no_answer_is_scored_below_an_abstention(text, cosine):
    abstention = score_answer("I don't know.", 0.9, ["keys"], RULES)
    assert abstention["is_abstention"]
    assert abstention["score"] == pytest.approx(-0.05)  # 0.7 * 0 + 0.3 * 0 - 0.05 * 1
    answer = score_answer(text, cosine, ["keys"], RULES)
    assert answer["score"] >= abstention["score"] - 1e-9


@given(texts, cosines)
def test_where_the_context_does_not_answer_nothing_is_scored_above_an_abstention(text, cosine):
    abstention = score_answer("I don’t know", -0.2, ["keys"], RULES, worth=1)
    assert abstention["score"] == pytest.approx(1.0)  # 0.7 * 1 + 0.3 * 1 - 0.05 * 0
    assert score_answer(text, cosine, ["keys"], RULES, worth=1)["score"] <= 1.0


def test_an_abstention_is_scored_between_by_its_worth():
    """0.7 * 0.4 + 0.3 * 0.4 - 0.05 * 0.6 = 0.37, by hand."""
    abstention = score_answer("I don't know.", 0.9, ["keys"], RULES, worth=0.4)
    assert abstention["score"] == pytest.approx(0.37) == score_abstention(RULES, 0.4)
    assert (abstention["grounding"], abstention["length_penalty"]) == (0.4, 0.6)
    for worth in (0.0, 1.0):
        whole = score_answer("I don't know.", 0.9, [], RULES, worth=worth)
        assert whole["score"] == pytest.approx(score_abstention(RULES, worth))


def test_an_abstention_with_equal_score_does_not_win_over_an_answer():
    texts, both = ["zzz I don't know", "aaa"], [True, True]
    assert pick_extremes([-0.05, -0.05], texts, [False, True], both) == (1, 0)
    assert pick_extremes([0.4, 0.3], texts, [False, False], both) is None
    assert pick_extremes([0.4, 0.3], texts, both, [True, False]) is None
    assert pick_extremes([0.2, 0.3], texts, both, [True, False]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("readLine read_line READ-LINE", ["read", "line"] * 3),
        ("HTTPServer2go", ["http", "server", "2", "go"]),
        ("Étude, naïve", ["étude", "naïve"]),
        ("列表 list", ["列", "表", "list"]),
    ],
)
def test_identifiers_are_split_into_words(text, words):
    assert split_names(text) == words


def test_keywords_are_the_querys_words_that_the_context_has_then_its_frequent_ones():
    context = "def parse_header(line): ''' Parse the header. ''' return line, header, 12, x"
    keywords = extract_keywords("How do I parse a mail header?", context, 3)
    assert keywords == ["parse", "header", "line"]  # mail is not in the context; def, x, 12 never
    assert extract_keywords("the", "of and", 3) == []


def test_coverage_counts_keywords_however_they_are_written():
    assert keyword_coverage("It calls readLine(f).", ["read_line", "f", "line f", "close"]) == 3 / 4
    assert keyword_coverage("bread", ["read"]) == 0
    assert keyword_coverage("用列表", ["列表", "字典"]) == 1 / 2
    assert keyword_coverage("anything", []) == 0


@given(texts, st.lists(texts, max_size=4))
def test_coverage_is_a_share(text, keywords):
    assert 0 <= keyword_coverage(text, keywords) <= 1
    assert not math.isnan(keyword_coverage(text, keywords))


def test_stop_words_are_pythons_keywords_common_words_and_what_every_docstring_says():
    assert {word.casefold() for word in keyword.kwlist} <= stop_words()
    assert {"the", "whether", "self", "args", "returns", "的"} <= stop_words()
    assert (
        not {"parse", "file", "index", "列", "call", "name", "find", "first", "empty"}
        & stop_words()
    )


def test_the_list_of_words_is_loaded_at_its_first_use():
    code = "import sys, prefpipe.rag.score; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answer_that_repeats_the_question_says_no_more():
    context = "def remove_legend(ax): Remove the legend of the axes."
    query = "python remove legend once plotted"
    assert not says_more("Remove legend once plotted.", query, context)
    assert not says_more("Python: remove the legend of axes from a plot of lines", query, context)
    assert says_more("remove_legend(ax) takes it from the axes of a plot of lines", query, context)
    assert says_more("The axes.", query, context)  # one, which is all that it says
    assert says_more("Whatever.", "remove legend", "Remove legend")  # there is no more to say
    assert not says_more("Whatever.", "remove", "Remove legend")
