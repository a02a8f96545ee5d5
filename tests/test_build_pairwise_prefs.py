"""build_pairwise_prefs as a user runs it, with scripted answers and an embedder without a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import build_pairwise_prefs
import build_vector_store
import preprocess_dataset
import train_reward_model
from build_pairwise_prefs import Settings
from prefpipe import files, templates
from prefpipe.compare.reward_model import RewardModel
from prefpipe.files import DataError
from prefpipe.formats import FORMATS
from prefpipe.formats.opening import HowRead
from prefpipe.llm import Request
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rag import score
from prefpipe.rows import RagPair
from prefpipe.verdicts import judgment_schema
from tests.preference_data import save_base
from tests.rag_helpers import ROWS, WordEmbedder, build_store, sum_of_words, write_table

ROOT = Path(__file__).parent.parent
ANSWERS = [
    "It says: the sum of two numbers, return a + b.",
    "I don't know.",
    "Bananas are yellow.",
    "The sum of two numbers.",
]


@pytest.fixture
def home(tmp_path):
    build_store(tmp_path)
    return tmp_path


def settings(home, **other) -> Settings:
    sure = {"answer_threshold": -2, "sure_threshold": -1}  # every context answers
    values = {**sure, "model": "scripted", "min_margin": 0.01} | other
    return Settings(
        input=home / "t.csv", store=home / "store", output=home / "pairs.jsonl", **values
    )


def quote(request: Request, sample: int) -> str:
    """Sample 0 quotes the context's first sentence, the others say less and less."""
    context = request.messages[0]["content"].split("\n")[1]
    words = context.split()
    return " ".join(words[: max(1, len(words) - 2 * sample)])


def run(s: Settings, answer=quote) -> ScriptedEngine:
    engine = answer if isinstance(answer, ScriptedEngine) else ScriptedEngine(answer)
    build_pairwise_prefs.main(s, engine, WordEmbedder())
    return engine


def pairs_of(s: Settings) -> list[RagPair]:
    return list(files.read_rows(s.output, RagPair))


def rejects_of(s: Settings) -> dict[str, str]:
    lines = s.output.with_suffix(".rejects.jsonl").read_text().splitlines()
    return {(row := json.loads(line))["id"]: row["reason"] for line in lines}


def cosine(a: str, b: str) -> float:
    x, y = sum_of_words(a), sum_of_words(b)
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


# ---- the whole stage


def test_one_pair_by_hand(home):
    write_table(home / "t.csv", ROWS[:1])
    s = settings(home, keywords=["sum", "numbers", "return", "two"], write_candidates=True)
    run(s, lambda request, sample: ANSWERS[sample])
    (pair,) = pairs_of(s)
    context = "The sum of two numbers.\n\ndef add(a, b):\n    return a + b"
    assert pair.prompt == [
        {
            "role": "user",
            "content": f"[Context]\n{context}\n\n[Question]\nadd two numbers\n\n[Instruction]\n"
            "Answer the question from the context alone. If the context does not answer it, say "
            '"I don\'t know".',
        }
    ]
    # no answer is over 600 characters; all four keywords, three of four, none
    scores = {
        ANSWERS[0]: 0.7 * cosine(ANSWERS[0], context) + 0.3 * 4 / 4,
        ANSWERS[3]: 0.7 * cosine(ANSWERS[3], context) + 0.3 * 3 / 4,
        ANSWERS[2]: 0.7 * max(0, cosine(ANSWERS[2], context)) + 0.3 * 0 / 4,
        ANSWERS[1]: 0.7 * 0 + 0.3 * 0 - 0.05 * 1,  # an abstention where the context answers
    }
    assert pair.candidates is not None
    for candidate in pair.candidates:
        assert candidate["parts"]["score"] == pytest.approx(scores[candidate["text"]], abs=1e-4)
    assert pair.chosen == [{"role": "assistant", "content": ANSWERS[0]}]
    assert pair.rejected == [{"role": "assistant", "content": ANSWERS[1]}]
    assert pair.margin == pytest.approx(scores[ANSWERS[0]] + 0.05, abs=1e-4)
    assert (pair.chosen_sample, pair.rejected_sample) == (0, 1)
    assert pair.candidate_seeds == [f"2021:add:{k}" for k in range(4)]
    assert pair.document_ids == ["add"]
    assert pair.retrieval_scores == [pytest.approx(cosine("add two numbers", context), abs=1e-4)]


