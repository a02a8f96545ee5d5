"""What a training would train on, counted before there is a model: the end of its dry run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from prefpipe.files import DryRunEnd, Plan
from prefpipe.training.tokenized_pairs import TokenizedPair


class How(NamedTuple):
    """The settings that say how many steps there are."""

    batch_pairs: int
    gradient_accumulation_steps: int
    epochs: float
    early_stopping: int | None

    def steps(self, pairs: int) -> int:
        """Optimizer steps over so many pairs, as transformers.Trainer counts them."""
        batches = math.ceil(pairs / self.batch_pairs)
        return math.ceil(self.epochs * math.ceil(batches / self.gradient_accumulation_steps))


def end(
    plan: Plan,
    how: How,
    train: Sequence[TokenizedPair],
    validation: Sequence[TokenizedPair],
    stopped_at: Path | None,
) -> NoReturn:
    """Put the training into the plan, and end. stopped_at: the checkpoint that is gone on from."""
    steps = how.steps(len(train))
    done = int(stopped_at.name.rpartition("-")[2]) if stopped_at else 0
    tokens = {name: _tokens(pairs) for name, pairs in (("train", train), ("held out", validation))}
    most = "at most " if how.early_stopping else ""
    lines = [
        f"{len(train):,} pairs in {most}{steps:,} steps and {how.epochs:g} epoch{'' if how.epochs == 1 else 's'}"
        + (f"; {done:,} steps are done, by {stopped_at}" if done else ""),
        f"held out: {len(validation):,} pairs",
        f"tokens an epoch: {tokens['train']:,}; held out: {tokens['held out']:,} (by its tokenizer, a "
        "prompt once for all of its pairs)",
    ]
    plan.put(
        "to train",
        lines,
        pairs=len(train),
        held_out=len(validation),
        epochs=how.epochs,
        steps=steps,
        steps_done=done,
        tokens_an_epoch=tokens["train"],
        held_out_tokens=tokens["held out"],
    )
    raise DryRunEnd


def _tokens(pairs: Sequence[TokenizedPair]) -> int:
    prompts = {pair.prompt_ids.tobytes(): len(pair.prompt_ids) for pair in pairs}
    answers = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    return sum(prompts.values()) + answers
