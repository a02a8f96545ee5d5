"""Two folders side by side: which settings changed, which numbers, and which rows flipped."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from prefpipe.report import blocks
from prefpipe.report.blocks import Block
from prefpipe.report.flow import flow
from prefpipe.report.found_files import Folder, StageRun, read_report
from prefpipe.report.pair_section import PairFile
from prefpipe.rows import EvaluatedJudgment

_FLIPS = 30  # shown in each direction
_NOT_A_CHANGE = {"overwrite", "debug", "show_settings"}
_NUMBERS = ("accuracy.json", "_eval.json")

Key = tuple[str, str, str]


def sections(
    folders: Sequence[Folder], names: Sequence[str], files: Sequence[Sequence[PairFile]]
) -> list[Block | None]:
    """The sections of a page of two runs."""
    return [
        blocks.section("settings", "What was set otherwise", _settings(folders, names)),
        blocks.section(
            "ledger", "Rows in, rows out", _counts(folders, names), *_flows(folders, names)
        ),
        blocks.section("numbers", "Numbers", _numbers(folders, names)),
        blocks.section("pairs-changed", "Preferences", _pair_counts(files, names)),
        blocks.section(
            "flips", "Rows that flipped", *_flips(folders, names), *_sides(files, names)
        ),
    ]


def _key(run: StageRun) -> tuple[str, str]:
    return run.stage, run.place


def _both(folders: Sequence[Folder]) -> Iterator[tuple[str, StageRun | None, StageRun | None]]:
    """The same run of both, by stage and place."""
    first, second = ({_key(run): run for run in folder.runs} for folder in folders)
    for key in dict.fromkeys([*first, *second]):
        run = first.get(key) or second[key]
        yield run.name, first.get(key), second.get(key)


def _settings(folders: Sequence[Folder], names: Sequence[str]) -> Block:
    """Settings that differ; a path inside the run's own folder is the same where its rest is."""
    rows = []
    for name, first, second in _both(folders):
        if not first or not second:
            rows.append([name, "", *("ran" if run else "did not run" for run in (first, second))])
            continue
        values = [
            {k: _within(v, _root_of(run)) for k, v in run.settings.items()}
            for run in (first, second)
        ]
        for setting in dict.fromkeys([*values[0], *values[1]]):
            both = [of.get(setting, "not a setting then") for of in values]
            if both[0] != both[1] and setting not in _NOT_A_CHANGE:
                rows.append([name, setting, *map(str, both)])
        versions = [run.meta.get("libraries", {}) for run in (first, second)]
        for library in versions[0]:
            if versions[0][library] != versions[1].get(library):
                rows.append([name, library, *(str(v.get(library)) for v in versions)])
    made = blocks.table("Settings and versions that differ", ["run", "setting", *names], rows)
    return made or blocks.words("All settings of all runs are the same in both.")


def _root_of(run: StageRun) -> str:
    """The folder that the run's places were in when it ran; it may have been moved since."""
    output = str(run.settings.get("output", ""))
    places = [run.place, *map(str, PurePosixPath(run.place).parents)][:-1]
    return next((output[: output.rfind(f"/{p}")] for p in places if f"/{p}" in output), "")


def _within(value: Any, root: str) -> Any:
    """A setting's value, of a path in the run's own folder the rest of it."""
    if isinstance(value, list):
        return [_within(inner, root) for inner in value]
    if isinstance(value, dict):
        return {key: _within(inner, root) for key, inner in value.items()}
    return value.replace(f"{root}/", "") if isinstance(value, str) and root else value


def _counts(folders: Sequence[Folder], names: Sequence[str]) -> Block | None:
    rows = []
    for name, *runs in _both(folders):
        counts = [run.counts if run else {} for run in runs]
        for word in ("read", "kept"):
            rows.append([name, word, *(of.get(word) for of in counts)])
        reasons = dict.fromkeys(r for of in counts for r in of.get("left_out", {}))
        for reason in reasons:
            rows.append(
                [
                    name,
                    f"left out: {reason}",
                    *(of.get("left_out", {}).get(reason, 0) for of in counts),
                ]
            )
    rows = [[*row, _less(row[3], row[2])] for row in rows]
    return blocks.table("Rows of each run", ["run", "", *names, "difference"], rows)


def _flows(folders: Sequence[Folder], names: Sequence[str]) -> Iterator[Block | None]:
    choices = [(name, [flow(folder)]) for name, folder in zip(names, folders, strict=True)]
    yield blocks.choice("run", choices)


def _less(second: Any, first: Any) -> float | None:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (first, second))
    return second - first if numbers else None


