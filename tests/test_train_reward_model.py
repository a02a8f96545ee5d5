"""train_reward_model: what it writes, leaves out and refuses; a stopped run; the reload check."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import train_reward_model
from prefpipe.compare.reward_model import RewardModel
from prefpipe.compare.reward_tokens import RewardFormat
from prefpipe.files import DataError
from prefpipe.models.classifiers import load_classifier
from prefpipe.models.loading import load_tokenizer
from prefpipe.training.checkpoints import TrainingCallback
from prefpipe.training.saving import check_scores
from tests.examples import read_jsonl, run_stage, sentence
from tests.preference_data import row, rows, save_base, write_jsonl
from tests.test_reward_model import bert, bert_tokenizer
from tests.training_models import scorable
from train_reward_model import Settings, main


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return (
        write_jsonl(folder / "train.jsonl", rows(48)),
        write_jsonl(folder / "validation.jsonl", rows(12, "v")),
    )


@pytest.fixture
def settings(base, data, tmp_path):
    def made(**changes) -> Settings:
        options = {
            "input": str(data[0]),
            "validation_input": str(data[1]),
            "output": tmp_path / "reward",
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
    s = settings(worst=3)
    main(s)
    steps = curve(s.output)
    assert [int(r["step"]) for r in steps] == list(range(1, 13))  # 48 pairs / 8 * 2 epochs
    assert all(r["loss"] and r["accuracy"] for r in steps)
    assert [int(r["step"]) for r in steps if r["eval_loss"]] == [4, 8, 12]
    assert (s.output / "loss_curve.png").stat().st_size > 5_000
    assert (s.output / "reliability.png").stat().st_size > 5_000
    report = read(s.output / "reward_eval.json")
    assert report["n"] == 12 and 0 <= report["accuracy"] <= 1
    assert {"interval", "undecided", "mean_margin", "ece", "temperature", "ece_scaled", "spearman",
            "by_length", "longer_is_right", "reliability"} <= report.keys()  # fmt: skip
    meta = read(s.output / "train_reward_model.meta.json")
    assert meta["reload_difference"] <= 1e-4 and meta["steps"] == 12
    assert "accuracy" in capsys.readouterr().out

    # the report again, from the saved folder alone, by the model's own forward
    model = RewardModel.load(s.output)
    held_out = [json.loads(line) for line in data[1].read_text().splitlines()]
    margins = {}
    for record in held_out:
        responses = [record["chosen"], record["rejected"]]
        made = scorable(model.tokenize(record["prompt"], responses))
        with torch.no_grad():
            chosen, rejected = (
                model.model(input_ids=torch.tensor([[*made.prompt_ids, *ids]])).logits[0, 0].item()
                for ids in made.completions
            )
        margins[record["id"]] = chosen - rejected
    right = [1.0 if m > 0 else 0.0 for m in margins.values()]
    assert report["accuracy"] == pytest.approx(sum(right) / 12)
    assert report["mean_margin"] == pytest.approx(sum(margins.values()) / 12, abs=1e-4)
    worst = [
        json.loads(line) for line in (s.output / "disagreements.jsonl").read_text().splitlines()
    ]
    expected = sorted((m, id) for id, m in margins.items() if m < 0)[:3]
    assert [w["id"] for w in worst] == [id for _, id in expected]
    assert read(s.output / RewardFormat.file)["temperature"] == report["temperature"]


def test_it_learns_what_is_better(settings):
    """Better responses end in +: learned in a few epochs, far above chance on other prompts."""
    s = settings(epochs=12.0, learning_rate=1e-2)
    main(s)
    assert read(s.output / "reward_eval.json")["accuracy"] >= 0.9


def test_a_stopped_run_goes_on_and_ends_in_the_same_curve(settings, monkeypatch, tmp_path):
    whole = settings(output=tmp_path / "whole")
    main(whole)
    stopped = settings(output=tmp_path / "stopped")
    on_step_end = TrainingCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingCallback, "on_step_end", stop)
        main(stopped)
    assert not (stopped.output / "reward_eval.json").exists()
    main(stopped)
    assert curve(stopped.output) == curve(whole.output)
    a, b = (load_file(s.output / "model.safetensors") for s in (whole, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_early_stopping_keeps_the_best_weights(settings):
    """A learning rate that ruins the model: the loss held out only rises after the first time."""
    s = settings(epochs=30.0, learning_rate=0.3, save_steps=2, early_stopping=2, scheduler="constant_with_warmup")  # fmt: skip
    main(s)
    losses = {int(r["step"]): float(r["eval_loss"]) for r in curve(s.output) if r["eval_loss"]}
    meta = read(s.output / "train_reward_model.meta.json")
    assert meta["steps"] < 180 and losses[meta["best_step"]] == min(losses.values())


def test_an_encoder_is_a_backbone_too(settings, tmp_path):
    folder = tmp_path / "bert"
    bert().save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    s = settings(model=str(folder), epochs=1.0)
    main(s)
    assert read(s.output / "train_reward_model.meta.json")["reload_difference"] <= 1e-4
    assert not RewardModel.load(s.output).tokenize.is_causal


# ---- the score's head, once lost with the adapter (R8) ------------------------------------------


@pytest.mark.parametrize("merge", [False, True])
def test_a_lora_adapter_reloads_to_the_same_scores(settings, merge):
    s = settings(method="lora", merge_adapter=merge, lora_r=4)
    main(s)
    assert read(s.output / "train_reward_model.meta.json")["reload_difference"] <= 1e-4
    assert (s.output / "adapter_config.json").exists() is not merge
    question = ("Q?", ["a+", "b-"])
    scores = [next(RewardModel.load(s.output).score([question])) for _ in range(2)]
    assert scores[0] == scores[1]
    if not merge:
        head = load_file(s.output / "adapter_model.safetensors")
        assert any("score" in name for name in head)


def test_an_adapter_without_the_head_is_refused(base, tmp_path):
    """Its head would be drawn anew each time it is loaded."""
    model, *_ = load_classifier(base, new_head=True)
    adapter = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    adapter.save_pretrained(tmp_path / "adapter")
    assert not any("score.weight" in n for n in load_file(tmp_path / "adapter/adapter_model.safetensors"))  # fmt: skip
    with pytest.raises(SystemExit, match=r"score\.weight are missing, and would be random"):
        load_classifier(tmp_path / "adapter")
    with pytest.raises(RuntimeError, match="not saved whole, its head perhaps"):
        check_scores([0.5], [0.7], "float32", tmp_path)


def test_a_saved_head_that_is_not_the_trained_one_fails_loudly(settings, monkeypatch):
    from prefpipe.training import saving

    save_model = saving.save_model

    def save_without_head(model, tokenizer, folder):
        names = save_model(model, tokenizer, folder)
        weights = load_file(folder / "model.safetensors")
        weights["score.weight"] = torch.randn_like(weights["score.weight"])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return names

    monkeypatch.setattr(saving, "save_model", save_without_head)
    s = settings(epochs=1.0)
    with pytest.raises(RuntimeError, match="gives scores that differ by up to"):
        main(s)
    assert not (s.output / "train_reward_model.meta.json").exists()
    assert (s.output / "checkpoints").exists()


# ---- what goes in --------------------------------------------------------------------------------


def test_each_row_that_cannot_be_used_is_left_out_by_name(settings, tmp_path):
    bad = [
        row("same", chosen="x  y", rejected="x y"),
        row("empty", rejected=" "),
        row("no-prompt", prompt=""),
        {"id": "missing", "prompt": "Q", "chosen": "a"},
        row("negative", margin=-1.0),
        row("tie", tie=True),
        row("long", chosen="a" * 300),
        row("leak", prompt="the held out question of this test, word for word"),
        row("twice", prompt="P", chosen="a", rejected="b"),
        row("again", prompt="P", chosen="a", rejected="b"),
    ]
    train = write_jsonl(tmp_path / "train.jsonl", [*rows(8), *bad])
    held_out = row("v", prompt="The held-out question of this test: word for word!")
    validation = write_jsonl(tmp_path / "validation.jsonl", [held_out, *rows(3, "v")])
    s = settings(input=str(train), validation_input=str(validation), max_length=200, epochs=1.0)
    main(s)
    meta = read(s.output / "train_reward_model.meta.json")
    assert meta["counts"]["left_out"] == {
        "equal_answers": 1,
        "empty_answer": 1,
        "empty_question": 1,
        "bad_row": 2,
        "tie": 1,
        "too_long": 1,
        "near_duplicate_of_validation": 1,
        "duplicate_pair": 1,
    }
    assert meta["counts"]["read"] == 8 + 10 + 4 == meta["counts"]["kept"] + 9
    rejects = (s.output / "train_reward_model.rejects.jsonl").read_text()
    assert "rejected: missing; found id, prompt, chosen" in rejects
    assert "margin" in rejects


def test_the_split_is_by_prompt_and_nothing_held_out_is_trained_on(settings, data, monkeypatch):
    seen = {}
    train = train_reward_model.train

    def watch(s, run):
        from prefpipe.training import preferences

        collect = preferences.collect

        def keep(*arguments, **options):
            seen["data"] = collect(*arguments, **options)
            return seen["data"]

        monkeypatch.setattr(preferences, "collect", keep)
        return train(s, run)

    monkeypatch.setattr(train_reward_model, "train", watch)
    s = settings(validation_input="", validation_share=0.3, epochs=1.0)
    main(s)
    sides = [
        {p.prompt_ids.tobytes() for p in pairs}
        for pairs in (seen["data"].train, seen["data"].validation)
    ]
    assert all(sides) and not sides[0] & sides[1]
    assert len(seen["data"].train) + len(seen["data"].validation) == 48
    assert 4 <= len(seen["data"].validation) <= 26


def test_held_out_ties_are_kept_and_train_ties_can_be_halves(settings, tmp_path):
    train = [{**r, "tie": k % 3 == 0} for k, r in enumerate(rows(24))]
    validation = [{**r, "tie": k == 0} for k, r in enumerate(rows(6, "v"))]
    s = settings(
        input=str(write_jsonl(tmp_path / "t.jsonl", train)),
        validation_input=str(write_jsonl(tmp_path / "v.jsonl", validation)),
        ties="half",
        epochs=1.0,
    )
    main(s)
    assert read(s.output / "reward_eval.json")["ties"] == 1
    counts = read(s.output / "train_reward_model.meta.json")["pairs"]
    assert (counts["train pairs"], counts["train ties"]) == (24, 8)


def test_margins_of_the_rows_are_in_the_loss(settings, tmp_path):
    """Margins that all are 5 where the model's are about 0: -log sigmoid(-5) = 5.0067."""
    train = [{**r, "margin": 5.0} for r in rows(16)]
    path = write_jsonl(tmp_path / "t.jsonl", train)
    s = settings(input=str(path), epochs=1.0, center_rewards=0.0)
    main(s)
    assert float(curve(s.output)[0]["loss"]) == pytest.approx(5.0067, abs=0.5)
    off = settings(input=str(path), epochs=1.0, center_rewards=0.0, margin_weight=0.0, output=tmp_path / "off")  # fmt: skip
    main(off)
    assert float(curve(off.output)[0]["loss"]) == pytest.approx(math.log(2), abs=0.2)


