"""Hold judges, reward models and pairwise models against held-out questions and benchmarks.

Reads   data/pairwise_critic_inference2_get_answer/Sky/validation.jsonl   Item rows
        data/dpo/validation.parquet                                       JudgmentPair rows
        --benchmark llmbar=PATH                                           a published benchmark file: llmbar, autoj, sky,
                                                                          rewardbench, rewardbench2, judgebench, best_of_n
Writes  data/accuracy/accuracy.json       every number (schema in data/README.md)
        data/accuracy/judgments.jsonl     EvaluatedJudgment rows: what the numbers are made of
        data/accuracy/pair_scores.jsonl   PairScore rows
        data/accuracy/scores.jsonl        ScoredQuestion rows, of --kind dpo, reward and pairwise

    {"id": "p8", "source": "sums", "split": "validation", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p8", "judge": "tuned", "benchmark": "validation", "order": "swapped", "better": 2, "verdict": 2, "unreadable": null, "text": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 1}", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 17}

Judging is greedy, in both orders of the answers; a text without a strict verdict counts as wrong.
A pair is preferred where its chosen judgment has the higher log-probability; the implicit reward
is log p(tuned) - log p(base), Rafailov et al. 2023, eq. 5. With --kind judge (the default) both
judges are asked; dpo takes the same two models as an implicit reward on responses; reward and
pairwise take the models of path C. Several kinds stand side by side in the table.

    uv run accuracy.py --benchmark llmbar=llmbar.jsonl
    uv run accuracy.py --kind reward --kind pairwise --benchmark rewardbench=filtered.parquet
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import config
from prefpipe import files, llm, screen, verdicts
from prefpipe.evaluation import metrics, scoring
from prefpipe.files import DataError
from prefpipe.formats import published, reading
from prefpipe.judge import build_item, item_in_both_orders
from prefpipe.rows import (
    EvaluatedJudgment,
    Item,
    JudgmentPair,
    PairScore,
    Question,
    Reject,
    ScoredQuestion,
    flatten_turns,
)
from prefpipe.settings import EngineStage, local_folders

Judge = Literal["base", "tuned"]
Order = Literal["given", "swapped"]
Kind = Literal["judge", "dpo", "reward", "pairwise"]
JUDGES: tuple[Judge, ...] = ("base", "tuned")
ORDERS: tuple[Order, ...] = ("given", "swapped")


class Settings(EngineStage, env_prefix="ACCURACY_"):
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
    more than two responses: rewardbench2, best_of_n."""
    trained_on: list[str] = []
    """Preference files that a model was trained on: how much of each set stands in them is shown."""
    template: str | None = None
    """The judge's prompt where preprocess_dataset.py was given one: the same file."""
    output: Path = config.ACCURACY
    """Folder of accuracy.json and of the rows behind it."""


