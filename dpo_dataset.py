"""Look at a data set of judgment pairs before training on it: sizes, types, lengths, leaks, samples.

Reads   data/dpo/train.parquet, data/dpo/validation.parquet   JudgmentPair rows
Writes  nothing; a table, or with --json one JSON object, on standard output

    {"id": "p8:hint:0", "item_id": "p8", "split": "train", "pair_type": "hint", "better": 2, "prompt": [{"role": "user", "content": "[Question]..."}], "chosen": [{"role": "assistant", "content": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 2}"}], "rejected": [{"role": "assistant", "content": "{\\"reason\\": \\"5 is more.\\", \\"better_answer\\": 1}"}], "chosen_sample": 0, "rejected_sample": 0}
 -> {"id": "p8:hint:0", "reason": "chosen_is_rejected"}

A problem is something that would spoil the training: it is counted, shown, and makes the exit
status 1. Lengths are in tokens of the model's tokenizer.

    uv run dpo_dataset.py
    uv run dpo_dataset.py --json | jq .problems
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import config
from prefpipe import chat, files, judge, screen, verdicts
from prefpipe.questions import question_key
from prefpipe.ranges import NotNegative
from prefpipe.rows import JudgmentPair, Reject, answer_of
from prefpipe.settings import WholeStage

QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}


class Settings(WholeStage, env_prefix="DPO_DATASET_"):
    input: Path = config.DPO_DATASET
    """Folder of train.parquet and validation.parquet."""
    model: str = config.BASE_MODEL
    """Whose tokenizer counts the tokens."""
    samples: NotNegative = 1
    """Pairs of each type to show whole."""


def problems_of(pair: JudgmentPair) -> Iterator[Reject]:
    """What would spoil the training if this pair were trained on."""
    chosen, rejected = answer_of(pair.chosen), answer_of(pair.rejected)
    if chosen == rejected:
        yield Reject(id=pair.id, reason="chosen_is_rejected")
    # read again, and not taken from the file: the pairs may be of another version, or of anybody
    verdict = verdicts.parse_verdict(chosen)
    if isinstance(verdict, verdicts.Unreadable):
        yield Reject(id=pair.id, reason="chosen_unreadable", detail=verdict.reason)
    elif verdict.better != pair.better:
        yield Reject(id=pair.id, reason="chosen_has_the_wrong_verdict")
    # one that nobody can read may be rejected; one that is right may not, whatever its form
    against = verdicts.parse_verdict(rejected)
    if isinstance(against, verdicts.Verdict) and against.better == pair.better:
        yield Reject(id=pair.id, reason="rejected_has_the_right_verdict")
    if [turn["role"] for turn in pair.prompt][-1:] != ["user"]:
        yield Reject(id=pair.id, reason="prompt_does_not_end_with_the_user")


def summarise(pairs: Iterable[JudgmentPair], tokenizer: Any, *, samples: int) -> dict[str, Any]:
    """Counts by split and type, token lengths, leaks between the splits, problems, samples."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    better: dict[str, Counter[int]] = defaultdict(Counter)
    questions: dict[str, set[str]] = defaultdict(set)
    items: dict[str, set[str]] = defaultdict(set)
    lengths: dict[str, list[int]] = defaultdict(list)
    prompt_lengths: dict[str, int] = {}
    shown: dict[str, list[dict[str, Any]]] = defaultdict(list)
    problems: list[Reject] = []
    ids: Counter[str] = Counter()
    for pair in pairs:
        ids[pair.id] += 1
        counts[pair.split][pair.pair_type] += 1
        better[pair.split][pair.better] += 1
        # by the question and not the item: two items may ask the same, one on each side of the split
        question = judge.question_of(pair.prompt[-1]["content"])
        questions[pair.split].add(question_key(question))
        items[pair.split].add(pair.item_id)
        problems.extend(problems_of(pair))
        # an item's pairs have one prompt, and tokenizing is most of the time that this takes
        if pair.item_id not in prompt_lengths:
            prompt_lengths[pair.item_id] = len(chat.prompt_ids(tokenizer, pair.prompt))
        lengths["prompt"].append(prompt_lengths[pair.item_id])
        for side, turns in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            lengths[side].append(len(chat.completion_ids(tokenizer, answer_of(turns))))
        if len(shown[pair.pair_type]) < samples:
            shown[pair.pair_type].append(pair.model_dump())
    problems += [Reject(id=id, reason="id_stands_twice") for id, n in ids.items() if n > 1]
    for what, keys_of in (("item", items), ("question", questions)):
        leaked = sorted(keys_of["train"] & keys_of["validation"])
        problems += [Reject(id=key, reason=f"{what}_in_train_and_validation") for key in leaked]
    return {
        "pairs": {split: sum(c.values()) for split, c in counts.items()},
        "questions": {split: len(keys) for split, keys in questions.items()},
        "pair_types": {split: dict(sorted(c.items())) for split, c in counts.items()},
        "better": {split: {str(k): c[k] for k in (1, 2)} for split, c in better.items()},
        "tokens": {name: _quantiles(values) for name, values in lengths.items()},
        "problems": dict(Counter(p.reason for p in problems).most_common()),
        "problem_rows": [p.model_dump() for p in problems[:20]],
        "samples": dict(shown),
    }


def _quantiles(values: list[int]) -> dict[str, float]:
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return dict(zip(QUANTILES, quantiles.tolist(), strict=True))


def print_summary(summary: dict[str, Any]) -> None:
    for split, total in summary["pairs"].items():
        types = ", ".join(f"{n} {name}" for name, n in summary["pair_types"][split].items())
        ones = summary["better"][split]["1"] / total
        print(
            f"{split:<11}{total:>6} pairs of {summary['questions'][split]} questions: {types}; "
            f"the first answer is right in {ones:.2f}"
        )
    tokens = summary["tokens"].items()
    rows = [[name, *(f"{n:.0f}" for n in quantiles.values())] for name, quantiles in tokens]
    screen.show_table(["tokens", *QUANTILES], rows)
    for pair_type, pairs in summary["samples"].items():
        for pair in pairs:
            shown = f"\n--- {pair_type}: {pair['id']} ({pair['split']}), right: {pair['better']}\n"
            shown += f"{pair['prompt'][-1]['content']}\nchosen:   {answer_of(pair['chosen'])}\n"
            print(screen.visible(f"{shown}rejected: {answer_of(pair['rejected'])}"))
    print(f"\nproblems: {summary['problems'] or 'none'}")


def main(s: Settings) -> None:
    from prefpipe.models.loading import load_tokenizer

    pairs = files.read_rows(s.input, JudgmentPair, s.limit)
    summary = summarise(pairs, load_tokenizer(s.model), samples=s.samples)
    if not summary["pairs"]:
        raise files.DataError(f"{s.input}: holds no pair")
    if s.as_json:
        print(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        print_summary(summary)
    # exit code not 0, so that pipeline.sh stops before the training
    if summary["problems"]:
        raise SystemExit(f"{s.input}: {sum(summary['problems'].values())} problems, see above")


if __name__ == "__main__":
    Settings.run(main)
