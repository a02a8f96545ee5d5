"""The section of judges: how right they are, in which place, by length, by votes; what tuning changed."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prefpipe.evaluation.metrics import length_buckets, wilson
from prefpipe.report import blocks
from prefpipe.report.blocks import Block
from prefpipe.report.found_files import Folder, read_report
from prefpipe.report.pair_section import Notes
from prefpipe.rows import AnnotationAnswer, CleanJudgment, EvaluatedJudgment, Item

_FLIPS = 20  # shown in each direction
_SAID = 1500  # characters of a judgment that is read beside a row
_JUDGES = ("base", "tuned")
_RATES = {
    "both_right": "right in both orders",
    "readable": "readable share",
    "agreement": "agreement of the two orders",
    "first_position": "first-position rate (unbiased: 0.5)",
    "picks_longer": "pick-the-longer rate",
    "longer_is_right": "the longer answer is right",
}


@dataclass
class _Set:
    """What the judgments of one set say, counted."""

    places: dict[str, Counter[tuple[int, int | None]]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    """For each judge: (place of the right answer, place of the verdict; None: unreadable)."""
    right: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """For each judge and item: how many of its two orders were judged right."""
    given: dict[str, dict[str, bool]] = field(default_factory=lambda: defaultdict(dict))
    """For each judge and item: right in the given order?"""
    said: dict[tuple[str, str], str] = field(default_factory=dict)
    """The texts of items that flipped: filled in a second reading."""


class ItemFacts(NamedTuple):
    """What is kept of each item: two numbers, since there may be a million."""

    better: int | None
    longer: int
    """By how many characters answer 1 is longer than answer 2."""


def item_facts(folder: Folder) -> dict[str, ItemFacts]:
    """What is needed of each item to read judgments of it, by id."""
    return {
        item.id: ItemFacts(item.better, len(item.answer_1) - len(item.answer_2))
        for file in folder.of(Item)
        for item in file.read(Item)
    }


def _questions(folder: Folder, ids: Collection[str]) -> dict[str, str]:
    """The questions of a few items."""
    files = folder.of(Item) if ids else []
    return {
        item.id: item.question[:_SAID]
        for file in files
        for item in file.read(Item)
        if item.id in ids
    }


def judges_section(folder: Folder, items: Mapping[str, ItemFacts]) -> Block | None:
    """Every set that judges were measured on, from accuracy.json and the judgments beside it."""
    choices = []
    for path in folder.named("accuracy.json"):
        report = read_report(path)
        judgments = [f for f in folder.of(EvaluatedJudgment) if f.path.parent == path.parent]
        counted = _count(judgments[0].read(EvaluatedJudgment)) if judgments else {}
        for name, both in report.get("judging", {}).items():
            parts = list(_numbers(name, both))
            if name in counted:
                parts += _of_judgments(folder, judgments[0], name, counted[name], items)
            choices.append((f"{name} ({folder.within(path.parent)})", parts))
    votes = votes_calibration(folder, items)
    return blocks.section("judges", "Judges", blocks.choice("set", choices), votes)


def _numbers(name: str, both: Mapping[str, Any]) -> Iterator[Block | None]:
    judges = [judge for judge in _JUDGES if judge in both]
    rows = [["accuracy (both orders)", *(blocks.accuracy(both[j]) for j in judges)]]
    rows += [[words, *(both[j].get(key) for j in judges)] for key, words in _RATES.items()]
    rows.append(["items", *(both[j]["n"] for j in judges)])
    if any(both[j].get("ties") for j in judges):
        rows.append(["of these ties, in no accuracy", *(both[j]["ties"] for j in judges)])
    if len(judges) == 2:
        rows.append(["p that both err alike (McNemar)", both.get("mcnemar_p"), None])
    yield blocks.table(name, ["", *(f"{judge} judge" for judge in judges)], rows)
    if by_source := both.get("by_source"):
        yield blocks.table(
            "Accuracy by source",
            ["source", "items", *judges],
            [[s, of.get("n"), *(of.get(j) for j in judges)] for s, of in by_source.items()],
        )


def _count(judgments: Iterator[EvaluatedJudgment]) -> dict[str, _Set]:
    sets: dict[str, _Set] = defaultdict(_Set)
    for row in judgments:
        of = sets[row.benchmark]
        if row.better is None:
            continue
        is_swapped = row.order == "swapped"
        verdict = row.verdict and (3 - row.verdict if is_swapped else row.verdict)
        of.places[row.judge][3 - row.better if is_swapped else row.better, verdict] += 1
        right = row.verdict == row.better
        scores = of.right[row.judge]
        scores[row.id] = scores.get(row.id, 0.0) + right / 2
        if not is_swapped:
            of.given[row.judge][row.id] = right
    return sets


def _of_judgments(
    folder: Folder, file: Any, name: str, of: _Set, items: Mapping[str, ItemFacts]
) -> Iterator[Block | None]:
    for judge in _JUDGES:
        if counts := of.places.get(judge):
            yield blocks.matrix(
                f"{judge} judge: where the right answer stood, and what was said",
                ["right one first", "right one second"],
                ["first", "second", "unreadable"],
                [[counts[right, said] for said in (1, 2, None)] for right in (1, 2)],
                corner="judgments",
            )
    for judge in _JUDGES:
        yield _by_length(judge, of.right.get(judge, {}), items)
    yield from _flips(folder, file, name, of, items)


def _by_length(
    judge: str, right: Mapping[str, float], items: Mapping[str, ItemFacts]
) -> Block | None:
    known = [id for id in right if id in items and items[id].better]
    if not known:
        return None
    # of the right answer: answer 1, or the other one
    differences = [items[id].longer if items[id].better == 1 else -items[id].longer for id in known]
    buckets = length_buckets(differences, [right[id] for id in known])
    rows = [
        (f"{bucket['from']} to {bucket['to']} (n = {bucket['n']})", blocks.accuracy(bucket))
        for bucket in buckets
    ]
    caption = f"{judge} judge: accuracy by length of the right answer less that of the wrong one"
    return blocks.bars(caption, rows, reference=0.5)


def _flips(
    folder: Folder, file: Any, name: str, of: _Set, items: Mapping[str, ItemFacts]
) -> Iterator[Block | None]:
    """Items, in their given order, that tuning made right or wrong: counts, and texts to read."""
    base, tuned = of.given.get("base", {}), of.given.get("tuned", {})
    both = base.keys() & tuned.keys()
    if not both:
        return
    counts = Counter((base[id], tuned[id]) for id in both)
    yield blocks.matrix(
        "Before and after tuning, in the given order",
        ["base right", "base wrong"],
        ["tuned right", "tuned wrong"],
        [[counts[b, t] for t in (True, False)] for b in (True, False)],
        corner="items",
    )
    directions = {
        "made right by tuning": [i for i in base if i in tuned and tuned[i] > base[i]],
        "made wrong by tuning": [i for i in base if i in tuned and tuned[i] < base[i]],
    }
    shown = {id for ids in directions.values() for id in ids[:_FLIPS]}
    said = {
        (row.id, row.judge): f"{row.verdict or row.unreadable}: {row.text}"
        for row in file.read(EvaluatedJudgment)
        if row.id in shown and row.order == "given" and row.benchmark == name
    }
    questions = _questions(folder, shown)
    groups = []
    for words, ids in directions.items():
        rows = [
            (
                id,
                [
                    *([("question", questions[id])] if id in questions else []),
                    *([("better answer", str(items[id].better))] if id in items else []),
                    *((f"{judge} judge", said.get((id, judge), "")) for judge in _JUDGES),
                ],
            )
            for id in ids[:_FLIPS]
        ]
        groups.append(blocks.group(f"flips/{name}/{words}", words, "", len(ids), rows))
    yield blocks.examples("Verdicts that tuning changed", groups)


# ---- calibration by votes --------------------------------------------------------------------------


def votes_calibration(folder: Folder, items: Mapping[str, ItemFacts]) -> Block | None:
    """Share of the sampled judgments that agree, against how often their majority is right."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for file in folder.of(CleanJudgment):
        for row in file.read(CleanJudgment):
            if row.variant != "best_of_n":
                break  # a file has one variant
            if row.verdict and row.id in items and items[row.id].better:
                votes[row.id][row.verdict] += 1
    bins: dict[float, list[float]] = defaultdict(list)
    for id, counts in votes.items():
        (most, count), n = counts.most_common(1)[0], counts.total()
        right = 0.5 if 2 * count == n else float(most == items[id].better)
        bins[round(count / n, 1)].append(right)
    rows = [
        (f"{share:.1f} (n = {len(right)})", wilson(sum(right), len(right)))
        for share, right in sorted(bins.items())
    ]
    if not rows:
        return None
    caption = "Base judge, sampled: by the share of its votes that agree, how often they are right"
    return blocks.bars(caption, rows, reference=0.5)


