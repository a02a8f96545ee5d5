"""Hold judges, reward models and pairwise models against held-out questions and benchmarks.

Reads   data/pairwise_critic_inference2_get_answer/Sky_english/validation.jsonl   Item rows
        data/dpo/validation.parquet                                               JudgmentPair rows
        --benchmark llmbar=PATH                                                   a published benchmark file
Writes  data/accuracy/accuracy.json       every number (schema in data/README.md)
        data/accuracy/judgments.jsonl     EvaluatedJudgment rows: what the numbers are made of
        data/accuracy/pair_scores.jsonl   PairScore rows
        data/accuracy/scores.jsonl        ScoredQuestion rows, of --kind dpo, reward and pairwise

    {"id": "p8", "source": "sums", "split": "validation", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p8", "judge": "tuned", "benchmark": "validation", "order": "swapped", "better": 2, "verdict": 2, "unreadable": null, "text": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 1}", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 17}

Judging is greedy, in both orders of the answers; a text without a strict verdict counts as wrong. A pair is
preferred where its chosen judgment has the higher log-probability; the implicit reward is log p(tuned) -
log p(base), Rafailov et al. 2023, eq. 5. With --kind judge (the default) both judges are asked; dpo takes the
same two models as an implicit reward on responses; reward and pairwise take the preference models.

    uv run accuracy.py --benchmark llmbar=llmbar.jsonl
    uv run accuracy.py --kind reward --kind pairwise --benchmark rewardbench=filtered.parquet
    uv run accuracy.py --labels labels.csv
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import config
from prefpipe import files, llm
from prefpipe.compare import openers
from prefpipe.evaluation import judging, labels, overlap, scoring
from prefpipe.evaluation.held_out import VALIDATION, Kind, Measured, parse_benchmarks
from prefpipe.evaluation.judging import JUDGES, Judge
from prefpipe.evaluation.tables import tables
from prefpipe.judge import Showing
from prefpipe.llm.replies import Replies
from prefpipe.publish.trackers import report_summary
from prefpipe.rows import EvaluatedJudgment, PairScore, Reject, ScoredQuestion
from prefpipe.settings import EngineStage, PairColumns, ReportingStage, local_folders
from prefpipe.templates import template_files


class Settings(PairColumns, EngineStage, ReportingStage, env_prefix="ACCURACY_"):
    base: str = config.BASE_MODEL
    """The judge before training: a folder or a hub name."""
    tuned: str = str(config.TUNED_JUDGE)
    """The judge after training: a folder of a model or of an adapter."""
    items: Path | None = config.ITEMS_ENGLISH / "validation.jsonl"
    """Held-out items; without --kind judge, only where no benchmark is given. None: no items."""
    pairs: Path | None = config.DPO_DATASET / "validation.parquet"
    """Held-out judgment pairs, for --kind judge. None: they are left out."""
    kind: list[Kind] = ["judge"]
    """Who is measured: judge (base and tuned), dpo (their implicit reward), reward, pairwise."""
    reward_model: str = str(config.REWARD_MODEL)
    """The reward model of --kind reward: a folder or a hub name."""
    pairwise_model: str = str(config.PAIRWISE_MODEL)
    """The pairwise model of --kind pairwise: a folder or a hub name."""
    benchmark: list[str] = []
    """More sets, each as name=path; name is the format, as of preprocess_dataset.py, or one with
    more than two responses: rewardbench2, best_of_n; auto: as format and the columns say."""
    labels: list[str] = []
    """What --label-column holds, as of preprocess_dataset.py. Or, alone, the file of a reader's labels
    from the page of report.py: shown is how the data agrees, and win rates corrected for its errors."""
    trained_on: list[str] = []
    """Preference files that a model was trained on: how much of each set stands in them is shown."""
    template: str | None = None
    """The judge's prompt where preprocess_dataset.py was given one: the same file."""
    output: Path = config.ACCURACY
    """Folder of accuracy.json and of the rows behind it."""


def main(s: Settings, engines: Mapping[Judge, Any] | None = None) -> None:
    if len(s.labels) == 1:  # a column's are two or more
        print(labels.report(config.DATA, labels.read_labels(Path(s.labels[0]))), end="")
        return
    measured = what_is_measured(s)
    judged = [m for m in measured if m.is_judged]
    scored = [m for m in measured if not m.is_judged]
    # a server gives no log-probability of a text that it did not write
    pairs = s.pairs if "judge" in s.kind and s.engine == "local" else None
    outputs = {
        s.output / "judgments.jsonl": EvaluatedJudgment,
        s.output / "pair_scores.jsonl": PairScore,
        **({s.output / "scores.jsonl": ScoredQuestion} if scored else {}),
    }
    inputs = inputs_of(s, measured, pairs)
    made = [s.output / "accuracy.json", s.output / "table.txt"]
    with s.open_run(inputs=inputs, outputs=outputs, made=made, home=s.output, by_logs=True) as run:
        if run.finished:
            print(made[1].read_text(encoding="utf-8") if made[1].exists() else "", end="")
            return
        report: dict[str, Any] = measure_judges(s, run, judged, pairs, engines)
        if scored:
            # one model at a time: the next kind's takes its place
            open_scorer = lru_cache(maxsize=1)(partial(open_model, s, engines))
            open_ranker = partial(ranker_of, s, run, open_scorer)
            report["scored"] = scoring.measure(run, scored, open_ranker, s.output / "scores.jsonl")
        run.end_shard()
        if s.trained_on:
            report["overlap"] = overlap.overlaps(run, measured, [Path(p) for p in s.trained_on])
        run.write_json(made[0], report)
        run.write_text(made[1], tables(report))
    # behind the run's end: a tracker that cannot be reached costs no result
    report_summary(s.report_to, run.stage, s.output, report)
    print(tables(report), end="")
    rows = "judgments.jsonl" if run.written["judgments.jsonl"] else "scores.jsonl"
    print(f"numbers: {made[0]}; a row each: {s.output / rows}")


