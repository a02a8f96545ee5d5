"""Where a stopped training goes on, and the callbacks that make that safe.

`checkpoints/` in the output folder belongs to one run: fingerprint.json says which. A checkpoint
counts once it is whole: Trainer writes its files one by one, so a kill can leave half of one.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefpipe import screen
from prefpipe.files import difference, write_json
from prefpipe.training.curve import CSV, write_csv

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


class TrainingCallback(TrainerCallback):
    """Marks checkpoints as whole, evaluates after the last step, shows progress on a terminal.

    folder: the model's; its curve is written with each checkpoint. stage: its name, for messages.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._curve = folder / CSV
        self._stage = stage
        self._bar: screen.Progress[int] | None = None
        self._steps: Any = iter(())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            at = f"step {state.global_step} of {state.max_steps}"
            print(f"{self._stage}: going on from {at}", file=sys.stderr)
        steps = range(state.global_step, state.max_steps)
        self._bar = screen.progress(steps, len(steps), "steps")
        # what is told when a step ends is asked of an iterator: each next() is a step done
        self._steps = iter(self._bar)
        next(self._steps, None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        next(self._steps, None)
        if state.global_step == state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._bar is not None and logs and "loss" in logs:
            self._bar.note(f"loss {logs['loss']:.3f}")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        write_csv(self._curve, state.log_history)
        if args.output_dir is not None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._steps.close()
