"""A query's answers to a pair: what the judge's verdicts count, and who wins."""

import random
from dataclasses import replace
from itertools import combinations
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.rag.pairs import (
    AnsweredQuery,
    PairRules,
    ScoredQuery,
    abstention_worth,
    build_pair,
    distinct,
    draw_other,
    keywords_of,
    measure_cosines,
    score_candidates,
)
from prefpipe.rag.store import VectorStore
from prefpipe.rows import Completion, Entry, RagPair, Reject, Retrieved
from tests.rag_helpers import WordEmbedder, build_store

RULES = PairRules(
    weight_grounding=0.7,
    weight_keywords=0.3,
    weight_length=0.05,
    free_characters=600,
    full_characters=1800,
    abstentions=(),
    answer_threshold=0.0,
    sure_threshold=0.4,
    keywords=[],
    max_keywords=8,
    min_margin=0.0,
    scorer="heuristic",
    seed=2021,
    num_candidates=4,
    write_candidates=False,
)


def answer(text: str, sample: int, finish_reason: Literal["stop", "length"] = "stop") -> Completion:
    return Completion(
        id="q",
        sample=sample,
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=1,
        new_tokens=1,
    )


def query(
    candidates: list[Completion], keywords=(), verdicts=None, context="ab b"
) -> AnsweredQuery:
    entry = Entry(id="q", query="ab", code="", description="", keywords=list(keywords))
    retrieved = Retrieved(
        id="q", document_ids=["d"], store_rows=[0], scores=[0.5], context=context, is_cut=False
    )
    return AnsweredQuery(entry, retrieved, "the prompt", candidates, verdicts)


def pair_of(
    answered: AnsweredQuery, cosines, rules=RULES, worth=0.0, random_cosine=None
) -> RagPair | Reject:
    parts = score_candidates(answered, cosines, rules, worth)
    return build_pair(ScoredQuery(answered, parts, worth, random_cosine, 1), rules)


def test_of_equal_answers_the_first_stays_and_an_empty_one_goes():
    answers = [answer(text, k) for k, text in enumerate((" b\n", "a  b", "", "a b ", "b"))]
    assert [(c.text, c.sample) for c in distinct(answers)] == [("b", 0), ("a  b", 1)]


@given(
    st.lists(st.text(st.sampled_from("ab \n"), max_size=6), min_size=2, max_size=6),
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    st.floats(0, 1),
)
def test_chosen_never_equals_rejected_and_never_scores_less(texts, cosines, worth):
    answered = query(distinct([answer(text, k) for k, text in enumerate(texts)]))
    scored = score_candidates(answered, cosines[: len(answered.candidates)], RULES, worth)
    pair = build_pair(ScoredQuery(answered, scored, worth, None, 1), RULES)
    if isinstance(pair, Reject):
        abstaining = 1.0 * worth - 0.05 * (1 - worth)
        assert len(answered.candidates) < 2 or not any(
            part["grounding"] > 0 and part["score"] > abstaining - 1e-6 for part in scored
        )
        return
    chosen, rejected = (str(side[0]["content"]) for side in (pair.chosen, pair.rejected))  # pyright: ignore[reportArgumentType]
    assert chosen.split() != rejected.split()
    assert pair.margin == pytest.approx(
        pair.chosen_parts["score"] - pair.rejected_parts["score"], abs=1e-6
    )
    assert pair.chosen_parts["score"] == max(parts["score"] for parts in scored)
    assert pair.rejected_parts["score"] == min(parts["score"] for parts in scored)


def test_an_answer_that_was_cut_is_rejected_at_most_and_never_chosen():
    candidates = [answer("ab ab", 0, "length"), answer("ab", 1), answer("b", 2)]
    answered = query(candidates, keywords=["ab"])
    best_is_cut = pair_of(answered, [0.9, 0.6, 0.3])
    assert isinstance(best_is_cut, RagPair)
    assert (best_is_cut.chosen_sample, best_is_cut.rejected_sample) == (1, 2)
    worst_is_cut = pair_of(answered, [-0.9, 0.6, 0.9])
    assert isinstance(worst_is_cut, RagPair)
    # 0.7 * 0.6 + 0.3 = 0.72 against 0.7 * 0 + 0.3 = 0.3; the third has 0.7 * 0.9 + 0 = 0.63
    assert (worst_is_cut.chosen_sample, worst_is_cut.rejected_sample) == (1, 0)


def test_a_judges_score_is_won_minus_lost_of_all_comparisons():
    candidates = [answer(text, k) for k, text in enumerate("abc")]
    # a beats b in both orders, a against c is split, of b against c one is unreadable and c wins one
    verdicts = [(1, 1), (1, 2), (None, 2)]
    assert query(candidates, verdicts=verdicts).judge_scores() == [0.5, -0.75, 0.25]
    assert query(candidates).judge_scores() == [None, None, None]
    by_judge = pair_of(
        query(candidates, verdicts=verdicts), [0.1, 0.9, 0.5], replace(RULES, scorer="judge")
    )
    assert isinstance(by_judge, RagPair) and by_judge.margin == 1.25
    assert (by_judge.chosen_sample, by_judge.rejected_sample) == (0, 1)
    both = pair_of(
        query(candidates, verdicts=verdicts), [0.1, 0.9, 0.5], replace(RULES, scorer="both")
    )
    assert isinstance(both, Reject) and both.reason == "judge_disagrees"


