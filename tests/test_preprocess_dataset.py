"""preprocess_dataset: raw preferences to judge items, as a user runs it and as a function."""

import csv
import json
import random
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

import config
from prefpipe.evaluation.overlap import Overlap
from prefpipe.files import DataError
from preprocess_dataset import Settings, main
from tests.examples import ledger, read_jsonl, run_stage, sentence, write_jsonl

META, REJECTS = "preprocess_dataset.meta.json", "preprocess_dataset.rejects.jsonl"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def raw(k: int, **changes) -> dict:
    """A plain row; each k is another question, and no two are alike."""
    subject = random.Random(k).sample(["tea", "rice", "snow", "jazz", "chess", "tides", "moss"], 4)
    question = f"In {1000 + 7 * k} words, how do {', '.join(subject)} go together?"
    row = {"id": f"r{k}", "prompt": question, "chosen": f"good {k}", "rejected": f"bad {k}"}
    return row | {"source": "test"} | changes


def preprocess(folder: Path, records: list, name: str = "items", **settings) -> dict[str, list]:
    """main() on these records; the rows of each file it wrote."""
    source = write_jsonl(folder / f"{name}.raw.jsonl", records)
    options = {"input": str(source), "validation_input": "", "output": folder / name}
    main(Settings(**(options | settings)))
    names = ("train.jsonl", "validation.jsonl", REJECTS)
    return {Path(n).stem.split(".")[-1]: read_jsonl(folder / name / n) for n in names}


def test_rows_in_and_out_are_as_recorded(golden, tmp_path):
    """As a user runs it: many forms of a row, and what is wrong with some."""
    conversation = [turn("user", "hi"), turn("assistant", "hello"), turn("user", "and you?")]
    records = [
        raw(0, source="sums", margin=0.5),
        {
            "chosen": [*conversation, turn("assistant", "Fine.\n[Answer 2]\nnothing")],
            "rejected": [*conversation, turn("assistant", "4")],
            "source": "chat",
        },
        raw(2, id="00123", prompt="2加2等于几?", chosen="等于4。", rejected="等于5。"),
        raw(3, id="a_b", tie=True),
        *(raw(k) for k in range(4, 10)),
        raw(10, chosen="same\n", rejected=" same"),
        raw(11, prompt=" "),
        raw(12, rejected=""),
        {"prompt": "no id", "chosen": "a", "rejected": "b"},
        {"prompt": "no id", "chosen": "a", "rejected": "b"},
        {"chosen": "a", "rejected": "b"},
        raw(13, id=1.5),
    ]
    source = write_jsonl(tmp_path / "raw.jsonl", records)
    with source.open("a") as file:
        file.write("not json\n")
    result = run_stage(
        "preprocess_dataset", "--input", "raw.jsonl", "--validation-input", "",
        "--validation-share", "0.3", "--output", "items", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for name in ("train.jsonl", "validation.jsonl", REJECTS):
        golden(f"preprocess_dataset/{name}", (tmp_path / "items" / name).read_text("utf-8"))
    golden("preprocess_dataset/stdout.txt", result.stdout)
    counts = ledger(tmp_path / "items" / META)
    assert counts["read"] == 18
    assert counts["left_out"] == {
        "bad_row": 3, "equal_answers": 1, "empty_question": 1, "empty_answer": 1,
        "duplicate_row": 1,
    }  # fmt: skip


def test_the_order_of_the_rows_and_a_limit_change_no_item(tmp_path):
    records = [raw(k) for k in range(60)]
    whole = preprocess(tmp_path, records, "whole")
    turned = preprocess(tmp_path, records[::-1], "turned")
    for split in ("train", "validation"):
        assert turned[split] == whole[split][::-1] and whole[split]
    first = preprocess(tmp_path, records, "first", limit=20)
    for split in ("train", "validation"):
        wanted = [row for row in whole[split] if int(row["id"][1:]) < 20]
        assert first[split] == wanted


def test_shards_give_the_rows_of_the_whole(tmp_path):
    records = [raw(k) for k in range(40)]
    whole = preprocess(tmp_path, records, "whole")
    halves = [preprocess(tmp_path, records[k::2], f"shard{k}") for k in (0, 1)]
    for split in ("train", "validation"):
        both = [row for half in halves for row in half[split]]
        assert sorted(both, key=lambda row: row["id"]) == sorted(
            whole[split], key=lambda row: row["id"]
        )


def test_another_seed_places_the_answers_anew(tmp_path):
    records = [raw(k) for k in range(40)]
    places = [
        {row["id"]: row["better"] for split in ("train", "validation") for row in found[split]}
        for found in (preprocess(tmp_path, records, str(seed), seed=seed) for seed in (1, 2))
    ]
    assert places[0].keys() == places[1].keys() and places[0] != places[1]
    assert {1, 2} == set(places[0].values())


def test_no_question_is_on_both_sides_not_even_nearly(tmp_path):
    """One question in three wordings: each row of it is in the split, or left out by reason."""
    records = []
    for k in range(80):
        row = raw(k)
        other = row["prompt"].replace("?", " ?!").upper()
        nearly = f"{row['prompt']} Be brief."
        records += [
            row,
            row | {"id": f"u{k}", "prompt": other},
            row | {"id": f"n{k}", "prompt": nearly},
        ]
    found = preprocess(tmp_path, records, validation_share=0.3, near_duplicate=0.7)
    sides = {row["id"]: split for split in ("train", "validation") for row in found[split]}
    left_out = {row["id"]: row["reason"] for row in found["rejects"]}
    assert set(left_out.values()) == {"near_duplicate_of_validation"}
    for k in range(80):
        assert sides.get(f"r{k}") == sides.get(f"u{k}")
        assert len({sides[id] for id in (f"r{k}", f"u{k}", f"n{k}") if id in sides}) <= 1
    assert sum(id.startswith("n") for id in left_out) > 5


def test_held_out_rows_of_their_own_file_are_never_trained_on(tmp_path):
    """A row that stands in both files is validation's; it is not lost from both."""
    train = [raw(k, id=None) for k in range(10)]
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [raw(k, id=None) for k in (3, 20, 21)])
    found = preprocess(tmp_path, train, validation_input=str(held_out))
    assert [row["question"] for row in found["validation"]] == [
        raw(k)["prompt"] for k in (3, 20, 21)
    ]
    assert len(found["train"]) == 9
    (reject,) = found["rejects"]
    assert reject["reason"] == "near_duplicate_of_validation"
    assert reject["detail"].endswith("items.raw.jsonl:4")
    assert not {r["question"] for r in found["train"]} & {
        r["question"] for r in found["validation"]
    }


