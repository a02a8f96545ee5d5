"""Shards put together are one run. The whole run is the other way to compute what is compared."""

import hashlib
import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import construct_dpo_dataset
import create_annotation_mix
import dpo_dataset
import generate_responses
import inference_all
import inference_best_of_n
import parse_preferences
import post_processing
import preprocess_dataset
import rank_responses
import report
import train_reward_model
import translation
from prefpipe.files import DataError, Shard, read_rows, write_rows
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import AnnotationAnswer, AnnotationPrompt, Item
from tests.examples import write_jsonl

COUNT = 3


def number(*names: object) -> int:
    return int(hashlib.sha256(":".join(map(str, names)).encode()).hexdigest(), 16)


def judge(request: Any, sample: int) -> str | None:
    """A verdict, some of which nobody can read; of one request in 20 nothing."""
    n = number(request.id, sample)
    if n % 7 == 0:
        return "who knows"
    return json.dumps({"reason": f"because {n % 997}", "better_answer": 1 + n % 2})


def preferences(folder: Path, rows: int) -> Path:
    """With every kind of row that is left out: copies, ties, empty ones, near-duplicates, broken ones."""
    made = []
    for k in range(rows):
        words = random.Random(k).sample(
            ["tea", "rice", "snow", "jazz", "chess", "tides", "moss"], 4
        )
        row = {"prompt": f"In {1000 + 7 * k} words, how do {', '.join(words)} go together?"}
        row |= {"chosen": f"good {k}", "rejected": f"bad {k}", "source": f"s{k % 3}"}
        row |= [{"rejected": ""}, {"tie": True}, {"prompt": 7}, {}, {}, {}][k % 6]
        if k % 6 == 5:  # nearly the row before: where the two are on two sides, one is left out
            row["prompt"] = f"{made[-1]['prompt']} Say it briefly."
        made.append(made[-1] if k % 11 == 10 else row)
    return write_jsonl(folder / "raw.jsonl", made)


def snapshot(folder: Path) -> dict[str, Any]:
    """Each file's bytes; of a .meta.json all but times and settings. No hidden file is left."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        assert not any(part.startswith(".") for part in path.relative_to(folder).parts), name
        if name.endswith(".meta.json"):
            meta = json.loads(path.read_text())
            found[name] = {
                k: v for k, v in meta.items() if k not in ("seconds", "settings", "libraries")
            }
        else:
            found[name] = path.read_bytes()
    return found


def same_as_one_run(main: Any, settings: Any, folder: Path, capsys) -> dict[str, Any]:
    """The stage whole, then in shards, in another order and one of them twice; both left the same in
    the folder, and said the same at their end."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    capsys.readouterr()
    main(settings)
    whole, said = snapshot(folder), capsys.readouterr().out
    shutil.rmtree(folder)
    for path, content in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for shard in ("3/3", "1/3", "2/3", "1/3"):
        try:
            main(settings.model_copy(update={"shard": shard}))
        except SystemExit as end:  # a shard that leaves logs
            assert not end.code
    capsys.readouterr()
    main(settings.model_copy(update={"shard": "all/3"}))
    together = snapshot(folder)
    for name, content in whole.items():
        assert together.get(name) == content, name
    assert together.keys() == whole.keys()
    assert capsys.readouterr().out.splitlines()[-1] == said.splitlines()[-1]
    return whole


def test_each_id_is_of_one_shard_and_each_shard_has_its_share():
    ids = [f"q{k}" for k in range(3000)]
    owners = [[n for n in range(1, 8) if Shard(n, 7).owns(id)] for id in ids]
    assert all(len(own) == 1 for own in owners)
    counts = [sum(own == [n] for own in owners) for n in range(1, 8)]
    assert min(counts) > 350 and max(counts) < 510
    assert all(Shard().owns(id) for id in ids)


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1/1", "3", "a/3", "1/3/4", "-1/3", "all/1", "all", ""]
)
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="wanted 3/16"):
        Shard.parse(text)


