"""What a section of the page is made of: plain values, which page.js draws. No markup is made here.

A cell of a table is a text, a number, None, an Estimate, or a link to a row that the page shows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefpipe.evaluation.metrics import Estimate

Block = dict[str, Any]
_ROWS = 300  # of a table


def section(id: str, title: str, *blocks: Block | None) -> Block | None:
    """A heading and what stands under it; None where nothing does."""
    filled = [block for block in blocks if block]
    return {"id": id, "title": title, "blocks": filled} if filled else None


def words(text: str) -> Block:
    return {"kind": "words", "text": text}


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Block | None:
    """None where there are no rows: what is not there is not mentioned."""
    made = [[cell(value) for value in row] for row in rows]
    if len(made) > _ROWS:
        caption = f"{caption} (the first {_ROWS} of {len(made):,})"
    shown = made[:_ROWS]
    return (
        {"kind": "table", "caption": caption, "head": list(head), "rows": shown} if made else None
    )


def cell(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Estimate):
        return {"value": value.value, "low": value.low, "high": value.high}
    if isinstance(value, np.generic):
        value = value.item()
    # JSON's 1.0 is JavaScript's 1, and would stand as a count among shares
    return {"value": value} if isinstance(value, float) and value.is_integer() else value


def accuracy(report: Mapping[str, Any]) -> Any:
    """The accuracy of a report with its interval, as a cell."""
    if report.get("accuracy") is None or not report.get("interval"):
        return report.get("accuracy")
    return {
        "value": report["accuracy"],
        "low": report["interval"][0],
        "high": report["interval"][1],
    }


def link(text: str, file: str, id: str) -> Block:
    """A cell that leads to a row, where the page shows that row."""
    return {"text": text, "row": [file, id]}


def bars(caption: str, rows: Iterable[tuple[str, Any]], *, reference: float | None = None) -> Block:
    """Labels with a number each, or a number with its interval; reference: where a line is drawn."""
    made = [[label, cell(value)] for label, value in rows]
    return {"kind": "bars", "caption": caption, "rows": made, "reference": reference}


def counted(caption: str, counts: Mapping[str, int], *, most: int = 12) -> Block | None:
    """The most frequent of what was counted, and how many are left out of the picture."""
    if not counts:
        return None
    shown = Counter(counts).most_common(most)
    rest = sum(counts.values()) - sum(n for _, n in shown)
    rows = [*shown, *([(f"{len(counts) - len(shown)} others", rest)] if rest else [])]
    return bars(caption, rows)


def histogram(caption: str, series: Mapping[str, Any], *, bins: int = 24) -> Block | None:
    """How often each value stands in each series, in bins of one width for all of them.

    The last bin holds what is beyond the 99th percentile: one endless answer would press all others
    into the first bin.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in series.items()}
    arrays = {name: values for name, values in arrays.items() if len(values)}
    if not arrays:
        return None
    every = np.concatenate(list(arrays.values()))
    low, high, most = float(every.min()), float(np.quantile(every, 0.99)), float(every.max())
    low = max(low, float(np.quantile(every, 0.01))) if low < 0 else low
    is_whole = bool((every == np.round(every)).all())
    if high <= low:
        high = low + 1
    edges = np.linspace(low, high, bins + 1)
    if is_whole:
        step = max(1, int(np.ceil((high - low + 1) / bins)))
        edges = np.arange(np.floor(low), high + step + 1, step)
    return {
        "kind": "histogram",
        "caption": caption,
        "edges": edges.tolist(),
        "most": most,
        "least": float(every.min()),
        "series": [
            {
                "name": name,
                "counts": np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist(),
                "n": len(values),
                "median": float(np.median(values)),
            }
            for name, values in arrays.items()
        ],
    }


def lines(
    caption: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    diagonal: bool = False,
) -> Block | None:
    """Curves; diagonal: where both sides are equal, of a calibration."""
    made = [{"name": name, "points": [list(p) for p in points]} for name, points in series.items()]
    made = [one for one in made if one["points"]]
    if not made:
        return None
    return {
        "kind": "lines",
        "caption": caption,
        "series": made,
        "x": x,
        "y": y,
        "diagonal": diagonal,
    }


def scatter(
    caption: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str
) -> Block | None:
    """A point for each row."""
    made = lines(caption, series, x=x, y=y)
    return made and {**made, "kind": "scatter"}


def matrix(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Any]],
    *,
    corner: str = "",
) -> Block:
    """Numbers of rows against columns, the larger the darker."""
    made = [[cell(value) for value in row] for row in values]
    return {
        "kind": "matrix",
        "caption": caption,
        "corner": corner,
        "rows": list(rows),
        "columns": list(columns),
        "values": made,
    }


def examples(caption: str, groups: Sequence[Block]) -> Block | None:
    """Texts to read, in groups that open; a group: id, name, note, count, and rows of (title, parts)."""
    filled = [group for group in groups if group["rows"]]
    return {"kind": "examples", "caption": caption, "groups": filled} if filled else None


def group(
    id: str, name: str, note: str, count: int, rows: Iterable[tuple[Any, list[tuple[str, str]]]]
) -> Block:
    made = [{"title": title, "parts": [list(part) for part in parts]} for title, parts in rows]
    return {"id": id, "name": name, "note": note, "count": count, "rows": made}


def choice(caption: str, choices: Sequence[tuple[str, Sequence[Block | None]]]) -> Block | None:
    """Several of a kind, of which the reader chooses one."""
    made = [{"name": name, "blocks": [block for block in some if block]} for name, some in choices]
    made = [one for one in made if one["blocks"]]
    return {"kind": "choice", "caption": caption, "choices": made} if made else None