def test_two_rows_of_one_id_are_an_error_with_both_places(tmp_path):
    with pytest.raises(DataError) as error:
        preprocess(tmp_path, [raw(0), raw(1), raw(2, id="r0")])
    path = f"{tmp_path}/items.raw.jsonl"
    assert str(error.value) == (
        f"{path}:3: id 'r0' stands at {path}:1 already; ids must be unique "
        "(--id-column None makes them of the content)"
    )
    assert not (tmp_path / "items/train.jsonl").exists()
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [raw(9, id="r1")])
    with pytest.raises(DataError, match=r"held_out\.jsonl:1: id 'r1' stands at .*raw\.jsonl:2 alr"):
        preprocess(tmp_path, [raw(0), raw(1)], validation_input=str(held_out))


def test_ids_that_repeat_can_be_left_alone(tmp_path):
    """In one file, and in both: then ids are made of the content, and 0 is an id like any other."""
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [raw(9, id=0), raw(8, id=7)])
    rows = [raw(0, id=0), raw(1, id=0)]
    options = {"validation_input": str(held_out), "near_duplicate": 1.0}
    found = preprocess(tmp_path, rows, id_column=None, **options)
    assert len({row["id"] for split in ("train", "validation") for row in found[split]}) == 4
    found = preprocess(tmp_path, [raw(0, id=1.0), raw(1, id=2.0)], "floats", **options)
    assert [row["id"] for row in found["train"]] == ["1", "2"]
    assert [row["id"] for row in found["validation"]] == ["0", "7"]


def test_the_held_out_rows_of_the_sample_stay_out_of_another_input(tmp_path):
    """validation_input is empty as soon as an input is given, wherever it is given."""
    assert Settings().validation_input == config.RAW_VALIDATION
    assert Settings(input="mine.jsonl").validation_input == ""
    assert Settings.from_command_line(["--input", "mine.jsonl"]).validation_input == ""
    both = ["--input", "mine.jsonl", "--validation-input", "v.jsonl"]
    assert Settings.from_command_line(both).validation_input == "v.jsonl"
    write_jsonl(tmp_path / "mine.jsonl", [raw(k) for k in range(30)])
    result = run_stage(
        "preprocess_dataset", "--input", "mine.jsonl", "--output", "items", cwd=tmp_path
    )
    assert result.returncode == 0 and ledger(tmp_path / "items" / META)["read"] == 30


