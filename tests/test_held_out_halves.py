"""prefpipe.training.held_out_halves: who chooses a checkpoint, and on whom it is judged; in a training."""

import csv
import json
from typing import Any

import pytest

from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.reward_model import RewardModel
from prefpipe.evaluation.calibration import scaled_loss
from prefpipe.rows import Preference
from prefpipe.training.held_out_halves import halve
from prefpipe.training.preferences import TrainingPairs
from tests.preference_data import rows, save_base, write_jsonl


def held_out(count: int, *, per_question: int = 1, tie: bool = False) -> TrainingPairs:
    made = [
        Preference(
            id=f"v{k}", prompt=f"question {k // per_question}", chosen="a", rejected="b", tie=tie
        )
        for k in range(count)
    ]
    # halve asks of a tokenized pair only whether it is a tie
    return TrainingPairs(validation=made, held_out=made)  # pyright: ignore[reportArgumentType]


def test_no_question_is_on_both_sides_and_each_side_has_about_half():
    halves = halve(held_out(400, per_question=2), chooses=True)
    pairs: Any = halves.choosing
    choosing = {pair.prompt for pair in pairs}
    judged = {str(row.prompt) for row in halves.judged}
    assert halves.chosen_by == "others" and not choosing & judged
    assert len(choosing) + len(judged) == 200 and 70 <= len(judged) <= 130
    assert len(halves.choosing) + len(halves.judged) == 400


def test_nothing_is_chosen_or_too_few_are_there_so_all_are_in_both():
    pairs = held_out(400)
    assert halve(pairs, chooses=False).chosen_by == "nobody"
    assert len(halve(pairs, chooses=False).judged) == 400
    few = halve(held_out(40), chooses=True)
    assert few.chosen_by == "the same" and len(few.judged) == len(few.choosing) == 40
    ties = halve(held_out(400, tie=True), chooses=True)  # which choose nothing
    assert ties.chosen_by == "the same"


def test_the_scaled_loss_is_what_a_fine_grid_of_temperatures_finds():
    margins = [4.0, 3.0, -2.0, 5.0, 1.0, -0.5, 2.0, 6.0] * 5
    outcomes = [1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 1.0] * 5

    def loss(temperature: float) -> float:
        from math import exp, log

        p = [1 / (1 + exp(-m / temperature)) for m in margins]
        each = [-o * log(q) - (1 - o) * log(1 - q) for q, o in zip(p, outcomes, strict=True)]
        return sum(each) / len(each)

    best = min(loss(k / 100) for k in range(50, 3000))
    assert scaled_loss(margins, outcomes) == pytest.approx(best, abs=1e-5)
    assert scaled_loss(margins, outcomes) < loss(1.0)
    # a model that is as right and ten times as sure is as good
    assert scaled_loss([10 * m for m in margins], outcomes) == pytest.approx(best, abs=1e-5)
    assert scaled_loss(margins[:8], outcomes[:8]) == pytest.approx(loss(1.0))  # too few to fit on


@pytest.mark.parametrize("kind", ["reward", "pairwise"])
def test_the_checkpoint_is_that_of_the_lowest_scaled_loss_of_its_half(kind, tmp_path):
    """The last value stands beside the one that the saved model's own reader gives."""
    import train_pairwise_model
    import train_reward_model

    stage: Any = train_reward_model if kind == "reward" else train_pairwise_model
    base = save_base(tmp_path / "base")
    s = stage.Settings(
        input=str(write_jsonl(tmp_path / "t.jsonl", rows(48))),
        validation_input=str(write_jsonl(tmp_path / "v.jsonl", rows(90, "v"))),
        output=tmp_path / "model", model=str(base), batch_pairs=8, epochs=2.0, learning_rate=3e-3,
        save_steps=4,
    )  # fmt: skip
    stage.main(s)
    with open(s.output / "loss_curve.csv", newline="") as file:
        curve = {int(r["step"]): r["eval_scaled_loss"] for r in csv.DictReader(file)}
    found = {step: float(loss) for step, loss in curve.items() if loss}
    meta = json.loads((s.output / f"train_{kind}_model.meta.json").read_text())
    assert sorted(found) == [4, 8, 12] and found[meta["best_step"]] == min(found.values())
    report = json.loads((s.output / f"{kind}_eval.json").read_text())
    made = [Preference.model_validate(r) for r in rows(90, "v")]
    halves = halve(TrainingPairs(validation=made, held_out=made), chooses=True)  # pyright: ignore[reportArgumentType]
    assert report["chosen_by"] == "others" and report["n"] == len(halves.judged) < 90

    choosing: Any = halves.choosing
    asked = [(p.prompt, [p.chosen, p.rejected]) for p in choosing]
    if kind == "reward":
        scores: Any = RewardModel.load(s.output).score(asked)
        margins = [chosen - rejected for chosen, rejected in scores]
    else:
        from prefpipe.compare.tournament import log_odds

        model = PairwiseModel.load(s.output, temperature=1.0)
        model.is_trusted = True  # it says A or B in 3 % only
        compared: Any = list(model.compare((*one, [(0, 1)]) for one in asked))
        margins = [log_odds(c.p_given) for (c,) in compared]
        margins += [log_odds(c.p_swapped) for (c,) in compared]
    expected = scaled_loss(margins, [1.0] * len(margins))
    assert found[meta["best_step"]] == pytest.approx(expected, abs=2e-4)
