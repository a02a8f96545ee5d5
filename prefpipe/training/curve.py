"""A trainer's log as loss_curve.csv and loss_curve.png."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefpipe.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV = "loss_curve.csv"
"""The curve's file in a model's folder."""
FIRST = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
"""Columns in this order, the others behind them by name."""

_NO_CURVE = ("runtime", "per_second", "train_loss", "total_flos", "model_preparation_time")


def curve_rows(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a step, an evaluation in the row of the step it follows; times are left out.

    log_history: `trainer.state.log_history`. So two runs with equal numbers give equal rows.
    """
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        values = {k: v for k, v in entry.items() if not k.endswith(_NO_CURVE)}
        if values.keys() - {"step", "epoch"}:
            rows.setdefault(entry["step"], {}).update(values)
    return [rows[step] for step in sorted(rows)]


def write_csv(path: Path, log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curve_rows, written as CSV; a value that a row lacks is an empty cell."""
    rows = curve_rows(log_history)
    names = {name for row in rows for name in row}
    columns = [name for name in FIRST if name in names] + sorted(names - {*FIRST})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return rows


def write_curve(
    folder: Path,
    log_history: Iterable[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    title: str,
) -> int:
    """loss_curve.csv and loss_curve.png; the number of rows.

    panels, one beside another: title -> names of its curves; eval_* are drawn as dots.
    """
    from matplotlib.figure import Figure

    rows = write_csv(folder / CSV, log_history)
    figure = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")
    for axis, (name, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for curve in curves:
            points = [(row["step"], row[curve]) for row in rows if curve in row]
            if not points:
                continue
            is_eval = curve.startswith("eval_")
            label = curve.removeprefix("eval_") + (", validation" if is_eval else ", train")
            axis.plot(*zip(*points, strict=True), "o-" if is_eval else "-", label=label)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    save_figure(figure, folder / "loss_curve.png")
    return len(rows)


def save_figure(figure: "Figure", path: Path) -> None:
    """As PNG, whole or not at all."""
    temporary = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
