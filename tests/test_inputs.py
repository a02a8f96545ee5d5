"""files.inputs, records and their readers: where a user's data may be, in which files, and which split."""

import gzip
import json
import lzma
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from prefpipe.files import DataError, Named, read_records

ROWS = [{"id": "a", "prompt": "Q1", "n": 1}, {"id": "b", "prompt": "Q2 ü", "n": 2}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(name, **options) -> list:
    return [record for _, record in Named(str(name), **options).records()]


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_lines_are_the_lines(tmp_path, ending):
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(PACKED[ending](LINES.encode()))
    assert list(read_records(path)) == [(f"{path}:{k}", row) for k, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("ending", PACKED)
def test_a_cut_compressed_file_is_a_sentence_with_its_place(tmp_path, ending):
    whole = PACKED[ending]("".join(f'{{"k": "{k * 7919}"}}\n' for k in range(9999)).encode())
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=rf"x.jsonl\{ending}:\d+: a broken \{ending} file from here"
    ):
        list(read_records(path))
    array = PACKED[ending](json.dumps([{"k": k * 7919} for k in range(9999)]).encode())
    path.write_bytes(array[: len(array) // 2])
    with pytest.raises(DataError, match=rf"x.jsonl\{ending}:1: a broken \{ending} file from here"):
        rows_of(path)
    path.write_bytes(b"no compressed file at all")
    with pytest.raises(DataError, match=rf"x.jsonl\{ending}:1: a broken"):
        list(read_records(path))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        "\n\n  " + json.dumps(ROWS, indent=2) + "\n",
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.0", "data": ROWS}, indent=1),
        json.dumps({"train": ROWS}, indent=4),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "\ufeff" + LINES,
        LINES.replace("\n", "\n\n"),
    ],
)
def test_json_in_any_shape_gives_its_rows(tmp_path, text):
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert rows_of(tmp_path / name) == ROWS


def test_a_single_row_that_holds_a_list_is_a_row(tmp_path):
    turns = {"messages": [{"role": "user", "content": "Q"}]}
    pair = {"prompt": "Q", "chosen": "a", "rejected": "b", "items": [{"x": 1}]}
    for row in (turns, pair):
        for text in (json.dumps(row), json.dumps(row, indent=2)):
            (tmp_path / "x.json").write_text(text)
            assert rows_of(tmp_path / "x.json") == [row]


def test_lines_of_which_the_first_is_broken_are_still_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "cut", "prom\n' + LINES)
    first, *others = rows_of(tmp_path / "x.jsonl")
    assert isinstance(first, ValueError) and others == ROWS


def test_a_broken_array_and_columns_are_sentences(tmp_path):
    (tmp_path / "x.json").write_text('[{"id": 1},\n {"id": ]')
    with pytest.raises(DataError, match=r"x.json: begins as a JSON array, and is none"):
        rows_of(tmp_path / "x.json")
    columns = {"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c", "1": "d"}}
    (tmp_path / "x.json").write_text(json.dumps(columns, indent=1))
    with pytest.raises(DataError, match=r"object of columns, as pandas writes it; .*lines=True"):
        rows_of(tmp_path / "x.json")


def test_tab_separated_arrow_and_parquet_files_are_read(tmp_path):
    (tmp_path / "x.tsv").write_text("id\tprompt\na\tone, two\n")
    assert rows_of(tmp_path / "x.tsv") == [{"id": "a", "prompt": "one, two"}]
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    for new in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
        with new(str(tmp_path / "x.arrow"), table.schema) as writer:
            writer.write_table(table)
        assert rows_of(tmp_path / "x.arrow") == rows_of(tmp_path / "x.parquet") == ROWS


