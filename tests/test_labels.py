"""A reader's labels against the data: agreement, kappa, win rates corrected for the judge's error."""

import math
import re

import numpy as np
import pandas
import pytest

from prefpipe.evaluation.labels import (
    Label,
    agreement,
    as_csv,
    powered_mean,
    read_labels,
    report,
    win_rates,
)
from prefpipe.files import DataError
from prefpipe.rows import Preference, SyntheticPair
from tests.examples import run_stage, sentence, write_jsonl


def label(id: str, says: str, data: str = "1", file: str = "pairs.jsonl") -> Label:
    """A label; the first answer was the chosen one where data is 1, or 0."""
    return Label(file, id, says, data, "rejected" if data == "2" else "chosen")


# ---- agreement


def test_kappa_is_that_of_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    data = rng.choice(list("120"), 300, p=[0.45, 0.45, 0.1])
    says = np.where(rng.random(300) < 0.7, data, rng.choice(list("120"), 300))
    labels = [label(str(k), s, d) for k, (s, d) in enumerate(zip(says, data, strict=True))]
    found = agreement(labels)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(says, data))
    assert found["agree"].value == pytest.approx((says == data).mean())


def test_agreement_by_class_is_a_cross_table():
    labels = [label("a", "1"), label("b", "2"), label("c", "0"), label("d", "2", "2")]
    table = pandas.crosstab([x.label for x in labels], [x.data for x in labels])
    by_class = agreement(labels)["by_class"]
    assert all(by_class[says][data] == table.loc[says, data] for says in "120" for data in "12")
    assert agreement(labels)["of_class"]["1"].value == 1
    assert "1" not in agreement([label("a", "2")])["of_class"]


def test_kappa_is_not_defined_where_both_always_say_the_same():
    assert agreement([label("a", "1"), label("b", "1")])["kappa"] is None


# ---- the corrected mean


def test_without_other_rows_the_mean_is_the_readers():
    from scipy.stats import t

    truth = [1.0, 0.0, 1.0, 1.0, 0.5]
    found = powered_mean(truth, [0.0] * 5, [])
    half = t.ppf(0.975, 4) * math.sqrt((np.var(truth) * 5 + 1) / 5**2)
    assert found.value == pytest.approx(np.mean(truth))
    assert found.low == pytest.approx(max(0, np.mean(truth) - half))


def test_a_judge_that_is_never_wrong_is_taken_at_its_word():
    rng = np.random.default_rng(1)
    truth, rest = rng.integers(0, 2, 100).astype(float), rng.integers(0, 2, 10_000).astype(float)
    found = powered_mean(truth, truth, rest)
    assert found.value == pytest.approx(np.append(truth, rest).mean(), abs=0.002)
    assert found.high - found.low < 0.3 * (powered_mean(truth, truth * 0, []).high - 0.4)


@pytest.mark.parametrize("wrong", [0.05, 0.2, 0.5])
def test_95_percent_intervals_cover_the_truth_in_93_to_97_percent(wrong):
    """The judge errs more on one side, so that its own rate is off; 2,000 simulated readers."""
    rng = np.random.default_rng(7)
    true_rate, n, size, inside, judges = 0.6, 150, 1500, 0, 0
    for _ in range(2000):
        truth = (rng.random(n + size) < true_rate).astype(float)
        flips = rng.random(n + size) < np.where(truth == 1, wrong, wrong / 3)
        judge = np.where(flips, 1 - truth, truth)
        found = powered_mean(truth[:n], judge[:n], judge[n:])
        inside += found.low <= true_rate <= found.high
        judges += abs(judge.mean() - true_rate) < 1.96 * math.sqrt(0.24 / (n + size))
    assert 0.93 <= inside / 2000 <= 0.97
    assert judges / 2000 < 0.9 or wrong < 0.1  # the judge's own interval does not


def test_the_interval_is_narrower_with_a_good_judge_and_hardly_wider_with_a_useless_one():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 200).astype(float)
    alone = powered_mean(truth, truth * 0, [])
    good = powered_mean(truth, truth, rng.integers(0, 2, 5000))
    useless = powered_mean(truth, rng.integers(0, 2, 200), rng.integers(0, 2, 5000))
    assert good.high - good.low < 0.5 * (alone.high - alone.low)
    assert useless.high - useless.low < 1.02 * (alone.high - alone.low)


# ---- win rates of a file


def synthetic(id: str, chosen: str, rejected: str, tie: bool = False) -> SyntheticPair:
    return SyntheticPair(
        id=id, prompt="?", chosen="longer answer", rejected="short", tie=tie, margin=0.0 if tie else 1.0,
        chosen_model=chosen, rejected_model=rejected, chosen_rating=4, rejected_rating=3,
        aspects=["honesty"], chosen_ratings=[4], rejected_ratings=[3],
    )  # fmt: skip