def main(s: Settings, engines: dict[Judge, Any] | None = None) -> None:
    named = parse_benchmarks(s.benchmark)
    own = s.items if "judge" in s.kind or not named else None
    every = {**({"validation": own} if own else {}), **named}
    if not every:
        raise SystemExit("accuracy: nothing to measure on: set --items or --benchmark")
    sets = {name: path for name, path in every.items() if name not in reading.QUESTIONS}
    sets = sets if "judge" in s.kind else {}
    pairs = s.pairs if "judge" in s.kind and s.engine == "local" else None
    scored: list[tuple[Kind, str]] = [
        (kind, name) for kind in s.kind for name in every if kind != "judge" or name not in sets
    ]
    outputs = {
        s.output / "judgments.jsonl": EvaluatedJudgment,
        s.output / "pair_scores.jsonl": PairScore,
        **({s.output / "scores.jsonl": ScoredQuestion} if scored else {}),
    }
    models = {"judge": (s.base, s.tuned), "dpo": (s.base, s.tuned)}
    models |= {"reward": (s.reward_model,), "pairwise": (s.pairwise_model,)}
    inputs = [*every.values(), *(Path(name) for name in s.trained_on)]
    inputs += local_folders(*dict.fromkeys(name for kind in s.kind for name in models[kind]))
    inputs += [pairs] if pairs else []
    inputs += [Path(s.template)] if s.template else []
    with files.open_run(s, inputs=inputs, outputs=outputs, home=s.output) as run:
        if run.finished:
            if not (s.output / "accuracy.json").is_file():
                raise SystemExit(f"{s.output}: accuracy.json is gone; --overwrite makes it again")
            print((s.output / "table.txt").read_text(encoding="utf-8"), end="")
            return
        judgments = run.open_log(EvaluatedJudgment)
        scores = run.open_log(PairScore, "pairs")
        failures: dict[str, llm.Failure] = {}
        unscored: dict[str, llm.Failure] = {}
        for judge, model in zip(JUDGES, (s.base, s.tuned), strict=True):
            items_left = [a for a in asked_items(s, run, sets) if a.key(judge) not in judgments]
            pairs_left = [
                pair
                for pair in (run.peek(pairs, JudgmentPair) if pairs else ())
                if f"{pair.id}\t{judge}" not in scores
            ]
            if items_left or pairs_left:
                engine = engines[judge] if engines else s.open_engine(model)
                failures |= judge_items(s, judge, items_left, engine, judgments)
                unscored |= score_pairs(judge, pairs_left, engine, scores)
                del engine  # two models need not be in memory at once
        report = {
            "judging": report_judging(s, run, sets, judgments, failures),
            "pairs": report_pairs(s, run, scores, unscored) if pairs else None,
        }
        if scored:
            report["scored"] = score_sets(s, run, every, scored, engines)
        if s.trained_on:
            report["overlap"] = overlaps(s, every)
        table = render_table(report)
        files.write_json(s.output / "accuracy.json", report)
        files.write_text(s.output / "table.txt", table)
    print(table, end="")
    texts = "judgments.jsonl" if run.written["judgments.jsonl"] else "scores.jsonl"
    print(f"numbers: {s.output / 'accuracy.json'}; a row each: {s.output / texts}")


class Asked(NamedTuple):
    """One item of one set, in one order of its answers."""

    benchmark: str
    order: Order
    item: Item
    """As it stands in its file, whatever the order."""

    def key(self, judge: Judge) -> str:
        return f"{self.item.id}\t{self.benchmark}\t{judge}\t{self.order}"

    def request_id(self) -> str:
        return f"{self.item.id}\t{self.benchmark}\t{self.order}"


def asked_items(s: Settings, run: files.Run, sets: dict[str, Path]) -> Iterator[Asked]:
    for name, path in sets.items():
        for item in _items(s, run, name, path):
            if isinstance(item, Item):
                for order in ORDERS:
                    yield Asked(name, order, item)


def _items(s: Settings, run: files.Run, name: str, path: Path) -> Iterator[Item | Reject]:
    """The items of a set: as they are, or made of the rows of a published format."""
    if name == "validation":
        yield from run.peek(path, Item)
        return
    places = files.Places()
    for place, record in files.read_records(path, s.limit):
        try:
            if isinstance(record, ValueError):
                raise record
            row = reading.FORMATS[name](record)
        except ValueError as error:
            if s.strict:
                raise DataError(f"{place}: {error}") from None
            yield Reject(id=place, reason="bad_row", detail=str(error))
            continue
        places.check(row.id, place)
        yield build_item(row, split="validation", seed=s.seed, template=s.template)


def parse_benchmarks(entries: list[str]) -> dict[str, Path]:
    """name=path, each name once. SystemExit where one is not."""
    sets: dict[str, Path] = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if name not in {**reading.FORMATS, **reading.QUESTIONS} or not path:
            known = ", ".join({**reading.FORMATS, **reading.QUESTIONS})
            raise SystemExit(f"--benchmark {entry}: wanted name=path, name one of: {known}")
        if name in sets:
            raise SystemExit(f"--benchmark {entry}: {name} is given twice; run the stage for each")
        sets[name] = Path(path)
    return sets


# ---- judging -----------------------------------------------------------------------------------


