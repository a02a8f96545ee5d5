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

from prefpipe.files import difference, write_json
from prefpipe.training.curve import write_csv

_WHOLE = "whole"
"""An empty file in a checkpoint, written after all others."""


def open_checkpoints(folder: Path, mark: dict[str, str], overwrite: bool) -> Path | None:
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
    mark_path = folder / "fingerprint.json"
    if newest and mark_path.exists():
        was = json.loads(mark_path.read_text(encoding="utf-8"))
        if was != mark:
            raise SystemExit(
                f"{folder}: a stopped run with other settings or input ({difference(was, mark)}); "
                "--overwrite starts anew"
            )
    write_json(mark_path, mark)
    return newest


class TrainingCallback(TrainerCallback):
    """Marks checkpoints as whole, evaluates after the last step, shows progress on a terminal.

    curve: the CSV file that is written with each checkpoint. stage: its name, for messages.
    """

    def __init__(self, curve: Path, stage: str) -> None:
        self._curve = curve
        self._stage = stage
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        import tqdm

        if state.global_step:
            at = f"step {state.global_step} of {state.max_steps}"
            print(f"{self._stage}: going on from {at}", file=sys.stderr)
        self._bar = tqdm.tqdm(
            total=state.max_steps, initial=state.global_step, desc="steps", disable=None
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.update()
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
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        write_csv(self._curve, state.log_history)
        if args.output_dir is not None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.close()
