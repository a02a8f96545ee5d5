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

    uv run train_pairwise_model.py --input my_preferences.jsonl
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config
from prefpipe import files, screen
from prefpipe.ranges import Positive
from prefpipe.settings import PreferenceTrainingStage, local_folders
from prefpipe.training import preferences

if TYPE_CHECKING:
    from prefpipe.compare.ab_model import PairwiseModel, Preferred
    from prefpipe.training.held_out_halves import Halves

CHECKED_PAIRS = 16
"""Held-out pairs that a saved model must give the same labels' log p when it is loaded again."""


class Settings(PreferenceTrainingStage, env_prefix="PAIRWISE_MODEL_"):
    output: Path = config.PAIRWISE_MODEL
    """Folder of the trained model."""
    max_length: Positive = 2048
    """Most tokens of the turn with both responses; the context is cut from its left, no response."""


def main(s: Settings) -> None:
    inputs = [*s.raw_files(), *local_folders(s.model)]
    with s.open_run(inputs=inputs, outputs={}, home=s.output, unit="pairs") as run:
        if run.finished:
            s.check_weights()
            return
        # before torch is loaded: what is wrong with the rows is said within a second
        preferences.check(s.raw_preferences(), run, drop_ties=s.ties == "drop")
        report = train(s, run)
        from prefpipe.training.held_out_report import summary_lines

        print("\n".join(summary_lines(report)))
        print(f"agreement of both orders    {report['agreement']:.3f}")
        print(f"prefers the response at A   {report['first_position']:.3f}")
        print(f"probability outside A, B    {report['outside_mean']:.2g}")


def train(s: Settings, run: files.Run) -> dict[str, Any]:
    screen.quiet_libraries()
    import transformers
    from trl.trainer.sft_config import SFTConfig

    from prefpipe.compare.ab_model import PairwiseModel
    from prefpipe.compare.ab_prompt import PairwiseFormat, PairwiseTokenizer
    from prefpipe.models.loading import load_both, max_positions
    from prefpipe.training import held_out_halves
    from prefpipe.training.ab import PrefixSharedPairwiseTrainer, tokenize_pair
    from prefpipe.training.record import record
    from prefpipe.training.tokenized_pairs import to_dataset

    s.check()
    checkpoints = s.open_checkpoints(run)
    transformers.set_seed(s.seed)
    model, tokenizer = load_both(s.model, **s.load_options())
    limit = min(s.max_length, max_positions(model))
    reader = PairwiseTokenizer(tokenizer, limit)
    labels = reader.labels
    tokenize = functools.partial(tokenize_pair, tokenize=reader)
    pairs = preferences.collect(s.raw_preferences(), run, tokenize, drop_ties=s.ties == "drop")
    halves = held_out_halves.halve(pairs, chooses=s.wants_best)
    s.end_dry_run(run, checkpoints, pairs.train, halves.choosing)
    trainer = PrefixSharedPairwiseTrainer(
        model,
        SFTConfig(**s.trainer_arguments()),
        to_dataset(pairs.train, "tie"),
        to_dataset(halves.choosing, "tie"),
        processing_class=tokenizer,
        labels=labels,
        prefix_sharing=s.prefix_sharing,
        peft_config=s.adapter(model, "CAUSAL_LM"),
    )
    del model  # the trainer's from here on, which lets go of it
    checkpoints.fit(trainer, run.stage, s.early_stopping)
    loaded, difference = s.save(
        trainer,
        pairs.validation[:CHECKED_PAIRS],
        lambda logits, _: logits[-1].float().log_softmax(-1)[[*labels]],
    )
    sharing = s.prefix_sharing
    scorer = PairwiseModel(loaded, tokenizer, PairwiseFormat(limit), share_prompts=sharing)
    report = evaluate(s, scorer, halves)
    PairwiseFormat(limit, report["logit_temperature"]).save(s.output)
    settings = s.model_dump(mode="json")
    record(run, trainer, "pairwise", settings, pairs.counts(), report, difference)
    return report


def evaluate(s: Settings, scorer: "PairwiseModel", halves: "Halves") -> dict[str, Any]:
    """pairwise_eval.json, reliability.png and disagreements.jsonl, of the held-out pairs.

    logit_temperature divides the logits of both orders before their probabilities are averaged;
    temperature divides the log-odds of the average.
    """
    from prefpipe.compare.tournament import log_odds
    from prefpipe.evaluation import calibration
    from prefpipe.training.held_out_report import both_responses, write_evaluation

    rows = halves.judged
    questions = ((prompt, responses, [(0, 1)]) for prompt, responses in both_responses(rows))
    compared: Any = screen.progress(scorer.compare(questions), len(rows), "held-out pairs")
    answers: list[Preferred] = [preferred for (preferred,) in compared]
    # each order by itself: a model with a liking for A agrees with itself less than its mean says
    is_chosen = [(a.p_given > 0.5, a.p_swapped > 0.5) for a in answers]
    return write_evaluation(
        s.output,
        "pairwise",
        halves,
        [log_odds(a.p) for a in answers],
        worst=s.worst,
        agreement=sum(given == swapped for given, swapped in is_chosen) / len(rows),
        first_position=sum(given + (not swapped) for given, swapped in is_chosen) / (2 * len(rows)),
        # fitted before the mean over the orders: a mean of two overconfident ones looks calibrated
        logit_temperature=calibration.fit_order_temperature(
            [log_odds(a.p_given) for a in answers],
            [log_odds(a.p_swapped) for a in answers],
            [0.5 if row.tie else 1.0 for row in rows],
        ),
        outside_mean=sum(a.outside for a in answers) / len(rows),
        outside_max=max(a.outside for a in answers),
    )


if __name__ == "__main__":
    Settings.run(main)
