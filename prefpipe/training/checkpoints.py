"""How a training begins, goes on where it was stopped, and ends; the callbacks that make that safe.

A checkpoint is whole or it is not there, as a page of a write-ahead log is: transformers writes its
files one by one, so a last one, `whole`, says what each of them must be, and whose run it is. It is
written when the others are on disk, and taken away before any of them is. The newest whole
checkpoint, by its step and by no clock, is gone on from.
"""

import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState

from prefpipe import screen
from prefpipe.files import DataError, difference, write_text
from prefpipe.training import ranks
from prefpipe.training.record import CSV, write_csv
from prefpipe.training.trainer import NotFiniteError

_WHOLE = "whole"
_NAME = re.compile(r"checkpoint-(\d+)")
_NEEDED = ("trainer_state.json", "scheduler.pt")
_OPTIMIZER = {
    "optimizer.pt": "in one piece",
    "optimizer_0/.metadata": "in FSDP's pieces",
    "latest": "in DeepSpeed's pieces",
}
"""The file that tells where the optimizer's state is -> how it, and the weights, are written."""


class _Damaged(Exception):
    """A checkpoint that nothing can go on from; the message says why."""


class Checkpoints:
    """The folder `checkpoints` in a model's folder, which belongs to one run.

    mark: the run's fingerprint. keep: how many are kept, the best one beside them. wants_best: the
    best one is loaded at the end. Exits with a sentence where the folder holds a stopped run of other
    settings or input.
    """

    def __init__(
        self,
        model_folder: Path,
        mark: Mapping[str, str],
        *,
        keep: int,
        wants_best: bool,
        overwrite: bool,
        looks_only: bool = False,
    ) -> None:
        """looks_only: of a dry run, which takes nothing away; as no other rank does."""
        self._looks_only = looks_only = looks_only or ranks.is_other()
        self.folder, self.model_folder = model_folder / "checkpoints", model_folder
        self.mark, self.keep, self.wants_best = dict(mark), keep, wants_best
        if overwrite and not looks_only:
            for _, path in self._by_step():
                remove(path)
        newest = None if ranks.is_other() or (overwrite and looks_only) else self._newest()
        self.stopped_at = ranks.agree(newest)
        """The newest whole checkpoint, to go on from; None: from the start."""

    def _by_step(self) -> list[tuple[int, Path]]:
        """Those in the folder, whole or not, the newest first."""
        names = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*"))
        return sorted(((int(m[1]), path) for m, path in names if m), reverse=True)

    def _newest(self) -> Path | None:
        """Damaged ones, and those whose best one is, are named, passed over and taken away."""
        bests: dict[int, int | None] = {}
        problems: dict[int, str] = {}
        for step, path in self._by_step():
            try:
                bests[step] = self._best_of(path, step)
            except _Damaged as damage:
                problems[step] = str(damage)
        lost = {s: b for s, b in bests.items() if self.wants_best and b and b not in bests}
        problems |= {s: f"the best one of its run, of step {b}, is gone" for s, b in lost.items()}
        whole = [step for step in bests if step not in problems]
        newest = max(whole, default=None)
        for step, path in self._by_step():
            if step not in problems or self._looks_only:
                continue
            if (path / _WHOLE).exists():  # else a kill left it
                from_where = "the start" if newest is None else f"step {newest}"
                words = (
                    f"{path}: not used ({problems[step]}); the training goes on from {from_where}"
                )
                print(words, file=sys.stderr)
            remove(path)
        return None if newest is None else self.folder / f"checkpoint-{newest}"

    def _best_of(self, path: Path, step: int) -> int | None:
        """The step of the best checkpoint so far, as a whole one knows it; _Damaged where it is not."""
        try:
            whole = json.loads((path / _WHOLE).read_bytes())
            before, files = whole["fingerprint"], whole["files"]
            for name, (size, checksum) in files.items():
                if (path / name).stat().st_size != size or _checksum(path / name) != checksum:
                    raise _Damaged(f"{name} is not as it was written")
            state = json.loads((path / "trainer_state.json").read_bytes())
            found, best = state["global_step"], state["best_global_step"]
        except FileNotFoundError as error:
            raise _Damaged(f"{Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise _Damaged(f"{_WHOLE} cannot be read: {type(error).__name__}") from None
        if found != step:
            raise _Damaged(f"it is of step {found}")
        if before != self.mark:
            raise SystemExit(
                f"{self.folder}: a stopped run with other settings or input "
                f"({difference(before, self.mark)}); --overwrite starts anew"
            )
        return best

    def seal(self, path: Path) -> None:
        """Mark a checkpoint as whole, once what it holds is on disk."""
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != _WHOLE)
        names = [str(p.relative_to(path).as_posix()) for p in files]
        lacking = [name for name in _NEEDED if name not in names]
        if not _OPTIMIZER.keys() & {*names}:
            lacking.append("optimizer.pt")
        if lacking:
            raise DataError(f"{path}: {lacking[0]} was not written: nothing could go on from it")
        for file in files:
            _flush(file)
        whole = {
            "fingerprint": self.mark,
            "files": {
                name: [file.stat().st_size, _checksum(file)]
                for name, file in zip(names, files, strict=True)
            },
        }
        write_text(path / _WHOLE, json.dumps(whole))
        _flush(path / _WHOLE)
        _flush(path)

    def rotate(self, best: int | None) -> None:
        """Take away all but the newest ones and the best; transformers goes by the files' times."""
        for step, path in self._by_step()[self.keep :]:
            if step != best:
                remove(path)

    def fit(self, trainer: Any, stage: str, early_stopping: int | None) -> None:
        """Train to the end, or from a checkpoint on. Exits with a sentence where a loss is no number, or
        the checkpoint is written in other pieces than the launcher asks for."""
        now = [*_OPTIMIZER][2 if trainer.is_deepspeed_enabled else int(trainer.is_fsdp_enabled)]
        if self.stopped_at and not (self.stopped_at / now).exists():
            written = next(w for name, w in _OPTIMIZER.items() if (self.stopped_at / name).exists())
            raise SystemExit(
                f"{self.stopped_at}: is written {written}, and would now be read "
                f"{_OPTIMIZER[now]}; start it by the launcher's configuration of before (on any "
                "number of devices), or --overwrite starts anew"
            )
        if self.stopped_at and now == "latest":
            parts = len([*self.stopped_at.glob("*/*_optim_states.pt")])
            if parts != ranks.count():
                raise SystemExit(
                    f"{self.stopped_at}: was written by DeepSpeed on {parts} devices, and goes on on as "
                    f"many only, not on {ranks.count()}; --overwrite starts anew"
                )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(TrainingCallback(self, stage))
        if early_stopping is not None:
            trainer.add_callback(EarlyStoppingCallback(early_stopping))
        try:
            trainer.train(resume_from_checkpoint=self.stopped_at and str(self.stopped_at))
        except NotFiniteError as error:
            raise SystemExit(f"{stage}: {error}") from None


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away, so that at no moment half of it looks whole."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        checkpoint.unlink()
        return
    (checkpoint / _WHOLE).unlink(missing_ok=True)
    _flush(checkpoint)
    shutil.rmtree(checkpoint)


