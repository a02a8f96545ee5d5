"""Halves of the held-out pairs: those that choose a checkpoint, and those by which the model is judged.

A checkpoint that was chosen because it is right on some pairs is right on these more often than on
others: what is claimed of it is measured on pairs that did not choose it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefpipe import draws
from prefpipe.evaluation.calibration import FEWEST
from prefpipe.questions import question_key
from prefpipe.rows import Preference, flatten_turns

if TYPE_CHECKING:
    from prefpipe.training.preferences import TrainingPairs
    from prefpipe.training.tokenized_pairs import TokenizedPair


@dataclass(frozen=True)
class Halves:
    """The held-out pairs in two parts; where nothing is chosen, or few are held out, all are in each."""

    choosing: "Sequence[TokenizedPair]"
    """Their loss is measured at each checkpoint."""
    judged: Sequence[Preference]
    """The report is of these."""
    chosen_by: str
    """Who chose the checkpoint: nobody, others, the same."""
    prompts_cut: int
    """Prompts of all pairs that were cut from the left."""

    def facts(self) -> dict[str, str | int]:
        """What the report has of it."""
        return {"chosen_by": self.chosen_by, "truncated_prompts": self.prompts_cut}


def halve(pairs: "TrainingPairs", *, chooses: bool) -> Halves:
    """Split them by a coin for each question, so that the pairs of one are on the same side. chooses: whether the
    best checkpoint is taken. Fewer than FEWEST pairs in a half: all do both."""
    if not chooses:
        return Halves(pairs.validation, pairs.held_out, "nobody", pairs.prompts_cut)
    both = list(zip(pairs.validation, pairs.held_out, strict=True))
    coins = [draws.coin(0, question_key(flatten_turns(row.prompt))) for _, row in both]
    choosing = [pair for (pair, _), coin in zip(both, coins, strict=True) if coin]
    judged = [row for (_, row), coin in zip(both, coins, strict=True) if not coin]
    if min(len(choosing), len(judged)) < FEWEST or all(pair.tie for pair in choosing):
        return Halves(pairs.validation, pairs.held_out, "the same", pairs.prompts_cut)
    return Halves(choosing, judged, "others", pairs.prompts_cut)
