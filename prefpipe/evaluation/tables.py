"""The numbers of accuracy.json as tables for a person: both judges, or models, side by side."""

from collections.abc import Callable, Mapping
from typing import Any

from prefpipe.evaluation.judging import JUDGES
from prefpipe.screen import table_text

_OF_A_JUDGE = {
    "accuracy": "accuracy (both orders)",
    "both_right": "right in both orders",
    "readable": "readable share",
    "agreement": "agreement of the two orders",
    "first_position": "first-position rate",
    "picks_longer": "pick-the-longer rate",
}
_OF_PAIRS = {"sum": "prefers chosen, summed", "mean": "prefers chosen, a token"}
_HEADER = ("base judge", "tuned judge")


def tables(report: Mapping[str, Any]) -> str:
    """A table for each set, with what belongs to all its columns below; then the pairs."""
    judging = report["judging"]
    parts = [_judges(name, both) for name, both in judging.items()]
    if pairs := report["pairs"]:
        parts.append(_pairs(pairs["all"]))
    for name, kinds in report.get("scored", {}).items():
        judge = judging.get(name, {}).get("tuned")
        parts.append(_models(name, kinds | ({"tuned judge": judge} if judge else {})))
    for name, seen in report.get("overlap", {}).items():
        parts.append(
            f"{name}: {seen['seen']:.3f} of {seen['questions']} questions share words "
            f"{seen['n']} in a row with the training files, {seen['mostly_seen']:.3f} half of theirs"
        )
    return "\n".join(parts) + "\n"


def _judges(name: str, both: Mapping[str, Any]) -> str:
    judges = [both[judge] for judge in JUDGES]
    rows = [
        [f"  {words}", *(_share(judge[field]) for judge in judges)]
        for field, words in _OF_A_JUDGE.items()
    ]
    if judges[0]["interval"]:
        rows[0][1:] = map(_with_interval, judges)
    lines = [table_text([f"{name}: n = {judges[0]['n']}", *_HEADER], rows)]
    for judge, score in both.get("published", {}).items():
        value = score["score"] if isinstance(score, dict) else score
        lines.append(f"  published score of the {judge} judge: {_share(value)}")
    lines.append(
        f"  McNemar p {both['mcnemar_p']:.2g}; always the longer answer: "
        f"{_share(judges[0]['longer_is_right'])}; ties left out of accuracy: {judges[0]['ties']}"
    )
    return "\n".join(lines)


def _pairs(shares: Mapping[str, Any]) -> str:
    rows = [
        [f"  {words}", *(f"{shares[f'{judge}_by_{field}']:.3f}" for judge in JUDGES)]
        for field, words in _OF_PAIRS.items()
    ]
    table = table_text([f"judgment pairs: n = {shares['n']}", *_HEADER], rows)
    return f"{table}\n  implicit reward accuracy: {shares['implicit_reward']:.3f}"


def _models(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """columns: the numbers of each kind of model; the judge's, where it was asked, are the last."""
    first = next(iter(columns.values()))

    def row(words: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [f"  {words}", *map(cell, columns.values())]

    def number(field: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda numbers: _share(numbers.get(field))

    if "random_is_right" in first:
        rows = [
            row(f"best of {first['responses']:.3g} is right", _with_interval),
            row("a random one is right", number("random_is_right")),
        ]
    else:
        rows = [
            row("accuracy (ties half)", _with_interval),
            row("undecided", number("undecided")),
            row("calibration error (ECE)", number("ece")),
            row("  after temperature scaling", number("ece_scaled")),
        ]
    rows.append(row("picking the longer", number("longer_is_right")))
    if "published" in first:
        rows.append(row("published score", lambda n: _share(n.get("published", {}).get("score"))))
    if len(first["by_source"]) > 1:
        for source, subset in first["by_source"].items():
            null = f"longer {_share(subset['longer_is_right'])}"
            cells = (_of_source(numbers, source) for numbers in columns.values())
            rows.append([f"    {source} ({subset['n']})", *cells, null])
    header = [f"{name}: n = {first['n']}", *columns]
    width = max(map(len, rows))
    return table_text([*header, *[""] * (width - len(header))], [r + [""] * (width - len(r)) for r in rows])  # fmt: skip


def _of_source(numbers: Mapping[str, Any], source: str) -> str:
    subset = numbers.get("by_source", {}).get(source)  # a judge's stand in a table of their own
    return _with_interval(subset) if subset else "-"


def _with_interval(numbers: Mapping[str, Any]) -> str:
    low, high = numbers["interval"] or (0.0, 1.0)
    return f"{_share(numbers['accuracy'])} [{low:.3f}, {high:.3f}]"


def _share(value: float | None) -> str:
    """- where there was nothing to take a share of."""
    return "-" if value is None else f"{value:.3f}"
