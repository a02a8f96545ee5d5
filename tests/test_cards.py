"""prefpipe.publish.cards: what is beside a data set is what the hub and `datasets` read."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

from prefpipe.files import Run, StageFacts, read_rows
from prefpipe.publish.cards import TITLES, write_data_card
from prefpipe.reasons import REASONS
from prefpipe.rows import Item, JudgmentPair, Preference, Ranking, Reject, Row, SyntheticPair
from tests.examples import ROOT, item, read_jsonl, run_stage, write_jsonl

TURNS = [{"role": "user", "content": "2+2?"}]
PREFERENCES = [
    {"id": "a", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": None},
    {"id": "b", "prompt": "2+3?", "chosen": "5", "rejected": "4", "margin": 1.5},
]
RANKING = {
    "id": "a", "by": "reward", "tournament": None, "ranking": [0, 1], "copies": [[0], [1]],
    "scores": [1.0, 0.0], "margins": [1.0], "best": 0, "worst": 1, "comparisons": [],
    "cycle": None, "best_is_right": None, "right_share": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def run_of(
    tmp_path: Path,
    outputs: Mapping[Path, type[Row]],
    source: Path,
    home: Path | None = None,
    **settings,
) -> Run:
    settings = {"seed": 7, "input": str(source), "output": str(next(iter(outputs))), **settings}
    facts = StageFacts("rank_responses", {"seed": 7, **settings}, settings, None, True, False)
    return Run(facts, inputs=[source], outputs=outputs, home=home, card=write_data_card)


def write_run(run: Run, source: Path, rows: Mapping[Path, Sequence[Row]], rejects: int = 0) -> None:
    with run:
        run.read_count += 1
        run.keep(*((path, row) for path, kept in rows.items() for row in kept))
        for number in range(rejects):
            run.read_count += 1
            run.emit(Reject(id=str(number), reason="tie"))


def preferences(rows=PREFERENCES) -> list[Row]:
    return [Preference.model_validate(row) for row in rows]


def code_of(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    return code


def test_train_and_validation_are_two_splits_of_one_config_and_nothing_else_is_data(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    folder = tmp_path / "items"
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "validation")}
    rows = {paths["train"]: [item("a"), item("b")], paths["validation"]: [item("c")]}
    write_run(
        run_of(tmp_path, dict.fromkeys(paths.values(), Item), source, folder), source, rows, 3
    )
    write_jsonl(folder / "other.jsonl", [{"no": "data"}])
    loaded = datasets.load_dataset(str(folder))
    assert {name: split["id"] for name, split in loaded.items()} == {
        "train": ["a", "b"], "validation": ["c"],
    }  # fmt: skip
    assert set(loaded["train"].column_names) == set(Item.model_fields)
    data = DatasetCard.load(folder / "README.md").data.to_dict()
    assert data["size_categories"] == ["n<1K"] and "license" not in data
    assert data["task_categories"] == ["text-classification"]


def test_a_split_without_a_row_is_left_out_for_it_has_no_columns(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    folder = tmp_path / "items"
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "validation")}
    outputs = dict.fromkeys(paths.values(), Item)
    write_run(run_of(tmp_path, outputs, source, folder), source, {paths["train"]: [item("a")]})
    assert list(datasets.load_dataset(str(folder))) == ["train"]


def test_preferences_are_loaded_unasked_and_rankings_by_their_name(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    folder = tmp_path / "ranking"
    rankings, chosen = folder / "rankings.jsonl", folder / "preferences.jsonl"
    run = run_of(tmp_path, {rankings: Ranking, chosen: Preference}, source, folder)
    write_run(run, source, {rankings: [Ranking.model_validate(RANKING)], chosen: preferences()})
    assert datasets.load_dataset(str(folder))["train"]["id"] == ["a", "b"]
    other = datasets.load_dataset(str(folder), "rankings")["train"]
    assert other["best"] == [0] and other["copies"] == [[[0], [1]]]


@pytest.mark.parametrize("form", ["text", "turns"])
def test_texts_and_turns_are_loaded_as_they_were_written(tmp_path, form):
    rows: list = [*PREFERENCES]
    if form == "turns":
        for row in rows:
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            turns = {k: [{"role": role, "content": row[k]}] for k, role in roles.items()}
            rows = [*rows[1:], {**row, **turns}]
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    path = tmp_path / "out" / "preferences.jsonl"
    write_run(run_of(tmp_path, {path: Preference}, source), source, {path: preferences(rows)})
    loaded = datasets.load_dataset(str(path.parent))["train"]
    assert [*loaded] == read_jsonl(path)
    assert "some are turns" not in (path.parent / "README.md").read_text()


def test_a_file_of_texts_and_turns_is_named_for_datasets_reads_its_texts_as_json(tmp_path, capsys):
    answers = [[{"role": "assistant", "content": text}] for text in ("4", "5")]
    turns = {"id": "c", "prompt": TURNS, "chosen": answers[0], "rejected": answers[1]}
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    path = tmp_path / "out" / "preferences.jsonl"
    rows = preferences([*PREFERENCES, turns])
    write_run(run_of(tmp_path, {path: Preference}, source), source, {path: rows})
    said = "some rows are text and some are turns"
    assert said in capsys.readouterr().err
    assert f"- {said.capitalize()}" in (path.parent / "README.md").read_text()
    # why it is said: what `datasets` makes of it
    assert datasets.load_dataset(str(path.parent))["train"][0]["chosen"] == 4


def test_the_ledger_names_each_reason_with_its_count_and_meaning(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    path = tmp_path / "out" / "preferences.jsonl"
    write_run(run_of(tmp_path, {path: Preference}, source), source, {path: preferences()}, 3)
    card = (path.parent / "README.md").read_text()
    assert "4 read = 1 kept + 3 left out." in card
    assert f"| `tie` | 3 | {REASONS['tie']} |" in card


def test_a_readme_of_another_is_not_touched(tmp_path, capsys):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    (tmp_path / "README.md").write_text("# Mine\n")
    path = tmp_path / "best.jsonl"
    write_run(run_of(tmp_path, {path: Preference}, source), source, {path: preferences()})
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert "the card is" in capsys.readouterr().err
    assert DatasetCard.load(tmp_path / "best.README.md").data.to_dict()["configs"][0]["data_files"]
    # nor the card of another output in the same folder
    (tmp_path / "README.md").unlink()
    for name in ("one", "two"):
        path = tmp_path / f"{name}.jsonl"
        write_run(run_of(tmp_path, {path: Preference}, source), source, {path: preferences()})
    assert "path: one.jsonl" in (tmp_path / "README.md").read_text()
    assert "path: two.jsonl" in (tmp_path / "two.README.md").read_text()


def test_a_run_that_fails_leaves_no_card(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    path = tmp_path / "out" / "preferences.jsonl"
    with pytest.raises(RuntimeError), run_of(tmp_path, {path: Preference}, source) as run:
        run.read_count += 1
        run.emit(preferences(), to=path)
        raise RuntimeError
    assert not path.parent.exists()


def test_a_stage_leaves_a_card_whose_code_runs_and_a_second_run_keeps_an_edited_one(
    tmp_path, monkeypatch, capsys
):
    source = write_jsonl(
        tmp_path / "mine.jsonl",
        [{"prompt": f"{n}+{n}?", "chosen": str(2 * n), "rejected": "no"} for n in range(30)]
        + [{"prompt": "same?", "chosen": "yes", "rejected": "yes"}],
    )
    card = tmp_path / "items" / "README.md"
    command = ("preprocess_dataset", "--input", source.name, "--output", "items")
    result = run_stage(*command, cwd=tmp_path, env={"OPENAI_API_KEY": "sk-" + "q9" * 12})
    assert result.returncode == 0, result.stderr
    text = card.read_text()
    assert "| `equal_answers` | 1 |" in text and "It begins with `mine.jsonl`" in text
    assert str(tmp_path) not in text and "q9q9" not in text
    monkeypatch.chdir(tmp_path)
    code = code_of(text)
    assert len([line for line in code.split("\n") if line]) == 5
    exec(code, {})
    assert "num_rows" in capsys.readouterr().out
    rows = sum(
        1
        for split in ("train", "validation")
        for _ in read_rows(card.parent / f"{split}.jsonl", Item)
    )
    assert rows == 30
    card.write_text(text.replace("Items for a judge", "My items"))
    assert run_stage(*command, cwd=tmp_path).returncode == 0
    assert "My items" in card.read_text()


def test_every_type_of_row_that_gets_a_card_has_its_words():
    template = (ROOT / "prefpipe/templates/data_card.jinja").read_text(encoding="utf-8")
    for kind in TITLES:
        if kind != "Preference":  # what is said of all others
            assert template.count(f'kind == "{kind}"') == 3
    stages = [path for path in ROOT.glob("*.py") if "import write_data_card" in path.read_text()]
    named = set(re.findall(r"\b\w+\b", "".join(path.read_text() for path in stages)))
    assert len(stages) == 5 and set(TITLES) <= named
    assert {JudgmentPair.__name__, SyntheticPair.__name__} <= set(TITLES)


def test_the_settings_of_a_card_are_json_without_what_is_not_set(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{}])
    path = tmp_path / "out" / "preferences.jsonl"
    run = run_of(tmp_path, {path: Preference}, source, split=None, format="auto", by="reward")
    write_run(run, source, {path: preferences()})
    text = (path.parent / "README.md").read_text()
    shown = json.loads(text.partition("```json\n")[2].partition("```")[0])
    assert shown["by"] == "reward" and not {"split", "format"} & set(shown)