def _numbers(folders: Sequence[Folder], names: Sequence[str]) -> Block | None:
    """Every number of the reports in both folders that is not the same."""
    first, second = (dict(_numbers_of(folder)) for folder in folders)
    rows = [
        [*key, first.get(key), second.get(key), _less(second.get(key), first.get(key))]
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    head = ["file", "number", *names, "difference"]
    return blocks.table("Numbers of accuracy.json and of the trainings that differ", head, rows)


def _numbers_of(folder: Folder) -> Iterator[tuple[tuple[str, str], float]]:
    for path in folder.named(*_NUMBERS):
        for name, value in _flat(read_report(path)):
            yield (folder.within(path), name), value


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a report; those in lists (bins, intervals) are left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _pair_counts(files: Sequence[Sequence[PairFile]], names: Sequence[str]) -> Block | None:
    rows: list[list[Any]] = []
    first, second = ({file.name: file.statistics for file in some} for some in files)
    for name in dict.fromkeys([*first, *second]):
        both = [of.get(name) for of in (first, second)]
        rows.append([name, "rows", *(of.n if of else None for of in both)])
        rows.append([name, "ties", *(of.ties if of else None for of in both)])
        longer = [
            of.longer_wins / (of.n - of.ties) if of and of.n > of.ties else None for of in both
        ]
        rows.append([name, "the longer answer is chosen, as a share", *longer])
    rows = [[*row, _less(row[3], row[2])] for row in rows]
    return blocks.table("Files of pairs", ["file", "", *names, "difference"], rows)


# ---- rows that flipped -----------------------------------------------------------------------------


def _flips(folders: Sequence[Folder], names: Sequence[str]) -> Iterator[Block | None]:
    """Judgments of the same item, by the same judge, in the same order, whose verdict is another."""
    first, second = (_verdicts(folder) for folder in folders)
    shared = first.keys() & second.keys()
    if not shared:
        return
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    flipped: dict[str, list[Key]] = {"right, then wrong": [], "wrong, then right": []}
    for key in first:
        if key in second:
            (was, better), (now, _) = first[key], second[key]
            was_right, is_right = was == better, now == better
            word = "the same verdict" if was == now else "another verdict, as right or wrong"
            if was_right != is_right:
                word = "right, then wrong" if was_right else "wrong, then right"
                flipped[word].append(key)
            counts[key[1], key[2].rpartition(" ")[0]][word] += 1
    kinds = ["the same verdict", *flipped, "another verdict, as right or wrong"]
    yield blocks.table(
        f"Judgments in both runs, {names[0]} first",
        ["set", "judge", *kinds],
        [[*key, *(of[kind] for kind in kinds)] for key, of in counts.items()],
    )
    wanted = {key for keys in flipped.values() for key in keys[:_FLIPS]}
    said = [_texts(folder, wanted) for folder in folders]
    yield blocks.examples(
        "Judgments that became right or wrong",
        [
            blocks.group(
                f"flips/{word}",
                word,
                "",
                len(keys),
                [
                    (
                        f"{id} ({where}, {who})",
                        [
                            (n, of.get((id, where, who), ""))
                            for n, of in zip(names, said, strict=True)
                        ],
                    )
                    for id, where, who in keys[:_FLIPS]
                ],
            )
            for word, keys in flipped.items()
        ],
    )


def _keyed(folder: Folder) -> Iterator[tuple[Key, EvaluatedJudgment]]:
    for file in folder.of(EvaluatedJudgment):
        for row in file.read(EvaluatedJudgment):
            if row.better is not None:
                yield (row.id, row.benchmark, f"{row.judge} {row.order}"), row


def _verdicts(folder: Folder) -> dict[Key, tuple[int | None, int | None]]:
    return {key: (row.verdict, row.better) for key, row in _keyed(folder)}


def _texts(folder: Folder, wanted: set[Key]) -> dict[Key, str]:
    return {
        key: f"{row.verdict or row.unreadable}: {row.text[:2000]}"
        for key, row in _keyed(folder)
        if key in wanted
    }


def _sides(files: Sequence[Sequence[PairFile]], names: Sequence[str]) -> Iterator[Block | None]:
    """Sampled pairs of both runs whose chosen answer is the other run's rejected one."""
    first, second = (
        {(file.name, pair.id): pair for file in some for pair in file.sample} for some in files
    )
    shared = [key for key in first if key in second]
    turned = [
        key
        for key in shared
        if not first[key].tie
        and first[key].chosen == second[key].rejected
        and first[key].rejected == second[key].chosen
    ]
    if not shared:
        return
    other = sum(first[k].chosen != second[k].chosen for k in shared) - len(turned)
    yield blocks.table(
        "Sampled pairs of both runs, by file and id",
        ["", "pairs"],
        [
            ["in both", len(shared)],
            ["chosen and rejected turned round", len(turned)],
            ["another chosen text", other],
        ],
    )
    rows = [
        (
            f"{id} ({name})",
            [
                ("prompt", first[name, id].prompt[:2000]),
                (f"chosen in {names[0]}", first[name, id].chosen[:2000]),
                (f"chosen in {names[1]}", second[name, id].chosen[:2000]),
            ],
        )
        for name, id in turned[:_FLIPS]
    ]
    group = blocks.group("turned", "turned round", "", len(turned), rows)
    yield blocks.examples("Pairs that turned round", [group])
