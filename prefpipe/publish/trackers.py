"""Where numbers of a run are reported besides its files: TensorBoard, Trackio, W&B, MLflow.

Curves are reported by transformers' own callbacks; a summary of a run that trains nothing is one row
beside them. The packages are extras (pyproject.toml), imported only where one is asked for.
"""

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from prefpipe.publish.sources import shown

Tracker = Literal["none", "tensorboard", "trackio", "wandb", "mlflow"]

_PROJECT = "prefpipe"


def missing(tracker: Tracker) -> bool:
    """Whether its package is not installed."""
    names = ("tensorboard", "tensorboardX") if tracker == "tensorboard" else (tracker,)
    return tracker != "none" and not any(importlib.util.find_spec(name) for name in names)


def training_arguments(tracker: Tracker, stage: str, folder: Path) -> dict[str, Any]:
    """What transformers' TrainingArguments take. TensorBoard's files stand in `runs` of the folder."""
    if tracker == "none":
        return {"report_to": []}
    # transformers' callbacks take these from the environment alone; a user's own win
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "runs"))
    os.environ.setdefault("WANDB_PROJECT", _PROJECT)
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    return {"report_to": [tracker], "run_name": _run_name(stage, folder), "project": _PROJECT}


def _run_name(stage: str, folder: Path) -> str:
    return f"{stage} {shown(folder)}"


def report_summary(tracker: Tracker, stage: str, folder: Path, report: Mapping[str, Any]) -> None:
    """One row of all numbers in a report, each by its path in it."""
    if tracker == "none":
        return
    values, name = dict(_numbers(report)), _run_name(stage, folder)
    if tracker == "mlflow":
        mlflow: Any = importlib.import_module("mlflow")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        with mlflow.start_run(run_name=name):
            mlflow.log_metrics(values)
    elif tracker == "tensorboard":
        writer = _summary_writer()(
            log_dir=os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "runs"
        )
        for key, value in values.items():
            writer.add_scalar(key, value, 0)
        writer.close()
    else:  # Trackio has W&B's calls
        tracking: Any = importlib.import_module(tracker)
        project = os.environ.get("WANDB_PROJECT") if tracker == "wandb" else None
        tracking.init(project=project or _PROJECT, name=name)
        tracking.log(values)
        tracking.finish()


def _summary_writer() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        return importlib.import_module("tensorboardX").SummaryWriter


def _numbers(report: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, float]]:
    """(path/of/number, number) of all that is finite; sources and subsets are left to the file."""
    for name, value in report.items():
        if isinstance(value, Mapping):
            if name != "by_source":
                yield from _numbers(value, f"{start}{name}/")
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ):
            yield f"{start}{name}", float(value)
