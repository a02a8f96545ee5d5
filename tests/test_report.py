"""report.py as a user runs it: what it reads, what it refuses, what it costs; no browser is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prefpipe.files import write_rows
from prefpipe.report.blocks import histogram, table
from prefpipe.report.found_files import Folder, kind_of
from prefpipe.report.made_section import strengths
from prefpipe.report.page import as_json, one_run
from prefpipe.report.pair_section import count_pairs
from prefpipe.report.pair_statistics import opening
from prefpipe.rows import AnnotationMix, Item, Preference, RagPair, SyntheticPair
from tests.examples import ROOT, run_stage, sentence, write_jsonl
from tests.page_data import write_run


def preference(k: int, **more) -> dict:
    return {
        "id": f"p{k}",
        "prompt": f"What is {k}?",
        "chosen": f"It is {k}.",
        "rejected": "No.",
    } | more


def data_of(page: Path) -> dict:
    html = page.read_text(encoding="utf-8")
    return json.loads(html.split('id="data">')[1].split("</script>")[0])


# ---- what is read


def test_a_file_is_known_by_its_rows_whatever_it_is_called(tmp_path):
    write_run(tmp_path / "run", rows=30)
    folder = Folder(tmp_path / "run")
    kinds = {file.name: file.kind for file in folder.row_files}
    assert kinds["rag/pairwise_prefs.jsonl"] is RagPair
    assert kinds["synthetic/preferences.jsonl"] is SyntheticPair
    assert kinds["ranking/preferences.jsonl"] is Preference
    (tmp_path / "run/rag/pairwise_prefs.jsonl").rename(tmp_path / "run/other name.jsonl")
    assert kind_of(tmp_path / "run/other name.jsonl") is RagPair
    mix = AnnotationMix(id="m", prompt="?", responses=["a", "b"], models=["x", "y"])
    write_rows(tmp_path / "mix.jsonl", [mix], AnnotationMix)
    assert kind_of(tmp_path / "mix.jsonl") is AnnotationMix
    assert kind_of(write_jsonl(tmp_path / "x.jsonl", [{"id": "a", "other": 1}])) is None


def test_bad_rows_are_counted_and_the_first_is_named(tmp_path):
    lines = [json.dumps(preference(k)) for k in range(5)]
    lines[2:2] = [
        '{"id": "broken',
        '{"id": "q", "prompt": 5, "chosen": "\\u001b[31mx", "rejected": "y"}',
    ]
    (tmp_path / "prefs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = run_stage("report", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 rows of prefs.jsonl could not be read; first:" in done.stdout
    assert "prefs.jsonl:3" in done.stdout and "\x1b" not in done.stdout
    rows = data_of(tmp_path / "report.html")["sections"][0]["blocks"][0]["choices"][0]["blocks"][0][
        "rows"
    ]
    assert ["rows", 5] in rows and ["rows that could not be read", 2] in rows
    strict = run_stage("report", tmp_path, "--strict", cwd=tmp_path)
    assert "prefs.jsonl:3" in sentence(strict)


def test_of_a_file_that_is_broken_the_rows_before_are_shown(tmp_path):
    whole = "".join(json.dumps(preference(k)) + "\n" for k in range(5))
    (tmp_path / "prefs.jsonl").write_bytes(whole.encode() + b'"\xe4"\n')
    done = run_stage("report", tmp_path, cwd=tmp_path)
    assert done.returncode == 0 and "prefs.jsonl:6: byte 1 is not UTF-8" in done.stdout
    assert len(data_of(tmp_path / "report.html")["reader"]["rows"]) == 5
    strict = run_stage("report", tmp_path, "--strict", "--overwrite", cwd=tmp_path)
    assert "prefs.jsonl:6" in sentence(strict)


def test_limit_is_said_on_the_page(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [preference(k) for k in range(50)])
    assert run_stage("report", tmp_path, "--limit", 7, cwd=tmp_path).returncode == 0
    data = data_of(tmp_path / "report.html")
    assert data["limit"] == 7 and len(data["reader"]["rows"]) == 7


def test_items_that_were_translated_are_counted_once(tmp_path):
    write_run(tmp_path, rows=30)
    english = tmp_path / "pairwise_critic_inference2_get_answer/Sky_english/validation.jsonl"
    first = tmp_path / "pairwise_critic_inference2_get_answer/Sky/validation.jsonl"
    first.parent.mkdir()
    first.write_bytes(english.read_bytes())
    found = [file.name for file in count_pairs(Folder(tmp_path), seed=1) if file.file.kind is Item]
    assert found == ["pairwise_critic_inference2_get_answer/Sky_english/validation.jsonl"]


# ---- what is refused


def test_a_folder_without_a_run_is_named(tmp_path):
    assert "no such folder" in sentence(run_stage("report", "nothing", cwd=tmp_path))
    (tmp_path / "empty").mkdir()
    assert "no .meta.json and no rows" in sentence(run_stage("report", "empty", cwd=tmp_path))
    three = run_stage("report", "a", "b", "c", cwd=tmp_path)
    assert three.returncode and "folders" in three.stderr


def test_a_page_is_replaced_and_nothing_else(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [preference(1)])
    output = tmp_path / "mine.html"
    for _ in range(2):
        assert run_stage("report", tmp_path, "--output", output, cwd=tmp_path).returncode == 0
    output.write_text("mine", encoding="utf-8")
    refused = run_stage("report", tmp_path, "--output", output, cwd=tmp_path)
    assert "is no page of prefpipe" in sentence(refused) and output.read_text() == "mine"
    done = run_stage("report", tmp_path, "--output", output, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0 and "mine.html: 0.0 MB" in done.stdout


def test_a_damaged_report_or_meta_is_a_sentence_or_left_out(tmp_path):
    write_run(tmp_path, rows=30)
    (tmp_path / "accuracy/accuracy.json").write_text("{broken", encoding="utf-8")
    (tmp_path / "models/reward/loss_curve.csv").write_text("step,loss\n1,a\n", encoding="utf-8")
    assert run_stage("report", tmp_path, cwd=tmp_path).returncode == 0
    (tmp_path / "ranking/rank_responses.meta.json").write_text("{broken", encoding="utf-8")
    assert "is damaged" in sentence(run_stage("report", tmp_path, cwd=tmp_path))


def test_what_a_file_says_gives_no_orders_to_the_terminal(tmp_path):
    """The one place where a stage ends with a sentence."""
    write_jsonl(
        tmp_path / "\x1b[31mprefs.jsonl", [preference(1), preference(1, tie="\x1b]0;x\x07")]
    )
    done = run_stage("report", tmp_path, "--strict", cwd=tmp_path)
    assert "\x1b" not in sentence(done) and "prefs.jsonl:2" in sentence(done)


# ---- what stands in the page


def test_not_a_number_and_half_a_character_do_not_break_the_page():
    text = as_json({"a": float("nan"), "b": "</script><!--\u2028", "c": np.float64(0.5)})
    assert json.loads(text) == {"a": None, "b": "</script><!--\u2028", "c": 0.5}
    assert not set(text) & set("<>&\u2028")


def test_the_page_is_the_same_each_time(tmp_path):
    write_run(tmp_path, rows=30)
    pages = [as_json(one_run(Folder(tmp_path), seed=3, rows=10)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_marks_are_asked_for_of_a_plain_sample_only(tmp_path):
    """Rows that stand on the page because someone disagrees on them are no sample of the file."""
    rows = [preference(k, chosen="same words in both of the sides " + "x" * k) for k in range(400)]
    for row in rows[:3]:
        row["rejected"] = row["chosen"] + "!"
    write_jsonl(tmp_path / "prefs.jsonl", rows)
    shown = one_run(Folder(tmp_path), seed=1, rows=40)["reader"]["rows"]
    assert {"p0", "p1", "p2"} <= {row["id"] for row in shown}
    (file,) = count_pairs(Folder(tmp_path), seed=1)
    plain_rows = [row["id"] for row in shown if not row.get("o")]
    assert set(plain_rows) == {pair.id for pair in file.sample[: len(plain_rows)]}
    assert len(plain_rows) < len(shown) == 40


def test_a_histogram_counts_each_value_once():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 3, 1000), [500.0])
    made = histogram("x", {"a": values, "b": [1.0, 2.0]})
    assert made and sum(made["series"][0]["counts"]) == 1001 and made["most"] == 500
    assert sum(made["series"][1]["counts"]) == 2 and made["edges"][-1] < 100
    whole = histogram("x", {"a": [0, 1, 1, 5]})
    assert whole and whole["edges"][:3] == [0, 1, 2] and whole["series"][0]["counts"][1] == 2
    assert histogram("x", {"a": []}) is None
    same = histogram("x", {"a": [0.5, 0.5]})
    assert same and sum(same["series"][0]["counts"]) == 2


def test_a_long_table_says_what_it_leaves_out():
    made = table("Rows", ["a"], ([k] for k in range(1000)))
    assert made and len(made["rows"]) == 300 and made["caption"] == "Rows (the first 300 of 1,000)"


def test_strengths_are_those_of_a_logistic_regression():
    """Bradley-Terry is a logistic regression on who plays; another library's, with the same prior."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    models, true = ["a", "b", "c"], np.array([0.8, 0.1, -0.9])
    games = []
    for _ in range(300):
        i, j = rng.choice(3, 2, replace=False)
        won = rng.random() < 1 / (1 + np.exp(true[j] - true[i]))
        games.append((models[i], models[j], 1.0) if won else (models[j], models[i], 1.0))
    x = np.array([[(m == a) - (m == b) for m in models] for a, b, _ in games], dtype=float)
    # each game twice, once from either side: sklearn wants two classes
    both = LogisticRegression(C=50, fit_intercept=False, tol=1e-10).fit(
        np.vstack([x, -x]), [1] * len(x) + [0] * len(x)
    )
    expected = both.coef_[0] - both.coef_[0].mean()
    found = strengths(models, games, seed=1)
    assert [s.value for s in found] == pytest.approx(expected, abs=1e-4)
    assert all(s.low < s.value < s.high for s in found)
    assert all(s.low < t < s.high for s, t in zip(found, true, strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The answer is 4.", "the answer"),
        ("\n 4", "4"),
        ("", ""),
        ("你好，世界。这是什么", "你好，世界。"),
    ],
)
def test_an_opening_is_two_words_or_six_characters(text, words):
    assert opening(text) == words


# ---- what it costs


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Peak memory of 60,000 rows beside that of 2,000: what is kept of each row is a few numbers."""
    long = "words that fill a row of an ordinary length " * 20

    def peak(rows: int) -> float:
        folder = tmp_path / str(rows)
        write_jsonl(
            folder / "prefs.jsonl", [preference(k, chosen=f"{k} {long}") for k in range(rows)]
        )
        code = (
            "import resource, runpy, sys; sys.argv = ['report.py', sys.argv[1], '--rows', '50']\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            f"try: runpy.run_path({str(ROOT / 'report.py')!r}, run_name='__main__')\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.strip().split("\n")[-1]) / 1024

    assert peak(60_000) < peak(8_000) + 40  # MB; the file has 60