# ---- what judges say of the rows to read ---------------------------------------------------------


def add_verdicts(
    folder: Folder, ids: Collection[str], items: Mapping[str, ItemFacts], notes: Notes
) -> None:
    """Into the notes of these ids: each judge's words on them, and whether it disagrees."""
    against: dict[str, dict[str, None]] = defaultdict(dict)
    for file in folder.of(EvaluatedJudgment):
        for row in file.read(EvaluatedJudgment):
            if row.id not in ids:
                continue
            said = "unreadable"
            if row.verdict:
                said = "chosen" if row.verdict == row.better else "rejected"
            if row.better is None:
                said = f"answer {row.verdict}" if row.verdict else said
            elif row.verdict and row.verdict != row.better:
                against[row.id][f"{row.judge} judge"] = None
            who = f"{row.judge} judge, {row.order} order"
            if row.id in items or row.benchmark == "validation":
                notes.verdicts[row.id].append([who, said, row.text[:_SAID]])
    for id, who in against.items():
        notes.against[id].extend(who)
    for file in folder.of(AnnotationAnswer):
        for row in file.read(AnnotationAnswer):
            if row.id in ids and not row.swapped:
                who = f"{row.model}, rating {row.aspect.replace('_', ' ')}, texts as it was shown them"
                notes.verdicts[row.id].append([who, "", row.text[:_SAID]])