def _flush(path: Path) -> None:
    """See to it that a file, or a folder's list of files, is on disk."""
    if path.is_dir() and os.name == "nt":  # Windows knows no such thing for a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            checksum = zlib.crc32(part, checksum)
    return checksum


class TrainingCallback(TrainerCallback):
    """Seals checkpoints and takes old ones away, evaluates after the last step, shows progress on a
    terminal.

    stage: its name, for messages.
    """

    def __init__(self, checkpoints: Checkpoints, stage: str) -> None:
        self._checkpoints, self._stage = checkpoints, stage
        self._bar: screen.Progress[int] | None = None
        self._steps: Any = iter(())

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        self._find_best(state)  # in this folder, which may be a copy of the one it was in
        if state.global_step:
            at = f"step {state.global_step} of {state.max_steps}"
            print(f"{self._stage}: going on from {at}", file=sys.stderr)
        steps = range(state.global_step, state.max_steps)
        self._bar = screen.progress(steps, len(steps), "steps")
        # what is told when a step ends is asked of an iterator: each next() is a step done
        self._steps = iter(self._bar)
        next(self._steps, None)

    def _find_best(self, state: TrainerState) -> None:
        if state.best_global_step:
            best = self._checkpoints.folder / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        next(self._steps, None)
        if state.global_step == state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._bar is not None and logs and "loss" in logs:
            self._bar.note(f"loss {logs['loss']:.3f}")

    def on_save(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        ranks.wait()  # each has written its part
        self._find_best(state)  # transformers looks for a folder that is not made yet (FSDP's)
        if not ranks.is_other():
            write_csv(self._checkpoints.model_folder / CSV, state.log_history)
            self._checkpoints.seal(self._checkpoints.folder / f"checkpoint-{state.global_step}")
            self._checkpoints.rotate(state.best_global_step)
        ranks.wait()

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        self._steps.close()
