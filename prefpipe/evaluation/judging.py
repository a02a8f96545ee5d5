"""How right two judges are, before and after training: what they write, and what they find likely.

They write about each item in both orders of its answers. An item or pair that one of them cannot
take is left out for both, so that their numbers are of the same rows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prefpipe.evaluation import held_out, metrics
from prefpipe.evaluation.held_out import Measured
from prefpipe.evaluation.metrics import BothOrders
from prefpipe.files import NOT_ASKED, RowLog, Run
from prefpipe.formats.reading import Format
from prefpipe.judge import Showing, item_in_both_orders, verdict
from prefpipe.llm import Failure, Request
from prefpipe.llm.replies import Replies
from prefpipe.rows import EvaluatedJudgment, Item, JudgmentPair, PairScore, Reject
from prefpipe.screen import progress
from prefpipe.verdicts import Unreadable

Judge = Literal["base", "tuned"]
JUDGES: tuple[Judge, ...] = ("base", "tuned")


# ---- what they write -----------------------------------------------------------------------------


def show(item: Item, of: Measured, template: str | None) -> tuple[Showing, Showing]:
    ids = (f"{item.id}\t{of.name}\tgiven", f"{item.id}\t{of.name}\tswapped")
    return item_in_both_orders(item, ids, template=template, place=of.path)


def requests(
    run: Run,
    judged: Sequence[Measured],
    to_request: Callable[[Showing], Request],
    *,
    seed: int,
    template: str | None,
) -> Iterator[Request]:
    """Two for each item of each set; seed and template make items of a benchmark's pairs."""
    for measured in judged:
        for item in held_out.items(measured, run, seed=seed, template=template):
            if isinstance(item, Item) and run.shards.owns(item.id):
                yield from map(to_request, show(item, measured, template))


def report(
    run: Run,
    judged: Sequence[Measured],
    replies: Mapping[Judge, Replies],
    output: Path,
    *,
    seed: int,
    template: str | None,
) -> dict[str, Any]:
    """By set: both judges' numbers, by source too, and whether they differ (McNemar).

    Every item is emitted here: its four judgments, to output, or why it was left out.
    """
    of_sets: dict[str, Any] = {}
    for measured in judged:
        by_judge: dict[Judge, list[BothOrders]] = {judge: [] for judge in JUDGES}
        sources: list[str] = []
        items = held_out.items(measured, run, seed=seed, template=template)
        for item in held_out.counted(run, items):
            showings = show(item, measured, template)
            rows = _judgments(item, measured.name, showings, replies)
            run.emit(rows, to=output)
            if isinstance(rows, Reject):
                continue
            sources.append(item.source)
            lengths = len(item.answer_1), len(item.answer_2)
            for judge, (given, swapped) in zip(JUDGES, (rows[:2], rows[2:]), strict=True):
                both = BothOrders(item.id, item.better, given.verdict, swapped.verdict, lengths)
                by_judge[judge].append(both)
        if sources:
            of_sets[measured.name] = _compare(measured.name, by_judge, sources, seed=seed)
    return of_sets


def _judgments(
    item: Item, benchmark: str, showings: tuple[Showing, Showing], replies: Mapping[Judge, Replies]
) -> list[EvaluatedJudgment] | Reject:
    """Those of the base judge in both orders, then of the tuned one; or why one of them has none."""
    replied = {
        judge: [replies[judge].of(showing.id, row=item.id) for showing in showings]
        for judge in JUDGES
    }
    for both in zip(replied["tuned"], replied["base"], strict=True):
        for reply in both:
            if isinstance(reply, Reject):
                return reply
    rows = []
    for judge in JUDGES:
        for showing, reply in zip(showings, replied[judge], strict=True):
            assert isinstance(reply, list)
            found = verdict(reply, showing)
            fields = {
                "id": item.id,
                "judge": judge,
                "benchmark": benchmark,
                "order": "swapped" if showing.swapped else "given",
                "better": item.better,
                "verdict": found if isinstance(found, int) else None,
                "unreadable": found.reason if isinstance(found, Unreadable) else None,
            }
            rows.append(EvaluatedJudgment.model_validate(fields | reply[0].written))
    return rows


