"""post_processing: verdicts read out of judgments, four files aligned by id."""

import json

import pytest

from post_processing import VARIANTS, Settings, clean, main
from prefpipe.files import DataError, write_rows
from prefpipe.rows import Item, Judgment
from prefpipe.verdicts import parse_verdict
from tests.examples import item, judgment, ledger, read_jsonl, run_stage, says, sentence

META, REJECTS = "post_processing.meta.json", "post_processing.rejects.jsonl"


def four(made: Item, texts: list[str], guide: str, reverse: str, output: str) -> dict[str, list]:
    """The rows of one item, by variant."""
    better = made.better or 1
    rows = {
        "best_of_n": [judgment(made.id, k, text) for k, text in enumerate(texts)],
        "guide": [judgment(made.id, 0, guide, variant="guide", hint=better)],
        "guide_reverse": [judgment(made.id, 0, reverse, variant="guide_reverse", hint=3 - better)],
        "output": [judgment(made.id, 0, output, variant="output")],
    }
    return rows


def write(folder, items: list[Item], rows: dict[str, list]) -> Settings:
    write_rows(folder / "items.jsonl", items, Item)
    for variant in VARIANTS:
        write_rows(folder / f"raw/{variant}.jsonl", rows.get(variant, []), Judgment)
    return Settings(items=folder / "items.jsonl", input=folder / "raw", output=folder / "clean")


def together(*of_items: dict[str, list]) -> dict[str, list]:
    return {v: [row for rows in of_items for row in rows[v]] for v in VARIANTS}


def cleaned(s: Settings) -> dict[str, list]:
    return {variant: read_jsonl(s.output / f"{variant}.jsonl") for variant in VARIANTS}


A, B, C = item("a", better=1), item("b", better=2, language="zh"), item("c", better=2)
PLAIN = ([says(1), says(2)], "Why 1.", "Why 2.", says(1))