def judge_items(
    s: Settings,
    judge: Judge,
    asked: list[Asked],
    engine: llm.Engine,
    log: files.RowLog[EvaluatedJudgment],
) -> dict[str, llm.Failure]:
    """Ask the judge, greedily; log what it said as a verdict on the item's own answers."""
    waiting = {a.request_id(): a for a in asked}

    def requests() -> Iterator[llm.Request]:
        for a in asked:
            ids = (a.request_id(), a.request_id())
            both = item_in_both_orders(a.item, ids, template=s.template)
            showing = both[a.order == "swapped"]
            yield s.request(showing.id, showing.prompt, reply_schema=showing.reply_schema)

    def to_row(c: llm.Completion) -> EvaluatedJudgment:
        a = waiting.pop(c.id)
        parsed = verdicts.parse_verdict(c.text)
        verdict = parsed.better if isinstance(parsed, verdicts.Verdict) else None
        if verdict and a.order == "swapped":
            verdict = 3 - verdict
        return EvaluatedJudgment.model_validate(
            {
                "id": a.item.id,
                "judge": judge,
                "benchmark": a.benchmark,
                "order": a.order,
                "better": a.item.better,
                "verdict": verdict,
                "unreadable": None if verdict else parsed.reason,
                "text": c.text,
                "finish_reason": c.finish_reason,
                "prompt_tokens": c.prompt_tokens,
                "new_tokens": c.new_tokens,
            }
        )

    if not asked:
        return {}
    return llm.complete(engine, requests(), log, to_row, total=len(asked), what=judge)


def report_judging(
    s: Settings,
    run: files.Run,
    sets: dict[str, Path],
    log: files.RowLog[EvaluatedJudgment],
    failures: dict[str, llm.Failure],
) -> dict[str, Any]:
    """By set: both judges' numbers, by source too, and whether they differ (McNemar).

    Every item is emitted here: its four judgments, or why it was left out.
    """
    report = {}
    for name, path in sets.items():
        judged: dict[Judge, list[metrics.Judged]] = defaultdict(list)
        by_source: dict[str, list[int]] = defaultdict(list)
        for item in _items(s, run, name, path) if name != "validation" else run.read(path, Item):
            if name != "validation":
                run.read_count += 1
            if isinstance(item, Reject):
                run.emit(item)
                continue
            asked = [Asked(name, order, item) for order in ORDERS]
            if failed := [f for a in asked if (f := failures.get(a.request_id()))]:
                run.emit(Reject(id=item.id, reason=failed[0].reason, detail=failed[0].detail))
                continue
            by_source[item.source].append(len(judged["base"]))
            rows = [log.get(a.key(judge)) for judge in JUDGES for a in asked]
            for judge, (given, swapped) in zip(JUDGES, (rows[:2], rows[2:]), strict=True):
                lengths = len(item.answer_1), len(item.answer_2)
                judged[judge].append(
                    metrics.Judged(item.id, item.better, given.verdict, swapped.verdict, lengths)
                )
            run.emit(rows, to=s.output / "judgments.jsonl")
        if judged:
            report[name] = compare(judged, by_source, seed=s.seed)
            if published := published_scores(name, judged, by_source):
                report[name]["published"] = published
    return report


def compare(
    judged: dict[Judge, list[metrics.Judged]], by_source: dict[str, list[int]], *, seed: int
) -> dict[str, Any]:
    """Both judges on the same items. McNemar's test is on the given order: one judgment an item."""
    right = {
        judge: [row.given == row.better for row in rows if row.better is not None]
        for judge, rows in judged.items()
    }
    return {
        **{judge: metrics.judge_report(rows, seed=seed) for judge, rows in judged.items()},
        "mcnemar_p": metrics.mcnemar_p(right["base"], right["tuned"]),
        "by_source": {
            source: {
                "n": len(places),
                **{
                    judge: _mean(metrics.order_scores([rows[k] for k in places]))
                    for judge, rows in judged.items()
                },
            }
            for source, places in sorted(by_source.items())
        },
    }


def published_scores(
    name: str, judged: dict[Judge, list[metrics.Judged]], by_source: dict[str, list[int]]
) -> dict[Judge, Any]:
    """Each judge's score as the benchmark's own leaderboard takes it; empty where it has none."""
    if name == "rewardbench":
        return {
            judge: published.rewardbench_scores(
                {
                    source.partition("/")[2]: sum(scores) / len(scores)
                    for source, places in by_source.items()
                    if (scores := metrics.order_scores([rows[k] for k in places]))
                }
            )
            for judge, rows in judged.items()
        }
    if name == "judgebench":
        return {
            judge: _mean(
                [
                    published.judgebench_correct(
                        *(None if v is None else v == row.better for v in (row.given, row.swapped))
                    )
                    for row in rows
                ]
            )
            for judge, rows in judged.items()
        }
    return {}


