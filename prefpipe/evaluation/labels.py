"""A reader's own labels, as the page of report.py writes them: how far the data agrees with them, and
win rates measured by the data corrected for its errors.

    file,id,label,data,first
    rag/pairwise_prefs.jsonl,d7,1,2,rejected

label is what the reader says, data what the file says, both as the reader saw the answers: 1, 2, or 0
where neither is better; first is the side of the file's row that stood first. Who made the data's choice, a judge, a rating or a person, is called the judge
here. Its win rate over all rows is precise and wrong where it errs; the reader's over a few rows is
right and vague. Prediction-powered inference (Angelopoulos et al. 2023, Science 382) takes the judge's
rate over the rows without a label and adds how much the reader's rate differs from the judge's where
both are known; how much weight the judge gets is chosen by the data (Angelopoulos, Duchi & Zrnic 2023,
"PPI++"), so that the interval is never much wider than the reader's alone.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefpipe.evaluation.metrics import Estimate, share_with_interval, wilson
from prefpipe.files import DataError, read_rows
from prefpipe.files.records import read_records
from prefpipe.rows import Item, JudgmentPair, Preference, RagPair, Row, SyntheticPair, answer_of
from prefpipe.screen import table_text

_COLUMNS = ("file", "id", "label", "data", "first")
_CLASSES = ("1", "2", "0")
_WORDS = {"1": "answer 1", "2": "answer 2", "0": "neither"}
_KINDS: tuple[type[Row], ...] = (SyntheticPair, RagPair, Preference, Item, JudgmentPair)
_FEW = 10  # labels of which no interval is honest


@dataclass(frozen=True, slots=True)
class Label:
    """One mark of a reader's."""

    file: str
    id: str
    label: str
    data: str
    first: str
    """chosen or rejected; of a tie they are in no order, and still two fields."""

    @property
    def points(self) -> float:
        """What the row's chosen side gets of the reader: 1, 0.5 where neither is better, else 0."""
        if self.label == "0":
            return 0.5
        return float((self.label == "1") == (self.first == "chosen"))

    def fits(self, *, is_tie: bool) -> bool:
        """Whether the row still says what it said when the page was made."""
        return self.data == ("0" if is_tie else "1" if self.first == "chosen" else "2")


def read_labels(path: Path) -> list[Label]:
    """The labels of a file. Raises DataError, naming the line, where one cannot be one."""
    found: dict[tuple[str, str], Label] = {}
    for place, record in read_records(path):
        if isinstance(record, ValueError):
            raise DataError(f"{place}: {record}")
        if not isinstance(record, dict) or not set(_COLUMNS) <= record.keys():
            raise DataError(
                f"{place}: wanted the columns {', '.join(_COLUMNS)}, as report.py's page"
            )
        row = Label(*(str(record[name]).strip() for name in _COLUMNS))
        for name, value in (("label", row.label), ("data", row.data)):
            if value not in _CLASSES:
                raise DataError(f"{place}: {name} is {value[:40]!r}, wanted 1, 2 or 0")
        if row.first not in ("chosen", "rejected"):
            raise DataError(f"{place}: first is {row.first[:40]!r}, wanted chosen or rejected")
        if (key := (row.file, row.id)) in found:
            raise DataError(f"{place}: a second label of {row.id[:80]!r} of {row.file[:80]}")
        found[key] = row
    if not found:
        raise DataError(f"{path}: no label in it; mark some rows on the page of report.py")
    return list(found.values())


# ---- agreement -----------------------------------------------------------------------------------


def agreement(labels: Sequence[Label]) -> dict[str, Any]:
    """How often reader and data say the same, for each class too; Cohen's kappa (Cohen 1960)."""
    n = len(labels)
    counts = Counter((row.label, row.data) for row in labels)
    mine, its = Counter(row.label for row in labels), Counter(row.data for row in labels)
    same = sum(counts[c, c] for c in _CLASSES)
    chance = sum(mine[c] * its[c] for c in _CLASSES) / n**2
    return {
        "n": n,
        "agree": wilson(same, n),
        "kappa": (same / n - chance) / (1 - chance) if chance < 1 else None,
        "by_class": {c: {d: counts[c, d] for d in _CLASSES} for c in _CLASSES},
        "of_class": {c: wilson(counts[c, c], mine[c]) for c in _CLASSES if mine[c]},
    }


# ---- win rates -----------------------------------------------------------------------------------


def powered_mean(
    truth: Sequence[float] | np.ndarray,
    predicted: Sequence[float] | np.ndarray,
    others: Sequence[float] | np.ndarray,
) -> Estimate:
    """The mean of what `truth` is a sample of, with its 95 % interval.

    predicted: the judge's values of the same rows; others: its values of the rows without a label.
    The mean is mean(truth) + w (mean(others) - mean(predicted)) with the weight w that makes the
    variance least, cov(truth, predicted) / ((1 + n / N) var); its interval is Student's, of n - 1
    degrees of freedom.
    """
    from scipy.stats import t

    y, f, rest = (np.asarray(v, dtype=np.float64) for v in (truth, predicted, others))
    n, size = len(y), len(rest)
    weight, variance_of_rest = 0.0, 0.0
    if size > 1 and n > 1 and (spread := np.concatenate([f, rest]).var(ddof=1)) > 0:
        weight = float(np.cov(y, f)[0, 1] / ((1 + n / size) * spread))
        weight = min(max(weight, 0.0), 1.0)
        variance_of_rest = float(rest.var(ddof=1)) / size
    mean = y.mean() + (weight * (rest.mean() - f.mean()) if weight else 0.0)
    # as though one row more differed: of few rows all may agree, which is no proof that none differs
    spread_of_labelled = (((y - weight * f) - (y - weight * f).mean()) ** 2).sum() + 1
    variance = spread_of_labelled / n**2 + weight**2 * variance_of_rest
    half = float(t.ppf(0.975, max(n - 1, 1)) * np.sqrt(variance))
    return Estimate(float(mean), max(0.0, float(mean - half)), min(1.0, float(mean + half)))