@pytest.mark.parametrize(
    ("margin_as", "first_loss"),
    # where the new head's scores are about equal: 3 log 2; and p log 2 + (1 - p) log 2
    [("scaled", 3 * math.log(2)), ("soft", math.log(2))],
)
def test_a_margin_can_be_a_factor_or_a_soft_label(
    settings, tmp_path, margin_as, first_loss, capsys
):
    train = [{**r, "margin": 3.0} for r in rows(16)]
    path = write_jsonl(tmp_path / "t.jsonl", train)
    s = settings(input=str(path), epochs=1.0, center_rewards=0.0, margin_as=margin_as)
    main(s)
    assert float(curve(s.output)[0]["loss"]) == pytest.approx(first_loss, abs=0.5)
    assert (
        f"margins: 16 pairs have one, 3 on average; {margin_as}, times 1" in capsys.readouterr().out
    )


def test_rows_are_read_before_a_model_and_the_rejects_say_what_was_wrong(tmp_path):
    """As a user runs it: torch is not even imported."""
    bad = [{"instruction": "Q", "output_1": "a", "output_2": "b", "label": 3} for _ in range(3)]
    write_jsonl(tmp_path / "mine.jsonl", bad)
    options = ("--input", "mine.jsonl", "--output", "model", "--format", "llmbar")
    for stage in ("train_reward_model", "train_pairwise_model"):
        result = run_stage(stage, *options, "--model", "no/such-model", cwd=tmp_path)
        assert sentence(result) == (
            f"{stage}: mine.jsonl: no pair to train on (left out: 3 bad_row; first: mine.jsonl:1: "
            "label: found '3', wanted one of 1, 2 (--labels)); each with its reason in "
            f"model/{stage}.rejects.jsonl"
        )
        rejects = read_jsonl(tmp_path / f"model/{stage}.rejects.jsonl")
        assert [r["reason"] for r in rejects] == ["bad_row"] * 3


