"""How a training begins, goes on where it was stopped, and ends; the callbacks that make that safe.

`checkpoints/` in the output folder belongs to one run: fingerprint.json says which. A checkpoint
counts once it is whole: Trainer writes its files one by one, so a kill can leave half of one.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState

from prefpipe import screen
from prefpipe.files import difference, write_json
from prefpipe.training.record import CSV, write_csv
from prefpipe.training.trainer import NotFiniteError

_WHOLE = "whole"
"""An empty file in a checkpoint, written after all others."""


def open_checkpoints(folder: Path, fingerprint: dict[str, str], overwrite: bool) -> Path | None:
    """Make the folder this run's; the newest whole checkpoint to go on from, None: from the start.

    Exits with a sentence where the folder holds a stopped run of other settings or input.
    """
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    newest = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name[11:])):
        if (checkpoint / _WHOLE).exists():
            newest = checkpoint
        else:
            shutil.rmtree(checkpoint)
    path = folder / "fingerprint.json"
    if newest and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != fingerprint:
            changed = difference(before, fingerprint)
            raise SystemExit(
                f"{folder}: a stopped run with other settings or input ({changed}); "
                "--overwrite starts anew"
            )
    write_json(path, fingerprint)
    return newest


def fit(
    trainer: Any, folder: Path, stage: str, stopped_at: Path | None, early_stopping: int | None
) -> None:
    """Train to the end, or from a checkpoint on. Exits with a sentence where a loss is no number."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingCallback(folder, stage))
    if early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping))
    try:
        trainer.train(resume_from_checkpoint=str(stopped_at) if stopped_at else None)
    except NotFiniteError as error:
        raise SystemExit(f"{stage}: {error}") from None


class TrainingCallback(TrainerCallback):
    """Marks checkpoints as whole, evaluates after the last step, shows progress on a terminal.

    folder: the model's; its curve is written with each checkpoint. stage: its name, for messages.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._curve = folder / CSV
        self._stage = stage
        self._bar: screen.Progress[int] | None = None
        self._steps: Any = iter(())

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        if state.global_step:
            at = f"step {state.global_step} of {state.max_steps}"
            print(f"{self._stage}: going on from {at}", file=sys.stderr)
        steps = range(state.global_step, state.max_steps)
        self._bar = screen.progress(steps, len(steps), "steps")
        # what is told when a step ends is asked of an iterator: each next() is a step done
        self._steps = iter(self._bar)
        next(self._steps, None)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        next(self._steps, None)
        if state.global_step == state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._bar is not None and logs and "loss" in logs:
            self._bar.note(f"loss {logs['loss']:.3f}")

    def on_save(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        write_csv(self._curve, state.log_history)
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        self._steps.close()
