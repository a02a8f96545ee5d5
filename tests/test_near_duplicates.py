"""Near duplicates: questions and documents, against all shingles of both texts compared the slow way."""

import random
import re
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefpipe.near_duplicates import EarlierDocuments, NearDuplicates
from prefpipe.rag.documents import to_documents
from prefpipe.rows import Document, Entry
from prefpipe.shingles import jaccard, shingles

# ---- questions


def slow_shingles(text: str) -> set[str]:
    plain = "".join(c if c.isalnum() else " " for c in text.casefold())
    words = re.sub("([\u0800-\uffff])", r" \1 ", plain).split()
    return {" ".join(words[k : k + 5]) for k in range(max(1, len(words) - 4))}


def exact_jaccard(first: str, second: str) -> float:
    a, b = slow_shingles(first), slow_shingles(second)
    return len(a & b) / len(a | b)


def changed(text: str, share: float, rng: random.Random) -> str:
    return " ".join("changed" if rng.random() < share else word for word in text.split())


def random_text(words: int, rng: random.Random) -> str:
    return " ".join("".join(rng.choices("abcdefgh", k=rng.randrange(1, 9))) for _ in range(words))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.1, 0.5]))
def test_the_similarity_of_shorter_texts_is_exact(seed, share):
    rng = random.Random(seed)
    first = random_text(rng.randrange(1, 120), rng)
    second = changed(first, share, rng)
    assert len(slow_shingles(first) | slow_shingles(second)) <= 256
    found = jaccard(shingles(first), shingles(second))
    assert found == pytest.approx(exact_jaccard(first, second), abs=1e-12)


def test_the_similarity_of_long_texts_is_near_the_exact_one():
    rng = random.Random(0)
    errors = []
    for words, share in [(n, s) for n in (300, 1000, 3000) for s in (0.01, 0.03, 0.1, 0.3)]:
        first = random_text(words, rng)
        second = changed(first, share, rng)
        found = jaccard(shingles(first), shingles(second))
        errors.append(found - exact_jaccard(first, second))
        assert len(shingles(first)) == 256
    assert max(map(abs, errors)) < 4 * 0.031 and abs(np.mean(errors)) < 0.02


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_a_question_is_a_near_duplicate_from_the_threshold_on(seed):
    rng = random.Random(seed)
    held_out = [random_text(rng.randrange(1, 12), rng) for _ in range(5)]
    asked = changed(rng.choice(held_out), rng.choice([0.0, 0.03, 0.1, 0.5]), rng)
    closest = max(exact_jaccard(asked, text) for text in held_out)
    if closest > 0:
        assert asked in NearDuplicates(held_out, threshold=closest)
    if closest < 1:
        assert asked not in NearDuplicates(held_out, threshold=min(1, closest + 1e-9))


def test_near_duplicates_are_those_whose_shingles_say_so_and_no_others():
    """Every text against every held-out one, the slow way: short ones at five thresholds."""
    rng = random.Random(1)
    held_out = [random_text(rng.randrange(1, 13), rng) for _ in range(30)]
    asked = [changed(text, share, rng) for text in held_out for share in (0, 0.02, 0.05, 0.1, 0.2)]
    asked += [random_text(9, rng) for _ in range(10)]
    closest = [max(exact_jaccard(text, other) for other in held_out) for text in asked]
    assert len({round(value, 2) for value in closest}) > 12
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.95):
        duplicates = NearDuplicates(held_out, threshold)
        assert [text in duplicates for text in asked] == [v >= threshold for v in closest]


def test_a_lookup_finds_what_comparing_all_sketches_finds():
    rng = random.Random(2)
    held_out = [random_text(400, rng) for _ in range(20)]
    asked = [changed(text, share, rng) for text in held_out for share in (0, 0.01, 0.02, 0.03, 0.1)]
    for threshold in (0.5, 0.8):
        duplicates = NearDuplicates(held_out, threshold)
        sketches = [shingles(text) for text in held_out]
        found = [
            max(jaccard(shingles(text), other) for other in sketches) >= threshold for text in asked
        ]
        assert [text in duplicates for text in asked] == found and 10 < sum(found) < 95


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([17, 60]))
def test_what_many_share_is_left_out_of_the_comparison(seed, common):
    """All against all the slow way, on sets of shingles: those of more than 16 texts do not count."""
    rng = random.Random(seed)
    beginning = random_text(common, rng)
    held_out = [f"{beginning} {random_text(rng.randrange(6, 60), rng)}" for _ in range(40)]
    asked = [f"{beginning} {random_text(rng.randrange(6, 60), rng)}" for _ in range(20)]
    asked += [
        f"{beginning} {changed(text[len(beginning) :], share, rng)}"
        for text in held_out[:30]
        for share in (0, 0.02, 0.05, 0.1)
    ]
    counts = Counter(shingle for text in held_out for shingle in slow_shingles(text))
    many = {shingle for shingle, count in counts.items() if count > 16}

    def similarity(one: str, other: str) -> float:
        a, b = slow_shingles(one) - many, slow_shingles(other) - many
        return len(a & b) / len(a | b)

    closest = [max(similarity(text, other) for other in held_out) for text in asked]
    for threshold in (0.5, 0.8):
        found = NearDuplicates(held_out, threshold).find(asked)
        assert found == [value >= threshold for value in closest]