def test_the_engine_is_asked_once_a_query_for_all_samples_with_the_settings(home):
    engine = run(settings(home, max_new_tokens=99))
    assert [request.id for request in engine.asked] == [row[0] for row in ROWS]
    for request in engine.asked:
        assert request.samples == (0, 1, 2, 3)
        assert (request.temperature, request.top_p, request.top_k) == (0.7, 0.9, 0)
        assert (request.max_new_tokens, request.seed) == (99, 2021)


def test_the_default_weights_are_those_of_the_reference():
    s = Settings()
    assert (s.weight_grounding, s.weight_keywords, s.weight_length) == (0.7, 0.3, 0.05)
    assert (s.free_characters, s.full_characters) == (600, 1800)


def test_the_templates_that_are_read_are_inputs_of_the_run(home):
    for scorer, files_read in (
        ("heuristic", {"rag.en"}),
        ("both", {"rag.en", "judge.en", "judge.zh"}),
    ):
        s = settings(home, scorer=scorer, overwrite=True)
        run(s, verdicts_by_length if scorer == "both" else quote)
        meta = json.loads(s.output.with_suffix(".meta.json").read_text())
        inputs = {name.removeprefix("input ") for name in meta["fingerprint"] if "jinja" in name}
        assert inputs == {f"{name}.jinja" for name in files_read}


def test_the_pairs_are_preferences_for_the_next_step_and_for_trl(home):
    from datasets import load_dataset

    s = settings(home)
    run(s)
    assert len(pairs_of(s)) == 5
    for record in map(json.loads, s.output.read_text().splitlines()):
        (row,) = HowRead().reader(FORMATS["skywork"]).read(record)
        assert row.id == record["id"] and row.margin == record["margin"]
    after = preprocess_dataset.Settings(
        input=str(s.output), validation_input="", output=home / "items", near_duplicate=1.0
    )
    preprocess_dataset.main(after)
    items = [
        json.loads(line)
        for part in ("train", "validation")
        for line in (home / "items" / f"{part}.jsonl").read_text().splitlines()
    ]
    by_id = {pair.id: pair for pair in pairs_of(s)}
    assert len(items) == 5
    for item in items:
        chosen = by_id[item["id"]].chosen[0]
        assert isinstance(chosen, dict) and item[f"answer_{item['better']}"] == chosen["content"]
    loaded = load_dataset("json", data_files=str(s.output), cache_dir=str(home / "cache"))["train"]
    assert loaded[0]["prompt"][0]["role"] == "user"


def test_the_pairs_train_a_reward_model_as_they_are(home):
    s = settings(home)
    run(s)
    trained = train_reward_model.Settings(
        input=str(s.output),
        validation_input="",
        validation_share=0.3,
        near_duplicate=1.0,
        model=str(save_base(home / "tiny")),
        output=home / "reward",
        batch_pairs=2,
    )
    train_reward_model.main(trained)
    meta = json.loads((home / "reward/train_reward_model.meta.json").read_text())
    assert meta["counts"]["read"] == 5 and meta["counts"]["left_out"] == {}
    model = RewardModel.load(home / "reward")
    texts = [
        (pair.prompt, [str(side[0]["content"]) for side in (pair.chosen, pair.rejected)])  # pyright: ignore[reportArgumentType]
        for pair in pairs_of(s)
    ]
    for scores in model.score(texts):
        assert isinstance(scores, list) and np.isfinite(scores).all()


def test_a_run_killed_at_every_step_ends_in_the_same_bytes_and_samples_nothing_twice(home):
    command = [sys.executable, "-m", "tests.killed_runs", "build_pairwise_prefs", str(home)]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert int(shown.split()[-2]) >= 8
    for ending in ("jsonl", "rejects.jsonl"):
        assert (home / f"killed.{ending}").read_bytes() == (home / f"whole.{ending}").read_bytes()
    assert len((home / "whole.jsonl").read_text().splitlines()) == 5
    done = [(home / f"{name}.done.txt").read_text().splitlines() for name in ("killed", "whole")]
    assert sorted(done[0]) == sorted(done[1])  # so none twice
    assert len(done[1]) == len(set(done[1])) > 5 * 4
    assert not list(home.glob(".*"))