# ---- preference --------------------------------------------------------------------------------


def score_pairs(
    judge: Judge, pairs: list[JudgmentPair], engine: Any, log: files.RowLog[PairScore]
) -> dict[str, llm.Failure]:
    """Log the log-probability of each pair's two judgments behind its prompt.

    Returns by pair id why others could not be scored.
    """
    failures: dict[str, llm.Failure] = {}
    texts = ((p.prompt, [p.chosen[-1]["content"], p.rejected[-1]["content"]]) for p in pairs)
    scored: Iterable[Any] = screen.progress(
        engine.score(texts) if pairs else (), len(pairs), f"{judge}: pairs"
    )
    for pair, result in zip(pairs, scored, strict=True):
        if isinstance(result, llm.Failure):
            failures[pair.id] = result
            continue
        chosen, rejected = result
        log.add(
            PairScore(
                id=pair.id,
                judge=judge,
                chosen_logp=chosen.sum_logp,
                rejected_logp=rejected.sum_logp,
                chosen_tokens=chosen.n_tokens,
                rejected_tokens=rejected.n_tokens,
            )
        )
    return failures


def report_pairs(
    s: Settings,
    run: files.Run,
    log: files.RowLog[PairScore],
    failures: dict[str, llm.Failure],
) -> dict[str, Any] | None:
    """Shares of pairs whose chosen judgment is preferred, by type.

    by_sum: higher summed log-probability; by_mean: higher log-probability a token;
    implicit_reward: log p(tuned) - log p(base) is higher for chosen.
    """
    assert s.pairs is not None
    facts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for pair in run.read(s.pairs, JudgmentPair):
        if failure := failures.get(pair.id):
            run.emit(Reject(id=pair.id, reason=failure.reason, detail=failure.detail))
            continue
        rows = {judge: log.get(f"{pair.id}\t{judge}") for judge in JUDGES}
        run.emit(list(rows.values()), to=s.output / "pair_scores.jsonl")
        gains = {judge: row.chosen_logp - row.rejected_logp for judge, row in rows.items()}
        for kind in ("all", pair.pair_type):
            for judge, row in rows.items():
                facts[kind][f"{judge}_by_sum"].append(gains[judge] > 0)
                facts[kind][f"{judge}_by_mean"].append(
                    row.chosen_logp / row.chosen_tokens > row.rejected_logp / row.rejected_tokens
                )
            facts[kind]["implicit_reward"].append(gains["tuned"] > gains["base"])
    return {
        kind: {"n": len(columns["implicit_reward"])}
        | {name: _mean(values) for name, values in columns.items()}
        for kind, columns in facts.items()
    }


# ---- models that score or compare ----------------------------------------------------------------


def score_sets(
    s: Settings,
    run: files.Run,
    sets: dict[str, Path],
    wanted: list[tuple[Kind, str]],
    engines: dict[Judge, Any] | None,
) -> dict[str, dict[str, Any]]:
    """By set and kind: accuracy with interval and length null, calibration, published scores."""
    log = run.open_log(ScoredQuestion, "scores")
    report: dict[str, dict[str, Any]] = {}
    for kind in s.kind:
        scorer: Scorer | None = None
        for name in (name for k, name in wanted if k == kind):
            questions = list(_questions(s, name, sets[name]))
            left = [
                q
                for q in questions
                if isinstance(q, Question) and f"{q.id}\t{name}\t{kind}" not in log
            ]
            failed: dict[str, Reject] = {}
            for start in screen.progress(range(0, len(left), WINDOW), None, f"{kind}: {name}"):
                scorer = scorer or open_scorer(s, kind, engines)
                part = left[start : start + WINDOW]
                for question, scores in zip(part, scorer(part), strict=True):
                    if isinstance(scores, Reject):
                        failed[question.id] = scores
                        continue
                    n = len(question.right)
                    log.add(
                        ScoredQuestion(
                            id=question.id,
                            benchmark=name,
                            kind=kind,
                            right_scores=scores[:n],
                            wrong_scores=scores[n:],
                        )
                    )
            kept: list[tuple[Question, ScoredQuestion]] = []
            for question in questions:
                run.read_count += 1
                if isinstance(question, Reject) or question.id in failed:
                    run.emit(question if isinstance(question, Reject) else failed[question.id])
                    continue
                row = log.get(f"{question.id}\t{name}\t{kind}")
                run.emit(row, to=s.output / "scores.jsonl")
                kept.append((question, row))
            if kept:
                report.setdefault(name, {})[kind] = scoring.report(
                    name, [q for q, _ in kept], [row for _, row in kept]
                )
    return report


