"""How a training begins and goes on, whatever is trained."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any


def quiet() -> None:
    """Let the libraries report nothing to anyone and warn of nothing; before they are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL and transformers, mutually
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def fit(trainer: Any, stopped_at: Path | None, early_stopping: int | None, stage: str) -> None:
    """Train to the end, or from a checkpoint on. Exits with a sentence where a loss is no number."""
    import transformers

    from prefpipe.training.trainer import NotFiniteError

    trainer.remove_callback(transformers.PrinterCallback)
    if early_stopping is not None:
        trainer.add_callback(transformers.EarlyStoppingCallback(early_stopping))
    try:
        trainer.train(resume_from_checkpoint=str(stopped_at) if stopped_at else None)
    except NotFiniteError as error:
        raise SystemExit(f"{stage}: {error}") from None
