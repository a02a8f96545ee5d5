"""accuracy --kind reward, pairwise, dpo, judge on pairs and on benchmarks with more responses."""

import json
from pathlib import Path

import pytest

import accuracy
from accuracy import Settings, main
from prefpipe.compare.matches import hold
from prefpipe.compare.openers import by_reward
from prefpipe.evaluation import scoring
from prefpipe.files import DataError
from tests.known_opinions import KnownRewards, by_quality
from tests.preference_data import write_jsonl

PAIRS = [
    {"id": "p1", "prompt": "Q1", "chosen": "good", "rejected": "bad", "source": "easy"},
    {"id": "p2", "prompt": "Q2", "chosen": "fair", "rejected": "bad", "source": "easy"},
    {"id": "p3", "prompt": "Q3", "chosen": "bad", "rejected": "a long one", "source": "hard"},
    {"id": "p4", "prompt": "Q4", "chosen": "bad", "rejected": "good", "source": "hard"},
    {
        "id": "t",
        "prompt": "Q5",
        "chosen": "good",
        "rejected": "fair",
        "tie": True,
        "source": "easy",
    },
    {"id": "same", "prompt": "Q6", "chosen": "x", "rejected": "x "},
    {"id": "broken", "prompt": "Q7", "chosen": "x"},
]
BEST_OF = [
    {"id": "n1", "prompt": "Q1", "responses": ["bad", "good", "fair"], "right": [False, True, False]},
    {"id": "n2", "prompt": "Q2", "responses": ["good", "bad", "fair"], "right": [False, True, False]},
]  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    def made(**changes) -> Settings:
        options = {
            "kind": ["reward"],
            "items": None,
            "pairs": None,
            "benchmark": [f"sky={write_jsonl(tmp_path / 'pairs.jsonl', PAIRS)}"],
            "output": tmp_path / "accuracy",
            "base": "none",
            "tuned": "none",
            "reward_model": "none",
            "pairwise_model": "none",
        }
        return Settings(**{**options, **changes})

    return made


@pytest.fixture(autouse=True)
def known_scores(monkeypatch):
    """Models whose opinion of a text is known, instead of those in folders."""
    asked: list[tuple[str, str]] = []

    def ranker_of(s, run, open_scorer, kind, name):
        def rank(contests, tournament):
            asked.extend((kind, id) for id in contests)
            if kind == "reward":
                return by_reward(KnownRewards(), contests)  # pyright: ignore[reportArgumentType]
            return hold(contests, by_quality, tournament, seed=s.seed)

        return rank

    monkeypatch.setattr(accuracy, "ranker_of", ranker_of)
    return asked


def read(path: Path):
    return json.loads(path.read_text())


def test_a_set_of_pairs_by_hand(settings, capsys):
    """p1, p2 and p3 right, p4 wrong; the tie is in no accuracy; two rows cannot be used."""
    s = settings()
    main(s)
    found = read(s.output / "accuracy.json")["scored"]["sky"]["reward"]
    assert (found["n"], found["ties"], found["accuracy"]) == (5, 1, 0.75)
    assert found["mean_margin"] == pytest.approx((7 + 3 + (-2 + 4.0) - 7) / 4)
    by_source = found["by_source"]
    assert (by_source["easy"]["n"], by_source["easy"]["accuracy"]) == (3, 1.0)
    assert (by_source["hard"]["accuracy"], by_source["hard"]["longer_is_right"]) == (0.5, 0.0)
    assert by_source["hard"]["interval"][0] < 0.5 < by_source["hard"]["interval"][1]
    meta = read(s.output / "accuracy.meta.json")
    assert meta["counts"]["left_out"] == {"equal_answers": 1, "bad_row": 1}
    table = capsys.readouterr().out
    assert "sky: n = 5" in table and "picking the longer" in table and "easy (3)" in table


