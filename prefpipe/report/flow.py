"""The ledger of each run as a flow: rows in, rows left out by reason, rows out; and what it took."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from prefpipe.files.lines import read_lines
from prefpipe.reasons import REASONS
from prefpipe.report import blocks
from prefpipe.report.blocks import Block
from prefpipe.report.found_files import Folder, StageRun

_EXAMPLES = 20  # rejects shown of each reason
_DETAIL = 500  # characters of each
_PATHS = {
    "judge": "preprocess_dataset translation inference_best_of_n inference_all post_processing "
    "construct_dpo_dataset dpo_dataset dpo_training accuracy",
    "models": "train_reward_model train_pairwise_model rank_responses accuracy",
    "rag": "build_vector_store build_pairwise_prefs preprocess_dataset",
    "synthetic": "generate_responses create_annotation_mix annotate_preferences parse_preferences",
}
PATH_OF = {stage: path for path, stages in reversed(_PATHS.items()) for stage in stages.split()}


def rejects_id(run: StageRun, reason: str) -> str:
    """Where in the page the rejects of one reason stand; the flow links there."""
    return f"left-out/{run.place}/{run.stage}/{reason}"


def ledger_section(folder: Folder) -> Block | None:
    """The flow, what stands behind it, and the rejects with examples."""
    return blocks.section("ledger", "Rows in, rows out", flow(folder), costs(folder))


def rejects_section(folder: Folder) -> Block | None:
    """What was left out, by reason, with the first rows of each."""
    groups = [group for run in folder.runs for group in _rejects_of(run)]
    return blocks.section("left-out", "Left out", blocks.examples("Why rows were left out", groups))


def flow(folder: Folder) -> Block | None:
    """Chains of runs, each reading what one before it wrote."""
    chains: dict[str, list[Block]] = defaultdict(list)
    before: dict[str, StageRun] = {}
    for run in sorted(folder.runs, key=lambda run: _place_in_path(run, folder)):
        counts, path = run.counts, _path_of(run, folder)
        if not counts.get("read"):
            continue
        left_out = [[r, n, rejects_id(run, r)] for r, n in counts["left_out"].items()]
        written = ", ".join(f"{n:,} in {name}" for name, n in counts.get("written", {}).items())
        goes_on = path in before and _reads(run, before[path])
        before[path] = run
        chains[path].append(
            {
                "name": run.stage,
                "place": run.place,
                "read": counts["read"],
                "kept": counts["kept"],
                "left_out": left_out,
                "written": written,
                "goes_on": goes_on,
            }
        )
    made = [{"name": name, "stages": chains[name]} for name in [*_PATHS, "other"] if chains[name]]
    caption = "The runs of each path from above to below; the wider, the more rows"
    return {"kind": "flow", "caption": caption, "chains": made} if made else None


def _place_in_path(run: StageRun, folder: Folder) -> int:
    stages = _PATHS.get(_path_of(run, folder), "").split()
    return stages.index(run.stage) if run.stage in stages else len(stages)


def _reads(run: StageRun, earlier: StageRun) -> bool:
    """Whether the run reads what the earlier one wrote: one of its paths leads there."""
    wrote = str(earlier.settings.get("output"))
    given = [value for name, value in run.settings.items() if name != "output"]
    paths = [v for value in given for v in (value if isinstance(value, list) else [value])]
    return any(
        path == wrote or path.startswith(f"{wrote}/") or wrote.startswith(f"{path}/")
        for path in paths
        if isinstance(path, str) and path
    )


def _path_of(run: StageRun, folder: Folder) -> str:
    """The path that a run belongs to. A stage that reads what another path's wrote belongs to that one:
    preprocess_dataset.py, of RAG pairs."""
    makers = {str(r.settings.get("output")): r for r in folder.runs if r is not run}
    maker = makers.get(str(run.settings.get("input")))
    first = "preprocess_dataset"
    if run.stage == first and maker and maker.stage in PATH_OF and maker.stage != first:
        return PATH_OF[maker.stage]
    if run.stage == "accuracy" and set(run.settings.get("kind", ())) - {"judge"}:
        return "models"
    return PATH_OF.get(run.stage, "other")


def costs(folder: Folder) -> Block | None:
    """Seconds of each run, rows a second, and tokens where a model was asked and they are known."""
    rows = []
    for run in folder.runs:
        seconds, read = run.meta.get("seconds"), run.counts.get("read", 0)
        rate = read / seconds if seconds else None
        prompt, new = _tokens(run.meta)
        money = run.meta.get("usd")
        rows.append(
            [run.name, read, run.counts.get("kept"), seconds, rate, prompt, new]
            + ([money] if any("usd" in r.meta for r in folder.runs) else [])
        )
    head = ["run", "rows read", "kept", "seconds", "rows a second", "prompt tokens", "new tokens"]
    if rows and len(rows[0]) > len(head):
        head.append("dollars")
    used = [k for k in range(len(head)) if any(row[k] is not None for row in rows)]
    return blocks.table(
        "What each run took (of a run that went on: its last part)",
        [head[k] for k in used],
        [[row[k] for k in used] for row in rows],
    )


def _tokens(meta: dict[str, Any]) -> tuple[int | None, int | None]:
    tokens = meta.get("tokens")
    tokens = tokens if isinstance(tokens, dict) else {}
    return tokens.get("prompt"), tokens.get("new")


def _rejects_of(run: StageRun) -> Iterator[Block]:
    """A group for each reason: its sentence, the number, and the first rows."""
    counts: dict[str, int] = run.counts["left_out"]
    rows: dict[str, list[Any]] = {reason: [] for reason in counts}
    if counts and run.rejects.exists():
        for _, line in read_lines(run.rejects):
            if all(len(rows[r]) >= min(_EXAMPLES, n) for r, n in counts.items()):
                break
            with suppress(ValueError, KeyError, TypeError):
                reject = json.loads(line)
                some = rows[reject["reason"]]
                if len(some) < _EXAMPLES:
                    some.append((str(reject["id"]), str(reject.get("detail", ""))[:_DETAIL]))
    for reason, count in counts.items():
        shown = [(id, [("", detail)] if detail else []) for id, detail in rows[reason]]
        yield blocks.group(
            rejects_id(run, reason),
            f"{run.name}: {reason}",
            REASONS.get(reason, ""),
            count,
            shown or [("no row of it stands in the rejects file", [])],
        )