WINDOW = 64
"""Questions that are scored, then logged, together."""
Scorer = Callable[[Sequence[Question]], Iterator[scoring.Scores]]


def open_scorer(s: Settings, kind: Kind, engines: dict[Judge, Any] | None) -> Scorer:
    """Load the model of that kind: the slow part, so only once there is work to do."""
    if kind == "reward":
        from prefpipe.compare.reward_model import RewardModel

        model = RewardModel.load(s.reward_model, load_in_4bit=s.load_in_4bit)
        return partial(scoring.by_reward, model)
    if kind == "pairwise":
        from prefpipe.compare.ab_model import PairwiseModel

        pairwise = PairwiseModel.load(s.pairwise_model, load_in_4bit=s.load_in_4bit)
        return partial(scoring.by_pairwise, pairwise, seed=s.seed)
    tuned = engines["tuned"] if engines else s.open_engine(s.tuned)
    if kind == "judge":
        options = {"template": s.template, "max_new_tokens": s.max_new_tokens}
        return partial(scoring.by_judge, tuned, seed=s.seed, **options)
    if s.engine != "local":
        raise SystemExit(
            "--kind dpo needs log-probabilities of whole responses: set --engine local"
        )
    base = engines["base"] if engines else s.open_engine(s.base)
    return partial(scoring.by_implicit_reward, base, tuned)


def _questions(s: Settings, name: str, path: Path) -> Iterator[Question | Reject]:
    """The rows of a set as questions; what no model can be asked is a Reject."""
    if name == "validation":
        for item in files.read_rows(path, Item, s.limit):
            answers = (item.answer_1, item.answer_2)
            right, wrong = answers if item.better != 2 else answers[::-1]
            yield Question(
                id=item.id,
                prompt=item.question,
                right=[right],
                wrong=[wrong],
                tie=item.better is None,
                source=item.source,
            )
        return
    places = files.Places()
    for place, record in files.read_records(path, s.limit):
        try:
            if isinstance(record, ValueError):
                raise record
            if name in reading.QUESTIONS:
                row = reading.QUESTIONS[name](record)
            else:
                row = reading.to_question(reading.FORMATS[name](record))
        except ValueError as error:
            if s.strict:
                raise DataError(f"{place}: {error}") from None
            yield Reject(id=place, reason="bad_row", detail=str(error))
            continue
        places.check(row.id, place)
        if not flatten_turns(row.prompt).strip():
            yield Reject(id=row.id, reason="empty_question", detail=place)
        elif len(row.right) + len(row.wrong) < 2:
            yield Reject(id=row.id, reason="fewer_than_two_responses", detail=place)
        elif name in reading.FORMATS and not (row.right[0].strip() and row.wrong[0].strip()):
            yield Reject(id=row.id, reason="empty_answer", detail=place)
        elif name in reading.FORMATS and row.right[0].split() == row.wrong[0].split():
            yield Reject(id=row.id, reason="equal_answers", detail=place)
        else:
            yield row


