"""pairing: where the better answer stands, which side of the split a question is on, who meets whom."""

import hashlib
import random
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefpipe import pairing
from prefpipe.files import DataError
from prefpipe.pairing import NearDuplicates, build_item, build_judgment_pairs, shingles, swap
from prefpipe.rows import CleanJudgment, Item, Message, Preference, Reject, Variant
from prefpipe.verdicts import parse_verdict
from tests.examples import item, judgment, says

LIMITS = {"max_best_of_n": 3, "max_unreadable": 1, "max_hint": 1, "seed": 0}


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


def test_j6_the_turns_of_a_conversation_are_in_the_question_and_in_the_prompt():
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
        ({"chosen": "a  b\n", "rejected": "a b"}, "identical_answers"),
    ],
)
def test_what_cannot_be_judged_is_left_out_by_reason(changes, reason):
    made = build_item(preference(**changes), split="train", seed=0)
    assert made == Reject(id="a", reason=reason)


def test_a_chinese_question_gets_the_chinese_prompt():
    made = built(preference(prompt="2加2等于几?"))
    assert made.language == "zh" and made.prompt.startswith("[问题]\n2加2等于几?")


@given(st.text(), st.text(), st.sampled_from([1, 2, None]), st.sampled_from(["en", "zh"]))
def test_swapping_twice_is_the_item_and_once_turns_the_verdict(first, second, better, language):
    made = item("a", better=better, answer_1=first, answer_2=second, language=language)
    swapped = swap(made)
    assert swap(swapped) == made
    assert (swapped.answer_1, swapped.answer_2) == (second, first)
    assert swapped.better == {1: 2, 2: 1, None: None}[better]
    assert swapped == item(
        "a", better=swapped.better, answer_1=second, answer_2=first, language=language
    )


def test_an_item_of_another_template_is_not_swapped_in_this_one(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }}|{{ answer_1 }}|{{ answer_2 }}")
    mine = build_item(preference(), split="train", seed=0, template=str(path))
    assert isinstance(mine, Item)
    assert swap(mine, template=str(path)).prompt == f"Q?|{mine.answer_2}|{mine.answer_1}"
    with pytest.raises(DataError, match="item 'a': its prompt is not the template's; give --temp"):
        swap(mine)


# ---- the split


def test_j8_all_rows_of_a_question_are_on_one_side():
    options = {"validation_share": 0.3, "seed": 0}
    questions = [f"What is {k} + {k}?" for k in range(3000)]
    sides = [pairing.split_of(q, **options) for q in questions]
    assert [pairing.split_of(f" what IS  {k} + {k} ?!", **options) for k in range(3000)] == sides
    assert abs(sides.count("validation") - 900) < 4 * (3000 * 0.21) ** 0.5
    assert [pairing.split_of(q, validation_share=0.3, seed=1) for q in questions] != sides
    larger = [pairing.split_of(q, validation_share=0.5, seed=0) for q in questions]
    moved = Counter(zip(sides, larger, strict=True))
    assert moved["validation", "train"] == 0  # a larger share only adds


def test_questions_without_a_word_are_not_all_the_same():
    keys = {pairing.question_key(question) for question in ("🙂", "🙃", "?", "!", "", "c", "c++")}
    assert len(keys) == 6  # "c" and "c++" differ in punctuation only
    assert "🙃" not in NearDuplicates(["🙂", "?"]) and "🙂" in NearDuplicates(["🙂", "?"])


# ---- near duplicates, against all windows of both texts compared the slow way


def windows(text: str) -> set[bytes]:
    plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split()).encode()
    return {plain[k : k + 24] for k in range(max(1, len(plain) - 23))}


def exact_jaccard(first: str, second: str) -> float:
    a, b = windows(first), windows(second)
    return len(a & b) / len(a | b)


def changed(text: str, share: float, rng: random.Random) -> str:
    return " ".join("changed" if rng.random() < share else word for word in text.split())


def random_text(words: int, rng: random.Random) -> str:
    return " ".join("".join(rng.choices("abcdefgh", k=rng.randrange(1, 9))) for _ in range(words))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.1, 0.5]))
def test_the_similarity_of_shorter_texts_is_exact(seed, share):
    rng = random.Random(seed)
    first = random_text(rng.randrange(1, 12), rng)
    second = changed(first, share, rng)
    assert len(windows(first) | windows(second)) <= 256
    found = pairing.jaccard(shingles(first), shingles(second))
    assert found == pytest.approx(exact_jaccard(first, second), abs=1e-12)


