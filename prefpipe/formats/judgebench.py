"""JudgeBench (Tan et al. 2024): question, response_A, response_B, label A>B or B>A, pair_id, source."""

from prefpipe.formats.reading import (
    Format,
    Record,
    Verdicts,
    field,
    prompt_field,
    text_field,
    to_preference,
)
from prefpipe.rows import Preference

_KINDS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


def read(record: Record) -> Preference:
    """source becomes judgebench/<knowledge, reasoning, math or coding>."""
    answers = [text_field(record, f"response_{k}") for k in "AB"]
    label = field(record, "label")
    if label not in ("A>B", "B>A"):
        raise ValueError(f"label: found {label!r}, wanted 'A>B' or 'B>A'")
    chosen, rejected = answers if label == "A>B" else answers[::-1]
    source = text_field(record, "source")
    kind = next((kind for start, kind in _KINDS.items() if source.startswith(start)), None)
    if kind is None:
        starts = ", ".join(_KINDS)
        raise ValueError(f"source: found {source!r}, wanted one that starts with {starts}")
    named = {"id": field(record, "pair_id"), "source": f"judgebench/{kind}"}
    return to_preference(named, prompt_field(record, "question"), chosen, rejected)


def is_right(given_right: bool | None, swapped_right: bool | None) -> bool:
    """JudgeBench's rule for two orders: more right verdicts than wrong ones; None: unreadable, neither."""
    verdicts = (given_right, swapped_right)
    return verdicts.count(True) > verdicts.count(False)


def share_right(verdicts: Verdicts) -> float | None:
    """The published score of a judge; None: no verdict at all."""
    return sum(is_right(*both) for both in verdicts) / len(verdicts) if verdicts else None


FORMAT = Format(
    read,
    about="JudgeBench: question, response_A, response_B, label A>B or B>A",
    needs=("pair_id", "question", "response_A", "response_B", "label", "source"),
    published_of_verdicts=share_right,
)