def test_one_class_only_is_refused(settings, tmp_path):
    ties = write_jsonl(tmp_path / "t.jsonl", [{**r, "tie": True} for r in rows(9)])
    with pytest.raises(DataError, match="every train pair is a tie"):
        main(settings(input=str(ties), ties="half"))
    with pytest.raises(DataError, match=r"no pair to train on \(left out: 9 tie\)"):
        main(settings(input=str(ties), overwrite=True))


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rows(settings, base, tmp_path):
    broken = tmp_path / "broken"
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = 0
    model.score.weight.data[:] = 3e38  # a number; its sums are none
    model.save_pretrained(broken)
    load_tokenizer(base).save_pretrained(broken)
    with pytest.raises(SystemExit, match=r"step 1: the loss is nan in training; rows: t\d+"):
        main(settings(model=str(broken)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"load_in_4bit": True}, "4-bit weights cannot be trained; set --method lora"),
        ({"load_in_4bit": True, "method": "lora"}, "needs a CUDA GPU"),
        ({"merge_adapter": True}, "there is no adapter with --method full"),
        ({"attn_implementation": "flex_attention"}, "cannot train without CUDA"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_sentence(settings, changes, sentence):
    if torch.cuda.is_available():
        pytest.skip("a GPU can do some of these")
    with pytest.raises(SystemExit, match=sentence):
        main(settings(**changes))


def test_a_decoder_without_a_chat_template_needs_one_given(settings, base, tmp_path):
    plain = tmp_path / "plain"
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(plain)
    tok = load_tokenizer(base)
    template, tok.chat_template = tok.chat_template, None
    tok.save_pretrained(plain)
    with pytest.raises(DataError, match="has no chat template; give one with --chat-template"):
        main(settings(model=str(plain)))
    file = tmp_path / "chatml.jinja"
    file.write_text(template)
    s = settings(model=str(plain), chat_template=file, epochs=1.0)
    main(s)
    assert RewardModel.load(s.output).tokenize.tokenizer.chat_template == template


def test_a_chat_template_that_was_edited_is_another_input(settings, tmp_path, monkeypatch):
    marks = []

    def train(s, run):
        marks.append(run.mark)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_reward_model, "train", train)
    template = tmp_path / "chat.jinja"
    for text in ("{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages }}"):
        template.write_text(text)
        with pytest.raises(KeyboardInterrupt):
            main(settings(chat_template=template))
    changed = {name for name in marks[0] if marks[0][name] != marks[1][name]}
    assert changed == {"input chat.jinja"}