@dataclass
class _Rate:
    """A win rate: what each row gives of it by the judge, and by the reader where one marked it."""

    truth: list[float]
    predicted: list[float]
    others: list[float]


def win_rates(root: Path, labels: Sequence[Label]) -> dict[str, dict[str, Any]]:
    """The win rates of each labelled file: of every model where rows name them, and of the longer answer."""
    by_file: dict[str, dict[str, Label]] = defaultdict(dict)
    for row in labels:
        by_file[row.file][row.id] = row
    return {file: _rates_of(root / file, of) for file, of in by_file.items()}


def _rates_of(path: Path, labels: Mapping[str, Label]) -> dict[str, Any]:
    rates: dict[str, _Rate] = defaultdict(lambda: _Rate([], [], []))
    left = set(labels)
    for row in _rows_of(path):
        label = labels.get(row.id)
        left.discard(row.id)
        if label and not label.fits(is_tie=_is_tie(row)):
            raise DataError(
                f"{path}: row {row.id[:80]!r} is not as it was marked; make the page anew and mark it again"
            )
        for name, by_judge, chosen_is_it in _wins(row):
            rate = rates[name]
            if label is None:
                rate.others.append(by_judge)
            else:
                rate.predicted.append(by_judge)
                rate.truth.append(label.points if chosen_is_it else 1 - label.points)
    if left:
        raise DataError(
            f"{path}: no row {min(left)[:80]!r}, which the labels name; another run's file?"
        )
    return {
        name: {
            "n": len(rate.truth),
            "rows": len(rate.truth) + len(rate.others),
            "by_judge": _mean([*rate.predicted, *rate.others]),
            "by_reader": share_with_interval(rate.truth),
            "corrected": powered_mean(rate.truth, rate.predicted, rate.others),
        }
        for name, rate in rates.items()
        if len(rate.truth) >= _FEW
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file of pairs, of whichever kind its first row is."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, which the labels name; PREFPIPE_DATA=FOLDER names the page's folder"
        )
    for kind in _KINDS:
        try:
            next(iter(read_rows(path, kind)), None)
        except DataError:
            if kind is _KINDS[-1]:
                raise
            continue
        return read_rows(path, kind)
    raise AssertionError("the last kind either reads or raises")


def _wins(row: Row) -> Iterable[tuple[str, float, bool]]:
    """(whose win rate, what the row gives it by the judge, whether it is the chosen side)."""
    of_chosen = 0.5 if _is_tie(row) else 1.0
    if isinstance(row, SyntheticPair) and row.chosen_model != row.rejected_model:
        yield row.chosen_model, of_chosen, True
        yield row.rejected_model, 1 - of_chosen, False
    if isinstance(row, Item):
        first, second = len(row.answer_1), len(row.answer_2)
        chosen, rejected = (second, first) if row.better == 2 else (first, second)
    elif isinstance(row, Preference | JudgmentPair):
        chosen, rejected = len(answer_of(row.chosen)), len(answer_of(row.rejected))
    else:
        return
    if chosen != rejected:
        is_chosen = chosen > rejected
        yield "the longer answer", of_chosen if is_chosen else 1 - of_chosen, is_chosen


def _is_tie(row: Row) -> bool:
    return row.better is None if isinstance(row, Item) else getattr(row, "tie", False)


# ---- for a person --------------------------------------------------------------------------------


def report(root: Path, labels: Sequence[Label]) -> str:
    """Agreement and win rates as tables. root: the folder that the labels' file names are in."""
    found = agreement(labels)
    kappa = "not defined" if found["kappa"] is None else f"{found['kappa']:.3f}"
    rows = [
        [
            f"  {_WORDS[c]}",
            *(str(found["by_class"][c][d]) for d in _CLASSES),
            str(found["of_class"].get(c, "-")),
        ]
        for c in _CLASSES
    ]
    head = ["the reader says", *(f"data: {_WORDS[c]}" for c in _CLASSES), "agreement"]
    lines = [
        f"labels: n = {found['n']}; agreement {found['agree']}; Cohen's kappa {kappa}",
        table_text(head, rows),
    ]
    for file, rates in win_rates(root, labels).items():
        rows = [
            [
                f"  {name}",
                f"{of['by_judge']:.3f}",
                str(of["by_reader"]),
                str(of["corrected"]),
                f"{of['n']} of {of['rows']}",
            ]
            for name, of in rates.items()
        ]
        head = [f"win rates in {file}", "the data's", "the reader's", "corrected", "labelled"]
        lines.append(table_text(head, rows) if rows else _too_few(file))
    return "\n".join(lines) + "\n"


def _too_few(file: str) -> str:
    return f"{file}: fewer than {_FEW} labels of any side: no win rate has an interval"


def as_csv(labels: Iterable[Label], path: Path) -> None:
    """Write labels as the page does."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((getattr(row, name) for name in _COLUMNS) for row in labels)
