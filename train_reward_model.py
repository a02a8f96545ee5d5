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
in Ouyang et al. 2022, eq. 1 (--margin-as has other uses of a margin). The saved model is loaded again and must give the same scores.

    uv run train_reward_model.py --input my_preferences.jsonl
"""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import config
from prefpipe import files, screen
from prefpipe.ranges import Weight
from prefpipe.settings import PreferenceTrainingStage, local_folders
from prefpipe.training import preferences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from trl.trainer.reward_config import RewardConfig

    from prefpipe.compare.reward_model import RewardModel
    from prefpipe.compare.reward_tokens import RewardFormat
    from prefpipe.training.held_out_halves import Halves

CHECKED_PAIRS = 16
"""Held-out pairs that a saved model must give the same scores when it is loaded again."""


class Settings(PreferenceTrainingStage, env_prefix="REWARD_MODEL_"):
    output: Path = config.REWARD_MODEL
    """Folder of the trained model."""
    method: Literal["full", "lora", "probe"] = "full"  # pyright: ignore[reportIncompatibleVariableOverride]
    """full: all weights; lora: a low-rank adapter on frozen ones; probe: none, a linear head on the states
    of three layers is fitted, each pair being read once (no steps, so learning_rate, epochs, batch_pairs
    and checkpoint say nothing)."""
    margin_weight: Weight = 1.0
    """Each row's margin is multiplied by this; 0: margins do nothing."""
    margin_as: Literal["additive", "scaled", "soft"] = "additive"
    """What the margin is to the loss: subtracted from the difference of the scores (0 where a row has
    none), a factor of the row's term, or the log-odds that chosen is better (a soft label)."""
    center_rewards: Weight = 0.01
    """Weight of (r(chosen) + r(rejected))^2 in the loss, which keeps scores around 0; 0: none."""
    cut_prompt: bool = True
    """Cut a prompt from its left where it has no room before its response; else leave the row out."""
    chat_template: Path | None = None
    """A Jinja file, for a decoder whose tokenizer brings no chat template."""


def main(s: Settings) -> None:
    inputs = [*s.raw_files(), *local_folders(s.model), *filter(None, [s.chat_template])]
    with s.open_run(inputs=inputs, outputs={}, home=s.output, unit="pairs") as run:
        if run.finished:
            s.check_weights()
            return
        # before torch is loaded: what is wrong with the rows is said within a second
        preferences.check(s.raw_preferences(), run, drop_ties=s.ties == "drop")
        report = fit_probe(s, run) if s.method == "probe" else train(s, run)
        from prefpipe.training.held_out_report import summary_lines

        print("\n".join(summary_lines(report)))


def train(s: Settings, run: files.Run) -> dict[str, Any]:
    screen.quiet_libraries()
    import transformers

    from prefpipe.compare.reward_model import RewardModel
    from prefpipe.models.classifiers import load_classifier
    from prefpipe.models.loading import max_positions
    from prefpipe.training import held_out_halves
    from prefpipe.training.record import record
    from prefpipe.training.reward import PrefixSharedRewardTrainer
    from prefpipe.training.tokenized_pairs import to_dataset

    s.check()
    checkpoints = s.open_checkpoints(run)
    transformers.set_seed(s.seed)  # the head is new
    model, tokenizer, is_causal, _ = load_classifier(
        s.model, chat_template=s.chat_template, new_head=True, **s.load_options()
    )
    own_format, pairs = read_pairs(s, run, tokenizer, max_positions(model), is_causal)
    halves = held_out_halves.halve(pairs, chooses=s.wants_best)
    s.end_dry_run(run, checkpoints, pairs.train, halves.choosing)
    columns = ("tie", "margin") if s.margin_weight and pairs.margins else ("tie",)
    trainer = PrefixSharedRewardTrainer(
        model,
        training_arguments(s),
        to_dataset(pairs.train, *columns),
        to_dataset(halves.choosing, *columns),
        processing_class=tokenizer,
        prefix_sharing=s.prefix_sharing and is_causal,
        margin_as=s.margin_as,
        peft_config=s.adapter(model, "SEQ_CLS"),
    )
    del model  # the trainer's from here on, which lets go of it
    checkpoints.fit(trainer, run.stage, s.early_stopping)
    # evaluated is what was saved and loaded again, not what is in memory
    loaded, difference = s.save(
        trainer,
        pairs.validation[:CHECKED_PAIRS],
        lambda score, _: score,
        load=lambda folder, **options: load_classifier(folder, **options)[0],
    )
    scorer = RewardModel(loaded, tokenizer, own_format, is_causal, share_prompts=s.prefix_sharing)
    report = evaluate(s, scorer, halves)
    # the temperature goes with the model: whoever loads it gets calibrated margins
    dataclasses.replace(own_format, temperature=report["temperature"]).save(s.output)
    record(run, trainer, "reward", s.model_dump(mode="json"), pairs.counts(), report, difference)
    return report


