"""parse_preferences: ratings out of what an annotator wrote, pairs out of ratings. Numbers by hand."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from parse_preferences import Settings, main
from prefpipe.files import DataError, read_rows
from prefpipe.rows import SyntheticPair
from tests.examples import ledger, read_jsonl, run_stage, sentence, write_jsonl

ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]
Rated = Mapping[str, Sequence[object] | str | None]
"""Aspect -> a rating for each response by its index; a string is what the annotator wrote instead;
None is no answer."""


def says(ratings: Sequence[object], order: Sequence[int]) -> str:
    """The published form, the texts numbered as shown."""
    blocks = [
        f"#### Output for Text {place}\nRating: {ratings[index]}\nRationale: It is."
        for place, index in enumerate(order, start=1)
    ]
    return "\n\n".join(blocks)


@pytest.fixture
def files_of(tmp_path):
    """Files in which prompts are rated so -> Settings for them. Orders differ by aspect."""

    def made(rated: Mapping[str, Rated], *, on_policy=None, swapped: Mapping[str, Rated] | None = None,
             prompt: object = None, finish_reason: str = "stop", **options) -> Settings:  # fmt: skip
        mixes, asked, answers = [], [], []
        for id, by_aspect in rated.items():
            count = max(len(r) for r in by_aspect.values() if isinstance(r, list))
            mixes.append({"id": id, "prompt": prompt or f"Question {id}?", "source": None,
                          "responses": [f"{id}-{k}" for k in range(count)],
                          "models": [f"m{k}" for k in range(count)], "on_policy": on_policy})  # fmt: skip
            for is_second, table in ((False, by_aspect), (True, (swapped or {}).get(id, {}))):
                for aspect, ratings in table.items():
                    order = list(range(count))
                    random.Random(f"{id}{aspect}").shuffle(order)
                    order = order[::-1] if is_second else order
                    row = {"id": id, "aspect": aspect, "swapped": is_second}
                    asked.append(row | {"prompt": "Rate.", "order": order, "texts": count})
                    if ratings is None:
                        continue
                    text = ratings if isinstance(ratings, str) else says(ratings, order)
                    answers.append(row | {"text": text, "finish_reason": finish_reason,
                                          "model": "judge", "prompt_tokens": 1, "new_tokens": 1})  # fmt: skip
        return Settings(
            mix=write_jsonl(tmp_path / "mix.jsonl", mixes),
            prompts=write_jsonl(tmp_path / "annotation_prompts.jsonl", asked),
            input=write_jsonl(tmp_path / "annotations.jsonl", answers),
            output=tmp_path / "preferences.jsonl",
            **options,
        )

    return made


def all_aspects(ratings: Sequence[object]) -> Rated:
    return dict.fromkeys(ASPECTS, ratings)


def pairs(s: Settings) -> list[SyntheticPair]:
    return list(read_rows(s.output, SyntheticPair))


def sides(s: Settings) -> dict[str, tuple[object, object, bool]]:
    return {row.id: (row.chosen, row.rejected, row.tie) for row in pairs(s)}


def rejects(s: Settings) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read_jsonl(s.output.with_suffix(".rejects.jsonl"))}


def test_a_rating_is_the_mean_over_aspects_whatever_the_order_shown(files_of):
    rated = {
        "instruction_following": [5, 3],
        "honesty": [4, 4.5],
        "truthfulness": [4, 2],
        "helpfulness": [5, 1],
    }
    s = files_of({"p": rated})
    main(s)
    (row,) = pairs(s)
    assert (row.chosen, row.rejected) == ("p-0", "p-1")
    assert (row.chosen_model, row.rejected_model) == ("m0", "m1")
    assert row.chosen_rating == (5 + 4 + 4 + 5) / 4 == 4.5
    assert row.rejected_rating == (3 + 4.5 + 2 + 1) / 4 == 2.625
    assert row.margin == 4.5 - 2.625
    assert row.aspects == list(rated)
    assert (row.chosen_ratings, row.rejected_ratings) == ([5, 4, 4, 5], [3, 4.5, 2, 1])


# ---- FAULTS, section S


def test_rows_are_joined_by_id_where_some_have_failed(files_of):
    """S1: dropping p1's row and counting on would give p2 the ratings of p1's texts."""
    up, down = [5, 1], [1, 5]
    s = files_of(
        {
            "p0": all_aspects(up),
            "p1": {**all_aspects(None), "honesty": None, "helpfulness": up},  # type: ignore[arg-type]
            "p2": all_aspects(down),
            "p3": all_aspects(up),
        }
    )
    main(s)
    assert sides(s) == {
        "p0": ("p0-0", "p0-1", False),
        "p2": ("p2-1", "p2-0", False),
        "p3": ("p3-0", "p3-1", False),
    }
    assert rejects(s) == {"p1": "too_few_ratings"}
    assert ledger(s.output.with_suffix(".meta.json"))["read"] == 4


def test_an_untidy_annotation_shifts_no_rating(files_of):
    tidy = says([2, 5, 1], [0, 1, 2])
    untidy = "Here are my ratings:\r\n\r\n" + tidy.replace("\n", "\r\n").replace(
        "Rationale: It is.", "**Rationale:** It is.\r\n\r\nText 3 is another matter."
    )
    for text in (tidy, untidy.replace("Rating: 5", "**Rating:** 5")):
        s = files_of({"p": all_aspects([0, 0, 0])}, pairs="best-vs-worst", overwrite=True)
        rows = [row | {"text": text} for row in read_jsonl(s.input)]
        write_jsonl(s.input, rows)
        asked = read_jsonl(s.prompts)
        write_jsonl(s.prompts, [row | {"order": [0, 1, 2]} for row in asked])
        main(s)
        assert sides(s) == {"p": ("p-1", "p-2", False)}


def test_a_lost_aspect_is_missing_and_no_rating_of_1_for_text_1(files_of):
    """S3: 1 for text 1 in the two lost aspects would make 3.0 of its 5.0, and the other the winner."""
    kept = {"instruction_following": [5, 4], "honesty": [5, 4]}
    lost = {"truthfulness": "I'm sorry, I can't help with that.", "helpfulness": None}
    s = files_of({"p": {**kept, **lost}}, min_aspects=2)
    main(s)
    (row,) = pairs(s)
    assert (row.chosen, row.margin) == ("p-0", 1.0)
    assert row.chosen_ratings == [5, 5, None, None]
    strict = s.model_copy(update={"min_aspects": None, "overwrite": True})
    with pytest.raises(SystemExit, match="not one of 1 prompts"):
        main(strict)  # 2 of 4 is not more than half
    (reject,) = read_jsonl(s.output.with_suffix(".rejects.jsonl"))
    assert reject["detail"] == (
        "0 responses have ratings in 3 of 4 aspects; truthfulness is no_rating, helpfulness is missing"
    )


def test_a_cut_annotation_is_unreadable(files_of):
    s = files_of({"p": all_aspects([5, 4])}, finish_reason="length")
    with pytest.raises(SystemExit, match="too_few_ratings"):
        main(s)


def test_na_is_left_out_of_the_mean_and_out_of_scale_is_unreadable(files_of):
    rated = {
        "instruction_following": [5, 4.5],
        "honesty": ["N/A", 4.5],
        "truthfulness": [5, 4.5],
        "helpfulness": [5, 4.5],
    }
    s = files_of({"p": rated, "q": {**rated, "helpfulness": [1, 10]}})
    main(s)
    (p,) = pairs(s)
    assert (p.chosen_rating, p.rejected_rating) == (5.0, 4.5)  # with -1 for N/A: 3.5 and 4.5
    assert p.chosen_ratings == [5, None, 5, 5]
    # of q's first response two ratings are left, which is not more than half of four
    assert rejects(s) == {"q": "too_few_ratings"}


def test_equal_ratings_are_a_tie_of_two_different_texts(files_of):
    many = {f"p{k}": all_aspects([3, 3, 3]) for k in range(60)}
    for how in ("best-vs-random", "best-vs-worst", "all"):
        s = files_of(many, pairs=how, overwrite=True)
        main(s)
        rows = pairs(s)
        assert len(rows) == (180 if how == "all" else 60)
        assert all(row.tie and row.margin == 0 and row.chosen != row.rejected for row in rows)
        if how != "all":
            first = sum(row.chosen_model == "m0" for row in rows)
            assert 5 < first < 35, "the first index does not always win"  # 20 expected, sd 3.7
    s = files_of({**many, "q": all_aspects([3, 4, 3])}, ties="drop", overwrite=True)
    main(s)
    assert list(sides(s)) == ["q"] and set(rejects(s).values()) == {"tie"}


def test_the_same_seed_gives_the_same_pairs_whatever_stands_around_them(files_of):
    many = {f"p{k}": all_aspects([3, 5, 2, 1]) for k in range(20)}
    s = files_of(many)
    main(s)
    whole = sides(s)
    assert (
        len({str(rejected).rpartition("-")[2] for _, rejected, _ in whole.values()}) == 3
    )  # drawn
    main(s := files_of({id: many[id] for id in ("p7", "p3")}, overwrite=True))
    assert sides(s) == {id: whole[id] for id in ("p7", "p3")}
    main(s := files_of(many, overwrite=True, seed=5))
    assert sides(s) != whole


def test_ids_are_strings_end_to_end(files_of):
    ids = ["a_b_c", "00123", "12e45", "1.0", "x:y"]
    s = files_of({id: all_aspects([1, 5]) for id in ids})
    main(s)
    assert list(sides(s)) == ids
    loaded = [json.loads(line)["id"] for line in s.output.read_text().splitlines()]
    assert loaded == ids


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("mix", r"mix\.jsonl:3: id 'p0' stands at .*mix\.jsonl:1 already"),
        ("input", r"annotations\.jsonl: id 'p1': two answers to one request"),
        ("prompts", r"id 'p0' stands twice or out of the items' order"),
    ],
)
def test_duplicates_are_an_error(files_of, which, said):
    s = files_of({"p0": all_aspects([1, 5]), "p1": all_aspects([1, 5])})
    path: Path = getattr(s, which)
    rows = read_jsonl(path)
    write_jsonl(path, [*rows, rows[-1] if which == "input" else rows[0]])
    with pytest.raises(DataError, match=said):
        main(s)
    assert not s.output.exists()


def test_the_second_answer_can_win_and_so_can_each_other_one(files_of):
    """S15: in the published script the first one always does."""
    rated = {f"p{k}": all_aspects([5 if j == k else 2 for j in range(4)]) for k in range(4)}
    for how in ("best-vs-random", "best-vs-worst"):
        main(s := files_of(rated, pairs=how, overwrite=True))
        assert {id: chosen for id, (chosen, _, _) in sides(s).items()} == {
            f"p{k}": f"p{k}-{k}" for k in range(4)
        }


# ---- which pairs


def test_an_on_policy_response_without_ratings_is_a_reject(files_of):
    rated = all_aspects([4, "N/A", 2])
    s = files_of({"p": rated, "q": all_aspects([4, 3, 2])}, on_policy=1)
    main(s)
    assert sides(s) == {"q": ("q-0", "q-1", False)}
    assert rejects(s) == {"p": "no_on_policy_rating"}


def test_all_pairs_have_ids_of_their_own(files_of):
    s = files_of({"p": all_aspects([3, 5, 3])}, pairs="all")
    main(s)
    assert sides(s) == {
        "p:0-1": ("p-1", "p-0", False),
        "p:0-2": ("p-0", "p-2", True),
        "p:1-2": ("p-1", "p-2", False),
    }
    main(s.model_copy(update={"ties": "drop", "overwrite": True}))
    assert list(sides(s)) == ["p:0-1", "p:1-2"]


# ---- what does not fit


def test_files_of_another_mix_are_refused(files_of):
    s = files_of({"p": all_aspects([1, 5]), "q": all_aspects([1, 5])})
    asked = read_jsonl(s.prompts)
    cases = [
        (s.prompts, asked[4:], "id 'p': found no request, wanted the 2 of the mix"),
        (s.prompts, [r | {"order": [0, 1, 2]} for r in asked], "found another number of texts"),
        (s.prompts, [r | {"aspect": "wit"} for r in asked], "two answers|nobody asked|unique"),
        (s.mix, read_jsonl(s.mix)[:1], "id 'q' is no item's id"),
        (s.mix, [{"id": "p"}], r"mix\.jsonl:1: prompt: found"),
    ]
    for path, rows, said in cases:
        before = path.read_bytes()
        write_jsonl(path, rows)
        with pytest.raises(DataError, match=said):
            main(s)
        assert not s.output.exists()
        path.write_bytes(before)
    main(s)
    assert len(pairs(s)) == 2


# ---- what is printed


def test_histogram_agreement_places_and_models_are_printed(files_of, capsys):
    rated = {
        "p": {"honesty": [5, 1], "truthfulness": [4, 2], "helpfulness": [1, 4.5]},
        "q": {"honesty": [2, 2], "truthfulness": ["N/A", 5], "helpfulness": "no"},
        "r": {"honesty": [4, 3], "truthfulness": [3, 2], "helpfulness": [5, 1]},
    }
    s = files_of(rated, min_aspects=1)
    main(s)
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines}
    # ratings 1 to 5 | N/A | unreadable | mean | agrees
    assert table["honesty"] == ["1", "2", "1", "1", "1", "0", "0", f"{17 / 6:.3f}", "0.500"]
    assert table["truthfulness"] == ["0", "2", "1", "1", "1", "1", "0", "3.200", "1.000"]
    # p: honesty with truthfulness and helpfulness (2.5, 3.25) no; truthfulness with (3, 2.75) yes;
    # helpfulness with (4.5, 1.5) no; r: all agree; q: alike or without a rating
    meta = json.loads(s.output.with_suffix(".meta.json").read_text())
    assert meta["ratings"]["helpfulness"]["histogram"] == {"1": 2, "2": 0, "3": 0, "4": 1, "5": 1}
    assert meta["ratings"]["helpfulness"]["agreement"] == 0.5
    assert meta["ratings"]["helpfulness"]["unreadable"] == {"no_rating": 1}
    # p 10/3 to 2.5, q 2 to 3.5, r 4 to 2
    assert meta["models"] == {
        "m0": {"chosen": 2, "rejected": 1},
        "m1": {"rejected": 2, "chosen": 1},
    }
    assert "m0: chosen 2, rejected 1 times" in lines
    assert lines[-1] == "3 pairs, 0 of them ties"
    shown: dict[int, list[float]] = {1: [], 2: []}
    for row, answer in zip(read_jsonl(s.prompts), read_jsonl(s.input), strict=True):
        ratings = rated[row["id"]][row["aspect"]]
        for place, index in enumerate(row["order"], start=1):
            if answer["text"] != "no" and ratings[index] != "N/A":
                shown[place].append(float(ratings[index]))
    means = ", ".join(f"{place}: {sum(v) / len(v):.2f}" for place, v in shown.items())
    assert f"mean rating by place of the text: {means}" in lines


def test_self_agreement_is_reported_and_changes_no_pair(files_of, capsys):
    rated = {"p": {"honesty": [5, 3, 1]}, "q": {"honesty": [2, 4, 4]}}
    main(s := files_of(rated))
    before = s.output.read_bytes()
    assert "asked again" not in capsys.readouterr().out
    again = {"p": {"honesty": [5, 5, 2]}, "q": {"honesty": [4, 4, 1]}}
    main(s := files_of(rated, swapped=again, overwrite=True))
    assert s.output.read_bytes() == before
    # equal: p0, q1. Pairs: p 01 > then =, 02 > >, 12 > >; q 01 < then =, 02 < then >, 12 = then >
    said = (
        "asked again in swapped order: the same rating for 0.333 of 6 texts; of 6 pairs of texts "
        "the same order for 0.333, the opposite for 0.167"
    )
    assert said in capsys.readouterr().out


def test_an_output_that_is_no_jsonl_file_is_a_sentence(tmp_path):
    said = sentence(run_stage("parse_preferences", "--output", "x.parquet", cwd=tmp_path))
    assert "setting output (from the command line)" in said and "ends in .jsonl" in said
