"""The linear probe: its features beside transformers' own hidden states, its fit beside other solvers,
and train_reward_model.py --method probe from rows to a folder that everything reads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from transformers import AutoModel, AutoTokenizer

from prefpipe.compare.reward_model import ProbedModel, RewardModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.models import probes
from prefpipe.models.classifiers import load_classifier
from prefpipe.serving.scorers import open_scorer
from prefpipe.training import probe
from prefpipe.training.tokenized_pairs import TokenizedPair
from tests.examples import read_jsonl, run_stage
from tests.preference_data import rows, write_jsonl
from tests.test_cards import code_of
from tests.test_reward_model import bert, bert_tokenizer
from tests.training_models import qwen2, tokenizer
from train_reward_model import Settings, main

DEEP = 6  # layers: 3, 4 and 5 are read


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    tok = tokenizer()
    qwen2(vocabulary=len(tok), num_hidden_layers=DEEP, initializer_range=0.05).save_pretrained(
        folder
    )
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return (
        write_jsonl(folder / "train.jsonl", rows(160)),
        write_jsonl(folder / "validation.jsonl", rows(60, "v")),
    )


@pytest.fixture
def settings(base, data, tmp_path):
    def made(**changes) -> Settings:
        options = {
            "input": str(data[0]),
            "validation_input": str(data[1]),
            "output": tmp_path / "reward",
            "model": str(base),
            "method": "probe",
        }
        return Settings(**{**options, **changes})

    return made


def open_reader(folder: Path, *, share_prompts: bool) -> ProbedModel:
    model, tok, is_causal, _ = load_classifier(folder, headless=True)
    own = RewardFormat(200, True, read_at="template_end")
    return probe.reader_of(model, tok, own, is_causal, share_prompts)


# ---- what is read ----------------------------------------------------------------------------------

QUESTIONS = [
    ("ab cd?", ["efgh+", "a", "efgh-"]),
    ([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd ef"},
      {"role": "user", "content": "gh"}], ["abc abc abc", "d"]),
]  # fmt: skip


@pytest.mark.parametrize("share_prompts", [True, False])
def test_features_are_those_of_transformers_own_hidden_states(base, share_prompts):
    reader = open_reader(base, share_prompts=share_prompts)
    assert reader.probe.layers == (3, 4, 5) and reader.shares_prompts is share_prompts
    whole, tok = AutoModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    rows_of = [reader.rows_of(*question) for question in QUESTIONS]
    asked: list[list[int]] = [row for some in rows_of if isinstance(some, list) for row in some]
    found = reader.features(asked)
    assert len(found) == 5
    openings = 0
    for row, features in zip(asked, found, strict=True):
        with torch.no_grad():
            states = whole(torch.tensor([row]), output_hidden_states=True).hidden_states
        # the turn begins behind the last "assistant" of the row, which stands behind a mark
        names = [tok.decode([k]) for k in row]
        mark = max(k for k, name in enumerate(names) if name == "<|im_start|>")
        start = probes.turn_start(row, probes.turn_opening(tok))
        assert start > mark and "assistant" in "".join(names[mark:start]).replace(" ", "")
        assert "user" not in "".join(names[start:])
        openings += start
        expected = torch.cat(
            [part for k in (3, 4, 5) for part in (states[k][0, -1], states[k][0, start:].mean(0))]
        )
        torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)
    assert openings


def test_layers_above_are_taken_away_but_for_the_one_that_is_cut(base):
    reader = open_reader(base, share_prompts=True)
    assert len(reader.model.layers) == DEEP  # pyright: ignore[reportArgumentType]
    model, *_ = load_classifier(base, headless=True)
    probes.cut_above(model, (2, 3))
    assert len(model.layers) == 4 == model.config.num_hidden_layers  # pyright: ignore[reportArgumentType]


def test_where_a_turn_begins_by_hand():
    assert probes.turn_start([1, 7, 8, 5, 5, 7, 8, 6], [7, 8]) == 7
    assert probes.turn_start([1, 7, 8, 5], [7, 8]) == 3
    assert probes.turn_start([1, 2, 3], [7, 8]) == 0  # no opening
    assert probes.turn_start([1, 2, 7, 8], [7, 8]) == 0  # nothing behind it
    assert probes.turn_start([1, 2, 3], []) == 0


def test_an_encoder_has_features_too(tmp_path):
    bert().save_pretrained(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    reader = open_reader(tmp_path, share_prompts=True)
    row = reader.rows_of("ab", ["cd", "ef"])
    assert isinstance(row, list) and not reader.shares_prompts
    whole = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        states = whole(torch.tensor([row[0]]), output_hidden_states=True).hidden_states
    layers = reader.probe.layers
    expected = torch.cat([p for k in layers for p in (states[k][0, -1], states[k][0].mean(0))])
    torch.testing.assert_close(reader.features(row)[0], expected, atol=2e-5, rtol=1e-4)


# ---- the fit ---------------------------------------------------------------------------------------


def some_pairs(count: int = 90, size: int = 7) -> tuple[Any, Any, Any, list[bytes]]:
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(count, size)).astype(np.float32) * np.arange(1, size + 1)
    truth = rng.normal(size=size)
    won = 1 / (1 + np.exp(-(differences / np.arange(1, size + 1)) @ truth))
    return (
        differences,
        won,
        rng.uniform(0.5, 2, size=count),
        [b"%d" % (k // 2) for k in range(count)],
    )


def test_the_weights_are_those_of_a_plain_minimiser():
    """By scipy, from the objective as it is written down: no classes, no turned rows."""
    differences, won, weights, _ = some_pairs()
    for strength in (0.01, 1.0):

        def objective(w: Any, strength: float = strength) -> float:
            odds = differences @ w
            loss = weights * (np.logaddexp(0, odds) - won * odds)
            return float(strength * loss.sum() + (w @ w) / 2)

        expected = minimize(objective, np.zeros(7), method="BFGS", options={"gtol": 1e-7}).x
        found = probe._Solver(differences, won, weights).solve(strength)
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_fewer_pairs_than_features_give_the_same_weights_in_fewer_numbers():
    differences, won, weights, _ = some_pairs(40, size=90)
    differences = differences / np.arange(1, 91)
    few = probe._Solver(differences, won, weights).solve(0.05)

    def objective(w: Any) -> float:
        odds = differences @ w
        loss = weights * (np.logaddexp(0, odds) - won * odds)
        return float(0.05 * loss.sum() + (w @ w) / 2)

    expected = minimize(objective, np.zeros(90), method="L-BFGS-B", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(differences @ few, differences @ expected, atol=0.02)


def test_the_penalty_is_chosen_by_questions_that_were_not_fitted():
    differences, won, weights, questions = some_pairs(400)
    fitted = probe.fit(differences, won, weights, questions)
    tried = {one["inverse_l2"]: one["eval_loss"] for one in fitted.tried}
    assert 3 <= len(tried) <= len(probe._GRID) and list(tried) == sorted(tried)
    best = min(tried, key=lambda c: tried[c])
    scale = np.sqrt((differences.astype(np.float64) ** 2).mean(0))
    expected = probe._Solver(differences / scale, won, weights).solve(best) / scale
    np.testing.assert_allclose(fitted.weight_F, expected, rtol=1e-3, atol=1e-5)
    # noise alone: on questions that were not fitted no better than a coin
    noise = np.random.default_rng(1).integers(0, 2, size=400).astype(float)
    fitted = probe.fit(differences, noise, np.ones(400), questions)
    assert min(one["eval_loss"] for one in fitted.tried) >= np.log(2) - 0.005
    # two questions cannot be five folds
    few = probe.fit(differences[:4], won[:4], weights[:4], questions[:4])
    assert few.tried == [] and np.isfinite(few.weight_F).all()


def test_ties_soft_labels_and_scaled_margins_by_hand():
    def pair(margin: float, tie: bool = False) -> TokenizedPair:
        made = TokenizedPair.of("p", [1], [2], [3], tie=tie, margin=margin)
        assert isinstance(made, TokenizedPair)
        return made

    pairs = [pair(0.0), pair(2.0), pair(1.0, tie=True)]
    won, weights = probe.outcomes(pairs, "additive")
    assert won.tolist() == [1, 1, 0.5] and weights.tolist() == [1, 1, 1]
    won, weights = probe.outcomes(pairs, "soft")
    assert won.tolist() == pytest.approx([0.5, 0.880797, 0.5])
    won, weights = probe.outcomes([*pairs, pair(5.0, tie=True)], "scaled")
    assert weights.tolist() == [0, 2, 1, 1]  # a tie's margin says nothing
    assert probe.outcomes([pair(0.0)], "scaled")[1].tolist() == [1]


# ---- the stage -------------------------------------------------------------------------------------


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "reward_eval.json").read_text())


def test_it_learns_what_is_better_and_everything_reads_the_folder(settings, data, recwarn, capsys):
    s = settings()
    main(s)
    report = report_in(s.output)
    assert report["accuracy"] >= 0.9 and report["n"] == 60 and report["chosen_by"] == "nobody"
    meta = json.loads((s.output / "train_reward_model.meta.json").read_text())
    assert meta["steps"] == 0 and meta["reload_difference"] <= 1e-4
    assert not (s.output / "checkpoints").exists()
    assert not [w for w in recwarn if "rtist" in str(w.message)]
    assert "accuracy" in capsys.readouterr().out

    # again from the folder alone: the scores, by transformers' own forward and the saved numbers
    model = RewardModel.load(s.output)
    assert isinstance(model, ProbedModel)
    own = probes.Probe.load(s.output)
    whole = AutoModel.from_pretrained(s.model).eval()
    right = 0
    for record in read_jsonl(data[1]):
        both = model.rows_of(record["prompt"], [record["chosen"], record["rejected"]])
        assert isinstance(both, list)
        scores = []
        for row in both:
            with torch.no_grad():
                states = whole(torch.tensor([row]), output_hidden_states=True).hidden_states
            at = probes.turn_start(row, probes.turn_opening(model.tokenizer))
            parts = [p for k in own.layers for p in (states[k][0, -1], states[k][0, at:].mean(0))]
            scores.append(float(torch.cat(parts) @ own.weight_F) + own.bias)
        assert model.score_rows(both) == pytest.approx(scores, abs=1e-4)
        right += scores[0] > scores[1]
    assert report["accuracy"] == pytest.approx(right / 60)

    scorer = open_scorer(str(s.output), max_length=None, load_in_4bit=None)
    asked = scorer.question("ab?", {0: "cd+", 1: "ef-"})
    expected = next(iter(model.score([("ab?", ["cd+", "ef-"])])))
    assert scorer.run(asked.rows) == pytest.approx(expected)  # pyright: ignore[reportArgumentType]

    # the card's code, by a process that knows nothing else
    card = (s.output / "README.md").read_text()
    assert "library_name: prefpipe" in card and "three layers" in card
    code = code_of(card)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2


def test_a_stopped_run_goes_on_from_the_features_that_it_has(
    settings, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(probe, "_PART", 32)
    whole = settings(output=tmp_path / "whole")
    main(whole)
    stopped = settings(output=tmp_path / "stopped")
    read, calls = ProbedModel.features, list[int]()

    def stop(self, asked):
        calls.append(len(asked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, asked)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProbedModel, "features", stop)
        main(stopped)
    kept = sorted((stopped.output / "checkpoints").glob("*.npy"))
    assert len(kept) == 2
    kept[1].write_bytes(kept[1].read_bytes()[:100])  # damaged: read again
    with pytest.raises(SystemExit, match="a stopped run with other settings"):
        main(settings(output=tmp_path / "stopped", max_length=150))
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            ProbedModel, "features", lambda self, asked: calls.append(1) or read(self, asked)
        )
        main(stopped)
    assert len(calls) == 4 + 3  # parts 2 to 5; the checked pairs twice, and the held-out ones
    for name in ("probe.safetensors", "reward_eval.json", "loss_curve.csv"):
        assert (stopped.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_what_a_probe_cannot_be_is_a_sentence(settings, tmp_path, base):
    s = settings()
    main(s)
    with pytest.raises(SystemExit, match="is a probe; train the model that it reads"):
        main(settings(model=str(s.output), output=tmp_path / "again"))
    with pytest.raises(SystemExit, match="no adapter with --method probe"):
        main(settings(merge_adapter=True, output=tmp_path / "merged"))
    (s.output / "probe.safetensors").write_bytes(b"x")
    with pytest.raises(SystemExit, match="the probe cannot be read"):
        RewardModel.load(s.output)
    # a base that is another model, and a stopped run of another method
    main(settings(overwrite=True))
    own = json.loads((s.output / "probe.json").read_text())
    (s.output / "probe.json").write_text(json.dumps(own | {"layers": [3, 4, 50]}))
    with pytest.raises(SystemExit, match="not the model that the probe was fitted to"):
        RewardModel.load(s.output)
    (tmp_path / "stopped/checkpoints/checkpoint-5").mkdir(parents=True)
    with pytest.raises(SystemExit, match="a stopped run with another method"):
        main(settings(output=tmp_path / "stopped"))
    assert (tmp_path / "stopped/checkpoints/checkpoint-5").exists()
    # another method in the same folder leaves nothing of it
    main(settings(method="lora", lora_r=2, epochs=0.1, overwrite=True))
    assert not (s.output / "probe.json").exists()
    assert not isinstance(RewardModel.load(s.output), ProbedModel)
    main(settings(overwrite=True))
    assert not (s.output / "adapter_config.json").exists()
    assert isinstance(RewardModel.load(s.output), ProbedModel)


def test_a_dry_run_says_how_many_pairs_are_read_and_writes_nothing(data, base, tmp_path):
    options = ["--input", str(data[0]), "--validation-input", str(data[1]), "--model", str(base)]
    options += ["--method", "probe", "--output", "model", "--dry-run"]
    done = run_stage("train_reward_model", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "160 pairs, each read once; 0 are done" in done.stdout
    assert not (tmp_path / "model").exists()


def test_more_pairs_than_it_takes_are_drawn_by_chance_and_that_is_said(
    settings, monkeypatch, capsys
):
    monkeypatch.setattr(probe, "MOST_PAIRS", 50)
    s = settings()
    main(s)
    assert "probe: fitted on 50 of 160 pairs, drawn by chance" in capsys.readouterr().out
    meta = json.loads((s.output / "train_reward_model.meta.json").read_text())
    assert meta["pairs"]["train pairs"] == 50 and meta["counts"]["kept"] == 220


def test_a_margin_that_no_probe_can_use_is_said(settings, tmp_path, capsys):
    train = write_jsonl(tmp_path / "m.jsonl", [{**r, "margin": 2.0} for r in rows(40)])
    main(settings(input=str(train)))
    assert "additive, no probe can use them" in capsys.readouterr().out
    main(settings(input=str(train), margin_as="soft", output=tmp_path / "soft"))
    assert "soft, times 1" in capsys.readouterr().out