def test_without_its_input_a_training_leaves_nothing_behind(settings, tmp_path):
    s = settings(input=str(tmp_path / "nothing.jsonl"), output=tmp_path / "model")
    with pytest.raises((SystemExit, DataError), match="nothing"):
        main(s)
    assert not (tmp_path / "model").exists()


def test_an_adapters_lists_are_saved_in_order_and_without_sharing_the_report_is_the_same(
    settings, tmp_path
):
    """PEFT keeps sets: their order is another in each process."""
    found = []
    for sharing in (True, False):
        s = settings(output=tmp_path / str(sharing), method="lora", prefix_sharing=sharing)
        main(s)
        own = json.loads((s.output / "adapter_config.json").read_text())
        assert own["target_modules"] == sorted(own["target_modules"])
        found.append(json.loads((s.output / "reward_eval.json").read_text())["mean_margin"])
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_a_card_s_way_to_read_the_model_gives_the_scores_that_we_give(settings):
    """AutoModelForSequenceClassification on what apply_chat_template makes of the conversation."""
    from transformers import AutoTokenizer

    s = settings()
    main(s)
    model = AutoModelForSequenceClassification.from_pretrained(s.output).eval()
    tokenizer = AutoTokenizer.from_pretrained(s.output)
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "an answer"}]
    ids = tokenizer.apply_chat_template(turns, return_dict=False, return_tensors="pt")
    with torch.no_grad():
        theirs = model(ids).logits[0, 0].item()
    (ours,) = RewardModel.load(s.output).score([("Q", ["an answer"])])
    assert scorable(ours) == pytest.approx([theirs], abs=1e-4)
