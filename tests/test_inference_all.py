"""inference_all: the three prompts of an item, and a run that is killed. The engine is scripted."""

from collections import Counter

import pytest

from embedded.server import Server, last_message
from inference_all import VARIANTS, Settings, main
from prefpipe.files import DataError, write_rows
from prefpipe.judge import judge_prompt
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import Item
from tests.examples import item, ledger, read_jsonl, run_stage, says, sentence

ITEMS = [
    item("i0", better=1),
    item("i1", better=2),
    item("i2", better=2, language="zh"),
    item("tie", better=None),
]
META = "inference_all.meta.json"


def answer(request, sample: int) -> str:
    return f"said of {request.id}"


@pytest.fixture
def s(tmp_path) -> Settings:
    write_rows(tmp_path / "items.jsonl", ITEMS, Item)
    return Settings(input=tmp_path / "items.jsonl", output=tmp_path / "raw", model="none")


def outputs(s: Settings) -> dict[str, list]:
    return {variant: read_jsonl(s.output / f"{variant}.jsonl") for variant in VARIANTS}


def test_each_item_gets_a_text_for_the_right_hint_the_wrong_one_and_none(s):
    engine = ScriptedEngine(answer)
    main(s, engine)
    for variant, rows in outputs(s).items():
        assert [row["id"] for row in rows] == ["i0", "i1", "i2"]
        assert {(row["variant"], row["sample"]) for row in rows} == {(variant, 0)}
    hints = {variant: [row["hint"] for row in rows] for variant, rows in outputs(s).items()}
    assert hints == {"guide": [1, 2, 2], "guide_reverse": [2, 1, 1], "output": [None] * 3}
    counts = ledger(s.output / META)
    assert counts["left_out"] == {"tie": 1} and counts["kept"] == 3
    assert len(engine.asked) == 9


def test_the_hinted_prompts_differ_in_the_hint_and_the_trained_one_has_none(s):
    engine = ScriptedEngine(answer)
    main(s, engine)
    prompts = [request.messages[0]["content"] for request in engine.asked]
    for k, made in enumerate(ITEMS[:3]):
        guide, reverse, output = prompts[3 * k : 3 * k + 3]
        differences = [(a, b) for a, b in zip(guide, reverse, strict=True) if a != b]
        assert differences == [(str(made.better), str(3 - (made.better or 0)))]
        assert output == made.prompt
        texts = made.question, made.answer_1, made.answer_2
        assert guide == judge_prompt(*texts, language=made.language, hint=made.better)


def test_all_three_are_greedy_unless_said_otherwise(s):
    engine = ScriptedEngine(answer)
    main(s, engine)
    assert {(r.temperature, r.samples) for r in engine.asked} == {(0.0, (0,))}
    update = {"temperature": 0.7, "top_p": 0.9, "top_k": 11, "max_new_tokens": 33, "seed": 5}
    engine = ScriptedEngine(answer)
    main(s.model_copy(update=update | {"overwrite": True}), engine)
    for request in engine.asked:
        assert {name: getattr(request, name) for name in update} == update


def test_a_run_killed_half_way_ends_in_the_same_bytes_and_asks_nothing_twice(s, tmp_path):
    main(s, ScriptedEngine(answer))
    killed = s.model_copy(update={"output": tmp_path / "killed"})
    engines = []
    for at in (4, 2, 99):  # in the middle of an item's three, both times

        def die(request, sample, at=at):
            if len(engines[-1].asked) > at:
                raise KeyboardInterrupt
            return answer(request, sample)

        engines.append(ScriptedEngine(die))
        if at == 99:
            main(killed, engines[-1])
        else:
            with pytest.raises(KeyboardInterrupt):
                main(killed, engines[-1])
            assert not list(killed.output.glob("[!.]*"))
            engines[-1].asked.pop()
    assert outputs(killed) == outputs(s)
    for variant in VARIANTS:
        name = f"{variant}.jsonl"
        assert (killed.output / name).read_bytes() == (s.output / name).read_bytes()
    asked = Counter(request.id for engine in engines for request in engine.asked)
    assert len(asked) == 9 and set(asked.values()) == {1}


def test_an_item_without_one_of_its_three_is_left_out_of_all_by_reason(s):
    main(s, ScriptedEngine(lambda r, k: None if r.id == "i1\tguide_reverse\t1" else "x"))
    assert {v: [row["id"] for row in rows] for v, rows in outputs(s).items()} == {
        variant: ["i0", "i2"] for variant in VARIANTS
    }
    assert ledger(s.output / META)["left_out"] == {"scripted_failure": 1, "tie": 1}


def test_a_hinted_template_of_ones_own_reaches_the_model_and_must_have_the_hint(s, tmp_path):
    template = tmp_path / "mine.jinja"
    s = s.model_copy(update={"guide_template": str(template)})
    template.write_text("{{ question }}|{{ answer_1 }}|{{ answer_2 }}")
    engine = ScriptedEngine(answer)
    with pytest.raises(DataError, match=r"mine\.jinja: does not use hint"):
        main(s, engine)
    assert not engine.asked
    template.write_text("{{ question }}|{{ answer_1 }}|{{ answer_2 }}|{{ hint }}")
    main(s.model_copy(update={"overwrite": True}), engine)
    made = ITEMS[0]
    expected = f"{made.question}|{made.answer_1}|{made.answer_2}|1"
    assert engine.asked[0].messages[0]["content"] == expected
    assert engine.asked[2].messages[0]["content"] == made.prompt


def test_only_ties_are_no_use(s):
    write_rows(s.input, [item("a", better=None)], Item)
    with pytest.raises(SystemExit, match=r"not one of 1 items could be used \(\{'tie': 1\}\)"):
        main(s, None)


def test_the_command_asks_a_server(tmp_path):
    write_rows(tmp_path / "items.jsonl", ITEMS, Item)
    with Server(lambda body, sample: says(1, f"{len(last_message(body))} letters")) as server:
        result = run_stage(
            "inference_all", "--input", "items.jsonl", "--output", "raw", "--model", "m",
            "--engine", "server", "--base-urls", server.url, cwd=tmp_path,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "raw: 4 items read = 3 kept + 1 left out (1 tie); "
        "written: 3 in guide.jsonl, 3 in guide_reverse.jsonl, 3 in output.jsonl\n"
    )
    rows = read_jsonl(tmp_path / "raw/output.jsonl")
    assert [row["text"] for row in rows] == [
        says(1, f"{len(made.prompt)} letters") for made in ITEMS[:3]
    ]


def test_a_wrong_file_is_one_sentence(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": "a"}\n')
    result = run_stage("inference_all", "--input", "items.jsonl", "--output", "raw", cwd=tmp_path)
    assert "not one of 1 items could be used ({'bad_row': 1})" in sentence(result)
    (reject,) = read_jsonl(tmp_path / "raw/inference_all.rejects.jsonl")
    assert reject["id"] == "items.jsonl:1" and reject["detail"].startswith("source: found")