def overlaps(s: Settings, sets: dict[str, Path]) -> dict[str, Any]:
    """By set: how much of its questions stands in the files that were trained on."""

    def texts() -> Iterator[str]:
        for name in s.trained_on:
            for place, record in files.read_records(Path(name)):
                row = reading.read_preference(record, "sky")
                if isinstance(row, ValueError):
                    raise DataError(f"{place}: {row}")
                question = reading.to_question(row)
                yield flatten_turns(question.prompt)
                yield from scoring.responses_of(question)

    return {
        name: scoring.overlap(
            (q for q in _questions(s, name, path) if isinstance(q, Question)), texts()
        )
        for name, path in sets.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---- the table ---------------------------------------------------------------------------------

LINES = {
    "accuracy": "accuracy (both orders)",
    "both_right": "right in both orders",
    "readable": "readable share",
    "agreement": "agreement of the two orders",
    "first_position": "first-position rate",
    "picks_longer": "pick-the-longer rate",
}


def render_table(report: dict[str, Any]) -> str:
    """Both judges side by side, a block for each set; the pairs below."""
    lines = []
    for name, both in report["judging"].items():
        base, tuned = both["base"], both["tuned"]
        lines.append(_line(f"{name}: n = {base['n']}", "base judge", "tuned judge"))
        for field, words in LINES.items():
            cells = [_share(judge[field]) for judge in (base, tuned)]
            if field == "accuracy" and base["interval"]:
                cells = [
                    f"{cell} [{judge['interval'][0]:.3f}, {judge['interval'][1]:.3f}]"
                    for cell, judge in zip(cells, (base, tuned), strict=True)
                ]
            lines.append(_line(f"  {words}", *cells))
        for judge, score in both.get("published", {}).items():
            value = score["score"] if isinstance(score, dict) else score
            lines.append(f"  published score of the {judge} judge: {_share(value)}")
        lines.append(
            f"  McNemar p {both['mcnemar_p']:.2g}; always the longer answer: "
            f"{_share(base['longer_is_right'])}; ties left out of accuracy: {base['ties']}"
        )
    if pairs := report["pairs"]:
        shares = pairs["all"]
        lines.append(_line(f"judgment pairs: n = {shares['n']}", "base judge", "tuned judge"))
        for field, words in (
            ("sum", "prefers chosen, summed"),
            ("mean", "prefers chosen, a token"),
        ):
            cells = [f"{shares[f'{judge}_by_{field}']:.3f}" for judge in JUDGES]
            lines.append(_line(f"  {words}", *cells))
        lines.append(f"  implicit reward accuracy: {shares['implicit_reward']:.3f}")
    for name, kinds in report.get("scored", {}).items():
        lines += scored_lines(name, kinds, report["judging"].get(name, {}).get("tuned"))
    for name, found in report.get("overlap", {}).items():
        lines.append(
            f"{name}: {found['seen']:.3f} of {found['questions']} questions share words "
            f"{found['n']} in a row with the training files, {found['mostly_seen']:.3f} half of theirs"
        )
    return "\n".join(lines) + "\n"


def scored_lines(name: str, kinds: dict[str, Any], judge: dict[str, Any] | None) -> list[str]:
    """Models side by side on one set, the tuned judge too where it was asked."""
    columns = {kind: found for kind, found in kinds.items()} | (
        {"tuned judge": judge} if judge else {}
    )
    first = next(iter(kinds.values()))

    def line(words: str, cell: Callable[[dict[str, Any]], str]) -> str:
        return _line(f"  {words}", *(cell(found) for found in columns.values()))

    def with_interval(found: dict[str, Any]) -> str:
        low, high = found["interval"] or (0.0, 1.0)
        return f"{_share(found['accuracy'])} [{low:.3f}, {high:.3f}]"

    def number(field: str) -> Callable[[dict[str, Any]], str]:
        return lambda found: _share(found.get(field))

    lines = [_line(f"{name}: n = {first['n']}", *columns)]
    if "random_is_right" in first:
        lines.append(line(f"best of {first['responses']:.3g} is right", with_interval))
        lines.append(line("a random one is right", number("random_is_right")))
    else:
        lines.append(line("accuracy (ties half)", with_interval))
        lines.append(line("undecided", number("undecided")))
        lines.append(line("calibration error (ECE)", number("ece")))
        lines.append(line("  after temperature scaling", number("ece_scaled")))
    lines.append(line("picking the longer", number("longer_is_right")))
    if "published" in first:
        lines.append(line("published score", lambda f: _share(f.get("published", {}).get("score"))))
    if len(first["by_source"]) > 1:
        for source, subset in first["by_source"].items():
            cells = [
                with_interval(found["by_source"][source])
                if "by_source" in found and source in found["by_source"]
                else "-"
                for found in columns.values()
            ]
            null = f"longer {_share(subset['longer_is_right'])}"
            lines.append(_line(f"    {source} ({subset['n']})", *cells, null))
    return lines


def _share(value: float | None) -> str:
    """- where there was nothing to take a share of."""
    return "-" if value is None else f"{value:.3f}"


def _line(*cells: str) -> str:
    return "".join(f"{cell:<31} " for cell in cells).rstrip()


if __name__ == "__main__":
    Settings.run(main)
