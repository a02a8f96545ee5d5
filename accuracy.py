"""Hold the tuned judge against its base: on held-out questions, and on held-out judgment pairs.

Reads   data/pairwise_critic_inference2_get_answer/Sky/validation.jsonl   Item rows
        data/dpo/validation.parquet                                       JudgmentPair rows
        --benchmark llmbar=PATH                                           a published benchmark file
Writes  data/accuracy/accuracy.json       every number (schema in data/README.md)
        data/accuracy/judgments.jsonl     EvaluatedJudgment rows: what the numbers are made of
        data/accuracy/pair_scores.jsonl   PairScore rows

    {"id": "p7", "source": "sums", "split": "validation", "language": "en", "question": "2+2?", "answer_1": "5", "answer_2": "4", "better": 2, "prompt": "[Question]..."}
 -> {"id": "p7", "judge": "tuned", "benchmark": "validation", "order": "swapped", "better": 2, "verdict": 2, "unreadable": null, "text": "{\\"reason\\": \\"4 is right.\\", \\"better_answer\\": 1}", "finish_reason": "stop", "prompt_tokens": 61, "new_tokens": 17}

Judging is greedy, in both orders of the answers; a text without a strict verdict counts as wrong.
A pair is preferred where its chosen judgment has the higher log-probability; the implicit reward
is log p(tuned) - log p(base), Rafailov et al. 2023, eq. 5.

    uv run accuracy.py --benchmark llmbar=../shared/data/llmbar.jsonl
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import config
from prefpipe import files, llm, metrics, pairing, sources, verdicts
from prefpipe.files import DataError
from prefpipe.rows import EvaluatedJudgment, Item, JudgmentPair, Message, PairScore, Reject

Judge = Literal["base", "tuned"]
Order = Literal["given", "swapped"]
JUDGES: tuple[Judge, ...] = ("base", "tuned")
ORDERS: tuple[Order, ...] = ("given", "swapped")


class Settings(config.EngineStage, env_prefix="ACCURACY_"):
    base: str = config.BASE_MODEL
    """The judge before training: a folder or a hub name."""
    tuned: str = str(config.TUNED_JUDGE)
    """The judge after training: a folder of a model or of an adapter."""
    items: Path = config.ITEMS_ENGLISH / "validation.jsonl"
    """Held-out items."""
    pairs: Path = config.DPO_DATASET / "validation.parquet"
    """Held-out judgment pairs."""
    benchmark: list[str] = []
    """More sets to judge, each as name=path; name is the format, as of preprocess_dataset.py."""
    template: str | None = None
    """The judge's prompt where preprocess_dataset.py was given one: the same file."""
    output: Path = config.ACCURACY
    """Folder of accuracy.json and of the rows behind it."""


def main(s: Settings, engines: dict[Judge, Any] | None = None) -> None:
    sets = {"validation": s.items, **parse_benchmarks(s.benchmark)}
    outputs = {
        s.output / "judgments.jsonl": EvaluatedJudgment,
        s.output / "pair_scores.jsonl": PairScore,
    }
    inputs = [*sets.values(), *config.local_folders(s.base, s.tuned)]
    inputs += [s.pairs] if s.engine == "local" else []
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
        for judge, model in zip(JUDGES, (s.base, s.tuned), strict=True):
            items_left = [a for a in asked_items(s, run, sets) if a.key(judge) not in judgments]
            pairs_left = [
                pair
                for pair in (run.peek(s.pairs, JudgmentPair) if s.engine == "local" else ())
                if f"{pair.id}\t{judge}" not in scores
            ]
            if items_left or pairs_left:
                engine = engines[judge] if engines else s.open_engine(model)
                failures |= judge_items(s, judge, items_left, engine, judgments)
                score_pairs(judge, pairs_left, engine, scores)
                del engine  # two models need not be in memory at once
        report = {
            "judging": report_judging(s, run, sets, judgments, failures),
            "pairs": report_pairs(s, run, scores),
        }
        table = render_table(report)
        files.write_json(s.output / "accuracy.json", report)
        files.write_text(s.output / "table.txt", table)
    print(table, end="")
    print(f"numbers: {s.output / 'accuracy.json'}; texts: {s.output / 'judgments.jsonl'}")


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
            row = sources.FORMATS[name](record)
        except ValueError as error:
            if s.strict:
                raise DataError(f"{place}: {error}") from None
            yield Reject(id=place, reason="bad_row", detail=str(error))
            continue
        places.check(row.id, place)
        yield pairing.build_item(row, split="validation", seed=s.seed, template=s.template)


def parse_benchmarks(entries: list[str]) -> dict[str, Path]:
    """name=path, each name once. SystemExit where one is not."""
    sets: dict[str, Path] = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if name not in sources.FORMATS or not path:
            known = ", ".join(sources.FORMATS)
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
            swapped = pairing.swap(a.item, template=s.template)
            item = a.item if a.order == "given" else swapped
            yield llm.Request(
                id=a.request_id(),
                messages=(Message(role="user", content=item.prompt),),
                max_new_tokens=s.max_new_tokens,
                seed=s.seed,
            )

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


# ---- preference --------------------------------------------------------------------------------


def score_pairs(
    judge: Judge, pairs: list[JudgmentPair], engine: Any, log: files.RowLog[PairScore]
) -> None:
    """Log the log-probability of each pair's two judgments behind its prompt."""
    texts = ((p.prompt, [p.chosen[-1]["content"], p.rejected[-1]["content"]]) for p in pairs)
    scored: Iterable[Any] = files.progress(
        engine.score(texts) if pairs else (), len(pairs), f"{judge}: pairs"
    )
    for pair, (chosen, rejected) in zip(pairs, scored, strict=True):
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


def report_pairs(
    s: Settings, run: files.Run, log: files.RowLog[PairScore]
) -> dict[str, Any] | None:
    """Shares of pairs whose chosen judgment is preferred, by type; None with a server.

    by_sum: higher summed log-probability; by_mean: higher log-probability a token;
    implicit_reward: log p(tuned) - log p(base) is higher for chosen.
    """
    if s.engine != "local":
        return None
    facts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for pair in run.read(s.pairs, JudgmentPair):
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
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    """- where there was nothing to take a share of."""
    return "-" if value is None else f"{value:.3f}"


def _line(*cells: str) -> str:
    return "".join(f"{cell:<32}" for cell in cells).rstrip()


if __name__ == "__main__":
    Settings.run(main)
