"""prefpipe.judgment_pairs: which judgments of an item meet, and on which side."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.judgment_pairs import build_judgment_pairs
from prefpipe.rows import CleanJudgment, Item, Message, Reject, Variant
from prefpipe.verdicts import parse_verdict
from tests.examples import item, judgment, says

LIMITS = {"max_best_of_n": 3, "max_unreadable": 1, "max_hint": 1, "seed": 0}


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
def test_what_gives_no_pair_is_left_out_by_reason(judgments, reason):
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


def test_a_text_that_holds_the_right_verdict_is_set_against_none():
    """Unreadable as a whole, the right verdict in its object: rejected, it would teach the wrong thing."""
    for verdict, count in ((1, 0), (2, 1)):
        said = f"Answer {3 - verdict} is better.\n{says(verdict, 'r')}"
        assert not hasattr(parse_verdict(said), "better")
        judgments = [*sampled(1, 2), cleaned(judgment("a", 2, said), None)]
        kinds = [pair.pair_type for pair in pairs_of(judgments)]
        assert kinds.count("best_of_n_unreadable") == count
