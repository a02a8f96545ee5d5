"""prefpipe.training.preferences: which rows are held out, which nearly are, in which order they come."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from prefpipe.files import WHOLE
from prefpipe.files.ledger import Ledger
from prefpipe.files.shards import Shards
from prefpipe.formats.opening import HowRead
from prefpipe.near_duplicates import NearDuplicates
from prefpipe.questions import splits
from prefpipe.training.preferences import Placed, RawPreferences
from tests.examples import ROOT, write_jsonl


class Counted(Ledger):
    """What read() needs of a run."""

    shards = Shards(WHOLE, Path("x"), by_logs=False)

    def __init__(self):
        super().__init__([])
        self.bad: list[tuple[str, str]] = []
        self.summary = {}

    def bad_row(self, place, error, hint=""):
        self.bad.append((place, str(error)))


def row(k: int, **changes) -> dict:
    words = random.Random(k).sample(["tea", "rice", "snow", "jazz", "chess", "tides", "moss"], 4)
    question = f"In {1000 + 7 * k} words, how do {', '.join(words)} go together?"
    return {"id": f"r{k}", "prompt": question, "chosen": f"good {k}", "rejected": "bad"} | changes


def raw(train: Path, validation: Path | str = "", **changes) -> RawPreferences:
    options = {"validation_share": 0.3, "near_duplicate": 0.7, "seed": 2021, "limit": None}
    options |= {"how": HowRead(changes.pop("format", "auto"))}
    return RawPreferences(str(train), str(validation), **(options | changes))


def read(preferences: RawPreferences, first="train") -> tuple[list[Placed], Counted]:
    run = Counted()
    rows: list[Placed] = list(preferences.read(run, first))  # pyright: ignore[reportArgumentType]
    return rows, run


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """200 train rows, more than one block, a tenth nearly held-out ones; 70 held-out rows."""
    train = [row(k) for k in range(180)]
    near = [row(500 + k) for k in range(20)]
    train += [
        {**r, "id": f"n{k}", "prompt": f"{r['prompt']} Be brief."} for k, r in enumerate(near)
    ]
    random.Random(0).shuffle(train)
    held_out = near + [row(600 + k) for k in range(50)]
    return write_jsonl(tmp_path / "t.jsonl", train), write_jsonl(tmp_path / "v.jsonl", held_out)


def test_near_duplicates_are_those_found_one_question_at_a_time(files):
    rows, _ = read(raw(*files))
    held_out = NearDuplicates((str(p.row.prompt) for p in rows if p.split == "validation"), 0.7)
    expected = [p.split == "train" and str(p.row.prompt) in held_out for p in rows]
    assert [p.leaks is not None for p in rows] == expected and 15 < sum(expected) <= 20


@pytest.mark.parametrize("first", ["train", "validation"])
def test_each_row_comes_once_with_its_place_the_first_file_before_the_other(files, first):
    rows, run = read(raw(*files), first)
    assert run.read_count == 270 == len({p.place for p in rows})
    counts = {"train": 200, "validation": 70}
    assert [p.split for p in rows[: counts[first]]] == [first] * counts[first]
    file = files[0] if first == "train" else files[1]
    assert rows[0].place == f"{file}:1" and rows[0].file == str(file)


def test_a_share_is_held_out_by_question_and_seed(files):
    (train, _) = files
    rows, _ = read(raw(train))
    asked = [str(p.row.prompt) for p in rows]
    assert [p.split for p in rows] == splits(asked, validation_share=0.3, seed=2021)
    other, _ = read(raw(train, seed=7))
    assert [p.split for p in other] != [p.split for p in rows]


def test_a_row_that_is_none_is_the_runs_and_holds_nothing_out(tmp_path):
    """A bad held-out row, and bad rows where a share is held out: no row after it changes sides."""
    bad = {"prompt": row(3)["prompt"], "chosen": "c"}
    records: list = [row(k) for k in range(40)]
    records[3:3] = [bad, "not an object"]
    rows, run = read(raw(write_jsonl(tmp_path / "t.jsonl", records)))
    good, _ = read(raw(write_jsonl(tmp_path / "good.jsonl", [row(k) for k in range(40)])))
    assert [p.split for p in rows] == [p.split for p in good] and len(run.bad) == 2
    validation = write_jsonl(tmp_path / "v.jsonl", [bad, row(50)])
    rows, _ = read(raw(tmp_path / "good.jsonl", validation))
    assert not any(p.leaks for p in rows)


def test_an_empty_id_is_none(tmp_path):
    """A CSV file has "" where there is none; 0 is one."""
    records = [row(0, id=""), row(1, id=None), row(2, id=0), row(3)]
    rows, _ = read(raw(write_jsonl(tmp_path / "t.jsonl", records)))
    assert [p.has_id for p in rows] == [False, False, True, True]


def test_the_question_is_the_formats_own_whatever_else_a_record_has(tmp_path):
    """LLMBar asks in `input`; a column of the name `prompt` beside it decides no split."""
    records = [
        {"input": row(k)["prompt"], "output_1": "a", "output_2": "b", "label": 1, "prompt": "same"}
        for k in range(40)
    ]
    rows, _ = read(raw(write_jsonl(tmp_path / "t.jsonl", records), format="llmbar"))
    asked = [str(p.row.prompt) for p in rows]
    assert [p.split for p in rows] == splits(asked, validation_share=0.3, seed=2021)
    assert {p.split for p in rows} == {"train", "validation"}


def test_it_loads_nothing_that_trains():
    code = "import sys, prefpipe.training.preferences; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_two_splits_of_one_folder_are_two_sides(tmp_path):
    """Both inputs then have one name."""
    write_jsonl(tmp_path / "d/train.jsonl", [row(k) for k in range(6)])
    write_jsonl(tmp_path / "d/test.jsonl", [row(100 + k) for k in range(3)])
    for first in ("train", "validation"):
        rows, run = read(raw(tmp_path / "d", tmp_path / "d", validation_split="test"), first)
        sides = {placed.row.id: placed.split for placed in rows}
        assert [sides[f"r{k}"] for k in range(6)] == ["train"] * 6
        assert [sides[f"r{100 + k}"] for k in range(3)] == ["validation"] * 3
        assert run.read_count == 9 and not run.bad
