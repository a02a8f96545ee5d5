"""Preferences as they are published, each on its side of the split; and as token ids for a trainer.

Held-out pairs are of other questions than those trained on: either a file of their own, or a share
of the questions. A train question that is nearly one of the held-out ones is told apart.
preprocess_dataset.py reads by this module, too: it loads no torch.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prefpipe.evaluation.overlap import Overlap, benchmark_questions, texts_of
from prefpipe.files import DataError, Named, Places, Run
from prefpipe.formats.opening import NO_IDS, HowRead, OpenFile, say_counts
from prefpipe.near_duplicates import NearDuplicates
from prefpipe.questions import in_blocks, splits
from prefpipe.rows import Preference, Reject, Split, flatten_turns
from prefpipe.screen import working

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
    leaks: str | None = None
    """Why a train row must not be trained on: it is nearly a held-out one, or stands in a benchmark."""
    like: str = ""
    """The question of a benchmark that it has words of, as name:id."""

    def reject(self) -> Reject | None:
        """The row left out for that."""
        if not self.leaks:
            return None
        detail = f"{self.place}: as {self.like}" if self.like else self.place
        return Reject(id=self.row.id, reason=self.leaks, detail=detail)


@dataclass(frozen=True)
class RawPreferences:
    """Where preferences are, how they are read, and which of them are held out."""

    input: str
    """A file, a folder saved by `datasets`, or a data set's name on the hub."""
    validation_input: str
    """The same of held-out rows. Empty: a share of the questions of input is held out."""
    validation_share: float
    how: HowRead
    near_duplicate: float
    """Jaccard of five-word shingles from which on two questions are nearly the same."""
    seed: int
    limit: int | None
    not_in: tuple[str, ...] = ()
    """Benchmarks, as name=path: a train row that shares eight words in a row with a question leaks."""
    validation_split: str | None = None
    """Of validation_input, as how has it of input."""

    def read(self, run: Run, first: Split) -> Iterator[Placed]:
        """Each preference once, the file of the split `first` before the other.

        Rows are counted in run.read_count; what is no preference is a bad row of the run. The
        caller decides what becomes of the others.
        """
        files, own_file = self.files()
        if not run.shards.reads:  # what the shards counted is said
            return say_counts(run, files)
        is_held_out = bytearray()
        # the validation file, or all of the input where a share of it is held out
        asked = self._held_out_questions(files[-1], is_held_out, all_of_it=own_file is not None)
        with working("held-out questions, for near-duplicates"):
            held_out = NearDuplicates(asked, self.near_duplicate)
        seen = Overlap(benchmark_questions(self.not_in, self.how)) if self.not_in else None
        order = files if first == "train" else files[::-1]
        # in blocks: for one question at a time, calling numpy costs more than what it does
        for block in in_blocks(_placed(order, own_file, is_held_out, run.shards.owns_some)):
            train = [p.row for _, p in block if isinstance(p, Placed) and p.split == "train"]
            near = iter(held_out.find([flatten_turns(row.prompt) for row in train]))
            for run.position, placed in block:
                if placed is None:
                    continue
                run.read_count += 1
                if not isinstance(placed, Placed):
                    run.bad_row(*placed)
                elif placed.split == "validation":
                    yield placed
                elif next(near):
                    yield placed._replace(leaks=NEAR_DUPLICATE)
                elif seen and (like := seen.shared_with(texts_of(placed.row))):
                    yield placed._replace(leaks="in_benchmark", like=like)
                else:
                    yield placed
        say_counts(run, files)

    def files(self) -> tuple[list[OpenFile], OpenFile | None]:
        """What is read; and of it whose rows are held out, None: a share of the only one's. By the
        file itself: both may be splits of one data set, and so have one name."""
        train = OpenFile(self.input, self.how, self.limit)
        name, split = self.validation_input, self.validation_split
        if not name:  # those who made the set may have said what is held out of it
            name, split = self.input, Named(self.input, **self.how.part).held_out_split()
            if not split:
                return [train], None
        part = {**self.how.part, "split": split}
        own_file = OpenFile(name, replace(self.how, part=part), self.limit)
        return [train, own_file], own_file

    def sides(self, asked: Sequence[str]) -> list[Split]:
        """Where a share of the questions is held out: the side of each."""
        return splits(asked, validation_share=self.validation_share, seed=self.seed)

    def _held_out_questions(
        self, file: OpenFile, is_held_out: bytearray, *, all_of_it: bool
    ) -> Iterator[str]:
        """First pass: the held-out questions. Notes in is_held_out which records they are of (1), or
        not (0)."""
        for block in in_blocks(file.records()):
            records = [record for _, record in block]
            asked = [_question(file, record) for record in records]
            sides: list[Split] = ["validation"] * len(asked) if all_of_it else self.sides(asked)
            held_out = [
                split == "validation" and isinstance(file.pairs(record), list)
                for record, split in zip(records, sides, strict=True)
            ]
            is_held_out.extend(held_out)
            yield from itertools.compress(asked, held_out)


