"""How right and how well calibrated a preference model is on the held-out pairs: its report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefpipe.evaluation import metrics
from prefpipe.evaluation.calibration import FEWEST
from prefpipe.files import write_json, write_rows
from prefpipe.questions import question_key
from prefpipe.rows import Disagreement, Message, Preference, answer_of, flatten_turns
from prefpipe.training.held_out_halves import Halves
from prefpipe.training.record import save_figure


def both_responses(rows: Sequence[Preference]) -> Iterator[tuple[str | list[Message], list[str]]]:
    """Each row's prompt with its chosen and its rejected response, as models that score take it."""
    return ((row.prompt, [answer_of(row.chosen), answer_of(row.rejected)]) for row in rows)


def write_evaluation(
    folder: Path,
    name: str,
    halves: Halves,
    margins: Sequence[float],
    *,
    worst: int,
    scores: Sequence[tuple[float, float]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """<name>_eval.json of the pairs that are judged, its reliability curve as PNG, and disagreements.jsonl. Returns the report.

    margins: log-odds that chosen is better. scores: of chosen and rejected, where there are any.
    """
    rows = halves.judged
    pairs = [
        metrics.ScoredPair(
            id=row.id,
            question=question_key(flatten_turns(row.prompt)),
            margin=margin,
            tie=row.tie,
            lengths=(len(answer_of(row.chosen)), len(answer_of(row.rejected))),
        )
        for row, margin in zip(rows, margins, strict=True)
    ]
    report = metrics.preference_report(pairs) | halves.facts() | more
    write_json(folder / f"{name}_eval.json", report)
    title = f"{name} model, {len(pairs)} held-out pairs"
    draw_reliability(folder / "reliability.png", report, title)
    wrong = [k for k, row in enumerate(rows) if margins[k] < 0 and not row.tie]
    wrong.sort(key=lambda k: (margins[k], rows[k].id))
    disagreements = (
        Disagreement(
            id=rows[k].id,
            margin=margins[k],
            chosen_score=scores[k][0] if scores else None,
            rejected_score=scores[k][1] if scores else None,
            prompt=flatten_turns(rows[k].prompt),
            chosen=answer_of(rows[k].chosen),
            rejected=answer_of(rows[k].rejected),
            source=rows[k].source,
        )
        for k in wrong[:worst]
    )
    write_rows(folder / "disagreements.jsonl", disagreements, Disagreement)
    return report


def draw_reliability(path: Path, report: Mapping[str, Any], title: str) -> None:
    """Confidence against accuracy, before and after the temperature; the diagonal is calibrated."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1)
    for name, label in (
        ("reliability", f"as it is (ECE {report['ece']:.3f})"),
        ("reliability_scaled", f"/ temperature (ECE {report['ece_scaled']:.3f})"),
    ):
        bins = report[name]
        axis.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", label=label)
    axis.set(xlabel="probability of the preferred response", ylabel="share that is better")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The numbers that a person acts on, a line each."""
    low, high = report["interval"]
    spearman = report["spearman"]
    others = {
        "others": "; others chose the checkpoint",
        "the same": "; they chose the checkpoint, too",
    }
    return [
        f"held-out pairs              {report['n']} ({report['ties']} ties)"
        + others.get(report["chosen_by"], ""),
        f"accuracy                    {report['accuracy']:.3f} [{low:.3f}, {high:.3f}]",
        f"  undecided, counted half   {report['undecided']:.3f}",
        f"  picking the longer        {report['longer_is_right']:.3f}",
        f"mean margin                 {report['mean_margin']:.3f}",
        f"calibration error (ECE)     {report['ece']:.3f}; / temperature "
        f"{report['temperature']:.2f}: {report['ece_scaled']:.3f}"
        + (f" (not fitted: fewer than {FEWEST} pairs)" if report["n"] < FEWEST else ""),
        "|margin| with being right   "
        + ("the same for all" if spearman is None else f"{spearman:.3f} (Spearman)"),
    ]
