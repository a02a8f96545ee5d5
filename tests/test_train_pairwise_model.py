"""train_pairwise_model: what it writes and refuses; a stopped run; a checkpoint of the format by path."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.files import DataError
from prefpipe.models.loading import load_tokenizer
from prefpipe.training.checkpoints import TrainingCallback
from tests.preference_data import row, rows, save_base, write_jsonl
from tests.training_models import scorable
from train_pairwise_model import Settings, main


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return (
        write_jsonl(folder / "train.jsonl", rows(32)),
        write_jsonl(folder / "validation.jsonl", rows(10, "v")),
    )


@pytest.fixture
def settings(base, data, tmp_path):
    def made(**changes) -> Settings:
        options = {
            "input": str(data[0]),
            "validation_input": str(data[1]),
            "output": tmp_path / "pairwise",
            "model": str(base),
            "batch_pairs": 8,
            "epochs": 2.0,
            "learning_rate": 3e-3,
            "save_steps": 4,
        }
        return Settings(**{**options, **changes})

    return made


def read(path: Path):
    return json.loads(path.read_text())


def curve(folder: Path) -> list[dict[str, str]]:
    with open(folder / "loss_curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_model_curve_report_and_the_worst_pairs(settings, data, capsys):
    s = settings()
    main(s)
    steps = curve(s.output)
    assert [int(r["step"]) for r in steps] == list(range(1, 9))
    assert all(r["loss"] and r["mean_token_accuracy"] for r in steps)
    report = read(s.output / "pairwise_eval.json")
    assert {"accuracy", "agreement", "first_position", "outside_mean", "logit_temperature"} <= report.keys()  # fmt: skip
    assert "agreement of both orders" in capsys.readouterr().out
    assert read(s.output / "train_pairwise_model.meta.json")["reload_difference"] <= 1e-4

    # the report again, from the saved folder alone, by the model's own forward
    model = PairwiseModel.load(s.output)
    assert model.temperature == report["logit_temperature"]
    a, b = model.tokenize.labels
    right = agree = 0
    for record in map(json.loads, data[1].read_text().splitlines()):
        responses = [record["chosen"], record["rejected"]]
        made = scorable(model.tokenize(record["prompt"], responses, [(0, 1), (1, 0)]))
        with torch.no_grad():
            logits = [model.model(input_ids=torch.tensor([r])).logits[0, -1] for r in made.rows]
        given = (logits[0][a] - logits[0][b]).sigmoid().item()
        swapped = (logits[1][b] - logits[1][a]).sigmoid().item()
        right += given + swapped > 1
        agree += (given > 0.5) == (swapped > 0.5)
    assert report["accuracy"] == pytest.approx(right / 10)
    assert report["agreement"] == pytest.approx(agree / 10)


def test_it_learns_what_is_better(settings):
    s = settings(epochs=25.0, learning_rate=5e-3, save_steps=50)
    main(s)
    report = read(s.output / "pairwise_eval.json")
    assert report["accuracy"] >= 0.9 and report["outside_mean"] < 0.05


def test_a_stopped_run_goes_on_and_ends_in_the_same_curve(settings, monkeypatch, tmp_path):
    whole, stopped = settings(output=tmp_path / "whole"), settings(output=tmp_path / "stopped")
    main(whole)
    on_step_end = TrainingCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingCallback, "on_step_end", stop)
        main(stopped)
    main(stopped)
    assert curve(stopped.output) == curve(whole.output)
    a, b = (load_file(s.output / "model.safetensors") for s in (whole, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("merge", [False, True])
def test_a_lora_adapter_reloads_to_the_same_probabilities(settings, merge):
    s = settings(method="lora", lora_r=4, merge_adapter=merge, epochs=1.0)
    main(s)
    assert read(s.output / "train_pairwise_model.meta.json")["reload_difference"] <= 1e-4
    assert (s.output / "adapter_config.json").exists() is not merge


def test_a_checkpoint_of_the_format_is_loaded_by_path_without_our_own_file(base):
    """Any causal model with a chat template: temperature 1, the limit given or its positions."""
    model = PairwiseModel.load(base, max_length=300)
    assert (model.temperature, model.tokenize.max_length) == (1.0, 300)
    assert PairwiseModel.load(base, temperature=2.0).temperature == 2.0
    model.is_trusted = True  # it answers anything
    (found,) = model.compare([("Q", ["one", "two"], [(0, 1)])])
    assert 0 < scorable(found)[0].p < 1


def test_rows_whose_responses_leave_no_room_are_left_out_by_name_and_cut_contexts_are_counted(
    settings, tmp_path
):
    train = [*rows(8), row("long", chosen="a" * 200), row("cut", prompt="word " * 60)]
    s = settings(input=str(write_jsonl(tmp_path / "t.jsonl", train)), max_length=200, epochs=1.0)
    main(s)
    meta = read(s.output / "train_pairwise_model.meta.json")
    assert meta["counts"]["left_out"] == {"responses_too_long": 1}
    assert meta["pairs"]["prompts cut from the left"] == 1


def test_a_tokenizer_without_the_labels_is_refused_before_any_work(settings, base, tmp_path):
    shutil.copytree(base, tmp_path / "doubling")
    tokenizer = load_tokenizer(base)
    doubled = "{{ m.content }}{{ m.content if m.content|length == 1 }}"
    tokenizer.chat_template = str(tokenizer.chat_template).replace("{{ m.content }}", doubled)
    tokenizer.save_pretrained(tmp_path / "doubling")
    with pytest.raises(DataError, match="the labels A and B must be one token each"):
        main(settings(model=str(tmp_path / "doubling")))