def test_long_questions_behind_one_beginning_are_compared_by_their_own_words():
    rng = random.Random(4)
    beginning = random_text(300, rng)
    held_out = [f"{beginning} {random_text(rng.randrange(20, 200), rng)}" for _ in range(60)]
    duplicates = NearDuplicates(held_out)
    others = [f"{beginning} {random_text(rng.randrange(5, 200), rng)}" for _ in range(60)]
    assert not any(duplicates.find(others))
    assert all(duplicates.find(held_out)) and all(duplicates.find([t + " so" for t in held_out]))
    assert not any(duplicates.find([changed(text, 0.3, rng) for text in held_out]))


def test_a_question_that_is_given_many_times_is_still_found():
    rng = random.Random(5)
    often = random_text(30, rng)
    duplicates = NearDuplicates([*[often] * 40, *(random_text(30, rng) for _ in range(40))])
    assert often in duplicates and often + " now" in duplicates
    assert random_text(30, rng) not in duplicates


def test_questions_with_one_beginning_cost_no_more_the_more_they_are():
    rng = random.Random(3)
    beginning = random_text(300, rng)

    def seconds(count: int) -> float:
        texts = [f"{beginning} {random_text(60, rng)}" for _ in range(2 * count)]
        started = time.process_time()
        NearDuplicates(texts[:count]).find(texts[count:])
        return time.process_time() - started

    seconds(100)
    assert seconds(2000) < 8 * seconds(500) + 0.2  # four times as many; comparing all takes 16


def test_equal_questions_are_duplicates_at_any_threshold_and_others_are_none():
    duplicates = NearDuplicates(["What is 2 + 2?", "怎么样?"], threshold=1.0)
    assert "what is  2+2" in duplicates and "怎么样" in duplicates
    assert "What is 2 + 3?" not in duplicates
    assert "anything" not in NearDuplicates([])


def odd_text(rng: random.Random) -> str:
    """Without a word, short, not ASCII, repeating itself, or long."""
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(rng.choices(" .?!🙂\n_", k=rng.randrange(6)))
    if kind == 1:
        return "".join(rng.choices("aBc 1.?!\t-_'", k=rng.randrange(60)))
    if kind == 2:
        return "".join(rng.choices("aÄß 中文Ａé\u00a0.", k=rng.randrange(800)))
    if kind == 3:
        return f"the same phrase {rng.randrange(9)} again and again " * rng.randrange(1, 150)
    return random_text(rng.randrange(1, 700), rng)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_found_of_a_question_does_not_depend_on_its_block(seed):
    rng = random.Random(seed)
    texts = [odd_text(rng) for _ in range(rng.randrange(1, 90))]
    asked = [*texts, *(text + " and one more" for text in texts[::3]), *(t[7:] for t in texts[::3])]
    rng.shuffle(asked)
    for threshold in (0.3, 0.8, 1.0):
        duplicates = NearDuplicates(texts[::3], threshold)
        assert duplicates.find(asked) == [text in duplicates for text in asked]
    assert NearDuplicates(texts).find([]) == []


# ---- documents


def document(text: str, id: str = "d") -> Document:
    return to_documents(Entry(id=id, query="q", code=text, description="", keywords=[]))[0]


def test_equal_and_nearly_equal_documents_are_found_and_different_ones_are_not():
    words = " ".join(f"word{i}" for i in range(300))
    seen = EarlierDocuments(near=0.9)
    assert seen.find(document(words, "a")) is None
    assert seen.find(document(words, "b")) == ("equal", "a")
    assert seen.find(document(words.replace("word7 ", "WORD-7,  "), "c")) == ("nearly_equal", "a")
    assert seen.find(document(words.replace("word150 ", "other "), "d")) == ("nearly_equal", "a")
    half = " ".join(f"word{i}" for i in range(150)) + " and ".join(str(i) for i in range(150))
    assert seen.find(document(half, "e")) is None
    only_equal = EarlierDocuments(near=None)
    assert only_equal.find(document(words, "a")) is None
    assert only_equal.find(document(words.upper(), "b")) is None


def test_a_header_that_many_share_hides_no_near_duplicate():
    header = " ".join(f"licence{i}" for i in range(60))
    texts = [header + "".join(f" d{n}word{i}" for i in range(60)) for n in range(40)]
    seen = EarlierDocuments(near=0.9)
    assert [seen.find(document(text, str(n))) for n, text in enumerate(texts)] == [None] * 40
    for n in (0, 7, 20, 39):
        near = document(texts[n] + "!", f"near {n}")
        assert seen.find(near) == ("nearly_equal", str(n))


def test_a_document_costs_little_memory_however_long_it_is():
    texts = [" ".join(f"d{n}word{i}" for i in range(600)) for n in range(400)]
    seen = EarlierDocuments(near=0.95)
    seen.find(document("what is imported and cached at the first call " * 400))
    tracemalloc.start()
    for n, text in enumerate(texts):
        seen.find(document(text, str(n)))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown / len(texts) < 1500  # bytes; 32 hashes are 256 of them