def test_kinds_stand_side_by_side_and_agree_where_they_judge_alike(settings, capsys):
    s = settings(kind=["reward", "pairwise"])
    main(s)
    found = read(s.output / "accuracy.json")["scored"]["sky"]
    assert found["pairwise"]["accuracy"] == found["reward"]["accuracy"] == 0.75
    assert found["pairwise"]["mean_margin"] == pytest.approx(
        found["reward"]["mean_margin"], abs=1e-6
    )
    rows = [json.loads(line) for line in (s.output / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and {r["kind"] for r in rows} == {"reward", "pairwise"}
    header = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("sky: n"))
    assert header.split()[-2:] == ["reward", "pairwise"]


@pytest.mark.parametrize("kind", ["reward", "pairwise", "judge"])
def test_the_best_of_n_against_a_random_pick(settings, tmp_path, kind):
    path = write_jsonl(tmp_path / "best.jsonl", BEST_OF)
    s = settings(kind=[kind], benchmark=[f"best_of_n={path}"])
    main(s)
    found = read(s.output / "accuracy.json")["scored"]["best_of_n"][kind]
    assert (found["n"], found["responses"]) == (2, 3)
    assert found["accuracy"] == 0.5  # "good" is right in n1 and wrong in n2
    assert found["random_is_right"] == pytest.approx(1 / 3)


def test_rewardbench_and_rewardbench_2_get_their_published_scores(settings, tmp_path):
    bench = [
        {"id": k, "prompt": f"Q{k}", "chosen": c, "rejected": r, "subset": subset}
        for k, (c, r, subset) in enumerate(
            [("good", "bad", "hep-go"), ("bad", "good", "hep-cpp"), ("good", "bad", "donotanswer")]
        )
    ]
    second = [
        {"id": "1", "prompt": "Q", "chosen": ["good"], "rejected": ["bad", "fair", "x"], "subset": "Math"},
        {"id": "ref:0", "prompt": "T", "chosen": ["good"], "rejected": ["bad"], "subset": "Ties"},
        {"id": "tied:0", "prompt": "T", "chosen": ["good", "fair"], "rejected": ["bad"], "subset": "Ties"},
    ]  # fmt: skip
    entries = {"rewardbench": bench, "rewardbench2": second}
    s = settings(
        kind=["reward", "pairwise"],
        benchmark=[f"{n}={write_jsonl(tmp_path / (n + '.jsonl'), r)}" for n, r in entries.items()],
    )
    main(s)
    report = read(s.output / "accuracy.json")["scored"]
    for kind in s.kind:
        first = report["rewardbench"][kind]["published"]
        assert first["sections"] == {"Safety": 1.0, "Reasoning": 0.5} and first["score"] == 0.75
        published = report["rewardbench2"][kind]["published"]
        assert published["subsets"]["Math"] == 1.0
        assert published["ties"]["tied_accurate"] == published["ties"]["ref_accurate"] == 1.0
    # fair stands 4 below good and 3 above bad: right, but not well separated
    assert report["rewardbench2"]["reward"]["published"]["ties"]["separated"] == 0


def test_the_training_file_s_overlap_is_shown(settings, tmp_path, capsys):
    words = "one two three four five six seven eight nine ten"
    pairs = [{"id": "p", "prompt": words, "chosen": "good", "rejected": "bad"}, PAIRS[0]]
    path = write_jsonl(tmp_path / "p.jsonl", pairs)
    trained = [{"id": "x", "prompt": words.title(), "chosen": "a", "rejected": "b"}]
    s = settings(
        benchmark=[f"sky={path}"],
        trained_on=[str(write_jsonl(tmp_path / "t.jsonl", trained))],
    )
    main(s)
    found = read(s.output / "accuracy.json")["overlap"]["sky"]
    assert found["questions"] == 2 and found["seen"] == 0.5 and found["most_seen"] == {"p": 1.0}
    assert "0.500 of 2 questions share words 8 in a row with the training files" in (
        capsys.readouterr().out
    )


def test_a_benchmark_is_recognised_or_its_columns_are_named(settings, tmp_path, capsys):
    """auto=PATH: what preprocess_dataset.py would read, with the same settings."""
    arena = [
        {"question_id": k, "winner": w, "turn": 1, **{
            f"conversation_{s}": [{"role": "user", "content": f"Q{k}"}, {"role": "assistant", "content": text}]
            for s, text in (("a", "good"), ("b", "bad"))}}
        for k, w in enumerate(("model_a", "model_a", "tie"))
    ]  # fmt: skip
    s = settings(benchmark=[f"auto={write_jsonl(tmp_path / 'arena.jsonl', arena)}"])
    main(s)
    assert read(s.output / "accuracy.json")["scored"]["auto"]["reward"]["accuracy"] == 1.0
    assert "arena.jsonl: read as arena, by its columns conversation_a" in capsys.readouterr().out
    mine = [{"q": "Q", "yes": "bad", "no": "good"}]
    columns = {"prompt_column": "q", "chosen_column": "yes", "rejected_column": "no"}
    path = write_jsonl(tmp_path / "mine.jsonl", mine)
    s = settings(benchmark=[f"auto={path}"], output=tmp_path / "named", **columns)
    main(s)
    assert read(s.output / "accuracy.json")["scored"]["auto"]["reward"]["accuracy"] == 0.0


def test_a_stopped_run_scores_only_what_is_left(settings, monkeypatch, known_scores):
    s = settings()
    monkeypatch.setattr(scoring, "WINDOW", 2)
    monkeypatch.setattr(scoring, "report_of", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(s)
    assert len(known_scores) == 5
    monkeypatch.undo()
    del known_scores[:]
    monkeypatch.setattr(accuracy, "open_model", lambda *a: pytest.fail("nothing is left to score"))
    main(s)
    assert read(s.output / "accuracy.json")["scored"]["sky"]["reward"]["accuracy"] == 0.75


def test_nothing_to_measure_on_is_a_sentence(settings):
    with pytest.raises(SystemExit, match="set --items or --benchmark"):
        main(settings(benchmark=[]))
    with pytest.raises(SystemExit, match="wanted name=path, name a format, as --help"):
        main(settings(benchmark=["unknown=x"]))


def test_where_nothing_can_be_measured_nothing_stands_there(settings, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no row to read"):
        main(settings(benchmark=[f"sky={tmp_path / 'empty.jsonl'}"]))
    assert not (tmp_path / "accuracy").exists()


def test_a_copy_of_a_row_without_an_id_is_left_out_and_the_others_are_measured(settings, tmp_path):
    rows = [{"prompt": f"Q{k}", "chosen": "good", "rejected": "bad"} for k in (0, 1, 0)]
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    for name in ("auto", "sky"):
        s = settings(benchmark=[f"{name}={path}"], output=tmp_path / name)
        main(s)
        counts = read(s.output / "accuracy.meta.json")["counts"]
        assert (counts["read"], counts["left_out"]) == (3, {"duplicate_row": 1})


def test_rows_that_no_trainer_can_read_are_no_reason_not_to_measure_the_overlap(settings, tmp_path):
    rows = [{"prompt": "A B C D E F G H I", "chosen": "x", "rejected": "y"},
            {"prompt": "Q", "chosen": "x", "rejected": None}]  # fmt: skip
    s = settings(trained_on=[str(write_jsonl(tmp_path / "trained.jsonl", rows))])
    main(s)
    assert read(s.output / "accuracy.json")["overlap"]["sky"]["questions"]