def fit_probe(s: Settings, run: files.Run) -> dict[str, Any]:
    """The same with --method probe: features of the frozen model, and a regression on them."""
    screen.quiet_libraries()
    from prefpipe.models.classifiers import load_classifier
    from prefpipe.models.loading import max_positions
    from prefpipe.training import held_out_halves, probe
    from prefpipe.training.record import record

    s.check()
    options = {**s.load_options(), "for_training": False, "headless": True}
    options["chat_template"] = s.chat_template
    model, tokenizer, is_causal, _ = load_classifier(s.model, **options)
    own_format, pairs = read_pairs(s, run, tokenizer, max_positions(model), is_causal)
    reader = probe.reader_of(model, tokenizer, own_format, is_causal, s.prefix_sharing)
    fitting = probe.Fitting(reader, s.output, run, overwrite=s.overwrite)
    margins = s.margin_as if s.margin_weight else None
    loaded, off = fitting.run(pairs, margins, base=s.model, checked=CHECKED_PAIRS)
    report = evaluate(s, loaded, held_out_halves.halve(pairs, chooses=False))
    dataclasses.replace(own_format, temperature=report["temperature"]).save(s.output)
    record(run, fitting, "reward", s.model_dump(mode="json"), pairs.counts(), report, off)
    fitting.kept.delete()
    return report


def read_pairs(
    s: Settings, run: files.Run, tokenizer: "Tokenizer", positions: int, is_causal: bool
) -> "tuple[RewardFormat, preferences.TrainingPairs]":
    """The pairs as a model of so many positions reads them, and how it does."""
    from prefpipe.compare.reward_tokens import RewardFormat, RewardTokenizer
    from prefpipe.training.reward import tokenize_pair

    own_format = RewardFormat(min(s.max_length, positions), s.cut_prompt, read_at="template_end")
    reader = RewardTokenizer(tokenizer, own_format, is_causal)
    margins = {"margin_weight": s.margin_weight, "margin_as": s.margin_as}
    tokenize = functools.partial(tokenize_pair, tokenize=reader, **margins)
    pairs = preferences.collect(s.raw_preferences(), run, tokenize, drop_ties=s.ties == "drop")
    if s.margin_weight and pairs.margins and not s.dry_run:
        n, mean = len(pairs.margins), sum(pairs.margins) / len(pairs.margins)
        unused = s.method == "probe" and s.margin_as == "additive"
        how = "no probe can use them" if unused else f"times {s.margin_weight:g}"
        print(f"margins: {n} pairs have one, {mean:.3g} on average; {s.margin_as}, {how}")
    return own_format, pairs


def training_arguments(s: Settings) -> "RewardConfig":
    from trl.trainer.reward_config import RewardConfig

    return RewardConfig(
        **s.trainer_arguments(),
        center_rewards_coefficient=s.center_rewards or None,
        disable_dropout=False,  # the trainer switches off all but the adapter's own
    )


def evaluate(s: Settings, scorer: "RewardModel", halves: "Halves") -> dict[str, Any]:
    """reward_eval.json, reliability.png and disagreements.jsonl, of the held-out pairs."""
    from prefpipe.training.held_out_report import both_responses, write_evaluation

    rows = halves.judged
    scored: Any = screen.progress(scorer.score(both_responses(rows)), len(rows), "held-out pairs")
    scores = [(chosen, rejected) for chosen, rejected in scored]
    return write_evaluation(
        s.output,
        "reward",
        halves,
        [chosen - rejected for chosen, rejected in scores],
        worst=s.worst,
        scores=scores,
        mean_score=sum(map(sum, scores)) / (2 * len(scores)),
    )


if __name__ == "__main__":
    Settings.run(main)
