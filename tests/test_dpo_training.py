"""dpo_training: the command, what it leaves out and refuses, and a run that is killed half way."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dpo_training
from dpo_training import Settings, draw, main
from prefpipe import files
from prefpipe.files import DataError
from prefpipe.models.loading import load_model, load_tokenizer
from prefpipe.rows import JudgmentPair
from prefpipe.training.checkpoints import TrainingCallback
from tests.preference_data import judgment_pair
from tests.training_models import pairs, qwen2, tokenizer

ROOT = Path(__file__).parent.parent
META, REJECTS = "dpo_training.meta.json", "dpo_training.rejects.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tok = tokenizer()
    qwen2(vocabulary=len(tok), initializer_range=0.05).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """46 training pairs of 20 items, 6 validation pairs of 3 others."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    train = [judgment_pair(f"t{i}", k, "train", rng) for i in range(20) for k in range(1 + i % 4)]
    train = train[:46]
    validation = [judgment_pair(f"v{i}", k, "validation", rng) for i in range(3) for k in range(2)]
    files.write_rows(folder / "train.parquet", train, JudgmentPair)
    files.write_rows(folder / "validation.parquet", validation, JudgmentPair)
    return folder


@pytest.fixture
def settings(base, data, tmp_path) -> Settings:
    return Settings(
        input=data,
        output=tmp_path / "judge",
        model=str(base),
        reference_cache=tmp_path / "cache",
        batch_pairs=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        epochs=2,
        save_steps=3,
    )


def curve(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "loss_curve.csv").open()))


