"""Preferences as they are published, each on its side of the split; and as token ids for a trainer.

Held-out pairs are of other questions than those trained on: either a file of their own, or a share
of the questions. A train question that is nearly one of the held-out ones is told apart.
preprocess_dataset.py reads by this module, too: it loads no torch.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from prefpipe import formats
from prefpipe.files import DataError, Named, Places, Run
from prefpipe.near_duplicates import NearDuplicates
from prefpipe.questions import in_blocks, splits
from prefpipe.rows import Preference, Reject, Split, flatten_turns

if TYPE_CHECKING:
    from prefpipe.training.tokenized_pairs import TokenizedPair

NEAR_DUPLICATE = "near_duplicate_of_validation"


class Placed(NamedTuple):
    """A preference, where it stands, and on which side of the split it is."""

    row: Preference
    file: str
    place: str
    has_id: bool
    """It came with one; False: its id was made of its content."""
    split: Split
    is_near_duplicate: bool = False
    """A train row whose question is nearly a held-out one."""


@dataclass(frozen=True)
class RawPreferences:
    """Where preferences are, how they are read, and which of them are held out."""

    input: str
    """A file, a folder saved by `datasets`, or a data set's name on the hub."""
    validation_input: str
    """The same of held-out rows. Empty: a share of the questions of input is held out."""
    validation_share: float
    format: str
    near_duplicate: float
    """Jaccard of five-word shingles from which on two questions are nearly the same."""
    seed: int
    limit: int | None

    def read(self, run: Run, first: Split) -> Iterator[Placed]:
        """Each preference once, the file of the split `first` before the other.

        Rows are counted in run.read_count; what is no preference is a bad row of the run. The
        caller decides what becomes of the others.
        """
        is_held_out = bytearray()
        held_out = NearDuplicates(self._held_out_questions(is_held_out), self.near_duplicate)
        names = (self.input, self.validation_input)
        records = self._records(names if first == "train" else names[::-1])
        # in blocks: for one question at a time, calling numpy costs more than what it does
        for block in in_blocks(self._placed(records, is_held_out)):
            train = [p.row for p in block if isinstance(p, Placed) and p.split == "train"]
            near = iter(held_out.find([flatten_turns(row.prompt) for row in train]))
            for placed in block:
                run.read_count += 1
                if not isinstance(placed, Placed):
                    run.bad_row(*placed)
                elif placed.split == "train":
                    yield placed._replace(is_near_duplicate=next(near))
                else:
                    yield placed

    def _held_out_questions(self, is_held_out: bytearray) -> Iterator[str]:
        """First pass: the held-out questions. Notes in is_held_out which rows they are (1), or not (0).

        Reads the validation file, or all of the input where a share of it is held out.
        """
        for block in in_blocks(self._records([self.validation_input or self.input])):
            records = [record for _, _, record in block]
            asked = [self._question(record) for record in records]
            sides: list[Split] = (
                ["validation"] * len(asked)
                if self.validation_input
                else splits(asked, validation_share=self.validation_share, seed=self.seed)
            )
            held_out = [
                split == "validation" and isinstance(self._row(record), Preference)
                for record, split in zip(records, sides, strict=True)
            ]
            is_held_out.extend(held_out)
            yield from itertools.compress(asked, held_out)

    def _question(self, record: Any) -> str:
        """A record's question; empty where it is no preference."""
        # most are text under this name: to check the whole record would take four times as long
        is_plain = self.format == "sky" and isinstance(record, dict)
        if is_plain and isinstance(prompt := record.get("prompt"), str):
            return prompt
        row = self._row(record)
        return flatten_turns(row.prompt) if isinstance(row, Preference) else ""

    def _placed(
        self, records: Iterable[tuple[str, str, Any]], is_held_out: bytearray
    ) -> Iterator[Placed | tuple[str, ValueError]]:
        """Each record as a preference, or its place and why it is none."""
        own_file = self.validation_input
        for number, (file, place, record) in enumerate(records):
            row = self._row(record)
            if isinstance(row, ValueError):
                yield place, row
                continue
            has_id = record.get("id") not in (None, "")  # "": so a CSV file says that there is none
            held_out = file == own_file if own_file else is_held_out[number]
            yield Placed(row, file, place, has_id, "validation" if held_out else "train")

    def _records(self, names: Iterable[str]) -> Iterator[tuple[str, str, Any]]:
        """(file, place, record) of these files, one after another."""
        for name in filter(None, names):
            for place, record in Named(name).records(self.limit):
                yield name, place, record

    def _row(self, record: Any) -> Preference | ValueError:
        return formats.read_preference(record, self.format)


Tokenize = Callable[[Preference], "tuple[TokenizedPair | Reject, int]"]
"""A pair as token ids, or why it cannot be used; and how many tokens of its prompt were cut."""


@dataclass
class TrainingPairs:
    """The pairs of a run."""

    train: "list[TokenizedPair]" = field(default_factory=list)
    validation: "list[TokenizedPair]" = field(default_factory=list)
    held_out: list[Preference] = field(default_factory=list)
    """The rows of validation, in its order."""
    prompts_cut: int = 0

    def counts(self) -> dict[str, int]:
        return {
            "train pairs": len(self.train),
            "validation pairs": len(self.validation),
            "train ties": sum(pair.tie for pair in self.train),
            "validation ties": sum(pair.tie for pair in self.validation),
            "prompts cut from the left": self.prompts_cut,
        }


def collect(raw: RawPreferences, run: Run, tokenize: Tokenize, *, drop_ties: bool) -> TrainingPairs:
    """Read, split and tokenize; each row that cannot be used is emitted as its Reject.

    drop_ties: those that would be trained on; held-out ones are kept. Raises DataError where
    nothing is left to train on, or to hold out.
    """
    pairs = TrainingPairs()
    seen: set[tuple[bytes, bool]] = set()
    places = {name: Places() for name in (raw.input, raw.validation_input)}
    # held-out rows first: of two equal pairs, the one that is trained on goes
    for placed in raw.read(run, first="validation"):
        row = placed.row
        if placed.has_id:
            places[placed.file].check(row.id, placed.place)
        reason = row.fault
        if not reason and drop_ties and row.tie and placed.split == "train":
            reason = "tie"
        if not reason and placed.is_near_duplicate:
            reason = NEAR_DUPLICATE
        pair, tokens_cut = (Reject(id=row.id, reason=reason), 0) if reason else tokenize(row)
        if not isinstance(pair, Reject) and (pair.digest, row.tie) in seen:
            pair = Reject(id=row.id, reason="duplicate_pair", detail="as an earlier row")
        if isinstance(pair, Reject):
            run.emit(pair)
            continue
        seen.add((pair.digest, row.tie))
        run.keep()
        pairs.prompts_cut += tokens_cut > 0
        if placed.split == "train":
            pairs.train.append(pair)
        else:
            pairs.validation.append(pair)
            pairs.held_out.append(row)
    reasons = run.reasons() or "none read"
    for split, use, some in (
        ("train", "train on", pairs.train),
        ("validation", "hold out", pairs.validation),
    ):
        if not some:
            raise DataError(f"{raw.input}: no pair to {use} (left out: {reasons})")
        if all(pair.tie for pair in some):
            raise DataError(
                f"{raw.input}: every {split} pair is a tie: nothing says what is better"
            )
    return pairs