def test_the_judge_path_in_shards_is_one_run(tmp_path, capsys):
    """Row stages and stages that ask, JSONL and Parquet, rows left out of every kind."""
    data = tmp_path / "data"
    raw = preferences(tmp_path, 240)
    items, english, raw_judgments = data / "items", data / "english", data / "judgments"
    one = {"input": str(raw), "validation_input": "", "output": items, "prompt_column": "prompt"}
    made = same_as_one_run(
        preprocess_dataset.main,
        preprocess_dataset.Settings(**one, near_duplicate=0.6, validation_share=0.2),
        data, capsys,
    )  # fmt: skip
    left_out = made["items/preprocess_dataset.meta.json"]["counts"]["left_out"]
    reasons = {"bad_row", "duplicate_row", "empty_answer", "near_duplicate_of_validation"}
    assert reasons <= left_out.keys(), left_out
    s = translation.Settings(input=items, output=english, offline=True, max_rows=60)
    made = same_as_one_run(translation.main, s, data, capsys)
    assert made["english/translation.meta.json"]["counts"]["left_out"]["beyond_max_rows"] > 9

    def ask(main):
        return lambda s: main(s, ScriptedEngine(judge))

    s = inference_best_of_n.Settings(input=english, output=raw_judgments / "best_of_n.jsonl", n=4)
    same_as_one_run(ask(inference_best_of_n.main), s, data, capsys)
    s = inference_all.Settings(input=english, output=raw_judgments)
    same_as_one_run(ask(inference_all.main), s, data, capsys)
    s = post_processing.Settings(items=english, input=raw_judgments, output=data / "clean")
    made = same_as_one_run(post_processing.main, s, data, capsys)
    assert len(made["clean/post_processing.meta.json"]["unreadable"]) == 4
    s = construct_dpo_dataset.Settings(items=english, input=data / "clean", output=data / "dpo")
    made = same_as_one_run(construct_dpo_dataset.main, s, data, capsys)
    assert made["dpo/construct_dpo_dataset.meta.json"]["counts"]["written"]["train.parquet"] > 60


def test_more_rows_than_a_row_group_are_the_bytes_of_one_run(tmp_path, capsys):
    data = tmp_path / "data"
    rows = [
        {"id": f"q{k}", "prompt": f"what is {k}?", "chosen": f"yes {k}", "rejected": f"no {k}"}
        for k in range(1500)
    ]
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    preprocess_dataset.main(
        preprocess_dataset.Settings(input=str(raw), validation_input="", output=data / "items")
    )
    judged = {"input": data / "items", "output": data / "judgments/best_of_n.jsonl", "n": 4}
    inference_best_of_n.main(inference_best_of_n.Settings(**judged), ScriptedEngine(judge))
    judged |= {"output": data / "judgments"}
    del judged["n"]
    inference_all.main(inference_all.Settings(**judged), ScriptedEngine(judge))
    s = {"items": data / "items", "input": data / "judgments", "output": data / "clean"}
    post_processing.main(post_processing.Settings(**s))
    s |= {"input": data / "clean", "output": data / "dpo"}
    made = same_as_one_run(
        construct_dpo_dataset.main, construct_dpo_dataset.Settings(**s), data, capsys
    )
    written = made["dpo/construct_dpo_dataset.meta.json"]["counts"]["written"]
    assert written["train.parquet"] > 2000


