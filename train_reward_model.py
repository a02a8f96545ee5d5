"""Train a Bradley-Terry reward model: one score for a prompt and a response.

Reads   embedded/sample/preferences-*.parquet   a published format (--format), or Preference rows
Writes  data/models/reward/                     the model or adapter with its head, the tokenizer, README.md
        data/models/reward/loss_curve.csv       a row a step: loss, accuracy, margin; held out, too
        data/models/reward/loss_curve.png       the same as a picture: where both part, it over-fits
        data/models/reward/reward_eval.json     held out: accuracy, calibration, temperature, length null
        data/models/reward/reliability.png      confidence against accuracy
        data/models/reward/disagreements.jsonl  Disagreement rows: the worst held-out pairs, for reading
        data/models/reward/train_reward_model.rejects.jsonl   Reject rows: what was not used, and why

    {"id": "p8", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": null, "tie": false, "source": "sums"}
 -> {"id": "p8", "margin": -1.5, "chosen_score": 0.5, "rejected_score": 2.0, "prompt": "2+2?", "chosen": "4", "rejected": "5", "source": "sums"}

The loss is -log sigmoid(r(chosen) - r(rejected) - margin_weight * margin), Bradley & Terry 1952 as
in Ouyang et al. 2022, eq. 1. The saved model is loaded again and must give the same scores.

    uv run train_reward_model.py --input my_preferences.jsonl --validation-input ""
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import config
from prefpipe import files, screen
from prefpipe.rows import Preference, Reject
from prefpipe.settings import PreferenceTrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prefpipe.compare.reward_model import RewardModel, RewardTokenizer
    from prefpipe.training.preferences import Collected
    from prefpipe.training.tokenized_pairs import TokenizedPair

CHECKED_PAIRS = 16
NotNegative = Annotated[float, Field(ge=0)]


class Settings(PreferenceTrainingStage, env_prefix="REWARD_MODEL_"):
    output: Path = config.REWARD_MODEL
    """Folder of the trained model."""
    margin_weight: NotNegative = 1.0
    """The loss subtracts this times the row's margin (0 where it has none), in the unit of scores."""
    center_rewards: NotNegative = 0.01
    """Weight of (r(chosen) + r(rejected))^2 in the loss, which keeps scores around 0; 0: none."""
    cut_prompt: bool = True
    """Cut a prompt from its left where it has no room before its response; else leave the row out."""
    chat_template: Path | None = None
    """A Jinja file, for a decoder whose tokenizer brings no chat template."""


def tokenize_pair(
    row: Preference, tokenize: "RewardTokenizer"
) -> "tuple[TokenizedPair, int] | Reject":
    """Both responses behind one prompt, as the model will read them wherever it is used."""
    import numpy as np

    from prefpipe.compare.reward_model import Unscorable
    from prefpipe.training.preferences import answer_of
    from prefpipe.training.tokenized_pairs import TokenizedPair

    made = tokenize(row.prompt, [answer_of(row.chosen), answer_of(row.rejected)])
    if isinstance(made, Unscorable):
        return Reject(id=row.id, reason=made.reason, detail=made.detail)
    if made.completions[0] == made.completions[1]:
        return Reject(id=row.id, reason="identical_after_tokenizing")
    arrays = [np.array(ids, dtype=np.int32) for ids in (made.prompt_ids, *made.completions)]
    return TokenizedPair(row.id, *arrays), made.tokens_cut


def main(s: Settings) -> None:
    with files.open_run(s, inputs=s.inputs(), outputs={}, home=s.output, unit="pairs") as run:
        if run.finished:
            if not any(s.output.glob("*.safetensors")):
                raise SystemExit(f"{s.output}: finished, but no weights; --overwrite trains again")
            return
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        report = train(s, run)
        from prefpipe.training.preferences import summary_lines

        print("\n".join(summary_lines(report)))