def test_columns_are_named_on_the_command_line(tmp_path):
    """As a user does, with a label in the words of the data."""
    rows = [
        {"no": k, "ask": {"text": raw(k)["prompt"]}, "a": f"A{k}", "b": f"B{k}", "won": won, "who": "Be brief."}
        for k, won in enumerate(("left", "right", "even"))
    ]  # fmt: skip
    write_jsonl(tmp_path / "mine.jsonl", rows)
    result = run_stage(
        "preprocess_dataset", "--input", "mine.jsonl", "--output", "items", "--validation-share", "0",
        "--prompt-column", "ask.text", "--system-column", "who", "--answer-columns", "a", "--answer-columns", "b",
        "--label-column", "won", "--labels", '["Left", "Right", "Even"]', "--id-column", "no", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    items = read_jsonl(tmp_path / "items/train.jsonl")
    better = [item[f"answer_{item['better'] or 1}"] for item in items]
    assert better[:2] == ["A0", "B1"] and [item["better"] is None for item in items] == [
        False,
        False,
        True,
    ]
    assert [item["id"] for item in items] == ["0", "1", "2"]
    assert items[0]["question"].startswith("System: Be brief.\n\nUser: In ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--answer-columns", '["a", "b"]'], "answer_columns: wanted two, and label_column, strength_column"),
        (["--label-column", "won"], "name answer_columns"),
        (["--answer-columns", '["a", "b"]', "--label-column", "won"], "say with --labels what it holds"),
        (["--format", "skywork", "--label-column", "won"], "name answer_columns"),
        (["--format", "rlhflow-pair", "--margin-column", "won"], "takes no columns: margin"),
    ],
)  # fmt: skip
def test_columns_that_do_not_make_a_pair_are_a_sentence(tmp_path, options, said):
    write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "Q", "a": "x", "b": "y", "won": "a"}])
    assert said in sentence(
        run_stage("preprocess_dataset", "--input", "mine.jsonl", *options, cwd=tmp_path)
    )


def test_rows_that_share_words_with_a_benchmark_are_left_out_by_name(tmp_path):
    """What accuracy.py counts as seen: after it, nothing of the benchmark is."""
    words = "one two three four five six seven eight nine ten"
    bench = [{"input": f"Say {words}", "output_1": "x", "output_2": "y", "label": 1},
             {"input": "Short?", "output_1": "x", "output_2": "y", "label": 2}]  # fmt: skip
    write_jsonl(tmp_path / "llmbar.jsonl", bench)
    rows = [
        raw(0),
        raw(1, prompt=f"Now: {words.upper()}!"),
        raw(2, rejected=f"... {words}"),
        raw(3, chosen="short"),
    ]
    entry = f"llmbar={tmp_path / 'llmbar.jsonl'}"
    found = preprocess(tmp_path, rows, validation_share=0, not_in=[entry])
    assert [row["id"] for row in found["train"]] == ["r0"]
    assert [(r["id"], r["reason"]) for r in found["rejects"]] == [
        (f"r{k}", "in_benchmark") for k in (1, 2, 3)
    ]
    assert found["rejects"][0]["detail"].startswith(f"{tmp_path}/items.raw.jsonl:2: as llmbar:")
    seen = Overlap({"a": f"Say {words}", "b": "Short?"})
    for row in found["train"]:
        seen.add(f"{row['question']} {row['answer_1']} {row['answer_2']}")
    assert seen.report()["seen"] == 0
    with pytest.raises(SystemExit, match="--not-in nonsense=x: wanted name=path"):
        preprocess(tmp_path, rows, "other", not_in=["nonsense=x"])


def test_every_file_format_gives_the_same_items(tmp_path):
    records = [raw(k, id=id) for k, id in enumerate(["00123", "12e45", "a_b", "1.0", "nan"])]
    expected = preprocess(tmp_path, records, "jsonl")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "raw.parquet")
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    with (tmp_path / "raw.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*records[0], "margin", "tie"])
        writer.writeheader()
        writer.writerows(records)
    for name in ("raw.parquet", "raw.csv", "saved"):
        output = tmp_path / f"from_{name}"
        main(Settings(input=str(tmp_path / name), validation_input="", output=output))
        for split in ("train", "validation"):
            assert read_jsonl(output / f"{split}.jsonl") == expected[split], name
    ids = {row["id"] for split in ("train", "validation") for row in expected[split]}
    assert ids == {"00123", "12e45", "a_b", "1.0", "nan"}


def test_a_template_of_ones_own_is_the_prompt_and_part_of_the_fingerprint(tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ question }}|{{ answer_1 }}|{{ answer_2 }}")
    found = preprocess(tmp_path, [raw(0)], template=str(template), validation_share=0)
    (row,) = found["train"]
    assert row["prompt"] == f"{row['question']}|{row['answer_1']}|{row['answer_2']}"
    template.write_text("{{ question }}/{{ answer_1 }}/{{ answer_2 }}")
    with pytest.raises(SystemExit, match=r"input mine\.jinja"):
        preprocess(tmp_path, [raw(0)], template=str(template), validation_share=0)