def test_the_synthetic_path_in_shards_is_one_run(tmp_path, capsys):
    data, k = tmp_path / "data", 90
    prompts = write_jsonl(
        tmp_path / "prompts.jsonl",
        [{"id": f"p{n}", "prompt": f"Question {n}?"} for n in range(k)]
        + [{"id": "bad", "prompt": ""}],
    )
    models: Any = [{"name": name, "model": name} for name in ("a", "b", "c")]

    def texts(request: Any, sample: int) -> str | None:
        n = number(request.id)
        return None if n % 9 == 0 else "same" if n % 5 == 0 else f"answer {n % 1000}"

    s = generate_responses.Settings(
        input=str(prompts), output=data / "responses", models=models, engine="local"
    )
    ask = partial(generate_responses.main, open_engine=lambda s: ScriptedEngine(texts))
    same_as_one_run(ask, s, data, capsys)
    s = create_annotation_mix.Settings(
        input=data / "responses", prompts=str(prompts), output=data / "mix", k=3, swapped_share=0.3
    )
    made = same_as_one_run(create_annotation_mix.main, s, data, capsys)
    assert made["mix/create_annotation_mix.meta.json"]["counts"]["left_out"]
    asked = list(read_rows(data / "mix/annotation_prompts.jsonl", AnnotationPrompt))

    def rated(row: AnnotationPrompt) -> str:
        n = number(row.id, row.aspect, row.swapped)
        given = [f"Text {t}\nRating: {1 + (n >> 3 * t) % 5}" for t in range(1, row.texts + 1)]
        return "\n\n".join(given) if n % 8 else "none of them"

    answers = [
        AnnotationAnswer(
            id=row.id, aspect=row.aspect, swapped=row.swapped, model="m", text=rated(row),
            finish_reason="stop", prompt_tokens=1, new_tokens=1,
        )
        for row in asked
    ]  # fmt: skip
    write_rows(data / "answers.jsonl", answers, AnnotationAnswer)
    s = parse_preferences.Settings(
        input=data / "answers.jsonl", prompts=data / "mix/annotation_prompts.jsonl",
        mix=data / "mix/mix.jsonl", output=data / "preferences/p.jsonl", pairs="all",
    )  # fmt: skip
    made = same_as_one_run(parse_preferences.main, s, data, capsys)
    ratings = made["preferences/p.meta.json"]["ratings"]
    assert all(of["mean"] and of["agreement"] and of["unreadable"] for of in ratings.values())


def test_a_ranking_in_shards_is_one_run(tmp_path, capsys):
    """What hangs on the windows of rows: shards bring their logs. A failure of theirs stays one."""
    data = tmp_path / "data"
    rows = [
        {
            "id": f"p{k}",
            "prompt": f"Question {k}?",
            "responses": [f"text {k} {n}" for n in range(4)],
        }
        for k in range(40)
    ]
    source = write_jsonl(tmp_path / "responses.jsonl", rows)
    s = rank_responses.Settings(input=source, output=data / "ranking", by="judge", judge="m")
    asked: list[str] = []

    def fails_at_some(request: Any, sample: int) -> str | None:
        asked.append(request.id)
        return None if request.id.startswith(("p3\t", "p17\t")) else judge(request, sample)

    made = same_as_one_run(
        lambda s: rank_responses.main(s, judge=ScriptedEngine(fails_at_some)), s, data, capsys
    )
    counts = made["ranking/rank_responses.meta.json"]["counts"]
    assert counts["left_out"] == {"scripted_failure": 2}
    assert len(asked) == 2 * len(set(asked)) + 0, "each was asked once whole and once in a shard"


def whole_and_shards(tmp_path: Path, *shards: str, **changes: Any) -> Any:
    raw = preferences(tmp_path, 30)
    s = preprocess_dataset.Settings(input=str(raw), validation_input="", output=tmp_path / "items")
    for shard in shards:
        preprocess_dataset.main(s.model_copy(update={"shard": shard}))
    return s.model_copy(update=changes)


def test_a_shard_that_is_missing_or_unfinished_is_named(tmp_path):
    s = whole_and_shards(tmp_path, "1/4", "3/4", shard="all/4")
    with pytest.raises(DataError, match=r"2 of 4 shards are not finished: 2, 4; run --shard 2/4"):
        preprocess_dataset.main(s)
    assert [p.name for p in (tmp_path / "items").iterdir()] == [".preprocess_dataset.shards"]