def test_a_run_stopped_half_way_ends_in_the_same_bytes_and_samples_nothing_twice(home):
    def judge_too(request: Request, sample: int) -> str:
        if "\t" in request.id:
            return '{"reason": "x", "better_answer": 1}'
        return quote(request, sample)

    class Dying(ScriptedEngine):
        def generate(self, requests):
            for done, result in enumerate(super().generate(requests)):
                if done == limit:
                    raise KeyboardInterrupt
                yield result

    whole = settings(home, scorer="judge", min_margin=0)
    complete = len(run(whole, judge_too).asked)
    stopped = whole.model_copy(update={"output": home / "stopped.jsonl"})
    asked = []
    for limit in (2, 3, 7):  # noqa: B007  (Dying reads it)
        engine = Dying(judge_too)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, engine)
        asked += [request.id for request in engine.asked[:-1]]  # the last one was not answered
        assert not stopped.output.exists()
    asked += [request.id for request in run(stopped, judge_too).asked]
    for ending in (".jsonl", ".rejects.jsonl"):
        name = whole.output.with_suffix(ending).name.replace("pairs", "stopped")
        assert (home / name).read_bytes() == whole.output.with_suffix(ending).read_bytes()
    assert len(asked) == len(set(asked)) == complete
    assert run(stopped, judge_too).asked == []


def test_what_is_left_out_is_told_by_reason(home, capsys):
    rows = [(id, *rest) for (_, *rest), id in zip(ROWS, "abcde", strict=True)]
    write_table(
        home / "t.csv",
        [*rows, ("f", " ", "x", "y"), ("g", "nan", "x", "y"), ("h", "numbers", "", "")],
    )
    texts = {
        "a": ["same", " same", "same\n", "same"],
        "b": ["", " ", "only one", ""],
        "c": ["I don't know.", "I don't know", "I do not know", "I don't know!"],
        "d": ["last list", "list last", "LAST LIST", "list, last"],
        "e": None,
        "h": ["The sum of two", "bananas", "x", "y"],
    }
    s = settings(home, keywords=["sum"])
    run(s, lambda request, sample: texts[request.id] and texts[request.id][sample])
    assert rejects_of(s) == {
        "a": "equal_answers",
        "b": "equal_answers",
        "c": "no_winner",
        "d": "small_margin",
        "e": "scripted_failure",
        "f": "empty_question",
        "g": "empty_question",
    }
    assert [pair.id for pair in pairs_of(s)] == ["h"]
    assert "8 queries read = 1 kept + 7 left out" in capsys.readouterr().out


def test_an_abstention_wins_only_where_the_context_does_not_answer(home):
    write_table(home / "t.csv", ROWS[:1])
    for threshold, chosen in ((-1, ANSWERS[0]), (2, ANSWERS[1])):
        s = settings(home, answer_threshold=threshold, sure_threshold=threshold + 0.1).model_copy(
            update={"output": home / f"{threshold}.jsonl"}
        )
        run(s, lambda request, sample: ANSWERS[sample])
        (pair,) = pairs_of(s)
        assert pair.chosen == [{"role": "assistant", "content": chosen}]
        assert (pair.is_answerable, pair.abstention_worth) == (threshold < 0, threshold > 0)


def test_keywords_come_from_the_row_then_the_settings_then_query_and_context(home):
    rows = [(*ROWS[0], "alpha; beta"), (*ROWS[1], "")]
    write_table(home / "t.csv", rows, ("id", "query", "code", "description", "words"))
    keywords_of_pairs = []
    for keywords in ([], ["gamma"]):
        s = settings(home, keywords=keywords, keywords_column="words", overwrite=True)
        run(s)
        keywords_of_pairs.append([pair.keywords for pair in pairs_of(s)])
    by_rule = score.extract_keywords(ROWS[1][1], f"{ROWS[1][3]}\n\n{ROWS[1][2]}", 8)
    assert keywords_of_pairs == [[["alpha", "beta"], by_rule], [["alpha", "beta"], ["gamma"]]]
    assert by_rule[:3] == ["cut", "text", "lines"]


