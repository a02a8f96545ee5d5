"""accuracy: both judges on the same items and pairs, numbers by hand. The engines are scripted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from accuracy import JUDGES, Settings, main, parse_benchmarks
from accuracy import Judge as JudgeName
from embedded.server import Server, last_message
from prefpipe import judge
from prefpipe.files import DataError, write_rows
from prefpipe.llm import Failure
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import Item, JudgmentPair, Preference
from tests.examples import item, ledger, read_jsonl, run_stage, says, sentence, write_jsonl

META = "accuracy.meta.json"

# better answer, and lengths: i0's right answer is the longer one, i1's the shorter
ITEMS = [
    item("i0", better=1, split="validation", answer_1="right, long", answer_2="wrong"),
    item("i1", better=2, split="validation", answer_1="wrong, long", answer_2="right"),
    item("i2", better=1, split="validation", answer_1="right", answer_2="wrong"),
    item("i3", better=None, split="validation", answer_1="right", answer_2="wrong"),
]


def judgment_pair(id: str, kind: str = "hint") -> JudgmentPair:
    turns = {
        "prompt": [{"role": "user", "content": f"prompt of {id}"}],
        "chosen": [{"role": "assistant", "content": f"{id} chosen"}],
        "rejected": [{"role": "assistant", "content": f"{id} rejected"}],
    }
    made = {"id": id, "item_id": id, "split": "validation", "pair_type": kind, "better": 1}
    return JudgmentPair.model_validate(made | turns | {"chosen_sample": 0, "rejected_sample": 1})


PAIRS = [judgment_pair("p0"), judgment_pair("p1"), judgment_pair("p2", "best_of_n")]

# (summed log-probability, tokens) of chosen and of rejected
SCORES = {
    "base": {"p0": ((-4.0, 2), (-3.0, 1)), "p1": ((-2.0, 1), (-3.0, 3)), "p2": ((-9.0, 9), (-8.0, 4))},
    "tuned": {"p0": ((-3.5, 2), (-3.0, 1)), "p1": ((-2.0, 1), (-2.5, 3)), "p2": ((-5.0, 9), (-8.0, 4))},
}  # fmt: skip


@dataclass
class Scored:
    sum_logp: float
    n_tokens: int


class Judge(ScriptedEngine):
    """Says what verdict(request) says; scores as SCORES has it."""

    def __init__(self, name: str, verdict) -> None:
        super().__init__(lambda request, sample: verdict(request))
        self._scores = SCORES[name]
        self.scored: list[str] = []

    def score(self, prompted) -> Iterator[list[Scored] | Failure]:
        for messages, answers in prompted:
            id = answers[0].split()[0]
            assert messages == [{"role": "user", "content": f"prompt of {id}"}]
            assert list(answers) == [f"{id} chosen", f"{id} rejected"]
            self.scored.append(id)
            yield [Scored(*score) for score in self._scores[id]]


def place_of_right(request) -> int:
    """Where the right answer stands in the prompt."""
    text = request.messages[0]["content"]
    return 1 if text.index("\nright") < text.index("\nwrong") else 2


def first(request) -> str:
    """Always the answer that stands first; of i2 nothing that can be read."""
    return "Hm." if "of i2" in request.messages[0]["content"] else says(1)


def right(request) -> str:
    return says(place_of_right(request))


@pytest.fixture
def s(tmp_path) -> Settings:
    write_rows(tmp_path / "validation.jsonl", ITEMS, Item)
    write_rows(tmp_path / "validation.parquet", PAIRS, JudgmentPair)
    return Settings(
        base="base", tuned="tuned", items=tmp_path / "validation.jsonl",
        pairs=tmp_path / "validation.parquet", output=tmp_path / "accuracy",
    )  # fmt: skip


@pytest.fixture
def engines():
    return {"base": Judge("base", first), "tuned": Judge("tuned", right)}


def report(s: Settings) -> dict:
    return json.loads((s.output / "accuracy.json").read_text())


def test_the_judging_numbers_are_those_of_a_hand_count(s, engines):
    main(s, engines)
    found = report(s)["judging"]["validation"]
    base, tuned = found["base"], found["tuned"]
    assert base["interval"][0] <= 1 / 3 <= base["interval"][1]
    base.pop("interval")
    assert base == {
        "n": 4,
        "ties": 1,
        "accuracy": (1 / 2 + 1 / 2 + 0) / 3,  # i0 and i1 right in one order, i2 in none
        "both_right": 0 / 3,
        "readable": 6 / 8,
        "agreement": 0.0,  # of i0, i1, i3
        "first_position": 1.0,
        "picks_longer": 2 / 4,  # i0 and i1, each in one order; i2 and i3 have equal lengths
        "longer_is_right": 1 / 2,
    }
    # i3, a tie, has its "right" in the given order as answer 1
    assert (tuned["accuracy"], tuned["interval"], tuned["readable"]) == (1.0, [1.0, 1.0], 1.0)
    assert (tuned["agreement"], tuned["first_position"]) == (1.0, 4 / 8)
    # in the given order the base is right on i0 alone, the tuned judge on all three: 2 to 0
    assert found["mcnemar_p"] == pytest.approx(2 * (1 / 2) ** 2)
    assert found["by_source"] == {"test": {"n": 4, "base": pytest.approx(1 / 3), "tuned": 1.0}}


def test_the_pair_numbers_are_those_of_a_hand_count(s, engines):
    main(s, engines)
    found = report(s)["pairs"]
    # summed: base p1; tuned p1, p2.  A token: base p0 -2 > -3, p2 -1 > -2, not p1; tuned the same.
    assert found["all"] == {
        "n": 3,
        "base_by_sum": pytest.approx(1 / 3),
        "tuned_by_sum": pytest.approx(2 / 3),
        "base_by_mean": pytest.approx(2 / 3),
        "tuned_by_mean": pytest.approx(2 / 3),
        # tuned minus base, chosen against rejected: 0.5 > 0, 0 < 0.5, 4 > 0
        "implicit_reward": pytest.approx(2 / 3),
    }
    assert {kind: shares["n"] for kind, shares in found.items()} == {
        "all": 3,
        "hint": 2,
        "best_of_n": 1,
    }
    assert found["hint"]["implicit_reward"] == 1 / 2 and found["best_of_n"]["base_by_sum"] == 0.0


def test_the_table_shows_both_judges_side_by_side(s, engines, golden, capsys):
    main(s, engines)
    golden("accuracy/table.txt", (s.output / "table.txt").read_text())
    assert (s.output / "table.txt").read_text() in capsys.readouterr().out


def test_the_rows_behind_the_numbers_are_written_in_terms_of_the_items_own_answers(s, engines):
    main(s, engines)
    rows = read_jsonl(s.output / "judgments.jsonl")
    assert len(rows) == 4 * 2 * 2
    of_i1 = {
        (r["judge"], r["order"]): (r["verdict"], r["unreadable"]) for r in rows if r["id"] == "i1"
    }
    assert of_i1 == {
        ("base", "given"): (1, None),
        ("base", "swapped"): (2, None),  # it said 1, which is answer 2 of the item
        ("tuned", "given"): (2, None),
        ("tuned", "swapped"): (2, None),
    }
    unreadable = [r["unreadable"] for r in rows if r["verdict"] is None]
    assert unreadable == ["no_json"] * 2
    assert len(read_jsonl(s.output / "pair_scores.jsonl")) == 3 * 2
    assert ledger(s.output / META)["read"] == 4 + 3


def test_judging_is_greedy_and_in_both_orders_of_the_answers(s, engines):
    main(s, engines)
    for engine in engines.values():
        assert {(r.temperature, r.samples) for r in engine.asked} == {(0.0, (0,))}
        prompts = [r.messages[0]["content"] for r in engine.asked]
        shown = [judge.item_in_both_orders(made, ("", "")) for made in ITEMS]
        assert prompts == [showing.prompt for both in shown for showing in both]


def test_a_run_killed_half_way_asks_and_scores_nothing_twice(s, engines, tmp_path):
    main(s, engines)
    killed = s.model_copy(update={"output": tmp_path / "killed"})
    asked, scored = [], []
    for kill_at in (3, 9, 12, 99):
        calls = count()

        def die(verdict, calls=calls, kill_at=kill_at):
            def answer(request):
                if next(calls) == kill_at:
                    raise KeyboardInterrupt
                return verdict(request)

            return answer

        again: dict[JudgeName, Judge] = {
            "base": Judge("base", die(first)),
            "tuned": Judge("tuned", die(right)),
        }
        try:
            main(killed, again)
        except KeyboardInterrupt:
            assert not (killed.output / "accuracy.json").exists()
            (again["tuned"] if again["tuned"].asked else again["base"]).asked.pop()
        asked += [(name, r.id) for name, e in again.items() for r in e.asked]
        scored += [(name, id) for name, e in again.items() for id in e.scored]
    assert len(asked) == len(set(asked)) == 16 and len(scored) == len(set(scored)) == 6
    for name in ("accuracy.json", "judgments.jsonl", "pair_scores.jsonl", "table.txt"):
        assert (killed.output / name).read_bytes() == (s.output / name).read_bytes()


def test_an_item_that_one_judge_cannot_take_is_left_out_for_both(s, engines):
    engines["tuned"] = Judge(
        "tuned", lambda r: None if "of i1" in r.messages[0]["content"] else right(r)
    )
    main(s, engines)
    found = report(s)["judging"]["validation"]
    assert found["base"]["n"] == found["tuned"]["n"] == 3
    assert ledger(s.output / META)["left_out"] == {"scripted_failure": 1}


def test_a_pair_that_one_judge_cannot_score_is_left_out_for_both(s, engines):
    class Short(Judge):
        def score(self, prompted):
            for place, result in enumerate(super().score(prompted)):
                yield Failure(str(place), "prompt_too_long") if place == 1 else result

    engines["base"] = Short("base", first)
    main(s, engines)
    assert report(s)["pairs"]["all"]["n"] == 2
    assert ledger(s.output / META)["left_out"] == {"prompt_too_long": 1}


def test_benchmarks_are_judged_beside_the_validation_items(s, engines, tmp_path):
    records = [
        {"id": f"n{k}", "subset": "Natural", "input": f"Q{k}?", "label": 1 + k % 2,
         "output_1": ["right", "wrong"][k % 2], "output_2": ["wrong", "right"][k % 2]}
        for k in range(4)
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "llmbar.jsonl", [*records, {"id": "broken"}])
    s = s.model_copy(update={"benchmark": [f"llmbar={path}"]})
    main(s, engines)
    found = report(s)["judging"]["llmbar"]
    assert (found["base"]["n"], found["base"]["accuracy"], found["tuned"]["accuracy"]) == (
        4,
        0.5,
        1.0,
    )
    assert found["by_source"] == {"llmbar/Natural": {"n": 4, "base": 0.5, "tuned": 1.0}}
    counts = ledger(s.output / META)
    assert counts["read"] == 4 + 5 + 3 and counts["left_out"] == {"bad_row": 1}


def test_nothing_readable_is_no_share_and_no_crash(s):
    mute: dict[JudgeName, Judge] = {name: Judge(name, lambda request: "?") for name in JUDGES}
    main(s, mute)
    found = report(s)["judging"]["validation"]["base"]
    assert (found["accuracy"], found["readable"], found["agreement"]) == (0.0, 0.0, None)
    lines = (s.output / "table.txt").read_text().split("\n")
    (line,) = [line for line in lines if "first-position" in line]
    assert line.split()[-2:] == ["-", "-"]


def test_items_of_another_template_need_it_named(s, engines, tmp_path):
    """Else the swapped prompt would be in another format than the given one."""
    template = tmp_path / "mine.jinja"
    template.write_text("{{ question }}\n{{ answer_1 }}\n{{ answer_2 }}")
    row = Preference(id="a", prompt="Q?", chosen="right", rejected="wrong", source="s")
    made = judge.build_item(row, split="validation", seed=0, template=str(template))
    assert isinstance(made, Item)
    write_rows(s.items, [made], Item)
    with pytest.raises(DataError, match="its prompt is not the template's; give --template"):
        main(s, engines)
    main(s.model_copy(update={"template": str(template)}), engines)
    asked = [r.messages[0]["content"] for r in engines["tuned"].asked]
    assert sorted(asked) == ["Q?\nright\nwrong", "Q?\nwrong\nright"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["llmbra=x"], "--benchmark llmbra=x: wanted name=path, name a format; near: llmbar"),
        (["llmbar"], "--benchmark llmbar: wanted name=path"),
        (["messages=x"], "--benchmark messages=x: wanted name=path"),
        (["llmbar=a", "llmbar=b"], "--benchmark llmbar=b: llmbar is given twice"),
    ],
)
def test_a_wrong_benchmark_is_a_sentence(entries, said):
    with pytest.raises(SystemExit) as error:
        parse_benchmarks(entries)
    assert str(error.value).startswith(said)


def test_two_rows_of_one_id_in_a_benchmark_are_an_error_before_anything_is_asked(
    s, engines, tmp_path
):
    record = {"id": "n", "input": "Q?", "output_1": "right", "output_2": "wrong", "label": 1}
    path = write_jsonl(tmp_path / "llmbar.jsonl", [record, record])
    with pytest.raises(DataError, match=r"llmbar\.jsonl:2: id 'n' stands at .*llmbar\.jsonl:1 alr"):
        main(s.model_copy(update={"benchmark": [f"llmbar={path}"]}), engines)
    assert not engines["base"].asked


# ---- as a user runs it


def test_the_command_judges_through_a_server_without_pair_scores(s, tmp_path):
    def answer(body, sample: int) -> str:
        text = last_message(body)
        if body["model"] == "base":
            return says(1)
        return says(1 if text.index("\nright") < text.index("\nwrong") else 2)

    options = [
        "--items", "validation.jsonl", "--pairs", "not_needed.parquet", "--output", "acc",
        "--base", "base", "--tuned", "tuned", "--engine", "server",
    ]  # fmt: skip
    with Server(answer) as server:
        result = run_stage("accuracy", *options, "--base-urls", server.url, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "acc/accuracy.json").read_text())
    judging = found["judging"]["validation"]
    assert found["pairs"] is None
    assert (judging["base"]["accuracy"], judging["tuned"]["accuracy"]) == (0.5, 1.0)
    table = (tmp_path / "acc/table.txt").read_text()
    assert table in result.stdout and "acc/accuracy.json" in result.stdout
    again = run_stage("accuracy", *options, cwd=tmp_path)
    assert "finished before" in again.stdout and table in again.stdout
    (tmp_path / "acc/accuracy.json").unlink()  # then it is no finished run, and asks again
    assert "no base URL" in sentence(run_stage("accuracy", *options, cwd=tmp_path))
