"""The processes of one training, a rank each: what they agree on, who speaks, and how a lost one ends all.

torchrun and `accelerate launch` start them, and tell each its rank in the environment. All do the
same until the model is trained; the first, the main rank, alone writes, speaks, and goes on to save
the model and to evaluate it, which the others need not wait for.
"""

import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another, where the launcher does not end it before; torch's own for gloo."""

_PATIENCE = 3.0
"""Seconds before a rank says why it ends: where the main one ends alike, the launcher ends this one first."""

_LOST = re.compile(r"gloo|nccl|connection (?:closed|reset)|broken pipe|heartbeat|timed out", re.I)
"""Words of an error of a rank that waited in vain for another one."""


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def is_other() -> bool:
    """Whether this is a rank of several, and not the main one."""
    return count() > 1 and os.environ.get("RANK", "0") != "0"


def _is_told(name: str) -> bool:
    """Whether the launcher said so."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"


def share_weights() -> bool:
    """Whether each rank will have a part of the model only."""
    return _is_told("FSDP") or _is_told("DEEPSPEED")


def meet() -> None:
    """Make the group of the ranks; each takes the device of its local rank. Later calls do nothing."""
    if _is_told("DEEPSPEED") and not find_spec("deepspeed"):
        raise SystemExit(
            "deepspeed is not installed, which the launcher was told to use: install it, or take "
            "--config_file configs/fsdp2.yaml, which shards a model as ZeRO-3 does"
        )
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def agree(value: T) -> T:
    """The main rank's value, on all of them."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    (agreed,) = broadcast_object_list([value])
    return agreed


def wait() -> None:
    """Until all ranks are here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def part() -> None:
    """Leave the group; the other ranks end here, the main one goes on alone."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
    if is_other():
        raise SystemExit(0)


@contextmanager
def by_itself(accelerator: Any) -> Iterator[None]:
    """While it lasts, what is gathered of all ranks is this rank's own."""

    def own(value: Any, *_: Any, **__: Any) -> Any:
        return value

    accelerator.gather = accelerator.gather_for_metrics = own
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


# -- how a run ends


def lost(error: Exception) -> bool:
    """Whether it says that another rank is gone."""
    return count() > 1 and isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


@contextmanager
def one_voice(stage: str) -> Iterator[None]:
    """While a script runs: of several ranks the main one speaks, another only of what it alone met."""
    if count() > 1:  # torch's own warnings, a line a rank, are for nobody; before it is imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not is_other():
        if count() > 1:
            _speak_when_ended(f"{stage}: {GONE}")
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield
    except SystemExit as end:
        if end.code in (None, 0, 130):
            raise
        time.sleep(_PATIENCE)
        words = end.code if isinstance(end.code, str) else said.getvalue().strip()
        raise SystemExit(f"{words.rpartition(chr(10))[2]} (rank {os.environ['RANK']})") from None


GONE = (
    "ended because another process of this training did (it, or the launcher, says why), or because "
    "the launcher was told to; the same command goes on from the last checkpoint"
)


_told: set[str] = set()
_telling = threading.Lock()


def _tell(sentence: str) -> None:
    """Once, also where the lost rank is met and the launcher's signal arrives, whichever is first."""
    with _telling:
        if sentence not in _told:
            _told.add(sentence)
            print(sentence, file=sys.stderr, flush=True)


def _speak_when_ended(sentence: str) -> None:
    """Say so, and end, when the launcher ends this process, as it does where another one is gone.

    A thread waits for it: a signal's handler in Python would run when the collective operation has
    come to its end, which it never does without the other rank.
    """
    waiting, waking = os.pipe()
    os.set_blocking(waking, False)

    def ended() -> NoReturn:
        while os.read(waiting, 1)[0] != signal.SIGTERM:
            pass
        _tell(sentence)
        os._exit(128 + signal.SIGTERM)

    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=ended, daemon=True).start()


@contextmanager
def tells_of_lost_ranks(stage: str) -> Iterator[None]:
    """While a stage runs: where another rank is gone, it ends in a sentence."""
    try:
        yield
    except RuntimeError as error:
        if not lost(error):
            raise
        _tell(f"{stage}: {GONE}")
        raise SystemExit(1) from None