def test_rows_in_and_out_are_as_recorded(golden, tmp_path):
    """As a user runs it, with what models write."""
    s = write(
        tmp_path,
        [A, B, C],
        together(
            four(
                A,
                [
                    f"```json\n{says(1)}\n```",
                    'Sure! {"reason": "a\nb", "better_answer": "2"}',
                    "The first.",
                    '{"reason": "cut',
                    says(1) + says(2),
                    '{"reason": "r", "better_answer": 3}',
                ],
                'It says "good"\nand is.',
                says(1, "against the hint"),
                "",
            ),
            four(
                B,
                ["｛“原因”：“好”，“更好的回答”：２｝"],
                "“2”更好。",
                "1更好。",
                says(2, "好", "zh"),
            ),
            four(C, [says(2)], says(2, "C's own object"), "Why 1.", says(1)),
        ),
    )
    result = run_stage(
        "post_processing", "--items", s.items, "--input", s.input, "--output", "clean", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for variant in VARIANTS:
        name = f"{variant}.jsonl"
        golden(f"post_processing/{name}", (tmp_path / "clean" / name).read_text("utf-8"))
    golden("post_processing/stdout.txt", result.stdout)


def test_a_hinted_text_becomes_valid_json_whatever_it_says(tmp_path):
    awkward = 'It says "better_answer": 1,\nand \\ and } and “这个”.'
    s = write(
        tmp_path, [B, C], together(*(four(m, [says(1)], awkward, "x", says(1)) for m in (B, C)))
    )
    main(s)
    zh, en = cleaned(s)["guide"]
    assert json.loads(zh["judgment"]) == {"原因": awkward, "更好的回答": 2}
    assert json.loads(en["judgment"]) == {"reason": awkward, "better_answer": 2}
    assert [row["verdict"] for row in (zh, en)] == [2, 2]


def test_each_row_has_a_verdict_or_a_reason_and_its_judgment_is_read_the_same(tmp_path):
    s = write(tmp_path, [A], four(A, [says(1), "no", says(2), ""], "Why.", "", says(2)))
    main(s)
    for rows in cleaned(s).values():
        for row in rows:
            assert (
                (row["verdict"] is None) == (row["judgment"] is None) != (row["unreadable"] is None)
            )
            if row["judgment"]:
                assert getattr(parse_verdict(row["judgment"]), "better", None) == row["verdict"]
    assert [row["unreadable"] for row in cleaned(s)["best_of_n"]] == [
        None,
        "no_json",
        None,
        "empty",
    ]
    meta = json.loads((s.output / META).read_text())
    assert meta["readable"] == {"best_of_n": 2, "guide": 1, "guide_reverse": 0, "output": 1}
    assert meta["unreadable"] == {
        "best_of_n: no_json": 1, "best_of_n: empty": 1, "guide_reverse: empty": 1
    }  # fmt: skip


def test_a_cut_hinted_reason_is_unreadable():
    row = judgment("a", 0, "It is better bec", variant="guide", hint=1, finish_reason="length")
    assert clean(row, index=0, language="en").unreadable == "cut_off"


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_item_that_one_file_lacks_is_left_out_of_all_and_shifts_nothing(tmp_path, variant):
    rows = [four(made, *PLAIN) for made in (A, B, C)]
    rows[1][variant] = []
    s = write(tmp_path, [A, B, C], together(*rows))
    main(s)
    found = cleaned(s)
    for name, of_variant in found.items():
        ids = [row["id"] for row in of_variant]
        assert ids == (["a", "a", "c", "c"] if name == "best_of_n" else ["a", "c"])
        assert {row["id"]: row["index"] for row in of_variant} == {"a": 0, "c": 2}
    (reject,) = read_jsonl(s.output / REJECTS)
    assert (reject["id"], reject["reason"]) == ("b", f"no_{variant}")


def test_a_tie_is_left_out_as_a_tie(tmp_path):
    tie = item("t", better=None)
    s = write(tmp_path, [tie, A], four(A, *PLAIN))
    main(s)
    assert ledger(s.output / META)["left_out"] == {"tie": 1}


def test_judgments_of_other_items_are_an_error(tmp_path):
    s = write(tmp_path, [A, C], together(*(four(made, *PLAIN) for made in (A, B, C))))
    with pytest.raises(DataError, match=r"best_of_n\.jsonl: id 'b' is no item's id; make the file"):
        main(s)
    assert not s.output.exists() or not list(s.output.glob("*"))


def test_a_limit_takes_the_same_items_as_in_the_stages_before(tmp_path):
    """The first ones of train and of validation, from files that hold them all."""
    items = [
        item(f"{split[0]}{k}", split=split) for split in ("train", "validation") for k in (0, 1, 2)
    ]
    rows = together(*(four(made, *PLAIN) for made in items))
    s = write(tmp_path, items, rows)
    for split in ("train", "validation"):
        write_rows(tmp_path / f"both/{split}.jsonl", [m for m in items if m.split == split], Item)
    main(s.model_copy(update={"items": tmp_path / "both", "limit": 2}))
    assert [row["id"] for row in cleaned(s)["guide"]] == ["t0", "t1", "v0", "v1"]
    assert ledger(s.output / META)["left_out"] == {}


@pytest.mark.parametrize("id", ["00123", "12e45", "a_b", "1.0"])
def test_any_id_is_joined_as_the_text_it_is(tmp_path, id):
    made = item(id)
    s = write(tmp_path, [made], four(made, *PLAIN))
    main(s)
    assert [row["id"] for row in cleaned(s)["output"]] == [id]


def test_a_wrong_judgment_file_is_one_sentence_with_its_line(tmp_path):
    s = write(tmp_path, [A], four(A, *PLAIN))
    with (s.input / "guide.jsonl").open("a") as file:
        file.write('{"id": "b", "sample": 0}\n')
    options = ["--items", "items.jsonl", "--input", "raw", "--output", "clean"]
    said = sentence(run_stage("post_processing", *options, cwd=tmp_path))
    assert said.startswith("post_processing: raw/guide.jsonl:2: variant: found")
    (s.input / "output.jsonl").unlink()
    said = sentence(run_stage("post_processing", *options, cwd=tmp_path))
    assert (
        said
        == "post_processing: raw/output.jsonl: no such file; run the stage that writes it first"
    )
