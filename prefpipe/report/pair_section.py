"""The section of preferences, and the rows of it that are read one by one."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from prefpipe.evaluation.metrics import wilson
from prefpipe.near_duplicates import EarlierDocuments
from prefpipe.report import blocks
from prefpipe.report.blocks import Block
from prefpipe.report.found_files import Folder, RowFile
from prefpipe.report.pair_statistics import STYLE, Pair, Statistics, pairs_of
from prefpipe.rows import Document, Item, JudgmentPair, Preference, RagPair, SyntheticPair
from prefpipe.shingles import jaccard, shingles

_SAMPLED = 4000  # rows whose texts are compared
_TEXT = 8000  # characters of a text that is shown
_BYTES = 3_000_000  # of all texts that are read one by one
_MOST_SIMILAR = 10
_LANGUAGES = {"en": "other than Chinese", "zh": "Chinese"}
_NEAR = 0.8


@dataclass
class PairFile:
    """A file of pairs, counted, and the sample of it."""

    file: RowFile
    statistics: Statistics
    sample: list[Pair]
    similarities: dict[str, float] = field(default_factory=dict)
    """How alike the two answers of a sampled pair are, by id."""

    @property
    def name(self) -> str:
        return self.file.name


def count_pairs(folder: Folder, *, seed: int, sampled: int = _SAMPLED) -> list[PairFile]:
    """Every file of pairs, read once. Of a file that a stage wrote again (translation.py, of items) only
    the last one counts."""
    last: dict[tuple[Any, ...], RowFile] = {}
    for kind in (Item, Preference, JudgmentPair):
        for file in folder.of(kind):
            first = next(file.read(file.kind), None)
            if first is not None:
                last[file.kind, file.path.name, first.id, file.name.count("/")] = file
    found = []
    for file in last.values():
        statistics = Statistics(seed, sampled)
        for pair in pairs_of(file.read(file.kind)):
            statistics.add(pair)
        made = PairFile(file, statistics, statistics.sample)
        for pair in made.sample:
            if not pair.tie:
                both = shingles(pair.chosen), shingles(pair.rejected)
                made.similarities[pair.id] = jaccard(*both)
        found.append(made)
    return found


# ---- the section ---------------------------------------------------------------------------------


def pairs_section(files: Sequence[PairFile], overlap: Block | None) -> Block | None:
    """What each file of preferences is like. overlap: of benchmarks with them, where it was measured."""
    choices = [(file.name, list(_statistics_of(file))) for file in files]
    return blocks.section("pairs", "Preferences", blocks.choice("file", choices), overlap)


def _statistics_of(file: PairFile) -> Iterator[Block | None]:
    s = file.statistics
    yield blocks.table(f"{file.name}: {_what(file.file)}", ["", "rows"], _facts(file))
    yield blocks.histogram(
        "Length in characters", {"chosen": s.chosen_lengths, "rejected": s.rejected_lengths}
    )
    difference = [c - r for c, r in zip(s.chosen_lengths, s.rejected_lengths, strict=True)]
    yield blocks.histogram("Length of chosen less that of rejected", {"difference": difference})
    if len(s.margins):
        yield blocks.histogram("Margin, in the writer's own unit", {"margin": s.margins})
    if set(s.sources) - {""}:
        yield blocks.counted("Sources", {name or "none": n for name, n in s.sources.items()})
    yield blocks.counted(
        "Language of the prompt", {_LANGUAGES[k]: n for k, n in s.languages.items()}
    )
    decided = s.n - s.ties
    if decided:
        chosen, rejected = s.styles["chosen"], s.styles["rejected"]
        yield blocks.table(
            "Marks of style: share of the answers that have them",
            ["mark", "chosen", "rejected", "chosen less rejected"],
            [
                [
                    name,
                    chosen[name] / decided,
                    rejected[name] / decided,
                    (chosen[name] - rejected[name]) / decided,
                ]
                for name in STYLE
                if chosen[name] or rejected[name]
            ],
        )
        yield _openings(s, decided)
    yield _most_similar(file)


def _what(file: RowFile) -> str:
    names = {
        Item: "questions with two answers, for a judge",
        JudgmentPair: "pairs of judgments, to train a judge on",
        SyntheticPair: "preferences made of ratings",
        RagPair: "preferences made of answers to retrieved contexts",
    }
    return names.get(file.kind, "preferences")


def _facts(file: PairFile) -> Iterator[list[Any]]:
    s = file.statistics
    decided = s.n - s.ties
    yield ["rows", s.n]
    if s.ties:
        yield ["ties, in no order", s.ties]
    if decided:
        yield ["the longer answer is chosen", s.longer_wins]
        yield ["... as a share", wilson(s.longer_wins, decided)]
        yield ["the shorter answer is chosen", s.shorter_wins]
    yield ["rows whose prompt an earlier row has", s.repeated_prompts]
    if near := _near_duplicates(file):
        yield [f"nearly the same prompt as an earlier one, of {len(file.sample):,} sampled", near]
    if file.file.bad_count:
        yield ["rows that could not be read", file.file.bad_count]
        yield ["... the first", file.file.bad[0]]


def _near_duplicates(file: PairFile) -> int:
    """Sampled prompts that are nearly an earlier one, and not the same letter for letter."""
    earlier, found = EarlierDocuments(_NEAR), 0
    for k, pair in enumerate(file.sample):
        digest = f"{hash(pair.prompt) % 2**64:016x}"
        document = Document(
            id=str(k), row_id=pair.id, start=0, text=pair.prompt, content_hash=digest
        )
        match = earlier.find(document)
        found += match is not None and match[0] == "nearly_equal"
    return found


def _openings(s: Statistics, decided: int) -> Block | None:
    both = s.openings["chosen"] + s.openings["rejected"]
    rows = [
        [words, s.openings["chosen"][words] / decided, s.openings["rejected"][words] / decided]
        for words, _ in both.most_common(12)
        if words
    ]
    return blocks.table(
        "First words: share of the answers that begin so", ["words", "chosen", "rejected"], rows
    )


def _most_similar(file: PairFile) -> Block | None:
    """The pairs that differ least: what is learnt of them is little, or a detail that decides."""
    pairs = [(file.similarities[p.id], p) for p in file.sample if p.id in file.similarities]
    most = sorted(pairs, key=lambda x: (-x[0], x[1].id))[:_MOST_SIMILAR]
    rows = [
        [blocks.link(pair.id, file.name, pair.id), similarity, pair.chosen[:160]]
        for similarity, pair in most
        if similarity > 0
    ]
    return blocks.table(
        f"Chosen and rejected most alike (shared runs of five words), of {len(file.sample):,} sampled",
        ["row", "alike", "chosen begins"],
        rows,
    )


# ---- rows to read --------------------------------------------------------------------------------


@dataclass
class Notes:
    """What else is known of a row, by id."""

    verdicts: dict[str, list[list[Any]]] = field(default_factory=lambda: defaultdict(list))
    """Who judged it, what the verdict was (chosen, rejected, unreadable), and the words."""
    against: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Who disagrees with the data on it."""
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Why a later stage left it out."""


def rows_to_read(files: Sequence[PairFile], notes: Notes, *, most: int) -> Block | None:
    """Up to `most` sampled rows of each file, as many as fit into the page; the most similar ones and
    those that someone disagrees on come first."""
    queues, ranks, firsts = [], [], []
    for file in files:
        ranks.append({pair.id: k for k, pair in enumerate(file.sample)})
        alike = sorted(file.similarities, key=lambda id: (-file.similarities[id], id))
        first = set(alike[:_MOST_SIMILAR])
        against = [p.id for p in file.sample if p.id in notes.against]
        first.update(against[: most // 4])
        queues.append(sorted(file.sample, key=lambda p, first=first: p.id not in first)[:most])
        firsts.append(first)
    rows, used, shown = [], 0, Counter[int]()
    for rank in range(max(map(len, queues), default=0)):
        for k, queue in enumerate(queues):
            if rank >= len(queue) or used > _BYTES:
                continue
            row = _row(queue[rank], k, notes, files[k])
            rows.append(row)
            shown[k] += 1
            used += len(to_json(row))
    rows.sort(key=lambda row: row["f"])
    # labels are given to the part that is a plain sample: the rows up to the last that nothing singled out
    last = [-1] * len(files)
    for row in rows:
        if row["id"] not in firsts[k := row["f"]]:
            last[k] = max(last[k], ranks[k][row["id"]])
    for row in rows:
        if ranks[k := row["f"]][row["id"]] > last[k] and shown[k] < len(files[k].sample):
            row["o"] = 1
    made = [
        {"name": file.name, "total": file.statistics.n, "shown": shown[k]}
        for k, file in enumerate(files)
    ]
    return {"kind": "reader", "files": made, "rows": rows} if rows else None


def _row(pair: Pair, file: int, notes: Notes, of: PairFile) -> Block:
    """A row for the page; short names, since they stand there thousands of times."""
    row = {
        "f": file,
        "id": pair.id,
        "s": pair.source,
        "p": _shown(pair.prompt),
        "c": _shown(pair.chosen),
        "r": _shown(pair.rejected),
        "m": pair.margin,
        "t": int(pair.tie),
        "a": round(of.similarities.get(pair.id, 0.0), 3),
        "x": list(_parts(pair)),
        "j": notes.verdicts.get(pair.id, []),
        "d": notes.against.get(pair.id, []),
        "w": notes.left_out.get(pair.id, []),
    }
    return {
        name: value for name, value in row.items() if value not in (None, [], "") or name in "pcr"
    }


def _shown(text: str) -> str:
    if len(text) <= _TEXT:
        return text
    return f"{text[:_TEXT]}\n[... {len(text) - _TEXT:,} characters more]"


def _parts(pair: Pair) -> Iterator[list[Any]]:
    """What a row says of its two sides, as (name, chosen, rejected), and of both, as (name, value)."""
    row = pair.row
    if isinstance(row, SyntheticPair):
        yield ["model", row.chosen_model, row.rejected_model]
        yield ["rating", row.chosen_rating, row.rejected_rating]
        ratings = zip(row.aspects, row.chosen_ratings, row.rejected_ratings, strict=False)
        yield from ([aspect, chosen, rejected] for aspect, chosen, rejected in ratings)
    elif isinstance(row, RagPair):
        both: tuple[Mapping[str, Any], ...] = (row.chosen_parts, row.rejected_parts)
        for name in both[0]:
            if not all(side[name] is None for side in both):
                yield [name.replace("_", " "), *(side[name] for side in both)]
        found = zip(row.document_ids, row.retrieval_scores, strict=False)
        yield ["context", ", ".join(f"{id} ({score:.2f})" for id, score in found)]
    elif isinstance(row, JudgmentPair):
        yield ["better answer", row.better]