def test_a_column_that_python_cannot_hold_does_not_hide_the_others(tmp_path):
    columns = {
        "prompt": pyarrow.array(["Q1", "Q2"]),
        "far": pyarrow.array([10**12, 1], pyarrow.timestamp("s")),  # the year 33,658
        "zone": pyarrow.array([0, 1], pyarrow.timestamp("s", tz="Nowhere/Atall")),
        "long": pyarrow.array([2**62, 1], pyarrow.duration("s")),
        "fine": pyarrow.array([datetime(2020, 1, 1), None], pyarrow.timestamp("us")),
        "short": pyarrow.array([timedelta(1), None], pyarrow.duration("us")),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet")
    assert [row["prompt"] for row in rows] == ["Q1", "Q2"]
    assert [row["fine"] for row in rows] == [datetime(2020, 1, 1), None]


# ---- several files, folders, splits


def write_shards(folder: Path, split: str, rows, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        table = pyarrow.Table.from_pylist(rows[k::count])
        pyarrow.parquet.write_table(table, folder / f"{split}-{k:05}-of-{count:05}.parquet")


def test_files_of_a_glob_come_in_their_order(tmp_path):
    for k, row in enumerate(ROWS):
        (tmp_path / f"part{k}.jsonl").write_text(json.dumps(row))
    named = Named(str(tmp_path / "part*.jsonl"))
    assert [record for _, record in named.records()] == ROWS
    assert [path.name for path in named.paths()] == ["part0.jsonl", "part1.jsonl"]
    assert len(list(named.records(limit=1))) == 1
    with pytest.raises(DataError, match=r"nothing\*\.jsonl: no such file"):
        rows_of(tmp_path / "nothing*.jsonl")


def test_a_clone_gives_its_training_split_and_says_so(tmp_path, capsys):
    write_shards(tmp_path / "data", "train", ROWS)
    write_shards(tmp_path / "data", "test", ROWS[:1], 1)
    (tmp_path / "README.md").write_text("# a data set\n")
    assert rows_of(tmp_path) == ROWS
    assert "reads train; there is also test (--split)" in capsys.readouterr().err
    assert rows_of(tmp_path, split="test") == ROWS[:1] and not capsys.readouterr().err
    with pytest.raises(DataError, match=r"the splits are train, test; choose with --split"):
        rows_of(tmp_path, split="dev")


def test_a_measurement_reads_the_test_split(tmp_path):
    write_shards(tmp_path / "data", "train", ROWS)
    write_shards(tmp_path / "data", "test", ROWS[:1], 1)
    assert rows_of(tmp_path, use="test") == ROWS[:1]
    assert rows_of(tmp_path, use="test", split="train") == ROWS


def test_a_split_that_is_there_to_be_held_out_is_found(tmp_path):
    for name in ("train", "validation", "test"):
        write_shards(tmp_path / "data", name, ROWS)
    assert Named(str(tmp_path)).held_out_split() == "validation"
    assert Named(str(tmp_path), split="train").held_out_split() is None  # it was asked for
    both = datasets.DatasetDict({n: datasets.Dataset.from_list(ROWS) for n in ("train", "dev")})
    both.save_to_disk(tmp_path / "saved")
    assert Named(str(tmp_path / "saved")).held_out_split() == "dev"
    both["train"].save_to_disk(tmp_path / "one")
    assert Named(str(tmp_path / "one")).held_out_split() is None
    with pytest.raises(DataError, match="has no splits; take --split away"):
        rows_of(tmp_path / "one", split="dev")


def test_splits_with_names_of_their_own_and_configs(tmp_path):
    write_shards(tmp_path / "data", "train_prefs", ROWS)
    write_shards(tmp_path / "data", "test_prefs", ROWS[:1], 1)
    head = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    paths = [f"  - split: {s}\n    path: data/{s}-*\n" for s in ("train_prefs", "test_prefs")]
    (tmp_path / "README.md").write_text(head + "".join(paths) + "---\n")
    assert rows_of(tmp_path) == ROWS
    other = "- config_name: other\n  data_files:\n" + paths[1]
    (tmp_path / "README.md").write_text(head.replace("default", "one") + paths[0] + other + "---\n")
    with pytest.raises(DataError, match=r"one.*other.*choose with --config"):
        rows_of(tmp_path)
    assert rows_of(tmp_path, config="other") == ROWS[:1]


def test_of_a_saved_dictionary_of_splits_the_test_split_is_read_by_its_name_only(tmp_path):
    parts = {
        "train": datasets.Dataset.from_list(ROWS),
        "test": datasets.Dataset.from_list(ROWS[:1]),
    }
    both: Any = datasets.DatasetDict
    both(parts).save_to_disk(str(tmp_path / "both"))
    parts["test"].save_to_disk(str(tmp_path / "one"))
    assert rows_of(tmp_path / "both") == ROWS
    assert rows_of(tmp_path / "both", split="test") == rows_of(tmp_path / "one") == ROWS[:1]


def test_a_folder_of_nothing_and_a_split_of_a_file_are_sentences(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: "):
        rows_of(tmp_path / "empty")
    (tmp_path / "x.jsonl").write_text(LINES)
    with pytest.raises(DataError, match="a file has no splits or configs"):
        rows_of(tmp_path / "x.jsonl", split="test")


def test_a_damaged_saved_data_set_is_a_sentence_with_its_folder(tmp_path):
    def damages():
        yield lambda f: (f / "dataset_info.json").write_text("{")
        yield lambda f: (f / "dataset_info.json").write_text(
            '{"features": {"a": {"_type": "Nope"}}}'
        )
        yield lambda f: (f / "state.json").write_text("{")
        yield lambda f: (f / "state.json").write_text("[]")
        arrow = "data-00000-of-00001.arrow"
        yield lambda f: (f / arrow).write_bytes(b"")
        yield lambda f: (f / arrow).write_bytes(b"garbage" * 99)
        yield lambda f: (f / arrow).write_bytes((f / arrow).read_bytes()[:200])

    for number, damage in enumerate(damages()):
        folder = tmp_path / str(number)
        datasets.Dataset.from_list(ROWS).save_to_disk(str(folder))
        damage(folder)
        with pytest.raises(DataError) as error:
            rows_of(folder)
        assert str(folder) in str(error.value) and len(str(error.value)) < 300