def _placed(
    files: Iterable[OpenFile],
    own_file: OpenFile | None,
    is_held_out: bytearray,
    owns: Callable[[str], bool] | None,
) -> Iterator[tuple[int, Placed | tuple[str, ValueError, str] | None]]:
    """Each record's number over all files, with its preferences, or its place, why it has none and a
    hint; None: another shard owns it. own_file: whose rows are held out; None: those that is_held_out says."""
    numbers = itertools.count()
    for file in files:
        hinted = False
        for at, (place, record) in enumerate(file.records()):
            number = file.reader.guard.at = next(numbers)
            rows = file.pairs(record) if owns is None else file.owned(place, record, owns)
            if rows is None:
                yield number, None
                continue
            if isinstance(rows, ValueError):
                # a person reads the first one; the others are alike
                hint, hinted = "" if hinted else file.hint(record, rows), True
                yield number, (place, rows, hint)
                continue
            held_out = file is own_file if own_file else is_held_out[at]
            has_id, split = file.reader.has_id(record), "validation" if held_out else "train"
            for row in rows:
                yield number, Placed(row, file.name, place, has_id, split)


def _question(file: OpenFile, record: Any) -> str:
    """A record's question; empty where it is no preference."""
    try:
        return "" if isinstance(record, ValueError) else file.reader.question(record)
    except ValueError:
        return ""


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
    margins: list[float] = field(default_factory=list)
    """Those of the pairs that have one."""

    def counts(self) -> dict[str, int]:
        return {
            "train pairs": len(self.train),
            "validation pairs": len(self.validation),
            "train ties": sum(pair.tie for pair in self.train),
            "validation ties": sum(pair.tie for pair in self.validation),
            "prompts cut from the left": self.prompts_cut,
            "pairs with a margin": len(self.margins),
        }


def check(raw: RawPreferences, run: Run, *, drop_ties: bool) -> None:
    """Read the rows before a model is loaded, up to where there is one to train on and one to hold
    out. Raises DataError where there is none; the rejects then say why."""
    wanted: set[Split] = {"train", "validation"}
    files, own_file = raw.files()
    for file in reversed(files):
        for _, record in file.records():
            sides: list[Split] = ["validation" if file is own_file else "train"]
            if own_file is None:
                sides = raw.sides([_question(file, record)])
            rows = file.pairs(record)
            placed = (
                []
                if isinstance(rows, ValueError)
                else [Placed(r, "", "", False, *sides) for r in rows]
            )
            if any(not why_left_out(one, drop_ties=drop_ties) for one in placed):
                wanted -= {*sides}
            if not wanted or (own_file and not wanted & {*sides}):
                break
    if not wanted:
        return
    for placed in raw.read(run, first="validation"):  # for the rejects
        if left_out := why_left_out(placed, drop_ties=drop_ties):
            run.emit(left_out)
    raise _nothing_left(raw, run, "train" if "train" in wanted else "validation")


def why_left_out(placed: Placed, *, drop_ties: bool) -> Reject | None:
    """Why no trainer can use the row; ties are left out of what is trained on only."""
    row = placed.row
    reason = row.fault
    if not reason and drop_ties and row.tie and placed.split == "train":
        reason = "tie"
    return Reject(id=row.id, reason=reason) if reason else placed.reject()


def _nothing_left(raw: RawPreferences, run: Run, split: Split) -> DataError:
    run.keep_rejects()
    use = "train on" if split == "train" else "hold out"
    first = f"; first: {run.first_bad}" if run.first_bad else ""
    return DataError(
        f"{raw.input}: no pair to {use} (left out: {run.reasons() or 'none'}{first}); "
        f"each with its reason in {run.rejects_path}"
    )


def collect(raw: RawPreferences, run: Run, tokenize: Tokenize, *, drop_ties: bool) -> TrainingPairs:
    """Read, split and tokenize; each row that cannot be used is emitted as its Reject.

    drop_ties: those that would be trained on; held-out ones are kept. Raises DataError where
    nothing is left to train on, or to hold out.
    """
    pairs = TrainingPairs()
    seen: set[tuple[bytes, bool]] = set()
    places = defaultdict[tuple[str, Split | None], Places](Places)
    # held-out rows first: of two equal pairs, the one that is trained on goes
    for placed in raw.read(run, first="validation"):
        row = placed.row
        if placed.has_id:
            side = placed.split if raw.validation_input else None
            places[placed.file, side].check(row.id, placed.place, NO_IDS)
        left_out = why_left_out(placed, drop_ties=drop_ties)
        pair, tokens_cut = (left_out, 0) if left_out else tokenize(row)
        if not isinstance(pair, Reject) and (pair.digest, row.tie) in seen:
            pair = Reject(id=row.id, reason="duplicate_pair", detail="as an earlier row")
        if isinstance(pair, Reject):
            run.emit(pair)
            continue
        seen.add((pair.digest, row.tie))
        run.keep()
        pairs.prompts_cut += tokens_cut > 0
        pairs.margins += [] if row.margin is None else [row.margin]
        if placed.split == "train":
            pairs.train.append(pair)
        else:
            pairs.validation.append(pair)
            pairs.held_out.append(row)
    sides: list[tuple[Split, list[TokenizedPair]]] = [
        ("train", pairs.train),
        ("validation", pairs.validation),
    ]
    for split, some in sides:
        if not some:
            raise _nothing_left(raw, run, split)
        if all(pair.tie for pair in some):
            raise DataError(
                f"{raw.input}: every {split} pair is a tie: nothing says what is better"
            )
    return pairs