def train(s: Settings, run: files.Run) -> dict[str, Any]:
    import torch
    import transformers

    from prefpipe.compare import reward_model
    from prefpipe.models.classifiers import head_name, load_classifier
    from prefpipe.models.loading import max_positions
    from prefpipe.training import preferences
    from prefpipe.training.checkpoints import TrainingCallback, open_checkpoints
    from prefpipe.training.reward import PrefixSharedRewardTrainer
    from prefpipe.training.tokenized_pairs import to_dataset

    on_cuda = torch.cuda.is_available()
    s.check(on_cuda)
    stopped_at = open_checkpoints(s.output / "checkpoints", run.mark, s.overwrite)
    transformers.set_seed(s.seed)  # the head is new
    bf16 = on_cuda and torch.cuda.is_bf16_supported() if s.bf16 is None else s.bf16
    model, tokenizer, causal = load_classifier(
        s.model,
        chat_template=s.chat_template,
        dtype="bfloat16" if bf16 and s.method == "lora" else "float32",
        load_in_4bit=s.load_in_4bit,
        for_training=True,
    )
    limit = min(s.max_length, max_positions(model))
    own_format = reward_model.RewardFormat(limit, s.cut_prompt)
    tokenize = reward_model.RewardTokenizer(tokenizer, own_format, causal)
    data = preferences.collect(s, run, lambda row: tokenize_pair(row, tokenize))
    if causal:
        model.set_attn_implementation(s.attn_implementation)
    trainer = PrefixSharedRewardTrainer(
        model,
        training_arguments(s, bf16),
        to_dataset(data.train, **columns(s, data, "train")),
        to_dataset(data.validation, **columns(s, data, "validation")),
        processing_class=tokenizer,
        prefix_sharing=s.prefix_sharing and causal,
        peft_config=s.adapter("SEQ_CLS", [head_name(model)] if s.method == "lora" else None),
        callbacks=[TrainingCallback(s.output / "loss_curve.csv", run.stage)],
    )
    preferences.run_training(trainer, stopped_at, s.early_stopping, run.stage)
    steps = write_curve(s, trainer.state.log_history)
    state = trainer.state

    scorer, difference = save(s, trainer, own_format, causal, data.validation[:CHECKED_PAIRS])
    report = evaluate(s, scorer, data)
    temperature = report["temperature"]
    reward_model.RewardFormat(limit, s.cut_prompt, temperature).save(s.output)
    write_card(s, run, data.counts(), report)
    run.written["loss_curve.csv"] = steps
    run.summary |= {
        "pairs": data.counts(),
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "accuracy": report["accuracy"],
        "reload_difference": difference,
    }
    return report


def training_arguments(s: Settings, bf16: bool) -> Any:
    from trl.trainer.reward_config import RewardConfig

    return RewardConfig(
        **s.trainer_arguments(bf16),
        center_rewards_coefficient=s.center_rewards or None,
        disable_dropout=s.lora_dropout == 0,  # it would switch the adapter's off, too
    )


def columns(s: Settings, data: "Collected", split: Any) -> dict[str, list[Any]]:
    """What stands beside a pair: whether it is a tie, and its margin where one is used."""
    found: dict[str, list[Any]] = {"tie": data.ties[split]}
    margins = data.margins
    if s.margin_weight and any(margins["train"] + margins["validation"]):
        found["margin"] = [s.margin_weight * m for m in margins[split]]
    return found


# ---- after the training --------------------------------------------------------------------------


def save(
    s: Settings, trainer: Any, own_format: Any, causal: bool, pairs: "list[TokenizedPair]"
) -> "tuple[RewardModel, float]":
    """Save, load again, compare scores; the loaded model, and the largest difference."""
    from prefpipe.compare import reward_model
    from prefpipe.models.classifiers import load_classifier
    from prefpipe.training import preferences, saving

    tokenizer = trainer.processing_class
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    quantized = bool(getattr(model, "is_loaded_in_4bit", False))
    if s.merge_adapter and quantized:
        # The adapter is added to the full-precision base: 4-bit weights would be rounded again.
        saving.save_model(model, tokenizer, s.output)
        model, *_ = load_classifier(s.output, dtype="bfloat16", load_in_4bit=False)
        quantized = False
    expected = one_by_one(model, pairs)
    if s.merge_adapter and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    saving.save_model(model, tokenizer, s.output)
    own_format.save(s.output)
    dtype = saving.weight_dtype(model)
    del model
    trainer.release()
    loaded, tokenizer, _ = load_classifier(
        s.output, chat_template=s.chat_template, dtype=dtype, load_in_4bit=quantized
    )
    found = one_by_one(loaded, pairs)
    difference = preferences.check_scores(expected, found, dtype, s.output)
    return reward_model.RewardModel(loaded, tokenizer, own_format, causal), difference


