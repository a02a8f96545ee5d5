"""tests/bad_inputs.py in short: the stages that load no model, against a few dozen damages of a fixed seed."""

import json
import random

import pytest

from tests import bad_inputs, damages
from tests.bad_inputs import ROWS, Cases, Outcome, judge, light_runner, make_good
from tests.campaign import ROOT


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    work = tmp_path_factory.mktemp("bad_inputs")
    runner = light_runner()
    make_good(work / "good", runner, with_models=False)
    return Cases([c for c in ROWS if not c.stop_at], 2021, work, runner)


def test_damaged_inputs_end_in_a_sentence_or_in_a_ledger_that_adds_up(cases):
    kinds = set()
    for number in range(30):
        consumer, what, outcome = cases.run(number)
        assert outcome.kind != "failure", (number, consumer.command, what, outcome.detail)
        kinds.add(outcome.kind)
    assert {"sentence", "some left out"} <= kinds


@pytest.mark.parametrize(
    ("code", "said", "out", "kind"),
    [
        (1, "stage: x.jsonl:2: no row", [], "sentence"),
        (1, "stage: something is wrong", [], "failure"),
        (1, "", [], "failure"),
        (1, "stage: x.jsonl: " + "a " * 200, [], "failure"),
        (1, "stage: x.jsonl: no row", ["out/train.jsonl"], "failure"),
        (1, "stage: x.jsonl: no row", ["out/a.rejects.jsonl", "out/checkpoints/a"], "sentence"),
        (1, "x.jsonl\nTraceback (most recent call last):", [], "failure"),
        (1, "stage: unexpected KeyError: x.jsonl; --debug shows it", [], "failure"),
        (-11, "", [], "failure"),
        (None, "", [], "failure"),
    ],
)
def test_what_counts_as_a_failure(tmp_path, code, said, out, kind):
    (tmp_path / "stdout").write_text("")
    (tmp_path / "stderr").write_text(said)
    for name in out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert judge(tmp_path, code, {}, ["x.jsonl"]).kind == kind


@pytest.mark.parametrize(("rejects", "kind"), [(1, "some left out"), (0, "failure")])
def test_a_ledger_that_does_not_add_up_is_a_failure(tmp_path, rejects, kind):
    (tmp_path / "out").mkdir()
    (tmp_path / "stdout").write_text("")
    (tmp_path / "stderr").write_text("")
    counts = {"read": 3, "kept": 2, "left_out": {"bad_row": 1}}
    (tmp_path / "out/a.meta.json").write_text(json.dumps({"counts": counts}))
    (tmp_path / "out/a.rejects.jsonl").write_text("{}\n" * rejects)
    assert judge(tmp_path, 0, {}, []).kind == kind
    assert isinstance(judge(tmp_path, 0, {}, []), Outcome)


def test_the_same_number_is_the_same_damage_and_others_are_others():
    value = {"id": "a", "turns": [{"role": "user", "content": "x"}], "n": 1}
    drawn = [damages.changed(random.Random(f"7 {k}"), value) for k in range(60)]
    again = [damages.changed(random.Random(f"7 {k}"), value) for k in range(60)]
    assert [damages.dump(v) for v, _ in drawn] == [damages.dump(v) for v, _ in again]
    assert len({damages.dump(v) for v, _ in drawn}) > 40


def test_every_stage_that_makes_rows_is_among_the_consumers():
    known = {c.stage for c in [*ROWS, *bad_inputs.MODELS]}
    # on_ray.py reads no file itself, serve_reward.py ends where somebody ends it
    others = {"config", "on_ray", "serve_reward"}
    assert {p.stem for p in ROOT.glob("*.py")} - others == known
