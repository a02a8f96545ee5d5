"""What a training leaves beside the weights: its curve, the model card, the numbers of .meta.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefpipe.files import Run
from prefpipe.training.card import KINDS, write_card
from prefpipe.training.curve import CSV, write_curve


def record(
    run: Run,
    trainer: Any,
    kind: str,
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
    results: Mapping[str, float],
    difference: float,
    summary: Mapping[str, Any],
) -> None:
    """Write loss_curve.csv, loss_curve.png and README.md; add to run.summary.

    kind: a key of KINDS. settings: those of a TrainingStage. counts: of pairs. results: what the
    card shows. difference: of the reloaded model's scores. summary: what else meta.json holds.
    """
    folder, state = Path(settings["output"]), trainer.state
    words = KINDS[kind]
    title = words.curve.format(model=Path(settings["model"]).name)
    run.written[CSV] = write_curve(folder, state.log_history, words.panels, title)
    data = {"pairs": settings["input"], **counts}
    write_card(folder, kind, data, run.left_out, results, settings)
    run.summary |= {
        "pairs": dict(counts),
        "steps": state.global_step,
        "best_step": state.best_global_step,
        **summary,
        "reload_difference": difference,
    }
