"""The page of a run in a real browser: its numbers, keys, labels; and that no text runs anything in it."""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas
import pytest
from PIL import Image

from prefpipe.evaluation.labels import read_labels
from prefpipe.report import page as page_module
from prefpipe.report.found_files import Folder
from tests.conftest import GOLDEN
from tests.examples import run_stage
from tests.page_data import HOSTILE, MODELS, hostile, of_models, of_ratings, plain, write_run
from tests.page_pictures import VIEWS, difference, screenshot, small

ITEMS = "pairwise_critic_inference2_get_answer/Sky_english/validation.jsonl"
PREFERENCES = "ranking/preferences.jsonl"
TOLERANCE = 4.0
"""Of 255, in the tile of a picture that differs most. Another browser of the same kind is within 0.1, without
subpixels within 6 (record it there anew); the least change of those below is 4.4."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str) -> None:
    """No browser is a reason to leave these tests out, but in CI it is an error."""
    if os.environ.get("CI"):
        raise AssertionError(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        missing("no chromium on this machine: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: uv sync")
        raise
    with sync_playwright() as playwright:
        # no sandbox: a container's root has none to give
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def make(root: Path, *more: object) -> Path:
    """The page of a folder, made by the stage."""
    done = run_stage("report", root, *more, cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "report.html"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    write_run(root)
    make(root)
    return root


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page; at the end, it has said nothing on the console and asked nobody for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert not said
    assert all(url.split("#")[0] == path.as_uri() or url.startswith("blob:") for url in asked)
    context.close()


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    with opened(browser, run / "report.html") as shown:
        yield shown


def table(page: Any, section: str, caption: str) -> Any:
    """A table as a reader sees it, numbers as numbers; its first column is the index."""
    found = page.evaluate(
        """([section, caption]) => {
            const named = [...document.querySelectorAll(`#${section} figure, #${section} .table`)]
                .find((e) => (e.querySelector("figcaption, caption") || {}).textContent?.startsWith(caption));
            return named && [...named.querySelectorAll("table tr")].map((r) => [...r.cells].map((c) => c.textContent));
        }""",
        [section, caption],
    )
    assert found, f"no {caption!r} in #{section}"
    head, *rows = found
    made = pandas.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows])
    made.columns = head[1:]
    return made.map(number)


def number(text: str) -> Any:
    """'1,024' -> 1024; '0.5 [0.4, 0.6]' -> 0.5; '–' -> None."""
    text = text.split(" [")[0].replace(",", "")
    if text == "–":
        return None
    return float(text) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) else text


def bars(page: Any, section: str, caption: str) -> dict[str, float]:
    """Labels and numbers of a bar chart."""
    found = page.evaluate(
        """([section, caption]) => {
            const named = [...document.querySelectorAll(`#${section} figure.bars`)]
                .find((e) => e.querySelector("figcaption").textContent.startsWith(caption));
            const of = (tag) => [...named.querySelectorAll(tag)].map((e) => e.textContent);
            return [of("dt"), of("dd")];
        }""",
        [section, caption],
    )
    return dict(zip(found[0], map(number, found[1]), strict=True))


def choose(page: Any, section: str, name: str) -> None:
    page.locator(f"#{section} .choice select").select_option(label=name)


def read(path: Path) -> Any:
    return pandas.read_json(path, lines=True, dtype=False, convert_dates=False)


def near(value: float) -> Any:
    return pytest.approx(value, abs=0.0006)


# ---- numbers are the files'


def test_what_is_there_is_shown_and_what_is_not_is_not_mentioned(page, browser, tmp_path):
    names = page.locator("main h2").all_text_contents()
    assert names == [
        "Rows in, rows out", "Preferences", "One pair at a time", "Judges", "Trained models", "RAG", "Synthetic",
        "Left out", "Labels of your own",
    ]  # fmt: skip
    assert page.locator("#contents a").count() == len(names)
    write_run(tmp_path / "all")
    shutil.copytree(tmp_path / "all/ranking", tmp_path / "one/ranking")
    with opened(browser, make(tmp_path / "one")) as shown:
        names = shown.locator("main h2").all_text_contents()
        assert names == [
            "Rows in, rows out", "Preferences", "One pair at a time", "Trained models", "Labels of your own",
        ]  # fmt: skip


def test_the_flow_has_each_runs_rows_and_leads_to_the_rows_left_out(page, run):
    meta = json.loads(next(run.rglob("translation.meta.json")).read_text(encoding="utf-8"))
    counts = meta["counts"]
    text = page.locator("#ledger .flow").first.text_content()
    assert f"translation  {counts['read']} read, {counts['kept']} kept" in text
    rejects = read(next(run.rglob("translation.rejects.jsonl")))
    for reason, n in rejects.reason.value_counts().items():
        assert counts["left_out"][reason] == n and f"{n} {reason}" in text
    page.locator("#ledger a", has_text="duplicate_row").click()
    group = page.locator("#left-out details[open]")
    assert group.locator("summary b").text_content() == str(counts["left_out"]["duplicate_row"])
    assert "The same row stands earlier in the input" in group.locator("summary").text_content()
    assert group.locator("li").count() == 20 and "20 of 45 are shown" in group.text_content()
    first = rejects[rejects.reason == "duplicate_row"].iloc[0]
    assert group.locator("li").first.locator(".id").text_content() == first.id
    assert group.locator("li").first.locator(".text").text_content() == first.detail


def test_what_a_run_took_is_that_of_its_meta(page):
    took = table(page, "ledger", "What each run took")
    row = took.loc["build_pairwise_prefs (rag)"]
    assert list(row) == [97, 90, 12.5, near(97 / 12.5), 4321, 123]


@pytest.mark.parametrize("name", [ITEMS, PREFERENCES, "synthetic/preferences.jsonl"])
def test_counts_of_a_file_of_preferences_are_those_of_pandas(page, run, name):
    choose(page, "pairs", name)
    rows = read(run / name)
    if name == ITEMS:
        second = rows.better == 2
        rows["chosen"] = rows.answer_1.where(~second, rows.answer_2)
        rows["rejected"] = rows.answer_2.where(~second, rows.answer_1)
        rows["tie"], rows["prompt"] = rows.better.isna(), rows.question
    facts = table(page, "pairs", f"{name}:")["rows"]
    decided = rows[~rows.tie]
    difference = decided.chosen.str.len() - decided.rejected.str.len()
    assert facts["rows"] == len(rows)
    assert facts.get("ties, in no order", 0) == rows.tie.sum()
    assert facts["the longer answer is chosen"] == (difference > 0).sum()
    assert facts["... as a share"] == near((difference > 0).mean())
    assert facts["the shorter answer is chosen"] == (difference < 0).sum()
    assert facts["rows whose prompt an earlier row has"] == rows.prompt.duplicated().sum()
    sources = rows.source.value_counts().head(12).to_dict()
    shown = bars(page, "pairs", "Sources")
    assert sorted(sources.values()) == sorted(v for k, v in shown.items() if "others" not in k)
    style = table(page, "pairs", "Marks of style")
    for side in ("chosen", "rejected"):
        assert style.loc["bold", side] == near(decided[side].str.contains("**", regex=False).mean())
        marks = decided[side].str.contains("!", regex=False).mean()
        assert style.loc["exclamation", side] == near(marks)
    words = decided.chosen.str.split().str[:2].str.join(" ").str.lower()
    assert table(page, "pairs", "First words").loc["it is", "chosen"] == near(
        (words == "it is").mean()
    )
    lengths = table(page, "pairs", "Length in characters")
    assert lengths.chosen.sum() == len(decided) == lengths.rejected.sum()
    note = page.locator("#pairs .histogram .note").first.text_content()
    assert f"median {decided.chosen.str.len().median():.10g}" in note.replace(".500", ".5")
    if "margin" in rows and name != ITEMS:
        assert table(page, "pairs", "Margin")["margin"].sum() == rows.margin.notna().sum()


def test_contamination_is_that_of_accuracy_json(page):
    row = table(page, "pairs", "What of the benchmarks").loc["validation"]
    assert list(row) == [40, 8, 0.125, 0.025]


def test_the_most_similar_pairs_lead_to_their_rows(page):
    choose(page, "pairs", PREFERENCES)
    link = page.locator("#pairs .table", has_text="most alike").locator("a").first
    id = link.text_content()
    link.click()
    assert page.locator("#pair h3 a").text_content() == id


def test_judges_numbers_are_those_of_accuracy_json_and_of_the_judgments(page, run):
    report = json.loads((run / "accuracy/accuracy.json").read_text(encoding="utf-8"))
    both = report["judging"]["validation"]
    shown = table(page, "judges", "validation")
    for judge in ("base", "tuned"):
        column = shown[f"{judge} judge"]
        for words, field in (
            ("accuracy (both orders)", "accuracy"),
            ("right in both orders", "both_right"),
            ("agreement of the two orders", "agreement"),
            ("first-position rate (unbiased: 0.5)", "first_position"),
        ):
            assert column[words] == near(both[judge][field])
    rows = read(run / "accuracy/judgments.jsonl")
    rows = rows[(rows.judge == "tuned") & rows.better.notna()]
    swapped = rows.order == "swapped"
    right = rows.better.where(~swapped, 3 - rows.better)
    said = rows.verdict.where(~swapped, 3 - rows.verdict).fillna(0)
    expected = pandas.crosstab(right, said)
    places = table(page, "judges", "tuned judge: where the right answer stood")
    for k, where in ((1, "right one first"), (2, "right one second")):
        assert list(places.loc[where]) == [
            expected.loc[k, 1],
            expected.loc[k, 2],
            expected.loc[k, 0],
        ]


def test_flips_are_counted_in_each_direction_and_stand_there_to_read(page, run):
    rows = read(run / "accuracy/judgments.jsonl")
    rows = rows[(rows.order == "given") & rows.better.notna()]
    right = (rows.verdict == rows.better).groupby([rows.id, rows.judge]).first().unstack()
    counts = pandas.crosstab(right.base, right.tuned)
    shown = table(page, "judges", "Before and after tuning")
    assert shown.loc["base wrong", "tuned right"] == counts.loc[False, True]
    assert shown.loc["base right", "tuned wrong"] == counts.loc[True, False]
    group = page.locator("#judges details.group", has_text="made right by tuning")
    assert group.locator("summary b").text_content() == str(counts.loc[False, True])
    group.locator("summary").click()
    assert group.locator("li").count() == min(20, int(counts.to_numpy()[0, 1]))
    ids = set(right[~right.base & right.tuned].index)
    assert group.locator("li .id").first.text_content() in ids


def test_votes_are_those_of_the_sampled_judgments(page, run):
    votes = read(run / "judgments/clean/best_of_n.jsonl")
    items = read(run / ITEMS).set_index("id").better.dropna()
    votes = votes[votes.id.isin(items.index)]
    first = (votes.verdict == 1).groupby(votes.id).mean()
    right = (first > 0.5).map({True: 1, False: 2}) == items[first.index]
    value = right.astype(float).where(first != 0.5, 0.5)
    sure = first.where(first >= 0.5, 1 - first)
    shown = bars(page, "judges", "Base judge, sampled")
    for share in (0.5, 0.75, 1.0):
        of = value[sure == share]
        assert shown[f"{round(share, 1):.1f} (n = {len(of)})"] == near(of.mean())


def test_a_trained_models_curve_and_numbers_are_the_files(page, run):
    curve = pandas.read_csv(run / "models/reward/loss_curve.csv", index_col=False)
    shown = table(page, "models", "Loss")
    assert len(shown.loc["training"]) == curve.loss.notna().sum()
    assert shown.loc["training", "loss"].tolist() == [near(v) for v in curve.loss]
    assert len(shown.loc["held out"]) == curve.eval_loss.notna().sum()
    report = json.loads((run / "models/reward/reward_eval.json").read_text(encoding="utf-8"))
    numbers = table(page, "models", "reward model, held-out pairs")["reward"]
    assert numbers["accuracy"] == near(report["accuracy"]) and numbers["pairs"] == 90
    assert numbers["temperature that fits best"] == report["temperature"]
    ranked = read(run / "ranking/rankings.jsonl")
    ranking = table(page, "models", "Ranking")["value"]
    assert ranking["prompts with a circle"] == ranked.cycle.notna().sum() == 9
    assert ranking["the best one is right"] == near(ranked.best_is_right.mean())
    wrong = page.locator("#models details.group", has_text="reward model")
    assert wrong.locator("summary b").text_content() == "12"


def test_rag_numbers_are_those_of_the_pairs(page, run):
    rows = read(run / "rag/pairwise_prefs.jsonl")
    shown = table(page, "rag", "rag/pairwise_prefs.jsonl: means over 90 pairs")
    for side in ("chosen", "rejected"):
        parts = pandas.json_normalize(rows[f"{side}_parts"].tolist())
        assert shown.loc["grounding", side] == near(parts.grounding.mean())
        assert shown.loc["keyword coverage", side] == near(parts.keyword_coverage.mean())
        assert shown.loc["abstentions", side] == parts.is_abstention.sum()
    assert page.locator("#rag .scatter .dot").count() == 180
    assert "0.333" in page.locator("#rag .words").text_content()


def test_the_win_matrix_is_that_of_the_pairs(page, run):
    rows = read(run / "synthetic/preferences.jsonl")
    half = rows.tie.map({True: 0.5, False: 1.0})
    shown = table(page, "synthetic", "Wins of the row's model")
    for a in MODELS:
        for b in MODELS:
            if a != b:
                won = half[(rows.chosen_model == a) & (rows.rejected_model == b)].sum()
                tied = rows.tie & (rows.chosen_model == b) & (rows.rejected_model == a)
                assert shown.loc[a, b] == won + 0.5 * tied.sum()
    strong = bars(page, "synthetic", "Bradley-Terry")
    assert set(strong) == set(MODELS) and sum(strong.values()) == pytest.approx(0, abs=0.003)
    assert bars(page, "synthetic", "Ratings: honesty")["3"] == 41


# ---- one pair at a time


def count(page: Any) -> int:
    text = page.locator("#count").text_content()
    return int(text.split(" of ")[1].replace(",", "")) if " of " in text else 0


def test_search_and_filters_find_the_rows_that_pandas_finds(page, run):
    rows = read(run / PREFERENCES)
    page.locator("#by-file").select_option(PREFERENCES)
    assert count(page) == len(rows)
    page.locator("#by-source").select_option("sums")
    of_source = rows[rows.source == "sums"]
    assert count(page) == len(of_source)
    page.locator("#least-margin").fill("1.5")
    page.locator("#most-margin").fill("3")
    inside = of_source[of_source.margin.between(1.5, 3)]
    assert count(page) == len(inside) > 0
    page.locator("#search").fill("LOOK at 1")
    texts = inside[["id", "prompt", "chosen", "rejected"]].agg(" ".join, axis=1).str.lower()
    found = texts.map(lambda text: all(word in text for word in ("look", "at", "1")))
    assert count(page) == found.sum()
    page.get_by_role("button", name="Show all").click()
    assert count(page) == 5 * 90


def test_disagreement_and_reason_filter_by_what_other_files_say(page, run):
    judged = read(run / "accuracy/judgments.jsonl")
    wrong = judged[
        judged.verdict.notna() & judged.better.notna() & (judged.verdict != judged.better)
    ]
    page.locator("#by-against").select_option("base judge")
    assert count(page) == wrong[wrong.judge == "base"].id.nunique()
    page.locator("#by-against").select_option("reward model")
    assert count(page) == 12
    page.locator("#by-against").select_option("")
    page.locator("#by-reason").select_option("build_pairwise_prefs: small_margin")
    assert count(page) == 7


def test_a_filter_takes_less_than_a_tenth_of_a_second(browser, tmp_path):
    for part in (of_models, of_ratings):
        part(tmp_path, 2000, plain, random.Random(1))
    with opened(browser, make(tmp_path, "--rows", 2000)) as page:
        assert count(page) == 4000
        took = page.evaluate(
            """() => ["a", "an", "sum 17", "child", "no such words"].map((words) => {
                const box = document.getElementById("search"), start = performance.now();
                box.value = words;
                box.dispatchEvent(new Event("input"));
                return performance.now() - start;
            })"""
        )
        assert sorted(took)[1] < 100, took


def test_keys_turn_search_and_filter(page):
    page.locator("#by-file").select_option(PREFERENCES)
    page.locator("#pair").focus()
    first = page.locator("#pair h3 a").text_content()
    page.keyboard.press("j")
    second = page.locator("#pair h3 a").text_content()
    assert first != second and page.locator("#count").text_content() == "2 of 90"
    page.keyboard.press("k")
    assert page.locator("#pair h3 a").text_content() == first
    page.keyboard.press("k")
    assert page.locator("#count").text_content() == "1 of 90"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("jk 12")  # a letter that is typed turns no page
    assert page.locator("#search").input_value() == "jk 12"
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    assert not page.locator("#filters").evaluate("e => e.open")
    page.keyboard.press("f")
    assert page.locator("#filters").evaluate("e => e.open")


def test_a_row_has_an_address_of_its_own(browser, run):
    address = f"{(run / 'report.html').as_uri()}#row/{quote(PREFERENCES, safe='')}/p41"
    with opened(browser, run / "report.html") as page:
        page.goto(address)
        page.reload()
        assert page.locator("#pair h3 a").text_content() == "p41"
        link = page.locator("#pair h3 a").evaluate("e => e.href")
        assert link == address
        page.keyboard.press("j")
        assert page.url != address and "#row/" in page.url
        page.goto(f"{page.url.split('#')[0]}#row/none/%ZZ")  # an address of no row


def test_what_differs_is_marked_and_nothing_is_lost(page, run):
    rows = read(run / PREFERENCES).set_index("id")
    for _ in range(20):
        id = page.locator("#pair h3 a").text_content()
        if id in rows.index:
            for side in ("chosen", "rejected"):
                text = page.locator(f".side.{side} .text")
                assert text.text_content() == rows.loc[id, side]
                marked = "".join(text.locator("mark").all_text_contents())
                assert marked or rows.loc[id, "chosen"] == rows.loc[id, "rejected"]
        page.locator("#next").click()


# ---- labels


def test_marks_are_blind_stay_and_download_as_the_file_that_accuracy_reads(browser, run, tmp_path):
    rows = read(run / PREFERENCES).set_index("id")
    with opened(browser, run / "report.html", accept_downloads=True) as page:
        page.locator("#label-file").select_option(PREFERENCES)
        page.locator("#begin").click()
        shown, given = [], []
        for k in range(30):
            blind = page.locator("#blind").text_content()
            assert not re.search(r"sums|chat|code|\bp\d+\b|chosen|rejected|margin", blind.lower())
            assert page.locator("#blind mark").count() == 0
            shown.append(page.locator("#blind .side .text").all_text_contents())
            given.append("120"[k % 3])
            page.keyboard.press(given[-1])
        assert page.locator("#progress-words").text_content().startswith("30 of 90 marked")
        page.reload()
        page.locator("#label-file").select_option(PREFERENCES)
        page.locator("#begin").click()
        assert page.locator("#progress-words").text_content().startswith("30 of 90 marked")
        page.locator("#finish").click()
        said = page.locator("#agreement").text_content()
        with page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(tmp_path / "labels.csv")
    labels = read_labels(tmp_path / "labels.csv")
    assert len(labels) == 30 and {label.file for label in labels} == {PREFERENCES}
    by_texts = {frozenset(texts): (texts, mark) for texts, mark in zip(shown, given, strict=True)}
    for label in labels:
        row = rows.loc[label.id]
        texts, mark = by_texts[frozenset((row.chosen, row.rejected))]
        assert label.label == mark
        assert texts[0 if label.first == "chosen" else 1] == row.chosen
        assert label.data == ("1" if label.first == "chosen" else "2")
    first = [label.first for label in labels]
    assert 5 < first.count("chosen") < 25  # no side is always first
    agree = sum(label.label == label.data for label in labels)
    assert f"agree on {agree} of 30" in said
    done = run_stage(
        "accuracy",
        "--labels",
        tmp_path / "labels.csv",
        cwd=tmp_path,
        env={"PREFPIPE_DATA": str(run)},
    )
    assert done.returncode == 0 and "labels: n = 30" in done.stdout
    kappa = re.search(r"kappa (-?[\d.]+)", done.stdout)
    assert kappa and kappa[1] in said


def test_marks_of_all_rows_end_in_the_agreement(browser, tmp_path):
    write_run(tmp_path / "all", rows=26)
    shutil.copytree(tmp_path / "all/ranking", tmp_path / "one/ranking")
    with opened(browser, make(tmp_path / "one")) as page:
        page.locator("#begin").click()
        for _ in range(26):
            page.keyboard.press("1")
        assert "of 26 (" in page.locator("#agreement").text_content()
        assert page.locator("#progress").evaluate("e => e.value / e.max") == 1


# ---- two runs


def test_two_runs_show_what_was_set_what_came_out_and_which_rows_flipped(browser, tmp_path):
    first, second = (write_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    path = second / "accuracy/accuracy.meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    meta["settings"]["temperature"] = 0.7
    path.write_text(json.dumps(meta), encoding="utf-8")
    rows = read(second / PREFERENCES)
    turned = rows.index < 4
    rows.loc[turned, ["chosen", "rejected"]] = rows.loc[turned, ["rejected", "chosen"]].to_numpy()
    rows.to_json(second / PREFERENCES, orient="records", lines=True, force_ascii=False)
    done = run_stage("report", first, second, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    judged = [read(run / "accuracy/judgments.jsonl") for run in (first, second)]
    keys = ["id", "judge", "order"]
    both = judged[0].merge(judged[1], on=keys)
    both = both[both.better_x.notna()]
    was, now = both.verdict_x == both.better_x, both.verdict_y == both.better_y
    with opened(browser, second / "compared.html") as page:
        settings = table(page, "settings", "Settings and versions")
        assert settings.loc["accuracy (accuracy)"].tolist() == [
            "temperature",
            "not a setting then",
            0.7,
        ]
        shown = table(page, "flips", "Judgments in both runs")
        assert shown["right, then wrong"].sum() == (was & ~now).sum()
        assert shown["wrong, then right"].sum() == (~was & now).sum()
        pairs = table(page, "flips", "Sampled pairs of both runs")["pairs"]
        assert pairs["chosen and rejected turned round"] == 4
        reports = [
            json.loads((run / "accuracy/accuracy.json").read_text()) for run in (first, second)
        ]
        values = [r["judging"]["validation"]["tuned"]["accuracy"] for r in reports]
        numbers = table(page, "numbers", "Numbers of accuracy.json")
        row = numbers[numbers["number"] == "judging.validation.tuned.accuracy"].iloc[0]
        assert row.tolist()[1:] == [near(values[0]), near(values[1]), near(values[1] - values[0])]


# ---- safe


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    write_run(root, rows=len(HOSTILE), text=hostile)
    return make(root)


def open_all(page: Any) -> None:
    """Everything that can be opened: details, and each choice of each list."""
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    for select in page.locator(".choice select").all():
        for k in range(select.locator("option").count()):
            select.select_option(index=k)
            page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")


def test_sixty_hostile_texts_in_every_field_run_nothing_and_break_nothing(browser, attacked):
    with opened(browser, attacked) as page:
        open_all(page)
        page.locator("#by-file").select_option(PREFERENCES)
        seen = set()
        for _ in HOSTILE:
            seen.add(page.locator(".side.chosen .text").text_content())
            page.locator("#next").click() if page.locator("#next").is_enabled() else None
        assert len(seen) == len(HOSTILE)
        assert "<script>window.hacked = 1</script>" in seen
        page.locator("#label-file").select_option(PREFERENCES)
        page.locator("#begin").click()
        for _ in HOSTILE:
            page.keyboard.press("2")
        assert page.locator("#progress").evaluate("e => e.value") == len(HOSTILE)
        page.wait_for_timeout(200)
        assert (
            page.evaluate("Object.keys(window).concat('hacked' in window ? 'hacked' : [])").count(
                "hacked"
            )
            == 0
        )
        made = page.evaluate(
            "[...document.querySelectorAll('script, img, iframe, object, embed, video, base, link, style, form, math')].map((e) => e.tagName)"
        )
        assert sorted(made) == ["FORM", "SCRIPT", "SCRIPT", "STYLE"]  # the page's own
        links = page.evaluate(
            "[...document.querySelectorAll('a')].map((e) => e.getAttribute('href') || e.href.baseVal)"
        )
        assert all(link.startswith("#") for link in links)
        on = page.evaluate(
            "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith('on') || n === 'style')"
        )
        assert on == []


def test_controls_are_shown_as_signs_and_turn_nothing(browser, attacked):
    with opened(browser, attacked) as page:
        open_all(page)
        text = page.evaluate("document.body.innerText")
        page.locator("#by-file").select_option(PREFERENCES)
        for _ in HOSTILE:
            text += page.locator("#pair").inner_text()
            page.locator("#next").click() if page.locator("#next").is_enabled() else None
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text
    )
    assert "␛[31mred" in text and "⟨U+202E⟩" in text


def test_hostile_ids_have_addresses_and_labels_of_their_own(browser, attacked, tmp_path):
    rows = read(attacked.parent / PREFERENCES)
    with opened(browser, attacked, accept_downloads=True) as page:
        for id in ("__proto__", "#row/%00/../../%3Cscript%3E?a=1&b=<>&amp;&lt;", "constructor"):
            page.goto(f"{attacked.as_uri()}#row/{quote(PREFERENCES, safe='')}/{quote(id, safe='')}")
            chosen = rows[rows.id == id].chosen.iloc[0]
            page.wait_for_function(
                "id => document.querySelector('#pair h3 a').textContent === id", arg=id
            )
            if not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u206f\ufeff]", chosen):
                assert page.locator(".side.chosen .text").text_content() == chosen
        page.locator("#label-file").select_option(PREFERENCES)
        page.locator("#begin").click()
        assert page.locator("#progress-words").text_content().startswith("0 of 60")
        for _ in HOSTILE:
            page.keyboard.press("0")
        with page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(tmp_path / "labels.csv")
    labels = read_labels(tmp_path / "labels.csv")
    assert {label.id for label in labels} == {id.strip() for id in rows.id}


def test_the_policy_lets_no_other_script_run_and_no_address_be_asked(browser, run):
    """The same page with a script of another's in it: as if all else had failed."""
    path = run / "attacked.html"
    html = (run / "report.html").read_text(encoding="utf-8")
    path.write_text(
        html.replace("</body>", "<script>window.hacked = 1</script><img src='http://127.0.0.1:9/x.png' "
                     "onerror='window.hacked = 2'><a href='javascript:window.hacked=3' id=bad>x</a></body>"),
        encoding="utf-8",
    )  # fmt: skip
    context = browser.new_context()
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    page.locator("#bad").click()
    page.wait_for_timeout(200)
    assert not page.evaluate("'hacked' in window")
    assert sum("Content Security Policy" in text for text in said) >= 3
    context.close()