def test_each_two_answers_are_shown_in_both_orders_under_the_ids_of_their_samples():
    showings = list(query([answer("one", 0), answer("two", 3)]).showings())
    assert [showing.id for showing in showings] == ["q\t0\t3", "q\t3\t0"]
    for showing, first, second in zip(showings, ("one", "two"), ("two", "one"), strict=True):
        assert showing.prompt.index(f"\n{first}") < showing.prompt.index(f"\n{second}")
        assert "the prompt" in showing.prompt


def test_the_rows_keywords_come_before_those_of_the_settings():
    rules = replace(RULES, keywords=["gamma"])
    assert keywords_of(query([], keywords=["alpha"]), rules) == ["alpha"]
    assert keywords_of(query([]), rules) == ["gamma"]
    assert keywords_of(query([]), RULES) == ["ab"]


@given(st.integers(1, 12), st.data())
def test_a_random_document_is_any_but_the_retrieved_ones(count, data):
    retrieved = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    others = set(range(count)) - set(retrieved)
    drawn = {draw_other(count, retrieved, random.Random(seed)) for seed in range(200)}
    assert drawn == (others or {None})


def test_an_answer_about_the_last_of_a_long_context_is_grounded_there(tmp_path):
    """50 words fit into the embedder's window: the cosine with the nearest window, by hand."""
    embedder = WordEmbedder()
    store = VectorStore.open(build_store(tmp_path), embedder)
    long = " ".join(f"filler{k}" for k in range(50))
    answers = [answer("the gate is blue", 0), answer(" ".join([long, "the gate is blue"]), 1)]
    asked = query(answers, context=f"{long} the gate is blue")
    ((own, other, windows),) = measure_cosines([asked], store, embedder, seed=0)
    first, last = embedder.embed([long, "the gate is blue"], "document")
    assert windows == 2 and own == pytest.approx([1.0, 1.0], abs=1e-6)
    assert other is not None and abs(float(first @ last)) < 0.9


def test_the_worth_of_an_abstention_falls_with_the_retrieval_score():
    """Typical cosine 0.2: 0.36 is 0.2 of the way to 1, 0.6 half, 0.84 0.8 of it."""
    rules = replace(RULES, answer_threshold=0.2, sure_threshold=0.8)
    worths = [abstention_worth(score, 0.2, rules) for score in (-0.3, 0.36, 0.6, 0.84, 1.0)]
    assert worths == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert abstention_worth(0.6, 0.6, rules) == 1.0  # an embedding whose cosines are all high
    assert abstention_worth(1.0, 1.0, rules) == 1.0


def test_an_abstention_wins_or_loses_by_whether_the_context_rather_answers():
    candidates = [answer("I don't know.", 0), answer("ab ab", 1), answer("b", 2)]
    answered = query(candidates, keywords=["ab"])
    likely = pair_of(answered, [0.0, 0.7, 0.5], worth=0.2)
    assert isinstance(likely, RagPair) and likely.is_answerable
    # 0.7 * 0.2 + 0.3 * 0.2 - 0.05 * 0.8 = 0.16 under 0.7 * 0.5
    assert (likely.chosen_sample, likely.rejected_sample) == (1, 0)
    # it is not rejected where that is less sure: worth 0.4
    perhaps = pair_of(answered, [0.0, 0.9, 0.6], worth=0.4)
    assert isinstance(perhaps, RagPair) and perhaps.is_answerable
    assert (perhaps.chosen_sample, perhaps.rejected_sample) == (1, 2)
    # an abstention is no worse than others here, whatever it is worth
    rather_not = pair_of(answered, [0.0, 0.9, 0.6], worth=0.6)
    assert isinstance(rather_not, RagPair) and not rather_not.is_answerable
    assert (rather_not.chosen_sample, rather_not.rejected_sample) == (1, 2)
    unlikely = pair_of(answered, [0.0, 0.7, 0.5], worth=0.9)
    assert isinstance(unlikely, RagPair)
    assert (unlikely.chosen_sample, unlikely.rejected_sample) == (0, 2)


def test_no_answer_is_chosen_that_is_no_better_than_a_random_document_or_than_abstaining():
    answered = query([answer("ab ab", 0), answer("b", 1)], keywords=["ab"])
    assert isinstance(pair_of(answered, [0.3, 0.1], random_cosine=0.29), RagPair)
    by_chance = pair_of(answered, [0.3, 0.1], random_cosine=0.31)
    assert isinstance(by_chance, Reject) and by_chance.reason == "no_winner"
    # 0.7 * 0.3 + 0.3 = 0.51; abstaining of worth 0.6: 0.6 - 0.05 * 0.4 = 0.58, and nobody did
    worse = pair_of(answered, [0.3, 0.1], worth=0.6)
    assert isinstance(worse, Reject) and worse.reason == "no_winner"


def test_the_typical_cosine_of_a_store_is_that_of_all_its_pairs(tmp_path, monkeypatch):
    store = VectorStore.open(build_store(tmp_path), WordEmbedder())
    assert store.typical_cosine == 0  # of five documents nothing is said
    monkeypatch.setattr("prefpipe.rag.store.FEWEST", 2)
    store = VectorStore.open(store.folder, WordEmbedder())
    vectors = store.vectors(range(len(store)))
    own = [float(a @ b) for a, b in combinations(vectors, 2)]
    assert store.typical_cosine == pytest.approx(sum(own) / len(own), abs=1e-4)
