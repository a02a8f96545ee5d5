"""Preference data to token ids for the reward and the pairwise trainer; what both do afterwards.

Held-out pairs are of other questions than those trained on: either a file of their own, or a share
of the questions. A train question that is nearly one of the held-out ones is left out.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prefpipe.evaluation import metrics
from prefpipe.files import DataError, Places, Run, write_json, write_rows
from prefpipe.formats import reading
from prefpipe.near_duplicates import NearDuplicates
from prefpipe.questions import question_key, splits
from prefpipe.rows import Disagreement, Preference, Reject, Split, flatten_turns
from prefpipe.training.tokenized_pairs import TokenizedPair


class DataSettings(Protocol):
    """What PreferenceTrainingStage says about its data."""

    input: str
    validation_input: str
    validation_share: float
    near_duplicate: float
    seed: int
    limit: int | None
    strict: bool

    # Read only: a stage has a narrower type, the values it allows.
    @property
    def format(self) -> str: ...
    @property
    def ties(self) -> str: ...


Tokenize = Callable[[Preference], "tuple[TokenizedPair, int] | Reject"]
"""A pair as token ids and how many tokens of its prompt were cut, or why it cannot be used."""


@dataclass
class Collected:
    """The pairs of a run. Lists of one split have the same order."""

    train: list[TokenizedPair] = field(default_factory=list)
    validation: list[TokenizedPair] = field(default_factory=list)
    ties: dict[Split, list[bool]] = field(default_factory=lambda: {"train": [], "validation": []})
    margins: dict[Split, list[float]] = field(
        default_factory=lambda: {"train": [], "validation": []}
    )
    """How much better chosen is, in the writer's unit; 0 where it is not known."""
    held_out: list[Preference] = field(default_factory=list)
    """The rows of validation."""
    prompts_cut: int = 0

    def counts(self) -> dict[str, int]:
        return {
            "train pairs": len(self.train),
            "validation pairs": len(self.validation),
            "train ties": sum(self.ties["train"]),
            "validation ties": sum(self.ties["validation"]),
            "prompts cut from the left": self.prompts_cut,
        }


def collect(s: DataSettings, run: Run, tokenize: Tokenize) -> Collected:
    """Read, split and tokenize; each row that cannot be used is emitted as its Reject.

    Raises DataError where nothing is left to train on, or to hold out.
    """
    made = Collected()
    seen: set[bytes] = set()
    held_out = NearDuplicates(_held_out_questions(s), s.near_duplicate)
    for split, row in _rows(s, run):
        result = _pair(s, row, split, held_out, tokenize)
        if not isinstance(result, Reject):
            digest = _digest(result[0], row.tie)
            if digest in seen:
                result = Reject(id=row.id, reason="duplicate_pair", detail="as an earlier row")
            seen.add(digest)
        if isinstance(result, Reject):
            run.emit(result)
            continue
        run.keep()
        pair, cut = result
        (made.train if split == "train" else made.validation).append(pair)
        made.ties[split].append(row.tie)
        made.margins[split].append(row.margin or 0.0)
        made.prompts_cut += cut > 0
        if split == "validation":
            made.held_out.append(row)
    reasons = ", ".join(f"{n} {reason}" for reason, n in run.left_out.most_common())
    for name, pairs in (("train on", made.train), ("hold out", made.validation)):
        if not pairs:
            raise DataError(f"{s.input}: no pair to {name} (left out: {reasons or 'none read'})")
    for split in ("train", "validation"):
        if all(made.ties[split]):
            raise DataError(f"{s.input}: every {split} pair is a tie: nothing says what is better")
    return made


def _rows(s: DataSettings, run: Run) -> Iterator[tuple[Split, Preference]]:
    places = {name: Places() for name in (s.input, s.validation_input)}
    for name, place, record in _records(s):
        run.read_count += 1
        row = reading.read_preference(record, s.format)
        if isinstance(row, ValueError):
            run.bad_row(place, row)
            continue
        if isinstance(record, dict) and record.get("id") is not None:
            places[name].check(row.id, place)
        yield _split(s, name, row), row


def _records(s: DataSettings) -> Iterator[tuple[str, str, Any]]:
    for name in filter(None, (s.validation_input, s.input)):
        for place, record in reading.read_named(name, s.limit):
            yield name, place, record


def _held_out_questions(s: DataSettings) -> Iterator[str]:
    for name, _, record in _records(s):
        row = reading.read_preference(record, s.format)
        if isinstance(row, Preference) and _split(s, name, row) == "validation":
            yield flatten_turns(row.prompt)


def _split(s: DataSettings, name: str, row: Preference) -> Split:
    if s.validation_input:
        return "validation" if name == s.validation_input else "train"
    asked = [flatten_turns(row.prompt)]
    return splits(asked, validation_share=s.validation_share, seed=s.seed)[0]