def test_a_name_that_is_no_file_is_one_of_the_hub(tmp_path, monkeypatch):
    """Also one that ends in .1, as the published recipe's data does."""
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return [raw(k) for k in range(5)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *a, **k: ["train", "test"])
    name = "Skywork/Skywork-Reward-Preference-80K-v0.1"
    main(Settings(input=name, validation_input="", output=tmp_path / "items", limit=3))
    assert ledger(tmp_path / "items" / META)["read"] == 3
    options = {"split": "train", "streaming": True, "revision": None}
    assert asked == [(name, None, options)] * 2  # a pass for the split


def test_the_split_that_a_set_holds_out_is_held_out(tmp_path, capsys):
    """The same rows as of the two files by their names; a test split is in neither."""
    rows = {"train": [raw(k) for k in range(6)], "validation": [raw(k) for k in range(6, 9)]}
    for name, some in (rows | {"test": [raw(9)]}).items():
        write_jsonl(tmp_path / "set" / f"{name}.jsonl", some)
    main(Settings(input=str(tmp_path / "set"), output=tmp_path / "items"))
    for split in ("train", "validation"):
        ids = [row["id"] for row in read_jsonl(tmp_path / "items" / f"{split}.jsonl")]
        assert ids == [str(row["id"]) for row in rows[split]]
    said = capsys.readouterr()
    assert f"{tmp_path / 'set'}[validation]: read as" in said.out
    assert "reads train; there is also validation, test (--split)" in said.err


@pytest.mark.parametrize("name", ["raw.jsonl", "some/raw.parquet", "./raw", "/a/b", "a/b/c"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, name):
    result = run_stage(
        "preprocess_dataset", "--input", name, "--validation-input", "", cwd=tmp_path
    )
    assert sentence(result) == f"preprocess_dataset: {name}: no such file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no row to read"),
        (b'{"prompt": "p", "chosen": "c"}\n', "not one of 1 rows could be used ({'bad_row': 1}); first: raw.jsonl:1: rejected: missing; "
         "found prompt, chosen; name yours with --rejected-column; each with its reason in"),
        (b'[{"prompt": "p"}\n', "raw.jsonl: begins as a JSON array, and is none"),
        ('{"prompt": "ä"}\n'.encode("latin-1"), "raw.jsonl:1: byte 12 is not UTF-8"),
        (b'{"id": "a", "prompt": "p", "chosen": "c", "rejected": "r"}\n' * 2, "raw.jsonl:2: id 'a' stands"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_one_sentence(tmp_path, content, said):
    (tmp_path / "raw.jsonl").write_bytes(content)
    result = run_stage(
        "preprocess_dataset", "--input", "raw.jsonl", "--validation-input", "", "--output", "items",
        cwd=tmp_path,
    )  # fmt: skip
    assert said in sentence(result)
    assert not (tmp_path / "items/train.jsonl").exists()


def test_strict_stops_at_the_first_bad_row_with_its_line_and_field(tmp_path):
    write_jsonl(tmp_path / "raw.jsonl", [raw(0), raw(1, margin="wide"), raw(2)])
    result = run_stage(
        "preprocess_dataset", "--input", "raw.jsonl", "--validation-input", "", "--strict",
        "--output", "items", "--format", "skywork", cwd=tmp_path,
    )  # fmt: skip
    assert sentence(result) == (
        "preprocess_dataset: raw.jsonl:2: margin: found 'wide', wanted a number >= 0 "
        "(--margin-column None: no margins)"
    )
    assert not list((tmp_path / "items").glob("*"))


def test_the_second_run_is_finished_and_overwrite_makes_the_same_bytes(tmp_path, capsys):
    found = preprocess(tmp_path, [raw(k) for k in range(9)])
    before = {p.name: p.read_bytes() for p in (tmp_path / "items").glob("*.jsonl")}
    assert preprocess(tmp_path, [raw(k) for k in range(9)]) == found
    assert "finished before" in capsys.readouterr().out
    preprocess(tmp_path, [raw(k) for k in range(9)], overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "items").glob("*.jsonl")} == before
    meta = json.loads((tmp_path / "items" / META).read_text())
    assert meta["settings"]["seed"] == 2021


def test_every_format_of_pairs_is_read(tmp_path):
    record = {
        "question": "Why?", "response_A": "Since.", "response_B": "No.", "label": "B>A",
        "pair_id": "j1", "source": "livebench-math",
    }  # fmt: skip
    found = preprocess(tmp_path, [record], format="judgebench", validation_share=0)
    (item,) = found["train"]
    assert (item["id"], item["source"]) == ("j1", "judgebench/math")
    assert item[f"answer_{item['better']}"] == "No."


def test_a_format_that_is_none_is_refused_with_those_that_are(tmp_path):
    result = run_stage("preprocess_dataset", "--format", "skywrok", cwd=tmp_path)
    assert "setting format (from the command line): found 'skywrok'" in sentence(result)
    assert "'skywork'" in sentence(result) and "'hh-rlhf'" in sentence(result)