def test_the_closing_lines_show_the_grounding_of_both_sides_and_of_a_random_document(home, capsys):
    s = settings(home)
    run(s)
    rows = pairs_of(s)
    chosen = round(sum(pair.chosen_parts["grounding"] for pair in rows) / 5, 4)
    rejected = round(sum(pair.rejected_parts["grounding"] for pair in rows) / 5, 4)
    assert chosen > rejected
    shown = f"5 pairs: chosen {chosen:.3f}, rejected {rejected:.3f}, random document 0."
    said = capsys.readouterr().out
    assert shown in said and "abstention" not in said


def test_an_abstention_is_counted_and_in_no_mean_of_grounding(home, capsys):
    write_table(home / "t.csv", ROWS[:2])
    s = settings(home, num_candidates=2)
    texts = {
        "add": ["The sum of two numbers.", "I don't know."],
        "cut": ["Lines of a text as a list.", "Eh."],
    }
    run(s, lambda request, sample: texts[request.id][sample])
    first, second = pairs_of(s)
    assert first.rejected_parts["is_abstention"] and first.rejected_parts["grounding"] == 0
    means = json.loads(s.output.with_suffix(".meta.json").read_text())["mean_grounding"]
    chosen = (first.chosen_parts["grounding"] + second.chosen_parts["grounding"]) / 2
    assert means["chosen"] == pytest.approx(chosen, abs=1e-4)
    assert means["rejected"] == second.rejected_parts["grounding"]
    assert "1 abstentions are in no mean: 0 chosen, 1 rejected" in capsys.readouterr().out


# ---- the judge


def verdicts_by_length(request: Request, sample: int) -> str:
    """A judge that likes long answers, except that it cannot read the word Bananas."""
    if "\t" not in request.id:
        return ANSWERS[sample]
    text = request.messages[0]["content"]
    if "Bananas" in text:
        return "both are fine"
    one, two = text.split("[Answer 1]\n")[1].split("\n\nWhich")[0].split("\n\n[Answer 2]\n")
    return json.dumps({"reason": "long", "better_answer": 1 if len(one) > len(two) else 2})


def test_the_judge_compares_every_two_answers_in_both_orders(home):
    write_table(home / "t.csv", ROWS[:1])
    s = settings(home, scorer="judge", write_candidates=True)
    engine = run(s, verdicts_by_length)
    asked = [request.id for request in engine.asked if "\t" in request.id]
    assert sorted(asked) == sorted(f"add\t{a}\t{b}" for a in range(4) for b in range(4) if a != b)
    (pair,) = pairs_of(s)
    assert pair.candidates is not None
    # three opponents in two orders: 6. Bananas (2) is never readable.
    # 0 wins against 1 and 3: 4 of 6. 3 wins against 1, loses against 0: 0. 1 loses 4 of 6.
    scores = [round(4 / 6, 6), round(-4 / 6, 6), 0.0, 0.0]
    assert [c["parts"]["judge_score"] for c in pair.candidates] == scores
    assert (pair.chosen_sample, pair.rejected_sample) == (0, 1)
    assert pair.margin == pytest.approx(8 / 6, abs=1e-5)
    assert pair.scorer == "judge"


def test_the_judge_is_greedy_and_sees_the_context_with_the_question(home):
    write_table(home / "t.csv", ROWS[:1])
    engine = run(settings(home, scorer="judge", max_new_tokens=99), verdicts_by_length)
    comparisons = [request for request in engine.asked if "\t" in request.id]
    for request in comparisons:
        assert (request.temperature, request.top_p, request.top_k) == (0.0, 1.0, 0)
        assert (request.max_new_tokens, request.samples) == (99, (0,))
        assert request.reply_schema == judgment_schema("en")
        assert "[Context]\nThe sum of two numbers." in request.messages[0]["content"]


def test_a_query_of_which_a_comparison_failed_is_left_out_by_its_reason(home):
    def failing(request: Request, sample: int) -> str | None:
        return None if request.id == "cut\t2\t0" else verdicts_by_length(request, sample)

    s = settings(home, scorer="judge", min_margin=0)
    run(s, failing)
    assert rejects_of(s)["cut"] == "scripted_failure"
    assert "cut" not in {pair.id for pair in pairs_of(s)} and len(pairs_of(s)) > 0


