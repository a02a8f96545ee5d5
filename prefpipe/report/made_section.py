"""The sections of preferences that prefpipe made: of retrieved contexts, and of several models' ratings."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefpipe import draws
from prefpipe.compare.tournament import bradley_terry
from prefpipe.evaluation.metrics import Estimate
from prefpipe.report import blocks
from prefpipe.report.blocks import Block
from prefpipe.report.found_files import Folder, RowFile
from prefpipe.rows import RagPair, SyntheticPair

_POINTS = 400  # of a scatter plot, on each side
_MODELS = 20  # shown: those with the most pairs
_DRAWS = 200  # of the bootstrap


# ---- of retrieved contexts -------------------------------------------------------------------------


def rag_section(folder: Folder) -> Block | None:
    """Grounding against keyword coverage, and what was retrieved."""
    found = [block for file in folder.of(RagPair) for block in _rag(folder, file)]
    return blocks.section("rag", "RAG", *found)


def _rag(folder: Folder, file: RowFile) -> Iterator[Block | None]:
    points: dict[str, list[tuple[float, float]]] = {"chosen": [], "rejected": []}
    sums: dict[str, list[list[float]]] = {"chosen": [], "rejected": []}
    best, answerable, count, abstained = [], 0, 0, {"chosen": 0, "rejected": 0}
    for row in file.read(RagPair):
        count += 1
        answerable += row.is_answerable
        best += [max(row.retrieval_scores)] if row.retrieval_scores else []
        for side, parts in (("chosen", row.chosen_parts), ("rejected", row.rejected_parts)):
            abstained[side] += parts["is_abstention"]
            point = (parts["grounding"], parts["keyword_coverage"])
            sums[side].append([*point, parts["length_penalty"], parts["score"]])
            if len(points[side]) < _POINTS:
                points[side].append(point)
    names = ("grounding", "keyword coverage", "length penalty", "score")
    means = {side: np.mean(values, axis=0).tolist() for side, values in sums.items() if values}
    rows = [[name, *(means[side][k] for side in means)] for k, name in enumerate(names)]
    rows.append(["abstentions", *(abstained[side] for side in means)])
    caption = f"{file.name}: means over {count:,} pairs, {answerable:,} held to be answerable"
    yield blocks.table(caption, ["part of the score", *means], rows)
    meta = next((r.meta for r in folder.runs if r.stage == "build_pairwise_prefs"), {})
    if of_random := meta.get("mean_grounding", {}).get("random_document"):
        said = (
            f"The grounding of an answer in another query's document is {of_random:.3f} on average."
        )
        yield blocks.words(said)
    yield blocks.scatter(
        f"Each answer (the first {_POINTS} of each side)",
        points,
        x="grounding",
        y="keyword coverage",
    )
    yield blocks.histogram("Similarity of the best document to its query", {"best document": best})


# ---- of ratings ------------------------------------------------------------------------------------


def synthetic_section(folder: Folder, *, seed: int) -> Block | None:
    """How the annotator rated, which models win, and how strong they are."""
    found: list[Block | None] = []
    for run in folder.runs:
        if run.stage == "parse_preferences":
            found += _ratings(run.meta)
    for file in folder.of(SyntheticPair):
        found += _models(file, seed)
    return blocks.section("synthetic", "Synthetic", *found)


def _ratings(meta: Mapping[str, Any]) -> Iterator[Block | None]:
    ratings = meta.get("ratings", {})
    levels = [str(k) for k in range(1, 6)]
    yield blocks.table(
        "Ratings by aspect",
        ["aspect", *levels, "N/A", "unreadable", "mean", "agreement with the other aspects"],
        [
            [
                aspect,
                *(of["histogram"].get(level, 0) for level in levels),
                of.get("not_applicable"),
                sum(of.get("unreadable", {}).values()),
                of.get("mean"),
                of.get("agreement"),
            ]
            for aspect, of in ratings.items()
        ],
    )
    for aspect, of in ratings.items():
        rows = [(level, of["histogram"].get(level, 0)) for level in levels]
        yield blocks.bars(f"Ratings: {aspect.replace('_', ' ')}", rows)
    if places := meta.get("mean_rating_by_place"):
        rows = [(f"text {k}", mean) for k, mean in enumerate(places, start=1)]
        yield blocks.bars("Mean rating by the place in which a text was shown", rows)


def _models(file: RowFile, seed: int) -> Iterator[Block | None]:
    games: list[tuple[str, str, float]] = []
    rated: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in file.read(SyntheticPair):
        games.append((row.chosen_model, row.rejected_model, 0.5 if row.tie else 1.0))
        sides = (row.chosen_model, row.chosen_ratings), (row.rejected_model, row.rejected_ratings)
        for model, values in sides:
            for aspect, value in zip(row.aspects, values, strict=False):
                if value is not None:
                    rated[model][aspect].append(value)
    most = Counter(model for a, b, _ in games for model in (a, b)).most_common(_MODELS)
    models = sorted(model for model, _ in most)
    games = [game for game in games if {*game[:2]} <= {*models}]
    if len(models) < 2:
        return
    aspects = list(dict.fromkeys(a for m in models for a in rated[m]))[:_MODELS]
    yield blocks.matrix(
        "Mean rating of each model in the pairs, by aspect",
        models,
        [aspect.replace("_", " ") for aspect in aspects],
        [[float(np.mean(v)) if (v := rated[m][a]) else None for a in aspects] for m in models],
        corner="model",
    )
    wins = win_matrix(models, games)
    yield blocks.matrix(
        "Wins of the row's model over the column's (a tie is half)",
        models,
        models,
        [
            [None if a is b else _whole(w) for b, w in zip(models, row, strict=True)]
            for a, row in zip(models, wins.tolist(), strict=True)
        ],
        corner="model",
    )
    strong = strengths(models, games, seed=seed)
    order = sorted(range(len(models)), key=lambda k: -strong[k].value)
    caption = "Bradley-Terry log-strength (mean 0), with 95 % intervals over the pairs"
    yield blocks.bars(caption, [(models[k], strong[k]) for k in order], reference=0.0)


def _whole(wins: float) -> float:
    """A count as one; only with ties in it a half is left."""
    return int(wins) if wins.is_integer() else wins


Games = Sequence[tuple[str, str, float]]
"""First model, second model, and what the first one got: 1, or 0.5 of a tie."""


def win_matrix(models: Sequence[str], games: Games) -> np.ndarray:
    """wins[a, b]: how often a was better than b, a tie being half."""
    place = {model: k for k, model in enumerate(models)}
    wins = np.zeros((len(models), len(models)))
    for a, b, points in games:
        wins[place[a], place[b]] += points
        wins[place[b], place[a]] += 1 - points
    return wins


def strengths(models: Sequence[str], games: Games, *, seed: int) -> list[Estimate]:
    """The Bradley-Terry log-strength of each model; its interval is a percentile bootstrap over games."""

    def fit(some: Games) -> np.ndarray:
        wins = win_matrix(models, some)
        return bradley_terry(np.where(wins + wins.T > 0, wins, np.nan))

    values = fit(games)
    rng = np.random.default_rng(draws.number(seed, "strengths"))
    drawn = [
        fit([games[k] for k in rng.integers(0, len(games), len(games))]) for _ in range(_DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    # models that are equally strong differ by what is left of the iteration
    rounded = np.round([values, low, high], 9) + 0.0
    return [Estimate(*one) for one in rounded.T.tolist()]