def test_a_models_win_rate_is_over_the_rows_it_is_in(tmp_path):
    """By hand: the judge says a wins all 40 rows against b; a reader finds b better in 5 of 20."""
    rows = [synthetic(f"r{k}", "a", "b") for k in range(40)]
    rows += [synthetic(f"s{k}", "b", "c", tie=True) for k in range(20)]
    write_jsonl(tmp_path / "pairs.jsonl", [row.model_dump() for row in rows])
    labels = [label(f"r{k}", "2" if k < 5 else "1") for k in range(20)]
    labels += [label(f"s{k}", "0", "0") for k in range(10)]
    rates = win_rates(tmp_path, labels)["pairs.jsonl"]
    assert rates["a"]["by_judge"] == 1.0 and rates["a"]["by_reader"].value == 0.75
    assert rates["a"]["rows"] == 40 and rates["a"]["n"] == 20
    assert rates["a"]["corrected"].value == pytest.approx(0.75)  # the judge says the same of all
    assert rates["b"]["by_judge"] == pytest.approx((0 * 40 + 0.5 * 20) / 60)
    assert rates["b"]["by_reader"].value == pytest.approx((5 + 0.5 * 10) / 30)
    assert rates["c"]["by_reader"].value == 0.5
    assert set(rates) == {"a", "b", "c", "the longer answer"}


def test_which_answer_stood_first_does_not_matter(tmp_path):
    rows = [
        Preference(id=f"r{k}", prompt="?", chosen="longer answer", rejected="short")
        for k in range(12)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", [row.model_dump() for row in rows])
    one = [label(f"r{k}", "1", "1") for k in range(12)]
    other = [label(f"r{k}", "2", "2") for k in range(12)]
    found = [win_rates(tmp_path, labels)["pairs.jsonl"] for labels in (one, other)]
    assert found[0] == found[1] and found[0]["the longer answer"]["by_reader"].value == 1


def test_few_labels_have_no_win_rate(tmp_path):
    rows = [Preference(id=f"r{k}", prompt="?", chosen="long", rejected="s") for k in range(12)]
    write_jsonl(tmp_path / "pairs.jsonl", [row.model_dump() for row in rows])
    assert "no win rate" in report(tmp_path, [label("r1", "1")])


# ---- the file


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pairs.jsonl,a,3,1,chosen", "label is '3'"),
        ("pairs.jsonl,a,1,yes,chosen", "data is 'yes'"),
        ("pairs.jsonl,a,1,1,left", "first is 'left'"),
        ("pairs.jsonl,a,1", "too few fields"),
        ("pairs.jsonl,a,1,1,chosen\npairs.jsonl,a,2,1,chosen", "a second label of 'a'"),
        ("", "no label in it"),
    ],
)
def test_a_label_that_cannot_be_one_is_named_with_its_line(tmp_path, line, words):
    path = tmp_path / "labels.csv"
    path.write_text(f"file,id,label,data,first\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(words)) as error:
        read_labels(path)
    assert len(str(error.value)) < 300 and "labels.csv" in str(error.value)


def test_labels_are_read_as_they_were_written(tmp_path):
    labels = [Label("a b.jsonl", 'quote " and, comma\nline', "1", "2", "rejected")]
    as_csv(labels, tmp_path / "labels.csv")
    assert read_labels(tmp_path / "labels.csv") == labels


def test_accuracy_prints_the_tables_and_names_what_is_not_there(tmp_path):
    rows = [Preference(id=f"r{k}", prompt="?", chosen="longer", rejected="s") for k in range(30)]
    write_jsonl(tmp_path / "run/pairs.jsonl", [row.model_dump() for row in rows])
    as_csv([label(f"r{k}", "1") for k in range(12)], tmp_path / "labels.csv")
    env = {"PREFPIPE_DATA": "run"}
    done = run_stage("accuracy", "--labels", "labels.csv", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "labels: n = 12; agreement 1.000 [0.758, 1.000]" in done.stdout
    assert re.search(
        r"the longer answer +1\.000 +1\.000 \[0\.758, 1\.000\] +1\.000 \[0\.8", done.stdout
    )
    wrong = run_stage(
        "accuracy", "--labels", "labels.csv", cwd=tmp_path, env={"PREFPIPE_DATA": "b"}
    )
    assert "no such file" in sentence(wrong) and "PREFPIPE_DATA" in sentence(wrong)
    as_csv([label("r99", "1")], tmp_path / "labels.csv")
    other = run_stage("accuracy", "--labels", "labels.csv", cwd=tmp_path, env=env)
    assert "no row 'r99'" in sentence(other)
    as_csv([label("r1", "1", "0")], tmp_path / "labels.csv")
    changed = run_stage("accuracy", "--labels", "labels.csv", cwd=tmp_path, env=env)
    assert "is not as it was marked" in sentence(changed)


def test_the_values_of_a_label_column_are_no_file(tmp_path):
    """Both go by --labels: a column has two values or more, a file is one."""
    rows = [{"q": f"what is {k}?", "a": "x", "b": "y", "who": "left"} for k in range(3)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    columns = ["--prompt-column", "q", "--answer-columns", "a,b", "--label-column", "who"]
    options = ["--kind", "reward", "--benchmark", "auto=mine.jsonl", *columns]
    done = run_stage(
        "accuracy", *options, "--labels", "left,right", "--reward-model", "none", cwd=tmp_path
    )
    assert "labels" not in sentence(done)  # it goes on to the model, which is not there
