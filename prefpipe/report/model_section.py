"""The section of trained models: curves, calibration, margins, what they are wrong about, rankings."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefpipe.report import blocks
from prefpipe.report.blocks import Block
from prefpipe.report.found_files import Folder, read_report
from prefpipe.report.pair_section import Notes
from prefpipe.rows import Disagreement, Ranking, ScoredQuestion

_POINTS = 300  # of a curve
_READ = 30  # disagreements of a model
_CYCLES = 10
_TEXT = 2000
_CURVES = {
    "Loss": ("loss", "eval_loss"),
    "Accuracy": ("accuracy", "eval_accuracy", "rewards/accuracies", "eval_rewards/accuracies"),
    "Margin": ("margin", "eval_margin", "rewards/margins", "eval_rewards/margins"),
}
_NUMBERS = {
    "undecided": "undecided, counted half",
    "longer_is_right": "picking the longer",
    "mean_margin": "mean margin",
    "ece": "calibration error (ECE)",
    "temperature": "temperature that fits best",
    "ece_scaled": "calibration error after it",
    "spearman": "|margin| with being right (Spearman)",
    "agreement": "agreement of both orders",
    "first_position": "first-position rate",
    "outside_mean": "probability on neither A nor B, mean",
}


def models_section(folder: Folder) -> Block | None:
    """Each trained model, then what models score on benchmarks, then rankings."""
    choices = []
    for path in folder.named("loss_curve.csv"):
        place = path.parent
        parts = list(_curves(path))
        for report in sorted(place.glob("*_eval.json")):
            parts += _evaluation(folder, report)
        choices.append((folder.within(place), parts))
    scored = [block for path in folder.named("accuracy.json") for block in _scored(folder, path)]
    rankings = [block for file in folder.of(Ranking) for block in _ranking(file)]
    return blocks.section(
        "models", "Trained models", blocks.choice("model", choices), *scored, *rankings
    )


def _curves(path: Path) -> Iterator[Block | None]:
    import pandas

    with suppress(ValueError, pandas.errors.ParserError):
        table = pandas.read_csv(path)
        for name, columns in _CURVES.items():
            series = {
                ("held out" if c.startswith("eval_") else "training"): _thinned(table, c)
                for c in columns
                if c in table and table[c].notna().any()
            }
            yield blocks.lines(name, series, x="step", y=name.lower())


def _thinned(table: Any, column: str) -> list[tuple[float, float]]:
    known = table[["step", column]].dropna()
    step = max(1, len(known) // _POINTS)
    return [(float(a), float(b)) for a, b in known.iloc[::step].itertuples(index=False)]


def _evaluation(folder: Folder, path: Path) -> Iterator[Block | None]:
    report = read_report(path)
    name = path.name.removesuffix("_eval.json")
    yield blocks.table(f"{name} model, held-out pairs", ["", name], _rows_of(report))
    yield _reliability(report)
    yield _by_length(report)
    for file in folder.of(Disagreement):
        if file.path.parent == path.parent:
            yield _disagreements(name, file)


def _rows_of(report: Mapping[str, Any]) -> list[list[Any]]:
    if "accuracy" not in report:
        return []
    rows = [["pairs", report.get("n")], ["accuracy", blocks.accuracy(report)]]
    if report.get("ties"):
        rows.insert(1, ["of these ties, in no accuracy", report["ties"]])
    return rows + [[w, report[k]] for k, w in _NUMBERS.items() if report.get(k) is not None]


def _reliability(report: Mapping[str, Any]) -> Block | None:
    series = {
        words: [(b["confidence"], b["accuracy"]) for b in report.get(key, ())]
        for key, words in (("reliability", "as it is"), ("reliability_scaled", "/ temperature"))
    }
    caption = "Probability of the preferred response, and how often it is better"
    return blocks.lines(caption, series, x="probability", y="share better", diagonal=True)


def _by_length(report: Mapping[str, Any]) -> Block | None:
    if not report.get("by_length"):
        return None
    rows = [
        (f"{b['from']} to {b['to']} (n = {b['n']})", blocks.accuracy(b))
        for b in report["by_length"]
    ]
    return blocks.bars("Accuracy by length of chosen less that of rejected", rows, reference=0.5)


def _disagreements(name: str, file: Any) -> Block | None:
    rows, count = [], 0
    for row in file.read(Disagreement):
        count += 1
        if count <= _READ:
            scores = "" if row.chosen_score is None else f" (score {row.chosen_score:.3f})"
            others = "" if row.rejected_score is None else f" (score {row.rejected_score:.3f})"
            parts = [
                ("prompt", row.prompt[:_TEXT]),
                (f"chosen by the data{scores}", row.chosen[:_TEXT]),
                (f"preferred by the model{others}", row.rejected[:_TEXT]),
            ]
            rows.append((f"{row.id}: margin {row.margin:.3f}", parts))
    note = "The worst first; the file has no more of them than --worst asked for."
    group = blocks.group(f"disagreements/{file.name}", f"{name} model", note, count, rows)
    return blocks.examples("Held-out pairs that the model is wrong about", [group])


def _scored(folder: Folder, path: Path) -> Iterator[Block | None]:
    for name, kinds in read_report(path).get("scored", {}).items():
        kinds = {k: v for k, v in kinds.items() if isinstance(v, Mapping) and "accuracy" in v}
        if not kinds:
            continue
        rows = [
            ["questions", *(of.get("n") for of in kinds.values())],
            ["accuracy", *map(blocks.accuracy, kinds.values())],
        ]
        more = {"random_is_right": "a random one is right"} | _NUMBERS
        rows += [
            [words, *(of.get(key) for of in kinds.values())]
            for key, words in more.items()
            if any(of.get(key) is not None for of in kinds.values())
        ]
        place = folder.within(path.parent)
        yield blocks.table(f"Benchmark {name} ({place})", ["", *kinds], rows)


def overlap_block(folder: Folder) -> Block | None:
    """How much of each benchmark stands in the training files, where accuracy.py --trained-on measured."""
    rows = [
        [name, of.get("questions"), of.get("n"), of.get("seen"), of.get("mostly_seen")]
        for path in folder.named("accuracy.json")
        for name, of in read_report(path).get("overlap", {}).items()
    ]
    head = ["set", "questions", "words in a row", "share some", "share half of theirs"]
    return blocks.table("What of the benchmarks stands in the training files", head, rows)


def _ranking(file: Any) -> Iterator[Block | None]:
    by, known, best, chance = Counter[str](), 0, 0.0, 0.0
    cycles, count, margins, places = [], 0, [], Counter[int]()
    for row in file.read(Ranking):
        count += 1
        by[f"{row.by}{f', {row.tournament}' if row.tournament else ''}"] += 1
        places[len(row.ranking)] += 1
        margins += [m for m in row.margins if m is not None]
        if row.cycle:
            text = " beats ".join(str(k) for k in [*row.cycle, row.cycle[0]])
            cycles.append((row.id, [("responses in a circle", text)]))
        if row.best_is_right is not None and row.right_share is not None:
            known, best, chance = known + 1, best + row.best_is_right, chance + row.right_share
    rows: list[list[Any]] = [["prompts ranked", count], ["prompts with a circle", len(cycles)]]
    if known:
        rows += [["the best one is right", best / known], ["a random one is right", chance / known]]
    caption = f"Ranking ({file.name}), by {', '.join(by)}"
    yield blocks.table(caption, ["", "value"], rows)
    yield blocks.histogram("Margins between neighbours in the ranking", {"margin": margins})
    group = blocks.group(f"circles/{file.name}", "circles", "", len(cycles), cycles[:_CYCLES])
    yield blocks.examples("Prompts whose responses beat each other in a circle", [group])


def add_disagreements(folder: Folder, ids: Collection[str], notes: Notes) -> None:
    """Into the notes of these ids: which trained model prefers the rejected answer."""
    for file in folder.of(Disagreement):
        who = f"{file.path.parent.name} model"
        for row in file.read(Disagreement):
            if row.id in ids:
                notes.against[row.id].append(who)
    for file in folder.of(ScoredQuestion):
        for row in file.read(ScoredQuestion):
            who = f"{row.kind} model" if row.kind != "judge" else "tuned judge"
            is_pair = len(row.right_scores) == len(row.wrong_scores) == 1
            if row.id in ids and is_pair and row.right_scores < row.wrong_scores:
                notes.against[row.id] += [who] if who not in notes.against[row.id] else []
