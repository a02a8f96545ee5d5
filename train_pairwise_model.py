"""Train a pairwise preference model: which of two responses is better, as one token, A or B.

Reads   embedded/sample/preferences-*.parquet     a published format (--format), or Preference rows
Writes  data/models/pairwise/                     the model or adapter, the tokenizer, README.md
        data/models/pairwise/loss_curve.csv       a row a step: loss, accuracy of the label; held out, too
        data/models/pairwise/loss_curve.png       the same as a picture: where both part, it over-fits
        data/models/pairwise/pairwise_eval.json   held out: accuracy, calibration, position bias, mass outside A/B
        data/models/pairwise/reliability.png      confidence against accuracy
        data/models/pairwise/disagreements.jsonl  Disagreement rows: the worst held-out pairs, for reading
        data/models/pairwise/train_pairwise_model.rejects.jsonl   Reject rows: what was not used, and why

    {"id": "p8", "prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": null, "tie": false, "source": "sums"}
 -> {"id": "p8", "margin": -1.5, "chosen_score": null, "rejected_score": null, "prompt": "2+2?", "chosen": "4", "rejected": "5", "source": "sums"}

The model reads "[CONTEXT] ... [RESPONSE A] ... [RESPONSE B] ..." (prefpipe/compare/ab_model.py), each pair in
both orders; the loss is -log p of the label token alone. Its probability is the mean of both orders.

    uv run train_pairwise_model.py --input my_preferences.jsonl --validation-input ""
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from prefpipe import files, screen
from prefpipe.ranges import Positive
from prefpipe.settings import PreferenceTrainingStage

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel, Preferred
    from prefpipe.training.preferences import Collected
    from prefpipe.training.tokenized_pairs import TokenizedPair

CHECKED_PAIRS = 16


class Settings(PreferenceTrainingStage, env_prefix="PAIRWISE_MODEL_"):
    output: Path = config.PAIRWISE_MODEL
    """Folder of the trained model."""
    max_length: Positive = 2048
    """Most tokens of the turn with both responses; the context is cut from its left, no response."""


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
        print(f"agreement of both orders    {report['agreement']:.3f}")
        print(f"prefers the response at A   {report['first_position']:.3f}")
        print(f"probability outside A, B    {report['outside_mean']:.2g}")


def train(s: Settings, run: files.Run) -> dict[str, Any]:
    import torch
    import transformers

    from prefpipe.compare import ab_model
    from prefpipe.models.loading import load_model, load_tokenizer, max_positions
    from prefpipe.training import preferences
    from prefpipe.training.ab import PrefixSharedPairwiseTrainer, tokenize_pair
    from prefpipe.training.checkpoints import TrainingCallback, open_checkpoints
    from prefpipe.training.tokenized_pairs import to_dataset

    on_cuda = torch.cuda.is_available()
    s.check(on_cuda)
    tokenizer = load_tokenizer(s.model)
    labels = ab_model.label_ids(tokenizer)
    stopped_at = open_checkpoints(s.output / "checkpoints", run.mark, s.overwrite)
    transformers.set_seed(s.seed)
    bf16 = on_cuda and torch.cuda.is_bf16_supported() if s.bf16 is None else s.bf16
    model = load_model(
        s.model,
        dtype="bfloat16" if bf16 and s.method == "lora" else "float32",
        load_in_4bit=s.load_in_4bit,
        for_training=True,
    )
    model.set_attn_implementation(s.attn_implementation)
    limit = min(s.max_length, max_positions(model))
    tokenize = ab_model.PairwiseTokenizer(tokenizer, limit)
    data = preferences.collect(s, run, lambda row: tokenize_pair(row, tokenize))
    trainer = PrefixSharedPairwiseTrainer(
        model,
        training_arguments(s, bf16),
        to_dataset(data.train, tie=data.ties["train"]),
        to_dataset(data.validation, tie=data.ties["validation"]),
        processing_class=tokenizer,
        labels=labels,
        prefix_sharing=s.prefix_sharing,
        peft_config=s.adapter("CAUSAL_LM"),
        callbacks=[TrainingCallback(s.output / "loss_curve.csv", run.stage)],
    )
    preferences.run_training(trainer, stopped_at, s.early_stopping, run.stage)
    steps = write_curve(s, trainer.state.log_history)
    state = trainer.state

    scorer, difference = save(s, trainer, limit, data.validation[:CHECKED_PAIRS])
    report = evaluate(s, scorer, data)
    ab_model.PairwiseFormat(limit, report["logit_temperature"]).save(s.output)
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
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig(**s.trainer_arguments(bf16))


# ---- after the training --------------------------------------------------------------------------


def save(
    s: Settings, trainer: Any, limit: int, pairs: "list[TokenizedPair]"
) -> "tuple[PairwiseModel, float]":
    """Save, load again, compare log p of the labels; the loaded model, and the largest difference."""
    from prefpipe.compare import ab_model
    from prefpipe.models.loading import load_model
    from prefpipe.training import preferences, saving

    tokenizer = trainer.processing_class
    own_format = ab_model.PairwiseFormat(limit)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    quantized = bool(getattr(model, "is_loaded_in_4bit", False))
    if s.merge_adapter and quantized:
        # The adapter is added to the full-precision base: 4-bit weights would be rounded again.
        saving.save_model(model, tokenizer, s.output)
        model, quantized = load_model(s.output, load_in_4bit=False, dtype="bfloat16"), False
    rows = [[*p.prompt_ids, *rest] for p in pairs for rest in (p.chosen_ids, p.rejected_ids)]

    def label_logps(scorer: "PairwiseModel") -> list[float]:
        return [value for pair in scorer.label_logps(rows) for value in pair]

    def alone(model: Any) -> "PairwiseModel":
        return ab_model.PairwiseModel(model, tokenizer, own_format, share_prompts=False)

    expected = label_logps(alone(model))
    if s.merge_adapter and hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    saving.save_model(model, tokenizer, s.output)
    own_format.save(s.output)
    dtype = saving.weight_dtype(model)
    del model
    trainer.release()
    loaded = load_model(s.output, load_in_4bit=quantized, dtype=dtype)
    difference = preferences.check_scores(expected, label_logps(alone(loaded)), dtype, s.output)
    return ab_model.PairwiseModel(loaded, tokenizer, own_format), difference


def evaluate(s: Settings, scorer: "PairwiseModel", data: "Collected") -> dict[str, Any]:
    """pairwise_eval.json, reliability.png and disagreements.jsonl, of the held-out pairs.

    logit_temperature divides the logits of both orders before their probabilities are averaged;
    temperature divides the log-odds of the average.
    """
    from prefpipe.compare.tournament import log_odds
    from prefpipe.evaluation import metrics
    from prefpipe.training.preferences import answer_of, write_evaluation

    questions = (
        (row.prompt, [answer_of(row.chosen), answer_of(row.rejected)], [(0, 1)])
        for row in data.held_out
    )
    compared: Any = screen.progress(scorer.compare(questions), len(data.held_out), "held-out pairs")
    found: list[Preferred] = [preferred for (preferred,) in compared]
    both = [(f.p_given > 0.5, f.p_swapped > 0.5) for f in found]
    return write_evaluation(
        s.output,
        "pairwise",
        data.held_out,
        [log_odds(f.p) for f in found],
        worst=s.worst,
        agreement=sum(given == swapped for given, swapped in both) / len(both),
        first_position=sum(given + (not swapped) for given, swapped in both) / (2 * len(both)),
        logit_temperature=metrics.fit_order_temperature(
            [log_odds(f.p_given) for f in found],
            [log_odds(f.p_swapped) for f in found],
            [0.5 if row.tie else 1.0 for row in data.held_out],
        ),
        outside_mean=sum(f.outside for f in found) / len(found),
        outside_max=max(f.outside for f in found),
        truncated_prompts=data.prompts_cut,
    )


def write_curve(s: Settings, log: list[dict[str, Any]]) -> int:
    """loss_curve.csv and .png; the number of rows."""
    from prefpipe.training import curve

    rows = curve.write_csv(s.output / "loss_curve.csv", log)
    panels = {
        "loss": ("loss", "eval_loss"),
        "accuracy of the label": ("mean_token_accuracy", "eval_mean_token_accuracy"),
    }
    title = f"pairwise model on {Path(s.model).name}"
    curve.write_png(s.output / "loss_curve.png", rows, panels, title)
    return len(rows)


def write_card(s: Settings, run: files.Run, counts: dict[str, int], report: dict[str, Any]) -> None:
    from prefpipe.training.card import model_card

    left_out = ", ".join(f"{n} {reason}" for reason, n in run.left_out.most_common())
    names = ("accuracy", "agreement", "ece", "temperature", "ece_scaled", "longer_is_right")
    text = model_card(
        title=f"A pairwise preference model on {Path(s.model).name}",
        base=s.model,
        library="peft" if s.method == "lora" and not s.merge_adapter else "transformers",
        method="sft",
        what=(
            "It reads a conversation and two responses, `[CONTEXT] ... [RESPONSE A] ... "
            "[RESPONSE B] ...`, in one user turn, and answers with one token, A or B (the format "
            f"of RLHFlow's pair-preference models). Trained with {s.method} in both orders, "
            f"weights of the {s.checkpoint} checkpoint."
        ),
        data={"pairs": s.input, **counts, "left out": left_out or "none"},
        results={name: report[name] for name in names},
        settings=s.model_dump(mode="json"),
        use=(
            "Comparing responses to one prompt: softmax over the logits of A and B, the mean of "
            "both orders. For several responses a tournament, `rank_responses.py --by pairwise`. "
            "`pairwise_eval.json` and `disagreements.jsonl` show where it was wrong. It inherits "
            "the base model's licence and limits."
        ),
    )
    files.write_text(s.output / "README.md", text)


if __name__ == "__main__":
    Settings.run(main)