def test_the_command_trains_and_says_so_the_second_time(settings):
    options = ("input", "output", "model", "reference_cache", "batch_pairs", "learning_rate")
    command = [sys.executable, "dpo_training.py", "--gradient-accumulation-steps", "2"]
    for name in options:
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "52 pairs read = 52 kept + 0 left out" in first.stdout
    out = settings.output
    assert {p.name for p in out.iterdir()} >= {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
        "loss_curve.csv", "loss_curve.png", "README.md", "checkpoints",
        META, REJECTS,
    }  # fmt: skip
    assert not list(out.glob("*.bin")) and not list(out.glob(".*"))
    rows = curve(out)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]  # ceil(46 / 8)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["rewards/margins"]) > 0.05 > abs(float(rows[0]["rewards/margins"]))
    assert rows[-1]["eval_loss"] and not rows[0]["eval_loss"]
    meta = json.loads((out / META).read_text())
    assert meta["pairs"] == {
        "train pairs": 46, "validation pairs": 6, "validation pairs measured": 6,
    }  # fmt: skip
    assert meta["reload_difference"] <= 1e-4
    card = (out / "README.md").read_text()
    assert "- train pairs: 46" in card and "52 read = 52 kept + 0 left out." in card

    command[1:1] = ["-X", "importtime"]
    before = os.times().children_user
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "finished before" in again.stdout
    assert os.times().children_user - before < 2
    assert " torch\n" not in again.stderr and " pyarrow\n" not in again.stderr
    other = subprocess.run([*command, "--beta", "0.2"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 1
    assert "setting beta 0.1 -> 0.2" in other.stderr and "--overwrite" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_ends_in_the_same_curve_and_weights(settings, tmp_path, monkeypatch, method):
    """12 steps in 2 epochs, killed in step 8, of the second epoch; the newest checkpoint is 6."""
    whole = settings.model_copy(
        update={"method": method, "checkpoint": "best", "lora_dropout": 0.1 * (method == "lora")}
    )
    stopped = whole.model_copy(
        update={"output": tmp_path / "stopped", "reference_cache": tmp_path / "cache_2"}
    )
    main(whole)
    assert len(curve(whole.output)) == 12

    own = TrainingCallback.on_step_end

    def killed(self, args, state, control, **kwargs):
        own(self, args, state, control, **kwargs)
        if state.global_step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingCallback, "on_step_end", killed)
    with pytest.raises(KeyboardInterrupt):
        main(stopped)
    monkeypatch.undo()
    assert not (stopped.output / META).exists()
    assert not list(stopped.output.glob("*.safetensors"))
    assert [row["step"] for row in curve(stopped.output)] == ["1", "2", "3", "4", "5", "6"]
    half = stopped.output / "checkpoints/checkpoint-9"  # a kill while it was being written
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    with pytest.raises(SystemExit, match=r"stopped run with other settings .*beta 0.1 -> 0.3"):
        main(stopped.model_copy(update={"beta": 0.3}))

    main(stopped)
    assert curve(stopped.output) == curve(whole.output)
    csvs = [(s.output / "loss_curve.csv").read_bytes() for s in (whole, stopped)]
    assert csvs[0] == csvs[1]
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    expected, found = load_file(whole.output / name), load_file(stopped.output / name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_best_takes_the_checkpoint_of_the_lowest_validation_loss(settings, data, tmp_path):
    """The validation pairs are the wrong way round: the better we train, the worse they get."""
    train = files.read_rows(data / "train.parquet", JudgmentPair)
    files.write_rows(tmp_path / "in/train.parquet", train, JudgmentPair)
    swapped = [
        row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen})
        for row in files.read_rows(data / "validation.parquet", JudgmentPair)
    ]
    files.write_rows(tmp_path / "in/validation.parquet", swapped, JudgmentPair)
    best = settings.model_copy(update={"checkpoint": "best", "input": tmp_path / "in"})
    main(best)
    losses = {int(r["step"]): float(r["eval_loss"]) for r in curve(best.output) if r["eval_loss"]}
    step = min(losses, key=lambda s: losses[s])
    assert step == 3 and max(losses) == 12
    assert json.loads((best.output / META).read_text())["best_step"] == 3
    saved = load_file(best.output / "model.safetensors")
    kept = load_file(best.output / f"checkpoints/checkpoint-{step}/model.safetensors")
    assert all(torch.equal(saved[key], kept[key]) for key in saved)


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_is_saved_alone_or_merged_and_both_reload(settings, base, merge):
    s = settings.model_copy(update={"method": "lora", "merge_adapter": merge, "epochs": 1})
    main(s)
    names = {p.name for p in s.output.glob("*.safetensors")}
    assert names == ({"model.safetensors"} if merge else {"adapter_model.safetensors"})
    assert (s.output / "adapter_config.json").exists() is not merge
    ids = torch.arange(3, 30)[None]
    tuned, untuned = load_model(str(s.output)), load_model(str(base))
    with torch.no_grad():
        assert (tuned(ids).logits - untuned(ids).logits).abs().max() > 1e-3
    assert load_tokenizer(str(s.output)).chat_template == tokenizer().chat_template


def test_what_does_not_fit_is_left_out_by_name(settings, data, tmp_path):
    rng = random.Random(5)
    rows = list(files.read_rows(data / "train.parquet", JudgmentPair))[:8]

    def changed(number: int, **texts: str) -> JudgmentPair:
        row = judgment_pair(f"x{number}", 0, "train", rng)
        turns = {
            name: [{"role": "user" if name == "prompt" else "assistant", "content": text}]
            for name, text in texts.items()
        }
        return row.model_copy(update=turns)

    long = "z" * 200
    odd = [
        changed(0, chosen="same", rejected="same"),
        changed(1, prompt=long),
        changed(2, chosen=long),
        changed(3, rejected=long),
        rows[0].model_copy(update={"id": "again"}),
    ]
    files.write_rows(tmp_path / "in/train.parquet", [*rows, *odd], JudgmentPair)
    s = settings.model_copy(update={"input": tmp_path / "in", "max_length": 130, "epochs": 1})
    main(s)
    rejects = [json.loads(line) for line in (s.output / REJECTS).open()]
    assert {r["id"]: r["reason"] for r in rejects} == {
        "x0:best_of_n:0": "identical_after_tokenizing",
        "x1:best_of_n:0": "prompt_too_long",
        "x2:best_of_n:0": "chosen_too_long",
        "x3:best_of_n:0": "rejected_too_long",
        "again": "duplicate_pair",
    }
    meta = json.loads((s.output / META).read_text())
    assert meta["counts"]["read"] == 13 == meta["pairs"]["train pairs"] + 5
    assert curve(s.output)[-1].get("eval_loss") is None  # no validation file: none is measured