def what_is_measured(s: Settings) -> list[Measured]:
    """Each kind of model on each set. SystemExit where there is no set."""
    sets = parse_benchmarks(s.benchmark)
    if s.items and ("judge" in s.kind or not sets):
        sets = {VALIDATION: s.items, **sets}
    if not sets:
        raise SystemExit("accuracy: nothing to measure on: set --items or --benchmark")
    if "dpo" in s.kind and s.engine != "local":
        raise SystemExit("--kind dpo needs log-probabilities of responses: set --engine local")
    if {"reward", "pairwise"} & {*s.kind}:
        s.where_scored()  # a dry run, too, refuses an engine that gives no scores
    how = s.how_read()
    return [Measured(kind, name, path, how) for kind in s.kind for name, path in sets.items()]


def inputs_of(s: Settings, measured: Sequence[Measured], pairs: Path | None) -> list[Path]:
    names = dict.fromkeys(name for kind in s.kind for name in models_of(s, kind))
    return [
        *files.here(dict.fromkeys([*(m.path for m in measured), *s.trained_on])),
        *local_folders(*names),
        *([pairs] if pairs else []),
        *(template_files(s.template, "judge") if "judge" in s.kind else []),
    ]


def models_of(s: Settings, kind: Kind) -> Sequence[str]:
    one: dict[Kind, str] = {"reward": s.reward_model, "pairwise": s.pairwise_model}
    return [one[kind]] if kind in one else [s.base, s.tuned]


def to_request(s: Settings, showing: Showing) -> llm.Request:
    return s.request(showing.id, showing.prompt, reply_schema=showing.reply_schema)


def measure_judges(
    s: Settings,
    run: files.Run,
    judged: Sequence[Measured],
    pairs: Path | None,
    engines: Mapping[Judge, Any] | None,
) -> dict[str, Any]:
    """Ask both judges for what they have not said yet, one after the other; what both said."""
    items = {"seed": s.seed, "template": s.template}
    requests = partial(judging.requests, run, judged, partial(to_request, s), **items)
    replies: dict[Judge, Replies] = {judge: Replies(run, requests, judge) for judge in JUDGES}
    scores = run.open_log(PairScore, "pairs")
    left_out: dict[str, Reject] = {}
    for judge, model in zip(JUDGES, (s.base, s.tuned), strict=True):
        # once for texts and pairs; the next judge takes its place, for two may not fit into memory
        open_engine = cache(partial(open_judge, s, judge, model, engines))
        replies[judge].ask(open_engine, judge)
        if pairs:
            left_out |= judging.score_pairs(run, pairs, judge, scores, open_engine)
    if run.shards.keeps_logs:
        return {}
    to_judgments, to_scores = s.output / "judgments.jsonl", s.output / "pair_scores.jsonl"
    return {
        "judging": judging.report(run, judged, replies, to_judgments, **items),
        "pairs": judging.report_pairs(run, pairs, scores, left_out, to_scores) if pairs else None,
    }


def open_judge(s: Settings, judge: Judge, model: str, engines: Mapping[Judge, Any] | None) -> Any:
    return engines[judge] if engines else s.open_engine(model)


def ranker_of(
    s: Settings, run: files.Run, open_scorer: Callable[[Kind], Any], kind: Kind, name: str
) -> openers.Ranker:
    """Who scores or compares the responses of the set of that name."""
    if kind == "judge":
        options = {"template": s.template, "max_new_tokens": s.max_new_tokens, "seed": s.seed}
        return openers.open_judge(run, partial(open_scorer, kind), name=f"judge.{name}", **options)
    return openers.when_asked(run, lambda: open_scorer(kind), models_of(s, kind))


def open_model(s: Settings, engines: Mapping[Judge, Any] | None, kind: Kind) -> Any:
    """A ranker, or of a judge its engine: the slow part, so only once there is work to do."""
    if kind == "reward":
        return openers.open_reward(s.reward_model, **s.where_scored())
    if kind == "pairwise":
        return openers.open_pairwise(s.pairwise_model, seed=s.seed, **s.where_scored())
    tuned = open_judge(s, "tuned", s.tuned, engines)
    if kind == "judge":
        return tuned
    return partial(openers.by_implicit_reward, open_judge(s, "base", s.base, engines), tuned)


if __name__ == "__main__":
    Settings.run(main)
