"""Which answers of a record are compared, and which one is better: by its column, a label, scores, a list."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prefpipe import draws
from prefpipe.formats.guard import Guard
from prefpipe.formats.layout import (
    TIES,
    Layout,
    id_of,
    is_tie,
    margin_of,
    must,
    number,
    value_at,
    winner_at,
    word_of,
)
from prefpipe.formats.turns import Unusable, parse_nested, read_text
from prefpipe.rated_pairs import choose_pairs

Record = Mapping[str, Any]


class Compared(NamedTuple):
    """Two answers of a record, the better one first; of a tie in no order."""

    better: Any
    worse: Any
    names: tuple[str, str]
    tie: bool = False
    margin: float | None = None
    suffix: str = ""
    """What tells the pairs of one record apart, behind its id."""


def compared(layout: Layout, record: Record, guard: Guard, seed: int) -> Iterator[Compared]:
    """The pairs of a record, mostly one. Raises ValueError; Unusable where an answer is null."""
    for pair in _compared(layout, record, guard, seed):
        yield (
            pair if layout.scores_are_margins else pair._replace(margin=own_margin(layout, record))
        )


def _compared(layout: Layout, record: Record, guard: Guard, seed: int) -> Iterator[Compared]:
    if layout.candidates:
        yield from _of_candidates(layout, record, layout.candidates, seed)
        return
    tie, margin = own_tie(layout, record), own_margin(layout, record)
    if layout.answers:
        texts = [must(record, path, "--answer-columns") for path in layout.answers]
        side, distance = _winner(layout, record)
        margin = distance if margin is None else margin
        yield _in_order(side, texts, layout.answers)._replace(tie=tie or side < 0, margin=margin)
        return
    good = must(record, layout.chosen, "--chosen-column")
    bad = must(record, layout.rejected, "--rejected-column")
    if found := _scores(layout, record):
        names, (first, second) = found
        ahead = second - first if layout.lower_wins else first - second
        if ahead < 0 and not layout.scores_in_any_order:
            guard.contradict(names, (first, second))
        elif margin is None and ahead:
            margin = abs(ahead)
        tie = tie or not ahead
    yield Compared(good, bad, (layout.chosen, layout.rejected), tie, margin)


def _in_order(side: int, texts: Sequence[Any], names: tuple[str, str]) -> Compared:
    """The better one first, which side says: 1 is the second."""
    (a, b), (first, second) = texts, names
    return Compared(b, a, (second, first)) if side == 1 else Compared(a, b, names)


def own_tie(layout: Layout, record: Record) -> bool:
    """What the row's own column says."""
    return bool(layout.tie) and is_tie(value_at(record, layout.tie or ""), layout.tie or "")


def own_margin(layout: Layout, record: Record) -> float | None:
    """What the row's own column says."""
    return margin_of(value_at(record, layout.margin), layout.margin) if layout.margin else None


def own_id(layout: Layout, record: Record) -> str | None:
    """What the row's own column says."""
    return id_of(value_at(record, layout.id), layout.id) if layout.id else None


def _winner(layout: Layout, record: Record) -> tuple[int, float | None]:
    """0: the first answer is better, 1: the second, -1: a tie; and by how much."""
    if layout.label:
        label = winner_at(record, layout.label, "--label-column")
        if (side := side_of(layout, label)) is not None:
            return side, None
        wanted = ", ".join(layout.labels)
        found = str(label)[:60]
        raise ValueError(f"{layout.label}: found {found!r}, wanted one of {wanted} (--labels)")
    if layout.strength:
        return _leaning(layout, record, layout.strength)
    if not (found := _scores(layout, record)):
        for name in layout.scores[0]:
            winner_at(record, name, "--score-columns")
        raise Unusable("unlabelled", f"{', '.join(layout.scores[0])}: found no two numbers")
    first, second = found[1][::-1] if layout.lower_wins else found[1]
    side = -1 if first == second else int(second > first)
    return side, abs(first - second) if side >= 0 else None


def side_of(layout: Layout, label: Any) -> int | None:
    """0: the label says that the first answer is better, 1: the second, -1: a tie; None: it says
    none of these."""
    word = word_of(label)
    if word in layout.labels:
        return (0, 1, -1)[min(2, layout.labels.index(word))]
    return -1 if word.replace(" ", "") in TIES else None


def _leaning(layout: Layout, record: Record, path: str) -> tuple[int, float | None]:
    strength = number(winner_at(record, path, "--strength-column"), path)
    if strength is None:  # "n/a" as a text
        raise Unusable("unlabelled", f"{path}: found no number")
    distance = strength - layout.middle
    if layout.furthest is not None and abs(distance) > layout.furthest:
        raise Unusable("unlabelled", f"{path}: found {strength:g}, which is beyond its scale")
    return (int(distance > 0), abs(distance)) if distance else (-1, None)


def _scores(layout: Layout, record: Record) -> tuple[tuple[str, str], tuple[float, float]] | None:
    """The first two scores that both are there, and their names."""
    for names in layout.scores:
        first, second = (number(value_at(record, name), name) for name in names)
        if first is not None and second is not None:
            return names, (first, second)
    return None


def _of_candidates(layout: Layout, record: Record, path: str, seed: int) -> Iterator[Compared]:
    listed = list_at(record, path)
    texts = [value_at(one, layout.text) if layout.text else one for one in listed]
    if layout.against:
        other = must(record, layout.against, "--answer-columns")
        for k, (one, text) in enumerate(zip(listed, texts, strict=True)):
            side, margin = _leaning(layout, one, layout.strength or "")
            pair = _in_order(side, (other, text), (layout.against, f"{path}[{k}]"))
            yield pair._replace(tie=side < 0, margin=margin, suffix=f":{k}")
        return
    scored = list_at(record, layout.candidate_scores) if layout.candidate_scores else listed
    if len(scored) != len(listed):
        raise ValueError(f"{path}: found {len(listed)} answers and {len(scored)} scores")
    scores: dict[int, float] = {}
    for k, (text, one) in enumerate(zip(texts, scored, strict=True)):
        value = value_at(one, layout.score) if layout.score else one
        score = number(value, f"{path}[{k}].{layout.score}")
        if text is not None and score is not None:
            scores[k] = -score if layout.lower_wins else score
    if len(scores) < 2:
        raise ValueError(f"{path}: found {len(scores)} with a text and a score, wanted two or more")
    draw = draws.rng(seed, own_id(layout, record) or json.dumps(texts, default=str), "pairs")
    for better, worse, tie in choose_pairs(scores, layout.pairs, 0.0, None, draw):
        names = (f"{path}[{better}]", f"{path}[{worse}]")
        margin = None if tie else abs(scores[better] - scores[worse])
        suffix = f":{better}-{worse}" if layout.pairs == "all" else ""
        yield Compared(texts[better], texts[worse], names, tie, margin, suffix)


def candidate_texts(layout: Layout, record: Record) -> list[str]:
    """All answers of a list, the one that they stand against first. Raises ValueError."""
    path = layout.candidates or ""
    listed = list_at(record, path)
    texts = [value_at(one, layout.text) if layout.text else one for one in listed]
    if layout.against:
        texts = [must(record, layout.against, "--answer-columns"), *texts]
    return [read_text(text, f"{path}[{k}]") for k, text in enumerate(texts) if text is not None]


def list_at(record: Record, path: str) -> Sequence[Any]:
    """The list at that path, also as JSON in a text. Raises ValueError."""
    value = must(record, path, "--candidates-column")
    value = parse_nested(value, path) if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}: found {type(value).__name__}, wanted a list")
    return value