def _compare(
    name: str,
    by_judge: Mapping[Judge, Sequence[BothOrders]],
    sources: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Both judges on the same items. McNemar's test is on the given order: one judgment an item."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, source in enumerate(sources):
        members[source].append(index)
    right = {
        judge: [row.given == row.better for row in rows if row.better is not None]
        for judge, rows in by_judge.items()
    }
    by_source = {
        source: {
            judge: metrics.share(metrics.order_scores([rows[k] for k in members[source]]))
            for judge, rows in by_judge.items()
        }
        for source in sorted(members)
    }
    scores = {
        judge: held_out.published_score(
            name, {s: of[judge] for s, of in by_source.items()}, partial(_published, rows)
        )
        for judge, rows in by_judge.items()
    }
    published = {judge: score for judge, score in scores.items() if score is not None}
    return {
        **{judge: metrics.judge_report(rows, seed=seed) for judge, rows in by_judge.items()},
        "mcnemar_p": metrics.mcnemar_p(right["base"], right["tuned"]),
        "by_source": {s: {"n": len(members[s]), **of} for s, of in by_source.items()},
        **({"published": published} if published else {}),
    }


def _published(rows: Sequence[BothOrders], form: Format) -> Any:
    def is_right(verdict: int | None, better: int | None) -> bool | None:
        return None if verdict is None else verdict == better

    both = [(is_right(row.given, row.better), is_right(row.swapped, row.better)) for row in rows]
    return form.published_of_verdicts(both) if form.published_of_verdicts else None


# ---- what they find likely -----------------------------------------------------------------------


def score_pairs(
    run: Run, path: Path, judge: Judge, log: RowLog[PairScore], open_engine: Callable[[], Any]
) -> dict[str, Reject]:
    """Log the log-probability of each pair's two judgments behind its prompt, where it is not there.

    Returns by id why others could not be scored.
    """
    left = [p for p in run.peek(path, JudgmentPair) if f"{p.id}\t{judge}" not in log]
    if not left:
        return {}
    texts = ((p.prompt, [p.chosen[-1]["content"], p.rejected[-1]["content"]]) for p in left)
    engine, what = open_engine(), f"{judge}: pairs"
    left_out: dict[str, Reject] = {}
    if run.plan:
        tokens, failures = engine.estimate_scores(texts)
        line = (
            f"{len(left) - len(failures):,} pairs to score; tokens: {tokens:,} (by its tokenizer)"
        )
        run.plan.put(what, [line], pairs=len(left) - len(failures), tokens=tokens)
        failed = (failures.get(k, Failure(p.id, NOT_ASKED)) for k, p in enumerate(left))
        return {
            p.id: Reject(id=p.id, reason=f.reason, detail=f.detail)
            for p, f in zip(left, failed, strict=True)
        }
    scored = progress(engine.score(texts), len(left), what)
    for pair, result in zip(left, scored, strict=True):
        if isinstance(result, Failure):
            left_out[pair.id] = Reject(id=pair.id, reason=result.reason, detail=result.detail)
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
    return left_out


def report_pairs(
    run: Run, path: Path, log: RowLog[PairScore], left_out: Mapping[str, Reject], output: Path
) -> dict[str, Any]:
    """Shares of pairs whose chosen judgment is preferred, by type; each pair is emitted here.

    by_sum: higher summed log-probability; by_mean: higher log-probability a token;
    implicit_reward: log p(tuned) - log p(base) is higher for chosen (Rafailov et al. 2023, eq. 5).
    """
    facts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for pair in run.read(path, JudgmentPair):
        if reject := left_out.get(pair.id):
            run.emit(reject)
            continue
        rows = {judge: log.get(f"{pair.id}\t{judge}") for judge in JUDGES}
        run.emit(list(rows.values()), to=output)
        gains = {judge: row.chosen_logp - row.rejected_logp for judge, row in rows.items()}
        for kind in ("all", pair.pair_type):
            for judge, row in rows.items():
                facts[kind][f"{judge}_by_sum"].append(gains[judge] > 0)
                facts[kind][f"{judge}_by_mean"].append(
                    row.chosen_logp / row.chosen_tokens > row.rejected_logp / row.rejected_tokens
                )
            facts[kind]["implicit_reward"].append(gains["tuned"] > gains["base"])
    return {
        kind: {"n": len(of["implicit_reward"]), **{k: metrics.share(of[k]) for k in of}}
        for kind, of in facts.items()
    }