def test_the_similarity_of_long_texts_is_near_the_exact_one():
    rng = random.Random(0)
    errors = []
    for words, share in [(n, s) for n in (300, 1000, 3000) for s in (0.01, 0.03, 0.1, 0.3)]:
        first = random_text(words, rng)
        second = changed(first, share, rng)
        found = pairing.jaccard(shingles(first), shingles(second))
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


def test_near_duplicates_are_those_whose_windows_say_so_and_no_others():
    """Every text against every held-out one, the slow way: short ones at five thresholds."""
    rng = random.Random(1)
    held_out = [random_text(rng.randrange(1, 13), rng) for _ in range(30)]
    asked = [changed(text, share, rng) for text in held_out for share in (0, 0.02, 0.05, 0.1, 0.2)]
    asked += [random_text(9, rng) for _ in range(10)]
    closest = [max(exact_jaccard(text, other) for other in held_out) for text in asked]
    assert len({round(value, 2) for value in closest}) > 15
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
            max(pairing.jaccard(shingles(text), other) for other in sketches) >= threshold
            for text in asked
        ]
        assert [text in duplicates for text in asked] == found and 10 < sum(found) < 95


@given(st.text(st.characters(max_codepoint=300)))
def test_a_question_is_its_words_in_lower_case(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    slow = re.sub(r"[\W_]+", " ", folded).strip() or folded.strip()
    wanted = hashlib.blake2b(slow.encode(), digest_size=12).hexdigest()
    assert pairing.question_key(text) == wanted


def test_equal_questions_are_duplicates_at_any_threshold_and_others_are_none():
    duplicates = NearDuplicates(["What is 2 + 2?", "怎么样?"], threshold=1.0)
    assert "what is  2+2" in duplicates and "怎么样" in duplicates
    assert "What is 2 + 3?" not in duplicates
    assert "anything" not in NearDuplicates([])


# ---- judgments against each other


def cleaned(row, verdict: int | None, *, index: int = 0) -> CleanJudgment:
    read = {
        "index": index,
        "judgment": row.text if verdict else None,
        "verdict": verdict,
        "unreadable": None if verdict else "no_json",
    }
    return CleanJudgment.model_validate(row.model_dump() | read)


def sampled(*verdicts: int | None, reason: str = "r") -> list[CleanJudgment]:
    """Samples 0, 1, ... of item a with these verdicts; each text is another."""
    return [
        cleaned(judgment("a", k, says(v, f"{reason}{k}") if v else f"unreadable {k}"), v)
        for k, v in enumerate(verdicts)
    ]


def told(right: int | None, wrong: int | None) -> list[CleanJudgment]:
    """The judgments for the right (1) and for the wrong (2) hint, by what was read."""
    read: list[tuple[Variant, int, int | None]] = [("guide", 1, right), ("guide_reverse", 2, wrong)]
    return [
        cleaned(judgment("a", 0, says(v, name) if v else "?", variant=name, hint=hint), v)
        for name, hint, v in read
    ]


def pairs_of(judgments, made: Item | None = None, **limits) -> list:
    result = build_judgment_pairs(made or item("a"), judgments, **(LIMITS | limits))
    assert isinstance(result, list), result
    return result


def test_each_type_of_pair_has_the_right_verdict_first():
    pairs = pairs_of(sampled(1, 1, 2, 2, None) + told(1, 2))
    assert [pair.id for pair in pairs] == [
        "a:best_of_n:0", "a:best_of_n:1", "a:best_of_n_unreadable:0", "a:hint:0"
    ]  # fmt: skip
    for pair in pairs:
        chosen, rejected = pair.chosen[0]["content"], pair.rejected[0]["content"]
        assert getattr(parse_verdict(chosen), "better", None) == 1 == pair.better
        wanted = None if pair.pair_type == "best_of_n_unreadable" else 2
        assert getattr(parse_verdict(rejected), "better", None) == wanted
    assert (pairs[-1].chosen[0]["content"], pairs[-1].rejected[0]["content"]) == (
        says(1, "guide"),
        says(2, "guide_reverse"),
    )
    assert pairs[0].prompt == [Message(role="user", content=item("a").prompt)]


def test_a_pair_knows_which_samples_it_was_made_of():
    judgments = sampled(2, 1, None)
    by_sample = {j.sample: j for j in judgments}
    for pair in pairs_of(judgments):
        assert by_sample[pair.chosen_sample].text == pair.chosen[0]["content"]
        assert by_sample[pair.rejected_sample].text == pair.rejected[0]["content"]


def test_the_limits_are_kept():
    judgments = sampled(*[1] * 5, *[2] * 5, None, None) + told(1, 2)
    types = Counter(pair.pair_type for pair in pairs_of(judgments))
    assert types == {"best_of_n": 3, "best_of_n_unreadable": 1, "hint": 1}
    few = pairs_of(judgments, max_best_of_n=0, max_unreadable=2, max_hint=0)
    assert [pair.pair_type for pair in few] == ["best_of_n_unreadable"] * 2


def test_where_a_hinted_judgment_is_unreadable_a_free_one_stands_in():
    pair = pairs_of(sampled(2) + told(1, None))[-1]
    assert pair.pair_type == "hint"
    assert pair.chosen[0]["content"] == says(1, "guide")
    assert pair.rejected[0]["content"] == says(2, "r0")
    assert build_judgment_pairs(item("a"), told(1, None), **LIMITS) == Reject(
        id="a", reason="no_wrong_judgment"
    )


@pytest.mark.parametrize(
    ("judgments", "reason"),
    [
        ([], "no_judgments"),
        (sampled(None, None), "all_unreadable"),
        (sampled(2, 2, None), "no_right_judgment"),
        (sampled(1, 1), "no_wrong_judgment"),
        (told(2, 2), "no_right_judgment"),
    ],
)
def test_j8_what_gives_no_pair_is_left_out_by_reason(judgments, reason):
    made = build_judgment_pairs(item("a"), judgments, **LIMITS)
    assert made == Reject(id="a", reason=reason)


def test_a_tie_gives_no_pair():
    made = build_judgment_pairs(item("a", better=None), sampled(1, 2), **LIMITS)
    assert made == Reject(id="a", reason="tie")


def test_pairs_that_the_settings_leave_out_are_not_said_to_be_missing():
    none = {"max_best_of_n": 0, "max_unreadable": 0, "max_hint": 0}
    made = build_judgment_pairs(item("a"), sampled(1, 2), **(LIMITS | none))
    assert made == Reject(id="a", reason="no_pair_of_a_wanted_type")


def test_equal_samples_count_once():
    same = [cleaned(judgment("a", k, says(1)), 1) for k in range(4)]
    wrong = [cleaned(judgment("a", 4 + k, says(2)), 2) for k in range(4)]
    assert len(pairs_of(same + wrong)) == 1


@given(
    st.lists(st.sampled_from([1, 2, None]), max_size=8),
    st.sampled_from([1, 2, None]),
    st.sampled_from([1, 2, None]),
    st.sampled_from([1, 2]),
    st.integers(0, 3),
)
def test_whatever_the_judgments_no_pair_is_wrong(verdicts, right, wrong, better, seed):
    """J8, S16: unreadable is only ever rejected, chosen is never rejected, no pair stands twice."""
    judgments = sampled(*verdicts) + told(right, wrong)
    made = item("a", better=better)
    result = build_judgment_pairs(made, judgments, **(LIMITS | {"seed": seed}))
    assert result == build_judgment_pairs(made, judgments, **(LIMITS | {"seed": seed}))
    if isinstance(result, Reject):
        assert not (better in verdicts and 3 - better in verdicts)
        return
    texts = [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in result]
    assert len(set(texts)) == len(texts) and len({pair.id for pair in result}) == len(texts)
    for pair, (chosen, rejected) in zip(result, texts, strict=True):
        assert getattr(parse_verdict(chosen), "better", None) == better
        assert getattr(parse_verdict(rejected), "better", None) != better
        assert pair.split == made.split and pair.item_id == "a"
    for kind in ("best_of_n", "best_of_n_unreadable", "hint"):
        of_kind = [t for pair, t in zip(result, texts, strict=True) if pair.pair_type == kind]
        assert len({chosen for chosen, _ in of_kind}) == len(of_kind)
        assert len({rejected for _, rejected in of_kind}) == len(of_kind)
    free = min(verdicts.count(better), verdicts.count(3 - better), 3)
    assert sum(pair.pair_type == "best_of_n" for pair in result) == free