def one_by_one(model: "PreTrainedModel", pairs: "list[TokenizedPair]") -> list[float]:
    """Scores of each pair's responses, a row of its own each: none of the code that trained."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows = [(p.prompt_ids, c) for p in pairs for c in (p.chosen_ids, p.rejected_ids)]
    with torch.no_grad():
        scores = [
            model(input_ids=torch.tensor([[*prompt, *completion]], device=device))
            .logits[0, 0]
            .float()
            .item()
            for prompt, completion in rows
        ]
    model.train(was_training)
    return scores


def evaluate(s: Settings, scorer: "RewardModel", data: "Collected") -> dict[str, Any]:
    """reward_eval.json, reliability.png and disagreements.jsonl, of the held-out pairs."""
    from prefpipe.training.preferences import answer_of, write_evaluation

    questions = (
        (row.prompt, [answer_of(row.chosen), answer_of(row.rejected)]) for row in data.held_out
    )
    scored: Any = screen.progress(scorer.score(questions), len(data.held_out), "held-out pairs")
    scores = [(found[0], found[1]) for found in scored]
    margins = [chosen - rejected for chosen, rejected in scores]
    flat = [value for pair in scores for value in pair]
    return write_evaluation(
        s.output,
        "reward",
        data.held_out,
        margins,
        worst=s.worst,
        scores=scores,
        mean_score=sum(flat) / len(flat),
        truncated_prompts=data.prompts_cut,
    )


def write_curve(s: Settings, log: list[dict[str, Any]]) -> int:
    """loss_curve.csv and .png; the number of rows."""
    from prefpipe.training import curve

    rows = curve.write_csv(s.output / "loss_curve.csv", log)
    panels = {
        "loss": ("loss", "eval_loss"),
        "accuracy": ("accuracy", "eval_accuracy"),
        "margin": ("margin", "eval_margin"),
    }
    title = f"reward model on {Path(s.model).name}"
    curve.write_png(s.output / "loss_curve.png", rows, panels, title)
    return len(rows)


def write_card(s: Settings, run: files.Run, counts: dict[str, int], report: dict[str, Any]) -> None:
    from prefpipe.training.card import model_card

    left_out = ", ".join(f"{n} {reason}" for reason, n in run.left_out.most_common())
    names = ("accuracy", "ece", "temperature", "ece_scaled", "mean_margin", "longer_is_right")
    text = model_card(
        title=f"A reward model on {Path(s.model).name}",
        base=s.model,
        library="peft" if s.method == "lora" and not s.merge_adapter else "transformers",
        method="reward-trainer",
        what=(
            "A Bradley-Terry reward model: AutoModelForSequenceClassification with one label. "
            "sigmoid((r(a) - r(b)) / temperature) is the probability that response a is better "
            f"than b to the same prompt. Trained with {s.method}, weights of the {s.checkpoint} "
            "checkpoint."
        ),
        data={"pairs": s.input, **counts, "left out": left_out or "none"},
        results={name: report[name] for name in names},
        settings=s.model_dump(mode="json"),
        use=(
            "Ranking responses to one prompt. Scores of different prompts do not compare. It can "
            "be wrong with confidence outside the kind of prompts it was trained on: "
            "`reward_eval.json` and `disagreements.jsonl` show where it was wrong inside. It "
            "inherits the base model's licence and limits."
        ),
    )
    files.write_text(s.output / "README.md", text)


if __name__ == "__main__":
    Settings.run(main)