@pytest.mark.parametrize("judge_model", [None, "scripted", "another"])
def test_a_model_is_loaded_once_and_only_where_there_is_work(home, monkeypatch, judge_model):
    opened = []

    def open_engine(self: Settings, model: str) -> ScriptedEngine:
        opened.append(model)
        return ScriptedEngine(verdicts_by_length)

    monkeypatch.setattr(Settings, "open_engine", open_engine)
    s = settings(home, scorer="judge", judge_model=judge_model, min_margin=0)
    build_pairwise_prefs.main(s, None, WordEmbedder())
    models = ["scripted", "another"] if judge_model == "another" else ["scripted"]
    assert opened == models
    build_pairwise_prefs.main(s, None, WordEmbedder())  # finished before
    assert opened == models


def test_the_judges_agreement_with_the_heuristic_is_reported(home, capsys):
    write_table(home / "t.csv", ROWS[:1])
    s = settings(home, scorer="judge")
    run(s, verdicts_by_length)
    meta = json.loads(s.output.with_suffix(".meta.json").read_text())
    report = meta["judge_against_heuristic"]
    # 6 pairs, 3 of them with Bananas unreadable; the other 3 agree with the heuristic's order
    assert (report["n"], report["readable"], report["accuracy"]) == (6, 0.5, 0.5)
    assert report["agreement"] == 1.0
    assert "judge: agrees with the heuristic in 50.0%" in capsys.readouterr().out


def test_both_keeps_what_the_judge_does_not_contradict(home):
    write_table(home / "t.csv", ROWS[:1])

    def contrary(request: Request, sample: int) -> str:
        text = verdicts_by_length(request, sample)
        if not text.startswith("{"):
            return text
        verdict = json.loads(text)
        return json.dumps(verdict | {"better_answer": 3 - verdict["better_answer"]})

    agreed = settings(home, scorer="both")
    run(agreed, verdicts_by_length)
    (pair,) = pairs_of(agreed)
    assert pair.margin == pytest.approx(
        pair.chosen_parts["score"] - pair.rejected_parts["score"], abs=1e-6
    )
    against = agreed.model_copy(update={"output": home / "against.jsonl"})
    with pytest.raises(SystemExit, match="judge_disagrees"):
        run(against, contrary)


# ---- bad input


def test_a_template_without_the_context_is_refused(home):
    (home / "t.jinja").write_text("{{ question }}")
    with pytest.raises(templates.TemplateError, match="does not use context"):
        run(settings(home, template=str(home / "t.jinja")))


def test_a_missing_store_and_a_store_of_another_model_are_refused(home):
    with pytest.raises(DataError, match=r"run build_vector_store\.py first"):
        run(settings(home).model_copy(update={"store": home / "none"}))
    embedder = WordEmbedder()
    embedder.identity = "another"
    with pytest.raises(DataError, match="was built with words"):
        build_pairwise_prefs.main(settings(home), ScriptedEngine(quote), embedder)


def test_a_missing_column_is_named(home):
    with pytest.raises(DataError, match=r"t\.csv:2: column 'frage' is missing; .*id, query"):
        run(settings(home, query_column="frage"))


def test_a_table_without_a_row_stops_before_anything_is_sampled(home):
    write_table(home / "t.csv", [])
    engine = ScriptedEngine(quote)
    with pytest.raises(DataError, match=r"t\.csv: no row to read"):
        run(settings(home), engine)


def test_a_context_of_200k_characters_is_cut_and_counted(home, capsys):
    words = " ".join(f"zebra{i}" for i in range(25_000))
    assert len(words) > 200_000
    write_table(home / "t.csv", [*ROWS, ("long", "find the zebra7", words, "")])
    store = build_vector_store.Settings(
        input=home / "t.csv", output=home / "store", max_document_characters=300_000
    )
    build_vector_store.main(store.model_copy(update={"overwrite": True}), WordEmbedder())
    s = settings(home, max_context_characters=1000, min_margin=0)
    run(s, lambda request, sample: f"zebra7 zebra8 {'word ' * sample}")
    (pair,) = (pair for pair in pairs_of(s) if pair.id == "long")
    (turn,) = pair.prompt
    assert isinstance(turn, dict) and len(turn["content"]) < 1300
    assert pair.document_ids == ["long"]
    assert "1 contexts were cut at --max-context-characters" in capsys.readouterr().out


def test_duplicate_ids_stop_before_anything_is_sampled(home):
    write_table(home / "t.csv", [*ROWS, ROWS[0]])
    engine = ScriptedEngine(quote)
    with pytest.raises(DataError, match="ids must be unique"):
        run(settings(home), engine)
    assert engine.asked == []