def _pair(
    s: DataSettings,
    row: Preference,
    split: Split,
    held_out: NearDuplicates,
    tokenize: Tokenize,
) -> tuple[TokenizedPair, int] | Reject:
    chosen, rejected = answer_of(row.chosen), answer_of(row.rejected)
    if not flatten_turns(row.prompt).strip():
        return Reject(id=row.id, reason="empty_prompt")
    if not chosen.strip() or not rejected.strip():
        return Reject(id=row.id, reason="empty_response")
    if chosen.split() == rejected.split():
        return Reject(id=row.id, reason="chosen_is_rejected")
    if split == "train" and row.tie and s.ties == "drop":
        return Reject(id=row.id, reason="tie")
    if split == "train" and flatten_turns(row.prompt) in held_out:
        return Reject(id=row.id, reason="near_duplicate_of_validation")
    return tokenize(row)


def _digest(pair: TokenizedPair, tie: bool) -> bytes:
    parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    return hashlib.sha256(b"|".join(p.tobytes() for p in parts) + bytes([tie])).digest()[:16]


def answer_of(response: Any) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


# ---- evaluation ----------------------------------------------------------------------------------


def write_evaluation(
    folder: Path,
    name: str,
    rows: Sequence[Preference],
    margins: Sequence[float],
    *,
    worst: int,
    scores: Sequence[tuple[float, float]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """<name>_eval.json, its reliability curve as PNG, and disagreements.jsonl. Returns the report.

    margins: log-odds that chosen is better. scores: of chosen and rejected, where there are any.
    """
    pairs = [
        metrics.ScoredPair(
            id=row.id,
            question=question_key(flatten_turns(row.prompt)),
            margin=margin,
            tie=row.tie,
            lengths=(len(answer_of(row.chosen)), len(answer_of(row.rejected))),
        )
        for row, margin in zip(rows, margins, strict=True)
    ]
    report = metrics.preference_report(pairs) | more
    write_json(folder / f"{name}_eval.json", report)
    draw_reliability(
        folder / "reliability.png", report, f"{name} model, {len(pairs)} held-out pairs"
    )
    order = sorted(range(len(rows)), key=lambda k: (margins[k], rows[k].id))
    wrong = [k for k in order if margins[k] < 0 and not rows[k].tie][:worst]
    found = (
        Disagreement(
            id=rows[k].id,
            margin=margins[k],
            chosen_score=scores[k][0] if scores else None,
            rejected_score=scores[k][1] if scores else None,
            prompt=flatten_turns(rows[k].prompt),
            chosen=answer_of(rows[k].chosen),
            rejected=answer_of(rows[k].rejected),
            source=rows[k].source,
        )
        for k in wrong
    )
    write_rows(folder / "disagreements.jsonl", found, Disagreement)
    return report


def draw_reliability(path: Path, report: Mapping[str, Any], title: str) -> None:
    """Confidence against accuracy, before and after the temperature; the diagonal is calibrated."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=1)
    for name, label in (
        ("reliability", f"as it is (ECE {report['ece']:.3f})"),
        ("reliability_scaled", f"/ temperature (ECE {report['ece_scaled']:.3f})"),
    ):
        bins = report[name]
        axis.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", label=label)
    axis.set(xlabel="probability of the preferred response", ylabel="share that is better")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    temporary = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The numbers that a person acts on, a line each."""
    low, high = report["interval"]
    spearman = report["spearman"]
    return [
        f"held-out pairs              {report['n']} ({report['ties']} ties)",
        f"accuracy                    {report['accuracy']:.3f} [{low:.3f}, {high:.3f}]",
        f"  undecided, counted half   {report['undecided']:.3f}",
        f"  picking the longer        {report['longer_is_right']:.3f}",
        f"mean margin                 {report['mean_margin']:.3f}",
        f"calibration error (ECE)     {report['ece']:.3f}; / temperature "
        f"{report['temperature']:.2f}: {report['ece_scaled']:.3f}",
        "|margin| with being right   "
        + ("the same for all" if spearman is None else f"{spearman:.3f} (Spearman)"),
    ]


# ---- training ------------------------------------------------------------------------------------


def run_training(
    trainer: Any, stopped_at: Path | None, early_stopping: int | None, stage: str
) -> None:
    """Train to the end, or from a checkpoint on. Exits with a sentence where a loss is no number."""
    import transformers

    from prefpipe.training.trainer import NotFiniteError

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    trainer.remove_callback(transformers.PrinterCallback)
    if early_stopping is not None:
        trainer.add_callback(transformers.EarlyStoppingCallback(early_stopping))
    try:
        trainer.train(resume_from_checkpoint=str(stopped_at) if stopped_at else None)
    except NotFiniteError as error:
        raise SystemExit(f"{stage}: {error}") from None


def check_scores(
    expected: Sequence[float], found: Sequence[float], dtype: str, folder: Path
) -> float:
    """The largest difference between scores before saving and after loading again.

    Raises RuntimeError where it is more than rounding: 1e-4 in float32.
    """
    largest = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    allowed = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}[dtype]
    if not largest <= allowed:
        raise RuntimeError(
            f"{folder}: the saved model, loaded again, gives scores that differ by up to "
            f"{largest:.2g} from those of the model that was trained (at most {allowed} is "
            "rounding): it was not saved whole, its head perhaps. The checkpoints are kept"
        )
    return largest
