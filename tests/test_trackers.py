"""prefpipe.publish.trackers: numbers reported elsewhere are those of the files; a missing package is a sentence."""

import csv
import importlib.util
import json
import math
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefpipe.publish import trackers
from tests.examples import run_stage, sentence, write_jsonl

STUB = '''
import json, os

class SummaryWriter:
    """What the callback of transformers asks of TensorBoard's, written down as JSON."""
    def __init__(self, log_dir=None):
        os.makedirs(log_dir, exist_ok=True)
        self.file = open(os.path.join(log_dir, "events.jsonl"), "a")
    def add_scalar(self, name, value, step):
        self.file.write(json.dumps([name, value, step]) + "\\\\n")
    def add_text(self, *_):
        pass
    def flush(self):
        self.file.flush()
    def close(self):
        self.file.close()
'''
has_tensorboard = importlib.util.find_spec("tensorboard") is not None


def events(folder: Path) -> list[tuple[str, float, int]]:
    if has_tensorboard:
        from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore
            EventAccumulator,
        )

        read = EventAccumulator(str(folder))
        read.Reload()
        tags = read.Tags()["scalars"]
        return [(tag, e.value, e.step) for tag in tags for e in read.Scalars(tag)]
    lines = (folder / "events.jsonl").read_text().split("\n")
    return [tuple(json.loads(line)) for line in lines if line]


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment with TensorBoard, or where it is not installed with a stand-in of its writer."""
    if has_tensorboard:
        return {}
    (tmp_path / "stub/tensorboardX").mkdir(parents=True)
    (tmp_path / "stub/tensorboardX/__init__.py").write_text(STUB.replace("\\\\n", "\\n"))
    return {"PYTHONPATH": str(tmp_path / "stub")}


def test_a_training_reports_the_losses_of_its_curve(tmp_path, stub):
    rows = [{"prompt": f"{n}+{n}?", "chosen": str(2 * n), "rejected": "no"} for n in range(20)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    model = Path(__file__).parent.parent / "embedded/model"
    command = ("train_reward_model", "--input", "mine.jsonl", "--model", model, "--epochs", "1")
    report = ("--report-to", "tensorboard")
    env = stub | {"HF_HUB_OFFLINE": "1"}
    result = run_stage(*command, "--output", "a", *report, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    curve = list(csv.DictReader((tmp_path / "a/loss_curve.csv").open()))
    losses = {int(row["step"]): float(row["loss"]) for row in curve if row["loss"]}
    reported = {
        step: value for name, value, step in events(tmp_path / "a/runs") if name == "train/loss"
    }
    assert losses and reported == pytest.approx(losses, rel=1e-6)
    # it is in no fingerprint: the same run, finished before
    again = run_stage(*command, "--output", "a", cwd=tmp_path, env=env)
    assert "finished before" in again.stdout


@pytest.mark.skipif(not importlib.util.find_spec("trackio"), reason="trackio is not installed")
def test_a_training_reports_to_trackio_without_a_network(tmp_path):
    """The losses are read from the data base that it leaves on this machine."""
    rows = [{"prompt": f"{n}+{n}?", "chosen": str(2 * n), "rejected": "no"} for n in range(20)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    model = Path(__file__).parent.parent / "embedded/model"
    command = ("train_reward_model", "--input", "mine.jsonl", "--model", model, "--epochs", "1")
    env = {"HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(tmp_path / "trackio")}
    result = run_stage(*command, "--output", "a", "--report-to", "trackio", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    curve = list(csv.DictReader((tmp_path / "a/loss_curve.csv").open()))
    with sqlite3.connect(tmp_path / "trackio/prefpipe.db") as base:
        logged = [json.loads(row[0]) for row in base.execute("select metrics from metrics")]
    losses = [row["train/loss"] for row in logged if "train/loss" in row]
    assert losses == pytest.approx([float(row["loss"]) for row in curve if row["loss"]], rel=1e-6)


@pytest.mark.parametrize("tracker", ["trackio", "wandb", "mlflow", "tensorboard"])
@pytest.mark.parametrize("stage", ["train_reward_model", "accuracy"])
def test_a_package_that_is_missing_is_a_sentence_before_any_work(tmp_path, tracker, stage):
    if not trackers.missing(tracker):
        pytest.skip(f"{tracker} is installed")
    said = sentence(run_stage(stage, "--report-to", tracker, cwd=tmp_path))
    assert f"uv sync --extra {tracker}" in said and len(said) < 300


REPORT = {
    "judging": {"validation": {"tuned": {"accuracy": 0.75, "n": 4, "interval": [0.1, 0.9]}}},
    "pairs": None,
    "scored": {"sky": {"reward": {"accuracy": math.nan, "by_source": {"x": {"accuracy": 1.0}}}}},
    "done": True,
}
NUMBERS = {"judging/validation/tuned/accuracy": 0.75, "judging/validation/tuned/n": 4.0}


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_a_summary_is_one_row_of_the_numbers_by_their_path(tmp_path, monkeypatch, tracker):
    asked = []
    calls = {
        name: lambda *args, _name=name, **kwargs: asked.append((_name, args, kwargs))
        for name in ("init", "log", "finish")
    }
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setitem(__import__("sys").modules, tracker, SimpleNamespace(**calls))
    monkeypatch.chdir(tmp_path)
    trackers.report_summary(tracker, "accuracy", tmp_path / "data/accuracy", REPORT)
    assert asked == [
        ("init", (), {"project": "prefpipe", "name": "accuracy data/accuracy"}),
        ("log", (NUMBERS,), {}),
        ("finish", (), {}),
    ]


def test_a_summary_for_tensorboard_stands_beside_the_numbers(tmp_path, monkeypatch, stub):
    for path in stub.values():
        monkeypatch.syspath_prepend(path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trackers.report_summary("tensorboard", "accuracy", tmp_path, REPORT)
    assert {(name, value) for name, value, _ in events(tmp_path / "runs")} == {*NUMBERS.items()}


def test_none_reports_nothing_and_asks_for_nothing(tmp_path):
    trackers.report_summary("none", "accuracy", tmp_path, REPORT)
    assert trackers.training_arguments("none", "x", tmp_path) == {"report_to": []}
    assert not trackers.missing("none") and not list(tmp_path.iterdir())