def test_json_in_the_page_has_no_character_that_html_reads(attacked):
    html = attacked.read_text(encoding="utf-8")
    data = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert not set(data) & set("<>&\u2028\u2029")
    texts = {row["c"] for row in json.loads(data)["reader"]["rows"]}
    assert set(HOSTILE) <= texts


# ---- for everyone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(browser, run, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, run / "report.html", color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
        page.locator("#begin").click()
        page.keyboard.press("1")
        page.wait_for_timeout(100)
        found = Axe().run(page).response["violations"]
    serious = [
        (fault["id"], fault["nodes"][0]["html"][:200])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert not serious


@pytest.mark.parametrize("which", ["run", "attacked"])
def test_a_phones_width_is_enough(browser, request, which):
    path = request.getfixturevalue(which)
    with opened(browser, path if path.is_file() else path / "report.html") as page:
        page.set_viewport_size({"width": 390, "height": 800})
        page.reload()
        open_all(page)
        page.locator("#begin").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_print_has_the_numbers_and_no_controls(page):
    page.emulate_media(media="print")
    assert not page.locator("#contents").is_visible() and not page.locator("#labels").is_visible()
    assert page.locator("#judges table").first.is_visible()


def test_text_of_other_directions_is_set_in_its_own(browser, attacked):
    with opened(browser, attacked) as page:
        page.locator("#by-file").select_option(PREFERENCES)
        page.locator("#search").fill("مرحبا")
        for text in page.locator("#pair .text").all():
            is_arabic = text.text_content().startswith("مرحبا")
            direction = text.evaluate("e => getComputedStyle(e).direction")
            assert not is_arabic or direction == "rtl"


def test_code_and_formulas_are_set_apart(browser, tmp_path):
    text = "Use $a^2 + b^2$ here, it costs $5.\n```python\nx = 1 < 2\n```\nDone."
    write_run(
        tmp_path / "all", rows=3, text=lambda name, k: text if name == "chosen" else f"no {k}"
    )
    shutil.copytree(tmp_path / "all/ranking", tmp_path / "one/ranking")
    with opened(browser, make(tmp_path / "one")) as page:
        chosen = page.locator(".side.chosen .text")
        assert chosen.locator("code.fence").text_content() == "python\nx = 1 < 2\n"
        assert chosen.locator(".formula").all_text_contents() == ["$a^2 + b^2$"]


# ---- how it looks


@pytest.mark.parametrize("name", VIEWS)
def test_the_page_looks_as_in_its_picture(browser, run, name, request, tmp_path):
    """A new one: `uv run pytest --record tests/test_page.py -k picture`; look at it before you keep it."""
    path = GOLDEN / "page" / f"{name}.png"
    shown = small(screenshot(browser, run / "report.html", VIEWS[name]))
    if request.config.getoption("--record"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.save(path, optimize=True)
    off, (x, y) = difference(Image.open(path), shown)
    shown.save(tmp_path / path.name)
    assert off < TOLERANCE, (
        f"{path}: {off:.1f} at {x}, {y} of the page; it is now {tmp_path / path.name}"
    )


@pytest.mark.parametrize(
    "style",
    [
        ".bars svg { visibility: hidden }",
        ".curve { visibility: hidden }",
        ".legend { visibility: hidden }",
        ".interval { visibility: hidden }",
        ".tick { visibility: hidden }",
        "h2 { border: 0 }",
        ".block { background: none }",
        ".block { padding: .2rem }",
        ".blocks { grid-template-columns: 1fr }",
        ":root { --a: #b33 }",
    ],
)
def test_what_a_reader_would_miss_the_picture_misses(browser, run, style):
    changed = small(screenshot(browser, run / "report.html", VIEWS["wide"], style))
    assert difference(Image.open(GOLDEN / "page/wide.png"), changed)[0] >= TOLERANCE


def test_nothing_on_paper_is_wider_than_its_place(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    over = page.evaluate(
        """() => [...document.querySelectorAll(".block table, .block svg, .text")].filter((e) => {
            const block = e.closest(".block, .side, main").getBoundingClientRect();
            return e.getBoundingClientRect().right > block.right + 1;
        }).map((e) => e.textContent.slice(0, 80))"""
    )
    assert not over


def test_no_tick_of_a_chart_stands_on_the_name_of_its_axis(browser, tmp_path):
    """Losses that differ in their last digits only have ticks of many."""
    of_models(tmp_path, 20, plain, random.Random(1))
    steps = "".join(f"{k},{0.69411 + k / 9000},{0.8},0.5,\n" for k in range(1, 9))
    curve = "step,loss,eval_loss,accuracy,eval_accuracy\n" + steps.replace(",0.8,", ",,")
    (tmp_path / "models/reward/loss_curve.csv").write_text(curve, encoding="utf-8")
    with opened(browser, make(tmp_path)) as page:
        found = page.evaluate(
            """() => [...document.querySelectorAll("svg.chart")].map((svg) => {
                const boxes = (words) => [...svg.querySelectorAll(words)].map((e) => e.getBoundingClientRect());
                const names = boxes("text[transform]"), ticks = boxes(".tick.end");
                const touch = (a, b) => a.left < b.right && a.right > b.left && a.top < b.bottom && a.bottom > b.top;
                return [svg.textContent, names.length, names.flatMap((n) => ticks.filter((t) => touch(n, t))).length];
            })"""
        )
    assert any(re.search(r"0\.69\d\d", text) for text, _, _ in found), (
        "the ticks are not those that were meant"
    )
    assert sum(names for _, names, _ in found) >= 3
    assert not [text for text, _, touching in found if touching]


# ---- fast


def test_a_page_of_10_000_rows_is_under_5_mb_and_opens_in_2_seconds(browser, tmp_path):
    long = "A sentence of some length that stands here many times over. " * 12
    text = lambda name, k: f"{name} {k} {long}" if k % 2 else f"{name} {k}"  # noqa: E731
    for part in (of_models, of_ratings):
        part(tmp_path, 10_000, text, random.Random(1))
    path = make(tmp_path, "--rows", 10_000)
    assert path.stat().st_size < 5_000_000
    took, shown = [], ""
    for _ in range(3):  # the machine may be busy with other tests
        start = time.monotonic()
        with opened(browser, path) as page:
            assert page.locator("#labels").is_visible()
            took.append(time.monotonic() - start)
            shown = page.locator("#read .note").text_content()
    assert min(took) < 2, took
    assert re.search(r"[\d,]+ of 10,000 of ranking/preferences.jsonl", shown)


def test_the_rows_to_read_and_to_mark_are_the_same_in_any_order_of_the_file(tmp_path):
    write_run(tmp_path / "a", rows=300)
    shutil.copytree(tmp_path / "a/ranking", tmp_path / "b/ranking")
    shutil.copytree(tmp_path / "a/ranking", tmp_path / "c/ranking")
    path = tmp_path / "c/ranking/preferences.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    pages = [page_module.one_run(Folder(tmp_path / name), seed=5, rows=40) for name in "bc"]
    ids = [[row["id"] for row in data["reader"]["rows"]] for data in pages]
    assert ids[0] == ids[1] and len(ids[0]) == 40