def test_shards_of_other_settings_are_not_put_together(tmp_path):
    s = whole_and_shards(tmp_path, "1/2", shard="2/2", seed=5)
    preprocess_dataset.main(s)
    with pytest.raises(DataError, match=r"setting seed 2021 -> 5.*run --shard 1/2 again"):
        preprocess_dataset.main(s.model_copy(update={"shard": "all/2"}))


@pytest.mark.parametrize("damage", ["cut", "more", "gone"])
def test_a_shard_that_lost_rows_since_is_refused_and_nothing_is_written(tmp_path, damage):
    s = whole_and_shards(tmp_path, "1/2", "2/2", shard="all/2")
    path = tmp_path / "items/.preprocess_dataset.shards/2-of-2/train.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:-1] if damage == "cut" else [*lines, lines[0]]))
    with pytest.raises(DataError, match=r"2-of-2/train\.jsonl: .*run that shard again"):
        preprocess_dataset.main(s)
    assert not (tmp_path / "items/train.jsonl").exists()


def test_a_shard_of_a_run_that_is_whole_has_nothing_to_do(tmp_path, capsys):
    s = whole_and_shards(tmp_path, "1/2", "2/2", "all/2", shard="2/2")
    preprocess_dataset.main(s)
    assert "put together already" in capsys.readouterr().out
    assert not (tmp_path / "items/.preprocess_dataset.shards").exists()


def test_a_shard_without_rows_is_a_shard(tmp_path):
    raw = write_jsonl(
        tmp_path / "raw.jsonl", [{"id": "a", "prompt": "p", "chosen": "c", "rejected": "r"}]
    )
    s = preprocess_dataset.Settings(
        input=str(raw), validation_input="", validation_share=0.0001, output=tmp_path / "items"
    )
    for shard in ("1/3", "2/3", "3/3", "all/3"):
        preprocess_dataset.main(s.model_copy(update={"shard": shard}))
    assert len((tmp_path / "items/train.jsonl").read_text().splitlines()) == 1


def test_two_passes_over_the_rows_at_once_count_for_themselves(tmp_path):
    """As where a paid reply is looked at while the rest is still asked."""
    s = whole_and_shards(tmp_path)
    preprocess_dataset.main(s)
    judged = post_processing.Settings(items=tmp_path / "items", output=tmp_path / "clean")
    with judged.open_run(inputs=[judged.items], outputs={tmp_path / "x.jsonl": Item}) as run:
        first, positions = run.peek(judged.items, Item), []
        for _ in first:
            positions.append(run.position)
            next(run.peek(judged.items, Item))
        for item in run.read(judged.items, Item):
            run.emit(item)
    assert positions == list(range(len(positions))) and len(positions) > 9


@pytest.mark.parametrize("stage", [dpo_dataset, report, train_reward_model])
def test_what_is_not_cut_into_shards_says_so(stage):
    with pytest.raises(ValidationError, match="not cut into shards"):
        stage.Settings(shard="1/2")


def test_a_log_of_a_shard_that_is_damaged_is_a_sentence(tmp_path):
    rows = [{"id": f"p{k}", "prompt": "q", "responses": ["a", "b"]} for k in range(4)]
    source = write_jsonl(tmp_path / "responses.jsonl", rows)
    s = rank_responses.Settings(input=source, output=tmp_path / "ranking", by="judge", judge="m")
    engine = ScriptedEngine(judge)
    for shard in ("1/2", "2/2"):
        with pytest.raises(SystemExit):
            rank_responses.main(s.model_copy(update={"shard": shard}), judge=engine)
    (log,) = (tmp_path / "ranking/.rank_responses.shards/1-of-2").glob("*.partial.jsonl")
    log.write_text(log.read_text().replace('"id"', '"di"'))
    with pytest.raises(DataError, match=r"1-of-2/.*partial\.jsonl:2: "):
        rank_responses.main(s.model_copy(update={"shard": "all/2"}), judge=engine)