def test_nothing_longer_than_trl_cuts_is_cut(settings, tmp_path):
    """1,300 tokens of completion, where TRL's default ends a row at 1,024."""
    rng = random.Random(6)
    long = {"chosen": "a" * 1300, "rejected": "b" * 1290}
    row = judgment_pair("x", 0, "train", rng).model_copy(
        update={k: [{"role": "assistant", "content": v}] for k, v in long.items()}
    )
    files.write_rows(tmp_path / "in/train.parquet", [row], JudgmentPair)
    s = settings.model_copy(update={"input": tmp_path / "in", "max_length": 2000, "epochs": 1})
    main(s)
    (cached,) = s.reference_cache.iterdir()
    logps = [json.loads(line)[1] for line in cached.read_text().splitlines()]
    model, tok = load_model(s.model), load_tokenizer(s.model)
    from prefpipe.chat import completion_ids, prompt_ids

    prompt = prompt_ids(tok, row.prompt)
    for text, logp in zip(long.values(), logps, strict=True):
        completion = completion_ids(tok, text)
        assert len(completion) == len(text) + 1
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(completion)), completion].sum().item()
        assert logp == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"load_in_4bit": True, "method": "lora"}, "needs a CUDA GPU"),
        ({"load_in_4bit": True}, "set --method lora"),
        ({"merge_adapter": True}, "there is no adapter"),
        ({"attn_implementation": "flex_attention"}, "cannot train without CUDA"),
    ],
)
def test_settings_that_cannot_work_end_in_a_sentence(settings, changes, sentence):
    if torch.cuda.is_available():
        pytest.skip("these are refusals of a machine without CUDA")
    with pytest.raises(SystemExit, match=sentence):
        main(settings.model_copy(update=changes))
    assert not (settings.output / "checkpoints").exists()


def test_validation_pairs_are_drawn_by_prompt_whatever_their_order():
    rows = pairs([3, 2, 4, 1, 2])
    drawn = draw(rows, 5, seed=1)
    assert len(drawn) == 5 and {p.id for p in drawn} == {p.id for p in draw(rows[::-1], 5, seed=1)}
    prompts = [pair.prompt_ids.tobytes() for pair in drawn]
    assert prompts == sorted(prompts, key=prompts.index)  # those of one prompt stand together
    assert {p.id for p in draw(rows, 5, seed=2)} != {p.id for p in drawn}
    assert len(draw(rows, None, seed=1)) == 12


def test_the_model_is_not_overwritten(settings, base):
    with pytest.raises(SystemExit, match="is the model itself"):
        main(settings.model_copy(update={"output": base}))


def test_an_item_in_train_and_validation_is_refused(settings, data, tmp_path):
    rows = list(files.read_rows(data / "train.parquet", JudgmentPair))[:4]
    files.write_rows(tmp_path / "in/train.parquet", rows, JudgmentPair)
    files.write_rows(tmp_path / "in/validation.parquet", rows[2:3], JudgmentPair)
    with pytest.raises(DataError, match="1 items are in train and in validation, the first is"):
        main(settings.model_copy(update={"input": tmp_path / "in"}))


def test_a_loss_that_is_no_number_is_a_sentence_with_step_and_rows(settings, monkeypatch):
    broken = dpo_training.training_arguments

    def diverging(s, **options):
        arguments = broken(s, **options)
        arguments.learning_rate, arguments.max_grad_norm = 1e30, 0.0
        return arguments

    monkeypatch.setattr(dpo_training, "training_arguments", diverging)
    with pytest.raises(SystemExit, match=r"dpo_training: step \d+: the .* is (nan|inf).*rows: t\d"):
        main(settings)
